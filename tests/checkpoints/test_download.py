"""Downloads against a real HTTP server on this machine: whole, cut, refused, wrong, redirected."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from onestep_sr.sr_models.checkpoints.download import HuggingFaceFile, download
from onestep_sr.sr_models.commands.cli import app
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families.published import PUBLISHED, files_of

CONTENT = bytes(range(256)) * 20_000
HASH = hashlib.sha256(CONTENT).hexdigest()
FILE = HuggingFaceFile("somebody/model", "weights.safetensors", "free")
PATH = "/somebody/model/resolve/main/weights.safetensors"


@dataclass
class Publisher:
    """What the server does, and what it was asked."""

    port: int = 0
    cut_after: int | None = None
    hash: str = HASH
    gated: bool = False
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    state = Publisher()

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
            if self.path == PATH:
                if state.gated and headers["Authorization"] != "Bearer mine":
                    return self.send_error(401)
                self.send_response(302)
                self.send_header("Location", f"http://localhost:{state.port}/storage")
                self.send_header("X-Linked-ETag", f'"{state.hash}"')
                self.end_headers()
                return None
            start = int((headers["Range"] or "bytes=0-")[6:-1])
            if start >= len(CONTENT):
                return self.send_error(416)
            body = CONTENT[start:]
            self.send_response(206 if headers["Range"] else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            sent = body if state.cut_after is None else body[: state.cut_after]
            state.cut_after = None
            self.wfile.write(sent)
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.port = server.server_port
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{state.port}/")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()


def ignore(there: int, total: int) -> None:
    pass


def test_a_file_arrives_whole_from_the_mirror(publisher: Publisher, tmp_path: Path) -> None:
    seen = []
    assert download(FILE, tmp_path / "new", lambda *progress: seen.append(progress)) == HASH
    assert (tmp_path / "new" / FILE.name).read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "new").iterdir()] == [FILE.name]
    assert seen == sorted(seen) and seen[-1] == (len(CONTENT), len(CONTENT))
    asked = len(publisher.requests)
    assert download(FILE, tmp_path / "new", ignore) == HASH
    assert len(publisher.requests) == asked, "what is there is not asked for"


def test_a_cut_download_goes_on_where_it_stopped(publisher: Publisher, tmp_path: Path) -> None:
    publisher.cut_after = 1_500_000
    with pytest.raises(UserError, match=r"cannot be read .* run the command again"):
        download(FILE, tmp_path, ignore)
    assert not (tmp_path / FILE.name).exists()
    held = (tmp_path / f".{FILE.name}.part").stat().st_size
    assert 0 < held <= 1_500_000
    assert download(FILE, tmp_path, ignore) == HASH
    assert publisher.requests[-1][2] == f"bytes={held}-"
    assert (tmp_path / FILE.name).read_bytes() == CONTENT


def test_a_part_that_is_complete_is_only_checked(publisher: Publisher, tmp_path: Path) -> None:
    (tmp_path / f".{FILE.name}.part").write_bytes(CONTENT)
    assert download(FILE, tmp_path, ignore) == HASH


@pytest.mark.parametrize("given", [None, "0" * 64])
def test_a_wrong_hash_leaves_nothing(publisher: Publisher, tmp_path: Path, given: str | None) -> None:
    publisher.hash = HASH if given else "f" * 64
    with pytest.raises(UserError, match=f"came with the hash {HASH} in place of"):
        download(FILE, tmp_path, ignore, given)
    assert not list(tmp_path.iterdir())


def test_a_token_opens_gated_files_and_does_not_travel_on(
    publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.gated = True
    with pytest.raises(UserError, match=r"answered 401 .*: accept its licence at .* and set HF_TOKEN"):
        download(FILE, tmp_path, ignore)
    monkeypatch.setenv("HF_TOKEN", "mine")
    assert download(FILE, tmp_path, ignore) == HASH
    assert {token for _, path, _, token in publisher.requests if path == "/storage"} == {None}


def test_offline_is_honoured(publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids"):
        download(FILE, tmp_path, ignore)
    assert not publisher.requests and not list(tmp_path.iterdir())


def test_an_address_that_nobody_answers_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9.* cannot be read"):
        download(FILE, tmp_path, ignore)


def test_the_command_fetches_by_name(publisher: Publisher, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(PUBLISHED, "sd3-medium", (FILE,))
    assert app(["download", "sd3-medium", "--to", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert f"sha256 {HASH}" in output.replace("\n", "") and "free" in output
    assert (tmp_path / FILE.name).read_bytes() == CONTENT


@pytest.mark.parametrize(("name", "words"), [("tsd-sr", "page for browsers"), ("nothing", "'nothing' is unknown")])
def test_what_cannot_be_fetched_is_said(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        files_of(name)


def test_the_tables_addresses_are_complete() -> None:
    for files in PUBLISHED.values():
        for file in files:
            assert file.url.startswith("https://") and file.url.endswith(file.name) and file.licence
