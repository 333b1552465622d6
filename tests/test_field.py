"""A field as a subject: how it grows, what it learns from, what it leaves, and what it refuses."""

import dataclasses
from pathlib import Path

import pytest
import torch

from arguments import load
from dreammapping import optimize
from dreammapping.evaluation.judge import judge_run, table
from dreammapping.field import Field, build_optimizer, initial_field, levels_at, resize, resolution_at
from dreammapping.field_memory import field_bytes, parameter_count, rays_at_once, refuse_too_large
from dreammapping.finished import FinishedRun
from dreammapping.optimization import Optimization
from guidance.prior.memory import PLANS
from scene.field_file import write_field
from scene.radiance_field import VoxelGrid
from tests.settings import config_of
from tests.test_guidance_training import LESS, SHIPPED, same
from utils import checkpoint
from utils.errors import UserError
from utils.images import read_picture

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
SMALL = [
    "FieldParams.resolution=8", "FieldParams.resolution_final=12", "FieldParams.samples=12", "occupancy_resolution=8",
    "hash_levels=3", "hash_table=8", "hash_base=3", "hash_finest=12", "hash_width=8",
]  # fmt: skip
QUICK = ["--opt", str(ROOT / "configs" / "field" / "quickstart.yaml"), "device=cpu", "image_w=32", "image_h=32",
         "early_width=null", "C_batch_size=2", "video_frames=2", "pro_frames_num=2", *SMALL]  # fmt: skip


def settings(*words, kind="grid"):
    return load([*QUICK, f"representation={kind}", *words])[0]


class TextAlone:
    """Of a prior what a subject asks: the text of its views."""

    plan = PLANS["max"]

    def encode_text(self, texts):
        return torch.zeros(len(texts), 2, 3)

    def drop_text_encoder(self):
        pass


def fresh(*words, kind="grid"):
    """A field that is ready to be shown."""
    return Field(settings(*words, kind=kind), TextAlone, torch.Generator().manual_seed(0), CPU)


KINDS = ("hamburger", "prolificdreamer_gs", "luciddreamer")
"""One that trains an operator along, one with a LoRA that is told the cameras, one that inverts: methods know nothing
of what they guide, and each has its own test with Gaussians."""


@pytest.mark.whole_runs
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=() if path.stem in KINDS else pytest.mark.slow)
        for path in SHIPPED
    ],
)
def test_methods_train_a_field_from_their_settings_and_resume_with_the_same_bits(path, prior, tmp_path):
    words = [
        "--opt",
        str(path),
        *LESS,
        f"model_key={prior}",
        "representation=grid",
        *SMALL,
        "occupancy_interval=2",
        "grow_until=0.0006",
    ]

    def make():
        return Optimization(load(words)[0])

    def run(optimization, steps):
        for step in steps:
            metrics = optimization.iteration(step)
            assert all(torch.as_tensor(value).isfinite() for value in metrics.values())

    whole = make()
    before = whole.subject.field.table.detach().clone()
    run(whole, (1, 2))
    saved = checkpoint.save(tmp_path, 2, whole.state_dict())
    run(whole, (3,))
    resumed = make()
    resumed.load_state_dict(checkpoint.load(saved))
    run(resumed, (3,))
    assert whole.skipped == resumed.skipped == 0
    assert same(whole.state_dict(), resumed.state_dict())
    after = whole.subject.field
    assert after.resolution == 12 or not torch.equal(after.table, before)


def test_a_grid_grows_in_even_steps_and_keeps_its_moments():
    params = config_of(resolution=64, resolution_final=128, growths=2, grow_until=0.5).FieldParams
    sides = [resolution_at(step, 1000, params) for step in (1, 249, 250, 499, 500, 1000)]
    assert sides == [64, 64, 96, 96, 128, 128]
    assert resolution_at(1000, 1000, dataclasses.replace(params, growths=0)) == 64

    field = VoxelGrid(torch.randn(27, 4, generator=torch.Generator().manual_seed(0)), 1.0)
    optimizer = build_optimizer(field, params)
    field.table.square().sum().backward()
    optimizer.step()
    before = optimizer.state[field.table]["exp_avg"].clone()
    resize(field, optimizer, 5)
    state = optimizer.state[field.table]
    assert field.resolution == 5 and len(optimizer.state) == 1
    assert state["exp_avg"].shape == field.table.shape and state["step"] == 1
    lattice = torch.arange(125).view(5, 5, 5)[::2, ::2, ::2].flatten()
    assert torch.allclose(state["exp_avg"][lattice], before)
    field.table.sum().backward()
    optimizer.step()


