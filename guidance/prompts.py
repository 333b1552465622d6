"""View-dependent text: which prompt a camera at an azimuth sees, and what it must not look like (Perp-Neg).

Azimuth 0 is the front, ±180 the back, degrees. Embeddings are `L D` (tokens, width).
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from arguments import GuidanceParams
from utils.errors import UserError

VIEWS = ("front", "side", "back")
FRONT, SIDE, BACK = range(3)


@runtime_checkable
class TextEncoder(Protocol):
    def encode_text(self, texts: list[str]) -> Float[Tensor, "N L D"]: ...


@dataclass(frozen=True)
class SharedText:
    """Texts that are the same from every side: the prompt without view, the negative, the empty, the inversion's."""

    subject: Float[Tensor, "L D"]
    negative: Float[Tensor, "L D"]
    empty: Float[Tensor, "L D"]
    inverse: Float[Tensor, "L D"]


@dataclass(frozen=True)
class ViewText:
    """Encoded text of B views. K is 2 with Perp-Neg and 0 without; a weight of 0 says that the branch is not used.

    The weights are on the device of the angles that they were made from: on the host, so that no device is waited for.
    `poses` are camera-to-world matrices, for estimators that are told the camera; none means that there is no camera.
    """

    positive: Float[Tensor, "B L D"]
    base: Float[Tensor, "B L D"]
    negatives: Float[Tensor, "B K L D"]
    negative_weights: Float[Tensor, "B K"]
    shared: SharedText | None = None
    poses: Float[Tensor, "B 4 4"] | None = None

    def __len__(self) -> int:
        return len(self.positive)

    def rows(self, name: str) -> Float[Tensor, "B L D"]:
        """The shared text `name`, once for each view."""
        return getattr(self.shared, name).expand(len(self), -1, -1)


class ViewPrompts:
    """The prompt with and without its three view suffixes, the negative prompt and two more, encoded once.

    Args:
        encoder: whatever has `encode_text`; it is not kept, so its text tower can be dropped afterwards.
        params: `text`, `view_words`, `negative`, `inverse_text`, `cfg_base` and Perp-Neg's settings are read.
        views: there are views at all, which in text to 2D there are not. Without them, or without `view_words`, all
            see the bare prompt, and there is nothing for Perp-Neg to push away from.

    Raises:
        UserError: the prompt is empty, or a prompt with its view suffix has too many tokens.
    """

    def __init__(self, encoder: TextEncoder, params: GuidanceParams, *, views: bool = True) -> None:
        if not params.text.strip():
            raise UserError('GuidanceParams.text: expected a prompt, got an empty one; try text="a red car"')
        views = views and params.view_words
        suffixed = [f"{params.text}, {view} view" if views else params.text for view in VIEWS]
        encoded = encoder.encode_text(
            [*suffixed, params.negative, params.text, "", params.inverse_text],
        )
        self.views, self.negative = encoded[:3], encoded[3]
        self.shared = SharedText(
            subject=encoded[4], negative=encoded[3], empty=encoded[5], inverse=encoded[6]
        )
        self._base = self.shared.empty if params.cfg_base == "empty" else self.negative
        self._params, self._perpneg = params, params.perpneg and views

    def __call__(
        self, azimuth_deg: Float[Tensor, " B"], poses: Float[Tensor, "B 4 4"] | None = None
    ) -> ViewText:
        count = len(azimuth_deg)
        if self._perpneg:
            branches, weights = perpendicular_views(
                azimuth_deg,
                strength=self._params.negative_w,
                front_decay=self._params.front_decay_factor,
                side_decay=self._params.side_decay_factor,
            )
        else:
            branches, weights = azimuth_deg.new_zeros(count, 0).long(), azimuth_deg.new_zeros(count, 0)
        mixture = view_mixture(azimuth_deg).to(self.views, non_blocking=True)
        return ViewText(
            positive=torch.einsum("bv,vld->bld", mixture, self.views),
            base=self._base.expand(count, -1, -1),
            negatives=self.views[branches.to(self.views.device, non_blocking=True)],
            negative_weights=weights,
            shared=self.shared,
            poses=poses,
        )


def view_mixture(azimuth_deg: Float[Tensor, " B"]) -> Float[Tensor, "B 3"]:
    """Weights of the front, side and back prompts: linear from front to side over 90 degrees, then to back."""
    in_front, ratio = _sector(azimuth_deg)
    none = torch.zeros_like(ratio)
    front_half = torch.stack([ratio, 1 - ratio, none], dim=1)
    back_half = torch.stack([none, ratio, 1 - ratio], dim=1)
    return torch.where(in_front[:, None], front_half, back_half)


def perpendicular_views(
    azimuth_deg: Float[Tensor, " B"],
    *,
    strength: float = -2.0,
    front_decay: float = 2.0,
    side_decay: float = 10.0,
) -> tuple[Int[Tensor, "B 2"], Float[Tensor, "B 2"]]:
    """Perp-Neg's negative views (indices into `VIEWS`) and their weights, with LucidDreamer's thresholds.

    The front half pushes away from front and side, the back half from side and front. Weights fall exponentially as
    the view becomes the wanted one, and are 0 where it is.
    """
    in_front, ratio = _sector(azimuth_deg)
    nearly_first, nearly_second = ratio > 0.8, ratio < 0.2
    from_front = (strength * torch.exp(-front_decay * ratio)).masked_fill(nearly_first, 0.0)
    from_side = (strength * torch.exp(-side_decay * (1 - ratio))).masked_fill(nearly_second, 0.0)
    behind_from_side = (strength / 2 * torch.exp(-side_decay * ratio)).masked_fill(nearly_first, 0.0)
    behind_from_front = torch.full_like(ratio, strength)

    front_half = torch.stack([from_front, from_side], dim=1)
    back_half = torch.stack([behind_from_side, behind_from_front], dim=1)
    views = torch.where(
        in_front[:, None], azimuth_deg.new_tensor([FRONT, SIDE]), azimuth_deg.new_tensor([SIDE, FRONT])
    )
    return views.long(), torch.where(in_front[:, None], front_half, back_half)


def _sector(azimuth_deg: Float[Tensor, " B"]) -> tuple[Tensor, Float[Tensor, " B"]]:
    """Whether the view is in the front half, and how much of the half's first view it has: 1 at 0 or ±90, down to 0."""
    wrapped = 180 - torch.remainder(180 - azimuth_deg, 360)  # (-180, 180]
    in_front = (wrapped >= -90) & (wrapped < 90)
    beyond = torch.where(in_front, wrapped.abs(), wrapped.abs() - 90)
    return in_front, 1 - beyond / 90
