"""Training a network from picture to picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onestep_sr.sr_models.canvas.degradation import Degradation
from onestep_sr.sr_models.commands.cli import app
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families import conv_sr
from onestep_sr.sr_models.files.listing import list_images
from onestep_sr.sr_models.networks.conv_sr import ConvSR, ConvSRConfig
from onestep_sr.sr_models.training import loop
from onestep_sr.sr_models.training.draws import Draws
from onestep_sr.sr_models.training.picture_objective import FaithfulObjective
from onestep_sr.sr_models.training.picture_runs import FaithfulRun, train_faithful
from onestep_sr.sr_models.training.pictures import PairConfig, PicturePairs
from PIL import Image
from places import PHOTOS

CLEAN = Degradation(clean=1.0)


def test_pairs_are_a_pure_function_of_seed_and_number() -> None:
    config = PairConfig(crop=32, margin=16, shrunk=0.5)
    ours, again, other = (PicturePairs(PHOTOS, config, seed) for seed in (3, 3, 4))
    assert all(torch.equal(ours[i][name], again[i][name]) for i in (0, 1, 999) for name in ("hr", "lr"))
    assert not torch.equal(ours[0]["hr"], other[0]["hr"])
    assert (ours[0]["hr"].shape, ours[0]["lr"].shape) == ((3, 32, 32), (3, 8, 8))


@pytest.mark.parametrize("margin", [0, 32])
def test_lr_and_hr_show_the_same_place(margin: int) -> None:
    pairs = PicturePairs(
        PHOTOS, PairConfig(crop=64, margin=margin, grey=0.0, shrunk=0.5, plain=0.0, degradation=CLEAN), 0
    )
    for number in range(12):
        pair = pairs[number]
        hr = Image.fromarray(pair["hr"].permute(1, 2, 0).numpy())
        small = np.asarray(hr.resize((16, 16), Image.Resampling.BOX)).astype(float)[2:-2, 2:-2]
        lr = pair["lr"].permute(1, 2, 0).numpy().astype(float)
        here = np.abs(lr[2:-2, 2:-2] - small).mean()
        moved = min(np.abs(np.roll(lr, 1, axis=axis)[2:-2, 2:-2] - small).mean() for axis in (0, 1))
        assert here < 0.8 * moved or moved < 2  # or everything is nearly flat


def test_jpeg_blocks_begin_anywhere(monkeypatch) -> None:
    """The pair is cut out of a larger degraded window: its first LR column is each of the window's first nine."""
    ramp = np.broadcast_to((np.arange(512) // 4).astype(np.uint8)[None, :, None], (512, 512, 3))
    pairs = PicturePairs(PHOTOS, PairConfig(crop=32, margin=32, grey=0.0, shrunk=0.0, plain=0.0, degradation=CLEAN), 0)
    pairs.pictures = [ramp]
    monkeypatch.setattr(PicturePairs, "_windows", lambda self, rng: {"hr": Image.fromarray(ramp[:64, :64])})
    assert len({int(pairs[number]["hr"][0, 0, 0]) for number in range(200)}) == 9


def test_plain_pairs_are_gradients_that_lr_and_hr_share() -> None:
    pairs, kinds = PicturePairs(PHOTOS, PairConfig(crop=32, margin=0, plain=1.0), 0), set()
    for number in range(40):
        hr, lr = (pairs[number][name].double().numpy() for name in ("hr", "lr"))
        shrunk = hr.reshape(3, 8, 4, 8, 4).mean(axis=(2, 4))
        assert np.abs(shrunk - lr).max() <= 1  # both are rounded
        kinds.add((hr.std(axis=(1, 2)).max() > 0.5, hr.std(axis=1).max() > 0.5, bool(np.ptp(hr, axis=0).max() > 0)))
    assert kinds == {(False, False, False), (False, False, True)} | {
        (True, down, colour) for down in (False, True) for colour in (False, True)
    }


def test_some_pairs_are_grey() -> None:
    pairs = PicturePairs(PHOTOS, PairConfig(crop=16, margin=0, grey=1.0, plain=0.0, degradation=CLEAN), 0)
    assert all(bool((pairs[i]["hr"] == pairs[i]["hr"][:1]).all()) for i in range(5))


def test_the_loss_is_the_mean_absolute_error() -> None:
    torch.manual_seed(0)
    objective = FaithfulObjective(ConvSR(ConvSRConfig(8, 1)), 1e-3)
    generator = torch.Generator().manual_seed(0)
    batch = {
        name: torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=generator)
        for name, side in (("lr", 6), ("hr", 24))
    }
    result = objective.network(batch["lr"].float() / 255).detach().double().numpy()
    expected = np.abs(result - batch["hr"].double().numpy() / 255).mean()
    assert float(objective(batch, Draws(0, [0, 1]), 0)["loss"].detach()) == pytest.approx(expected, rel=1e-6)


def run(data: Path = PHOTOS, **changes) -> FaithfulRun:
    settings = {"network": ConvSRConfig(8, 1), "pairs": PairConfig(crop=32, margin=16), "learning_rate": 2e-3} | changes
    return FaithfulRun(data, **settings)


def test_training_learns_resumes_and_gives_a_model(tmp_path: Path, monkeypatch) -> None:
    config = {"batch": 4, "warmup": 2, "workers": 0, "save_every": 4, "ema": 0.5, "log_every": 1}
    whole = train_faithful(loop.TrainConfig(tmp_path / "whole", steps=8, **config), run())
    step = loop.training_step

    def stopped(*arguments):
        if arguments[-1] == 6:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(loop, "training_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_faithful(loop.TrainConfig(tmp_path / "cut", steps=8, **config), run())
    monkeypatch.setattr(loop, "training_step", step)
    cut = train_faithful(loop.TrainConfig(tmp_path / "cut", steps=8, **config), run())
    assert cut.read_bytes() == whole.read_bytes()
    learned = conv_sr.read_one(whole)
    assert learned.out.weight.abs().max() > 0
    with pytest.raises(UserError, match="other settings"):
        train_faithful(loop.TrainConfig(tmp_path / "cut", steps=8, **config), run(learning_rate=1e-3))


def test_the_command_starts_from_a_model(tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = ConvSR(ConvSRConfig(8, 1))
    torch.nn.init.normal_(network.out.weight, std=0.02)
    conv_sr.save(tmp_path / "start.safetensors", network)
    words = (
        f"train faithful {PHOTOS} -o {tmp_path / 'run'} --start {tmp_path / 'start.safetensors'} --crop 32 --steps 1"
    )
    app([*words.split(), "--batch", "1", "--workers", "0", "--learning-rate", "1e-9", "--precision", "no"])
    found = conv_sr.read_one(tmp_path / "run" / "model.safetensors")
    assert (found.out.weight - network.out.weight).abs().max() < 1e-4
    assert f'start = "{tmp_path / "start.safetensors"}"' in (tmp_path / "run" / "run.toml").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": PairConfig(crop=30)}, "Crop 30 does not fit"),
        ({"network": ConvSRConfig(10, 1)}, "10 channels and 1 blocks"),
        ({"network": ConvSRConfig(8, 0)}, "8 channels and 0 blocks"),
        ({"data": PHOTOS / "absent"}, "absent is not a folder"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        train_faithful(loop.TrainConfig(tmp_path / "run"), run(**changes))
    assert not (tmp_path / "run").exists()


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """Inverted copies of the photographs, so that a window of them is known by its values."""
    folder = tmp_path / "teacher"
    folder.mkdir()
    for file in list_images(PHOTOS):
        Image.fromarray(255 - np.asarray(Image.open(file).convert("RGB"))).save(folder / f"{file.stem}.png")
    return folder


def test_the_teachers_window_is_that_of_hr(teacher: Path) -> None:
    config = PairConfig(crop=32, margin=16, grey=0.0, shrunk=0.5, plain=0.0)
    pairs, without = PicturePairs(PHOTOS, config, 3, teacher), PicturePairs(PHOTOS, config, 3)
    sums = [pairs[i]["hr"].int() + pairs[i]["teacher"].int() for i in range(30)]
    kept = [bool((total == 255).all()) for total in sums]
    same = [torch.equal(pairs[i]["hr"], pairs[i]["teacher"]) for i in range(30)]
    assert all(a != b for a, b in zip(kept, same, strict=True)) and 5 < sum(kept) < 25
    assert all(torch.equal(pairs[i][name], without[i][name]) for i in range(5) for name in ("hr", "lr"))


def test_imitation_mixes_the_targets() -> None:
    objective = FaithfulObjective(ConvSR(ConvSRConfig(8, 1)), 1e-3, imitation=0.7)
    generator = torch.Generator().manual_seed(0)
    hr, result, made = (torch.rand(2, 3, 8, 8, generator=generator) for _ in range(3))
    found = objective.losses(result, {"hr": hr, "teacher": made}, Draws(0, [0, 1]))["loss"]
    expected = np.abs(result.double().numpy() - 0.3 * hr.double().numpy() - 0.7 * made.double().numpy()).mean()
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_a_teachers_result_that_does_not_fit_is_named(teacher: Path, tmp_path: Path) -> None:
    first = list_images(PHOTOS)[0]
    Image.new("RGB", (40, 40)).save(teacher / f"{first.stem}.png")
    with pytest.raises(UserError, match=f"{first.stem}.png has 40 x 40 px, but"):
        train_faithful(loop.TrainConfig(tmp_path / "run"), run(teacher=teacher))
    (teacher / f"{first.stem}.png").unlink()
    with pytest.raises(UserError, match=f"{first.name} has no teacher's result"):
        train_faithful(loop.TrainConfig(tmp_path / "run"), run(teacher=teacher))
    with pytest.raises(UserError, match=r"Imitation 1\.5"):
        train_faithful(loop.TrainConfig(tmp_path / "run"), run(imitation=1.5))
