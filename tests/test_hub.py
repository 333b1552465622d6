"""The hub: what is fetched of it, once, and one clear line for each way that it can refuse."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from arguments import GuidanceParams, load
from dreammapping.evaluation.encoders import load_encoder
from guidance import ScoreModel, models
from guidance.models import hub
from guidance.models.__main__ import main
from tests.fake_hub import REVISION, FakeHub, serve
from tests.small_models import narrow_configs, predict, save_family, score_model
from tests.tiny_models import save_clip, save_pipeline
from tests.tolerances import NETWORK
from utils.errors import UserError


@pytest.fixture(scope="module")
def sd1(tmp_path_factory):
    """A model as a folder, and as a single file beside its tokenizer."""
    root = tmp_path_factory.mktemp("hub")
    return save_family(root, narrow_configs(root / "configs"), "sd1")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model as diffusers saves it; nobody writes into it."""
    return save_pipeline(tmp_path_factory.mktemp("hub") / "model")


@pytest.fixture
def online(monkeypatch, tmp_path):
    """A hub on this machine and an empty cache, for the real client."""
    from huggingface_hub import constants

    fake = FakeHub()
    with serve(fake) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        files = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield fake


@pytest.fixture
def offline(monkeypatch):
    """No hub may be asked, by the program's own doing; the environment is as before afterwards."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "0")
    return models.go_offline


def published(folder: Path) -> dict[str, bytes]:
    """A saved pipeline as its publisher would put it on a hub, with what a run does not need."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    weights = files["unet/diffusion_pytorch_model.safetensors"]
    unneeded = ("v2-1.ckpt", "v2-1.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
                "unet/diffusion_pytorch_model.bin", "safety_checker/model.safetensors")  # fmt: skip
    return files | dict.fromkeys(unneeded, weights)


def test_a_clip_that_scores_pictures_is_fetched_without_its_pickles(online, tmp_path, capsys):
    model = save_clip(tmp_path / "model")
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    online.repositories[models.ENCODERS["vit-l-14"]] = files | {
        "pytorch_model.bin": b"pickle",
        "README.md": b"#",
    }
    assert models.check_encoder("vit-l-14") == [] and online.downloads() == []
    assert main(["fetch", "vit-l-14"]) == 0
    fetched = set(online.downloads())
    assert {"config.json", "model.safetensors"} <= fetched and not fetched & {
        "pytorch_model.bin",
        "README.md",
    }
    assert "licence MIT" in capsys.readouterr().out
    found = load_encoder("vit-l-14").clip.model.state_dict()
    assert set(online.downloads()) == fetched
    assert all(torch.equal(value, found[name]) for name, value in model.state_dict().items())


def test_fetching_takes_what_a_run_needs_once_and_records_it(online, saved, capsys):
    online.repositories[models.ALIASES["sd21-base"]] = published(saved)
    assert main(["fetch", "sd21-base"]) == 0
    fetched = set(online.downloads())
    assert {"model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"} <= fetched
    assert not [
        name for name in fetched if "ckpt" in name or "fp16" in name or "safety" in name or name == "v2-1"
    ]
    assert not [name for name in fetched if name.startswith("unet") and name.endswith(".bin")]
    shown = capsys.readouterr().out
    digest = hub.sha256(saved / "unet" / "diffusion_pytorch_model.safetensors")
    assert REVISION in shown and digest in shown and "CreativeML Open RAIL++-M" in shown

    before = len(online.downloads())
    assert main(["fetch", "sd21-base"]) == 0
    assert len(online.downloads()) == before
    cached = models.cached(models.ALIASES["sd21-base"])
    assert models.recorded(cached)["files"]["unet/diffusion_pytorch_model.safetensors"]["sha256"] == digest


def test_a_single_file_borrows_settings_and_tokenizer_of_a_hub_without_weights(
    online, offline, sd1, tmp_path
):
    folder, file = sd1
    (tmp_path / "model.safetensors").symlink_to(file)
    online.repositories["me/model"] = published(folder)
    params = GuidanceParams(model_key=str(tmp_path / "model.safetensors"), base_model_key="me/model")
    assert models.check_available(params) == []
    assert {"unet/config.json", "tokenizer/tokenizer.json"} <= set(online.downloads())
    assert not [name for name in online.downloads() if name.endswith((".safetensors", ".bin", ".ckpt"))]
    asked = len(online.requests)
    offline()
    offline()
    assert models.check_available(params) == []
    model = ScoreModel.from_pretrained(params, "cpu")
    torch.testing.assert_close(
        predict(model), predict(score_model(folder)), atol=NETWORK[torch.float32], rtol=0
    )
    assert len(online.requests) == asked