def test_levels_of_the_hash_grid_come_into_use_one_by_one():
    params = config_of(hash_levels=16, hash_start_levels=8, hash_level_iter=(2000.0, 500.0)).FieldParams
    assert [levels_at(step, params) for step in (0, 1999, 2000, 2499, 2500, 99_999)] == [8, 8, 9, 9, 10, 16]
    assert levels_at(0, dataclasses.replace(params, hash_start_levels=0)) == 16


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "adamax"])
def test_each_optimiser_steps_each_kind_at_its_rates(optimizer):
    for kind in ("grid", "hash"):
        subject = fresh(f"FieldParams.optimizer={optimizer}", "field_lr=0.5", "network_lr=0.25", kind=kind)
        before = {name: value.detach().clone() for name, value in subject.field.named_parameters()}
        subject.show(1, torch.Generator().manual_seed(0)).seen.square().sum().backward()
        subject.optimizer.step()
        rates = [group["lr"] for group in subject.optimizer.param_groups]
        assert rates[0] == pytest.approx(0.5, rel=0.02) and rates[1:] == [0.25] * (kind == "hash")
        assert all(not torch.equal(before[name], value) for name, value in subject.field.named_parameters())


TERMS = {
    "lambda_sparsity": "sparsity", "lambda_opaque": "opaque", "lambda_orient": "orient",
    "lambda_z_variance": "z_variance", "lambda_emptiness": "emptiness", "lambda_smooth": "smooth",
}  # fmt: skip


@pytest.mark.parametrize("kind", ["grid", "hash"])
def test_regularisers_are_losses_of_their_own_that_ramp_and_reach_the_field(kind):
    words = [f"{name}=[0, 0]" for name in TERMS] + ["FieldParams.ramp_iter=[0, 4]", "lambda_tv=0"]
    assert fresh(*words, kind=kind).show(1, torch.Generator().manual_seed(0)).losses() == {}
    for setting, name in TERMS.items():
        subject = fresh(*words, f"{setting}=[0, 2]", kind=kind)
        sizes = []
        for step in (1, 4):
            losses = subject.show(step, torch.Generator().manual_seed(0)).losses()
            assert set(losses) == {name}
            sizes.append(losses[name])
        assert 0 < sizes[0] < sizes[1]
        gradients = torch.autograd.grad(sizes[1], list(subject.field.parameters()), allow_unused=True)
        assert gradients[0].abs().sum() > 0


def test_early_renders_are_smaller_and_chunks_change_no_gradient():
    whole = fresh("early_width=16", "early_iter=3", "lambda_tv=0")
    shapes = [whole.show(step, torch.Generator().manual_seed(0)).seen.shape[-2:] for step in (3, 4)]
    assert shapes == [(16, 16), (32, 32)]
    gradients = []
    for words in ([], ["ray_chunk=100"]):
        subject = fresh("lambda_tv=0", *words)
        seen = subject.show(1, torch.Generator().manual_seed(0)).seen
        gradients.append(torch.autograd.grad(seen.square().sum(), subject.field.table)[0])
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[0].norm()


def test_disparity_is_guided_where_luciddreamers_settings_ask_for_it():
    subject = fresh("as_latent_ratio=1")
    seen = subject.show(1, torch.Generator().manual_seed(0)).seen
    assert torch.equal(seen[:, 0], seen[:, 2]) and seen.max() == 1


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    words = ["OptimizationParams.iterations=2", f"output_path={folder}", "workspace=run", "save_video=true"]
    return optimize(settings(*words), quiet=True).folder


def test_a_run_leaves_a_field_its_mesh_test_views_and_videos(finished):
    import trimesh

    assert trimesh.load_mesh(finished / "mesh.ply").is_watertight
    views = sorted((finished / "test_six_views" / "2_iteration").glob("render_view_*.png"))
    assert len(views) == 16
    assert read_picture(views[0])[16, 16].max() < 250  # the start's ball, before white
    for name in ("videos/2_iteration/video_rgb_2.mp4", "process_videos/video_rgb.mp4", "init_points3d.ply"):
        assert (finished / name).stat().st_size > 0


