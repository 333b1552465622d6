"""The whole program on a tiny random prior: what a run leaves, and that a restart changes no bit."""

import asyncio
import copy
import dataclasses
import inspect
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from arguments import load
from arguments.config import settings
from arguments.names import MOVED
from dreammapping import gaussians, generate, optimize
from dreammapping.optimization import Optimization
from dreammapping.program import BESIDE_THE_ASSET
from scene.ply import read_gaussians
from train import main
from utils import interruption
from utils.device import choose_device, plain_torch
from utils.errors import UserError
from utils.interruption import as_ctrl_c
from utils.optimizers import step_unless

pytestmark = pytest.mark.whole_runs

ROOT = Path(__file__).parents[1]


def words_of(prior: Path, folder: Path) -> list[str]:
    """Overrides that make a run of 8 iterations with everything in it: densification, opacity reset, outputs."""
    return [
        f"model_key={prior}", f"output_path={folder}", "workspace=run", "device=cpu", 'text="a red car"',
        "fp16=false", "guidance=vdm", "perpneg=false", "iterations=8", "checkpoint_interval=4", "log_interval=2",
        "video_frames=2", "pro_frames_num=4",
        "vis_interval=4",
        "init_num_pts=120", "image_w=32", "image_h=32", "C_batch_size=2", "warmup_iter=4", "densify_from_iter=1",
        "densification_interval=3", "densify_grad_threshold=0.00001", "opacity_reset_interval=5", "sh_degree=1",
        "shs_aug_ratio=0.5", "progressive_view_iter=3", "scale_up_cameras_iter=2",
    ]  # fmt: skip


@pytest.fixture
def words(prior, tmp_path):
    """The same, for runs of the test's own."""
    return words_of(prior, tmp_path)


