"""A headless browser for tests: Chromium, driven by ChromeDriver over W3C WebDriver, the protocol of all browsers."""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SWITCHES = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-quic",
)  # fmt: skip
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


def missing_browser() -> str | None:
    """Why no browser can be had here; None where one can."""
    if _chromium() is None:
        return "needs Chromium"
    return None if shutil.which("chromedriver") else "needs ChromeDriver"


def _chromium() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """A window. `downloads` is where it saves files."""

    def __init__(self, address: str, session: str, downloads: Path) -> None:
        self.address, self.session, self.downloads = address, session, downloads

    def _ask(self, path: str, body: dict[str, Any] | None = None, method: str | None = None) -> Any:
        return ask(f"{self.address}/session/{self.session}{path}", body, method)

    def open(self, address: str) -> None:
        self._ask("/url", {"url": address})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns."""
        return self._ask("/execute/sync", {"script": script, "args": arguments})

    def find(self, selector: str) -> list[str]:
        found = self._ask("/elements", {"using": "css selector", "value": selector})
        return [each[ELEMENT] for each in found]

    def click(self, element: str) -> None:
        """With the mouse, in the middle of what can be seen of it."""
        self._ask(f"/element/{element}/click", {})

    def text(self, selector: str) -> str:
        return self._ask(f"/element/{self.find(selector)[0]}/text", None)

    def shown(self, selector: str) -> bool:
        return self._ask(f"/element/{self.find(selector)[0]}/displayed", None)

    def type(self, text: str) -> None:
        """Keys, pressed and let go one after the other, wherever the focus is."""
        keys = [{"type": kind, "value": key} for key in text for kind in ("keyDown", "keyUp")]
        self._ask("/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": keys}]})
        self._settle()

    def _settle(self) -> None:
        """Let the page take what was handed to it: a script could overtake keys that wait for the next frame."""
        script = "const done = arguments[0]; requestAnimationFrame(() => setTimeout(done))"
        self._ask("/execute/async", {"script": script, "args": []})

    def tap(self, element: str) -> None:
        """With a finger."""
        touch = [
            {"type": "pointerMove", "origin": {ELEMENT: element}, "x": 0, "y": 0},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        ]
        self.run("arguments[0].scrollIntoView({block: 'center'})", {ELEMENT: element})
        actions = {
            "type": "pointer",
            "id": "finger",
            "parameters": {"pointerType": "touch"},
            "actions": touch,
        }
        self._ask("/actions", {"actions": [actions]})
        self._settle()

    def screenshot(self) -> str:
        """A PNG, in base64."""
        return self._ask("/screenshot", None)

    def log(self) -> list[str]:
        """What the page has written into its console, errors of its own and refusals of its policy among it."""
        return [entry["message"] for entry in self._ask("/se/log", {"type": "browser"})]


def ask(address: str, body: dict[str, Any] | None = None, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(json.load(error)["value"]["message"]) from error


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A window whose profile and downloads are in a folder; closed at the end of the block."""
    downloads = folder / "downloads"
    downloads.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen(
        ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                if ask(f"{address}/status")["ready"]:
                    break
            except OSError:
                time.sleep(0.1)
        options = {
            "binary": _chromium(),
            "args": [*SWITCHES, f"--user-data-dir={folder / 'profile'}"],
            "prefs": {"download.default_directory": str(downloads), "download.prompt_for_download": False},
        }
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        session = ask(f"{address}/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        window = Browser(address, session, downloads)
        try:
            yield window
        finally:
            window._ask("", method="DELETE")
    finally:
        driver.terminate()
        driver.wait()
