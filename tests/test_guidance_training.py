"""Every method with a real U-Net: what it evaluates, what a LoRA does to it, and that a restart changes no bit."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from arguments import GuidanceParams, HardwareParams, load
from arguments.groups.guidance import METHODS
from dreammapping.optimization import Optimization
from guidance import ScoreModel, ViewPrompts, build_guidance
from guidance.prior.gradient_scale import GradientScale
from tests.settings import config_of
from tests.tiny_models import save_pipeline
from tests.tolerances import NETWORK, same
from utils import checkpoint

VIEWS = 2
SMALL = {
    "perpneg": False,
    "text": "a car",
    "negative": "dull",
    "lmc_bank": 2,
    "lmc_sampling_steps": 2,
    "lmc_steps": 2,
    "delta_t": 100,
    "delta_t_start": 100,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("prior"), autoencoder="tiny")


@pytest.fixture
def load_model(folder):
    def fresh(**settings):
        params = GuidanceParams(model_key=str(folder), **settings)
        return ScoreModel.from_pretrained(params, "cpu")

    return fresh


def at(timestep):
    share = (timestep - 1) / 1000 + 1e-6
    return {"t_range": (share, share), "max_t_range": share}


def poses():
    return torch.randn(VIEWS, 4, 4, generator=torch.Generator().manual_seed(5))


def latents(count=VIEWS):
    return torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(2))


EVALUATIONS = {
    # method: settings, iteration (of 100), forward and backward evaluations of the U-Net for each view
    "sds": [({}, 1, 2, 0)],
    "vsd": [({}, 1, 4, 1)],
    "dreamflow": [({}, 1, 4, 1)],
    "asd": [({}, 1, 5, 1)],
    "lods": [({}, 1, 3, 1)],
    "lods_lora": [({}, 1, 3, 1)],
    "lmc": [({}, 1, 2, 0)],
    "csd": [({}, 1, 2, 0), ({}, 25, 3, 0), ({}, 99, 2, 0)],
    "nfsd": [(at(199), 1, 2, 0), (at(200), 1, 3, 0)],
    "ism": [(at(301), 1, 4, 0), (at(501), 1, 5, 0), (at(981), 1, 8, 0)],
    "ssd": [({}, 1, 2, 0)],
    "consistent3d": [({}, 1, 4, 0)],
    "vdm": [({}, 1, 2, 0), ({"lookahead": True}, 1, 2, 0)],
}
"""Table 1's cost where nothing is evaluated twice: facts of the published methods, not of our code."""


@pytest.mark.parametrize("method", METHODS)
def test_evaluations_for_each_view_are_the_fewest_that_the_method_needs(method, load_model, monkeypatch):
    model = load_model()
    for settings, step, forward, backward in EVALUATIONS[method]:
        model = load_model() if model.evaluations.forward else model
        config = config_of(guidance=method, iterations=100, **{**SMALL, **settings})
        guidance = build_guidance(config, model)
        asked = sizes_asked(model, monkeypatch)
        text = ViewPrompts(model, config.GuidanceParams)(torch.tensor([0.0, 90.0]), poses())
        if (
            method == "lmc"
        ):  # what it learns before the run is no part of an iteration, and is counted for itself
            guidance(torch.rand(VIEWS, 3, 64, 64), text, step, torch.Generator().manual_seed(1))
            assert model.evaluations.pretraining == model.evaluations.forward - forward * VIEWS > 0
        before = model.evaluations.forward
        images = torch.rand(VIEWS, 3, 64, 64, requires_grad=True)
        output = guidance(images, text, step, torch.Generator().manual_seed(0))
        total = torch.stack(list(output.losses.values())).sum()
        assert total.isfinite()
        total.backward()
        spent = model.evaluations.forward - before, model.evaluations.backward
        assert spent == (forward * VIEWS, backward * VIEWS)
        assert images.grad.abs().sum() > 0
        assert asked and asked <= guidance.batches(VIEWS)  # known before the run, to be compiled


def sizes_asked(model, monkeypatch):
    """How many latents the frozen U-Net is asked for at once, as they come."""
    sizes, predict = set(), type(model).predict_noise.__get__(model)
    monkeypatch.setattr(
        model, "predict_noise", lambda latents, *given: (sizes.add(len(latents)), predict(latents, *given))[1]
    )
    return sizes


