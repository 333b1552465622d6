"""Table 1: the bracket of every method against its closed form, and the identities between methods."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from arguments import GuidanceParams
from arguments.groups.guidance import METHODS
from guidance import build_guidance
from guidance.ism import Inverted
from guidance.prompts import SharedText, ViewPrompts, ViewText
from tests.settings import config_of
from tests.tiny_models import LatentPrior, StandIn, alphas_cumprod, one_point_denoiser

VIEWS, SIZE = 2, 16
POSITIVE, NEGATIVE, EMPTY, SUBJECT, INVERSE = 1.0, 2.0, 0.0, 3.0, 4.0
PLAIN = {"perpneg": False, "weighting": "uniform", "operator": "linear"}
TRAINED = ("vsd", "dreamflow", "asd", "lods", "lods_lora")


def text_of(views=VIEWS, poses=None):
    """Texts that are told apart by their only number."""
    one = torch.ones(1, 1)
    shared = SharedText(SUBJECT * one, NEGATIVE * one, EMPTY * one, INVERSE * one)
    rows = torch.ones(views, 1, 1)
    return ViewText(
        POSITIVE * rows, NEGATIVE * rows, torch.zeros(views, 0, 1, 1), torch.zeros(views, 0), shared, poses
    )


def opinion(noisy_latents, timesteps, text):
    """A prediction that differs for every text and every t, and is not linear."""
    code = text.reshape(-1, 1, 1, 1)
    level = timesteps.view(-1, 1, 1, 1) / 1000
    return (0.8 + 0.05 * code) * (noisy_latents * (1 + 0.2 * code * level)).tanh() + (
        0.3 * code
    ).sin() * level


def at(timestep):
    """Settings that draw this t and no other."""
    share = (timestep - 1) / 1000 + 1e-6
    return {"t_range": (share, share), "max_t_range": share}


def build(method, prior=None, iterations=100, **settings):
    config = config_of(**{"guidance": method, "iterations": iterations, **PLAIN, **settings})
    return build_guidance(config, prior or LatentPrior(opinion), torch.Generator().manual_seed(1))


def pictures():
    return torch.randn(VIEWS, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))


def step_of(guidance, step=1, seed=0, text=None):
    """One step; returns the output and the gradient at the images."""
    images = pictures().requires_grad_()
    output = guidance(images, text or text_of(), step, torch.Generator().manual_seed(seed))
    sum(output.losses.values()).backward()
    return output, images.grad


def finite(output):
    return torch.stack(list(output.losses.values())).sum().isfinite()


def asked(output, code):
    """ε_φ at the output's x_t and t for one text."""
    views = len(output.draw.latents)
    return opinion(output.draw.noisy_latents, output.draw.timesteps, torch.full((views, 1, 1), code))


def true_noise(noisy_latents, timesteps, _text=None, _poses=None):
    """A LoRA that knows the renders: its optimum where there is one static view."""
    value = alphas_cumprod()[timesteps].view(-1, 1, 1, 1)
    return ((noisy_latents - value.sqrt() * pictures()) / (1 - value).sqrt()).float()


def close(left, right):
    return torch.allclose(left, right, rtol=1e-4, atol=2e-4)


def test_every_word_of_the_setting_is_a_file_with_its_method():
    for name in METHODS:
        method = build(name)
        assert method.name == name and type(method).__module__ == f"guidance.{name}"
    files = {path.stem for path in (Path(__file__).parents[1] / "guidance").glob("*.py")}
    assert set(METHODS) <= files


@pytest.mark.parametrize(
    ("method", "timestep", "step", "total"),
    [
        *((name, 500, 1, 0.0) for name in METHODS if name != "vdm"),
        ("vdm", 500, 1, 0.0),
        ("vdm", 300, 1, 0.5905),
        ("csd", 500, 30, 0.0),
        ("csd", 500, 99, 0.0),
        ("nfsd", 200, 1, 0.0),
        ("nfsd", 199, 1, 1.0),
        ("ssd", 301, 1, 0.0),
    ],
)
def test_the_sum_of_a_methods_coefficients(method, timestep, step, total):
    """Where every prediction and the noise are the same constant, the sum of the coefficients is left of them."""
    guidance = build(
        method, LatentPrior(lambda noisy, timesteps, text: torch.ones_like(noisy)), **at(timestep)
    )
    guidance.sample_noise = lambda latents, rng: torch.ones_like(latents)
    if hasattr(guidance, "lora"):
        guidance.lora = StandIn(lambda noisy, *rest: torch.ones_like(noisy))
    if method == "lmc":
        guidance.trained.fill_(True)
        guidance.corrected = lambda draw: torch.ones_like(draw.latents)
    output, _ = step_of(guidance, step)
    if method not in ("dreamflow", "consistent3d"):
        assert output.draw.timesteps[0] == timestep
    assert output.residual.value.mean().item() == pytest.approx(total, abs=5e-5)
    assert output.residual.value.std().item() < 1e-4


