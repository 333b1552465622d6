"""Shap-E through diffusers' own pipeline with a small model of known shape: frame, colours, cache, failures."""

import functools
import logging
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from arguments import GenerateCamParams, GuidanceParams, load
from dreammapping import generate
from gaussian_renderer import render
from guidance import ScoreModel, models
from guidance.prior import shap_e as module
from guidance.prior.shap_e import linear_to_srgb, text_to_mesh, to_our_frame
from scene.cameras import orbit
from scene.ply import read_points
from tests.small_shap_e import save_shap_e
from tests.tiny_models import save_pipeline
from utils.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shap_e(tmp_path_factory):
    return save_shap_e(tmp_path_factory.mktemp("shap_e") / "model")


@pytest.fixture(autouse=True)
def coarse(monkeypatch, tmp_path):
    """A grid of 32 in place of 128, and a cache of the test's own."""
    from diffusers.pipelines.shap_e.renderer import ShapERenderer

    decode = functools.partialmethod(ShapERenderer.decode_to_mesh, grid_size=32)
    monkeypatch.setattr(ShapERenderer, "decode_to_mesh", decode)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def made(monkeypatch):
    """How often Shap-E really ran."""
    runs = []
    generate = module._generate

    def counted(prompt, seed, *rest):
        runs.append((prompt, seed))
        return generate(prompt, seed, *rest)

    monkeypatch.setattr(module, "_generate", counted)
    return runs


def settings(folder, **changes):
    return GenerateCamParams(
        **{"init_shape": "shape", "shape_model": str(folder), "shape_steps": 2, **changes}
    )


def mesh_of(folder, prompt="a figure", seed=0, **changes):
    return text_to_mesh(prompt, seed, settings(folder, **changes), CPU)


def start(folder, **changes):
    from dreammapping.gaussians import initial_gaussians

    words = {
        "init_shape": "shape",
        "shape_model": folder,
        "shape_steps": 2,
        "init_num_pts": 3000,
        "text": "a figure",
    }
    words |= {"model_key": "toybox", "guidance": "vdm"} | changes
    config, _ = load([f"{key}={value}" for key, value in words.items()])
    return initial_gaussians(config, torch.Generator().manual_seed(0), CPU)


def test_the_cloud_stands_upright_and_reaches_out_in_front(shap_e):
    """The tallest side is along z; what reaches farthest along +y is as high as the nose, and not the body's back."""
    points = start(shap_e).means.detach()
    assert len(points) == 3000
    sides = points.amax(dim=0) - points.amin(dim=0)
    assert sides.argmax() == 2 and sides[2] == pytest.approx(1, abs=1e-4)
    assert points[points[:, 1] > points[:, 1].quantile(0.99), 2].mean() > 0.15
    assert points[points[:, 1] < points[:, 1].quantile(0.01), 2].mean() < 0


