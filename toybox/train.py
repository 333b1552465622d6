"""Train the toybox prior: `python -m toybox.train --preset card --output DIR` makes a whole prior folder.

Stages: the CLIP and the U-Net, then the report. On a card they share it, in a process each, and draw their pictures
there; on a CPU one follows the other over the disk cache of `python -m toybox.dataset`. The autoencoder is the shipped
one unless `--stage vae` was run before. Each stage goes on from its checkpoint in the output folder and is skipped
once it is finished; delete `checkpoints` there to start again. The U-Net reads the CLIP's text tower, which is locked,
so the two may be trained in any order. Many cores are used best by
`torchrun --nproc-per-node 4 -m toybox.train --preset cpu --stage unet --threads 1`.
"""

import argparse
import contextlib
import logging
import math
import os
import sys
from dataclasses import replace

from utils.command import exit_code
from utils.errors import UserError
from utils.parser import Parser
from utils.paths import expanded

log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code. What trains is imported after it, so that its help is instant."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = Parser(prog="python -m toybox.train", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--preset", choices=("card", "cpu"), help="default: card where there is one, else cpu"
    )
    parser.add_argument(
        "--output",
        type=expanded,
        help="folder of the weights (default: toybox/cache/prior; toybox/prior replaces the shipped ones)",
    )
    parser.add_argument("--minutes", type=float, help="wall time in all (default: the preset's)")
    parser.add_argument(
        "--stage",
        choices=("all", "vae", "clip", "unet", "report"),
        default="all",
        help="what to do (default: all)",
    )
    parser.add_argument(
        "--start",
        help="a prior of this architecture to train further, or none (default: toybox/prior on a CPU, else none)",
    )
    parser.add_argument("--steps", type=int, help="steps of each stage, instead of minutes")
    parser.add_argument(
        "--batches", type=float, default=1.0, help="factor on the batch sizes, for a trial (default: 1)"
    )
    parser.add_argument(
        "--pools",
        type=float,
        default=1.0,
        help="factor on the numbers of renders and latents, for a trial (default: 1)",
    )
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all cores)"
    )
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument(
        "--cache", type=expanded, help="folder that keeps renders on disk (default: toybox/cache)"
    )
    settings = parser.parse_args(arguments)
    return exit_code(
        lambda: _train(settings, arguments),
        stopped="stopped; repeat the command to continue from the checkpoints",
    )


def _train(settings: argparse.Namespace, arguments: list[str]) -> int:
    for name in ("threads", "steps", "minutes", "batches", "pools"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name}: expected more than 0, got {value:g}; leave it out for the default")

    import torch

    from toybox import models, training
    from toybox.clip import PRIOR
    from toybox.renders import CACHE
    from toybox.speed import use_fast_arithmetic

    cuda = torch.cuda.is_available()
    try:
        device = torch.device(settings.device or ("cuda" if cuda else "cpu"))
    except RuntimeError as error:
        raise UserError(f"--device: expected cpu or cuda, got {settings.device!r}; correct it") from error
    output, cache = settings.output or CACHE / "prior", settings.cache or CACHE
    models.refuse_others(output)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(settings.threads)
    use_fast_arithmetic()
    if "WORLD_SIZE" in os.environ:
        torch.distributed.init_process_group("gloo")
    preset = training.PRESETS[settings.preset or ("card" if cuda else "cpu")]
    preset = preset.scaled(settings.batches, settings.pools)
    if settings.minutes is not None:
        preset = replace(preset, minutes=settings.minutes)
    if settings.start is not None:
        preset = replace(preset, start=None if settings.start == "none" else expanded(settings.start))
    if output.resolve() == PRIOR:
        log.warning("toybox train: replaces the shipped prior in %s", PRIOR)
    stages = training.Training(output, cache, device, preset, settings.steps)
    trained = {"all": ("unet",) if preset.together else ("clip", "unet"), "report": ()}
    with contextlib.ExitStack() as alone:
        if training.share()[0] == 0:
            for stage in trained.get(settings.stage, (settings.stage,)):
                alone.enter_context(models.training(output, stage))
        if settings.stage == "all":
            stages.all(arguments)
        else:
            if settings.stage in ("clip", "unet"):
                stages.prepare()
            getattr(stages, settings.stage)()
    return 0


if __name__ == "__main__":
    sys.exit(main())
