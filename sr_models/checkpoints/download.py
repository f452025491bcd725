"""Published weights, fetched only when a user asks: checked, whole, and continued where a download was cut."""

from __future__ import annotations

import hashlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO

from ..errors import UserError

GITHUB, GITHUB_API, HUGGING_FACE = "https://github.com", "https://api.github.com", "https://huggingface.co"
SECONDS_OF_SILENCE = 30
CHUNK = 2**20
SHA256_DIGITS = 64
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class GitHubFile:
    """An asset of a release, with a hash where the host has one on record."""

    repository: str
    tag: str
    name: str
    licence: str

    @property
    def url(self) -> str:
        return f"{GITHUB}/{self.repository}/releases/download/{self.tag}/{self.name}"

    @property
    def headers(self) -> dict[str, str]:
        return {}

    @property
    def advice(self) -> str:
        return f"look at {GITHUB}/{self.repository}/releases"

    def sha256(self) -> str | None:
        address = f"{GITHUB_API}/repos/{self.repository}/releases/tags/{self.tag}"
        with _open(address) as answer:
            assets = json.load(answer).get("assets", [])
        digests = {asset["name"]: asset.get("digest") or "" for asset in assets}
        return digests.get(self.name, "").removeprefix("sha256:") or None


@dataclass(frozen=True)
class HuggingFaceFile:
    """A file of a repository there, or on the mirror that HF_ENDPOINT names; HF_TOKEN opens gated ones."""

    repository: str
    name: str
    licence: str

    @property
    def url(self) -> str:
        endpoint = os.environ.get("HF_ENDPOINT", HUGGING_FACE).rstrip("/")
        return f"{endpoint}/{self.repository}/resolve/main/{self.name}"

    @property
    def headers(self) -> dict[str, str]:
        token = os.environ.get("HF_TOKEN")
        return {"Authorization": f"Bearer {token}"} if token else {}

    @property
    def advice(self) -> str:
        return f"accept its licence at {HUGGING_FACE}/{self.repository} and set HF_TOKEN to a token of yours"

    def sha256(self) -> str | None:
        """Of a large file, from the answer that would send the reader on to its storage."""
        headers = _headers_before_redirect(self.url, self.headers)
        found = (headers.get("X-Linked-ETag") or "").strip('"')
        return found if len(found) == SHA256_DIGITS else None


PublishedFile = GitHubFile | HuggingFaceFile


def download(file: PublishedFile, folder: Path, report: Report, sha256: str | None = None) -> str:
    """Fetch a file into a folder, unless it is there, and return its SHA-256 in hexadecimal digits.

    What a cut run left behind (`.NAME.part`) is gone on with. The file appears under its name only after its
    hash was compared with the given one, else with the publisher's where there is one on record. `report` is
    called with (bytes there, bytes in all).

    Raises UserError for an address that cannot be reached or does not let the user in, a wrong hash, a full
    disk, and where HF_HUB_OFFLINE forbids it.
    """
    target = folder / file.name
    if target.exists():
        return _sha256_of(target)
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise UserError(f"{file.name} is not in {folder}, and HF_HUB_OFFLINE forbids to fetch it: unset it.")
    try:
        wanted = sha256 or file.sha256()
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".{file.name}.part"
        _fetch(file.url, file.headers, part, report)
        found = _sha256_of(part)
        if wanted and found != wanted.lower():
            part.unlink()
            raise UserError(f"{file.name} came with the hash {found} in place of {wanted}: fetch it again.")
        os.replace(part, target)
    except urllib.error.HTTPError as error:
        raise UserError(f"{file.url} answered {error.code} ({error.reason}): {file.advice}.") from error
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(f"{file.url} cannot be read ({reason}): run the command again to go on.") from error
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror}): choose another place.") from error
    return found


def _fetch(url: str, headers: dict[str, str], part: Path, report: Report) -> None:
    there = part.stat().st_size if part.exists() else 0
    try:
        answer = _open(url, headers | ({"Range": f"bytes={there}-"} if there else {}))
    except urllib.error.HTTPError as error:
        if error.code == 416 and there:  # nothing is left to send: all of it is there
            return
        raise
    with answer:
        resumed = answer.status == 206
        there = there if resumed else 0
        total = there + int(answer.headers.get("Content-Length", 0))
        with part.open("ab" if resumed else "wb") as file:
            while chunk := answer.read(CHUNK):
                there += file.write(chunk)
                report(there, total)
    if there < total:
        raise HTTPException(f"the connection ended after {there} of {total} bytes")


def _open(url: str, headers: dict[str, str] | None = None) -> HTTPResponse:
    request = urllib.request.Request(url)  # noqa: S310 (the table's own addresses and HF_ENDPOINT)
    for name, value in (headers or {}).items():
        # A token is for the address that was asked, not for where that sends the reader.
        (request.add_unredirected_header if name == "Authorization" else request.add_header)(name, value)
    return urllib.request.urlopen(request, timeout=SECONDS_OF_SILENCE)  # noqa: S310


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


def _headers_before_redirect(url: str, headers: dict[str, str]) -> Message:
    request = urllib.request.Request(url, headers=headers, method="HEAD")  # noqa: S310
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=SECONDS_OF_SILENCE) as answer:
            return answer.headers
    except urllib.error.HTTPError as error:
        if 300 <= error.code < 400:
            return error.headers
        raise


def _sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