def test_a_finished_field_is_read_and_judged(finished):
    run = FinishedRun.open(finished)
    assert run.iterations == [2] and run.iteration() == 2
    assert isinstance(run.asset(), VoxelGrid) and run.asset().resolution == 12
    assert isinstance(run.start(), VoxelGrid) and run.start().resolution == 8
    with pytest.raises(UserError, match="expected iteration 2, got 1"):
        run.asset(1)
    result = judge_run(finished, views=4)
    assert result["parameters"] == 4 * 12**3 and 0 <= result["asset"]["r_precision"] <= 1
    assert "a field of 6912 numbers" in table(result)
    assert (finished / "judge_views.png").is_file()


def test_a_run_without_its_field_says_so(finished, tmp_path):
    (tmp_path / "config.yaml").write_bytes((finished / "config.yaml").read_bytes())
    with pytest.raises(UserError, match=r"expected field\.safetensors, found none; let the run save first"):
        FinishedRun.open(tmp_path).iteration()


def test_a_field_starts_from_a_finished_one_of_its_kind(finished):
    path = finished / "field.safetensors"
    field = initial_field(settings(f"pretrained_model_path={path}"), torch.Generator(), CPU)
    assert torch.equal(field.table, FinishedRun.open(finished).asset().table)
    with pytest.raises(UserError, match="expected a field of kind hash, got grid; set representation=grid"):
        initial_field(settings(f"pretrained_model_path={path}", kind="hash"), torch.Generator(), CPU)


def test_an_asset_that_nobody_can_see_is_refused_and_a_missing_one_is_written_again(tmp_path):
    subject = fresh()
    subject.check(tmp_path, 1)
    assert (tmp_path / "field.safetensors").is_file()
    with torch.no_grad():
        subject.field.table[:, 0] = -10.0
    write_field(tmp_path / "field.safetensors", subject.field, 1, "")
    with pytest.raises(
        UserError, match="expected a field that can be seen, got none in sight with an opacity over"
    ):
        subject.check(tmp_path, 1)


def test_a_field_that_is_nowhere_dense_has_no_mesh_and_says_so(tmp_path, caplog):
    fresh("mesh_density=1e6").save(tmp_path, 3)
    assert not (tmp_path / "mesh.ply").exists()
    assert (
        "iteration 3: the field is nowhere denser than mesh_density=1e+06, so it has no mesh" in caplog.text
    )


class Untouched:
    """A prior that nobody may load."""

    def __call__(self):
        raise AssertionError("the prior was loaded")


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        (["FieldParams.resolution_final=4096"], "grid",
         r"FieldParams\.resolution_final: expected a grid that fits 8\.0 GiB, got 4096 vertices a side, which take "
         r"5120\.0 GiB with gradients and moments; lower it"),
        (["hash_table=24", "hash_levels=32", "hash_finest=100000", "hash_features=16"], "hash",
         r"FieldParams\.hash_table: expected tables that fit 8\.0 GiB, got 32 levels of up to 2\^24 rows"),
        (["radius_range=[0.4, 0.6]"], "grid",
         r"GenerateCamParams\.radius_range: expected cameras outside of the start shape, which reaches 0\.5 from the "
         r"middle, got a distance of 0\.4; raise it"),
        (["init_shape=scene"], "hash", "expected an object for a field"),
        (["pretrained_model_path=nowhere.safetensors"], "grid", r"nowhere\.safetensors: cannot be read"),
    ],
)  # fmt: skip
def test_what_cannot_be_optimised_is_said_before_anything_is_loaded(words, kind, message):
    config = settings(*words, "HardwareParams.memory=8gb", kind=kind)
    with pytest.raises(UserError, match=message):
        Field(config, Untouched(), torch.Generator(), CPU)


def test_the_number_of_parameters_is_known_before_they_are_made():
    for kind in ("grid", "hash"):
        config = settings("FieldParams.resolution=12", kind=kind)
        made = initial_field(config, torch.Generator(), CPU)
        assert parameter_count(config) == sum(parameter.numel() for parameter in made.parameters())


def test_smaller_plans_render_fewer_rays_at_once_and_the_estimate_follows():
    config = settings("image_w=512", "FieldParams.samples=64", kind="hash")
    rays = [rays_at_once(config, plan) for plan in ("8gb", "12gb", "24gb", "max")]
    assert rays == sorted(set(rays)) and rays[0] >= 1
    small, large = (sum(field_bytes(config, chunk).values()) for chunk in (rays[0], rays[-1]))
    assert small < large
    refuse_too_large(config, CPU)
