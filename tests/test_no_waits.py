"""No iteration waits for a card, seen without one: tensors of `meta` have no numbers, so whoever asks for one fails.

What stays on the host is real. Numbers that a device would have to compute first cannot be read there, as neither can
how many there are of something; a copy to the device that waits for it is seen as it is asked for. The rasterizer is
left out: it decides on the host how much there is.
"""

import pytest
import torch
from torch.optim import optimizer as fused_devices
from torch.utils._python_dispatch import TorchDispatchMode

from arguments.groups.guidance import METHODS
from dreammapping import optimization
from dreammapping.optimization import Optimization
from gaussian_renderer import Views
from scene import augmentation
from scene.density import Footprint
from tests.settings import config_of
from tests.tiny_models import save_pipeline
from utils.optimizers import fused_on_card, load_moments

pytestmark = pytest.mark.whole_runs

CARD = torch.device("meta")
"""What stands for a card here."""
ONCE = {"lmc"}
"""Methods that train something at the first iteration, with lines of their own in the log."""


class Copies(TorchDispatchMode):
    """Fails where a tensor of the host goes to the card by a copy that is waited for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[-1] if func is torch.ops.aten._to_copy.default else args[1]
            target = kwargs.get("device", args[0].device)
            if source.device.type == "cpu" and torch.device(target).type == CARD.type:
                assert kwargs.get("non_blocking") or (len(args) > 2 and args[2]), "a copy waits for the card"
        return func(*args, **kwargs)


class Arrived:
    """In the place of a `Readback`: numbers of an earlier iteration, which the next one asks for."""

    def __init__(self, scalars):
        assert all(value.device == CARD for value in scalars.values())
        self.names = list(scalars)

    def values(self):
        return dict.fromkeys(self.names, 0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("prior"))


@pytest.fixture
def card(monkeypatch):
    """The settings of a run on what stands for a card."""
    kept = fused_devices._get_fused_kernels_supported_devices
    monkeypatch.setattr(fused_devices, "_get_fused_kernels_supported_devices", lambda: [*kept(), CARD.type])
    monkeypatch.setattr(optimization, "Readback", Arrived)
    monkeypatch.setattr(
        augmentation, "standard_normal", lambda shape, _rng, device: torch.randn(shape, device=device)
    )
    return CARD


def drawn(gaussians, cameras, background, *, scales, sh, **_options):
    """Pictures of the right shapes that depend on all that is drawn; how much that is a rasterizer may ask."""
    count, size = len(cameras), (cameras.height, cameras.width)
    means2d = torch.zeros(count, len(gaussians), 3, device=CARD, requires_grad=True)
    parts = (gaussians.means, gaussians.opacities, gaussians.rotations, scales, sh, means2d, background)
    tint = torch.stack([part.sum() for part in parts]).sum() + cameras.world_to_camera.sum(dim=(1, 2))
    images = tint.view(-1, 1, 1, 1) * torch.ones(count, 3, *size, device=CARD)
    radii = torch.ones(count, len(gaussians), dtype=torch.int32, device=CARD)
    return Views(images, images[:, :1], images[:, :1], Footprint(means2d, radii))


def iterated(config):
    """Two iterations on the card, watched."""
    found = Optimization(config, device=CARD)
    with Copies():
        for step in (1, 2):
            found.iteration(step)


CHANGES = {
    "no Perp-Neg": {"perpneg": False},
    "one step ahead": {"lookahead": True, "dca_learned": True},
    "clipped": {"gradient_clip": (1.0, 2.0), "gradient_normalize": True},
    "noisy paths": {
        "guidance": "ism",
        "xs_eta": 0.5,
        "denoise_guidance_scale": 2.0,
        "timestep_per_view": True,
    },
}
"""What is off by default."""


@pytest.mark.parametrize(
    "changes",
    [*({"guidance": name} for name in METHODS if name not in ONCE), *CHANGES.values()],
    ids=[*(name for name in METHODS if name not in ONCE), *CHANGES],
)
def test_an_iteration_reads_nothing_from_the_card_and_waits_for_no_copy(folder, card, monkeypatch, changes):
    monkeypatch.setattr("dreammapping.gaussians.render", drawn)
    small = {"precision": "float16", "init_num_pts": 30, "image_w": 32, "image_h": 32, "C_batch_size": 2}
    noisy = {"shs_aug_ratio": 1.0, "scale_aug_ratio": 1.0}
    iterated(config_of(**{"model_key": str(folder), "text": "a cat", **small, **noisy, **changes}))


@pytest.mark.parametrize("particle", ["latent", "pixel"])
def test_nor_does_one_of_a_picture(folder, card, particle):
    iterated(
        config_of(model_key=str(folder), text="a cat", representation="image", particle=particle, particles=2)
    )


def test_moments_of_a_cpu_go_on_on_a_card(card):
    """A fused optimiser counts its steps on the card, where it asks whether to take one."""
    here, there = (torch.nn.Parameter(torch.zeros(3, device=device)) for device in ("cpu", card))
    before = torch.optim.AdamW([here], **fused_on_card(here.device))
    here.grad = torch.ones(3)
    before.step()
    after = torch.optim.AdamW([there], **fused_on_card(there.device))
    load_moments(after, before.state_dict())
    assert {name: value.device for name, value in after.state[there].items()} == dict.fromkeys(
        ("step", "exp_avg", "exp_avg_sq"), card
    )


def test_what_is_read_or_waited_for_is_seen(card):
    here = torch.ones(2)
    with Copies():
        here.to(card, non_blocking=True)
        with pytest.raises(AssertionError, match="a copy waits"):
            here.to(card)
        with pytest.raises(AssertionError, match="a copy waits"):
            torch.empty(2, device=card).copy_(here)
        for read in (torch.Tensor.tolist, torch.Tensor.nonzero, torch.Tensor.cpu, lambda x: bool(x.sum())):
            with pytest.raises((RuntimeError, NotImplementedError)):
                read(torch.ones(2, device=card))
