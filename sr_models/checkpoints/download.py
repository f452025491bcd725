"""Published weights, downloaded only when a user asks: whole, compared with a hash, and only over what was asked for.

huggingface_hub fetches what is on Hugging Face: it knows the token of `hf auth login` and HF_TOKEN, and mirrors
(HF_ENDPOINT). requests fetches what is on GitHub. Both add to what a stopped download has left.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from ..errors import UserError
from .download_errors import AGAIN, in_sentences
from .download_progress import Heard, Report, bar_class

GITHUB, GITHUB_API, HUGGING_FACE = "https://github.com", "https://api.github.com", "https://huggingface.co"
SECONDS_OF_SILENCE = 30
TRIES = 6  # huggingface_hub's, without a byte between them
CHUNK = 2**20
SHA256 = re.compile(r"[0-9a-f]{64}")
HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # git's, or a SHA-256
PAGE_STARTS = (b"<!doctype", b"<html", b"<?xml")
USER_INFO = re.compile(r"^((?:[a-z][a-z0-9+.-]*:)?//)?.*@", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class GitHubFile:
    """An asset of a release; `sha256` where its hash is known here, `size` in bytes where it is known about."""

    repository: str
    tag: str
    name: str
    licence: str
    sha256: str | None = None
    size: int | None = None

    @property
    def url(self) -> str:
        return f"{GITHUB}/{self.repository}/releases/download/{self.tag}/{self.name}"

    @property
    def advice(self) -> str:
        """What to do where the file is not given out."""
        return f"look at {GITHUB}/{self.repository}/releases"

    def hash_on_record(self) -> str | None:
        """The known hash, else the one that GitHub has; it has none of older assets."""
        import requests

        if self.sha256 is not None:
            return self.sha256
        address = f"{GITHUB_API}/repos/{self.repository}/releases/tags/{self.tag}"
        answer = requests.get(address, timeout=SECONDS_OF_SILENCE, hooks={"response": _refuse_other_scheme})
        try:
            assets = answer.json()["assets"] if answer.ok else []
            digests = {asset["name"]: asset.get("digest") or "" for asset in assets}
        except (ValueError, KeyError, TypeError):
            return None
        return _as_sha256(digests.get(self.name, ""))

    def fetch(self, part: Path, report: Report) -> None:
        _fetch(self.url, part, report)


@dataclass(frozen=True)
class GitFile:
    """A file in a repository on GitHub at a commit; `blob` is its hash there, which git takes with SHA-1."""

    repository: str
    commit: str
    folder: str
    name: str
    licence: str
    blob: str
    size: int | None = None

    @property
    def url(self) -> str:
        return f"{GITHUB}/{self.repository}/raw/{self.commit}/{self.folder}/{self.name}"

    @property
    def advice(self) -> str:
        """What to do where the file is not given out."""
        return f"look at {GITHUB}/{self.repository}"

    @property
    def sha256(self) -> str:
        """The hash to compare with; `download` sees by its length that it is git's."""
        return self.blob

    def hash_on_record(self) -> str:
        return self.blob

    def fetch(self, part: Path, report: Report) -> None:
        _fetch(self.url, part, report)


@dataclass(frozen=True)
class HuggingFaceFile:
    """A file of a repository there, or on the mirror that HF_ENDPOINT names."""

    repository: str
    name: str
    licence: str
    sha256: str | None = None
    size: int | None = None
    folder: str = ""  # in the repository, with a slash at its end

    @property
    def url(self) -> str:
        """The address to show, without the user's name and password."""
        return _without_user_info(self._address())

    @property
    def advice(self) -> str:
        """What to do where the file is not given out."""
        return f"accept its licence at {HUGGING_FACE}/{self.repository}, and run `hf auth login` or set HF_TOKEN"

    def hash_on_record(self) -> str | None:
        """The known hash, else what a large file has as its ETag."""
        return self.sha256 or _as_sha256(self._metadata().etag or "")

    def fetch(self, part: Path, report: Report) -> None:
        """Add to the file what it lacks. Raises UserError for a redirect to another scheme, and what huggingface_hub
        raises."""
        from huggingface_hub.errors import FileMetadataError
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        metadata = self._metadata()
        if metadata.commit_hash is None:
            raise FileMetadataError
        place = urljoin(self._address(), metadata.location)
        headers = build_hf_headers(token=None if _host(place) == _host(self._address()) else False)
        with part.open("ab") as content, _hub():
            http_get(
                place,
                content,
                resume_size=content.tell(),
                headers=headers | {"Accept-Encoding": "identity"},  # what is compressed cannot be resumed
                expected_size=metadata.size,
                tqdm_class=bar_class(report),
            )

    def _metadata(self) -> Any:
        import huggingface_hub

        with _hub():
            return huggingface_hub.get_hf_file_metadata(
                self._address(), timeout=SECONDS_OF_SILENCE, endpoint=_endpoint()
            )

    def _address(self) -> str:
        return f"{_endpoint()}/{self.repository}/resolve/main/{self.folder}{self.name}"


