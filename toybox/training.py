"""The stages of training the toybox prior, and what a kind of machine does well; `toybox.train` is their command."""

import json
import logging
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel

from toybox import models, raycast, renders, train_clip, train_unet, train_vae
from toybox.clip import PRIOR
from toybox.objects import solids
from toybox.speed import fastest
from toybox.train_loop import Budget, Loop, share
from toybox.train_views import Pool, Source, Views
from utils.errors import UserError
from utils.files import atomic

_REPORTED = ("test", "held_out")
_STARTED = time.monotonic()

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preset:
    """What a kind of machine does well."""

    minutes: float
    """Wall time in all."""
    renders: int
    """Renders of the pool on the device; 0 reads the disk cache instead."""
    clip: train_clip.Settings
    unet: train_unet.Settings
    clip_share: float
    """Of the minutes, for the CLIP; the U-Net has the rest, or all of them where both share a card."""
    report_share: float
    together: bool
    """Train the CLIP beside the U-Net, in a process of its own."""
    start: Path | None
    """An earlier prior that is trained further, for a machine that is too slow to begin from random weights."""

    def scaled(self, batches: float, pools: float) -> "Preset":
        """The preset for a trial: batches times `batches`, renders and latents times `pools`, the time as it is."""

        def fewer(count: int, scale: float, least: int) -> int:
            return max(least, round(scale * count)) if count else 0

        clip, unet = self.clip, self.unet
        return replace(
            self,
            renders=fewer(self.renders, pools, 26),
            clip=replace(clip, batch=fewer(clip.batch, batches, 4)),
            unet=replace(
                unet,
                batch=fewer(unet.batch, batches, 2),
                latents=fewer(unet.latents, pools, 8),
                renewed=fewer(unet.renewed, batches, 1),
            ),
        )


PRESETS = {
    "card": Preset(
        minutes=9.0,
        renders=65_000,
        clip=train_clip.Settings(512, 1e-3, 0.998, sparse=False, renders_every=8, half=True, compiled=True),
        unet=train_unet.Settings(
            batch=512,
            rate=1.2e-3,
            decay=0.999,
            latents=131_072,
            renewed=128,
            renders_every=8,
            half=True,
            compiled=True,
            publish_seconds=60.0,
        ),
        clip_share=0.45,
        report_share=0.08,
        together=True,
        start=None,
    ),
    "cpu": Preset(
        minutes=150.0,
        renders=0,
        clip=train_clip.Settings(64, 1e-3, 0.998, sparse=True, renders_every=1, half=False, compiled=False),
        unet=train_unet.Settings(
            batch=32,
            rate=1e-3,
            decay=0.999,
            latents=40_000,
            renewed=0,
            renders_every=1,
            half=False,
            compiled=False,
        ),
        clip_share=0.3,
        report_share=0.04,
        together=False,
        start=PRIOR,
    ),
}