@pytest.fixture(scope="module")
def undisturbed(prior, tmp_path_factory):
    """The folder of such a run; nobody writes into it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert main(["--quiet", *words_of(prior, folder)]) == 0
    return folder / "run"


def final_ply(folder: Path) -> bytes:
    return (folder / "point_cloud" / "iteration_8" / "point_cloud.ply").read_bytes()


def configured(words):
    from arguments import load

    return load([*words])[0]


@pytest.mark.parametrize(("build", "said"), [("13.0", 1), (None, 0)])
def test_auto_says_that_it_takes_the_cpu_where_torch_has_cuda_and_the_machine_has_not(
    build, said, monkeypatch, caplog
):
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    assert choose_device("cpu") == torch.device("cpu")
    assert sum("no CUDA driver or no card" in message for message in caplog.messages) == said
    with pytest.raises(UserError, match="there is no CUDA here"):
        choose_device("cuda")


def test_a_card_beyond_the_machines_is_refused_with_those_that_are_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match="got cuda:2, but there is cuda:0, cuda:1 here"):
        choose_device("cuda:2")


def test_kernels_that_the_device_has_not_are_refused_before_anything_is_changed(short, tmp_path, capsys):
    said = "PipelineParams.backend: expected kernels that run on cpu, got cuda; use backend=auto"
    assert main(["--quiet", *short, "backend=cuda"]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert main(["--quiet", *short, "backend=auto"]) == 0
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    assert main(["--quiet", *short, "--resume", "backend=cuda", "iterations=3"]) == 2
    assert said in capsys.readouterr().err and (tmp_path / "run" / "config.yaml").read_bytes() == before


def test_a_run_leaves_what_upstreams_users_expect(undisturbed):
    run = undisturbed
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert names >= {
        "config.yaml", "cfg_args", "cameras.json", "init_points3d.ply", "input.ply", "metrics.jsonl", "run.json",
        "train_process/iter_4.jpg", "train_process/iter_8.jpg", "process_videos/video_rgb.mp4",
        "test_six_views/1_iteration/render_view_0.png", "test_six_views/8_iteration/render_depth_15.png",
        "videos/8_iteration/video_rgb_8.mp4", "videos/8_iteration/video_depth_8.mp4",
        "point_cloud/iteration_4/point_cloud.ply", "point_cloud/iteration_8/point_cloud.ply",
        "point_cloud/iteration_8/point_cloud_rgb.txt",
        "checkpoints/iteration_000008/tensors.safetensors", "checkpoints/iteration_000008/state.json",
    }  # fmt: skip
    assert not [name for name in names if "partial" in name]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    manifest = json.loads((run / "run.json").read_text())
    assert manifest["finished"] and manifest["score_model_evaluations"] == {
        "forward": 8 * 2 * 2,
        "backward": 0,
        "pretraining": 0,
    }
    gaussians = read_gaussians(run / "point_cloud" / "iteration_8" / "point_cloud.ply")
    assert len(gaussians) == manifest["gaussians"] != 120


def test_the_written_settings_run_the_same_run_again(undisturbed, tmp_path):
    main(["--quiet", "--opt", str(undisturbed / "config.yaml"), f"output_path={tmp_path}", "workspace=again"])
    assert final_ply(tmp_path / "again") == final_ply(undisturbed)


def test_a_closed_terminal_saves_and_says_how_to_go_on(words, tmp_path):
    """As the program is started, in a process of its own; the other signals are the matter of the laws of a subject."""
    words = [
        *words,
        "iterations=2000",
        "densify_until_iter=0",
        "save_video=false",
        "test_ratio=1",
        "save_process=false",
    ]
    process = subprocess.Popen(
        [sys.executable, "train.py", "--quiet", *words],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    with process:
        try:
            wait_for(tmp_path / "run" / "metrics.jsonl", process)
            process.send_signal(signal.SIGHUP)
            _, errors = process.communicate(timeout=240)
        finally:
            process.kill()
    assert process.returncode == 129
    assert "--resume" in errors and "Traceback" not in errors
    assert json.loads((tmp_path / "run" / "run.json").read_text())["iterations"] >= 2


def wait_for(path: Path, process: subprocess.Popen, seconds: float = 240.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


@pytest.fixture
def short(words):
    """A run of two small iterations, with a checkpoint after each."""
    return [
        *words, "iterations=2", "checkpoint_interval=1", "C_batch_size=1", "test_ratio=1", "save_video=false",
        "save_process=false", "image_w=16", "image_h=16", "init_num_pts=20", "vis_interval=100",
    ]  # fmt: skip


def test_nohup_stays(short, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        result = optimize(
            configured(short), quiet=True, callback=lambda *_: os.kill(os.getpid(), signal.SIGHUP)
        )
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert result.exit_code == 0


def stop(*_):
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_while_models_load_is_one_line_and_leaves_nothing(
    short, tmp_path, monkeypatch, capsys, number, code
):
    from dreammapping import program

    before = signal.getsignal(number)
    monkeypatch.setattr(program, "start", lambda *_: os.kill(os.getpid(), number))
    assert main(["--quiet", *short]) == code
    assert capsys.readouterr().err == "stopped before the run began; nothing was changed\n"
    assert not (tmp_path / "run").exists()
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_a_library_takes_for_a_broken_file_is_a_signal(
    short, tmp_path, monkeypatch, capsys, number
):
    """As those do that call Python from another language: what was raised in the call becomes an error of theirs."""
    from dreammapping import program

    def load(*_):
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt:
            raise UserError("model.safetensors: is damaged") from None

    monkeypatch.setattr(program, "start", load)
    assert main(["--quiet", *short]) == 128 + number
    assert capsys.readouterr().err == "stopped before the run began; nothing was changed\n"
    with pytest.raises(KeyboardInterrupt), as_ctrl_c():
        optimize(configured(short))
    monkeypatch.setattr(program, "start", lambda *_: {}["a fault of ours"])
    with pytest.raises(KeyError):
        optimize(configured(short))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("at", ["twice", "end", "first", "load"])
def test_ctrl_c_says_what_is_true(short, tmp_path, monkeypatch, capsys, at):
    """Twice in the loop, twice at the end, twice before the first checkpoint, and while --resume loads."""
    from dreammapping import program
    from dreammapping.outputs import SceneOutputs

    monkeypatch.setattr(interruption, "ONE_WISH", -1.0)
    if at == "load":
        assert main(["--quiet", *short]) == 0
        before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.json")}
        monkeypatch.setattr(Optimization, "load_state_dict", stop)
        assert main(["--quiet", "--resume", *short]) == 130
        assert capsys.readouterr().err == "stopped before the run began; nothing was changed\n"
        assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.json")} == before
        return
    ends = SceneOutputs.write_end
    if at == "end":
        monkeypatch.setattr(SceneOutputs, "write_end", lambda self: (stop(), stop()))
    if at == "first":
        monkeypatch.setattr(SceneOutputs, "write_start", lambda self: (stop(), stop()))
    run_loop = program.loop
    calls = {"twice": lambda step, _: step == 2 and (stop(), stop())}
    monkeypatch.setattr(program, "loop", lambda *args: run_loop(*args[:5], calls.get(at)))
    assert main(["--quiet", *short]) == 130
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    if at == "first":
        assert "repeat the command to start again" in said and not (tmp_path / "run").exists()
        return
    done = {"twice": 1, "end": 2}[at]
    assert (
        f"the last checkpoint is that of iteration {done}, from which the command with --resume continues"
        in said
    )
    monkeypatch.setattr(SceneOutputs, "write_end", ends)
    monkeypatch.setattr(program, "loop", run_loop)
    assert main(["--quiet", "--resume", *short]) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"] is True


def test_one_wish_at_the_end_lets_the_run_finish(short, monkeypatch):
    from dreammapping.outputs import SceneOutputs

    monkeypatch.setattr(SceneOutputs, "write_end", lambda _: (stop(), stop()))
    assert main(["--quiet", *short]) == 0


def test_signals_at_once_are_one_wish(short, tmp_path, monkeypatch, caplog):
    """As `timeout` and wrappers pass on what the terminal has sent to all: the iteration ends and is saved."""
    from dreammapping import program

    run_loop = program.loop
    monkeypatch.setattr(
        program, "loop", lambda *args: run_loop(*args[:5], lambda *_: [stop() for _ in range(3)])
    )
    assert main(["--quiet", *short]) == 130
    assert "saved after iteration 1 of 2" in caplog.text
    assert (tmp_path / "run" / "checkpoints" / "iteration_000001").exists()


def test_another_length_is_refused_or_finishes(short, tmp_path, capsys, caplog):
    assert main([*short, "--quiet"]) == 0
    before = (tmp_path / "run" / "run.json").read_bytes()
    assert main([*short, "--quiet", "--resume", "iterations=1"]) == 2
    assert (
        "at most 1 iterations, got one that has done 2; set iterations=2 or more" in capsys.readouterr().err
    )
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    with caplog.at_level("INFO"):
        assert optimize(configured(short), resume=True, quiet=True).exit_code == 0
    assert "all 2 iterations were done before" in caplog.text
    assert main([*short, "--quiet", "--resume", "iterations=3"]) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["iterations"] == 3


def test_a_run_that_has_done_all_stays_one_of_the_settings_that_made_it(short, tmp_path, capsys):
    """Only what lies beside the asset may still change: the settings say what the asset is."""
    assert main([*short, "--quiet"]) == 0
    folder = tmp_path / "run"
    before = {name: (folder / name).read_bytes() for name in ("config.yaml", "run.json", "index.html")}
    for word, name in (
        ("text=a green duck", "GuidanceParams.text"),
        ("seed=7", "GuidanceParams.noise_seed, seed"),
        ("image_w=24", "GenerateCamParams.image_w"),
        ("max_gaussians=50", "ModelParams.max_gaussians"),
    ):
        assert main([*short, "--quiet", "--resume", "log_interval=3", word]) == 2
        said = capsys.readouterr().err
        assert f"as all 2 iterations are done, got other {name}; set more iterations" in said
        assert {name: (folder / name).read_bytes() for name in before} == before
    assert main([*short, "--quiet", "--resume", "save_process=true", "memory=8gb", "log_interval=3"]) == 0
    assert main([*short, "--quiet", "--resume", "text=a green duck", "iterations=3"]) == 0
    assert "green duck" in (folder / "config.yaml").read_text("utf-8")


def test_the_settings_beside_the_asset_are_settings():
    assert settings().keys() >= BESIDE_THE_ASSET


def test_resuming_names_what_changed_and_not_what_moved(short, tmp_path, caplog):
    """The settings of a run of before are at their former places; a damaged file does not keep a run from going on."""
    assert main([*short, "--quiet"]) == 0
    path = tmp_path / "run" / "config.yaml"
    tree = yaml.safe_load(path.read_text("utf-8"))
    for former, present in MOVED.items():
        group, key = present.split(".")
        if key in tree.get(group, {}):
            tree["GuidanceParams"][former.partition(".")[2]] = tree[group].pop(key)
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), "utf-8")
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    path = tmp_path / "elsewhere" / "config.yaml"
    short = [*short, "workspace=elsewhere"]
    optimize(configured([*short, "log_interval=3"]), resume=True, quiet=True)
    assert [line for line in caplog.messages if "other settings" in line] == [
        "resuming with other settings than before: log_interval"
    ]
    path.write_text("[", "utf-8")
    optimize(configured(short), resume=True, quiet=True)
    assert any("it is written anew" in line and "\n" not in line for line in caplog.messages)
    assert yaml.safe_load(path.read_text("utf-8"))["seed"] == 0


def test_resuming_names_weights_that_were_replaced_and_not_what_moved(short, prior, tmp_path, caplog):
    """The settings name the same folder, so nothing else tells that the asset is of two models."""
    words = [*short, f"model_key={shutil.copytree(prior, tmp_path / 'prior')}"]
    optimize(configured([*words, "iterations=1"]), quiet=True)
    moved = shutil.copytree(tmp_path / "prior", tmp_path / "moved")
    optimize(configured([*words, "iterations=2", f"model_key={moved}"]), resume=True, quiet=True)
    assert not [line for line in caplog.messages if "other weights" in line]
    weights = tmp_path / "prior" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_in.bias"] += 1
    save_file(tensors, weights, {"format": "pt"})
    optimize(configured([*words, "iterations=3"]), resume=True, quiet=True)
    (line,) = [line for line in caplog.messages if "other weights" in line]
    assert "unet/diffusion_pytorch_model.safetensors" in line and "text_encoder" not in line
    assert "give the folder those back or start anew" in line and "\n" not in line


def test_other_seeds_are_those_that_the_checkpoint_has_not(short, tmp_path, monkeypatch):
    """`config.yaml` has the new ones also where the first resume with them was killed before its checkpoint."""
    reseeded = []
    monkeypatch.setattr(Optimization, "reseed", lambda self: reseeded.append(self.step))
    assert main([*short, "--quiet"]) == 0
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text("utf-8").replace("seed: 0", "seed: 5"), "utf-8")
    for iterations in (3, 4):
        assert main([*short, "--quiet", "--resume", "seed=5", f"iterations={iterations}"]) == 0
    assert reseeded == [2]


@pytest.mark.parametrize("door", ["thread", "to_thread", "no_grad", "inference_mode", "own defaults"])
def test_python_may_call_from_anywhere(short, tmp_path, door):
    """As a server's worker does, or a notebook; numbers may be NumPy's."""
    changes = dict(word.split("=", 1) for word in short) | {
        "output_path": tmp_path,
        "iterations": np.int64(1),
    }
    changes |= {"fp16": np.bool_(False), "guidance_scale": np.float32(7.5), "t_range": np.array([0.1, 0.4])}
    changes.pop("text")

    def work():
        return generate("a red car", overrides=changes, quiet=True)

    if door == "thread":
        with ThreadPoolExecutor(1) as pool:
            result = pool.submit(work).result()
    elif door == "to_thread":
        result = asyncio.run(asyncio.to_thread(work))
    elif door == "own defaults":
        torch.set_default_dtype(torch.float64)
        try:
            with torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
                result = work()
                assert torch.empty(1).is_meta and torch.is_autocast_enabled("cpu")
            assert torch.get_default_dtype() == torch.float64
        finally:
            torch.set_default_dtype(torch.float32)
    else:
        with getattr(torch, door)():
            result = work()
    assert result.exit_code == 0 and len(result.gaussians) > 0


def test_the_random_numbers_of_a_caller_go_on_as_if_nothing_had_been_seeded():
    before = torch.get_rng_state()
    with plain_torch():
        torch.manual_seed(7)
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_two_runs_of_one_process_come_one_after_the_other(short, tmp_path):
    """They share torch's defaults and random numbers. A callback may make a run of its own."""
    codes, refusals = [], []

    def another(step, _):
        if step == 1:
            with ThreadPoolExecutor(1) as pool, pytest.raises(UserError) as refused:
                pool.submit(optimize, configured([*short, "workspace=second"]), quiet=True).result()
            refusals.append(str(refused.value))
            codes.append(optimize(configured([*short, "workspace=inner"]), quiet=True).exit_code)

    codes.append(optimize(configured(short), quiet=True, callback=another).exit_code)
    assert codes == [0, 0] and not (tmp_path / "second").exists()
    (line,) = refusals
    assert line.startswith(
        f"{tmp_path / 'second'}: expected no other run in this process, got one in another thread"
    )
    assert optimize(configured([*short, "workspace=second"]), quiet=True).exit_code == 0


