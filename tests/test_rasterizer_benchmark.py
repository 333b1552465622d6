"""The rasterizer's benchmark: what it counts, and what it refuses."""

import pytest
import torch
from diff_gaussian_rasterization import rasterize

from benchmarks import rasterizer, splat_scenes


def alone(scene: splat_scenes.Scene, index: int) -> int:
    """Pixels in which one Gaussian is seen if there are no others."""
    one = {name: value[index : index + 1] for name, value in scene.parameters.items()}
    drawn = rasterize(means2D=torch.zeros(scene.views, 1, 3), backend="torch", **one, **scene.cameras)
    return int((drawn.alpha > 0).sum())


@torch.no_grad()
def test_pairs_are_those_of_each_gaussian_where_none_hides_another():
    scene = splat_scenes.object_scene(30, 48, 2, torch.device("cpu"))
    scene.parameters["opacities"].mul_(0.05)
    assert splat_scenes.blended_pairs(scene) == sum(alone(scene, i) for i in range(30)) > 0


@torch.no_grad()
def test_hidden_pairs_are_not_counted():
    scene = splat_scenes.object_scene(3000, 48, 1, torch.device("cpu"))
    shown = splat_scenes.blended_pairs(scene)
    scene.parameters["opacities"].mul_(0.05)
    assert shown < splat_scenes.blended_pairs(scene)


@pytest.mark.parametrize("wrong", [["--gaussians", "0"], ["--threads", "0"], ["--device", "cuda"]])
def test_wrong_options_are_one_line(wrong, capsys):
    if wrong[-1] == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert rasterizer.main(wrong) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --")
    assert error.count("\n") == 1
