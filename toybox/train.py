"""Train the toybox prior: `python -m toybox.train` makes `toybox/prior/` from the rendered views.

Stages, in order: the autoencoder, the CLIP, the U-Net, the report. Each goes on from its checkpoint in the cache and
is skipped once its budget is spent; delete `toybox/cache/train_*.pt` to start again. With `--around-unet`
the autoencoder's encoder and the CLIP's text tower, which a trained U-Net reads, stay as they are in the prior folder,
and the rest of them is trained further. Many cores are used best by
`torchrun --nproc-per-node 4 -m toybox.train --stage unet --threads 1`.
"""

import argparse
import json
import logging
import os
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from transformers import CLIPModel

from toybox import models, train_clip, train_unet, train_vae
from toybox.clip import PRIOR
from toybox.dataset import CACHE
from toybox.train_loop import Budget, Loop
from toybox.train_views import Views
from utils.errors import UserError
from utils.files import atomic

STAGES = ("vae", "clip", "unet", "report")
_NOTED = ("vae", "clip", "unet", "vae_around_unet", "clip_around_unet")

_log = logging.getLogger(__name__)


class Training:
    """The stages over one data set, cache and prior folder."""

    def __init__(
        self,
        cache: Path,
        prior: Path,
        device: torch.device,
        budgets: dict[str, Budget],
        around_unet: bool = False,
    ) -> None:
        self.cache, self.prior, self.device, self.budgets = cache, prior, device, budgets
        self.around_unet = around_unet
        self.tokenizer = models.build_tokenizer()
        self._views: Views | None = None

    @property
    def views(self) -> Views:
        if self._views is None:
            self._views = Views("train", self.cache, self.device)
        return self._views

    def vae(self) -> None:
        torch.manual_seed(0)
        vae = models.build_autoencoder().to(self.device)
        kept = _read(AutoencoderTiny, self.prior / "vae").to(self.device) if self.around_unet else None
        loop = train_vae.train(vae, self.views, self.budgets["vae"], self._checkpoint("vae"), kept)
        with atomic(self.prior / "vae") as folder:
            vae.save_pretrained(folder)
        self._note(loop, train_vae.BATCH, self._title("vae"))

    def clip(self) -> None:
        torch.manual_seed(1)
        clip = models.build_clip(self.tokenizer).to(self.device)
        learnt = None
        if self.around_unet:
            learnt = _read(CLIPModel, self.prior / "clip").text_model.state_dict()
        loop = train_clip.train(
            clip, self.tokenizer, self.views, self.budgets["clip"], self._checkpoint("clip"), learnt
        )
        models.save_clip(clip, self.tokenizer, self.prior / "clip")
        self._note(loop, train_clip.BATCH, self._title("clip"))

    def unet(self) -> None:
        torch.manual_seed(2)
        vae = _read(AutoencoderTiny, self.prior / "vae").to(self.device)
        encoder = models.text_encoder(_read(CLIPModel, self.prior / "clip")).to(self.device)
        unet = models.build_unet().to(self.device)
        preview = models.build_unet().to(self.device)

        def publish(loop: Loop) -> None:
            loop.average.copy_to(preview)
            models.save_pipeline(self.prior, vae, encoder, self.tokenizer, preview)
            _log.info("unet: wrote %s at step %d", self.prior, loop.step)

        material = train_unet.Material(self.views, vae, encoder, self.tokenizer)
        loop = train_unet.train(unet, material, self.budgets["unet"], self._checkpoint("unet"), publish)
        if loop.rank == 0:
            publish(loop)
            self._note(loop, train_unet.BATCH, "unet")

    def report(self) -> None:
        from toybox.report import write

        write(self.prior, self.cache, self.device, self._notes())

    def _checkpoint(self, stage: str) -> Path:
        return self.cache / f"train_{stage}.pt"

    def _title(self, stage: str) -> str:
        return f"{stage}_around_unet" if self.around_unet else stage

    def _notes(self) -> dict[str, dict]:
        files = {stage: self.cache / f"train_{stage}.json" for stage in _NOTED}
        return {stage: json.loads(file.read_text()) for stage, file in files.items() if file.exists()}

    def _note(self, loop: Loop, batch: int, title: str) -> None:
        """Keep what the report says of a stage."""
        hardware = f"{torch.get_num_threads() * loop.processes} CPU threads"
        if self.device.type == "cuda":
            hardware = torch.cuda.get_device_name(self.device)
        settings = {
            "steps": loop.step,
            "batch": batch,
            "samples": loop.step * batch,
            "peak_rate": loop.rate,
            "seconds": round(loop.seconds),
            "hardware": hardware,
        }
        with atomic(self.cache / f"train_{title}.json") as path:
            path.write_text(json.dumps(settings, indent=2) + "\n")


def _read(kind: type, folder: Path):
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: expected a trained {kind.__name__}, found none; run the earlier stages first"
        )
    return kind.from_pretrained(folder, local_files_only=True).eval().requires_grad_(False)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m toybox.train", description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=("all", *STAGES), default="all", help="what to do (default: all)")
    for stage, minutes in (("vae", 6.0), ("clip", 15.0), ("unet", 55.0)):
        note = f"minutes of training of the {stage} (default: %(default)s)"
        parser.add_argument(f"--minutes-{stage}", type=float, default=minutes, help=note)
    parser.add_argument("--steps", type=int, help="steps of each stage, instead of minutes")
    parser.add_argument(
        "--around-unet", action="store_true", help="keep what the U-Net reads: encoder and text tower"
    )
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all cores)"
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda"
    )
    parser.add_argument(
        "--cache", type=Path, default=CACHE, help="renders and checkpoints (default: toybox/cache)"
    )
    parser.add_argument(
        "--prior", type=Path, default=PRIOR, help="folder of the weights (default: toybox/prior)"
    )
    settings = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(settings.threads)
    if "WORLD_SIZE" in os.environ:
        torch.distributed.init_process_group("gloo")
    budgets = {
        stage: Budget(getattr(settings, f"minutes_{stage}"), settings.steps)
        for stage in ("vae", "clip", "unet")
    }
    training = Training(
        settings.cache, settings.prior, torch.device(settings.device), budgets, settings.around_unet
    )
    try:
        for stage in STAGES if settings.stage == "all" else (settings.stage,):
            getattr(training, stage)()
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
