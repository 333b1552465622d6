"""CUDA graphs, emulated on a CPU: a replay has the function's own numbers, and what cannot be replayed is not."""

import copy
import itertools

import pytest
import torch
from torch.nn import functional as F

from arguments import GuidanceParams
from dreammapping.optimization import Optimization
from guidance import ViewPrompts, build_guidance
from guidance.degradation import ULite
from guidance.prior import score_model
from tests.emulated_graphs import Graph, emulate
from tests.settings import config_of
from tests.test_memory import model_of, relative
from tests.tiny_models import save_pipeline
from tests.tolerances import NETWORK
from utils.errors import UserError
from utils.replay import Replayed


@pytest.fixture(autouse=True)
def _graphs(monkeypatch):
    emulate(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("prior"))


def square(x):
    return (x * x + x.sum()).sin()


PERP_NEG = range(2 * 2, 4 * 2 + 1)
"""What two views may ask of the U-Net at once."""


def recorded(function, *shape, requires_grad=True, name="it"):
    found = Replayed(name, function)
    found.record(lambda: (torch.randn(shape).requires_grad_(requires_grad),))
    return found


def gradient(function, x):
    x = x.clone().requires_grad_()
    output = function(x)
    (output * output).sum().backward()
    return output.detach(), x.grad.clone()


def test_a_replay_has_the_functions_bits_for_inputs_that_were_never_seen():
    function = recorded(square, 3, 4)
    for _ in range(3):
        x = torch.randn(4, 3).T  # in another layout than what was recorded
        before = Graph.replays
        found = gradient(function, x)
        assert Graph.replays == before + 2  # forward and backward
        assert all(map(torch.equal, found, gradient(square, x.contiguous())))


def test_a_result_stays_when_the_next_one_is_computed():
    function = recorded(square, 3, requires_grad=False)
    first = function(torch.ones(3))
    kept = first.clone()
    function(torch.zeros(3))
    assert torch.equal(first, kept) and Graph.replays >= 2


def test_what_was_not_recorded_is_computed_by_the_function_itself():
    function = recorded(square, 3)
    before = Graph.replays
    with torch.no_grad():
        function(torch.ones(3))
    function(torch.ones(3))
    function(torch.ones(2).requires_grad_())
    assert Graph.replays == before


def test_a_result_whose_gradient_is_still_to_come_is_not_spoilt():
    """The second call, between the first one's forward and backward pass, would write where that one keeps its own."""
    function = recorded(square, 3)
    inputs = [torch.randn(3).requires_grad_() for _ in range(2)]
    outputs = [function(x) for x in inputs]
    for x, output in zip(inputs, outputs, strict=True):
        output.sum().backward()
        expected = x.detach().clone().requires_grad_()
        square(expected).sum().backward()
        assert torch.equal(x.grad, expected.grad)
    before = Graph.replays
    output = function(inputs[0])
    assert Graph.replays == before + 1, "and afterwards it is replayed again"
    del output
    function(inputs[0])
    assert Graph.replays == before + 2, "as it is when nobody can ask for the gradient any more"


def test_a_function_of_something_else_is_not_replayed(caplog):
    counter = itertools.count()
    function = recorded(lambda x: x * next(counter), 3, name="a counter")
    assert "a counter runs without a CUDA graph: its results were others" in caplog.text
    before = Graph.replays
    function(torch.ones(3).requires_grad_())
    assert Graph.replays == before


def test_a_wrong_gradient_is_as_bad_as_a_wrong_result(caplog):
    class Odd(torch.autograd.Function):
        factor = itertools.count(1)

        @staticmethod
        def forward(_ctx, x):
            return x * 2

        @staticmethod
        def backward(_ctx, incoming):
            return incoming * float(next(Odd.factor))

    recorded(Odd.apply, 3)
    assert "its results were others" in caplog.text


def test_a_gradient_that_is_not_a_number_is_as_bad_as_a_wrong_one(caplog):
    class Odd(torch.autograd.Function):
        factors = itertools.chain(
            [1.0] * 3, [float("nan")], itertools.repeat(1.0)
        )  # three to warm up, then recorded

        @staticmethod
        def forward(_ctx, x):
            return x * 2

        @staticmethod
        def backward(_ctx, incoming):
            return incoming * next(Odd.factors)

    recorded(Odd.apply, 3)
    assert "its results were others" in caplog.text