def test_the_front_camera_sees_its_face_upright_and_not_mirrored(shap_e):
    """In pictures: the broad body below the head, the arm on the picture's right, red; from behind, on its left."""
    params = GenerateCamParams(image_w=96, image_h=96)
    with torch.no_grad():
        views = render(start(shap_e), orbit(2, params, polar_deg=90.0), torch.zeros(3))
    front, back = views.alphas[:, 0] > 0.5
    for seen, arm in ((front, 1), (back, -1)):
        rows, columns = (seen.any(dim=axis).nonzero().flatten() for axis in (1, 0))
        height, middle = len(rows), (columns[0] + columns[-1]) / 2
        head, body = seen[rows[height // 6]], seen[rows[-height // 3]]
        assert head.sum() < 0.75 * body.sum()
        assert (middle - head.nonzero().float().mean()) * arm > 2
    reds = [image[0, seen].mean() for image, seen in zip(views.images, (front, back), strict=True)]
    assert reds[0] > 1.5 * reds[1]  # the start is half transparent


def test_the_frame_is_turned_and_not_mirrored():
    front, up, right = [0.0, -1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]
    turned = to_our_frame(torch.tensor([front, up, right]))
    assert torch.equal(turned, torch.tensor([[0.0, 1.0, 0.0], up, [-1.0, 0.0, 0.0]]))
    assert torch.linalg.det(to_our_frame(torch.eye(3))) == 1


def test_colours_are_what_the_model_says_in_srgb(shap_e):
    """Shap-E's front, at its -y, is red and at our +y: sigmoid(2) of the network, and not its linear value."""
    mesh = mesh_of(shap_e)
    front = mesh.colors[mesh.vertices[:, 1] > 0.3]
    back = mesh.colors[mesh.vertices[:, 1] < -0.1]
    expected = torch.tensor(2.0).sigmoid()
    assert front[:, 0].median() == pytest.approx(expected.item(), abs=0.08)
    assert back[:, 0].median() == pytest.approx(1 - expected.item(), abs=0.08)


def test_srgb_is_the_inverse_of_diffusers_linear():
    from diffusers.pipelines.shap_e.renderer import _convert_srgb_to_linear

    values = torch.linspace(0, 1, 101)
    assert torch.allclose(linear_to_srgb(_convert_srgb_to_linear(values)), values, atol=1e-5)


def test_points_are_uniform_by_area_on_the_surface(shap_e):
    import trimesh

    mesh = mesh_of(shap_e)
    solid = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
    upper = solid.triangles_center[:, 2] > (solid.bounds[0, 2] + solid.bounds[1, 2]) / 2
    share = solid.area_faces[upper].sum() / solid.area
    points = start(shap_e).means
    assert (points[:, 2] > 0).float().mean().item() == pytest.approx(share, abs=0.04)


def test_a_mesh_is_made_once_for_each_prompt_and_seed(shap_e, made):
    first = mesh_of(shap_e)
    again = mesh_of(shap_e)
    assert made == [("a figure", 0)]
    assert torch.equal(first.vertices, again.vertices) and torch.equal(first.colors, again.colors)
    prompt, seed = mesh_of(shap_e, "another"), mesh_of(shap_e, seed=1)
    mesh_of(shap_e, shape_guidance=3.0)
    assert len(made) == 4
    for other in (prompt, seed):
        assert other.vertices.shape != first.vertices.shape or not torch.equal(other.vertices, first.vertices)


def test_a_mesh_of_an_older_revision_of_a_hubs_model_is_not_used(shap_e, made, monkeypatch):
    arrived = []  # the revisions that have been fetched

    def fetch(*_):
        arrived.append(f"revision {len(made)}")
        return shap_e

    monkeypatch.setattr(models, "local_folder", fetch)
    monkeypatch.setattr(models, "cached", lambda _: Path(arrived[-1]) if arrived else None)
    for _ in range(3):
        mesh_of("someone/shap-e")
    assert len(made) == 1
    arrived.append("a newer one")
    mesh_of("someone/shap-e")
    assert len(made) == 2


def test_a_damaged_or_foreign_cache_entry_is_made_again(shap_e, made, tmp_path):
    first = mesh_of(shap_e)
    (kept,) = (tmp_path / "cache").rglob("*.safetensors")
    content = kept.read_bytes()
    kept.write_bytes(content[:100])
    assert torch.equal(mesh_of(shap_e).vertices, first.vertices)
    kept.write_bytes(content.replace(b"a figure", b"a finger"))
    mesh_of(shap_e)
    assert len(made) == 3


def test_a_cache_that_cannot_be_used_costs_one_warning_and_no_run(shap_e, monkeypatch, caplog):
    """A full disk, and a folder of somebody else."""
    made = module.ColoredMesh(torch.rand(4, 3), torch.tensor([[0, 1, 2]]), torch.rand(4, 3))
    monkeypatch.setattr(module, "_generate", lambda *_: made)
    mesh_of(shap_e)

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(module, "safe_open", denied)
    monkeypatch.setattr(module, "save_file", full)
    assert torch.equal(mesh_of(shap_e).vertices, made.vertices)
    assert caplog.text.count("is not kept for later runs") == 1 and "No space left" in caplog.text


def test_a_user_without_a_home_has_a_cache_among_temporary_files(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert module._user_cache().is_relative_to(tempfile.gettempdir())


def test_the_run_does_not_depend_on_whether_the_shape_was_cached(shap_e):
    states = []
    for _ in range(2):
        start(shap_e)
        states.append(torch.random.get_rng_state())
        torch.manual_seed(0)
    torch.manual_seed(0)
    assert torch.equal(states[1], torch.random.get_rng_state())


def test_an_id_that_no_hub_takes_starts_from_a_sphere_too(caplog):
    assert len(start("someone/shap--e").means) == 3000
    assert caplog.text.count("starting from a sphere") == 1


def test_an_empty_surface_and_a_missing_model_start_from_a_sphere_with_one_warning(tmp_path, caplog):
    empty = save_shap_e(tmp_path / "empty", empty=True)
    for model, reason in (
        (empty, "made no surface for 'a figure'"),
        ("nobody/shap-e", "cannot load 'nobody/shap-e'"),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            gaussians = start(model)
        assert len(caplog.records) == 1
        assert reason in caplog.text and "starting from a sphere" in caplog.text
        assert gaussians.means.norm(dim=1).max() <= 0.5
        with pytest.raises(UserError, match="(?s)shape_model: .*" + reason[:15]):
            start(model, init_fallback="stop")


def test_a_prompt_that_is_too_long_is_refused_and_never_cut(shap_e):
    with pytest.raises(UserError, match=r"expected at most .* tokens, got .*; shorten it by"):
        mesh_of(shap_e, prompt="a figure " * 60)


def test_luciddreamers_word_means_shap_e_and_its_switch_keeps_colours(shap_e):
    plain = start(shap_e, init_shape="pointe")
    coloured = start(shap_e, init_shape="pointe", use_pointe_rgb="true")
    assert torch.equal(plain.means, coloured.means)
    assert plain.sh_dc.std() < 1e-6 < 0.1 < coloured.sh_dc.std()
    assert torch.equal(coloured.sh_dc, start(shap_e).sh_dc)


def small_run(folder, place):
    prior = save_pipeline(place / "prior", autoencoder="tiny")
    return {
        "model_key": str(prior), "shape_model": str(folder), "shape_steps": 2, "init_shape": "shape", "iterations": 1,
        "init_num_pts": 200, "image_w": 32, "image_h": 32, "C_batch_size": 1, "output_path": str(place),
        "workspace": "run", "device": "cpu", "save_video": False, "save_process": False, "render_45": False,
    }  # fmt: skip


def test_a_fault_of_the_prior_is_told_before_a_shape_is_made(shap_e, made, tmp_path):
    lora = tmp_path / "lora.safetensors"
    save_file(
        {
            f"lora_unet_double_blocks_0_img_attn_qkv.lora_{way}.weight": torch.ones(4, 4)
            for way in ("down", "up")
        },
        lora,
    )
    with pytest.raises(UserError, match="LoRA_path"):
        generate("a figure", overrides=small_run(shap_e, tmp_path) | {"LoRA_path": str(lora)}, quiet=True)
    assert made == []


def test_a_fault_of_a_file_to_start_from_is_told_before_the_prior_is_loaded(shap_e, tmp_path, monkeypatch):
    monkeypatch.setattr(ScoreModel, "from_pretrained", None)
    changes = small_run(shap_e, tmp_path) | {"init_shape": "file", "init_path": str(tmp_path / "no.ply")}
    with pytest.raises(UserError, match=r"no\.ply"):
        generate("a figure", overrides=changes, quiet=True)


def test_a_run_starts_from_shap_e(shap_e, tmp_path):
    result = generate("a figure", overrides=small_run(shap_e, tmp_path), quiet=True)
    points, colors = read_points(result.folder / "init_points3d.ply")
    assert len(points) == 200 and colors.std() > 0.05


def test_settings_of_the_model(shap_e):
    assert (GenerateCamParams().shape_guidance, GenerateCamParams().shape_steps) == (15.0, 64)
    assert load(["--opt", "configs/cat.yaml"])[0].GenerateCamParams.init_from_text
    assert GuidanceParams().vae_key is None
