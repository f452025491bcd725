"""A publisher of weights on this machine: an HTTP server that answers as Hugging Face and GitHub do, or fails."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTENT = bytes(range(256)) * 20_000
HASH = hashlib.sha256(CONTENT).hexdigest()
TOKEN = "hf_mine"


@dataclass
class Publisher:
    """What the server does, and what it was asked."""

    port: int = 0
    asset: str = "weights.safetensors"
    hash: str = HASH
    commit: str | None = "c" * 40
    gated: bool = False
    status: int | None = None
    storage_status: int | None = None
    cuts: list[int] = field(default_factory=list)
    silence: float = 0
    stall: threading.Event | None = None
    content: bytes = CONTENT
    claimed: int | None = None
    place: str = "http://localhost:{port}/storage"
    ranges: bool = True
    digest: str | None = f"sha256:{HASH}"
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)


@contextmanager
def serve(state: Publisher) -> Iterator[str]:
    """Run the server; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            headers = self.headers
            state.requests.append((self.command, self.path, headers["Range"], headers["Authorization"]))
            if self.path == "/storage":
                return self.send_content()
            if state.status is not None:
                return self.send_error(state.status)
            if self.path.startswith("/repos/"):
                asset = {"name": state.asset, "digest": state.digest}
                return self.send(200, json.dumps({"assets": [asset]}).encode())
            if state.gated and headers["Authorization"] != f"Bearer {TOKEN}":
                return self.send(401, b"", {"X-Error-Code": "GatedRepo"})
            place = {"Location": state.place.format(port=state.port), "X-Linked-ETag": f'"{state.hash}"'}
            place |= {"X-Linked-Size": str(len(state.content))}
            return self.send(302, b"", place | ({"X-Repo-Commit": state.commit} if state.commit else {}))

        def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def send_content(self) -> None:
            if state.storage_status is not None:
                return self.send_error(state.storage_status)
            start = int((self.headers["Range"] or "bytes=0-")[6:-1]) if state.ranges else 0
            body = state.content[start:]
            if start and not body:
                return self.send(416, b"")
            self.send_response(206 if start else 200)
            if start:
                end = len(state.content)
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
            self.send_header("Content-Length", str(state.claimed or len(body)))
            self.end_headers()
            sent = body[: state.cuts.pop(0)] if state.cuts else body
            self.wfile.write(sent[: len(sent) // 2])
            self.wfile.flush()
            if state.stall is not None:
                state.stall.wait(20)
            time.sleep(state.silence)
            if not state.silence:
                self.wfile.write(sent[len(sent) // 2 :])
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.port = server.server_port
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{state.port}"
    server.shutdown()
    server.server_close()