PublishedFile = GitHubFile | GitFile | HuggingFaceFile


def _fetch(url: str, part: Path, report: Report) -> None:
    """Add to a file what it lacks. Raises UserError for a redirect to another scheme, and what requests and the disk
    raise."""
    import requests

    with part.open("ab") as content:
        start = content.tell()
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        hooks = {"response": _refuse_other_scheme}
        with requests.get(url, stream=True, timeout=SECONDS_OF_SILENCE, headers=headers, hooks=hooks) as answer:
            if start and answer.status_code == requests.codes.requested_range_not_satisfiable:
                return  # nothing is missing; the hash says whether it is right
            answer.raise_for_status()
            if answer.status_code == requests.codes.ok:  # the whole file
                content.truncate(0)
                start = 0
            total = start + int(answer.headers.get("Content-Length") or 0)
            for chunk in answer.iter_content(CHUNK):
                content.write(chunk)
                start += len(chunk)
                report(start, max(start, total))


def download(
    file: PublishedFile, folder: Path, report: Report, sha256: str | None = None, unchecked: bool = False
) -> str:
    """Put a file into a folder, unless it is there, and return its SHA-256 in hexadecimal digits.

    The file appears under its name only after its hash was compared with the given one, else with the one on record. A
    file that is there is compared too, and nothing is asked over the network. A download that stops early, because the
    connection is lost, the disk is full or the process ends, leaves what it has in the folder `.NAME.part`, and the
    next one goes on from there. What has a wrong hash or none to compare with is not kept.

    Args:
        report: called with (bytes so far, bytes in all).
        unchecked: also take a file of which no hash is known.

    Raises UserError for a folder in the file's place, a hash that differs or is not known, an address that cannot be
    reached or does not let the user in, a redirect to another scheme, a web page in place of the file, a full disk,
    another process that downloads the same, and where HF_HUB_OFFLINE forbids it.
    """
    target, wanted = folder / file.name, _given(sha256) or file.sha256
    if target.is_dir():
        raise UserError(f"{target} is a folder, where the file should be: move it away, and {AGAIN}.")
    if target.exists():
        found = _hash_of(target, wanted)
        if wanted not in (None, found):
            raise UserError(f"{target} has the hash {found} instead of {wanted}: delete it, and {AGAIN}.")
        return _sha256_of(target, found)
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise UserError(f"{file.name} is not in {folder}, and HF_HUB_OFFLINE forbids to download it: unset it.")
    heard = Heard(report)
    with in_sentences(file.url, file.advice, target, heard):
        wanted = wanted or file.hash_on_record()
        if wanted is None and not unchecked:
            raise UserError(
                f"{file.name} has no hash on record to compare with: give its hash with --sha256, or accept it "
                "unchecked with --no-hash."
            )
        with _working_folder(target) as working:
            part = working / (wanted or "unchecked")
            if wanted is None:
                part.unlink(missing_ok=True)  # it may be of another version
            file.fetch(part, heard)
            found = _checked(part, wanted, file)
            os.replace(part, target)
    return _sha256_of(target, found)


@contextmanager
def _working_folder(target: Path) -> Iterator[Path]:
    """A folder for the partial download, for one process at a time. It is kept if the next run can resume from it."""
    from filelock import FileLock, Timeout

    folder = target.with_name(f".{target.name}.part")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{target} is being downloaded by another process: wait until that ends.") from None
    try:
        yield folder
    finally:
        lock.release()
        if not any(HASH.fullmatch(part.name) and part.stat().st_size for part in folder.iterdir()):
            for leftover in _leftovers(target):
                shutil.rmtree(leftover, ignore_errors=True)


