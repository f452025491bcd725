"""Downloads against a real HTTP server on this machine: whole, cut, silent, refused, wrong, redirected."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
import requests
from filelock import FileLock
from huggingface_hub import constants as hub_constants
from onestep_sr.sr_models.checkpoints import download as download_module
from onestep_sr.sr_models.checkpoints.download import (
    GitFile,
    GitHubFile,
    HuggingFaceFile,
    PublishedFile,
    _refuse_other_scheme,
    download,
)
from onestep_sr.sr_models.commands.cli import app
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families.family import Family
from onestep_sr.sr_models.families.published import PUBLISHED, Weights, weights_of
from onestep_sr.sr_models.families.registry import FAMILIES
from publisher import CONTENT, HASH, TOKEN, Publisher, serve

FILE = HuggingFaceFile("somebody/model", "weights.safetensors", "free")
ASSET = GitHubFile("somebody/model", "v1", "weights.safetensors", "free", HASH)
RECORDED = GitHubFile("somebody/model", "v1", "weights.safetensors", "free")
HALVES = pytest.mark.parametrize("file", [FILE, ASSET], ids=["Hugging Face", "GitHub"])
PAGE = b"<!DOCTYPE html><html>Sign in to the hotel's network</html>"


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Publisher]:
    state = Publisher()
    with serve(state) as address:
        monkeypatch.setenv("HF_ENDPOINT", address + "/")
        for name in ("GITHUB", "GITHUB_API"):
            monkeypatch.setattr(download_module, name, address)
        monkeypatch.setattr(hub_constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
        monkeypatch.setattr(hub_constants, "DOWNLOAD_CHUNK_SIZE", 2**18)
        yield state


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "new"
    made.mkdir()
    return made


def ignore(done: int, total: int) -> None:
    pass


def refusal(file: PublishedFile, folder: Path, *arguments, keeps: bool = False) -> str:
    """The one sentence, after which the folder holds nothing, or what has arrived so far where the next run can go on
    from it."""
    with pytest.raises(UserError) as caught:
        download(file, folder, ignore, *arguments)
    message = str(caught.value)
    assert message.endswith(".") and message.isprintable() and TOKEN not in message
    assert caught.value.__cause__ is None, "no other error, which may show a token, is printed with it"
    assert [path.name for path in folder.iterdir()] == ([f".{file.name}.part"] if keeps else [])
    return message


@HALVES
def test_a_file_arrives_whole(publisher: Publisher, folder: Path, file: PublishedFile) -> None:
    seen = []
    assert download(file, folder / "deeper", lambda *progress: seen.append(progress)) == HASH
    assert (folder / "deeper" / file.name).read_bytes() == CONTENT
    assert [path.name for path in (folder / "deeper").iterdir()] == [file.name]
    assert seen[-1] == (len(CONTENT), len(CONTENT)) and len(seen) > 1
    assert all(0 < done <= total == len(CONTENT) for done, total in seen)


@HALVES
def test_what_is_there_is_compared_and_not_asked_for(publisher: Publisher, folder: Path, file: PublishedFile) -> None:
    (folder / file.name).write_bytes(CONTENT)
    assert download(file, folder, ignore) == download(file, folder, ignore, f"SHA256:{HASH.upper()}") == HASH
    with pytest.raises(UserError, match=f"has the hash {HASH} instead of {'0' * 64}: delete it"):
        download(file, folder, ignore, "0" * 64)
    (folder / file.name).write_bytes(b"other")
    if file.sha256:
        with pytest.raises(UserError, match=f"instead of {HASH}: delete it"):
            download(file, folder, ignore)
    assert not publisher.requests


def test_a_cut_download_goes_on_where_it_stopped(publisher: Publisher, folder: Path) -> None:
    publisher.cuts = [1_500_000, 700_000]
    assert download(FILE, folder, ignore) == HASH
    starts = [int(asked[6:-1]) for *_, asked, _ in publisher.requests if asked]
    assert len(starts) == 2 and 0 < starts[0] < starts[1] < len(CONTENT)
    assert (folder / FILE.name).read_bytes() == CONTENT


def working_folder(folder: Path) -> Path:
    return folder / f".{FILE.name}.part"


@HALVES
def test_an_interrupted_download_goes_on_in_the_next_run(publisher: Publisher, folder: Path, file) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > len(CONTENT) // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(file, folder, interrupt)
    assert [path.name for path in folder.iterdir()] == [working_folder(folder).name]
    (folder / f".{file.name}.a_b1c2d3").mkdir()  # of an earlier version
    (folder / f".{file.name}.mine").mkdir()
    seen = []
    assert download(file, folder, lambda *progress: seen.append(progress)) == HASH
    [start] = [int(asked[6:-1]) for *_, asked, _ in publisher.requests if asked and asked != "bytes=0-"][-1:]
    assert len(CONTENT) // 4 < start < len(CONTENT)
    assert min(seen)[0] > start and seen[-1] == (len(CONTENT), len(CONTENT))
    assert {path.name for path in folder.iterdir()} == {file.name, f".{file.name}.mine"}


def test_a_killed_download_goes_on_in_the_next_run(publisher: Publisher, folder: Path) -> None:
    publisher.stall = threading.Event()
    script = (
        f"import {download_module.__name__} as module; from pathlib import Path\n"
        f"module.download(module.{FILE!r}, Path({str(folder)!r}), lambda done, total: print(done, flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        while int(child.stdout.readline()) < len(CONTENT) // 4:
            pass
        child.kill()
    publisher.stall.set()
    assert not (folder / FILE.name).exists()
    assert download(FILE, folder, ignore) == HASH
    assert any(asked and int(asked[6:-1]) > len(CONTENT) // 8 for *_, asked, _ in publisher.requests)
    assert [path.name for path in folder.iterdir()] == [FILE.name]


@HALVES
def test_a_server_that_sends_the_whole_file_again(publisher: Publisher, folder: Path, file) -> None:
    publisher.ranges = False
    working_folder(folder).mkdir()
    (working_folder(folder) / HASH).write_bytes(CONTENT[:1000])
    assert download(file, folder, ignore) == HASH


def test_what_is_unchecked_is_not_added_to(publisher: Publisher, folder: Path) -> None:
    publisher.hash = "a" * 40
    working_folder(folder).mkdir()
    (working_folder(folder) / "unchecked").write_bytes(b"another version")
    assert download(FILE, folder, ignore, unchecked=True) == HASH


def test_one_process_downloads_a_file(publisher: Publisher, folder: Path) -> None:
    working_folder(folder).mkdir()
    with FileLock(working_folder(folder) / "lock"):
        with pytest.raises(UserError, match="is being downloaded by another process: wait until that ends"):
            download(FILE, folder, ignore)
        assert working_folder(folder).is_dir()
    assert download(FILE, folder, ignore) == HASH


def test_a_folder_in_the_files_place(publisher: Publisher, folder: Path) -> None:
    (folder / FILE.name).mkdir()
    with pytest.raises(UserError, match="is a folder, where the file should be: move it away, and try again"):
        download(FILE, folder, ignore)
    assert not publisher.requests


@HALVES
def test_a_download_that_is_cut_again_and_again_is_given_up(publisher: Publisher, folder: Path, file) -> None:
    publisher.cuts = [1000] + [0] * 20
    assert "cannot be read (the connection ended early): check the connection, and try" in refusal(file, folder)


@HALVES
def test_a_lost_connection_goes_on_in_the_next_run(publisher: Publisher, folder: Path, file) -> None:
    publisher.cuts = [len(CONTENT) // 2] + [0] * 20
    refusal(file, folder, keeps=True)
    kept = (working_folder(folder) / HASH).stat().st_size
    publisher.cuts, publisher.requests = [], []
    assert kept > 0 and download(file, folder, ignore) == HASH
    assert [asked for _, path, asked, _ in publisher.requests if path == "/storage"] == [f"bytes={kept}-"]
    assert [path.name for path in folder.iterdir()] == [file.name]


@HALVES
def test_what_is_whole_but_not_renamed_is_not_fetched_again(publisher: Publisher, folder: Path, file) -> None:
    working_folder(folder).mkdir()
    (working_folder(folder) / HASH).write_bytes(CONTENT)
    assert download(file, folder, ignore) == HASH


@HALVES
def test_a_broken_part_is_not_kept(publisher: Publisher, folder: Path, file) -> None:
    working_folder(folder).mkdir()
    (working_folder(folder) / HASH).write_bytes(b"other" * 1000)
    assert "came with the hash" in refusal(file, folder)
    assert download(file, folder, ignore) == HASH


@HALVES
def test_a_server_that_falls_silent(publisher: Publisher, folder: Path, file, monkeypatch) -> None:
    publisher.silence = 3
    monkeypatch.setattr(download_module, "SECONDS_OF_SILENCE", 0.3)
    monkeypatch.setattr(hub_constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    publisher.content = CONTENT[:100]  # so that each try of huggingface_hub soon has no more to ask for
    assert "cannot be read (" in refusal(file, folder, HASH)


@HALVES
def test_a_stalled_server_is_given_up_in_time(publisher: Publisher, folder: Path, file, monkeypatch, caplog) -> None:
    publisher.stall = threading.Event()
    monkeypatch.setattr(download_module, "SECONDS_OF_SILENCE", 1)
    monkeypatch.delenv("HF_HUB_DOWNLOAD_TIMEOUT", raising=False)
    before, started = hub_constants.HF_HUB_DOWNLOAD_TIMEOUT, time.monotonic()
    assert "cannot be read (no answer for 1 seconds)" in refusal(file, folder, HASH, keeps=True)
    assert time.monotonic() - started < 3
    publisher.stall.set()
    assert before == hub_constants.HF_HUB_DOWNLOAD_TIMEOUT
    assert not [record for record in caplog.records if record.name.startswith("huggingface_hub")]


def test_user_info_is_not_shown(publisher: Publisher, folder: Path, monkeypatch, caplog, capfd) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://me:SECRET@127.0.0.1:{publisher.port}")
    messages = []
    for name, value in {"status": 404, "storage_status": 429, "cuts": [0] * 20, "place": "ftp://a/b"}.items():
        with monkeypatch.context() as patch:
            patch.setattr(publisher, name, value)
            messages.append(refusal(FILE, folder, HASH))
    assert f"http://127.0.0.1:{publisher.port}/somebody" in messages[0]
    assert download(FILE, folder, ignore) == HASH
    shown = " ".join([*messages, FILE.url, caplog.text, *capfd.readouterr()])
    assert "SECRET" not in shown and "me:" not in shown and "Trying to resume" not in shown


@pytest.mark.parametrize(
    ("endpoint", "shown"),
    [
        ("ftp://me:SECRET@host", "ftp://host"),
        ("me:SECRET@host", "host"),
        ("//me:SECRET@host", "//host"),
        ("http://me:SEC/RET@host:x", "http://host:x"),
        ("http://", "http:"),
        ("http://[me", "http://[me"),
        ("huggingface.co", "huggingface.co"),
    ],
)
def test_an_endpoint_that_is_no_address(folder: Path, monkeypatch, endpoint: str, shown: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert refusal(FILE, folder).startswith(f"HF_ENDPOINT is {shown!r}, which is no http or https address: unset it")


@HALVES
@pytest.mark.parametrize("given", [None, "0" * 64])
def test_a_wrong_hash_leaves_nothing(publisher: Publisher, folder: Path, file: PublishedFile, given) -> None:
    publisher.hash = HASH if given else "f" * 64
    publisher.content = CONTENT if given or file is FILE else CONTENT[::-1]
    found = hashlib.sha256(publisher.content).hexdigest()
    assert f"came with the hash {found} instead of" in refusal(file, folder, given)


@pytest.mark.parametrize("given", ["abc", "", "g" * 64])
def test_a_hash_that_is_none_is_said(publisher: Publisher, folder: Path, given: str) -> None:
    assert "is not a SHA-256 hash: give its 64 hexadecimal digits" in refusal(FILE, folder, given)
    assert not publisher.requests


def test_a_hash_that_github_has_is_used(publisher: Publisher, folder: Path) -> None:
    publisher.digest = "sha256:" + "0" * 64
    assert f"instead of {'0' * 64}" in refusal(RECORDED, folder)
    publisher.digest = f"sha256:{HASH}"
    assert download(RECORDED, folder, ignore) == HASH


@pytest.mark.parametrize("file", [FILE, RECORDED], ids=["Hugging Face", "GitHub"])
def test_without_a_hash_a_file_is_taken_only_when_the_user_says_so(publisher: Publisher, folder: Path, file) -> None:
    publisher.digest, publisher.hash = None, "a" * 40
    assert "has no hash on record to compare with: give its hash with --sha256, or" in refusal(file, folder)
    assert not any(path == "/storage" for _, path, *_ in publisher.requests), "nothing is fetched before"
    assert download(file, folder, ignore, unchecked=True) == HASH
    (folder / file.name).unlink()
    assert download(file, folder, ignore, HASH) == HASH


def login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    monkeypatch.setattr(hub_constants, "HF_TOKEN_PATH", str(tmp_path / "token"))


@pytest.mark.parametrize(
    "give", [lambda patch, _: patch.setenv("HF_TOKEN", TOKEN), login], ids=["HF_TOKEN", "hf auth login"]
)
def test_a_token_opens_gated_files_and_is_not_sent_to_another_host(
    publisher: Publisher, folder: Path, tmp_path: Path, monkeypatch, give: Callable
) -> None:
    publisher.gated = True
    words = r"does not let you in (401): accept its licence at https://huggingface.co/somebody/model, and run `hf auth"
    assert words in refusal(FILE, folder)
    give(monkeypatch, tmp_path)
    assert download(FILE, folder, ignore) == HASH
    assert {token for _, path, _, token in publisher.requests if path == "/storage"} == {None}
    assert any(token == f"Bearer {TOKEN}" for *_, token in publisher.requests)


@pytest.mark.parametrize("token", ["hf_mine\nX: y", "hf_mine ö \x07"])
def test_a_broken_token_is_not_printed(publisher: Publisher, folder: Path, monkeypatch, token: str) -> None:
    publisher.gated = True
    monkeypatch.setenv("HF_TOKEN", token)
    refusal(FILE, folder)


def test_offline_is_honoured(publisher: Publisher, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE forbids" in refusal(FILE, folder)
    assert not publisher.requests


@HALVES
def test_an_address_that_nobody_answers(publisher: Publisher, folder: Path, file, monkeypatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(download_module, "GITHUB", "http://127.0.0.1:9")
    message = refusal(file, folder)
    assert "127.0.0.1:9/" in message and "cannot be read (no connection)" in message


@HALVES
@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "let you in"),
        (403, "let you in"),
        (404, "does not exist (404)"),
        (429, "later"),
        (500, "answered 500: try"),
    ],
)
@pytest.mark.parametrize("where", ["status", "storage_status"])
def test_each_refusal_has_its_sentence(publisher: Publisher, folder: Path, file, status, words, where) -> None:
    setattr(publisher, where, status)
    assert words in refusal(file, folder)


def test_a_web_page_in_place_of_the_file(publisher: Publisher, folder: Path) -> None:
    publisher.content = PAGE
    for file in (ASSET, FILE):
        assert "answered with a web page instead of the file" in refusal(file, folder)


def test_a_server_that_is_not_hugging_face(publisher: Publisher, folder: Path) -> None:
    publisher.commit = None
    assert "it does not answer as Hugging Face does, so check HF_ENDPOINT" in refusal(FILE, folder)


@HALVES
@pytest.mark.parametrize("length", [len(CONTENT) + 5, len(CONTENT) - 5])
def test_a_length_that_is_wrong(publisher: Publisher, folder: Path, file: PublishedFile, length: int) -> None:
    publisher.claimed = length
    refusal(file, folder, keeps=length > len(CONTENT) or file is FILE)  # GitHub's looks whole, so its hash is compared


@HALVES
def test_a_redirect_to_another_scheme(publisher: Publisher, folder: Path, file: PublishedFile) -> None:
    publisher.place = "ftp://localhost/storage"
    assert "redirects from http to ftp, which is not safe" in refusal(file, folder)


@pytest.mark.parametrize(
    ("address", "place", "fine"),
    [
        ("https://a.org/x", "http://a.org/x", False),
        ("https://a.org/x", "http://b.org/x", False),
        ("https://a.org/x", "file:///etc/passwd", False),
        ("https://a.org/x", "https://b.org/x", True),
        ("https://a.org/x", "/y", True),
        ("https://a.org/x", "//b.org/y", True),
        ("http://a.org/x", "https://a.org/x", True),
    ],
)
def test_schemes(address: str, place: str, fine: bool) -> None:
    answer = requests.Response()
    answer.status_code, answer.url, answer.headers["location"] = 302, address, place
    if fine:
        return _refuse_other_scheme(answer)
    with pytest.raises(UserError, match=r"a\.org redirects from https to (http|file), which is not safe"):
        _refuse_other_scheme(answer)


@HALVES
def test_a_full_disk_and_a_folder_that_cannot_be_written(publisher: Publisher, folder: Path, file, monkeypatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(download_module.os, "replace", full)
        assert "cannot be written (the disk is full): make room, or choose another folder" in refusal(
            file, folder, keeps=True
        )
    assert download(file, folder, ignore) == HASH
    (folder / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot be written \((Not a directory|File exists)\): choose another folder"):
        download(file, folder / "file", ignore)


@pytest.mark.parametrize(("file", "package"), [(FILE, "huggingface_hub"), (ASSET, "requests")])
def test_a_package_that_is_missing_is_named(folder: Path, monkeypatch, file: PublishedFile, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"Downloading needs a package: pip install {package}"):
        download(file, folder, ignore)


def test_the_hubs_client_is_left_as_it_was(publisher: Publisher, folder: Path) -> None:
    before = huggingface_hub.get_session().event_hooks
    download(FILE, folder, ignore)
    assert huggingface_hub.get_session().event_hooks == before


def test_the_command_fetches_by_name(publisher: Publisher, folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(PUBLISHED, "sd3-medium", Weights("--base", (FILE,)))
    assert app(["download", "sd3-medium", "--to", str(folder)]) == 0
    output = capsys.readouterr().out
    assert f"sha256 {HASH}" in output.replace("\n", "") and "free" in output
    assert output.index("free") < output.index(HASH), "the licence comes before the download"
    assert "5 MB" in output and "--base" in output and "models/checkpoints" in output
    assert (folder / FILE.name).read_bytes() == CONTENT


def test_non_commercial_weights_say_so_first(publisher: Publisher, folder: Path, capsys) -> None:
    assert app(["download", "hypir", "--to", str(folder)]) == 0
    output = capsys.readouterr().out
    assert output.startswith("HYPIR_sd2.pth (size shown when it starts; NOT FOR COMMERCIAL USE: HYPIR Software License")
    assert "models/loras" in output and (folder / "HYPIR_sd2.pth").read_bytes() == CONTENT
    assert publisher.requests[0][1] == "/lxq007/HYPIR/resolve/main/HYPIR_sd2.pth"


def test_a_file_in_a_folder_of_its_repository(publisher: Publisher, folder: Path) -> None:
    assert app(["download", "gdpo-sr", "--to", str(folder)]) == 0
    for part in ("unet", "vae"):
        name = f"GDPOSR/{part}/diffusion_pytorch_model.safetensors"
        assert (folder / name).read_bytes() == CONTENT
        assert f"/Joypop/GDPO/resolve/main/ckp/{name}" in [path for _, path, *_ in publisher.requests]


@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
def test_a_file_of_a_git_repository_is_compared_with_gits_hash(publisher: Publisher, folder: Path, right) -> None:
    blob = subprocess.run(
        ["git", "hash-object", "--stdin"], input=CONTENT, capture_output=True, check=True
    ).stdout.decode()
    file = GitFile("somebody/code", "c" * 40, "models", "a.pkl", "free", blob.strip() if right else "0" * 40)
    if not right:
        assert f"came with the hash {blob.strip()} instead of {'0' * 40}" in refusal(file, folder)
        return
    assert download(file, folder, ignore) == download(file, folder, ignore) == HASH
    assert [path for _, path, *_ in publisher.requests] == [f"/somebody/code/raw/{'c' * 40}/models/a.pkl", "/storage"]


def test_what_only_a_browser_can_get_is_one_sentence(capsys) -> None:
    assert app(["download", "pisa-sr"]) == 0
    output = capsys.readouterr().out
    assert output.count("\n") == 1 and output.startswith(
        "Get pisa_sr.pkl with a browser from https://drive.google.com/"
    )
    assert "Apache-2.0" in output and "--lora" in output and "models/loras" in output


def test_without_a_name_all_are_listed(capsys) -> None:
    assert app(["download"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, weights in PUBLISHED.items():
        own = " ".join(line for line in lines if line.split()[0] == name)
        assert own.startswith(f"{name:{max(map(len, PUBLISHED))}} ")
        assert all(file in own for file in weights.names) and weights.use in own and weights.folder in own


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.name in PUBLISHED], ids=lambda f: f.name)
def test_what_is_not_commercial_is_so_in_both_places(family: Family) -> None:
    weights = PUBLISHED[family.name]
    licences = [*(file.licence for file in weights.files), *([weights.by_hand.licence] if weights.by_hand else [])]
    assert any("non-commercial" in licence for licence in licences) == family.is_non_commercial


def test_every_method_with_published_weights_is_on_record() -> None:
    assert {family.name for family in FAMILIES} - set(PUBLISHED) == {"bundled", "conv-sr", "own-lora"}


def test_mistakes_are_said(folder: Path) -> None:
    with pytest.raises(UserError, match="'nothing' is unknown: choose one of sinsr, "):
        weights_of("nothing")
    with pytest.raises(UserError, match="Add --to FOLDER: in ComfyUI it is models/loras"):
        app(["download", "hypir"])


def test_the_tables_addresses_are_complete() -> None:
    for weights in PUBLISHED.values():
        assert weights.names
        for file in weights.files:
            assert file.url.startswith("https://") and file.url.endswith(file.name) and file.licence
        assert weights.by_hand is None or weights.by_hand.page.startswith("https://")