def test_vsd_with_the_true_noise_is_sds():
    guidance = build("vsd")
    guidance.lora = StandIn(true_noise)
    assert close(step_of(guidance)[1], step_of(build("sds"))[1])


def test_vsds_residual_is_the_guided_noise_minus_the_loras_for_the_bare_prompt_and_the_camera():
    poses = torch.randn(VIEWS, 4, 4, generator=torch.Generator().manual_seed(5))
    told = []

    def noise(noisy_latents, timesteps, text, given):
        told.append((text.flatten().tolist(), given))
        return 0.3 * noisy_latents

    guidance = build("vsd", lora_camera_dropout=1.0)
    guidance.lora = StandIn(noise)
    output, gradient = step_of(guidance, text=text_of(poses=poses))
    expected = output.residual.guided_noise - 0.3 * output.draw.noisy_latents
    assert close(gradient, expected)
    (texts, first), (_, second) = told
    assert texts == [SUBJECT] * VIEWS and torch.equal(first, poses)
    assert torch.equal(second, torch.zeros_like(poses))  # the LoRA's own step, with the camera withheld


def test_the_lora_learns_the_noise_of_a_draw_of_its_own():
    guidance = build("vsd", **at(500))
    drawn = []
    guidance.lora = StandIn(lambda x, t, y, c: drawn.append((x, t)) or x)
    output, _ = step_of(guidance)
    (_, shown), (noisy, timesteps) = drawn
    assert shown.tolist() == [500, 500] and timesteps.unique().numel() == VIEWS
    expected = (noisy - true_noise(noisy, timesteps)).square().mean()
    assert output.losses["lora"].item() == pytest.approx(expected.item(), rel=1e-3)