class Training:
    """The stages of one output folder."""

    def __init__(
        self,
        output: Path,
        cache: Path,
        device: torch.device,
        preset: Preset,
        steps: int | None = None,
    ) -> None:
        self.output, self.cache, self.device, self.preset = output, cache, device, preset
        self.start, self.steps = preset.start, steps
        self.tokenizer = models.build_tokenizer()
        self._source: Source | None = None

    def prepare(self) -> None:
        """Put the autoencoder and the text tower, which the stages share, into the output folder."""
        if not (self.output / "vae").is_dir():
            vae = _read(AutoencoderTiny, (self.start or PRIOR) / "vae")
            with atomic(self.output / "vae") as folder:
                vae.save_pretrained(folder)
        if not (self.output / "text_encoder").is_dir():
            torch.manual_seed(1)
            clip = (
                models.build_clip(self.tokenizer)
                if self.start is None
                else _read(CLIPModel, self.start / "clip")
            )
            with atomic(self.output / "text_encoder") as folder:
                models.text_encoder(clip).save_pretrained(folder)

    @property
    def source(self) -> Source:
        if self._source is None:
            self._source = self._pool() if self.preset.renders else Views("train", self.cache, self.device)
        return self._source

    def _pool(self) -> Pool:
        """Renders drawn here, by a compiled caster where compilation is wanted and works."""

        def trial(draw: raycast.Draw) -> None:
            for name in ("chair", "car"):  # a block and a round solid are among these
                orbits = renders.sample_orbits(chunk, torch.Generator(self.device).manual_seed(0))
                raycast.cast(solids(name), raycast.Cameras.orbit(**orbits), models.IMAGE_SIZE, draw=draw)

        chunk = Pool.chunk_of(self.preset.renders)
        wanted = self.preset.unet.compiled and self.device.type != "cpu"
        draw = fastest(raycast.draw_whole, trial, wanted, "caster")
        began = time.monotonic()
        pool = Pool(
            self.preset.renders,
            models.IMAGE_SIZE,
            self.device,
            seed=os.getpid(),
            draw=draw if wanted else None,
        )
        _synchronize(self.device)
        log.info("pool: %d renders in %.1f s", len(pool), time.monotonic() - began)
        return pool

    def _budget(self, share: float, until: float) -> Budget:
        """`share` of the minutes at most, over by the share `until` of them."""
        if self.steps is not None:
            return Budget(math.inf, self.steps)
        seconds = 60.0 * self.preset.minutes
        return Budget(share * self.preset.minutes, deadline=_STARTED + until * seconds)

    def vae(self) -> None:
        torch.manual_seed(0)
        vae = models.build_autoencoder().to(self.device)
        loop = train_vae.train(vae, self.source, self._budget(1.0, 0.95), self._checkpoint("vae"))
        with models.saving(self.output / "vae") as folder:
            vae.save_pretrained(folder)
        self._note(loop, train_vae.BATCH, "vae")

    def clip(self, until: float = 0.97) -> None:
        torch.manual_seed(1)
        clip = models.build_clip(self.tokenizer)
        encoder = _read(CLIPTextModel, self.output / "text_encoder")
        clip.text_model.load_state_dict(encoder.state_dict())
        clip.to(self.device)
        start = None if self.start is None else _read(CLIPModel, self.start / "clip").to(self.device)
        settings = self.preset.clip
        budget = self._budget(1.0, until)
        loop = train_clip.train(
            clip, self.tokenizer, self.source, settings, budget, self._checkpoint("clip"), start
        )
        models.save_clip(clip, self.tokenizer, self.output / "clip")
        self._note(loop, settings.batch, "clip")

    def unet(self, until: float = 0.97) -> None:
        encoder = _read(CLIPTextModel, self.output / "text_encoder").to(self.device)
        torch.manual_seed(2)
        vae = _read(AutoencoderTiny, self.output / "vae").to(self.device)
        unet = models.build_unet().to(self.device)
        if self.start is not None:
            unet.load_state_dict(_read(UNet2DConditionModel, self.start / "unet").state_dict())
        preview = models.build_unet().to(self.device)

        def publish(loop: Loop) -> None:
            loop.average.copy_to(preview)
            models.save_pipeline(self.output, vae, encoder, self.tokenizer, preview)
            log.info("unet: wrote %s at step %d", self.output, loop.step)

        settings = self.preset.unet
        material = train_unet.Material(
            self.source, vae, encoder, self.tokenizer, settings.latents, settings.renewed
        )
        loop = train_unet.train(
            unet, self.source, material, settings, self._budget(1.0, until), self._checkpoint("unet"), publish
        )
        if loop.rank == 0:
            publish(loop)
            self._note(loop, settings.batch, "unet")

    def report(self) -> None:
        from toybox.report import write

        if share()[0] > 0:
            return
        renders.generate(1, models.IMAGE_SIZE, 0, self.cache, device=self.device, splits=_REPORTED)
        with models.reporting(self.output):
            write(self.output, self.cache, self.device, self._notes(), self.output)

    def all(self, arguments: list[str]) -> None:
        """Every stage. `arguments` start the CLIP's process where it is trained beside the U-Net."""
        renders.missing(1, models.IMAGE_SIZE, 0, self.cache, _REPORTED)  # refuses now what the report would
        self.prepare()
        until = 1.0 - self.preset.report_share
        if not self.preset.together:
            self.clip(self.preset.clip_share)
            self.unet(until)
        else:
            minutes = self.preset.clip_share * self.preset.minutes
            command = [
                sys.executable,
                "-m",
                "toybox.train",
                *arguments,
                "--stage",
                "clip",
                "--minutes",
                f"{minutes}",
            ]
            with subprocess.Popen(command) as beside:
                try:
                    self.unet(until)
                except BaseException:
                    beside.terminate()
                    raise
            if beside.returncode != 0:
                raise UserError(
                    f"toybox clip: expected its process to succeed, got exit status {beside.returncode}; "
                    "its messages are above; repeat the command to continue from the checkpoints"
                )
        self.report()

    def _checkpoint(self, stage: str) -> Path:
        return self.output / models.CHECKPOINTS / f"{stage}.pt"

    def _notes(self) -> dict[str, dict]:
        """What is known of each stage's training: by its checkpoint, else by an earlier report of the folder.

        The autoencoder may be the shipped one.
        """
        notes = {stage: note for stage, note in _stages(PRIOR).items() if stage == "vae"}
        notes |= _stages(self.output)
        for stage in models.STAGES:
            file = self._checkpoint(stage).with_suffix(".json")
            if file.exists():
                notes[stage] = json.loads(file.read_text(encoding="utf-8"))
        return notes

    def _note(self, loop: Loop, batch: int, stage: str) -> None:
        """Keep what the report says of a stage."""
        threads = torch.get_num_threads() * loop.processes
        hardware = f"{threads} CPU thread{'s' * (threads != 1)}"
        if self.device.type == "cuda":
            hardware = torch.cuda.get_device_name(self.device)
        settings = {
            "steps": loop.step,
            "batch": batch,
            "samples": loop.step * batch,
            "peak_rate": loop.rate,
            "seconds": round(loop.seconds),
            "hardware": hardware,
            "start": "random weights" if self.start is None or stage == "vae" else "an earlier prior",
        }
        with atomic(self._checkpoint(stage).with_suffix(".json")) as path:
            path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _stages(prior: Path) -> dict[str, dict]:
    """What a prior's report, where it has one, says of its training."""
    report = prior / "report.json"
    return json.loads(report.read_text(encoding="utf-8"))["stages"] if report.is_file() else {}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _read(kind: type, folder: Path):
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: expected a trained {kind.__name__}, found none; run the earlier stages first"
        )
    return kind.from_pretrained(folder, local_files_only=True).eval().requires_grad_(False)
