"""The rasterizer in plain PyTorch: the specification that the compiled kernels are tested against.

Runs on any device in float32 or float64 and is differentiated by autograd. The image is cut into tiles of 16x16 pixels;
tiles with lists of similar length are blended together, and each group is recomputed in the backward pass, so memory
is bounded by the group, not by the image.

Method: Kerbl et al., "3D Gaussian Splatting for Real-Time Radiance Field Rendering" (2023); Zwicker et al.,
"EWA Splatting" (2001) for the projection.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diff_gaussian_rasterization.inputs import Gaussians, Views, require_finite

NEAR = 0.2
"""Gaussians whose centre is not farther than this along the view axis are not drawn."""
FRUSTUM = 1.3
"""The Jacobian is taken at most this far outside the field of view, in units of its tangent."""
BLUR = 0.3
"""Added to both diagonal entries of the projected covariance, in square pixels."""
MIN_ALPHA = 1.0 / 255.0
MAX_ALPHA = 0.99
MIN_TRANSMITTANCE = 1e-4
TILE = 16
GROUP_ELEMENTS = 1 << 22
"""Pairs of Gaussian and pixel that are blended at once."""


class Outputs(NamedTuple):
    """color (C, 3, H, W), radii (C, P) int32, depth (C, 1, H, W) = sum of w z, alpha (C, 1, H, W) = sum of w."""

    color: Tensor
    radii: Tensor
    depth: Tensor
    alpha: Tensor


@dataclass(frozen=True)
class Splats:
    """What one view sees of the n Gaussians that it draws, ordered by depth, ties by index."""

    index: Tensor
    xy: Tensor
    conic: Tensor
    opacity: Tensor
    features: Tensor
    radii: Tensor
    tiles: Tensor
    size: tuple[int, int]
    absolute: Tensor | None
    """(P, 2): gathers the absolute gradients of the 2-D means in NDC units, in the backward pass."""


class _Spread(torch.autograd.Function):
    """Repeats 2-D means (n, L, 2) for every pixel; adds |gradient| up on the way back."""

    @staticmethod
    def forward(ctx, xy: Tensor, pixels: int, index: Tensor, absolute: Tensor, scale: Tensor) -> Tensor:
        ctx.index, ctx.absolute, ctx.scale = index, absolute, scale
        return xy[:, :, None].expand(-1, -1, pixels, -1)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        total = (gradient.abs().sum(2) * ctx.scale).reshape(-1, 2)
        ctx.absolute.index_add_(0, ctx.index.reshape(-1), total)
        return gradient.sum(2), None, None, None, None


def render(gaussians: Gaussians, views: Views, absgrad: bool = False) -> Outputs:
    """Draws every view. With `absgrad`, `means2D.absgrad` (C, P, 2) is filled during the backward pass.

    Raises:
        ValueError: a NaN or an infinity among the inputs.
    """
    require_finite(gaussians.tensors)
    count, like = len(gaussians.means3D), gaussians.means3D
    absolute = like.new_zeros(len(views), count, 2)
    if absgrad:
        gaussians.means2D.absgrad = absolute
    drawn = [_render_view(gaussians, views, c, absolute[c] if absgrad else None) for c in range(len(views))]
    if drawn:
        return Outputs(*(torch.stack(parts) for parts in zip(*drawn, strict=True)))
    image = like.new_zeros(0, 1, views.height, views.width)
    return Outputs(
        image.expand(0, 3, -1, -1), torch.zeros_like(absolute[..., 0], dtype=torch.int32), image, image
    )


def _render_view(gaussians: Gaussians, views: Views, c: int, absolute: Tensor | None) -> Outputs:
    splats = project(gaussians, views, c, absolute)
    radii = torch.zeros(len(gaussians.means3D), dtype=torch.int32, device=gaussians.means3D.device)
    radii[splats.index] = splats.radii
    blended, transmittance = blend(splats)
    color = blended[:3] + transmittance * views.bg[c][:, None, None]
    return Outputs(color, radii, blended[3:4], blended[4:5])


def project(gaussians: Gaussians, views: Views, c: int, absolute: Tensor | None = None) -> Splats:
    """The Gaussians in front of camera `c` whose square of three standard deviations touches the image."""
    view = views.viewmatrix[c]
    with (
        torch.no_grad()
    ):  # chosen first: what overflows where nothing is drawn must not reach a gradient as 0 x infinity
        index = (gaussians.means3D @ view[:3, 2] + view[3, 2] > NEAR).nonzero()[:, 0]
        xy, (a, _, c_), det, _ = _on_screen(gaussians, views, c, index)
        middle = 0.5 * (a + c_)
        largest = middle + (middle * middle - det).clamp_min(0.1).sqrt()
        radii = (3.0 * largest.sqrt()).ceil()
        size = xy.new_tensor([views.width, views.height])
        grid = ((size + (TILE - 1)) / TILE).floor()
        low = ((xy - radii[:, None]) / TILE).trunc().clamp_min(0).minimum(grid)
        high = ((xy + radii[:, None] + (TILE - 1)) / TILE).trunc().clamp_min(0).minimum(grid)
        regular = (
            (det > 0) & (a > 0) & torch.isfinite(det) & torch.isfinite(radii) & torch.isfinite(xy).all(1)
        )
        keep = (regular & (high > low).all(1)).nonzero()[:, 0]
        keep = keep[torch.argsort(_depths(gaussians, view, index[keep]), stable=True)]
        index = index[keep]
    xy, (a, b, c_), det, opacity = _on_screen(gaussians, views, c, index)
    depths = _depths(gaussians, view, index)[:, None]
    return Splats(
        index,
        xy,
        torch.stack([c_, -b, a], dim=1) / det[:, None],
        opacity,
        torch.cat([_colors(gaussians, views, c, index), depths, torch.ones_like(depths)], dim=1),
        radii[keep].clamp_max(2.0**30).int(),
        torch.cat([low, high], dim=1)[keep].long(),
        (views.width, views.height),
        absolute,
    )


def _depths(gaussians: Gaussians, view: Tensor, index: Tensor) -> Tensor:
    return gaussians.means3D[index] @ view[:3, 2] + view[3, 2]


def _on_screen(
    gaussians: Gaussians, views: Views, c: int, index: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
    """Of some Gaussians in camera `c`: the centres in pixels, the blurred covariance xx, xy, yy and its determinant,
    and the opacity with the antialiasing factor.
    """
    view, clip = views.viewmatrix[c], views.projmatrix[c]
    means = gaussians.means3D[index]
    points = means @ view[:3, :3] + view[3, :3]
    size = points.new_tensor([views.width, views.height])

    homogeneous = means @ clip[:3] + clip[3]
    ndc = homogeneous[:, :2] / (homogeneous[:, 3:] + 1e-7)
    screen = gaussians.means2D[c, index, :2]
    xy = ((ndc + (screen - screen.detach()) + 1) * size - 1) / 2

    jacobian = _jacobian(points, views.tanfov[c], size) @ view[:3, :3].T
    if gaussians.covariances is None:
        scales = gaussians.scales[c % len(gaussians.scales), index] * views.scale_modifier
        factor = jacobian @ (rotation_matrices(gaussians.rotations[index]) * scales[:, None, :])
        a, c_, b = (
            factor[:, 0].square().sum(-1),
            factor[:, 1].square().sum(-1),
            (factor[:, 0] * factor[:, 1]).sum(-1),
        )
        det_sharp = torch.linalg.cross(factor[:, 0], factor[:, 1]).square().sum(-1)
    else:
        covariance = gaussians.covariances[c % len(gaussians.covariances), index]
        covariance = covariance[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].view(-1, 3, 3)
        planar = jacobian @ covariance @ jacobian.mT
        a, b, c_ = planar[:, 0, 0], planar[:, 0, 1], planar[:, 1, 1]
        det_sharp = a * c_ - b * b
    det = det_sharp + BLUR * (a + c_) + BLUR * BLUR

    opacity = gaussians.opacities[index, 0]
    if views.antialiasing:
        opacity = opacity * (det_sharp / det).clamp_min(2.5e-5).sqrt()
    return xy, (a + BLUR, b, c_ + BLUR), det, opacity


def _jacobian(points: Tensor, tanfov: Tensor, size: Tensor) -> Tensor:
    """(n, 2, 3): the derivative of the pixel position by the point in camera space, held near the frustum."""
    focal = size / (2 * tanfov)
    depth = points[:, 2:]
    limit = FRUSTUM * tanfov
    slope = torch.minimum(torch.maximum(points[:, :2] / depth, -limit), limit)
    diagonal = focal / depth
    zero = torch.zeros_like(depth[:, 0])
    x = torch.stack([diagonal[:, 0], zero, -diagonal[:, 0] * slope[:, 0]], dim=1)
    y = torch.stack([zero, diagonal[:, 1], -diagonal[:, 1] * slope[:, 1]], dim=1)
    return torch.stack([x, y], dim=1)


def rotation_matrices(quaternions: Tensor) -> Tensor:
    """(n, 3, 3) from (w, x, y, z), a rotation only where the quaternion has length one."""
    w, x, y, z = quaternions.unbind(1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=1).view(-1, 3, 3)


def _colors(gaussians: Gaussians, views: Views, c: int, index: Tensor) -> Tensor:
    if gaussians.colors is not None:
        return gaussians.colors[c % len(gaussians.colors), index]
    directions = torch.nn.functional.normalize(gaussians.means3D[index] - views.campos[c], dim=1, eps=1e-12)
    basis = spherical_harmonics(views.sh_degrees[c], directions)
    return ((basis[:, :, None] * gaussians.shs[index, : basis.shape[1]]).sum(1) + 0.5).clamp_min(0.0)


def spherical_harmonics(degree: int, directions: Tensor) -> Tensor:
    """(n, (degree + 1)^2): the real basis at unit directions, signs -y, +z, -x in band 1."""
    x, y, z = directions.unbind(1)
    xx, yy, zz = x * x, y * y, z * z
    basis = [torch.full_like(x, 0.28209479177387814)]
    if degree > 0:
        basis += [-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x]
    if degree > 1:
        basis += [
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (2 * zz - xx - yy),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (xx - yy),
        ]
    if degree > 2:
        basis += [
            -0.5900435899266435 * y * (3 * xx - yy),
            2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (4 * zz - xx - yy),
            0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy),
            -0.4570457994644658 * x * (4 * zz - xx - yy),
            1.445305721320277 * z * (xx - yy),
            -0.5900435899266435 * x * (xx - 3 * yy),
        ]
    return torch.stack(basis, dim=1)


def blend(splats: Splats) -> tuple[Tensor, Tensor]:
    """Front to back: (5, H, W) colour, depth, alpha over black; and (1, H, W) the transmittance left."""
    width, height = splats.size
    columns, rows = -(-width // TILE), -(-height // TILE)
    lists, counts = tile_lists(splats.tiles, columns, rows)
    starts = counts.cumsum(0) - counts
    order = torch.argsort(counts, descending=True)
    lengths = counts[order].tolist()
    offset = torch.arange(TILE, device=counts.device)
    pixels = torch.stack([offset.repeat(TILE), offset.repeat_interleave(TILE)], dim=1)

    parts: list[Tensor] = []
    first = 0
    while first < len(lengths):
        longest = lengths[first]
        last = min(len(lengths), first + max(1, GROUP_ELEMENTS // (max(longest, 1) * TILE * TILE)))
        tiles = order[first:last]
        slots = torch.arange(longest, device=counts.device)
        filled = slots < counts[tiles, None]
        members = lists[(starts[tiles, None] + slots).clamp_max(max(len(lists) - 1, 0))] * filled
        corner = torch.stack([tiles % columns, tiles // columns], dim=1) * TILE
        centers = (corner[:, None] + pixels).to(splats.xy.dtype)
        parts.append(_blend_tiles(splats, members, filled, centers))
        first = last
    blended = torch.cat(parts)[torch.argsort(order)]
    image = (
        blended.view(rows, columns, TILE, TILE, 6)
        .permute(4, 0, 2, 1, 3)
        .reshape(6, rows * TILE, columns * TILE)
    )
    return image[:5, :height, :width], image[5:, :height, :width]


def tile_lists(tiles: Tensor, columns: int, rows: int) -> tuple[Tensor, Tensor]:
    """The splats of each tile, front to back, tile after tile, and how many each tile has."""
    low, high = tiles[:, :2], tiles[:, 2:]
    span = high - low
    touched = span.prod(1)
    member = torch.repeat_interleave(torch.arange(len(tiles), device=tiles.device), touched)
    within = torch.arange(len(member), device=tiles.device) - (touched.cumsum(0) - touched)[member]
    tile = (low[member, 1] + within // span[member, 0]) * columns + low[member, 0] + within % span[member, 0]
    return member[torch.argsort(tile, stable=True)], torch.bincount(tile, minlength=columns * rows)


def _blend_tiles(splats: Splats, members: Tensor, filled: Tensor, centers: Tensor) -> Tensor:
    """(n, 256, 6) of n tiles: features blended by lists `members` (n, L), then the transmittance."""
    left = passable = torch.ones_like(centers[..., 0])
    features = centers.new_zeros(*left.shape, splats.features.shape[1])
    length = GROUP_ELEMENTS // (TILE * TILE)
    for start in range(0, max(members.shape[1], 1), length):
        part = slice(start, start + length)
        blended, passable, left = checkpoint(
            _blend_part,
            splats,
            members[:, part],
            filled[:, part],
            centers,
            passable,
            left,
            use_reentrant=False,
        )
        features = features + blended
        if members.shape[1] > length and not bool((passable >= MIN_TRANSMITTANCE).any()):
            break
    return torch.cat([features, left[..., None]], dim=-1)


def _blend_part(
    splats: Splats, members: Tensor, filled: Tensor, centers: Tensor, passable: Tensor, left: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Features of a part of the lists, and what the next part begins with.

    `passable` (n, 256) is the transmittance if pixels never ended, `left` the one that they have.
    """
    xy = splats.xy[members]
    if splats.absolute is None:
        xy = xy[:, :, None]
    else:
        half = xy.new_tensor(splats.size) / 2
        xy = _Spread.apply(xy, TILE * TILE, splats.index[members], splats.absolute, half)
    dx, dy = (xy - centers[:, None]).unbind(-1)
    conic = splats.conic[members][:, :, None]
    power = -0.5 * (conic[..., 0] * dx * dx + conic[..., 2] * dy * dy) - conic[..., 1] * dx * dy
    alpha = (splats.opacity[members][:, :, None] * power.clamp_max(0.0).exp()).clamp_max(MAX_ALPHA)
    alpha = torch.where(filled[:, :, None] & (alpha >= MIN_ALPHA), alpha, 0.0)
    # A pixel ends before the first Gaussian that would take its transmittance below the minimum.
    untouched = torch.ones_like(centers[:, None, :, 0])
    never_ended = passable[:, None] * torch.cat([untouched, (1 - alpha.detach()).cumprod(1)], dim=1)
    alpha = torch.where(never_ended[:, 1:] >= MIN_TRANSMITTANCE, alpha, 0.0)
    passed = left[:, None] * torch.cat([untouched, (1 - alpha).cumprod(1)], dim=1)
    features = torch.einsum("nlp,nlf->npf", alpha * passed[:, :-1], splats.features[members])
    return features, never_ended[:, -1], passed[:, -1]