def test_the_loras_learning_rate_rises_over_the_warm_up():
    guidance = build("vsd", lora_lr=1e-4, lora_warmup_iter=50)
    rates = []
    for step in (1, 25, 50, 90):
        step_of(guidance, step)
        rates.append(guidance.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([2e-6, 5e-5, 1e-4, 1e-4])


PUBLISHED_OPTIMIZERS = {
    # betas, eps, weight decay; method: file and line of the source. LODS's LoRA has AdamW's decay there, which at its
    # rate of 5e-7 takes 1e-5 of a weight in a run
    "vsd": ((0.9, 0.999), 1e-8, 0.01),  # thu-ml/prolificdreamer, nerf/utils.py: optim.AdamW as it comes
    "asd": ((0.9, 0.99), 1e-15, 0.01),  # 2y7c3/ASD, systems/asd_3dgs.py:55
    "lods": ((0.9, 0.99), 1e-15, 0.0),  # yangxiaofeng/LODS, systems/lods_gs.py:498
    "lods_lora": ((0.9, 0.99), 1e-15, 0.0),  # configs/lods-ngp-lora.yaml: optimizer
}


@pytest.mark.parametrize("method", PUBLISHED_OPTIMIZERS)
def test_an_estimators_optimizer_is_its_sources(method):
    (group,) = build(method).optimizer.param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == PUBLISHED_OPTIMIZERS[method]


def test_asd_with_gamma_0_is_vsd():
    (asd, gradient), (vsd, expected) = (step_of(build(name, asd_gamma=0.0)) for name in ("asd", "vsd"))
    assert torch.equal(gradient, expected)
    assert asd.losses["lora"].item() == pytest.approx(vsd.losses["lora"].item(), rel=1e-6)


@pytest.mark.parametrize("gamma", [-0.75, -0.5, 0.5])
def test_asds_discriminator_is_at_rest_beyond_the_noise_away_from_the_prompts_prediction(gamma):
    guidance = build("asd", asd_gamma=gamma)
    fresh = guidance.redraw(guidance.draw(pictures(), text_of(), 1, torch.Generator().manual_seed(0)))
    noise_cond = opinion(fresh.noisy_latents, fresh.timesteps, fresh.text.positive)
    best = ((fresh.noise + gamma * noise_cond) / (1 + gamma)).requires_grad_()
    guidance.lora_noise = lambda draw, poses: best
    guidance.lora_loss(fresh).backward()
    assert best.grad.abs().max() < 1e-8
    guidance.lora_noise = lambda draw, poses: noise_cond
    at_cond = guidance.lora_loss(fresh)
    guidance.lora_noise = lambda draw, poses: best.detach()
    assert guidance.lora_loss(fresh) < at_cond


def test_dreamflow_is_vsd_at_a_time_of_its_own():
    guidance = build("dreamflow", dreamflow_t_range=(0.2, 0.9))
    output, _ = step_of(guidance, 31)
    same_time, _ = step_of(build("vsd", **at(output.draw.timesteps[0].item())))
    expected = output.residual.guided_noise - output.draw.noisy_latents
    assert close(output.residual.value, expected)
    assert same_time.draw.timesteps[0] == output.draw.timesteps[0]


def test_dreamflows_time_falls_in_levels_and_its_weights_are_the_steps_between_them():
    guidance = build("dreamflow", iterations=40, dreamflow_t_range=(0.2, 0.9), dreamflow_inner_steps=5)
    draw = guidance.draw(pictures(), text_of(), 1, torch.Generator())
    times, weights = [], []
    for step in range(1, 41):
        times.append(guidance.sample_timesteps(1, step, torch.Generator()).item())
        weights.append(guidance.weight(dataclasses.replace(draw, step=step))[0].item())
    assert times == sorted(times, reverse=True) and len(set(times)) == 8
    assert times[:5] == [901] * 5 and times[5] < 901
    assert sum(weights) / 40 == pytest.approx(1, rel=1e-5)
    sigma = ((1 - alphas_cumprod()) / alphas_cumprod()).sqrt()
    steps = [(sigma[a] - sigma[b]).item() for a, b in zip(times[::5], [*times[5::5], 201], strict=True)]
    total = (sigma[901] - sigma[201]).item()
    assert weights[::5] == pytest.approx([each * 8 / total for each in steps], rel=1e-4)


@pytest.mark.parametrize("scale", [7.5, 100.0])
def test_lods_at_s_with_a_frozen_null_is_sds_over_s(scale):
    _, gradient = step_of(build("lods", lods_scale=scale))
    _, expected = step_of(build("sds", guidance_scale=scale))
    assert close(scale * gradient, expected)


def test_lods_without_limit_and_with_a_frozen_null_is_csd():
    _, gradient = step_of(build("lods", lods_scale=1e9))
    _, expected = step_of(build("csd", csd_negative=(1.0, 1.0)))
    assert close(7.5 * gradient, expected)
    with_lora = build("lods_lora", lods_scale=1e9)
    with_lora.lora = StandIn(lambda x, t, y, c: opinion(x, t, y))
    assert close(7.5 * step_of(with_lora)[1], expected)


def test_lods_learns_the_noise_of_a_draw_of_its_own():
    guidance = build("lods", **at(500))
    drawn = []

    def null_noise(draw):
        drawn.append(draw)
        return torch.zeros_like(draw.latents)

    guidance.null_noise = null_noise
    output, _ = step_of(guidance)
    (fresh,) = drawn
    assert output.draw.timesteps.tolist() == [500, 500] and fresh.timesteps.unique().numel() == VIEWS
    noise = true_noise(fresh.noisy_latents, fresh.timesteps)
    assert not close(noise, output.draw.noise)
    assert output.losses["null"].item() == pytest.approx(noise.square().mean().item(), rel=1e-3)


def test_lods_learns_the_null_text_and_moves_it_from_the_negative_prompts():
    guidance = build("lods", lods_lr=0.1)
    before, _ = step_of(guidance)
    assert guidance.null_offset.grad.abs().sum() > 0
    guidance.optimizer.step()
    after, _ = step_of(guidance)
    assert torch.equal(before.residual.predicted.base, asked(before, NEGATIVE))
    assert not close(after.residual.predicted.base, before.residual.predicted.base)
    assert torch.equal(after.residual.predicted.cond, before.residual.predicted.cond)


def test_lmc_with_a_corrective_that_changes_nothing_is_sds():
    guidance = build("lmc")
    guidance.trained.fill_(True)
    guidance.corrective = StandIn(lambda operand, *rest: torch.zeros_like(operand))
    assert close(step_of(guidance)[1], step_of(build("sds"))[1])


@pytest.mark.parametrize("space", ["image", "noise"])
def test_lmc_with_a_perfect_imitation_is_the_guided_noise_minus_the_unconditional(space):
    """b_ψ = x̂_0 of the empty prompt: what is left is (s - 1)(ε_y - ε_n) + (ε_n + ... - ε_0) exactly."""
    guidance = build("lmc", lmc_space=space, **at(400))
    guidance.trained.fill_(True)
    noise_of_empty = lambda draw: opinion(draw.noisy_latents, draw.timesteps, draw.text.rows("empty"))  # noqa: E731
    if space == "noise":
        guidance.imitation = noise_of_empty
    else:
        guidance.imitation = lambda draw: guidance.schedule.denoised(
            draw.noisy_latents, noise_of_empty(draw), draw.timesteps
        )
    output, _ = step_of(guidance)
    assert close(output.residual.value, output.residual.guided_noise - asked(output, EMPTY))


@pytest.mark.parametrize("space", ["image", "noise"])
def test_lmcs_corrective_learns_to_imitate_the_model(space):
    guidance = build(
        "lmc",
        lmc_space=space,
        lmc_bank=4,
        lmc_sampling_steps=3,
        lmc_steps=25,
        lmc_lr=5e-3,
        guidance_scale=1.0,
    )
    draw = guidance.draw(pictures(), text_of(), 1, torch.Generator().manual_seed(0))
    bank = guidance.generate(draw)
    assert bank.shape == (4, 3, SIZE, SIZE) and bank.isfinite().all()

    def error():
        total = 0.0
        for seed in range(2):
            rng = torch.Generator().manual_seed(seed)
            sample = guidance.redraw(dataclasses.replace(draw, latents=bank[:2], rng=rng))
            noise = opinion(sample.noisy_latents, sample.timesteps, draw.text.rows("empty"))
            total += guidance.error(sample, noise).item()
        return total

    before = error()
    guidance.pretrain(draw)
    assert guidance.trained and error() < 0.9 * before
    calls = len(guidance.score_model.calls)
    step_of(guidance)
    assert guidance.score_model.calls[calls:] == [2 * VIEWS]  # it is trained once
    assert not any(each.requires_grad for each in guidance.corrective.parameters())


@pytest.mark.parametrize(
    ("step", "weight", "branches"), [(1, 0.0, 2), (26, 0.5, 3), (51, 1.0, 2), (99, 1.0, 2)]
)
def test_csd_moves_from_the_empty_to_the_negative_prompt(step, weight, branches):
    guidance = build("csd", **at(500))
    output, gradient = step_of(guidance, step)
    base = (1 - weight) * asked(output, EMPTY) + weight * asked(output, NEGATIVE)
    assert close(gradient, 7.5 * (asked(output, POSITIVE) - base))
    assert sum(guidance.score_model.calls) == branches * VIEWS


@pytest.mark.parametrize(("step", "weight"), [(1, 0.0), (26, 0.5), (99, 1.0)])
def test_csds_perp_neg_is_reckoned_from_the_negative_prompt_at_every_step(step, weight):
    """CVMI-Lab, stable_diffusion_triple_guidance.py:382-390 (and deep_floyd_simple_guidance.py): e_pos is ε_y - ε_n."""
    plain = text_of()
    views, weights = torch.tensor([5.0, 6.0]), torch.tensor([[-2.0, -0.5], [-1.0, 0.0]])
    text = dataclasses.replace(
        plain, negatives=views.view(1, 2, 1, 1).expand(VIEWS, -1, -1, -1), negative_weights=weights
    )
    guidance = build("csd", **at(500))
    output, gradient = step_of(guidance, step, text=text)
    cond, negative, empty = (asked(output, code) for code in (POSITIVE, NEGATIVE, EMPTY))
    along, sideways = cond - negative, torch.zeros_like(cond)
    for branch, view in enumerate(views.tolist()):
        other = asked(output, view) - negative
        share = (other * along).sum(dim=(1, 2, 3)) / along.square().sum(dim=(1, 2, 3))
        sideways += weights[:, branch].view(-1, 1, 1, 1) * (other - share.view(-1, 1, 1, 1) * along)
    expected = 7.5 * (cond - weight * negative - (1 - weight) * empty + sideways)
    assert (gradient - expected).norm() < 1e-4 * expected.norm()
    evaluated = (2 + (weight < 1)) * VIEWS + 3  # three of Perp-Neg's branches count
    assert sum(guidance.score_model.calls) == evaluated


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_csds_form_of_table_1(weight):
    output, gradient = step_of(build("csd", csd_form="table", csd_negative=(weight, weight)))
    cond, negative, empty = (asked(output, code) for code in (POSITIVE, NEGATIVE, EMPTY))
    assert close(gradient, cond - weight * negative + 6.5 * (cond - empty))


def test_table_1_has_csd_at_a_weight_of_1_only():
    """Its form sums to 1 - λ_s; at λ_s = 1 it is CSD with 1/s of the weight on the negative prompt."""
    _, table = step_of(build("csd", csd_form="table", csd_negative=(1.0, 1.0)))
    _, own = step_of(build("csd", csd_negative=(1 / 7.5, 1 / 7.5)))
    assert close(table, own)
    ones = LatentPrior(lambda noisy, timesteps, text: torch.ones_like(noisy))
    for weight in (0.0, 0.4, 1.0):
        _, gradient = step_of(build("csd", ones, csd_form="table", csd_negative=(weight, weight)))
        assert close(gradient, torch.full_like(gradient, 1 - weight))


@pytest.mark.parametrize(("timestep", "weight", "branches"), [(199, 0, 2), (200, 1, 3), (800, 1, 3)])
@pytest.mark.parametrize("form", ["standard", "paper"])
def test_nfsd_is_the_form_of_table_1_with_a_step_for_its_weight(timestep, weight, branches, form):
    guidance = build("nfsd", cfg_form=form, **at(timestep))
    output, gradient = step_of(guidance)
    cond, negative, empty = (asked(output, code) for code in (POSITIVE, NEGATIVE, EMPTY))
    scale = 6.5 if form == "standard" else 7.5
    assert close(gradient, cond - weight * negative + scale * (cond - empty))
    assert sum(guidance.score_model.calls) == branches * VIEWS


def test_nfsd_asks_for_the_negative_prompt_only_where_a_view_needs_it():
    guidance = build("nfsd", timestep_per_view=True)
    guidance.sample_timesteps = lambda count, step, rng: torch.tensor([150, 250])
    output, gradient = step_of(guidance)
    assert guidance.score_model.calls == [5]
    cond, negative, empty = (asked(output, code) for code in (POSITIVE, NEGATIVE, EMPTY))
    expected = empty - torch.tensor([0.0, 1.0]).view(2, 1, 1, 1) * negative + 7.5 * (cond - empty)
    assert close(gradient, expected)


def test_nfsd_evaluates_281_hundredths_a_view_on_average():
    """Of all t from 20 to 980, 180 of 961 are below the cut-off."""
    guidance, times = build("nfsd"), torch.arange(20, 981)
    guidance.sample_timesteps = lambda count, step, rng: times
    images, text = torch.randn(len(times), 3, 2, 2), text_of(len(times))
    guidance(images, text, 1, torch.Generator().manual_seed(0))
    assert sum(guidance.score_model.calls) / len(times) == pytest.approx(3 - 180 / 961)


def test_ism_by_forward_noising_with_the_noise_as_target_is_sds():
    guidance, sds = build("ism"), build("sds")

    def forward_noising(*arguments):
        draw = sds.draw(*arguments)
        return Inverted(**vars(draw), interval_noise=draw.noise)

    guidance.draw = forward_noising
    assert torch.equal(step_of(guidance)[1], step_of(sds)[1])


def test_isms_interval_is_empty_where_all_paths_are_straight():
    """With one point as data every DDIM path is a straight line: its noise is the same at s and at t."""
    guidance = build("ism", one_point_denoiser(torch.rand(3, SIZE, SIZE)), **at(700))
    output, _ = step_of(guidance)
    assert output.residual.value.abs().max() < 2e-3
    assert output.draw.timesteps.tolist() == [700] * VIEWS


@pytest.mark.parametrize(
    ("timestep", "levels"),
    [
        (601, [1, 201, 401, 501]),  # 500 below in steps of 200
        (101, [1]),
        (301, [1, 201]),
        (981, [1, 201, 401, 601, 801, 881]),
    ],
)
def test_ism_climbs_from_the_lowest_level_to_s_and_from_there_to_t(timestep, levels):
    guidance = build("ism", delta_t=100, delta_t_start=100, **at(timestep))
    visited = []
    guidance.score_model.noise_of = lambda x, t, y: (
        visited.append((t[0].item(), y[0].item())) or opinion(x, t, y)
    )
    output, _ = step_of(guidance)
    assert visited == [*((level, INVERSE) for level in levels), (timestep, NEGATIVE)]
    assert sum(guidance.score_model.calls) == VIEWS * (len(levels) + 2)
    assert close(output.residual.guided_noise, 7.5 * asked(output, POSITIVE) - 6.5 * asked(output, NEGATIVE))


@pytest.mark.parametrize(("step", "top", "average"), [(1500, 500, 4.5), (0, 980, 5.448)])
def test_isms_average_evaluations_a_view(step, top, average):
    """Over its range of t after the warm-up, and before; LucidDreamer's spends one more where s is the lowest level."""
    guidance, levels = build("ism", delta_t=50), range(20, top, 10)
    for level in levels:
        guidance.sample_timesteps = lambda count, step, rng, level=level: torch.tensor([level + 1])
        guidance(torch.randn(1, 3, 2, 2), text_of(1), step, torch.Generator().manual_seed(0))
    assert sum(guidance.score_model.calls) / len(levels) == pytest.approx(average, abs=1e-3)


def test_ism_takes_the_prediction_at_s_on_the_path_that_leads_to_t():
    guidance = build("ism", delta_t=100, delta_t_start=100, **at(301))
    output, gradient = step_of(guidance)
    schedule, rng = guidance.schedule, torch.Generator().manual_seed(0)
    torch.randint(0, 2, (1,), generator=rng)
    noise = torch.randn(VIEWS, 3, SIZE, SIZE, generator=rng)
    one, two, end = (torch.tensor([level, level]) for level in (1, 201, 301))
    inverse = torch.full((VIEWS, 1, 1), INVERSE)
    first = schedule.add_noise(pictures(), noise, one)
    second = schedule.ddim_step(first, opinion(first, one, inverse), one, two)
    target = opinion(second, two, inverse)
    assert close(output.draw.noisy_latents, schedule.ddim_step(second, target, two, end))
    assert close(gradient, output.residual.guided_noise - target)


def test_isms_inversion_is_guided_to_the_base_above_a_scale_of_1():
    guidance = build("ism", denoise_guidance_scale=3.0, delta_t=100, delta_t_start=100, **at(101))
    step_of(guidance)
    assert guidance.score_model.calls == [VIEWS, VIEWS, 2 * VIEWS]


@pytest.mark.parametrize("perpneg", [False, True])
def test_isms_interval_shrinks_over_the_warm_up(perpneg):
    guidance = build("ism", delta_t=50, delta_t_start=100, perpneg=perpneg)
    assert [guidance.interval(step) for step in (0, 1, 750, 1500, 4000)] == [
        100,
        100 if perpneg else 99,
        75,
        50,
        50,
    ]
    assert build("ism", annealing_intervals=False, delta_t=50).interval(0) == 50


@pytest.mark.parametrize(
    ("perpneg", "end", "interval"), [(False, 50, 83), (False, 25, 74), (True, 50, 83), (False, 120, 106)]
)
def test_isms_interval_is_rounded_as_luciddreamers(perpneg, end, interval):
    """guidance/sd_utils.py:376 truncates the sum, 250 (Perp-Neg) rounds the part above the end up.

    At iteration 510 of 1500 that part is 0.66 (100 - end): 33 for 50, which a product in floats has just below it.
    """
    guidance = build("ism", delta_t=end, delta_t_start=100, perpneg=perpneg)
    assert guidance.interval(510) == interval


def test_eta_keeps_the_level_of_the_noise():
    schedule = build("ism").schedule
    rng = torch.Generator().manual_seed(0)
    noise, fresh = torch.randn(2, 1, 4, 128, 128, generator=rng)
    low, high = torch.tensor([200]), torch.tensor([400])
    for start, end in ((low, high), (high, low)):
        moved = schedule.ddim_step(schedule.sigma(start) * noise, noise, start, end, fresh, 1.0)
        assert moved.std().item() == pytest.approx(schedule.sigma(end).item(), rel=0.02)
        assert not torch.allclose(moved, schedule.sigma(end) * noise, atol=0.1)


def test_ssd_above_its_cutoff_has_the_classifier_direction_alone():
    output, gradient = step_of(build("ssd", **at(301)))
    assert close(gradient, 6.5 * (output.residual.predicted.cond - output.residual.predicted.base))


def test_ssds_seeking_term_is_orthogonal_to_the_noise_and_as_large_as_the_direction():
    output, gradient = step_of(build("ssd", **at(300)))
    direction = output.residual.predicted.cond - output.residual.predicted.base
    seeking = gradient - 6.5 * direction
    noise = output.draw.noise
    assert (seeking * noise).sum(dim=(1, 2, 3)).abs().max() < 1e-3 * noise.square().sum(dim=(1, 2, 3)).max()
    assert torch.allclose(seeking.flatten(1).norm(dim=1), direction.flatten(1).norm(dim=1), rtol=1e-3)
    cond = output.residual.predicted.cond
    share = (cond * noise).sum(dim=(1, 2, 3)) / noise.square().sum(dim=(1, 2, 3))
    expected = (cond - share.view(-1, 1, 1, 1) * noise).flatten(1)
    assert (torch.cosine_similarity(seeking.flatten(1), expected) > 0.9999).all()


def test_consistent3d_of_equal_levels_is_0_and_of_others_is_not():
    guidance = build("consistent3d")
    moved, gradient = step_of(guidance)
    assert gradient.abs().max() > 1e-3
    guidance._lower = lambda step: moved.draw.timesteps[:1]
    guidance.consistent3d = dataclasses.replace(guidance.consistent3d, consistent3d_interval=(0, 1))
    assert step_of(guidance)[1].abs().max() < 1e-5


def test_consistent3d_compares_the_ends_of_an_euler_step_of_the_probability_flow():
    guidance = build("consistent3d", guidance_scale=7.5)
    output, gradient = step_of(guidance, 26)
    time = output.draw.timesteps[0].item()
    lower = 1 + round(700 - 600 * 0.25**0.5)
    assert lower + 100 <= time < lower + 300
    value = alphas_cumprod().float()
    scaled = output.draw.noisy_latents / value[time].sqrt()
    sigma = ((1 - value) / value).sqrt()
    moved = (scaled + (sigma[lower] - sigma[time]) * output.residual.guided_noise) * value[lower].sqrt()
    texts = (torch.full((VIEWS, 1, 1), code) for code in (POSITIVE, NEGATIVE))
    cond, base = (opinion(moved, torch.full((VIEWS,), lower), text) for text in texts)
    assert close(gradient, output.residual.guided_noise - (base + 7.5 * (cond - base)))


def test_consistent3ds_noise_is_one_tensor_for_all_views_and_steps_and_is_kept():
    guidance = build("consistent3d", noise_seed=3)
    first, second = (step_of(guidance, step, seed=step)[0].draw.noise for step in (1, 60))
    assert torch.allclose(first, second, atol=2e-3)
    assert torch.allclose(first[0], first[1], atol=2e-3)
    assert torch.equal(guidance.state_dict()["fixed_noise"], guidance.fixed_noise)
    assert not torch.equal(build("consistent3d", noise_seed=4).fixed_noise, guidance.fixed_noise)


def test_consistent3ds_lower_level_falls_with_the_square_root_of_progress():
    guidance = build("consistent3d", iterations=100)
    assert [guidance._lower(step).item() for step in (1, 26, 101)] == [701, 401, 101]


@pytest.mark.parametrize("method", TRAINED)
def test_what_an_estimator_learns_and_what_the_image_receives_are_disjoint(method):
    guidance = build(method)
    images = pictures().requires_grad_()
    output = guidance(images, text_of(), 1, torch.Generator().manual_seed(0))
    own = list(guidance.parameters())
    (name,) = output.losses.keys() - {method}
    from_method = torch.autograd.grad(
        output.losses[method], [images, *own], allow_unused=True, retain_graph=True
    )
    from_estimator = torch.autograd.grad(output.losses[name], [images, *own], allow_unused=True)
    assert from_method[0] is not None and all(each is None for each in from_method[1:])
    assert from_estimator[0] is None and all(each is not None for each in from_estimator[1:])
    assert {id(p) for group in guidance.optimizer.param_groups for p in group["params"]} == {
        id(p) for p in own
    }


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"dreamflow", "consistent3d"}))
def test_what_a_method_draws_beside_leaves_t_and_the_noise_of_the_next_step(method):
    """Methods are compared on the same t and ε; two have a t or an ε of their own by definition."""

    def second(name):
        guidance = build(name, lmc_bank=2, lmc_sampling_steps=1, lmc_steps=1)
        rng, seen = torch.Generator().manual_seed(0), []
        draw_noise = guidance.sample_noise
        guidance.sample_noise = lambda *arguments: seen.append(draw_noise(*arguments)) or seen[-1]
        outputs = [guidance(pictures(), text_of(), step, rng) for step in (1, 2)]
        return outputs[-1].draw.timesteps, seen[-1]

    assert all(map(torch.equal, second(method), second("sds")))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("perpneg", [False, True])
