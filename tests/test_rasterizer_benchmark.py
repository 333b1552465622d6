"""The rasterizer's benchmark: what it counts, and what it refuses."""

import json
from types import SimpleNamespace

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


def test_gsplat_is_called_as_it_can_be(monkeypatch):
    """It refuses backgrounds in its packed form, which is its default, and needs gradients of all parameters."""
    scene = splat_scenes.object_scene(20, 16, 4, torch.device("cpu"))

    def rasterization(
        means, quats, scales, opacities, colors, viewmats, ks, width, height, *, packed=True, **given
    ):
        assert not (packed and given["backgrounds"] is not None)
        assert (viewmats.shape, ks.shape, given["backgrounds"].shape) == ((4, 4, 4), (4, 3, 3), (4, 3))
        assert (given["render_mode"], opacities.shape) == ("RGB+D", (20,))
        total = sum(tensor.sum() for tensor in (means, quats, scales, opacities, colors))
        drawn.append(total)
        return total.expand(4, height, width, 4), total.expand(4, height, width, 1), {}

    drawn: list[torch.Tensor] = []
    monkeypatch.setattr(splat_scenes, "import_module", lambda _: SimpleNamespace(rasterization=rasterization))
    for backward in (False, True):
        splat_scenes.gsplat(scene, backward)
    assert [total.requires_grad for total in drawn] == [False, True]


def test_nothing_is_counted_where_a_card_is_measured(monkeypatch):
    """The scene's tensors stay on the CPU here: only the device's name is a card's."""
    card, cpu = torch.device("cuda"), torch.device("cpu")
    object_scene = splat_scenes.object_scene
    monkeypatch.setattr(rasterizer, "object_scene", lambda *given: object_scene(*given[:3], cpu))
    monkeypatch.setattr(rasterizer, "blended_pairs", lambda _: pytest.fail("counted"))
    monkeypatch.setattr(rasterizer, "ours", lambda *_: None)
    monkeypatch.setattr(rasterizer, "find_spec", lambda _: None)
    monkeypatch.setattr(rasterizer, "seconds", lambda *_: 0.001)
    monkeypatch.setattr(rasterizer, "fmas_per_second", lambda _: 1e9)
    monkeypatch.setattr(rasterizer, "_added_memory_alone", lambda *_: 1e6)
    options = SimpleNamespace(threads=[1], repeats=2, no_reference=True)
    row = rasterizer.measure_scene(500, 16, 4, card, options)[0]
    assert row["blended_pairs"] is row["pairs_per_second"] is row["over_bound"] is None
    assert rasterizer._row(row).startswith("| 500, 16, 4 | 1 | nan M | 0.2 ms |")
    json.dumps(row, allow_nan=False)


@pytest.mark.parametrize("wrong", [["--gaussians", "0"], ["--threads", "0"], ["--device", "cuda"]])
def test_wrong_options_are_one_line(wrong, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert rasterizer.main(wrong) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --")
    assert error.count("\n") == 1
