"""Sweeps of whole tiny runs: the bits of each are those of the run alone, whatever is killed on the way.

The long form (`pytest -m slow`, SWEEP_KILLS and SOAK_SEED in the environment) kills two hundred times.
"""

import io
import ipaddress
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib import metadata

import numpy as np
import psutil
import pytest
from plyfile import PlyData

from dreammapping.sweep.attempt import start_of
from dreammapping.sweep.command import main
from dreammapping.sweep.ledger import Ledger
from dreammapping.sweep.retries import STOPPED
from dreammapping.sweep.status import DONE, FAILED, RUNNING
from tests.faults import programs
from tests.faults.programs import Program, Programs, size_and_seed
from tests.sweeping import PROMPTS, SETTINGS, fork_workers, ply, told, write_prompts

if sys.platform != "linux":
    pytest.skip("needs Linux: fork, and processes that adopt", allow_module_level=True)

QUICK = str(programs.ROOT / "configs/quickstart.yaml")
COMMAND = ("dreammapping.sweep.command", "main")


def words_of(server: Programs, where, *more: str) -> list[str]:
    """A sweep of both prompts, with a seed that is no default of anything."""
    file = where / "sweep.yaml"
    file.write_text(f"opt: {QUICK}\nprompts: {write_prompts(where)}\nseeds: [3]\n", encoding="utf-8")
    return [
        str(file), "--output", str(where / "sweep"), "--workers", "2", "--no-pages", *SETTINGS,
        f"model_key={server.prior}", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def alone(server, tmp_path_factory):
    """The asset of a run that train.py makes, by prompt, method and seed."""
    found = {}

    def of(prompt: str, method: str, seed: int) -> bytes:
        key = prompt, method, seed
        if key not in found:
            where = tmp_path_factory.mktemp("alone")
            run = server.start(
                where, ["--opt", QUICK, f"text={prompt}", f"guidance={method}", f"seed={seed}"]
            )
            assert run.wait() == 0, run.said
            found[key] = ply(where / "run")
        return found[key]

    return of


def check(folder, alone) -> None:
    """Every run is done, once, with the bits that it has alone."""
    ledger = Ledger(folder)
    for name, job in ledger.jobs.items():
        status = ledger.read(name)
        assert status is not None and status.state == DONE, told(folder)
        assert [attempt.outcome for attempt in status.attempts].count("done") == 1, told(folder)
        assert ply(folder / name) == alone(job.prompt, job.varied["GuidanceParams.guidance"], job.seed), name
    assert sorted(path.name for path in (folder / "status").glob("*/taken-*")) == []


def storm(server, where, alone, words, kills: int, rng: random.Random) -> int:
    """Kill workers and the driver, and start the command again whenever it is gone; returns how many of the kills are
    left at the end of the sweep."""
    sweep = where / "sweep"
    driver = server.call(where, COMMAND, words, (fork_workers, []))
    while kills:
        time.sleep(rng.uniform(0.1, 1.5))
        if rng.random() < 0.25:
            driver.signal(signal.SIGKILL)
            kills -= 1
            driver.wait()
            driver = server.call(where, COMMAND, words, (fork_workers, []))
            continue
        if not (sweep / "sweep.json").is_file():
            continue
        ledger = Ledger(sweep)
        known = [status for name in ledger.jobs if (status := ledger.read(name)) is not None]
        if all(status.state in (DONE, FAILED) for status in known) and known:
            break
        held = [status.worker.process for status in known if status.worker and not status.worker.has_died()]
        if held:
            with suppress(ProcessLookupError):
                os.kill(rng.choice(held), signal.SIGKILL)
                kills -= 1
    assert driver.wait(600.0) == 0, driver.said + told(sweep)
    check(sweep, alone)
    return kills


def test_runs_of_a_sweep_have_the_bits_that_they_have_alone_and_a_kill_changes_none(server, alone, tmp_path):
    words = words_of(server, tmp_path, "guidance=[vdm]", "--losses", "100")
    storm(server, tmp_path, alone, words, kills=2, rng=random.Random(0))
    rows = json.loads((tmp_path / "sweep" / "results.json").read_text())
    assert len(rows) == 2 and all(row["state"] == DONE and row["iterations"] == 10 for row in rows)
    assert {row["prompt"] for row in rows} == set(PROMPTS)


def test_actors_of_ray_do_the_same_and_a_dead_one_changes_no_bit(server, alone, tmp_path):
    pytest.importorskip("ray")
    words = words_of(server, tmp_path, "guidance=[vdm]", "--losses", "100", "--ray", "--cpus", "0.5")
    with (tmp_path / "said.txt").open("wb") as said:
        driver = subprocess.Popen(
            [sys.executable, "-m", "dreammapping", "sweep", *words],
            cwd=programs.ROOT, stdout=said, stderr=said,
        )  # fmt: skip
    try:
        killed = kill_one(tmp_path / "sweep", driver)
        assert heard_beyond_loopback(driver.pid) == []
        assert driver.wait(600.0) == 0, (tmp_path / "said.txt").read_text() + told(tmp_path / "sweep")
    finally:
        driver.kill()
        driver.wait()
    check(tmp_path / "sweep", alone)
    ledger = Ledger(tmp_path / "sweep")
    ends = [attempt.outcome for name in ledger.jobs for attempt in ledger.read(name).attempts]
    assert killed and ends.count("lost") == 1
    assert len({attempt.process for name in ledger.jobs for attempt in ledger.read(name).attempts}) >= 2


def kill_one(sweep, driver) -> bool:
    """Kill the first worker that has come to an iteration."""
    while driver.poll() is None:
        time.sleep(0.02)
        if list(sweep.glob("*/metrics.jsonl")):
            ledger = Ledger(sweep)
            held = [status.worker for name in ledger.jobs if (status := ledger.read(name)) and status.worker]
            if held:
                os.kill(held[0].process, signal.SIGKILL)
                return True
    return False


def is_loopback(address: str) -> bool:
    """Also as systems write it that hear both kinds of address at one place: `::ffff:127.0.0.1`."""
    found = ipaddress.ip_address(address)
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def heard_beyond_loopback(process: int) -> list[str]:
    """Where a process and all below it listen for other machines."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for each in [psutil.Process(process), *psutil.Process(process).children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                found += [
                    f"{each.name()} at {one.laddr.ip}:{one.laddr.port}"
                    for one in each.net_connections(kind="inet")
                    if one.status == psutil.CONN_LISTEN and not is_loopback(one.laddr.ip)
                ]
    return found


@pytest.mark.parametrize("version", [None, "1.13.0", "2.59.1", "3.0.0"])
def test_ray_that_is_missing_or_of_another_version_is_one_line(tmp_path, monkeypatch, capsys, version):
    def found(name):
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr("dreammapping.sweep.on_ray.metadata.version", found)
    prompts = write_prompts(tmp_path)
    assert (
        main(["--prompts", str(prompts), "--opt", QUICK, "--output", str(tmp_path / "sweep"), "--ray"]) == 2
    )
    error = capsys.readouterr().err
    assert f"expected Ray 2.60 or newer below 3, got {version or 'none'}" in error and error.count("\n") == 1
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_hundreds_of_kills_change_no_bit(server, alone, tmp_path):
    kills, seed = size_and_seed("SWEEP_KILLS", 200)
    rng, sweeps = random.Random(seed), 0
    while kills:  # a sweep may be done before all of them
        where, sweeps = tmp_path / str(sweeps), sweeps + 1
        words = words_of(server, where, "guidance=[vdm,vsd]", "--losses", "1000", "--seeds", "6")
        kills = storm(server, where, alone, words, kills, rng)
        print(f"{sweeps} sweeps of 24 runs, {kills} kills left")  # noqa: T201 - how far it is


@pytest.mark.slow
def test_a_killed_process_of_a_group_costs_no_more_than_its_steps(server, alone, tmp_path):
    words = words_of(server, tmp_path, "guidance=[vdm]", "--workers", "1", "--cards", "2", "--no-pages")
    write_prompts(tmp_path, PROMPTS[:1])
    driver = server.call(tmp_path, COMMAND, words, (fork_workers, []))
    sweep = tmp_path / "sweep"
    until(lambda: list(sweep.glob("*/checkpoints/iteration_*")), driver)
    group = [
        each
        for each in psutil.Process(driver.process).children(recursive=True)
        if "dreammapping.sweep.group" in " ".join(each.cmdline()) and each.environ().get("RANK") == "1"
    ]
    assert len(group) == 1, told(sweep)
    group[0].kill()
    assert driver.wait(1200.0) == 0, driver.said + told(sweep)
    (name,) = Ledger(sweep).jobs
    lost, done = Ledger(sweep).read(name).attempts
    assert (lost.outcome, done.outcome) == ("lost", "done") and 0 < done.start < 10, told(sweep)
    theirs, ours = (
        PlyData.read(io.BytesIO(text))["vertex"].data
        for text in (alone("a red car", "vdm", 3), ply(sweep / name))
    )
    assert len(theirs) == len(ours)
    for axis in "xyz":  # but for the order of sums; those of which no view says anything may go anywhere
        assert np.isclose(theirs[axis], ours[axis], rtol=1e-3, atol=1e-3).mean() > 0.5


def test_what_cannot_be_run_fails_with_its_reason_and_the_rest_goes_on(server, alone, tmp_path):
    words = words_of(server, tmp_path, "guidance=[vdm]")
    write_prompts(tmp_path, ("a red car", "very " * 100 + "red car"))
    driver = server.call(tmp_path, COMMAND, words, (fork_workers, []))
    assert driver.wait() == 1, driver.said
    ledger = Ledger(tmp_path / "sweep")
    good, bad = (ledger.read(name) for name in ledger.jobs)
    assert (good.state, bad.state, len(bad.attempts)) == (DONE, FAILED, 1)
    assert "tokens" in bad.reason and f"failed: {list(ledger.jobs)[1]}: {bad.reason}" in driver.said


def test_a_stopped_sweep_saves_what_it_is_at_and_goes_on(server, alone, tmp_path):
    words = words_of(server, tmp_path, "guidance=[vdm]", "checkpoint_interval=1000")
    driver = server.call(tmp_path, COMMAND, words, (fork_workers, []))
    sweep = tmp_path / "sweep"
    until(lambda: list(sweep.glob("*/metrics.jsonl")), driver)
    driver.signal(signal.SIGTERM)
    assert driver.wait() == 143 and "repeat the command to continue" in driver.said, driver.said
    ledger = Ledger(sweep)
    assert all(ledger.read(name).state != RUNNING for name in ledger.jobs), told(sweep)
    begun = [name for name in ledger.jobs if (sweep / name / "metrics.jsonl").exists()]
    stopped = [name for name in begun if ledger.read(name).attempts[-1].outcome == STOPPED]
    saved = {name: start_of(ledger, name) for name in stopped}
    assert saved and all(saved.values()), told(sweep)
    again = server.call(tmp_path, COMMAND, words, (fork_workers, []))
    assert again.wait() == 0, again.said
    check(sweep, alone)
    assert {name: ledger.read(name).attempts[1].start for name in stopped} == saved


def until(there, driver: Program, seconds: float = 300.0) -> None:
    """Wait until something is there; not for ever, and not for a driver that has ended."""
    end = time.monotonic() + seconds
    while not there():
        alive = psutil.Process(driver.process).status() != psutil.STATUS_ZOMBIE
        assert alive and time.monotonic() < end, driver.said
        time.sleep(0.02)