def test_no_method_waits_for_a_number_of_the_device(method, perpneg, monkeypatch):
    """On a device whose tensors hold nothing, to read one or to copy it to the host is an error."""
    adam = torch.optim.Adam  # fused, which asks on the device whether to step, it knows no such device
    monkeypatch.setattr(torch.optim, "Adam", lambda own, fused, **options: adam(own, **options))
    monkeypatch.setattr("guidance.vdm.step_unless", lambda optimizer, broken: None)
    prior = LatentPrior(opinion)
    prior.alphas_cumprod = prior.alphas_cumprod.to("meta")
    prior.build_lora = lambda **_: StandIn(lambda noisy, *rest: noisy).to("meta")
    guidance = build(method, prior, perpneg=perpneg, lookahead=True, noise_offset=0.1, timestep_per_view=True)
    if method == "lmc":
        guidance.trained.fill_(True)
    encoder = SimpleNamespace(encode_text=lambda texts: torch.zeros(len(texts), 1, 1, device="meta"))
    prompts = ViewPrompts(encoder, GuidanceParams(text="a car", perpneg=perpneg))
    for step in (1, 60):
        text = prompts(torch.tensor([10.0, 100.0]), torch.zeros(VIEWS, 4, 4, device="meta"))
        images = pictures().to("meta").requires_grad_()
        output = guidance(images, text, step, torch.Generator().manual_seed(0))
        torch.stack(list(output.losses.values())).sum().backward()
        assert images.grad is not None and images.grad.is_meta