@pytest.mark.parametrize("offline", ["1", None])
def test_the_libraries_of_models_are_afterwards_as_before(short, tmp_path, monkeypatch, offline):
    import diffusers
    import transformers
    from huggingface_hub import constants

    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "0" if offline is None else offline)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline is not None)

    def state():
        logs = [library.utils.logging for library in (diffusers, transformers)]
        seen = [(each.get_verbosity(), each.is_progress_bar_enabled()) for each in logs]
        words = [os.environ.get(name) for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")]
        return seen, words, constants.HF_HUB_OFFLINE, torch.get_default_dtype()

    verbosities = [library.utils.logging.get_verbosity() for library in (diffusers, transformers)]
    try:
        diffusers.utils.logging.set_verbosity_info()
        diffusers.utils.logging.enable_progress_bar()
        transformers.utils.logging.set_verbosity_debug()
        before, within = state(), []
        optimize(configured([*short, "offline=true"]), quiet=True, callback=lambda *_: within.append(state()))
        assert state() == before
        assert within[0][0][0] == (logging.ERROR, False) and within[0][1] == ["1", "1"]
        with pytest.raises(UserError):
            optimize(configured([*short, "offline=true", "text=" + "word " * 99, "workspace=b"]), quiet=True)
        assert state() == before
    finally:
        for library, verbosity in zip((diffusers, transformers), verbosities, strict=True):
            library.utils.logging.set_verbosity(verbosity)


def test_a_client_that_was_first_imported_offline_is_online_afterwards():
    code = (
        "import sys; from guidance.models import go_offline, kept_as_they_were\n"
        "with kept_as_they_were():\n"
        "    go_offline()\n"
        "    assert 'huggingface_hub' not in sys.modules\n"
        "    from huggingface_hub import constants\n"
        "    assert constants.HF_HUB_OFFLINE\n"
        "assert not constants.HF_HUB_OFFLINE"
    )
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)


