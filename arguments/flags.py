"""What the command line takes beside the settings."""

from dataclasses import dataclass
from pathlib import Path

FLAGS = {
    "--opt": ("FILE", "settings as YAML (LucidDreamer's files work unchanged)"),
    "--preset": (
        "NAME",
        "fast: three tenths of the steps and half the width and height of the file's; NOT the paper's setting",
    ),
    "--seed": ("N", "the same as seed=N"),
    "--resume": ("", "continue the run in the folder"),
    "--force": ("", "replace the run in the folder"),
    "--dry-run": ("", "load everything that a run needs, print the memory and time it will take, and stop"),
    "--print-config": ("", "print all settings as YAML, and stop"),
    "--offline": ("", "the same as offline=true: never ask a hub for weights"),
    "--viewer": ("", "the same as viewer=true: show the run in a browser as it grows"),
    "--quiet": ("", "print only warnings and errors"),
    "--debug": ("", "show tracebacks"),
    "--help": ("", "print this help"),
}
"""Flags: what follows each (empty: nothing) and what it means."""

UPSTREAM_FLAGS = ("--port", "--test_ratio", "--save_ratio", "--save_video")
"""LucidDreamer's, each the same as the setting of its name."""


@dataclass(frozen=True)
class Command:
    """What a command asks for beside the settings.

    Attributes:
        names_folder: a word of the command, and not the settings file, says where the run is.
    """

    opt: Path | None = None
    names_folder: bool = False
    print_config: bool = False
    dry_run: bool = False
    resume: bool = False
    debug: bool = False
    quiet: bool = False
    force: bool = False
