"""Scenes and cameras for the tests: what a rasterizer meets, and what it should survive."""

import math
from collections.abc import Callable

import torch
from diff_gaussian_rasterization import rasterize
from torch import Tensor

Scene = dict[str, Tensor]


def orbit(count: int, width: int, height: int, radius: float = 3.0, fov: float = 0.8) -> dict:
    """Cameras on a circle that look at the origin; keyword arguments of `rasterize`."""
    tanx = math.tan(fov / 2)
    tany = tanx * height / width
    views, clips, centers = [], [], []
    for i in range(count):
        angle = 0.5 + 1.3 * i
        center = torch.tensor(
            [radius * math.cos(angle), radius * math.sin(angle), 0.25 * radius], dtype=torch.float64
        )
        forward = -center / center.norm()
        right = torch.linalg.cross(forward, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
        right = right / right.norm()
        rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
        view = torch.eye(4, dtype=torch.float64)
        view[:3, :3], view[:3, 3] = rotation, -rotation @ center
        clip = torch.zeros(4, 4, dtype=torch.float64)
        clip[0, 0], clip[1, 1], clip[2, 2], clip[2, 3], clip[3, 2] = (
            1 / tanx,
            1 / tany,
            1.0001,
            -0.010001,
            1.0,
        )
        views.append(view.T)
        clips.append(view.T @ clip.T)
        centers.append(center)
    backgrounds = torch.linspace(0.1, 0.9, 3 * count, dtype=torch.float64).view(count, 3)
    tensors = {
        "viewmatrix": torch.stack(views),
        "projmatrix": torch.stack(clips),
        "campos": torch.stack(centers),
        "tanfovx": torch.full((count,), tanx, dtype=torch.float64),
        "tanfovy": torch.full((count,), tany, dtype=torch.float64),
        "bg": backgrounds,
    }
    return {name: t.float() for name, t in tensors.items()} | {"image_width": width, "image_height": height}


def cloud(count: int, degree: int = 0, size: float = 0.05, spread: float = 0.3, seed: int = 0) -> Scene:
    """Gaussians around the origin."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    return {
        "means3D": normal(count, 3) * spread,
        "opacities": torch.sigmoid(2.0 * normal(count, 1)),
        "shs": 0.7 * normal(count, (degree + 1) ** 2, 3),
        "scales": torch.exp(0.4 * normal(count, 3)) * size,
        "rotations": torch.nn.functional.normalize(normal(count, 4)),
    }


def covariances(scales: Tensor, rotations: Tensor) -> Tensor:
    """(P, 6) upper triangles."""
    w, x, y, z = torch.nn.functional.normalize(rotations).unbind(1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    factor = torch.stack(rows, dim=1).view(-1, 3, 3) * scales[:, None]
    full = factor @ factor.mT
    return full[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]]


def _replaced(scene: Scene, **changes: Tensor | None) -> Scene:
    return {name: value for name, value in (scene | changes).items() if value is not None}


def _precomputed() -> Scene:
    scene = cloud(300)
    entries = covariances(scene["scales"], scene["rotations"])
    colors = 1.5 * torch.rand(300, 3, generator=torch.Generator().manual_seed(1)) - 0.25
    return _replaced(
        scene, cov3D_precomp=entries, colors_precomp=colors, shs=None, scales=None, rotations=None
    )


def _sizes() -> Scene:
    scene = cloud(200)
    scene["scales"] *= torch.logspace(-3, 1.2, 200)[:, None]
    return scene


def _around_the_camera() -> Scene:
    return cloud(600, size=0.2, spread=2.0)


SCENES: dict[str, tuple[Callable[[], Scene], dict]] = {
    "degree 0": (lambda: cloud(500), {}),
    "degree 1": (lambda: cloud(300, degree=1), {"sh_degree": 1}),
    "degree 2 of 3": (lambda: cloud(300, degree=3), {"sh_degree": 2}),
    "degree 3": (lambda: cloud(300, degree=3), {"sh_degree": 3}),
    "around the camera": (_around_the_camera, {}),
    "opaque": (lambda: _replaced(cloud(300), opacities=torch.ones(300, 1)), {}),
    "huge and tiny": (_sizes, {}),
    "scaled": (lambda: cloud(300), {"scale_modifier": 0.7}),
    "precomputed": (_precomputed, {}),
    "raw quaternions": (
        lambda: _replaced(
            cloud(300), rotations=torch.randn(300, 4, generator=torch.Generator().manual_seed(2))
        ),
        {},
    ),
    "initialisation": (lambda: _replaced(cloud(600, size=0.15), opacities=torch.full((600, 1), 0.1)), {}),
    "many": (lambda: cloud(3000, size=0.02), {}),
    "single": (lambda: cloud(1, size=0.2), {}),
    "antialiased": (lambda: cloud(400, size=0.01), {"antialiasing": True}),
    "none": (lambda: cloud(0), {}),
    "none visible": (lambda: _replaced(cloud(50), means3D=torch.full((50, 3), 40.0)), {}),
}
"""By name: a scene and further keyword arguments of `rasterize`."""


def beyond_floats() -> tuple[Scene, dict]:
    """Finite inputs whose view depths are negative, 3e38, and twice infinite; and the camera, 32 pixels wide."""
    scene = cloud(4, size=1.0) | {"opacities": torch.tensor([[0.9], [0.5], [0.6], [0.7]])}
    scene["means3D"] = torch.zeros(4, 3)
    scene["means3D"][:, 2] = torch.tensor([-3.3e38, 0.0, 3e38, 3e38])
    scene["shs"] = 2.0 * torch.eye(4)[:, None, 1:]  # red, green and blue, from the second on
    camera = orbit(1, 32, 32)
    focal = 1.0 / float(camera["tanfovx"])
    view, clip = torch.eye(4), torch.diag(torch.tensor([focal, focal, 1.0, 0.0]))
    view[3, 2], clip[2, 3] = 3e38, 1.0
    return scene, camera | {
        "viewmatrix": view[None],
        "projmatrix": (view @ clip)[None],
        "campos": torch.tensor([[0.0, 0.0, -3e38]]),
    }


def draw(
    scene: Scene,
    cameras: dict,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    **options,
):
    """Outputs, gradients by input (with "means2D" and "absolute"), for a fixed cotangent of colour, depth and alpha."""
    leaves = {name: value.detach().to(device, dtype).requires_grad_() for name, value in scene.items()}
    given = {name: v.to(device, dtype) if isinstance(v, Tensor) else v for name, v in cameras.items()}
    views, count = len(given["viewmatrix"]), len(leaves["means3D"])
    means2D = torch.zeros(views, count, 3, dtype=dtype, device=device, requires_grad=True)
    drawn = rasterize(**{"means2D": means2D, "sh_degree": 0, "absgrad": True, **leaves, **given, **options})
    rng = torch.Generator().manual_seed(7)
    images = (drawn.color, drawn.depth, drawn.alpha)
    loss = sum((image * torch.randn(image.shape, generator=rng).to(device, dtype)).sum() for image in images)
    loss.backward()
    gradients = {name: leaf.grad for name, leaf in leaves.items()}
    gradients |= {"means2D": means2D.grad, "absolute": means2D.absgrad}
    drawn = type(drawn)(*(output.detach().cpu() for output in drawn))
    return drawn, {name: gradient.cpu() for name, gradient in gradients.items()}


def assert_agrees(fast, slow, gradient_limit: float = 2e-3) -> None:
    """Two results of `draw`. A pair that crosses a threshold in one of them moves a pixel: few may, and not far."""
    (images, gradients), (true_images, true_gradients) = fast, slow
    if images.radii.numel():
        others = int((images.radii != true_images.radii).sum())
        assert others <= max(1, images.radii.numel() // 1000)
    for name in ("color", "depth", "alpha"):
        error = (getattr(images, name) - getattr(true_images, name)).abs()
        scale = max(1.0, float(getattr(true_images, name).abs().max()))
        assert (error > 2e-5 * scale).float().mean() < 1e-3, name
        assert error.max() < 8e-3 * scale, name
    for name, truth in true_gradients.items():
        difference = (gradients[name] - truth).norm()
        assert difference <= gradient_limit * truth.norm() + 1e-6, (name, float(difference / truth.norm()))
