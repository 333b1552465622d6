"""Density control: clone, split and prune Gaussians (3D Gaussian Splatting, section 5)."""

import logging
import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor

from arguments import OptimizationParams
from scene.gaussian_model import GaussianModel
from scene.gaussian_optimizer import edit
from utils.rotations import quaternions_to_matrices

log = logging.getLogger(__name__)

CHILDREN = 2
"""Gaussians that take the place of a split one."""
SHRINK = 1.6
"""Divides the scales of a split Gaussian's children."""
RESET_OPACITY = 0.01
RECOVERED_OPACITY = 0.5
"""What a Gaussian that the images need can have again before an asset is saved."""
NAMED = 8
"""Steps that a warning names."""


@dataclass(frozen=True, eq=False)
class Footprint:
    """What B views saw of N Gaussians.

    `means2d` are zeros whose `.grad`, after the backward pass, is the gradient of the loss in each screen
    position, in normalised device units (pixel gradient times half the width or height); `radii` are pixels,
    0 where unseen.
    """

    means2d: Float[Tensor, "B N 3"]
    radii: Int32[Tensor, "B N"]


class DensityControl:
    """LucidDreamer's schedule and thresholds; `extent` in world units.

    Statistics are a norm for every view of the batch; with `densify_stats` from the last view only, or one norm of the
    sum over views.
    The pruning by screen size of 3D Gaussian Splatting is left out: upstream, it never fires. So are the opacity resets
    from which an asset would not recover until it is saved, which is said once.

    Args:
        saves: Iterations after which the asset is saved.
    """

    def __init__(
        self,
        params: OptimizationParams,
        extent: float,
        max_gaussians: int | None = None,
        saves: Collection[int] = (),
    ) -> None:
        self.params = params
        self.extent = extent
        self.max_gaussians = max_gaussians
        self.left_out = spoiling_resets(params, saves)
        if self.left_out:
            steps = sorted(self.left_out)
            log.warning(
                "opacity resets are left out, because an asset is saved before it could recover from them at "
                "opacity_lr=%g: after iteration %s%s",
                params.opacity_lr,
                ", ".join(map(str, steps[:NAMED])),
                f" and {len(steps) - NAMED} more" if len(steps) > NAMED else "",
            )
        self.gradient_sums = torch.zeros(0)
        self.view_counts = torch.zeros(0)

    def update(
        self,
        model: GaussianModel,
        optimizer: torch.optim.Adam,
        footprint: Footprint,
        step: int,
        rng: torch.Generator,
    ) -> None:
        """Take in one iteration's statistics, and act when it is time; call it after the optimiser's step."""
        params = self.params
        if step >= params.densify_until_iter:
            return
        if len(self.gradient_sums) != len(model):
            self._clear(model)
        self._accumulate(footprint)
        if step > params.densify_from_iter and step % params.densification_interval == 0:
            before = len(model)
            self._densify(model, optimizer, rng)
            wide_from = params.prune_scale_from_iter
            wide_from = params.opacity_reset_interval if wide_from is None else wide_from
            self._prune(model, optimizer, prune_wide=step > wide_from)
            self._clear(model)
            log.debug("step %d: %d Gaussians became %d", step, before, len(model))
        if step % params.opacity_reset_interval == 0 and step not in self.left_out:
            reset_opacity(model, optimizer)

    def state_dict(self) -> dict[str, Tensor]:
        return {"gradient_sums": self.gradient_sums, "view_counts": self.view_counts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.gradient_sums = state["gradient_sums"].clone()
        self.view_counts = state["view_counts"].clone()

    @torch.no_grad()
    def _accumulate(self, footprint: Footprint) -> None:
        gradients = footprint.means2d.grad
        if gradients is None:
            return
        gradients, radii = gradients[..., :2], footprint.radii
        if self.params.densify_stats == "last_view":
            gradients, radii = gradients[-1:], radii[-1:]
        norms = gradients.norm(dim=-1)
        counted = (radii > 0) & norms.isfinite()
        if self.params.densify_stats == "summed_views":
            norms = gradients.where(counted[..., None], 0.0).sum(dim=0, keepdim=True).norm(dim=-1)
            counted = counted.any(dim=0, keepdim=True)
        self.gradient_sums = self.gradient_sums.to(norms.device) + norms.where(counted, 0.0).sum(dim=0)
        self.view_counts = self.view_counts.to(norms.device) + counted.sum(dim=0)

    def _clear(self, model: GaussianModel) -> None:
        self.gradient_sums = model.means.new_zeros(len(model))
        self.view_counts = model.means.new_zeros(len(model))

    @torch.no_grad()
    def _densify(self, model: GaussianModel, optimizer: torch.optim.Adam, rng: torch.Generator) -> None:
        """Duplicate small Gaussians and split large ones where the mean screen gradient is high."""
        gradients = self.gradient_sums / self.view_counts.clamp_min(1.0)
        chosen = gradients >= self.params.densify_grad_threshold
        if self.max_gaussians is not None:
            chosen &= _strongest(gradients, max(self.max_gaussians - len(model), 0))
        large = model.scales.amax(dim=1) > self.params.percent_dense * self.extent
        cloned = (chosen & ~large).nonzero().squeeze(1)
        split = (chosen & large).nonzero().squeeze(1)
        kept = (~(chosen & large)).nonzero().squeeze(1)

        parents = split.repeat(CHILDREN)
        added = torch.cat([cloned, parents])
        edit(
            model,
            optimizer,
            source=torch.cat([kept, added]),
            fresh=torch.arange(len(kept) + len(added), device=kept.device) >= len(kept),
            values={
                "means": torch.cat([model.means[cloned], sample_positions(model, parents, rng)]),
                "log_scales": torch.cat(
                    [model.log_scales[cloned], model.log_scales[parents] - math.log(SHRINK)]
                ),
            },
        )

    @torch.no_grad()
    def _prune(self, model: GaussianModel, optimizer: torch.optim.Adam, *, prune_wide: bool) -> None:
        """Drop Gaussians that are faint, broken, or (`prune_wide`) too wide."""
        # Comparisons are written so that NaN fails them.
        keep = (model.opacities >= self.params.prune_opacity).squeeze(1) & model.means.isfinite().all(dim=1)
        if prune_wide:
            keep &= model.scales.amax(dim=1) <= self.params.prune_scale * self.extent
        if not keep.any():
            log.warning("every Gaussian is faint or too large; none was pruned")
            return
        edit(model, optimizer, source=keep.nonzero().squeeze(1))


def sample_positions(
    model: GaussianModel, index: Int[Tensor, "S"], rng: torch.Generator
) -> Float[Tensor, "S 3"]:
    """One random position from each of the Gaussians `index`."""
    offsets = torch.randn((len(index), 3), generator=rng).to(model.means) * model.scales[index]
    return model.means[index] + torch.einsum(
        "sij,sj->si", quaternions_to_matrices(model.quats[index]), offsets
    )


def recovery_steps(opacity_lr: float) -> int | float:
    """Steps in which Adam can bring a reset Gaussian back to `RECOVERED_OPACITY`, at its full rate; never at rate 0.

    There is no margin on top of that: upstream's own schedule saves 100 steps after a reset, where 92 are needed.
    """
    way = math.log(RECOVERED_OPACITY / (1 - RECOVERED_OPACITY)) - math.log(
        RESET_OPACITY / (1 - RESET_OPACITY)
    )
    return math.ceil(way / opacity_lr) if opacity_lr > 0 else math.inf


def spoiling_resets(params: OptimizationParams, saves: Collection[int]) -> set[int]:
    """Steps of the schedule whose opacity reset is not recovered from at one of `saves`."""
    interval, recovery = params.opacity_reset_interval, recovery_steps(params.opacity_lr)
    found: set[int] = set()
    for save in saves:
        first = max(save - min(recovery, save) + 1, 1)
        last = min(save, params.densify_until_iter - 1)
        found.update(range(-(-int(first) // interval) * interval, last + 1, interval))
    return found


@torch.no_grad()
def reset_opacity(model: GaussianModel, optimizer: torch.optim.Adam) -> None:
    """Lower every opacity to at most 0.01, so that what the images need must earn it again."""
    logit = math.log(RESET_OPACITY / (1 - RESET_OPACITY))
    everything = torch.arange(len(model), device=model.means.device)
    edit(
        model,
        optimizer,
        source=everything,
        fresh=torch.ones_like(everything, dtype=torch.bool),
        values={"opacity_logits": model.opacity_logits.clamp(max=logit)},
        names=("opacity_logits",),
    )


def _strongest(gradients: Float[Tensor, "N"], count: int) -> Bool[Tensor, "N"]:
    """Mark the `count` largest; of equals, the first."""
    order = gradients.argsort(descending=True, stable=True)[:count]
    return torch.zeros_like(gradients, dtype=torch.bool).index_fill_(0, order, True)
