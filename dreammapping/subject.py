"""What is optimised: all that Algorithm 1, the loop and a run folder know of Gaussians, pictures and fields."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.prompts import ViewText


@dataclass(frozen=True)
class Shown:
    """x = g(θ, c) of one step.

    Attributes:
        seen: images (B, 3, H, W) in [0, 1], or latents (B, C, h, w) of the prior; they carry the gradient to θ.
        text: the encoded text of each of them.
        latent: `seen` are latents.
        losses: makes the subject's own, each with gradient to θ: regularisers. Called after the guidance, because
            gradients are summed in the order in which losses were made, and sums of floats round by their order.
    """

    seen: Float[Tensor, "B _ _ _"]
    text: ViewText
    latent: bool = False
    losses: Callable[[], dict[str, Float[Tensor, ""]]] = dict


class Subject(ABC):
    """A representation of the asset, with its optimiser.

    It is shown, gets its gradient, and grows, once an iteration, in this order; it draws from the generator that it is
    given and from nothing else, so that a restart has the same bits.

    Attributes:
        optimizer: of its parameters. The program steps it, and leaves a step out whose numbers are not finite.
        views: images or latents of a step.
        replicas: whether several processes can share its views: each shows its own of them (`own` of
            `utils/distributed.py`), draws for all, and grows by what all have seen.
    """

    optimizer: torch.optim.Optimizer
    views: int
    replicas = False

    @abstractmethod
    def show(self, step: int, rng: torch.Generator) -> Shown:
        """Set the step's learning rates, choose what is seen of the subject, and render it."""

    def record(self) -> None:  # noqa: B027 - few gain by it
        """Let a card launch as one CUDA graph what an iteration always does alike, where that pays."""

    def grow(self, step: int, rng: torch.Generator) -> None:  # noqa: B027 - many never do
        """Change its parts, after the optimisers' step: density control, the resolution of a grid."""

    def bookmark(self) -> Callable[[], None]:
        """What takes back whatever the next `show` changes, should memory run out in that iteration."""
        return lambda: None

    @abstractmethod
    def pictures(self) -> dict[str, Float[Tensor, "B _ H W"]]:
        """Rows of one picture by name, in [0, 1], a column for each view: as last shown, or as it is before that."""

    @abstractmethod
    def save(self, folder: Path, step: int) -> Path:
        """Write the asset of an iteration into the run's folder; returns the file that it is known by."""

    def check(self, folder: Path, step: int) -> None:  # noqa: B027 - what cannot be judged is good
        """Look at the asset that a run has left, as who opens it will; one that is missing is written again.

        Raises:
            UserError: nobody can use it: it is not finite, or nothing of it is to be seen.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that a restart needs: parameters, the optimiser's state, and whatever `show` and `grow` keep."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`; KeyError, ValueError, TypeError or RuntimeError where it is of another subject."""

    def numbers(self) -> dict[str, int]:
        """Its size, for the log and `run.json`."""
        return {}

    def memory(self) -> dict[str, int]:
        """Bytes that it will take in an iteration, by part."""
        return {}

    def savings(self) -> list[str]:
        """Settings to try where memory is full."""
        return []