def test_a_run_fetches_what_is_missing_then_needs_no_hub_and_names_the_revision(online, offline, saved):
    online.repositories["me/model"] = published(saved)
    params = GuidanceParams(model_key="me/model")
    assert models.check_available(params) == []
    assert online.downloads() == []
    model = ScoreModel.from_pretrained(params, "cpu")
    assert model.provenance["revision"] == REVISION
    assert set(model.provenance["sha256"]) == {
        "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }  # fmt: skip
    asked = len(online.requests)
    offline()
    assert models.check_available(params) == []
    assert score_model("me/model").provenance == model.provenance
    assert len(online.requests) == asked


FORMS = {
    "fp16 alone": {"variant": "fp16"},
    "non-EMA alone": {"variant": "non_ema"},
    "shards": {"max_shard_size": "2KB"},
    "shards of fp16": {"variant": "fp16", "max_shard_size": "2KB"},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_hubs_model_is_the_same_in_every_form_that_diffusers_saves(online, offline, saved, tmp_path, form):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(saved, safety_checker=None)
    pipeline.save_pretrained(tmp_path / "saved", **FORMS[form])
    files = {path.relative_to(tmp_path / "saved").as_posix(): path.read_bytes()
             for path in (tmp_path / "saved").rglob("*") if path.is_file()}  # fmt: skip
    online.repositories["me/model"] = files | {"unet/diffusion_pytorch_model.bin": b"a pickle"}
    params = GuidanceParams(model_key="me/model")
    assert models.check_available(params) == []
    model = ScoreModel.from_pretrained(params, "cpu")
    torch.testing.assert_close(predict(model), predict(score_model(saved)), atol=1e-5, rtol=1e-4)
    weights = {name for name in files if name.endswith(".safetensors")}
    assert set(model.provenance["sha256"]) == weights <= set(online.downloads())
    assert "unet/diffusion_pytorch_model.bin" not in online.downloads()
    asked = len(online.requests)
    assert models.check_available(params) == []
    assert score_model("me/model").provenance == model.provenance
    assert len(online.requests) == asked


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"unet/diffusion_pytorch_model.bin": b"a"},
            "no unet's weights but diffusion_pytorch_model.bin, a pickle",
        ),
        (
            {"unet/diffusion_pytorch_model-00001-of-00002.safetensors": b"a"},
            "no unet's weights but diffusion_pyt",
        ),
        ({}, "no unet's weights; copy"),
    ],
)
def test_a_hubs_model_that_lacks_weights_is_refused_before_anything_is_fetched(
    online, saved, changes, words, capsys
):
    files = published(saved)
    files = {name: each for name, each in files.items() if not name.startswith("unet/diffusion")} | changes
    online.repositories["me/model"] = files
    (problem,) = models.check_available(GuidanceParams(model_key="me/model"))
    assert words in problem and "\n" not in problem
    assert main(["fetch", "me/model"]) == 2
    assert words in capsys.readouterr().err
    assert online.downloads() == []


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"revision": 1}', "[" * 100_000])
def test_a_damaged_record_of_what_was_fetched_is_none(online, saved, record):
    online.repositories["me/model"] = published(saved)
    params = GuidanceParams(model_key="me/model")
    expected = ScoreModel.from_pretrained(params, "cpu").provenance
    (models.cached("me/model").parents[1] / hub.LOCK).write_text(record, encoding="utf-8")
    assert score_model("me/model").provenance == expected


def test_a_download_that_came_damaged_is_deleted_and_said(online, offline, saved, capsys):
    online.repositories["me/model"] = published(saved)
    online.wrong_hash.add("unet/diffusion_pytorch_model.safetensors")
    assert main(["fetch", "me/model"]) == 2
    assert "came damaged and was deleted" in capsys.readouterr().err
    offline()
    assert models.check_available(GuidanceParams(model_key="me/model")) != []


@pytest.mark.parametrize(
    ("key", "cause"),
    [
        ("me/gone", "the hub has no such model"),
        ("me/guarded", "it is gated: accept its licence"),
    ],
)
def test_a_hub_that_says_no_is_quoted_in_one_line(online, key, cause, capsys):
    online.repositories["me/guarded"] = {"model_index.json": b"{}"}
    online.gated.add("me/guarded")
    (problem,) = models.check_available(GuidanceParams(model_key=key))
    assert cause in problem and f"cannot load '{key}'" in problem and "\n" not in problem
    assert main(["fetch", key]) == 2
    assert cause in capsys.readouterr().err


def test_a_hub_that_does_not_answer(online, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    (problem,) = models.check_available(GuidanceParams(model_key="me/model"))
    assert "the hub cannot be reached: check the network or HF_ENDPOINT" in problem


def test_offline_asks_nobody(online, offline):
    offline()
    (problem,) = models.check_available(GuidanceParams(model_key="me/model"))
    assert "no hub may be asked" in problem
    with pytest.raises(UserError, match="no hub may be asked"):
        score_model("me/model")
    assert online.requests == []


def test_the_client_is_offline_before_it_is_first_imported():
    code = (
        "from arguments import load; from guidance.models import missing_models;"
        "missing_models(load(['--opt', 'configs/cat.yaml', '--offline'])[0]);"
        "from huggingface_hub import constants; assert constants.HF_HUB_OFFLINE"
    )
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], env=environment, check=True)


def test_a_damaged_file_of_the_cache_is_named_and_once_deleted_is_fetched_again(online, saved):
    online.repositories["me/model"] = published(saved)
    params = GuidanceParams(model_key="me/model")
    assert main(["fetch", "me/model"]) == 0
    blob = (models.cached("me/model") / "unet" / "diffusion_pytorch_model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:1000])
    (problem,) = models.check_available(params)
    assert f"{blob} is damaged or half-downloaded; delete it and fetch it again" in problem
    blob.unlink()
    assert models.check_available(params) == []
    assert ScoreModel.from_pretrained(params, "cpu").unet is not None


@pytest.mark.parametrize("setting", ["vae_key", "base_model_key", "shape_model"])
def test_a_file_where_a_folder_is_expected_is_not_asked_of_a_hub(online, setting, sd1):
    words = ["text=a cat", f"model_key={sd1[1]}", "init_shape=shape", "init_fallback=stop"]
    config, _ = load([*words, f"{setting}=some/file.safetensors"])
    problems = [problem for problem in models.missing_models(config) if setting in problem]
    assert len(problems) == 1 and "or a hub id, got the file some/file.safetensors" in problems[0]
    assert not [request for request in online.requests if "file.safetensors" in request]


def test_ctrl_c_while_something_is_fetched_is_one_line(monkeypatch, capsys):
    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("guidance.models.__main__.fetch", stop)
    assert main(["fetch", "sd21-base"]) == 130
    assert capsys.readouterr().err == "stopped; repeat the command to continue\n"
