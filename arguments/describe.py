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

  python train.py --opt configs/quickstart.yaml              a first result, no download, any computer
  python train.py --opt configs/cat.yaml text="a fox"        another prompt
  python train.py --opt configs/cat.yaml GuidanceParams.guidance_scale=15 --seed 3

Changed most often: text, workspace, iterations, guidance, guidance_scale, model_key.
"""

_COLUMNS = (24, 16, 21)


def describe(width: int | None = None) -> str:
    """All flags and settings, grouped, wrapped to `width` columns (the terminal's if None)."""
    width = max(100, min(width or shutil.get_terminal_size((120, 24)).columns, 140))
    lines = [_INTRO, "FLAGS"]
    lines += [f"  {f'{flag} {value}':<{_COLUMNS[0]}}{meaning}" for flag, (value, meaning) in FLAGS.items()]
    lines += ["", "SETTINGS   key=value, or Group.key=value where several groups have the key", ""]
    lines += _row("name", "default", "range, unit", "meaning", width)
    for group in ("", *group_classes()):
        kind = group_classes()[group] if group else Config
        lines += ["", f"{group or 'Top level'}: {(kind.__doc__ or '').splitlines()[0]}"]
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
    return textwrap.wrap(meaning, width, initial_indent=head, subsequent_indent=" " * (2 + sum(_COLUMNS)))