def _leftovers(target: Path) -> list[Path]:
    """The working folder, and those of earlier versions, which had names from tempfile."""
    name = re.compile(rf"\.{re.escape(target.name)}\.(part|[a-z0-9_]{{8}})")
    return [path for path in target.parent.iterdir() if name.fullmatch(path.name)]


def _given(sha256: str | None) -> str | None:
    if sha256 is None:
        return None
    found = _as_sha256(sha256)
    if found is None:
        raise UserError(f"{sha256!r} is not a SHA-256 hash: give its 64 hexadecimal digits.")
    return found


def _as_sha256(text: str) -> str | None:
    digits = text.strip().lower().removeprefix("sha256:")
    return digits if SHA256.fullmatch(digits) else None


def _checked(part: Path, wanted: str | None, file: PublishedFile) -> str:
    """The file's hash, of the kind of `wanted`. Raises UserError, and deletes the file, so that nothing is added to it,
    where it is a web page or has another hash."""
    with part.open("rb") as content:
        start = content.read(200).lstrip().lower()
    found = _hash_of(part, wanted)
    if start.startswith(PAGE_STARTS):
        part.unlink()
        raise UserError(f"{file.url} answered with a web page instead of the file: {file.advice}.")
    if wanted not in (None, found):
        part.unlink()
        raise UserError(f"{file.name} came with the hash {found} instead of {wanted}: {AGAIN}.")
    return found


def _sha256_of(path: Path, found: str) -> str:
    """The file's SHA-256; `found` is the hash that was compared, which may be git's."""
    return found if SHA256.fullmatch(found) else _hash_of(path)


def _hash_of(path: Path, like: str | None = None) -> str:
    """The SHA-256 of a file, or its hash in git where `like` is one."""
    digest = hashlib.sha256()
    if like is not None and not SHA256.fullmatch(like):
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


# Addresses


def _endpoint() -> str:
    """Hugging Face, or the mirror that HF_ENDPOINT names. Raises UserError for what is no address."""
    address = (os.environ.get("HF_ENDPOINT") or HUGGING_FACE).rstrip("/")
    try:
        parts = urlsplit(address)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise UserError(
            f"HF_ENDPOINT is {_without_user_info(address)!r}, which is no http or https address: unset it, or set it "
            f"to one such as {HUGGING_FACE}."
        )
    return address


def _host(address: str) -> str:
    return urlsplit(address).netloc.rpartition("@")[2]


def _without_user_info(address: str) -> str:
    return USER_INFO.sub(r"\1", address)


@contextmanager
def _hub() -> Iterator[None]:
    """Have huggingface_hub refuse redirects to another scheme, give up a silent server in time, and log nothing beside
    our sentence."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.utils import logging as hub_logging

    client, verbosity = huggingface_hub.get_session(), hub_logging.get_verbosity()
    hooks = client.event_hooks
    settings: dict[str, Any] = {"DOWNLOAD_CHUNK_SIZE": min(CHUNK, constants.DOWNLOAD_CHUNK_SIZE)}
    if "HF_HUB_DOWNLOAD_TIMEOUT" not in os.environ:
        settings["HF_HUB_DOWNLOAD_TIMEOUT"] = SECONDS_OF_SILENCE / TRIES
    before = {name: getattr(constants, name) for name in settings}
    client.event_hooks = {**hooks, "response": [*hooks["response"], _refuse_other_scheme]}
    constants.__dict__.update(settings)
    hub_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        client.event_hooks = hooks
        constants.__dict__.update(before)
        hub_logging.set_verbosity(verbosity)


def _refuse_other_scheme(answer: Any, **_: Any) -> None:
    """Raise UserError for a redirect from https to http, or to what is neither; of requests and of httpx."""
    place = answer.headers.get("location")
    if not 300 <= answer.status_code < 400 or not place:
        return
    address = str(answer.url)
    old, new = urlsplit(address).scheme, urlsplit(urljoin(address, place)).scheme
    if new not in (old, "https"):
        raise UserError(
            f"{_host(address)} redirects from {old} to {new}, which is not safe: check the address or the network."
        )
