"""What VDM has beyond the paper: bins over t, a learned coefficient, a warm start, an update before use."""

import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from arguments import GuidanceParams
from guidance import ViewPrompts, build_guidance
from guidance.bins import MEMORY, TimestepBins
from guidance.warm_start import load_part
from tests.settings import config_of
from tests.tiny_models import LatentPrior
from utils import checkpoint
from utils.errors import UserError

VIEWS, SIZE = 2, 16


class Encoder:
    """Text whose embedding is its length."""

    def encode_text(self, texts):
        return torch.tensor([[[float(len(text))]] for text in texts])


def build(seed=1, prior=None, **settings):
    config = config_of(text="a car", **{"perpneg": False, "weighting": "uniform", **settings})
    prior = prior or LatentPrior(lambda noisy, timesteps, text: 0.9 * noisy)
    return build_guidance(config, prior, torch.Generator().manual_seed(seed))


def at(timestep):
    share = (timestep - 1) / 1000 + 1e-6
    return {"t_range": (share, share), "max_t_range": share}


def step_of(guidance, seed=0):
    images = torch.randn(VIEWS, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2)).requires_grad_()
    text = ViewPrompts(Encoder(), guidance.params)(torch.zeros(VIEWS))
    output = guidance(images, text, 1, torch.Generator().manual_seed(seed))
    torch.stack(list(output.losses.values())).sum().backward()
    return output, images.grad


def test_the_bins_hold_running_means_of_their_own_timesteps():
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    bins = TimestepBins(1000)
    bins.update(torch.tensor([150, 950]), torch.stack([noise[0], -noise[1]]), noise)
    error = 4 * noise[1].square().mean().item()
    expected = torch.ones(10)
    expected[1], expected[9] = MEMORY, MEMORY + (1 - MEMORY) * error
    assert torch.allclose(bins.error, expected)
    assert bins.correlation[1].item() == pytest.approx(1 - MEMORY, rel=1e-4)
    assert bins.correlation[9].item() == pytest.approx(MEMORY - 1, rel=1e-4)
    assert bins.stats("operator")["operator_error/t100-199"].item() == pytest.approx(MEMORY)
    assert bins.error_at(torch.tensor([199, 200])).tolist() == pytest.approx([MEMORY, 1])


def test_bins_forget_nothing_through_numbers_that_are_not_finite():
    bins = TimestepBins(1000)
    bins.update(torch.tensor([5]), torch.full((1, 3, 8, 8), torch.nan), torch.zeros(1, 3, 8, 8))
    assert bins.error.tolist() == [1.0] * 10 and bins.correlation.tolist() == [0.0] * 10


def test_the_log_shows_where_the_operator_has_learned_the_noise():
    """One static render: M_ψ comes to know its noise, and the error of that range of t falls."""
    guidance = build(operator="linear", operator_lr=0.05, **at(950))
    for seed in range(40):
        output, _ = step_of(guidance, seed)
        guidance.optimizer.step()
        guidance.optimizer.zero_grad()
    stats = output.stats
    assert stats["operator_error/t900-999"] < 0.3 and stats["operator_error/t000-099"] == 1
    assert stats["operator_correlation/t900-999"] > 0.7


def test_the_learned_coefficient_is_what_the_operator_explains():
    guidance = build(operator="linear", dca_learned=True, **at(350))
    guidance.bins.error.fill_(0.4)
    output, gradient = step_of(guidance)
    weight = 1 - guidance.bins.error[3].item()
    mapped = output.residual.predicted.cond  # the linear operator starts as the identity
    assert torch.allclose(gradient, output.residual.guided_noise - weight * mapped, atol=1e-4)
    assert output.stats["dca_weight"].item() == pytest.approx(weight)
    guidance.bins.error.fill_(40.0)
    assert step_of(guidance)[0].stats["dca_weight"] == 0


