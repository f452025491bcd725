"""From files, folders and globs to a list of jobs, each with a target of its own."""

from __future__ import annotations

import glob
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import chain, count, takewhile
from pathlib import Path
from typing import Literal, NamedTuple

from ..core.report import Notice, ignored
from ..errors import UserError
from ..files.formats import VIDEO_FORMATS, VIDEOS, is_video
from ..files.listing import caption_file, is_hidden, is_picture
from ..files.whole import shortened
from ..files.write import WRITABLE
from .job import Job
from .records import sources_of

READ_ONLY = (".bmp", ".heic", ".heif", ".jxl", ".jp2", ".exr", ".psd", ".tga", ".ppm", ".pgm", ".pbm", ".qoi", ".dds")
SUFFIXES = {*WRITABLE, *READ_ONLY, *VIDEOS}
SAME = {".jpeg": ".jpg", ".jfif": ".jpg", ".tiff": ".tif"}
ENDING = re.compile(r"\.[a-z][a-z0-9]{1,4}")
SHOWN = 3
Kind = Literal["picture", "other", "link", "broken", "closed"]
LEFT_OUT: dict[Kind, tuple[str, str]] = {
    "other": ("1 file is not a picture and is", "{} files are not pictures and are"),
    "link": ("1 link to a folder is", "{} links to folders are"),
    "broken": ("1 link whose file is missing is", "{} links whose files are missing are"),
    "closed": ("1 folder that cannot be opened is", "{} folders that cannot be opened are"),
}


class Found(NamedTuple):
    """A picture, and the path that its result has in the output folder."""

    source: Path
    inside: Path


def plan_jobs(
    inputs: Iterable[str],
    output: Path,
    suffix: str | None = None,
    notice: Notice = ignored,
    *,
    captions: bool = False,
) -> list[Job]:
    """One job per picture or video. Inputs are files, folders (with subfolders, which the output repeats) or globs.

    The output is a folder, or a file where there is one input and the output has a picture's or video's suffix.
    Results keep the source's name. Pictures get `suffix` (default: the source's own where it can be written, else
    `.png`), and videos their own where it can be written, else `.mkv`. Where two would have the same name, the second
    gets a longer one. Hidden files, an output folder inside an input's and earlier results of the same input are not
    inputs; `notice` hears of other files that are left out, but if `captions` not of texts next to pictures.

    Raises UserError, before anything is done, for an input that matches nothing, a result that would replace an
    input, and an output that does not agree with the inputs or with `suffix`.
    """
    found = _unique(pair for text in inputs for pair in _matches(text, output, notice, captions))
    if _is_file_name(output, found):
        _require_file_name(output, found, suffix)
        targets = [output]
    else:
        if output.exists() and not output.is_dir():
            raise UserError(f"{output} is a file and not a folder: choose another output.")
        targets = _targets(found, output, suffix)
    sources = {_key(_real(source)) for source, _ in found}
    for target in targets:
        if _key(_real(target)) in sources:
            raise UserError(f"{target} would replace its own source or another input: choose another output.")
    return _with_comparisons([Job(source, target) for (source, _), target in zip(found, targets, strict=True)])


def _unique(found: Iterable[Found]) -> list[Found]:
    """Each source once, as it was named first, whichever way leads to its folder."""
    first: dict[Path, Found] = {}
    for pair in found:
        first.setdefault(_place(pair.source), pair)
    return list(first.values())


def _place(path: Path) -> Path:
    """One path for a file, whichever way leads to its folder."""
    return _real(path.parent) / path.name


def _real(path: Path) -> Path:
    """Where links lead; those that lead back to themselves stay, for which Path.resolve raises RuntimeError."""
    return Path(os.path.realpath(path))


def _key(path: Path) -> str:
    """Equal for names that are one file where case does not count, or accents may be composed or not."""
    return unicodedata.normalize("NFC", os.path.abspath(path).casefold())


# The output


def _is_file_name(output: Path, found: list[Found]) -> bool:
    ending = output.suffix.lower()
    if output.is_dir() or not ending:
        return False
    is_one_file = len(found) == 1 and found[0].inside == Path(found[0].source.name)
    return ending in SUFFIXES or (is_one_file and ENDING.fullmatch(ending) is not None)


def _require_file_name(output: Path, found: list[Found], suffix: str | None) -> None:
    ending = output.suffix.lower()
    is_film = is_video(found[0].source)
    if ending not in (VIDEO_FORMATS if is_film else WRITABLE):
        raise UserError(
            f"{output} has an extension that is not supported{' for videos' if is_film else ''}: choose one of "
            f"{', '.join(VIDEO_FORMATS if is_film else WRITABLE)}, or create a folder of that name first."
        )
    if len(found) > 1:
        raise UserError(f"{output} is the name of one file, but there are {len(found)} inputs: choose a folder.")
    if suffix is not None and not is_film and SAME.get(suffix, suffix) != SAME.get(ending, ending):
        raise UserError(f"--format {suffix[1:]} and {output} do not agree: leave out one of them.")


def _targets(found: list[Found], output: Path, suffix: str | None) -> list[Path]:
    """A path for each, none of them twice."""
    taken: set[str] = set()
    targets = []
    for source, inside in found:
        ending = _ending(source, suffix)
        target = next(path for path in _names(source, output / inside, ending) if _key(path) not in taken)
        taken.add(_key(target))
        targets.append(target)
    return targets


