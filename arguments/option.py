"""One setting: its default, what it means, and which values it takes."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Option:
    """What the type of a setting cannot say: ``low`` and ``high`` are inclusive, ``above`` is not."""

    help: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    ordered: bool = False

    @property
    def bounds(self) -> str:
        """The range in words, or the empty string."""
        if self.low is not None and self.high is not None:
            return f"{_short(self.low)} .. {_short(self.high)}"
        if self.above is not None:
            return f"> {_short(self.above)}" + (f", <= {_short(self.high)}" if self.high is not None else "")
        if self.low is not None:
            return f">= {_short(self.low)}"
        return f"<= {_short(self.high)}" if self.high is not None else ""

    def allows(self, number: float) -> bool:
        """Whether a finite number lies within the bounds."""
        return (
            (self.low is None or number >= self.low)
            and (self.high is None or number <= self.high)
            and (self.above is None or number > self.above)
        )


def option(default: Any, help: str, **limits: Any) -> Any:
    """A dataclass field with a default and an `Option`; for a pair, ``ordered`` demands low <= high."""
    return dataclasses.field(default=default, metadata={"option": Option(help, **limits)})


def _short(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"
