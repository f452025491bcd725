"""Published weights, downloaded only when a user asks: whole, compared with a hash, and only over what was asked for.

huggingface_hub fetches what is on Hugging Face: it resumes, knows the token of `hf auth login` and HF_TOKEN, mirrors
(HF_ENDPOINT) and HF_HUB_OFFLINE. pooch fetches the assets of GitHub's releases.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from ..errors import UserError

GITHUB, GITHUB_API, HUGGING_FACE = "https://github.com", "https://api.github.com", "https://huggingface.co"
SECONDS_OF_SILENCE = 30
CHUNK = 2**20
SHA256 = re.compile(r"[0-9a-f]{64}")
PAGE_STARTS = (b"<!doctype", b"<html", b"<?xml")
AGAIN = "run the command again"
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class GitHubFile:
    """An asset of a release; `sha256` where its hash is known here."""

    repository: str
    tag: str
    name: str
    licence: str
    sha256: str | None = None

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

    def fetch(self, target: Path, report: Report) -> None:
        """Write the file. Raises UserError for a redirect to another scheme, and what requests and the disk raise."""
        import pooch

        bar = _Bar(report)
        options: dict[str, Any] = {"timeout": SECONDS_OF_SILENCE, "hooks": {"response": _refuse_other_scheme}}
        pooch.HTTPDownloader(progressbar=bar, chunk_size=CHUNK, **options)(self.url, str(target), None)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class HuggingFaceFile:
    """A file of a repository there, or on the mirror that HF_ENDPOINT names."""

    repository: str
    name: str
    licence: str
    sha256: str | None = None

    @property
    def endpoint(self) -> str:
        return os.environ.get("HF_ENDPOINT", HUGGING_FACE).rstrip("/")

    @property
    def url(self) -> str:
        return f"{self.endpoint}/{self.repository}/resolve/main/{self.name}"

    @property
    def advice(self) -> str:
        """What to do where the file is not given out."""
        return f"accept its licence at {HUGGING_FACE}/{self.repository}, and run `hf auth login` or set HF_TOKEN"

    def hash_on_record(self) -> str | None:
        """The known hash, else what a large file has as its ETag."""
        import huggingface_hub

        if self.sha256 is not None:
            return self.sha256
        with _one_scheme():
            metadata = huggingface_hub.get_hf_file_metadata(
                self.url, timeout=SECONDS_OF_SILENCE, endpoint=self.endpoint
            )
        return _as_sha256(metadata.etag or "")

    def fetch(self, target: Path, report: Report) -> None:
        """Write the file. Raises UserError for a redirect to another scheme, and what huggingface_hub raises."""
        import huggingface_hub

        with _one_scheme():
            found = huggingface_hub.hf_hub_download(
                self.repository,
                self.name,
                local_dir=target.parent,
                endpoint=self.endpoint,
                etag_timeout=SECONDS_OF_SILENCE,
                tqdm_class=_bar_class(report),
            )
        os.replace(found, target)


PublishedFile = GitHubFile | HuggingFaceFile


def download(
    file: PublishedFile, folder: Path, report: Report, sha256: str | None = None, unchecked: bool = False
) -> str:
    """Put a file into a folder, unless it is there, and return its SHA-256 in hexadecimal digits.

    The file appears under its name only after its hash was compared with the given one, else with the one on record. A
    file that is there is compared too, and nothing is asked over the network.

    Args:
        report: called with (bytes so far, bytes in all).
        unchecked: also take a file of which no hash is known.

    Raises UserError for a hash that differs or is not known, an address that cannot be reached or does not let the user
    in, a redirect to another scheme, a web page in place of the file, a full disk, and where HF_HUB_OFFLINE forbids it.
    """
    target, wanted = folder / file.name, _given(sha256) or file.sha256
    if target.exists():
        found = _sha256_of(target)
        if wanted not in (None, found):
            raise UserError(f"{target} has the hash {found} instead of {wanted}: delete it, and {AGAIN}.")
        return found
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise UserError(f"{file.name} is not in {folder}, and HF_HUB_OFFLINE forbids to download it: unset it.")
    with _in_sentences(file, target):
        wanted = wanted or file.hash_on_record()
        if wanted is None and not unchecked:
            raise UserError(
                f"{file.name} has no hash on record to compare with: give its hash with --sha256, or accept it "
                "unchecked with --no-hash."
            )
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{file.name}.") as temporary:
            part = Path(temporary) / "part"
            file.fetch(part, report)
            found = _checked(part, wanted, file)
            os.replace(part, target)
    return found


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
    with part.open("rb") as content:
        start = content.read(200).lstrip().lower()
    if start.startswith(PAGE_STARTS):
        raise UserError(f"{file.url} answered with a web page instead of the file: {file.advice}.")
    found = _sha256_of(part)
    if wanted not in (None, found):
        raise UserError(f"{file.name} came with the hash {found} instead of {wanted}: {AGAIN}.")
    return found


def _sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


# One scheme


@contextmanager
def _one_scheme() -> Iterator[None]:
    """Have huggingface_hub's own client refuse redirects to another scheme, which it would follow."""
    import huggingface_hub

    client = huggingface_hub.get_session()
    hooks = client.event_hooks
    client.event_hooks = {**hooks, "response": [*hooks["response"], _refuse_other_scheme]}
    try:
        yield
    finally:
        client.event_hooks = hooks


