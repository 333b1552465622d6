"""What is done with runs: `python -m dreammapping VERB ...`."""

import difflib
import importlib
import sys

from utils.command import exit_code
from utils.console import write_out
from utils.errors import UserError

VERBS = {
    "judge": ("dreammapping.evaluation.command", "score a finished run by the toybox's CLIP"),
    "evaluate": (
        "dreammapping.evaluation.evaluate_command",
        "score runs or pictures: CLIP score, FID and others",
    ),
    "study": (
        "dreammapping.study.command",
        "ask people: a page to rank systems on, and mean ranks",
    ),
    "export": ("dreammapping.export.command", "write a run's Gaussians for viewers and engines"),
    "page": ("dreammapping.page.command", "write a run's page, which a browser opens from the disk"),
    "mesh": ("dreammapping.mesh.command", "make a textured mesh of a run: .glb, .obj, .ply"),
    "sweep": ("dreammapping.sweep.command", "make many assets: prompts x settings x seeds"),
    "reproduce": (
        "dreammapping.reproduction.command",
        "make a figure or table of the paper, or of the documents",
    ),
    "view": ("dreammapping.viewer.command", "look at a run in a browser"),
}
"""Each verb: the module whose `main(words)` parses what follows it, and what it does. No module is loaded but the
one that is asked for, and none of them loads torch before its words are understood."""


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    verb, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]

    def work() -> int:
        if verb in ("-h", "--help"):
            write_out(usage())
            return 0
        if verb not in VERBS:
            near = difflib.get_close_matches(verb, VERBS, n=1)
            advice = f"did you mean {near[0]}?" if near else "python -m dreammapping --help lists all"
            raise UserError(f"command line: expected one of {', '.join(VERBS)}, got {verb!r}; {advice}")
        return importlib.import_module(VERBS[verb][0]).main(words)

    return exit_code(work)


def usage() -> str:
    """All verbs, a line each."""
    lines = [f"  {verb:12}{about}\n" for verb, (_, about) in VERBS.items()]
    return (
        "usage: python -m dreammapping VERB ...\n\n"
        f"{''.join(lines)}\n"
        "`python -m dreammapping VERB --help` has the options of one.\nRuns are made by train.py.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
