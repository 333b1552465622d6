"""What every method of Table 1 costs, counted and timed in one process: `python -m benchmarks.methods`.

U-Net evaluations are counted by the score model. Seconds are medians of whole iterations, beside those of SDS taken
right before, in the same process. With `--full` the prior has the size of Stable Diffusion 2.1 and random weights.
"""

import argparse
import gc
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from arguments import load
from arguments.groups import METHODS
from benchmarks.cells import QUICKSTART, RESULTS, ROOT
from benchmarks.command import finish_measurement
from benchmarks.iteration import Stopwatch
from training import Training
from utils.errors import UserError
from utils.run import peak_memory

WARM_UP = 2
SMALL_BANK = (
    "GuidanceParams.lmc_bank=4",
    "GuidanceParams.lmc_sampling_steps=2",
    "GuidanceParams.lmc_steps=2",
)
"""What LMC learns before the run is no part of an iteration."""

Row = dict[str, Any]


def measure(method: str, words: list[str], iterations: int) -> Row:
    """Cost of one method: evaluations for each view and iteration, median seconds, peak memory in bytes.

    The measured iterations are spread over the run, so that what is annealed counts with its mean.
    """
    config, _ = load([*words, *SMALL_BANK, f"GuidanceParams.guidance={method}"])
    training = Training(config)
    views = config.GuidanceParams.C_batch_size
    length = config.OptimizationParams.iterations
    for step in range(1, WARM_UP + 1):
        training.iteration(step)
    _forget_peak(training.device)
    spent, watch = training.score_model.evaluations.state_dict(), Stopwatch(training.device)
    for index in range(iterations):
        step = max(WARM_UP + 1, round(1 + (index + 0.5) * (length - 1) / iterations))
        with watch.timed("iteration"):
            training.iteration(step)
    after = training.score_model.evaluations.state_dict()
    per_view = {name: (after[name] - spent[name]) / (iterations * views) for name in after}
    peak = _peak(training.device)
    del training
    gc.collect()
    return {"method": method, **per_view, "seconds": watch.median("iteration"), "peak_memory_bytes": peak}


def compare(methods: list[str], words: list[str], iterations: int) -> list[Row]:
    """Every method, each beside an SDS of its own."""
    rows = []
    for method in methods:
        sds = measure("sds", words, iterations)
        row = sds if method == "sds" else measure(method, words, iterations)
        rows.append(row | {"over_sds": row["seconds"] / sds["seconds"]})
        logging.info("%s", _line(rows[-1]))
    return rows


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    head = "| method | forward | backward | in forwards | s / iteration | over SDS | peak GiB |"
    return "\n".join([head, "| --- |" + " --- |" * 6, *map(_line, rows)])


def _line(row: Row) -> str:
    return (
        f"| `{row['method']}` | {row['forward']:.2f} | {row['backward']:.2f} | {row['forward'] + row['backward']:.2f} "
        f"| {row['seconds']:.3f} | {row['over_sds']:.2f} | {row['peak_memory_bytes'] / 2**30:.2f} |"
    )


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def _peak(device: torch.device) -> int:
    """Bytes at the peak since it was last forgotten; elsewhere than on CUDA and Linux, since the process began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform != "linux":
        return peak_memory()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def save_full_prior(folder: Path) -> None:
    """A pipeline of the size of Stable Diffusion 2.1 base with random weights: 866M parameters in its U-Net."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    toybox = StableDiffusionPipeline.from_pretrained(
        ROOT / "toybox" / "prior", safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    words = len(toybox.tokenizer)
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            sample_size=512,
        ),
        unet=UNet2DConditionModel(
            sample_size=64,
            cross_attention_dim=1024,
            attention_head_dim=(5, 10, 20, 20),
            use_linear_projection=True,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=words,
                hidden_size=1024,
                intermediate_size=4096,
                num_hidden_layers=1,
                num_attention_heads=16,
                bos_token_id=toybox.tokenizer.bos_token_id,
                eos_token_id=toybox.tokenizer.eos_token_id,
                pad_token_id=toybox.tokenizer.pad_token_id,
            )
        ),
        tokenizer=toybox.tokenizer,
        scheduler=toybox.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__)
    parser.add_argument("--opt", type=Path, default=QUICKSTART, help="settings of every method")
    parser.add_argument(
        "--methods", default=",".join(METHODS), help="names with commas between (default: all)"
    )
    parser.add_argument("--iterations", type=int, default=20, help="iterations to time (default 20)")
    parser.add_argument("--full", action="store_true", help="a random prior of Stable Diffusion 2.1's size")
    parser.add_argument("--json", type=Path, default=RESULTS / "methods.json", help="where the numbers go")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    options = parser.parse_intermixed_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    def measured() -> dict[str, Any]:
        methods = options.methods.split(",")
        unknown = [name for name in methods if name not in METHODS]
        if unknown or options.iterations < 1:
            raise UserError(
                f"expected --methods of {', '.join(METHODS)} and --iterations of at least 1, got "
                f"{', '.join(unknown) or options.iterations}; correct it"
            )
        words = ["--opt", str(options.opt), *options.overrides]
        with tempfile.TemporaryDirectory() as folder:
            if options.full:
                save_full_prior(Path(folder))
                words += [f"model_key={folder}", "image_w=512", "image_h=512"]
            rows = compare(methods, words, options.iterations)
        return {
            "prior": "random, of SD 2.1's size" if options.full else "as set",
            "iterations": options.iterations,
            "methods": rows,
        }

    return finish_measurement(measured, lambda result: table(result["methods"]), options.json)


if __name__ == "__main__":
    sys.exit(main())