SETTINGS = Path(__file__).parents[1] / "configs"
BASELINES = SETTINGS / "baselines"
SHIPPED = [SETTINGS / "hamburger.yaml", *sorted(BASELINES.glob("*.yaml"))]
LESS = [
    "text=a red car", "negative=dull", "device=cpu", "fp16=false", "init_shape=sphere",
    "init_num_pts=60", "image_w=32", "image_h=32", "C_batch_size=2", "lmc_bank=2", "lmc_sampling_steps=2",
    "lmc_steps=2",
]  # fmt: skip


@pytest.mark.whole_runs
@pytest.mark.parametrize(
    ("path", "prior"),
    [*((path, "tiny") for path in SHIPPED), (SHIPPED[0], "toybox"), (BASELINES / "asd_gs.yaml", "toybox")],
    ids=lambda each: getattr(each, "stem", each),
)
def test_every_method_trains_from_its_settings_and_resumes_with_the_same_bits(path, prior, folder, tmp_path):
    words = [*LESS, f"model_key={folder if prior == 'tiny' else prior}"]

    def fresh():
        return Optimization(load(["--opt", str(path), *words])[0])

    def run(optimization, steps):
        for step in steps:
            metrics = optimization.iteration(step)
            assert all(torch.as_tensor(value).isfinite() for value in metrics.values())

    whole = fresh()
    run(whole, (1, 2))  # LoRAs begin at zero times something: the something moves from the second step on
    saved = checkpoint.save(tmp_path, 2, whole.state_dict())
    run(whole, (3,))

    resumed = fresh()
    resumed.load_state_dict(checkpoint.load(saved))
    run(resumed, (3,))
    assert whole.skipped == resumed.skipped == 0
    assert same(whole.state_dict(), resumed.state_dict())
    start = checkpoint.load(saved)["guidance"]
    trained = dict(whole.guidance.named_parameters()) if whole.guidance.optimizer is not None else {}
    unmoved = [name for name, value in trained.items() if torch.equal(value, start[name])]
    assert not unmoved


def asked(model, lora=None, **told):
    noisy, timesteps = latents(), torch.tensor([30, 700])
    text = torch.randn(VIEWS, *model.text_shape, generator=torch.Generator().manual_seed(3))
    return (
        model.predict_noise(noisy, timesteps, text) if lora is None else lora(noisy, timesteps, text, **told)
    )