def test_without_dca_there_is_no_learned_coefficient():
    guidance = build(operator="linear", dca=False, dca_learned=True, **at(200))
    assert step_of(guidance)[0].stats["dca_weight"] == 1


def test_looking_ahead_shows_the_image_the_operator_after_its_update():
    ahead, behind = (build(operator="ulite", lookahead=value, **at(500)) for value in (True, False))
    output, gradient = step_of(ahead)
    assert set(output.losses) == {"vdm"} and all(each.grad is None for each in ahead.degradation.parameters())
    plain, expected = step_of(behind)
    behind.optimizer.step()
    assert torch.equal(output.stats["operator_error"], plain.stats["operator_error"])
    assert all(map(torch.equal, ahead.degradation.parameters(), behind.degradation.parameters()))
    assert not torch.allclose(gradient, expected, atol=1e-3)
    updated = behind.degradation(output.residual.predicted.cond, output.draw.timesteps).detach()
    assert torch.allclose(gradient, output.residual.guided_noise - updated, atol=1e-5)


def test_looking_ahead_never_learns_from_what_is_not_finite():
    guidance = build(operator="linear", lookahead=True, prior=LatentPrior(lambda x, t, y: x * torch.nan))
    before = [each.detach().clone() for each in guidance.degradation.parameters()]
    output, _ = step_of(guidance)
    assert not output.losses["vdm"].isfinite()
    assert all(map(torch.equal, before, guidance.degradation.parameters()))


def test_an_operator_starts_where_another_run_ended(tmp_path):
    trained = build(seed=5)
    checkpoint.save(tmp_path / "run" / "checkpoints", 7, {"guidance": trained.state_dict()})
    save_file(dict(trained.degradation.state_dict()), tmp_path / "operator.safetensors")
    for source in ("run", "operator.safetensors"):
        started = build(seed=6, operator_init=str(tmp_path / source))
        assert all(map(torch.equal, trained.degradation.parameters(), started.degradation.parameters()))
        assert torch.equal(started.bins.error, torch.ones(10))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "expected a run's folder or a .safetensors file"),
        ("pipe", "which is neither; correct the path"),
        ("half.safetensors", "a damaged or half-copied one"),
        ("empty", "which has none; correct the path"),
        ("other.safetensors", "expected weights of this degradation, got others"),
    ],
)
def test_a_start_that_cannot_be_used_is_one_line(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "half.safetensors").write_bytes(b"half")
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=message) as caught:
        load_part(nn.Linear(3, 3), str(tmp_path / name), "degradation", "VDMParams.operator_init")
    assert "\n" not in str(caught.value) and "VDMParams.operator_init" in str(caught.value)


@pytest.mark.parametrize(("base", "length"), [("negative", 4), ("empty", 0)])
def test_the_base_of_guidance_is_the_negative_or_the_empty_prompt(base, length):
    params = GuidanceParams(
        text="a car", negative="ugly", inverse_text="an object", cfg_base=base, perpneg=False
    )
    text = ViewPrompts(Encoder(), params)(torch.zeros(VIEWS))
    assert text.base.flatten().tolist() == [length] * VIEWS
    shared = [text.rows(name)[0].item() for name in ("subject", "negative", "empty", "inverse")]
    assert shared == [5, 4, 0, 9]
    assert text.positive.flatten().tolist() == [len("a car, front view")] * VIEWS


@pytest.mark.parametrize("views", [False, True])
def test_a_picture_has_no_view_words_and_an_object_need_not_have_them(views):
    """DreamGaussian encodes the prompt alone, whatever the camera (main.py:267)."""
    params = GuidanceParams(text="a car", perpneg=True, view_words=not views)
    text = ViewPrompts(Encoder(), params, views=views)(torch.tensor([0.0, 90.0]))
    assert text.positive.flatten().tolist() == [5, 5]
    assert text.negatives.shape == (2, 0, 1, 1) and text.negative_weights.shape == (2, 0)