def test_an_estimator_sees_fresh_noise_where_the_noise_is_fixed():
    guidance = build("vsd", fix_noise=True)
    draw = guidance.draw(pictures(), text_of(), 1, torch.Generator().manual_seed(0))
    first, second = guidance.redraw(draw), guidance.redraw(draw)
    assert not torch.equal(first.noise, draw.noise) and not torch.equal(first.noise, second.noise)


def test_the_gradient_is_clipped_after_its_weight_and_before_lambda():
    _, free = step_of(build("sds", weighting="ism", **at(800)))
    _, clipped = step_of(
        build(
            "sds",
            weighting="ism",
            gradient_clip=(1.0, 2.0),
            gradient_clip_iter=10,
            lambda_guidance=0.1,
            **at(800),
        ),
        step=6,
    )
    assert torch.allclose(clipped, 0.1 * free.clamp(-1.5, 1.5), rtol=1e-5)
    assert free.abs().max() > 1.5


def test_the_gradient_can_have_unit_norm():
    _, gradient = step_of(build("csd", gradient_normalize=True, lambda_guidance=3.0))
    assert gradient.norm().item() == pytest.approx(3, rel=1e-5)


def test_the_guidance_scale_can_fall_over_the_run():
    guidance = build("sds", guidance_scale=100.0, guidance_scale_final=50.0)
    assert [guidance.guidance_scale(step) for step in (1, 51, 101)] == [100, 75, 50]
    output, _ = step_of(guidance, 51)
    cond, base = output.residual.predicted.cond, output.residual.predicted.base
    assert close(output.residual.guided_noise / 75, (base + 75 * (cond - base)) / 75)


@pytest.mark.parametrize("score", [torch.nan, torch.inf])
def test_scores_that_are_not_finite_are_reported_by_every_method(score):
    prior = LatentPrior(lambda noisy, timesteps, text: torch.where(text[..., None] == POSITIVE, score, noisy))
    for method in METHODS:
        if method != "lmc":
            output, _ = step_of(build(method, prior, gradient_clip=(1.0, 1.0)))
            assert not finite(output), method