def lora_of(model, with_camera, scale=1.0):
    return model.build_lora(
        rank=2, scale=scale, with_camera=with_camera, rng=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("with_camera", [False, True])
def test_a_lora_leaves_the_frozen_models_bits_alone(load_model, with_camera):
    model = load_model()
    frozen = asked(model)
    lora = lora_of(model, with_camera)
    assert torch.equal(asked(model), frozen)
    optimizer = torch.optim.AdamW(lora.parameters(), lr=0.1)
    asked(model, lora, **({"poses": poses()} if with_camera else {})).square().mean().backward()
    optimizer.step()
    assert torch.equal(asked(model), frozen)
    assert not torch.allclose(asked(model, lora), frozen, atol=1e-3)
    assert not any(parameter.grad is not None for parameter in model.vae.parameters())


def test_a_lora_starts_as_the_frozen_model(load_model):
    model = load_model()
    assert torch.allclose(
        asked(model, lora_of(model, with_camera=False)), asked(model), atol=NETWORK[torch.float32]
    )


@pytest.mark.parametrize("width", [320, 640, 1280])
@pytest.mark.parametrize("rank", [4, 8])
def test_a_loras_start_is_diffusers_whatever_the_width_of_a_layer(load_model, rank, width):
    """Every source's adapters are diffusers' (models/lora.py:217): down from N(0, 1/rank²), up at 0.

    What a LoRA learns in its first steps grows with that start. One that falls with the width, as peft's own does, is
    8 to 16 times smaller in Stable Diffusion's layers, whose widths these are.
    """
    model = load_model()
    model.unet = nn.ModuleDict({"to_q": nn.Linear(width, width), "time_embedding": model.unet.time_embedding})
    lora = model.build_lora(rank=rank, scale=1.0, with_camera=False, rng=torch.Generator().manual_seed(1))
    up, down = sorted(lora.adapters.values(), key=lambda value: value.shape[0], reverse=True)
    assert not up.any()
    standard_error = 1 / math.sqrt(2 * down.numel())
    assert rank * down.std().item() == pytest.approx(1, abs=4 * standard_error)


def test_a_lora_that_is_told_the_camera_answers_to_it(load_model):
    model = load_model()
    lora = lora_of(model, with_camera=True)
    front, turned = asked(model, lora, poses=poses()), asked(model, lora, poses=-poses())
    untold, zeros = asked(model, lora), asked(model, lora, poses=torch.zeros(VIEWS, 4, 4))
    assert not torch.allclose(front, turned, atol=1e-4)
    assert torch.equal(untold, zeros)


@pytest.mark.parametrize(("memory", "padded"), [("8gb", False), ("max", True), ("8gb", True)])
def test_a_view_is_told_its_own_camera_in_parts_and_in_padded_batches(folder, memory, padded):
    views, rng = 6, torch.Generator().manual_seed(2)
    noisy, timesteps = torch.randn(views, 4, 16, 16, generator=rng), torch.arange(100, 700, 100)
    cameras = torch.randn(views, 4, 4, generator=rng)
    found = []
    for plan, compiled in (("max", False), (memory, padded)):
        params, hardware = GuidanceParams(model_key=str(folder)), HardwareParams(memory=plan)
        model = ScoreModel.from_pretrained(params, "cpu", hardware)
        model.compiled = compiled  # that is, batches of the multiples that are compiled
        lora, text = lora_of(model, with_camera=True), torch.zeros(views, *model.text_shape)
        output = lora(noisy, timesteps, text, cameras)
        output.square().mean().backward()
        found.append((output.detach(), torch.cat([each.grad.flatten() for each in lora.camera.parameters()])))
    for plain, other in zip(*found, strict=True):
        assert (other - plain).norm() < NETWORK[torch.float32] * plain.norm()


def test_a_loras_gradient_reaches_every_adapter_and_the_camera_and_nothing_else(load_model):
    model = load_model()
    lora = lora_of(model, with_camera=True)
    for name, value in lora.adapters.items():
        if "lora_B" in name:
            torch.nn.init.normal_(value)
    asked(model, lora, poses=poses()).square().mean().backward()
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in lora.parameters())
    assert {name.split("/")[-4] for name in lora.adapters} == {"to_q", "to_k", "to_v", "0"}
    own = {id(parameter) for parameter in lora.parameters()}
    assert all(each.grad is None for each in model.unet.parameters() if id(each) not in own)
    assert set(lora.state_dict()) == {name for name, _ in lora.named_parameters()}


def test_what_a_lora_adds_is_scaled(load_model):
    outputs = []
    for scale in (1.0, 0.5):
        model = load_model()
        lora = lora_of(model, with_camera=False, scale=scale)
        layer = next(name for name in lora.adapters if "to_v" in name and "lora_B" in name)
        for name, value in lora.adapters.items():
            if "lora_B" in name:
                torch.nn.init.constant_(value, 0.01 if name == layer else 0.0)
        outputs.append(asked(model, lora) - asked(model))
    assert outputs[0].norm().item() == pytest.approx(2 * outputs[1].norm().item(), rel=0.05)
    assert outputs[0].abs().max() > 1e-5


def test_the_scale_of_half_precision_gradients_cancels(load_model):
    gradients = []
    for enabled in (False, True):
        model = load_model()
        model._estimator_scale = GradientScale(enabled)
        lora = lora_of(model, with_camera=True)
        seen = []
        model.unet.conv_out.register_full_backward_hook(lambda _m, _i, out, seen=seen: seen.append(out[0]))
        asked(model, lora, poses=poses()).square().mean().backward()
        assert seen[0].abs().max() > 0.5 if enabled else seen[0].abs().max() < 0.1
        restored = model._estimator_scale.restore(seen[0])
        gradients.append([each.grad for each in lora.parameters()] + [restored])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_a_backward_is_counted_when_it_runs(load_model):
    model = load_model()
    lora = lora_of(model, with_camera=False)
    loss = asked(model, lora).square().mean()
    assert (model.evaluations.forward, model.evaluations.backward) == (VIEWS, 0)
    loss.backward()
    assert (model.evaluations.forward, model.evaluations.backward) == (VIEWS, VIEWS)
