"""VDM, DCA and SDS: the identities that the paper's algebra promises, on priors whose score is known exactly."""

import pytest
import torch
from torch import nn

from guidance import build_guidance
from guidance.prompts import ViewText
from tests.settings import config_of
from tests.tiny_models import LatentPrior, alphas_cumprod, one_point_denoiser

VIEWS, SIZE = 2, 16
OPERATOR = {"operator": "linear", "perpneg": False}


def text_of(views=VIEWS):
    """Text whose only number is 1 for the prompt and 0 for the base."""
    branch = torch.ones(views, 1, 1)
    return ViewText(branch, 0 * branch, torch.zeros(views, 0, 1, 1), torch.zeros(views, 0))


def two_predictions(noisy_latents, timesteps, text):
    """A prior that disagrees with itself about prompt and base: e_y = 0.9 x_t, e_0 = tanh x_t."""
    prompted = text.view(-1, 1, 1, 1)
    return prompted * 0.9 * noisy_latents + (1 - prompted) * noisy_latents.tanh()


def run(settings, *, prior=None, degradation=None, seed=0, step=1, images=None):
    """One step; returns the output, the images with their gradient, and the guidance."""
    prior = prior or LatentPrior(two_predictions)
    config = config_of(**{**OPERATOR, **settings})
    guidance = build_guidance(config, prior, torch.Generator().manual_seed(1))
    if degradation is not None:
        guidance.degradation = degradation
    if images is None:
        images = torch.randn(VIEWS, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    images = images.clone().requires_grad_()
    output = guidance(images, text_of(len(images)), step, torch.Generator().manual_seed(seed))
    sum(output.losses.values()).backward()
    return output, images, guidance


class Constant(nn.Module):
    """M that ignores its input."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(value)

    def forward(self, noise_pred, timesteps):
        return self.value.expand_as(noise_pred)


class Identity(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, noise_pred, timesteps):
        return self.one * noise_pred


def weight(output):
    """ω(t) of LucidDreamer at the timestep that was drawn."""
    value = alphas_cumprod()[output.draw.timesteps].view(-1, 1, 1, 1)
    return ((1 - value) / value).sqrt().float()


def finite(output):
    return torch.stack(list(output.losses.values())).sum().isfinite()


def test_with_the_true_noise_and_lambda_1_vdm_is_sds():
    sds, expected, _ = run({"guidance": "sds"})
    _, images, _ = run({"dca": False}, degradation=Constant(sds.draw.noise))
    assert torch.allclose(images.grad, expected.grad, atol=1e-4)


def test_without_operator_vdm_is_the_weighted_guided_noise():
    output, images, _ = run({}, degradation=Constant(torch.zeros(())))
    predicted = output.residual.predicted
    guided = predicted.base + 7.5 * (predicted.cond - predicted.base)
    assert torch.allclose(images.grad, weight(output) * guided, rtol=1e-5, atol=1e-5)


def test_with_the_identity_vdm_is_the_classifier_direction():
    output, images, _ = run({"dca": False, "guidance_scale": 7.5}, degradation=Identity())
    predicted = output.residual.predicted
    expected = weight(output) * 6.5 * (predicted.cond - predicted.base)
    assert torch.allclose(images.grad, expected, rtol=1e-4, atol=1e-4)


def test_lambda_scales_the_operator_only():
    settings = {"t_range": (0.199, 0.199), "max_t_range": 0.199}
    mapped = torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    output, images, _ = run(settings, degradation=Constant(mapped))
    assert output.draw.timesteps.tolist() == [200] * VIEWS
    predicted = output.residual.predicted
    guided = predicted.base + 7.5 * (predicted.cond - predicted.base)
    annealed = (1 - alphas_cumprod()[200]).float() * mapped
    assert torch.allclose(images.grad, weight(output) * (guided - annealed), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cutoff", [100, 300, 500])
def test_the_cutoff_moves_vdm_along_the_line_from_no_operator_to_the_whole(cutoff):
    """λ_t is the share of the way; without the operator the mean is that of SDS, where a large cut-off leads."""
    mapped = torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    time = {"t_range": (0.199, 0.199), "max_t_range": 0.199}

    def gradient(value, **settings):
        return run(time | settings, degradation=Constant(value))[1].grad

    none, whole = gradient(torch.zeros(())), gradient(mapped, dca=False)
    share = 1 - alphas_cumprod()[200].item() if cutoff >= 200 else 1.0
    expected = (1 - share) * none + share * whole
    assert torch.allclose(gradient(mapped, dca_cutoff=cutoff), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("timestep", "cutoff", "total"), [(300, 300, 0.5905), (301, 300, 0.0), (300, 100, 0.0)]
)
def test_coefficients_sum_to_zero_and_to_abar_where_annealed(timestep, cutoff, total):
    """Where every prediction is the same constant, what is left of it is the sum of the coefficients."""
    share = (timestep - 1) / 1000
    prior = LatentPrior(lambda noisy, timesteps, text: torch.ones_like(noisy))
    settings = {"t_range": (share, share), "max_t_range": share, "dca_cutoff": cutoff}
    output, _, _ = run(settings, prior=prior, degradation=Identity())
    assert output.draw.timesteps[0] == timestep
    assert output.residual.value.mean().item() == pytest.approx(total, abs=5e-5)


def test_lambda_0_has_the_mean_of_sds():
    """E[ε] = 0: dropping the noise changes the variance and not the mean (exact for any score model)."""
    image = torch.full((1, 3, SIZE, SIZE), 0.5)
    share = {"t_range": (0.3, 0.3), "max_t_range": 0.3, "dca": False}
    means = []
    for settings, degradation in (({"guidance": "sds"}, None), ({}, Constant(torch.zeros(())))):
        output, images, _ = run(
            share | settings, degradation=degradation, images=image.expand(64, -1, -1, -1)
        )
        means.append((images.grad / weight(output)).mean().item())
    elements = 64 * 3 * SIZE * SIZE
    assert means[0] == pytest.approx(means[1], abs=5 / elements**0.5)
    assert abs(means[1]) > 0.5


def test_losses_reach_disjoint_parameters():
    settings = {"operator": "ulite"}
    output, images, guidance = run(settings)
    psi = list(guidance.degradation.parameters())
    assert images.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in psi)

    leaf = torch.randn(VIEWS, 3, SIZE, SIZE, requires_grad=True)
    output = guidance(leaf, text_of(), 1, torch.Generator().manual_seed(0))
    from_vdm = torch.autograd.grad(output.losses["vdm"], [leaf, *psi], allow_unused=True, retain_graph=True)
    from_operator = torch.autograd.grad(output.losses["degradation"], [leaf, *psi], allow_unused=True)
    assert from_vdm[0] is not None and all(gradient is None for gradient in from_vdm[1:])
    assert from_operator[0] is None and all(gradient is not None for gradient in from_operator[1:])


def test_the_injected_gradient_is_the_residual_times_weight_and_lambda_guidance():
    output, images, _ = run({"lambda_guidance": 0.1})
    assert torch.allclose(images.grad, 0.1 * weight(output) * output.residual.value, rtol=1e-6)
    gradient = images.grad
    assert output.losses["vdm"].item() == pytest.approx(
        0.5 * gradient.square().sum().item() / VIEWS, rel=1e-4
    )


def test_the_operator_learns_the_noise_of_the_very_same_draw():
    output, _, _ = run({}, degradation=Identity())
    expected = (output.residual.predicted.cond - output.draw.noise).square().mean()
    assert output.losses["degradation"].item() == pytest.approx(expected.item(), rel=1e-3)


def test_the_operator_can_read_the_guided_noise():
    output, _, _ = run({"operator_input": "cfg"}, degradation=Identity())
    expected = (output.residual.guided_noise - output.draw.noise).square().mean()
    assert output.losses["degradation"].item() == pytest.approx(expected.item(), rel=1e-3)


def test_the_papers_guidance_at_s_is_the_standard_at_s_plus_1():
    _, paper, _ = run({"cfg_form": "paper", "guidance_scale": 7.5})
    _, standard, _ = run({"cfg_form": "standard", "guidance_scale": 8.5})
    assert torch.equal(paper.grad, standard.grad)


def test_guidance_asks_the_score_model_twice_a_view_and_once_in_all():
    prior = LatentPrior(two_predictions)
    run({"operator": "ulite"}, prior=prior)
    assert prior.calls == [2 * VIEWS]


def test_fixed_noise_is_the_same_at_every_step_and_fresh_noise_is_not():
    def noises(**settings):
        return [run({"guidance": "sds", **settings}, seed=seed)[0].draw.noise for seed in (0, 1)]

    first, second = noises(fix_noise=True)
    assert torch.allclose(first, second, atol=1e-4)
    first, second = noises(fix_noise=False)
    assert not torch.allclose(first, second, atol=0.1)


def test_a_score_that_is_not_finite_is_reported_and_not_hidden():
    prior = LatentPrior(lambda noisy, timesteps, text: noisy * torch.nan)
    for settings in ({}, {"guidance": "sds"}):
        output, images, _ = run(settings, prior=prior)
        assert not finite(output)
        assert images.grad.isnan().all()
    assert finite(run({})[0])


@pytest.mark.parametrize(
    "settings", [{"guidance": "sds"}, {"operator": "ulite_noise"}, {"operator": "linear"}]
)
def test_guidance_pulls_a_latent_to_the_only_point_of_the_data(settings):
    rng = torch.Generator().manual_seed(0)
    point = torch.randn(3, SIZE, SIZE, generator=rng)
    config = config_of(**{**OPERATOR, "guidance_scale": 1.0, "weighting": "sds", **settings})
    guidance = build_guidance(config, one_point_denoiser(point), rng)
    latent = nn.Parameter(torch.randn(1, 3, SIZE, SIZE, generator=rng))
    start = (latent - point).norm().item()
    optimizers = [torch.optim.Adam([latent], lr=0.2)] + ([guidance.optimizer] if guidance.optimizer else [])
    for step in range(25):
        for optimizer in optimizers:
            optimizer.zero_grad()
        sum(guidance(latent, text_of(1), 1500 + step, rng).losses.values()).backward()
        for optimizer in optimizers:
            optimizer.step()
    assert (latent - point).norm().item() < 0.35 * start


def test_training_resumes_with_the_same_bits():
    def optimize(guidance, rng, steps):
        for step in range(steps):
            images = torch.randn(VIEWS, 3, SIZE, SIZE, generator=rng, requires_grad=True)
            output = guidance(images, text_of(), step, rng)
            guidance.optimizer.zero_grad()
            sum(output.losses.values()).backward()
            guidance.optimizer.step()

    def fresh(seed):
        config = config_of(operator="ulite", m_time="film", perpneg=False)
        return build_guidance(config, LatentPrior(two_predictions), torch.Generator().manual_seed(seed))

    rng, whole = torch.Generator().manual_seed(0), fresh(1)
    optimize(whole, rng, 2)
    psi, adam, dice = whole.state_dict(), whole.optimizer.state_dict(), rng.get_state()
    psi = {name: value.clone() for name, value in psi.items()}
    adam["state"] = {index: {k: v.clone() for k, v in each.items()} for index, each in adam["state"].items()}
    optimize(whole, rng, 2)

    resumed = fresh(2)
    resumed.load_state_dict(psi)
    resumed.optimizer.load_state_dict(adam)
    rng.set_state(dice)
    optimize(resumed, rng, 2)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    assert not any("score_model" in name for name in psi)


def test_what_comes_out_beside_the_losses_holds_no_graph_and_makes_pictures():
    point = torch.rand(3, SIZE, SIZE)
    output, _, guidance = run({}, prior=one_point_denoiser(point))
    held = [vars(each) for each in (output.draw, output.residual, output.residual.predicted)]
    tensors = [value for each in [*held, output.stats] for value in each.values() if torch.is_tensor(value)]
    assert len(tensors) > 15 and not any(value.requires_grad for value in tensors)
    assert not output.residual.losses and output.losses["degradation"].requires_grad
    base, guided = guidance.predicted_images(output)
    assert torch.allclose(base, point.expand_as(base), atol=1e-3)
    assert torch.allclose(guided, point.expand_as(guided), atol=1e-2)


def test_perpendicular_negatives_move_the_gradient_sideways_only():
    branch = torch.ones(VIEWS, 1, 1)
    negatives = torch.stack([2 * branch, 3 * branch], dim=1)
    weights = torch.tensor([[-2.0, -0.5], [0.0, 0.0]])
    prior = LatentPrior(
        lambda noisy, timesteps, text: noisy * (1 + text[..., None]).log() + text[..., None].sin()
    )
    guidance = build_guidance(config_of(guidance="sds"), prior)
    images = torch.randn(VIEWS, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))

    def guided(weights):
        text = ViewText(branch, 0 * branch, negatives, weights)
        output = guidance(images.clone().requires_grad_(), text, 1, torch.Generator().manual_seed(0))
        predicted = output.residual.predicted
        return output.residual.guided_noise, predicted.cond - predicted.base

    plain, direction = guided(torch.zeros(VIEWS, 2))
    pushed, _ = guided(weights)
    assert prior.calls == [4, 6]
    assert torch.equal(pushed[1], plain[1])
    assert (pushed[0] - plain[0]).abs().max() > 0.1
    cosine = torch.cosine_similarity((pushed[0] - plain[0]).flatten(), direction[0].flatten(), dim=0)
    assert abs(cosine.item()) < 1e-4


def test_build_guidance_follows_the_settings():
    prior = LatentPrior(two_predictions)

    def built(**settings):
        return type(build_guidance(config_of(**settings), prior)).__name__

    assert built() == built(guidance="vdm") == "VDMGuidance"
    assert built(sds=True) == built(guidance="sds") == "SDSGuidance"