class Trained(torch.nn.Module):
    """A parameter and what is made of it; `late` is how many calls later than the recording it is something else."""

    def __init__(self, of, start=0.0):
        super().__init__()
        self.weight, self.of, self.calls = torch.nn.Parameter(torch.full((3,), start)), of, 0

    def forward(self, x):
        self.calls += 1
        return self.of(self.weight, x, self.calls - RECORDED)


RECORDED = 4
"""Calls with which a function is recorded: three to warm up, then that which is kept."""
UNSEEN = {
    "an old parameter": lambda weight, x, late: x * (weight - weight.detach() + 1 if late <= 0 else weight),
    "what a zero hides": lambda weight, x, late: x + weight**2 * (torch.ones(3) if late <= 0 else x),
    "the gradient of a small part": lambda weight, x, late: 100 * x + weight * (1 if late <= 0 else 2),
    "what a replay leaves for the next": lambda weight, x, late: x * weight * (1 if late <= 1 else 2),
}
"""Functions whose graph is wrong, though not for the parameters, the norm or the replay that it is recorded with."""


@pytest.mark.parametrize("kind", UNSEEN)
def test_what_only_a_trained_run_would_show_is_seen_when_it_is_recorded(kind, caplog):
    module = Trained(UNSEEN[kind], start=float(kind == "an old parameter"))
    before = module.weight.detach().clone()
    function = Replayed("it", module)
    assert not function.record(lambda: (torch.randn(3).requires_grad_(),))
    assert "its results were others" in caplog.text
    assert torch.equal(module.weight, before) and module.weight.grad is None


def test_what_is_right_is_recorded_and_its_parameters_keep_their_bits():
    module = Trained(lambda weight, x, _late: 1e3 * x + weight * x.sum(), start=0.3)
    before = module.weight.detach().clone()
    assert Replayed("it", module).record(lambda: (torch.randn(3),))
    assert torch.equal(module.weight, before)


def test_what_cannot_be_recorded_stops_the_run_and_names_the_way_out(monkeypatch):
    def refuse(*_args, **_options):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuse)
    said = r"it cannot be recorded as a CUDA graph \(operation not permitted .*capturing\); .*graphs=never$"
    with pytest.raises(UserError, match=said):
        recorded(square, 3)


@pytest.mark.parametrize("timed", [False, True])
def test_the_operator_trains_alike_with_and_without(timed):
    """Bit for bit: the graph reads the parameters where Adam has changed them."""
    with torch.no_grad():
        own = ULite(timed=timed)
        for parameter in own.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    twin = copy.deepcopy(own)
    replayed = Replayed("it", twin)
    replayed.record(lambda: (torch.randn(2, 4, 32, 32), torch.randint(1000, (2,))))
    ways = [(own, own), (replayed, twin)]
    optimizers = [torch.optim.Adam(module.parameters(), lr=0.01, fused=True) for _, module in ways]
    before = Graph.replays
    for _ in range(3):
        x, noise, t = torch.randn(2, 4, 32, 32), torch.randn(2, 4, 32, 32), torch.randint(1000, (2,))
        for (function, _), optimizer in zip(ways, optimizers, strict=True):
            F.mse_loss(function(x, t), noise).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    assert Graph.replays == before + 6
    assert all(map(torch.equal, own.parameters(), twin.parameters()))
    assert list(own.state_dict()) == list(twin.state_dict())


def image_gradient(model, record, azimuths):
    """The gradient at the images of iterations of VDM with Perp-Neg, one for each set of azimuths."""
    # group normalisation: batch normalisation of the two values at the bottleneck would divide by their difference
    config = config_of(text="a cat", m_norm="group")
    guidance = build_guidance(config, model, torch.Generator().manual_seed(0))
    prompts = ViewPrompts(model, config.GuidanceParams)
    if record:
        model.record(views=len(azimuths[0]), batches=guidance.batches(len(azimuths[0])))
        guidance.record(len(azimuths[0]))
    rng, found = torch.Generator().manual_seed(2), []
    for step, angles in enumerate(azimuths, start=1):
        images = torch.rand(len(angles), 3, 64, 64, generator=rng).requires_grad_()
        output = guidance(images, prompts(torch.tensor(angles)), step, rng)
        torch.stack(list(output.losses.values())).sum().backward()
        parameters = torch.cat([each.grad.flatten() for each in guidance.degradation.parameters()])
        guidance.degradation.zero_grad(set_to_none=True)
        found.append((images.grad, parameters.clone()))
    return found


AZIMUTHS = [[0.0, 90.0], [30.0, 180.0], [45.0, -120.0], [0.0, 5.0], [60.0, 130.0]]
"""Views of which Perp-Neg asks for other numbers of branches each time."""


