"""From inputs to jobs: every picture once, every target its own, and what cannot work refused before any work."""

from __future__ import annotations

import os
import shutil
import unicodedata
from functools import partial
from pathlib import Path

import pytest
from formula_model import formula_model
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.jobs.job import FileOptions
from onestep_sr.sr_models.jobs.plan import plan_jobs
from onestep_sr.sr_models.jobs.run import run_jobs
from PIL import Image


def made(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), (40, 90, 140)).save(folder / name, format=None if Path(name).suffix else "PNG")
    return folder


def targets(tmp_path: Path, *inputs: Path, output: str = "out", suffix: str | None = None) -> dict[str, str]:
    jobs = plan_jobs(map(str, inputs), tmp_path / output, suffix)
    return {str(job.source.relative_to(tmp_path)): str(job.target.relative_to(tmp_path)) for job in jobs}


def refusal(tmp_path: Path, *inputs: str | Path, output: str = "out", suffix: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        plan_jobs(map(str, inputs), tmp_path / output, suffix)
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message
    return message


def test_equal_names_from_several_folders_get_targets_of_their_own(tmp_path) -> None:
    made(tmp_path, "x/a.png", "y/a.png", "z/w/a.png", "z/a.jpg")
    found = targets(tmp_path, tmp_path / "x", tmp_path / "y", tmp_path / "z/w", tmp_path / "z", suffix=".png")
    assert found == {
        "x/a.png": "out/a.png",
        "y/a.png": "out/a_png.png",
        "z/w/a.png": "out/a_w.png",
        "z/a.jpg": "out/a_jpg.png",
    }


def test_names_that_differ_in_case_are_one_file_on_many_systems(tmp_path) -> None:
    made(tmp_path, "x/a.png", "y/A.PNG")
    assert len({name.lower() for name in targets(tmp_path, tmp_path / "x", tmp_path / "y").values()}) == 2


def test_accents_that_are_composed_or_not_are_one_file_on_many_systems(tmp_path) -> None:
    made(tmp_path, *(f"x/{unicodedata.normalize(form, 'é')}.png" for form in ("NFC", "NFD")))
    found = targets(tmp_path, tmp_path / "x").values()
    assert len({unicodedata.normalize("NFC", name) for name in found}) == 2


def test_a_source_that_is_given_twice_is_done_once(tmp_path) -> None:
    made(tmp_path, "x/a.png")
    (tmp_path / "link").symlink_to(tmp_path / "x", target_is_directory=True)
    ways = ("x", "x/a.png", "x/../x", "link", "link/a.png")
    assert len(targets(tmp_path, *(tmp_path / way for way in ways))) == 1


@pytest.mark.parametrize(
    ("inputs", "output", "suffix"),
    [
        (["a.png"], "a.png", None),
        (["a.png"], ".", None),
        (["x/a.png", "a.png"], ".", None),
        (["x"], "x", None),
        (["x/a.png", "a.jpg"], ".", ".jpg"),
    ],
)
def test_a_target_is_no_input(tmp_path, inputs, output, suffix) -> None:
    made(tmp_path, "a.png", "x/a.png", "a.jpg")
    message = refusal(tmp_path, *(tmp_path / name for name in inputs), output=output, suffix=suffix)
    assert "would replace its own source or another input" in message


def test_a_link_to_an_input_is_not_replaced_through_its_folder(tmp_path) -> None:
    made(tmp_path, "x/a.png")
    (tmp_path / "link").symlink_to(tmp_path / "x", target_is_directory=True)
    assert "would replace" in refusal(tmp_path, tmp_path / "x", output="link")


def test_hidden_files_and_companions_are_left_out(tmp_path) -> None:
    made(tmp_path, "x/a.png", "x/.b.png", "x/.trash/c.png", "x/__MACOSX/a.png")
    (tmp_path / "x" / "._a.png").write_bytes(b"\0\5\x16\7" + bytes(100))
    assert list(targets(tmp_path, tmp_path / "x")) == ["x/a.png"]


def test_pictures_are_known_by_their_content_and_others_are_named(tmp_path) -> None:
    made(tmp_path, "x/a.png", "x/without")
    for number in range(4):
        (tmp_path / "x" / f"note{number}.txt").write_text("hello")
    heard = []
    jobs = plan_jobs([str(tmp_path / "x")], tmp_path / "out", notice=heard.append)
    assert sorted(job.target.name for job in jobs) == ["a.png", "without.png"]
    names = "note0.txt, note1.txt, note2.txt, ..."
    assert heard == [f"{tmp_path / 'x'}: 4 files are not pictures and are left out ({names})."]


@pytest.mark.skipif(os.name == "nt", reason="pipes and links differ")
def test_everything_that_is_left_out_of_a_folder_is_named(tmp_path) -> None:
    folder = made(tmp_path / "x", "a.png")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "gone.png").symlink_to(tmp_path / "none.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    (folder / "linked.png").symlink_to(folder / "a.png")
    os.mkfifo(folder / "pipe.png")
    heard = []
    jobs = plan_jobs([str(folder)], folder / "out", notice=heard.append)
    assert [job.source.name for job in jobs] == ["a.png", "linked.png"]
    assert heard == [
        f"{folder}: 1 file is not a picture and is left out (pipe.png).",
        f"{folder}: 1 link to a folder is left out (loop).",
        f"{folder}: 2 links whose files are missing are left out (circle.png, gone.png).",
    ]


def test_a_folder_that_cannot_be_opened_is_named(tmp_path) -> None:
    folder = made(tmp_path / "x", "a.png", "closed/b.png")
    (folder / "closed").chmod(0)
    if os.access(folder / "closed", os.R_OK):
        pytest.skip("this user may open every folder")
    heard = []
    assert len(plan_jobs([str(folder)], tmp_path / "out", notice=heard.append)) == 1
    assert heard == [f"{folder}: 1 folder that cannot be opened is left out (closed)."]


def test_the_output_inside_the_input_is_no_input(tmp_path) -> None:
    made(tmp_path, "x/a.png", "x/out/a.png", "x/out/old.png")
    assert targets(tmp_path, tmp_path / "x", output="x/out") == {"x/a.png": "x/out/a.png"}
    made(tmp_path, "all/x/b.png")
    assert list(targets(tmp_path, tmp_path / "all/x", output="all")) == ["all/x/b.png"]


def test_earlier_results_of_the_same_folder_are_no_inputs(tmp_path) -> None:
    made(tmp_path, "x/a.png")
    options = FileOptions(compare=True)
    for _ in range(2):
        for suffix, output in ((".webp", "x"), (None, "x/large")):
            jobs = plan_jobs([str(tmp_path / "x")], tmp_path / output, suffix)
            assert [job.source.name for job in jobs] == ["a.png"]
            assert {outcome.status for outcome in run_jobs(formula_model(), jobs, options)} <= {"done", "skipped"}
    assert len(targets(tmp_path, tmp_path / "x/large")) == 2, "results may be upscaled again when they are asked for"
    shutil.copy(tmp_path / "x/a.webp", tmp_path / "x/other.webp")
    assert "x/other.webp" in targets(tmp_path, tmp_path / "x"), "what somebody put there is an input"


@pytest.mark.parametrize("inside", ["", "large"])
@pytest.mark.parametrize("carry", [shutil.move, partial(shutil.copytree, copy_function=shutil.copy2)])
def test_earlier_results_stay_results_where_their_folder_is_moved_or_copied(tmp_path, carry, inside) -> None:
    made(tmp_path, "x/a.png", "x/sub/b.png", "links/real.png")
    (tmp_path / "x/c.png").symlink_to(tmp_path / "links/real.png")
    jobs = plan_jobs([str(tmp_path / "x")], tmp_path / "x" / inside, ".webp")
    assert [outcome.status for outcome in run_jobs(formula_model(), jobs, FileOptions())] == ["done"] * 3
    carry(tmp_path / "x", tmp_path / "y")
    sources = {"y/a.png", "y/c.png", "y/sub/b.png"}
    assert set(targets(tmp_path, tmp_path / "y", suffix=".webp")) == sources
    jobs = plan_jobs([str(tmp_path / "y")], tmp_path / "y" / inside, ".webp")
    assert [outcome.status for outcome in run_jobs(formula_model(), jobs, FileOptions())] == ["skipped"] * 3


@pytest.mark.parametrize(
    ("pattern", "output", "suffix", "results"),
    [
        ("d/*.png", "d", ".jpg", ["d/a.jpg", "d/b.jpg"]),
        ("d/*.png", ".", None, ["a.png", "b.png"]),
        ("d/[ab].*", "d", ".jpg", ["d/a.jpg", "d/b.jpg"]),
        ("**/*.png", "d/out", None, ["d/out/a.png", "d/out/b.png"]),
        ("d/**", "d/out", ".webp", ["d/out/a.webp", "d/out/b.webp"]),
    ],
)
def test_a_pattern_may_lie_under_the_output_folder(tmp_path, monkeypatch, pattern, output, suffix, results) -> None:
    monkeypatch.chdir(made(tmp_path, "d/a.png", "d/b.png"))
    for status in ("done", "skipped"):
        heard = []
        jobs = plan_jobs([pattern], Path(output), suffix, heard.append)
        assert [str(job.target) for job in jobs] == results
        assert [outcome.status for outcome in run_jobs(formula_model(), jobs, FileOptions())] == [status] * 2
    names = ", ".join(Path(result).name for result in results)
    is_matched = pattern in ("d/[ab].*", "**/*.png", "d/**")
    assert heard == (
        [f"{pattern}: earlier results and files in the output folder are left out ({names})."] if is_matched else []
    )


def test_a_pattern_for_earlier_results_alone_means_them(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(made(tmp_path, "d/a.png"))
    jobs = plan_jobs(["d/*.png"], Path("d"), ".webp")
    assert [outcome.status for outcome in run_jobs(formula_model(), jobs, FileOptions())] == ["done"]
    assert [job.source.name for job in plan_jobs(["d/*.webp"], Path("big"))] == ["a.webp"]
    made(tmp_path, "d/out/c.png")
    assert "d/*/*.png only matches pictures in d/out" in refusal(tmp_path, "d/*/*.png", output="d/out").replace(
        f"{tmp_path}/", ""
    )


def test_results_that_are_moved_alone_are_inputs(tmp_path) -> None:
    made(tmp_path, "x/a.png")
    jobs = plan_jobs([str(tmp_path / "x")], tmp_path / "x/out")
    assert [outcome.status for outcome in run_jobs(formula_model(), jobs, FileOptions())] == ["done"]
    (tmp_path / "x/out").rename(tmp_path / "y")
    assert targets(tmp_path, tmp_path / "y") == {"y/a.png": "out/a.png"}


@pytest.mark.parametrize(
    ("inputs", "output", "suffix", "words"),
    [
        (["a.png"], "b.heic", None, "extension that is not supported"),
        (["a.png"], "b.xyz", None, "extension that is not supported"),
        (["a.png", "b.png"], "c.png", None, "is the name of one file, but there are 2 inputs"),
        (["."], "c.png", None, "is the name of one file, but there are 2 inputs"),
        (["a.png"], "c.png", ".jpg", "--format jpg and"),
        ([""], "out", None, "An input is empty"),
        (["  "], "out", None, "An input is empty"),
        (["none.png"], "out", None, "matches no picture"),
        (["empty"], "out", None, "empty contains no pictures: choose another folder."),
        (["x" * 300 + ".png"], "out", None, "x"),
        (["a.png"], "file", None, "is a file and not a folder"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, monkeypatch, inputs, output, suffix, words) -> None:
    monkeypatch.chdir(made(tmp_path, "a.png", "b.png"))
    (tmp_path / "empty").mkdir()
    if output == "file":
        (tmp_path / "file").write_text("")
    assert words in refusal(tmp_path, *inputs, output=output, suffix=suffix)


@pytest.mark.parametrize(("output", "suffix"), [("b.JPG", ".jpg"), ("b.jpeg", ".jpg"), ("b.tiff", ".tif")])
def test_a_format_that_agrees_with_the_name_is_fine(tmp_path, output, suffix) -> None:
    made(tmp_path, "a.png")
    assert targets(tmp_path, tmp_path / "a.png", output=output, suffix=suffix) == {"a.png": output}


def test_comparisons_have_names_of_their_own(tmp_path) -> None:
    made(tmp_path, "x/a.png", "x/a.jpg", "x/a.compare.png")
    jobs = plan_jobs([str(tmp_path / "x")], tmp_path / "out")
    paths = [path for job in jobs for path in (job.target, job.comparison)]
    assert len(set(paths)) == len(paths)
    [alone] = plan_jobs([str(tmp_path / "x/a.jpg")], tmp_path / "out")
    assert alone.comparison == tmp_path / "out/a.compare.png"


@pytest.mark.parametrize("name", ["n" * 251 + ".png", "ö" * 125 + ".png", "n" * 251 + ".bmp"])
@pytest.mark.parametrize("memory", [None, 0], ids=["in memory", "by bands"])
def test_names_of_255_bytes(tmp_path, name, memory) -> None:
    made(tmp_path / "x", name)
    jobs = plan_jobs([str(tmp_path / "x")], tmp_path / "out", ".webp")
    options = FileOptions(memory=memory, compare=memory is None)
    [outcome] = run_jobs(formula_model(), jobs, options)
    assert outcome.status == "done", outcome.reason
    assert all(len(os.fsencode(path.name)) <= 255 for path in (tmp_path / "out").iterdir())
    [again] = run_jobs(formula_model(), jobs, options)
    assert again.status == "skipped"
