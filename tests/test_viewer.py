"""The verb `view`: its address, for whom it listens, and what it refuses."""

import signal
import socket
import subprocess
import urllib.request

import psutil
import pytest

from dreammapping.__main__ import main as verbs
from dreammapping.viewer import needs
from dreammapping.viewer.server import TRIES, directions, free_port, is_local
from tests.finished_run import finished_run
from tests.viewer_process import LONG, address_said, started
from utils.errors import UserError

pytestmark = pytest.mark.whole_runs


# Its address


def test_the_next_free_port_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = free_port("127.0.0.1", port)
        assert port < found <= port + TRIES


def test_no_free_port_and_no_such_address_are_said(monkeypatch):
    def refuse(*_):
        raise OSError(98, "Address already in use")

    with pytest.raises(
        UserError, match=r"--host: expected an address of this machine, got .nowhere\.invalid"
    ):
        free_port("nowhere.invalid", 8080)
    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(
        UserError, match=r"--port: expected a free one from 65530 to 65535 .*Address already in use"
    ):
        free_port("127.0.0.1", 65530)


@pytest.mark.parametrize("host", ["192.0.2.1", "", "a b", "x" * 300, "\udcff"])
def test_what_is_no_address_of_this_machine_is_said_whatever_is_wrong_with_it(host):
    with pytest.raises(UserError, match="--host: expected an address of this machine, got") as error:
        free_port(host, 8080)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("host", "local", "listens"),
    [
        ("127.0.0.1", True, "127.0.0.1"),
        ("localhost", True, "localhost"),
        ("::1", True, "[::1]"),
        ("127.8.8.8", True, "127.8.8.8"),
        ("0.0.0.0", False, "127.0.0.1"),
        ("::", False, "[::1]"),
        ("10.0.0.1", False, "10.0.0.1"),
    ],
)
def test_the_address_that_is_said_is_one_that_is_listened_to(host, local, listens):
    assert is_local(host) == local
    said = directions(host, 8081)
    assert f"viewer: http://{listens}:8081\n" in said and f"ssh -L 8081:{listens}:8081 " in said
    assert ("then the same address there" in said) == (listens == "127.0.0.1")


# The verb


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("runs") / "car")


def test_a_finished_run_is_shown_to_this_machine_alone_until_ctrl_c(folder):
    pytest.importorskip("viser", reason="needs viser: pip install .")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = started(folder, "--port", str(port))
        try:
            lines = iter(process.stdout.readline, "")
            assert next(lines).startswith("50 Gaussians: "), "how much there is comes first"
            address = address_said(lines)
            assert address.startswith("http://127.0.0.1:") and address != f"http://127.0.0.1:{port}"
            assert urllib.request.urlopen(address, timeout=LONG).status == 200
            listening = [
                link.laddr.ip
                for link in psutil.Process(process.pid).net_connections()
                if link.status == "LISTEN"
            ]
            assert set(listening) == {"127.0.0.1"}
            process.send_signal(signal.SIGINT)
            assert process.wait(LONG) == 130
            assert process.stderr.read().splitlines()[-1] == "stopped; repeat the command to look again"
        finally:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("sent", [b"\xc1 no message", "text", b"\x81\xa4type\xa5Evil!"])
def test_what_no_browser_sends_is_one_line_and_ends_no_viewer(folder, sent):
    viser = pytest.importorskip("viser", reason="needs viser: pip install .")
    from websockets.sync.client import connect

    process = started(folder)
    try:
        address = address_said(iter(process.stdout.readline, ""))
        spoken = [f"viser-v{viser.__version__}"]
        with connect(address.replace("http", "ws"), subprotocols=spoken, max_size=None) as link:
            link.send(sent)
            with pytest.raises(Exception, match="1011"):  # the server's end of it
                while True:
                    link.recv(LONG)
        assert urllib.request.urlopen(address, timeout=LONG).status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(LONG) == 130
        said = process.stderr.read()
        assert "connection handler failed (" in said and "Traceback" not in said
    finally:
        process.kill()
        process.communicate()


def test_the_viewer_of_a_run_ends_with_it(folder, tmp_path):
    pytest.importorskip("viser", reason="needs viser: pip install .")
    process = started(folder, "--beside", str(tmp_path), "--port", "8300", stdin=subprocess.PIPE)
    try:
        address_said(process.stderr)
        process.stdin.close()
        assert process.wait(LONG) == 0
    finally:
        process.kill()
        process.stdin = None
        process.communicate()


BAD = {
    "no run": ([], lambda folder, tmp_path: tmp_path, "expected a run with its config.yaml"),
    "no such iteration": (["--iteration", "7"], lambda folder, _: folder, "expected iteration 10, 20, got 7"),
    "no such port": (["--port", "70000"], lambda folder, _: folder, "--port: expected 1 to 65535, got 70000"),
    "no such host": (["--host", "nowhere.invalid"], lambda folder, _: folder, "--host: expected an address"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_shown_is_one_line(folder, tmp_path, capsys, monkeypatch, what):
    monkeypatch.setattr(needs, "find_spec", lambda name: object())
    words, place, said = BAD[what]
    assert verbs(["view", str(place(folder, tmp_path)), *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_an_empty_asset_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(needs, "find_spec", lambda name: object())
    folder = finished_run(tmp_path / "run")
    for path in folder.rglob("point_cloud.ply"):
        path.write_bytes(b"")
    assert verbs(["view", str(folder)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
