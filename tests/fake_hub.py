"""A model hub on this machine's loopback, for the hub's real client: repositories are dicts of file names and bytes."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REVISION = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".bin", ".ckpt")


class FakeHub:
    """What it holds (`repositories`), what it guards (`gated`), and what it was asked (`requests`)."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.requests: list[str] = []
        self.wrong_hash: set[str] = set()

    def downloads(self) -> list[str]:
        return [
            path.partition(f"/resolve/{REVISION}/")[2]
            for path in self.requests
            if "GET" in path and "/resolve/" in path
        ]

    def tree(self, files: dict[str, bytes]) -> list[dict]:
        return [self._entry(name, content) for name, content in files.items()]

    def _entry(self, name: str, content: bytes) -> dict:
        oid = hashlib.sha1(content).hexdigest()
        entry = {
            "type": "file",
            "path": name,
            "rfilename": name,
            "size": len(content),
            "oid": oid,
            "blobId": oid,
        }
        if name.endswith(LARGE):
            entry["lfs"] = {"oid": self.digest(name, content), "sha256": self.digest(name, content),
                            "size": len(content), "pointerSize": 130}  # fmt: skip
        return entry

    def digest(self, name: str, content: bytes) -> str:
        return "0" * 64 if name in self.wrong_hash else hashlib.sha256(content).hexdigest()


class Server(ThreadingHTTPServer):
    request_queue_size = 64  # the client opens many connections at once
    daemon_threads = True


@contextmanager
def serve(hub: FakeHub) -> Iterator[str]:
    """Serve it; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            hub.requests.append(f"{self.command} {path}")
            parts = path.removeprefix("/api/models").strip("/").split("/")
            name = "/".join(parts[:2])
            files = hub.repositories.get(name)
            if files is None:
                return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
            if name in hub.gated:
                return self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
            if path.startswith("/api/models"):
                tree = hub.tree(files)
                info = {
                    "id": name,
                    "sha": REVISION,
                    "siblings": tree,
                    "tags": [],
                    "downloads": 0,
                    "private": False,
                }
                answer = tree if "/tree/" in path else info
                return self.answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})
            file = "/".join(parts[4:])
            if file not in files:
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            etag = hub.digest(file, files[file])
            return self.answer(200, files[file], {"X-Repo-Commit": REVISION, "ETag": f'"{etag}"'})

        def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for header, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(header, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
