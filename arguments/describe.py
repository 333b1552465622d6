"""The text of `--help`: every setting with its default, unit, range and meaning."""

import dataclasses
import shutil
import textwrap

from arguments.check import shown
from arguments.config import Config, group_classes
from arguments.flags import FLAGS
from arguments.option import Option

_INTRO = """\
DreamMapping: text in, 3D Gaussians out.

A first result on any computer, without a download; another prompt; the paper's
setting for a CUDA card, with a setting changed:

  python train.py --opt configs/quickstart.yaml
  python train.py --opt configs/quickstart.yaml text="a blue robot"
  python train.py --opt configs/cat.yaml GuidanceParams.guidance_scale=15

Changed most often: text, workspace, iterations, guidance, guidance_scale,
model_key.
"""

_COLUMNS = (24, 16, 21)
_WIDE = 100
"""Columns from which a meaning stands beside its setting; in a narrower terminal it stands below."""


def describe(width: int | None = None) -> str:
    """All flags and settings, grouped, wrapped to `width` columns (the terminal's if None), 80 to 140."""
    width = max(80, min(width or shutil.get_terminal_size((120, 24)).columns, 140))
    lines = [_INTRO, "FLAGS"]
    for flag, (value, meaning) in FLAGS.items():
        lines += _hanging(f"  {f'{flag} {value}':<{_COLUMNS[0]}}", meaning, width, 2 + _COLUMNS[0])
    lines += ["", "SETTINGS   key=value, or Group.key=value where several groups have the key", ""]
    lines += _row("name", "default", "range, unit", "meaning", width)
    for group in ("", *group_classes()):
        kind = group_classes()[group] if group else Config
        lines += [
            "",
            *textwrap.wrap(f"{group or 'Top level'}: {(kind.__doc__ or '').splitlines()[0]}", width),
        ]
        for field in dataclasses.fields(kind):
            if "option" in field.metadata:
                option: Option = field.metadata["option"]
                values = " ".join(word for word in (option.bounds, option.unit) if word)
                named = [choice for choice in option.choices if choice]
                choices = f" [{' | '.join(named)}]" if named else ""
                lines += _row(field.name, shown(field.default), values, option.help + choices, width)
    return "\n".join(lines)


def _row(name: str, default: str, values: str, meaning: str, width: int) -> list[str]:
    cells = zip((name, default, values), _COLUMNS, strict=True)
    head = "  " + "".join(f"{cell:<{size}}" for cell, size in cells)
    if width >= _WIDE:
        return _hanging(head, meaning, width, 2 + sum(_COLUMNS))
    return [head.rstrip(), *_hanging(" " * 8, meaning, width, 8)]


def _hanging(head: str, text: str, width: int, indent: int) -> list[str]:
    """A text that begins on the line of `head` and goes on below it, from column `indent` on."""
    return textwrap.wrap(
        text, width, initial_indent=head, subsequent_indent=" " * indent, break_on_hyphens=False
    )