def test_an_iteration_has_the_gradients_of_the_eager_one_and_runs_no_network_itself(folder, monkeypatch):
    eager = model_of(folder, memory="max")
    eager.compiled = True  # that is, batches of the same multiples
    expected = image_gradient(eager, record=False, azimuths=AZIMUTHS)
    model = model_of(folder, memory="max")
    record, calls = model.record, []

    def watched(**options):
        record(**options)
        for network in (model.unet, model.vae.encoder):
            network.register_forward_hook(lambda *_: calls.append(1))

    monkeypatch.setattr(model, "record", watched)
    found = image_gradient(model, record=True, azimuths=AZIMUTHS)
    assert calls == []
    assert model.evaluations == eager.evaluations
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert relative(one, other) < NETWORK[torch.float32]


def test_where_memory_is_short_or_the_unet_is_trained_nothing_is_recorded(folder, monkeypatch):
    for memory in ("8gb", "12gb"):
        short = model_of(folder, memory=memory)
        assert not short.record(views=2, batches=PERP_NEG)
        assert short._replayed == {}
    roomy = model_of(folder, memory="max")
    tensors = roomy.estimate_bytes(2, 4) - sum(
        4 * p.numel() for each in (roomy.unet, roomy.vae) for p in each.parameters()
    )
    for free, recorded in ((3 * tensors - 1, False), (3 * tensors, True)):
        monkeypatch.setattr(score_model, "free_bytes", lambda _device, free=free: free)
        assert roomy.record(views=2, batches=PERP_NEG) is recorded
        assert bool(roomy._replayed) is recorded
    trained = model_of(folder, memory="max")
    trained.estimators([torch.nn.Parameter(torch.zeros(1))])
    trained.record(views=2, batches=PERP_NEG)
    assert trained._replayed == {}


def test_latents_need_no_encoder_and_what_was_not_recorded_is_not_padded(folder, monkeypatch):
    model, sizes = model_of(folder, memory="max"), []
    model.record(views=2, batches=PERP_NEG, encodes=False)
    assert model._replayed.keys() == {"unet"}
    eager = model_of(folder, memory="max")
    monkeypatch.setattr(Replayed, "record", lambda *_: False)
    assert eager.record(views=2, batches=PERP_NEG)
    assert eager._replayed == {}
    eager.unet.register_forward_pre_hook(lambda _module, inputs: sizes.append(len(inputs[0])))
    latents = torch.zeros(3, eager.latent_channels, *eager.latent_size)
    eager.predict_noise(latents, torch.ones(3).long(), torch.zeros(3, *eager.text_shape))
    assert sizes == [3]


@pytest.mark.parametrize(
    ("precision", "names"), [("float32", {"unet", "encoder"}), ("float16", {"unet"}), ("bfloat16", {"unet"})]
)
def test_the_encoder_is_recorded_only_where_its_graph_was_seen_to_work(folder, precision, names):
    model = model_of(folder, memory="max", precision=precision)
    model.record(views=1, batches={2})
    assert model._replayed.keys() == names


def test_another_run_of_the_same_weights_has_none_of_the_graphs(folder):
    kept = model_of(folder, memory="max")
    first = kept.anew(GuidanceParams(model_key=str(folder)), kept._hardware)
    first.record(views=1, batches={2})
    assert first._replayed.keys() == {"unet", "encoder"}
    second = kept.anew(GuidanceParams(model_key=str(folder)), kept._hardware)
    assert first._replayed == second._replayed == {}


@pytest.mark.parametrize(
    ("device", "graphs", "room", "wanted"),
    [
        ("cuda", "auto", True, 2),
        ("cuda", "auto", False, 1),
        ("cuda", "never", True, 0),
        ("cpu", "auto", True, 0),
    ],
)
def test_graphs_are_recorded_on_a_card_where_the_settings_ask_and_memory_has_room(
    folder, device, graphs, room, wanted
):
    config = config_of(
        model_key=str(folder),
        text="a cat",
        device="cpu",
        graphs=graphs,
        init_num_pts=20,
        image_w=16,
        image_h=16,
    )
    found = Optimization(config)
    found.device = torch.device(device)
    recorded = []
    found.score_model.record = lambda *sizes, encodes: recorded.append((*sizes, encodes)) or room
    found.guidance.record = lambda views: recorded.append(views)
    found.warm_up()
    views = config.GuidanceParams.C_batch_size
    assert recorded == [(views, {*range(2 * views, 4 * views + 1)}, True), views][:wanted]
