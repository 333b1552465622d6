"""Score finished runs or pictures:
`python -m dreammapping evaluate output/quickstart`.

CLIP score and R-precision against the prompt; with --references or --against
also FID, KID, CMMD and MIND; saturation and, where the true object is known,
fine detail; seconds, evaluations and memory as the run recorded them.
"""

import argparse
import logging
from pathlib import Path

from dreammapping.json_file import JsonFile, add_json_option
from utils.command import STARTS_AGAIN, exit_code
from utils.errors import UserError
from utils.parser import Parser
from utils.paths import expanded

LIMITS = {"views": (1, 10**6), "references": (0, 10**6), "seed": (0, 2**32 - 1)}
"""Least and most of each option."""


def main(words: list[str]) -> int:
    """The command line of `evaluate`; returns the exit code."""
    options = parser().parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    return exit_code(lambda: _evaluate(options), stopped=STARTS_AGAIN)


def parser() -> Parser:
    """What `evaluate` understands."""
    parser = Parser(
        prog="python -m dreammapping evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders", nargs="+", type=expanded, metavar="RUN|FOLDER", help="run folders, or folders of pictures"
    )
    parser.add_argument(
        "--prompt", help="score by this instead of the run's own; folders of pictures need it"
    )
    parser.add_argument("--iteration", type=int, help="saved iteration of the runs (default: the last)")
    parser.add_argument(
        "--encoder",
        action="append",
        default=[],
        metavar="CLIP",
        help="toybox, vit-l-14, vit-l-14-336, vit-bigg-14, a CLIP's folder or a hub id; may be repeated "
        "(default: toybox for its own captions, else vit-l-14)",
    )
    parser.add_argument(
        "--views",
        type=int,
        help="pictures of each, drawn at random by --seed (default: all 120; published: 10)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (default 0)")
    parser.add_argument(
        "--captions",
        type=expanded,
        metavar="FILE",
        help="captions for R-precision to choose from, one a line",
    )
    parser.add_argument(
        "--references",
        type=int,
        default=0,
        metavar="N",
        help="compare with N pictures of each prompt that the run's own prior draws; they are kept",
    )
    parser.add_argument(
        "--against", type=expanded, metavar="FOLDER", help="compare with these pictures instead"
    )
    parser.add_argument("--model", help="the prior that draws references (default: the run's own)")
    parser.add_argument(
        "--features",
        metavar="CLIP",
        help="whose features are compared: a CLIP or inception (default: the encoder)",
    )
    parser.add_argument(
        "--cache",
        type=expanded,
        default=Path("output") / "references",
        metavar="FOLDER",
        help="where references are kept (default output/references)",
    )
    parser.add_argument(
        "--scorer",
        action="append",
        default=[],
        metavar="module:callable",
        help="a score of your own: called with images (V, 3, H, W) in [0, 1] and the prompt; may be repeated",
    )
    parser.add_argument(
        "--pool", action="store_true", help="one row for all: a system's results on many prompts (3D-FID)"
    )
    add_json_option(parser)
    return parser


def _evaluate(options: argparse.Namespace) -> int:
    for name, (least, most) in LIMITS.items():
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            raise UserError(f"--{name}: expected {least} to {most}, got {value}; give a number in that range")
    if options.features and not (options.references or options.against):
        raise UserError("--features: expected --references or --against beside it, got neither; add one")
    numbers = JsonFile(options.json, "protocol", "rows")
    from dreammapping.evaluation.evaluate import Protocol, evaluate, read_captions
    from dreammapping.evaluation.pictures import Source
    from dreammapping.evaluation.table import markdown

    protocol = Protocol(
        encoders=tuple(dict.fromkeys(options.encoder)),
        features=options.features,
        views=options.views,
        seed=options.seed,
        captions=read_captions(options.captions) if options.captions else (),
        references=options.references,
        against=options.against,
        model=options.model,
        cache=options.cache,
        scorers=tuple(dict.fromkeys(options.scorer)),
    )
    sources = [Source.open(folder, options.prompt, options.iteration) for folder in options.folders]
    rows = evaluate(sources, protocol, pool=options.pool)
    numbers.write({"protocol": protocol.as_dict(), "rows": rows}, markdown(rows))
    return 0