def _ending(source: Path, suffix: str | None) -> str:
    if is_video(source):
        return source.suffix if source.suffix.lower() in VIDEO_FORMATS else ".mkv"
    return suffix or (source.suffix if source.suffix.lower() in WRITABLE else ".png")


def _names(source: Path, path: Path, ending: str) -> Iterator[Path]:
    """What a result may be called, best first."""
    stem = path.stem
    yield _named(path, stem, ending)
    if source.suffix:
        yield _named(path, f"{stem}_{source.suffix[1:]}", ending)
    folder = source.absolute().parent.name
    if folder:
        yield _named(path, f"{stem}_{folder}", ending)
    for number in count(2):
        yield _named(path, f"{stem}_{number}", ending)


def _named(path: Path, stem: str, ending: str) -> Path:
    return path.with_name(shortened(stem, len(os.fsencode(ending))) + ending)


def _with_comparisons(jobs: list[Job]) -> list[Job]:
    """Comparisons have names of their own too, which no source or target has."""
    taken = {_key(path) for job in jobs for path in (job.source, job.target)}
    result = []
    for job in jobs:
        names = _names(job.target, job.comparison.with_name(f"{job.target.name}.png"), ".compare.png")
        comparison = next(path for path in chain([job.comparison], names) if _key(path) not in taken)
        taken.add(_key(comparison))
        result.append(job if comparison == job.comparison else Job(job.source, job.target, comparison))
    return result


# The inputs


def _matches(text: str, output: Path, notice: Notice, captions: bool) -> list[Found]:
    """Pictures that an input means."""
    if not text.strip():
        raise UserError("An input is empty: give the name of a file or folder, or a pattern such as *.png.")
    path = Path(text)
    try:
        if path.is_dir():
            pairs = _in_folder(path, output, notice, captions)
            if not pairs:
                raise UserError(f"{text} contains no pictures: choose another folder.")
        elif path.exists():
            pairs = [Found(path, Path(path.name))]
        else:
            pairs = _by_pattern(text, output, notice)
    except (OSError, ValueError) as error:
        raise UserError(f"{shortened(text, 155)} cannot be read ({error.args[-1]}): check the name.") from error
    if not pairs:
        raise UserError(f"{text} matches no picture: check the name.")
    return pairs


def _by_pattern(text: str, output: Path, notice: Notice) -> list[Found]:
    """Files that a pattern means, without an output folder inside its folder and without the results of each other."""
    files = [path for path in map(Path, sorted(glob.glob(text, recursive=True))) if path.is_file()]
    parts = Path(text).parts
    inside = _is_inside(output, Path(*takewhile(lambda part: not glob.has_magic(part), parts)))
    places = {_place(file) for file in files}
    others = [
        file
        for file in files
        if (inside and _is_in(file, output)) or any(_place(source) in places for source in sources_of(file))
    ]
    if others and len(others) == len(files):
        raise UserError(f"{text} only matches pictures in {output}: choose another output, or other pictures.")
    if others:
        notice(f"{text}: earlier results and files in the output folder are left out ({_few(others)}).")
    return [Found(file, Path(file.name)) for file in files if file not in others]


def _few(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths[:SHOWN]) + (", ..." if len(paths) > SHOWN else "")


def _is_inside(output: Path, folder: Path) -> bool:
    return _is_in(output, folder) and _real(output) != _real(folder)


def _in_folder(folder: Path, output: Path, notice: Notice, captions: bool) -> list[Found]:
    inside = _is_inside(output, folder)
    paths = [path for path in _walk(folder) if not (inside and _is_in(path, output)) and not _is_result(path, folder)]
    kinds = {path: _kind(path) for path in paths}
    texts = {caption_file(path) for path in paths if kinds[path] == "picture"} if captions else set()
    for kind, words in LEFT_OUT.items():
        others = [path for path in paths if kinds[path] == kind and path not in texts]
        if others:
            notice(f"{folder}: {words[len(others) > 1].format(len(others))} left out ({_few(others)}).")
    return [Found(path, path.relative_to(folder)) for path in paths if kinds[path] == "picture"]


def _walk(folder: Path) -> list[Path]:
    """Everything in a folder but its subfolders, whose content counts instead; links to folders and folders that
    cannot be opened count themselves. Hidden ones are left out."""
    closed: list[Path] = []
    found: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=lambda error: closed.append(Path(error.filename))):
        folders[:] = [name for name in folders if not is_hidden(Path(name))]
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        found += [Path(place, name) for name in (*names, *links) if not is_hidden(Path(name))]
    return sorted(found + closed)


def _kind(path: Path) -> Kind:
    if path.is_dir():
        return "link" if path.is_symlink() else "closed"
    if not path.exists():
        return "broken"
    is_taken = path.is_file() and (path.suffix.lower() in SUFFIXES or is_picture(path))
    return "picture" if is_taken else "other"


def _is_in(path: Path, folder: Path) -> bool:
    path = _real(path)
    return _real(folder) in (path, *path.parents)


def _is_result(file: Path, folder: Path) -> bool:
    """Whether a file was made by this program from another one in the folder, also if both were moved since."""
    return any(_is_in(source.parent, folder) for source in sources_of(file))
