"""Whether values make sense, alone and together. A complaint says where, what was expected, what came."""

import dataclasses
import difflib
import math
import re
import reprlib
import types
from typing import Any, Union, get_args, get_origin

from arguments.config import Config, settings, value_of
from arguments.option import Option
from utils.errors import UserError

PAIR = tuple[float, float]
LONGEST = 100
"""Letters of a value in a message."""
LARGEST_INTEGER = 2**63 - 1
"""What a whole number of the libraries' holds."""


def expected(field: dataclasses.Field) -> str:
    """Which values a setting takes, in words."""
    option: Option = field.metadata["option"]
    if option.choices:
        return f"one of {', '.join(option.choices)}"
    kind, optional = kind_of(field)
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text (in quotes)",
        PAIR: "two numbers [low, high]" if option.ordered else "two numbers [first, second]",
    }[kind]
    bounds = f" {option.bounds}" if option.bounds else ""
    return f"{words}{bounds}{f' ({option.unit})' if option.unit else ''}{' or null' if optional else ''}"


def kind_of(field: dataclasses.Field) -> tuple[type, bool]:
    """The type of a setting (bool, int, float, str or PAIR) and whether it may be None."""
    if get_origin(field.type) in (types.UnionType, Union):
        return next(kind for kind in get_args(field.type) if kind is not type(None)), True
    return field.type, False  # type: ignore[return-value]


def has_form(field: dataclasses.Field, value: object) -> bool:
    """Whether a value has the form of the setting, where OmegaConf would convert too much.

    It would turn the prompt `yes`, which YAML reads as true, into `"True"`, and any number into true;
    and it reads `${...}` and `???` as its own language.
    """
    kind, optional = kind_of(field)
    if value is None:
        return optional
    if isinstance(value, str) and ("${" in value or value == "???"):
        return False
    if kind == PAIR:
        numbers = value if isinstance(value, list) else []
        return len(numbers) == 2 and all(isinstance(number, int | float | str) for number in numbers)
    if kind is str:
        return isinstance(value, str) and _is_unicode(value)
    if kind is bool and type(value) is int:
        return value in (0, 1)
    return isinstance(value, bool | int | float | str)


def check_value(name: str, value: Any, where: str) -> None:
    """Raise UserError unless a value of the right type is finite, within bounds and one of the choices."""
    field = settings()[name]
    option: Option = field.metadata["option"]
    if option.choices and value not in option.choices:
        raise complaint(name, value, where)
    if value is None or isinstance(value, bool | str):
        return
    numbers = value if isinstance(value, tuple) else (value,)
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise UserError(
            f"{where}: {name}: expected a whole number of at most {LARGEST_INTEGER}, got {shown(value)}; lower it"
        )
    if not all(math.isfinite(number) and option.allows(number) for number in numbers):
        raise complaint(name, value, where)
    if option.ordered and list(numbers) != sorted(numbers):
        raise UserError(f"{where}: {name}: expected low <= high, got {shown(value)}; swap them")


def complaint(name: str, value: object, where: str) -> UserError:
    """The error for one bad value."""
    field = settings()[name]
    choices = field.metadata["option"].choices
    near = difflib.get_close_matches(shown(value).strip("'").lower(), choices, n=1)
    advice = f"did you mean {near[0]}?" if near else f"leave it out for {shown(field.default)}"
    if isinstance(value, str) and "${" in value:
        advice = "'${' is not allowed"
    return UserError(f"{where}: {name}: expected {expected(field)}, got {shown(value)}; {advice}")


def shown(value: object) -> str:
    """A value as a user would write it in YAML, shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = _SHORT.repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


class _Short(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if x.bit_length() < 1000 else "a number of hundreds of digits"


_SHORT = _Short()
_SHORT.maxlevel = 2  # each level more is six times the work
_SHORT.maxstring = LONGEST


def check_together(config: Config, origins: dict[str, str], complete: bool = True) -> None:
    """Raise UserError where settings contradict each other, or (if `complete`) where a run lacks one.

    Args:
        origins: where each named setting comes from (a file, the command line).
        complete: whether what a run cannot do without must be there.
    """
    guidance, cameras = config.GuidanceParams, config.GenerateCamParams
    rules = [
        (
            re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,2})?", config.device) is None,
            "device",
            "expected auto, cpu, mps, cuda or cuda:N; leave it out for auto",
        ),
        (
            guidance.max_t_range < guidance.t_range[1],
            "GuidanceParams.max_t_range",
            f"expected at least t_range's upper end {guidance.t_range[1]:g}; raise it or lower t_range",
        ),
        (
            guidance.sds and guidance.guidance_method != "sds",
            "GuidanceParams.guidance",
            "expected SD or sds, because GuidanceParams.sds is true; set only one of the two",
        ),
        (
            cameras.init_shape == "file" and not cameras.init_path,
            "GenerateCamParams.init_path",
            "expected a file, because init_shape is file; set it",
        ),
        (
            cameras.init_shape != "file" and bool(cameras.init_path),
            "GenerateCamParams.init_shape",
            "expected file, because init_path is set; set init_shape=file or leave init_path out",
        ),
        (
            not config.ModelParams.model_path and not config.ModelParams.workspace.strip(),
            "ModelParams.workspace",
            "expected a name for the run's folder; set workspace=NAME",
        ),
        (
            complete and not guidance.model_key,
            "GuidanceParams.model_key",
            "expected a diffusion model; set it, or try --opt configs/quickstart.yaml",
        ),
        (
            complete and not guidance.text.strip(),
            "GuidanceParams.text",
            "expected a prompt; set text='a red car' or the like",
        ),
    ]
    for broken, name, message in rules:
        if broken:
            wanted, _, advice = message.partition("; ")
            where = origins.get(name, "settings")
            raise UserError(f"{where}: {name}: {wanted}, got {shown(value_of(config, name))}; {advice}")


def check_text(text: str, where: str) -> None:
    """Raise UserError where a text has what is no letter, which nothing can write: of bytes that are no UTF-8, say."""
    if not _is_unicode(text):
        raise UserError(f"{where}: expected text in UTF-8, got {shown(text)}; correct it")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
