"""Preparing training data: content of shards, resuming, captions, LR counterparts and targets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import small_sd3
import torch
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.files.listing import list_images
from onestep_sr.sr_models.training.sd import prepare, shards
from onestep_sr.sr_models.training.sd import runs as sd_runs
from onestep_sr.sr_models.training.sd.bases import open_base
from onestep_sr.sr_models.training.sd.runs import PromptSource
from PIL import Image
from places import PHOTOS
from safetensors.torch import load_file
from small_training import CONFIG, CROP, paired, prepared, write_base


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> small_sd3.SmallSD3:
    return write_base(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def data(small: small_sd3.SmallSD3, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    assert prepared(small, folder) == []
    return folder


def test_shards_contain_crops_lr_counterparts_and_latents(small, data) -> None:
    counts = shards.list_shards(data)
    pictures = len(list_images(PHOTOS))
    assert sum(counts.values()) == 3 * pictures and max(counts.values()) == 4
    samples = shards.ShardSamples(data, seed=0)
    seen = [samples[number] for number in range(samples.count)]
    assert seen[0]["hr"].shape == (3, CROP, CROP) and seen[0]["lr"].shape == (3, CROP // 4, CROP // 4)
    vae = open_base(small.folder, torch.float32).vae
    with torch.no_grad():
        expected = 1.5305 * vae.encode(seen[1]["hr"][None].float() / 127.5 - 1).latent_dist.mode()
    assert torch.allclose(seen[1]["z_h"].float(), expected[0], atol=2e-3 * float(expected.abs().max()))
    every = {crop["hr"].numpy().tobytes() for crop in seen}
    assert len(every) == samples.count, "a pass sees each crop once"
    again = [samples[samples.count + number]["hr"].numpy().tobytes() for number in range(samples.count)]
    assert set(again) == every and again != [crop["hr"].numpy().tobytes() for crop in seen]
    mean = torch.nn.functional.avg_pool2d(seen[0]["hr"].float(), 4)
    assert (mean - seen[0]["lr"].float()).abs().mean() < 25, "LR shows the same picture as HR"


def test_a_resumed_preparation_and_workers_give_the_same_shards(small, data, tmp_path) -> None:
    for path in data.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    victims = list(shards.list_shards(data))[1::2]
    kept = [path for path in shards.list_shards(data) if path not in victims]
    times = {path.name: (tmp_path / path.name).stat().st_mtime_ns for path in kept}
    for path in victims:
        (tmp_path / path.name).unlink()
    assert prepared(small, tmp_path, workers=2) == []
    assert {path.name: (tmp_path / path.name).stat().st_mtime_ns for path in kept} == times, "made only once"
    for path in shards.list_shards(data):
        first, second = load_file(path), load_file(tmp_path / path.name)
        assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(UserError, match="other settings"):
        prepared(small, tmp_path, replace(CONFIG, crops=2))


def test_captions_and_broken_pictures(small, tmp_path) -> None:
    pictures, base = tmp_path / "pictures" / "deep", tmp_path / "sd3"
    pictures.mkdir(parents=True)
    for index, text in enumerate(["a cat", "", "a cat", None]):
        Image.new("RGB", (80, 90), (60 * index, 9, 9)).save(pictures / f"{index}.png")
        if text is not None:
            (pictures / f"{index}.txt").write_text(text)
    (pictures / "9.jpg").write_bytes(b"no picture")
    base.mkdir()
    for part in ("transformer", "vae", "scheduler"):
        (base / part).symlink_to(small.folder / part)
    small_sd3.write_text_encoders(base)
    files = small_sd3.SmallSD3(tmp_path)
    source = {"embeddings": None, "null_embeddings": None, "captions": True}
    broken = prepared(files, tmp_path / "out", replace(CONFIG, crops=1, shard=8), tmp_path / "pictures", **source)
    assert [path.name for path in broken] == ["9.jpg"]
    [path] = shards.list_shards(tmp_path / "out")
    made = load_file(path)
    assert made["caption"].tolist() == [0, -1, 0, -1] and len(made["prompt"]) == 1
    default, null = shards.read_prompts(tmp_path / "out")
    texts = sd_runs.open_text_encoders(base, open_base(base, torch.float32), torch.device("cpu"), torch.float32)
    for words, found in (("a cat", made["prompt"]), ("", null.prompt), (PromptSource().prompt, default.prompt)):
        assert torch.allclose(texts(words).prompt, found.float(), atol=2e-3)
    samples = shards.ShardSamples(tmp_path / "out", 0)
    prompts = [samples[number]["prompt"] for number in range(4)]
    assert sorted(torch.equal(prompt, made["prompt"][0]) for prompt in prompts) == [False, False, True, True]


def test_preparing_what_cannot_be_ends_in_one_sentence(small, tmp_path) -> None:
    for changes, words in (
        ({"folder": tmp_path / "nowhere"}, "is not a folder"),
        ({"folder": tmp_path}, "contains no pictures"),
        ({"config": replace(CONFIG, crop=100)}, "multiple of 64"),
    ):
        with pytest.raises(UserError, match=words):
            prepared(small, tmp_path / "out", **changes)
    with pytest.raises(UserError, match="onestep-sr prepare"):
        shards.ShardSamples(tmp_path, 0)


def test_partners_are_cut_at_the_same_place(small, tmp_path) -> None:
    folders = paired(tmp_path)
    config = replace(CONFIG, partners=prepare.Partners(folders["lr"], folders["targets"]))
    skipped = prepared(small, tmp_path / "out", config, folders["hr"])
    assert [path.name for path in skipped] == ["2.png"]
    samples = shards.ShardSamples(tmp_path / "out", 0)
    assert samples.count == 6
    vae = open_base(small.folder, torch.float32).vae
    for number in range(samples.count):
        sample = samples[number]
        assert torch.equal(sample["hr"], sample["lr"].repeat_interleave(4, 1).repeat_interleave(4, 2))
        inverse = (255 - sample["hr"]).float() / 127.5 - 1
        with torch.no_grad():
            expected = 1.5305 * vae.encode(inverse[None]).latent_dist.mode()[0]
        assert torch.allclose(sample["z_t"].float(), expected, atol=2e-3 * float(expected.abs().max()))


def pairs_of(tmp_path: Path, hr: list[str], lr: list[str]) -> dict[str, str]:
    """The LR counterpart of each HR picture, by their colours."""
    partners = prepare.Partners(tmp_path / "lr")
    for folder, names, side in (("hr", hr, CROP), ("lr", lr, CROP // 4)):
        for number, name in enumerate(names):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (side, side), (60 * number,) * 3).save(tmp_path / folder / name)
    config = replace(CONFIG, crops=1, shard=1, partners=partners)
    prepare.check(tmp_path / "hr", config)
    found = {}
    for path, item in zip(
        prepare.stream_pictures(tmp_path / "hr"), prepare.CropShards(tmp_path / "hr", config, set()), strict=True
    ):
        name = str(path.relative_to(tmp_path / "hr"))
        found[name] = lr[round(int(item["lr"][0][0, 0, 0]) / 60)] if item["lr"] else ""
    return found


@pytest.mark.parametrize(
    ("hr", "lr", "expected"),
    [
        (["0001.png"], ["0001.crop.png", "0001.png"], ["0001.png"]),
        (["0001.png", "0001.crop.png"], ["0001.crop.png"], ["", "0001.crop.png"]),
        (["a[1].png", "a1.png"], ["a[1].webp", "a1.png"], ["a[1].webp", "a1.png"]),
        (["a*.png", "ab.png"], ["ab.png", "a*.png"], ["a*.png", "ab.png"]),
        (["a.png", "deep/b.png"], ["a.PNG", "deep/b.JPG"], ["a.PNG", "deep/b.JPG"]),
        (["a.png"], ["A.png"], [""]),
        (["a.png"], ["deep/a.png"], [""]),
    ],
)
def test_pictures_are_paired_by_their_exact_names(tmp_path: Path, hr, lr, expected) -> None:
    (tmp_path / "lr" / "deep").mkdir(parents=True)
    assert pairs_of(tmp_path, hr, lr) == dict(zip(hr, expected, strict=True))


@pytest.mark.parametrize(
    ("hr", "lr", "words"),
    [
        (["a.png"], ["a.png", "a.webp"], r"lr/a\.png and \S+lr/a\.webp have the same name but for their endings"),
        (["deep/a.png", "deep/a.PNG"], ["a.png"], r"hr/deep/a\.PNG and \S+hr/deep/a\.png have the same name"),
        (["a.png"], [], "lr is not a folder"),
    ],
)
def test_names_that_do_not_say_what_belongs_together_are_refused(tmp_path: Path, hr, lr, words: str) -> None:
    with pytest.raises(UserError, match=words):
        pairs_of(tmp_path, hr, lr)
