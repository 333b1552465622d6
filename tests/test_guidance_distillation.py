"""The algebra that the losses share: pure functions."""

import pytest
import torch

from guidance.distillation import classifier_free, correlation, perpendicular_negatives, with_gradient
from guidance.noise import sample_noise
from guidance.predictions import Predictions, predict
from guidance.prompts import ViewText
from tests.tiny_models import LatentPrior
from tests.tolerances import NETWORK


def latents(count=2, seed=0, views=3):
    return torch.randn(count, views, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_standard_guidance_is_that_of_diffusers():
    base, cond = latents()
    assert torch.allclose(classifier_free(base, cond - base, 7.5), base + 7.5 * (cond - base))


def test_the_papers_form_is_equation_4_and_the_standard_form_at_s_plus_1():
    base, cond = latents().double()
    paper = classifier_free(base, cond - base, 7.5, "paper")
    assert torch.allclose(paper, cond + 7.5 * (cond - base))
    assert torch.allclose(paper, classifier_free(base, cond - base, 8.5))


@pytest.mark.parametrize("form", ["standard", "paper"])
def test_guidance_coefficients_sum_to_one(form):
    same = latents(1)[0]
    assert torch.allclose(classifier_free(same, same - same, 7.5, form), same)


def test_negatives_push_only_sideways():
    direction, first, second = latents(3)
    weights = torch.tensor([[-2.0, -0.5]]).expand(3, 2)
    pushed = perpendicular_negatives(direction, torch.stack([first, second], dim=1), weights)
    change = ((pushed - direction) * direction).sum(dim=(1, 2, 3))
    assert torch.allclose(change, torch.zeros(3), atol=1e-3)


def test_a_negative_along_the_positive_changes_nothing():
    direction = latents(1)[0]
    parallel = perpendicular_negatives(direction, 3 * direction[:, None], torch.full((3, 1), -2.0))
    assert torch.allclose(parallel, direction, atol=1e-5)


def test_a_perpendicular_negative_is_subtracted_whole():
    direction, other = torch.zeros(2, 1, 4, 8, 8)
    direction[:, 0], other[:, 1] = 1.0, 1.0
    pushed = perpendicular_negatives(direction, other[:, None], torch.tensor([[-2.0]]))
    assert torch.equal(pushed, direction - 2 * other)


def test_the_injected_gradient_is_exact_and_summed_over_views():
    clean, gradient = latents()
    clean.requires_grad_()
    loss = with_gradient(clean, gradient)
    loss.backward()
    assert torch.equal(clean.grad, gradient)
    assert loss.item() == pytest.approx(0.5 * gradient.square().sum().item() / 3, rel=1e-5)


def test_a_gradient_that_is_not_finite_shows_in_the_loss():
    clean = latents(1)[0].requires_grad_()
    gradient = torch.zeros_like(clean)
    gradient[0, 0, 0, 0] = torch.nan
    assert not with_gradient(clean, gradient).isfinite()


def test_correlation_of_noise_with_itself_and_with_other_noise():
    first, second = torch.randn(2, 4, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    assert correlation(first, 3 * first + 1).item() == pytest.approx(1, abs=1e-5)
    assert correlation(first, -first).item() == pytest.approx(-1, abs=1e-5)
    assert abs(correlation(first, second).item()) < 0.02


def test_noise_is_standard_normal_and_its_offset_is_one_number_a_channel():
    like = torch.zeros(4, 4, 64, 64)
    plain = sample_noise(like, torch.Generator().manual_seed(0))
    offset = sample_noise(like, torch.Generator().manual_seed(0), offset=0.1) - plain
    assert plain.std().item() == pytest.approx(1, abs=0.02)
    assert torch.allclose(offset, offset[:1, :, :1, :1].expand_as(offset), atol=1e-6)
    assert offset[0, :, 0, 0].unique().numel() == 4


def test_predictions_without_negatives_are_plain_guidance():
    base, cond = latents()
    predictions = Predictions(cond, base, base[:, None][:, :0], torch.zeros(3, 0))
    assert torch.allclose(predictions.guided(7.5), base + 7.5 * (cond - base))


@pytest.fixture
def text():
    """Three views whose branches are told apart by their text: base 0, positive 1, negatives 2 and 3."""
    branch = torch.ones(3, 1, 1)
    weights = torch.tensor([[-2.0, 0.0], [1e-5, 0.0], [-1.0, -0.5]])
    return ViewText(branch, 0 * branch, torch.stack([2 * branch, 3 * branch], dim=1), weights)


def test_all_branches_come_from_one_call_and_negligible_ones_from_none(text):
    prior = LatentPrior(lambda noisy, timesteps, text: noisy + text[..., None])
    noisy = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 3, 16, 16) * 10
    predictions = predict(prior, noisy, torch.tensor([1, 2, 3]), text)

    assert prior.calls == [3 + 3 + 3]
    assert torch.equal(predictions.base, noisy)
    assert torch.equal(predictions.cond, noisy + 1)
    assert torch.equal(predictions.negatives[2, 0], noisy[2] + 2)
    assert torch.equal(predictions.negatives[2, 1], noisy[2] + 3)
    assert torch.equal(predictions.negatives[1], predictions.base[1].expand(2, -1, -1, -1))


def test_a_skipped_branch_does_not_count(text):
    prior = LatentPrior(
        lambda noisy, timesteps, text: noisy.roll(text[..., None].long()[0, 0, 0, 0].item(), -1)
    )
    noisy = latents(1)[0][:, :3].repeat(1, 1, 2, 2)
    predictions = predict(prior, noisy, torch.tensor([1, 2, 3]), text)
    plain = predictions.base + 7.5 * (predictions.cond - predictions.base)
    assert torch.allclose(predictions.guided(7.5)[1], plain[1], atol=NETWORK[torch.float32])