def _refuse_other_scheme(answer: Any, **_: Any) -> None:
    """Raise UserError for a redirect from https to http, or to what is neither; of requests and of httpx."""
    place = answer.headers.get("location")
    if not 300 <= answer.status_code < 400 or not place:
        return
    address = str(answer.url)
    old, new = urlsplit(address).scheme, urlsplit(urljoin(address, place)).scheme
    if new not in (old, "https"):
        host = urlsplit(address).netloc
        raise UserError(f"{host} redirects from {old} to {new}, which is not safe: check the address or the network.")


# Progress


class _Bar:
    """What pooch takes for a progress bar."""

    def __init__(self, report: Report, total: int = 0, done: int = 0):
        self.report, self.total, self.done = report, total, done

    def update(self, count: int) -> None:
        self.done += count
        if self.total:
            self.done = min(self.done, self.total)  # pooch counts whole chunks
            self.report(self.done, self.total)

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        pass


def _bar_class(report: Report) -> Any:
    """A class of tqdm's kind that shows nothing and reports."""
    from tqdm import tqdm  # pyright: ignore[reportMissingModuleSource]

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **options: Any):
            self.sink = open(os.devnull, "w")  # noqa: SIM115 (closed with the bar)
            super().__init__(*arguments, **options | {"file": self.sink, "disable": False})

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            if self.total:
                report(int(min(self.n, self.total)), int(self.total))
            return shown

        def close(self) -> None:
            super().close()
            self.sink.close()

    return Bar


# Errors


@contextmanager
def _in_sentences(file: PublishedFile, target: Path) -> Iterator[None]:
    """UserError for whatever the libraries raise. Their own texts are not shown: they may hold a token or a signed
    address."""
    try:
        yield
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise UserError(f"Downloading needs a package: pip install {error.name}.") from error
    except Exception as error:
        raise UserError(_sentence(error, file, target)) from None


def _sentence(error: BaseException, file: PublishedFile, target: Path) -> str:
    causes = list(_causes(error))
    answers = [answer for cause in causes if (answer := getattr(cause, "response", None)) is not None]
    if answers:
        return f"{file.url} {_of_status(answers[0].status_code, file)}."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{target} cannot be written (the disk is full): make room, or choose another folder."
    if isinstance(error, OSError) and error.filename is not None:  # the network's errors name no file
        return f"{target} cannot be written ({error.strerror}): choose another folder."
    reason = _reason(" ".join(type(cause).__name__ for cause in causes))
    return f"{file.url} cannot be read ({reason}): check the connection, and {AGAIN}."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _of_status(status: int, file: PublishedFile) -> str:
    if status in (401, 403):
        return f"does not let you in ({status}): {file.advice}"
    if status in (404, 410):
        return f"does not exist ({status}): check for a newer version, or download the file by hand"
    return f"answered {status}: try again later"


def _reason(names: str) -> str:
    """By the names of the exceptions of a failure."""
    reasons = {
        "FileMetadata": "it does not answer as Hugging Face does, so check HF_ENDPOINT",
        "Timeout": f"no answer for {SECONDS_OF_SILENCE} seconds",
        "SSL": "its certificate is not valid",
        "ConnectError": "no connection",
        "NewConnection": "no connection",
        "NameResolution": "no connection",
        "Proxy": "the proxy refuses it",
    }
    return next((reason for part, reason in reasons.items() if part in names), "the connection ended early")
