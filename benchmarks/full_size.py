"""The paper's setting without weights: `python -m benchmarks.full_size`.

Builds Stable Diffusion 2.1 base, or another family, in its exact architecture with random weights, and runs
`train.py` on it with nothing but the model's path changed. The time of an iteration does not depend on the weights; the
result is noise. On a CPU, try `--iterations 2 C_batch_size=1 HardwareParams.memory=8gb`.
"""

import math
import sys
import time
from pathlib import Path
from typing import Any

import torch

from arguments import load
from benchmarks import iteration
from benchmarks.command import RESULTS, finish_measurement
from benchmarks.random_model import SD2_BASE, random_model, word_tokenizer
from dreammapping.finished import FinishedRun
from dreammapping.memory import MAX_GAUSSIANS, gaussian_bytes
from guidance.models import ModelSource
from guidance.prior.memory import GIB, PLANS
from guidance.prior.score_model import ScoreModel
from train import main as train
from utils.errors import UserError
from utils.parser import Parser
from utils.peak_memory import peak_memory
from utils.repository import ROOT


def run(settings: Path, folder: Path, words: list[str], iterations: int, floor: bool) -> dict[str, Any]:
    """Train on a random model through the program's own door; returns what an iteration took.

    Raises:
        UserError: the run did not finish.
    """
    model = random_model(settings, folder)
    words = [
        f"model_key={model}", f"iterations={iterations}", "log_interval=1", "save_video=false", "save_process=false",
        "render_45=false", f"output_path={folder}", "workspace=full_size_run", *words,
    ]  # fmt: skip
    command = ["--opt", str(ROOT / "configs" / "cat.yaml"), *words]
    began = time.perf_counter()
    if train(["--force", "--offline", *command]) != 0:
        raise UserError("the run ended early; see above")
    config, _ = load(command)
    finished = FinishedRun.open(config.ModelParams.run_folder)
    lines, manifest = finished.metrics, finished.manifest
    later = [line["seconds_per_iteration"] for line in lines[1:]] or [lines[0]["seconds_per_iteration"]]
    device = torch.device(manifest["device"])
    views = config.GuidanceParams.C_batch_size
    result = {
        "family": settings.name,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "precision": manifest["precision"],
        "memory_plan": manifest["memory_plan"],
        "views": views,
        "image": [config.GenerateCamParams.image_w, config.GenerateCamParams.image_h],
        "iterations": iterations,
        "gaussians": manifest["gaussians"],
        "warm_up_seconds": manifest["warm_up_seconds"],
        "seconds_per_iteration": sorted(later)[len(later) // 2],
        "seconds_in_all": round(time.perf_counter() - began, 1),
        "evaluations_per_view": {
            name: manifest["score_model_evaluations"][name] / iterations / views
            for name in ("forward", "backward")
        },
        "peak_memory_bytes": peak_memory(device),
        "losses_finite": all(math.isfinite(value) for line in lines for value in line.values()),
    }
    if floor:
        result["floor"] = iteration.measure(config, iterations)
    return result


def without_weights(settings: Path) -> ScoreModel:
    """A family's model in float16 on the `meta` device: all shapes, no content, so that its memory can be counted."""
    import diffusers
    import transformers

    for library in (
        diffusers,
        transformers,
    ):  # they warn of models without weights, and of packages that nothing needs
        library.utils.logging.set_verbosity_error()
    with torch.device("meta"):
        parts = {
            name: kind.from_config(kind.load_config(settings / name)).half()
            for name, kind in (("unet", diffusers.UNet2DConditionModel), ("vae", diffusers.AutoencoderKL))
        }
        config = transformers.CLIPTextConfig.from_pretrained(settings / "text_encoder")
        parts["text_encoder"] = transformers.CLIPTextModel(config).half()
    pipeline = diffusers.StableDiffusionPipeline(
        **parts, tokenizer=word_tokenizer(), scheduler=diffusers.PNDMScheduler.from_pretrained(settings / "scheduler"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return ScoreModel(
        pipeline, ModelSource(settings.name, str(settings), "folder"), device=torch.device("meta")
    )


def estimates(settings: Path, views: int) -> dict[str, float]:
    """GiB that an iteration of each memory plan takes in float16, Perp-Neg on, counted without weights or a card."""
    model, found = without_weights(settings), {}
    for name, plan in PLANS.items():
        count = MAX_GAUSSIANS.get(name, 1_000_000)
        gaussians = gaussian_bytes(count, 1, views, 512, 512)
        found[name] = round((model.estimate_bytes(views, 4, plan) + gaussians) / GIB, 2)
    return found


def table(result: dict[str, Any]) -> str:
    """The result as aligned text."""
    shown = {name: value for name, value in result.items() if name != "floor"}
    shown["peak_memory_bytes"] = f"{result['peak_memory_bytes'] / GIB:.2f} GiB"
    lines = [f"{name:24}{value}" for name, value in shown.items()]
    if "floor" in result:
        lines += ["", iteration.table(result["floor"])]
    return "\n".join(lines)


def plan_table(result: dict[str, Any]) -> str:
    """GiB of each memory plan, a line each."""
    return "\n".join(f"{name:6}{gib:8.2f} GiB" for name, gib in result["gib"].items())


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = Parser(prog="python -m benchmarks.full_size", description=__doc__)
    parser.add_argument("--settings", type=Path, default=SD2_BASE, help="a family's settings")
    parser.add_argument("--folder", type=Path, default=ROOT / ".models", help="where model and run are kept")
    parser.add_argument("--iterations", type=int, default=200, help="iterations to train (default 200)")
    parser.add_argument("--floor", action="store_true", help="also measure iteration over floor")
    parser.add_argument(
        "--estimate", action="store_true", help="only count the memory of each plan: 4 views, 512 px, float16"
    )
    parser.add_argument("--json", type=Path, help="where the numbers go (default: benchmarks/results)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    options = parser.parse_intermixed_args(argv)
    if options.estimate:

        def count() -> dict[str, Any]:
            return {
                "family": options.settings.name,
                "views": 4,
                "gib": estimates(options.settings, views=4),
            }

        return finish_measurement(count, plan_table, options.json or RESULTS / "memory_plans.json")

    def measure() -> dict[str, Any]:
        return run(options.settings, options.folder, options.overrides, options.iterations, options.floor)

    return finish_measurement(measure, table, options.json or RESULTS / "full_size.json")


if __name__ == "__main__":
    sys.exit(main())