def test_the_settings_of_python_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    default = inspect.signature(generate).parameters["settings"].default
    assert load(["--opt", str(default)])[0].GuidanceParams.model_key == "toybox"


@pytest.mark.parametrize("end", [ZeroDivisionError, SystemExit])
def test_a_callback_that_raises_loses_nothing(short, tmp_path, end):
    def callback(*_):
        raise end

    with pytest.raises(end):
        optimize(configured([*short, "checkpoint_interval=9"]), quiet=True, callback=callback)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["iterations"] == 1
    assert optimize(configured(short), resume=True, quiet=True).exit_code == 0


def test_a_callback_that_changes_the_working_directory_does_not_part_a_run(short, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    config = configured([*short, "output_path=output", "iterations=2"])
    result = optimize(config, quiet=True, callback=lambda *_: os.chdir(tmp_path / "elsewhere"))
    assert not any((tmp_path / "elsewhere").iterdir())
    assert result.folder == tmp_path / "output" / "run"
    assert json.loads((result.folder / "run.json").read_text())["finished"]
    assert {"config.yaml", "point_cloud", "checkpoints", "index.html"} <= set(os.listdir(result.folder))


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_an_unknown_prompt_is_looked_for_once_at_the_start(flags, short, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "dreammapping.optimization.warn_of_unknown_prompt", lambda params: asked.append(params.text)
    )
    assert main(["--quiet", *flags, *short]) == 0
    assert asked == ["a red car"]


def test_a_checkpoint_of_another_name_is_told(short, tmp_path):
    assert main(["--quiet", *short, "iterations=1"]) == 0
    saved = tmp_path / "run" / "checkpoints"
    (saved / "iteration_000001").rename(saved / "iteration_000002")
    with pytest.raises(UserError, match="expected the checkpoint of iteration 2, got that of 1"):
        optimize(configured(short), resume=True, quiet=True)


def test_steps_that_are_not_finite_are_skipped_and_then_stop_the_run(words):
    optimization = Optimization(configured(words))
    before = optimization.subject.gaussians.means.detach().clone()

    forward = optimization.guidance.forward

    def broken(images, *args):
        return dataclasses.replace(forward(images, *args), losses={"vdm": images.sum() * float("nan")})

    optimization.guidance.forward = broken
    for step in range(1, 10):
        optimization.iteration(step)
    assert optimization.skipped == 9 and torch.equal(optimization.subject.gaussians.means, before)
    with pytest.raises(UserError, match=r"not finite in 10 steps in a row.*--resume"):
        optimization.iteration(10)


def test_a_checkpoint_of_other_settings_is_refused(words, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run")
    said = r"does not fit these settings \(.*degradation.*\); resume with .* made with: GuidanceParams\.guidance differ"
    with pytest.raises(UserError, match=said):
        optimize(configured([*words, "guidance=sds"]), resume=True, quiet=True)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["model_key=nobody/nothing", "--offline"], "nobody/nothing"),
        (["text="], "text"),
        (["iteratoins=3"], "iterations"),
        (["device=cuda:99"], "device: expected one of this machine, got cuda:99"),
        (["device=mps"], "device: expected one of this machine, got mps"),
        (["init_shape=file", "init_path=/nowhere/a.ply"], "/nowhere/a.ply"),
        (["pretrained_model_path=/nowhere/b.ply"], "/nowhere/b.ply"),
        (["output_path=/proc/nowhere"], "/proc/nowhere"),
    ],
)
def test_what_a_user_can_cause_is_one_line_and_exit_2(words, extra, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert main(["--quiet", *words, *extra]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and message in errors


def test_a_dry_run_trains_nothing_and_says_what_a_run_would_take(words, tmp_path, capsys):
    assert main(["--quiet", "--dry-run", *words]) == 0
    report = capsys.readouterr().out
    assert "120 Gaussians" in report and "memory" in report and not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten(words, undisturbed, tmp_path, capsys):
    shutil.copytree(undisturbed, tmp_path / "run")
    before = final_ply(tmp_path / "run")
    assert main(["--quiet", *words]) == 2
    assert "--resume" in capsys.readouterr().err and final_ply(tmp_path / "run") == before


def test_python_gets_gaussians_and_folder_and_is_called_at_every_step(words, tmp_path):
    """The module's door gives what the command line gives, bit for bit."""
    assert main(["--quiet", "--opt", "configs/quickstart.yaml", *words, "workspace=command"]) == 0
    changes = dict(word.split("=", 1) for word in words) | {"workspace": "python", "output_path": tmp_path}
    changes.pop("text")
    seen = []
    result = generate(
        "a red car",
        overrides=changes,
        quiet=True,
        callback=lambda step, optimization: seen.append(
            (step, optimization.step, len(optimization.subject.gaussians))
        ),
    )
    assert [(step, at) for step, at, _ in seen] == [(step, step) for step in range(1, 9)]
    assert (result.folder, result.exit_code) == (tmp_path / "python", 0)
    assert len(result.gaussians) == seen[-1][2]
    assert final_ply(tmp_path / "python") == final_ply(tmp_path / "command")


def test_a_run_of_a_preset_is_labelled(words, tmp_path, caplog):
    main(["--quiet", "--preset", "fast", *words, "iterations=1", "pro_frames_num=1"])
    assert "preset fast: this is not the paper's setting" in caplog.text
    assert json.loads((tmp_path / "run" / "run.json").read_text())["preset"] == "fast"


def test_a_broken_step_is_skipped_on_the_device_and_leaves_parameters_and_moments(words):
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizers = [torch.optim.Adam([parameter], lr=0.1, fused=True), torch.optim.SGD([parameter], lr=0.1)]
    for optimizer in optimizers:
        parameter.grad = torch.full((3,), 2.0)
        step_unless(optimizer, torch.tensor(0.0))
        before, state = parameter.detach().clone(), copy.deepcopy(optimizer.state_dict())
        assert not torch.equal(before, torch.ones(3))
        parameter.grad = torch.full((3,), float("nan"))
        step_unless(optimizer, torch.tensor(1.0))
        assert torch.equal(parameter, before)
        assert str(optimizer.state_dict()) == str(state)


def test_an_iteration_never_waits_for_a_gpu(words, gpu, monkeypatch):
    """Everything but the rasterizer and density control, which decide on the host how much there is."""
    optimization = Optimization(configured([*words, "device=cuda", "densify_until_iter=0"]))
    optimization.iteration(1)
    kept = gaussians.render
    monkeypatch.setattr(gaussians, "render", lambda *args, **options: _unwatched(kept, *args, **options))
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimization.iteration(2)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _unwatched(function, *args, **options):
    torch.cuda.set_sync_debug_mode("default")
    try:
        return function(*args, **options)
    finally:
        torch.cuda.set_sync_debug_mode("error")
