"""Object-like scenes of Gaussians, drawn by our kernels or by gsplat, and how many pairs with pixels they blend."""

import math
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from diff_gaussian_rasterization import rasterize, reference
from diff_gaussian_rasterization.inputs import gaussians as checked_gaussians
from diff_gaussian_rasterization.inputs import views as checked_views
from torch import Tensor

RADIUS = 12.0
"""Mean radius of a Gaussian, pixels (three standard deviations)."""
DISTANCE, FOV = 3.0, 0.6


@dataclass(frozen=True)
class Scene:
    """`parameters` and `cameras` are keyword arguments of `rasterize`."""

    parameters: dict[str, Tensor]
    cameras: dict[str, Any]

    @property
    def views(self) -> int:
        return len(self.cameras["viewmatrix"])


def object_scene(count: int, size: int, views: int, device: torch.device) -> Scene:
    """Four lumps that cover about half of the frame, most Gaussians nearly opaque or faint, harmonics of degree 0."""
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    centers = torch.tensor([[0.3, 0.3, 0.25], [-0.3, 0.25, -0.2], [0.25, -0.35, -0.1], [-0.25, -0.2, 0.3]])
    lump = torch.randint(4, (count,), generator=rng)
    faint = torch.rand(count, 1, generator=rng) < 0.5
    pixel = 2 * DISTANCE * math.tan(FOV / 2) / size
    parameters = {
        "means3D": centers[lump] + 0.14 * normal(count, 3),
        "opacities": (torch.sigmoid(normal(count, 1)) * torch.where(faint, 0.25, 1.0)).clamp_max(0.985),
        "shs": 0.5 * normal(count, 1, 3),
        "scales": RADIUS / 3.6 * pixel * torch.exp(0.3 * normal(count, 3)),
        "rotations": torch.nn.functional.normalize(normal(count, 4)),
    }
    view, clip, center = zip(*(_camera(2 * math.pi * i / views + 0.4) for i in range(views)), strict=True)
    tangent = torch.full((views,), math.tan(FOV / 2))
    cameras = {
        "viewmatrix": torch.stack(view),
        "projmatrix": torch.stack(clip),
        "campos": torch.stack(center),
        "tanfovx": tangent,
        "tanfovy": tangent,
        "bg": torch.ones(views, 3),
    }
    return Scene(
        {name: value.to(device).requires_grad_() for name, value in parameters.items()},
        {name: value.to(device) for name, value in cameras.items()}
        | {"image_height": size, "image_width": size, "sh_degree": 0},
    )


def _camera(azimuth: float) -> tuple[Tensor, Tensor, Tensor]:
    """Transposed view and clip matrices, and the centre, of a camera at `DISTANCE` that looks at the origin."""
    center = DISTANCE * torch.tensor([math.cos(azimuth), math.sin(azimuth), 0.2]) / math.sqrt(1.04)
    forward = -center / DISTANCE
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, torch.tensor([0.0, 0.0, 1.0])), dim=0)
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
    view = torch.eye(4)
    view[:3, :3], view[:3, 3] = rotation, -rotation @ center
    clip = torch.zeros(4, 4)
    clip[0, 0] = clip[1, 1] = 1 / math.tan(FOV / 2)
    clip[2, 2], clip[2, 3], clip[3, 2] = 1.0001, -0.010001, 1.0
    return view.T.contiguous(), (view.T @ clip.T).contiguous(), center


def ours(scene: Scene, backend: str, backward: bool) -> None:
    """One call of `rasterize`, with the gradients of all parameters if `backward`."""
    like = scene.parameters["means3D"]
    screen = torch.zeros((scene.views, len(like), 3), device=like.device, requires_grad=backward)
    with torch.set_grad_enabled(backward):
        drawn = rasterize(means2D=screen, backend=backend, **scene.parameters, **scene.cameras)
        if backward:
            images = (drawn.color, drawn.depth, drawn.alpha)
            torch.autograd.backward(images, [torch.ones_like(image) for image in images])
    for parameter in scene.parameters.values():
        parameter.grad = None


def gsplat(scene: Scene, backward: bool) -> None:
    """The same by gsplat: colour, depth and alpha."""
    rasterization = import_module("gsplat").rasterization  # not a dependency, and asks for CUDA
    given, cameras = scene.parameters, scene.cameras
    size = cameras["image_width"]
    focal = size / (2 * math.tan(FOV / 2))
    intrinsics = torch.tensor(
        [[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], device=given["means3D"].device
    )
    with torch.set_grad_enabled(backward):
        image, alpha, _ = rasterization(
            given["means3D"],
            given["rotations"],
            given["scales"],
            given["opacities"][:, 0],
            given["shs"],
            cameras["viewmatrix"].mT.contiguous(),
            intrinsics.expand(scene.views, 3, 3).contiguous(),
            size,
            size,
            near_plane=reference.NEAR,
            sh_degree=0,
            packed=False,  # the packed form takes no backgrounds
            backgrounds=cameras["bg"],
            render_mode="RGB+D",
        )
        if backward:
            torch.autograd.backward((image, alpha), [torch.ones_like(image), torch.ones_like(alpha)])
    for parameter in given.values():
        parameter.grad = None


@torch.no_grad()
def blended_pairs(scene: Scene) -> int:
    """Pairs of Gaussian and pixel that enter the images, counted by the reference's rules."""
    given, cameras = scene.parameters, scene.cameras
    screen = torch.zeros((scene.views, len(given["means3D"]), 3), device=given["means3D"].device)
    gaussians = checked_gaussians(
        given["means3D"],
        screen,
        given["opacities"],
        given["shs"],
        None,
        given["scales"],
        given["rotations"],
        None,
        scene.views,
    )
    views = checked_views(
        *(cameras[n] for n in ("viewmatrix", "projmatrix", "campos", "bg", "tanfovx", "tanfovy")),
        *(cameras[n] for n in ("image_height", "image_width", "sh_degree")),
        scale_modifier=1.0,
        antialiasing=False,
        like=given["means3D"],
        shs=given["shs"],
    )
    return sum(_blended_pairs(reference.project(gaussians, views, c)) for c in range(scene.views))


def _blended_pairs(splats: reference.Splats) -> int:
    tile = reference.TILE
    columns, rows = (-(-side // tile) for side in splats.size)
    lists, counts = reference.tile_lists(splats.tiles, columns, rows)
    total = 0
    for index, members in enumerate(lists.split(counts.tolist())):
        y, x = divmod(index, columns)
        low = torch.tensor([x * tile, y * tile])
        high = torch.minimum(low + tile, torch.tensor(splats.size))
        pixels = torch.cartesian_prod(torch.arange(low[0], high[0]), torch.arange(low[1], high[1])).to(
            splats.xy
        )
        dx, dy = (splats.xy[members, None] - pixels).unbind(-1)
        a, b, c = splats.conic[members, :, None].unbind(1)
        power = -0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy
        alpha = (splats.opacity[members, None] * power.exp()).clamp_max(reference.MAX_ALPHA)
        alpha = torch.where(alpha >= reference.MIN_ALPHA, alpha, 0.0)
        passed = (1 - alpha).cumprod(0) >= reference.MIN_TRANSMITTANCE
        total += int(((alpha > 0) & passed).sum())
    return total
