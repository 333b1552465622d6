"""Train the toybox prior: `python -m toybox.train` makes `toybox/prior/` from the rendered views.

Stages, in order: the autoencoder, the CLIP, the U-Net, the report. Each goes on from its checkpoint in the cache and
is skipped once its budget is spent; delete `toybox/cache/train_*.pt` to start again. The U-Net reads the CLIP's text
tower, which is locked, so the two may be trained in either order. Many cores are used best by
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
_TRAINED = ("vae", "clip", "unet")

_log = logging.getLogger(__name__)


class Training:
    """The stages over one data set, cache and prior folder."""

    def __init__(
        self,
        cache: Path,
        prior: Path,
        device: torch.device,
        budgets: dict[str, Budget],
        clip_start: Path | None = None,
    ) -> None:
        self.cache, self.prior, self.device, self.budgets = cache, prior, device, budgets
        self.clip_start = clip_start
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
        loop = train_vae.train(vae, self.views, self.budgets["vae"], self._checkpoint("vae"))
        with atomic(self.prior / "vae") as folder:
            vae.save_pretrained(folder)
        self._note(loop, train_vae.BATCH, "vae")

    def clip(self) -> None:
        clip = self._new_clip()
        start = None if self.clip_start is None else _read(CLIPModel, self.clip_start).to(self.device)
        loop = train_clip.train(
            clip, self.tokenizer, self.views, self.budgets["clip"], self._checkpoint("clip"), start
        )
        models.save_clip(clip, self.tokenizer, self.prior / "clip")
        began = "random weights" if start is None else "the image tower of an earlier CLIP"
        self._note(loop, train_clip.BATCH, "clip", began)

    def unet(self) -> None:
        encoder = models.text_encoder(self._new_clip()).to(self.device)
        torch.manual_seed(2)
        vae = _read(AutoencoderTiny, self.prior / "vae").to(self.device)
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

    def _new_clip(self) -> CLIPModel:
        """A CLIP before training; its text tower stays as it is here."""
        torch.manual_seed(1)
        return models.build_clip(self.tokenizer).to(self.device)

    def _checkpoint(self, stage: str) -> Path:
        return self.cache / f"train_{stage}.pt"

    def _notes(self) -> dict[str, dict]:
        files = {stage: self.cache / f"train_{stage}.json" for stage in _TRAINED}
        return {
            stage: json.loads(file.read_text(encoding="utf-8"))
            for stage, file in files.items()
            if file.exists()
        }

    def _note(self, loop: Loop, batch: int, title: str, began: str = "random weights") -> None:
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
            "start": began,
        }
        with atomic(self.cache / f"train_{title}.json") as path:
            path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _read(kind: type, folder: Path):
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: expected a trained {kind.__name__}, found none; run the earlier stages first"
        )
    return kind.from_pretrained(folder, local_files_only=True).eval().requires_grad_(False)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m toybox.train", description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=("all", *STAGES), default="all", help="what to do (default: all)")
    for stage, minutes in (("vae", 13.0), ("clip", 40.0), ("unet", 62.0)):
        note = f"minutes of training of the {stage} (default: %(default)s)"
        parser.add_argument(f"--minutes-{stage}", type=float, default=minutes, help=note)
    parser.add_argument("--steps", type=int, help="steps of each stage, instead of minutes")
    parser.add_argument(
        "--clip-start", type=Path, help="folder of an earlier CLIP, whose image tower is trained further"
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
    budgets = {stage: Budget(getattr(settings, f"minutes_{stage}"), settings.steps) for stage in _TRAINED}
    training = Training(
        settings.cache, settings.prior, torch.device(settings.device), budgets, settings.clip_start
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
