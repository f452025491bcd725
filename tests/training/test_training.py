"""Training: a run that learns, a resume that changes nothing, and pairs that can be made again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onestep_sr.sr_models.canvas.degradation import Degradation
from onestep_sr.sr_models.commands.train import PhotoOptions, Teacher
from onestep_sr.sr_models.commands.training_options import TrainingOptions
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.measures.alexnet import AlexNet
from onestep_sr.sr_models.measures.lpips import Lpips
from onestep_sr.sr_models.measures.musiq import Musiq
from onestep_sr.sr_models.training import loop, validation
from onestep_sr.sr_models.training.data import CropPairs
from onestep_sr.sr_models.training.draws import Draws
from onestep_sr.sr_models.training.objective import Objective
from onestep_sr.sr_models.training.pixel_objectives import StudentWeights, TeacherObjective
from places import PHOTOS
from safetensors.torch import load_file
from small_students import TEACHER, batch, network, student_objective
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def config(output: Path, **changes: object) -> loop.TrainConfig:
    settings: dict = {"steps": 6, "batch": 2, "warmup": 2, "workers": 0}
    settings |= {"save_every": 3, "log_every": 1, "ema": 0.9, "validation": PHOTOS}
    return loop.TrainConfig(output, **(settings | changes))


def crops() -> CropPairs:
    return CropPairs(PHOTOS, 64, Degradation(), 0)


def scalars(folder: Path, name: str) -> dict[int, float]:
    log = EventAccumulator(str(folder / "log"))
    log.Reload()
    return {event.step: event.value for event in log.Scalars(name)}


def test_thirty_steps_lower_the_loss(tmp_path: Path) -> None:
    objective = TeacherObjective(network(), TEACHER, 1e-3)
    fixed = batch(4)

    def loss() -> float:
        with torch.no_grad():
            return float(np.mean([objective.losses(fixed, Draws(s, range(4)))["loss"] for s in range(4)]))

    before = loss()
    loop.train(config(tmp_path, steps=30, save_every=30, validation=None), objective, crops())
    assert loss() < 0.9 * before


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_a_resumed_run_gives_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def objective(rate: float = 1e-3) -> Objective:
        torch.manual_seed(3)
        return TeacherObjective(network(), TEACHER, rate) if kind == "teacher" else student_objective(StudentWeights())

    loop.train(config(tmp_path / "whole"), objective(), crops())

    step = loop.training_step

    def stopped(*arguments):
        if arguments[-1] == 4:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(loop, "training_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        loop.train(config(tmp_path / "parts"), objective(), crops())
    monkeypatch.setattr(loop, "training_step", step)
    # The worst moment to stop: the new checkpoint is half written.
    half = tmp_path / "parts" / f".checkpoint.{2**22 + 1}.tmp.safetensors"  # of a process that does not run
    half.write_bytes((tmp_path / "parts" / "checkpoint.safetensors").read_bytes()[:999])
    loop.train(config(tmp_path / "parts"), objective(), crops())
    assert not half.exists()

    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    expected, found = (scalars(tmp_path / name, "loss") for name in ("whole", "parts"))
    assert expected == found
    log = EventAccumulator(str(tmp_path / "whole" / "log")).Reload().Tags()
    expected = {f"validation/{name}" for name in ("psnr", "ssim", "niqe", "detail")}
    assert expected | {"learning_rate/network", "gradient_norm/network"} <= set(log["scalars"])
    assert log["images"] == ["samples"]
    with pytest.raises(UserError, match="other settings"):
        loop.train(config(tmp_path / "parts", warmup=3), objective(), crops())


def test_accumulation_gives_the_losses_and_weights_of_a_larger_batch(tmp_path: Path) -> None:
    for name, size, accumulate in (("large", 4, 1), ("small", 2, 2)):
        changes = {"steps": 3, "batch": size, "accumulate": accumulate, "validation": None}
        loop.train(config(tmp_path / name, **changes), TeacherObjective(network(), TEACHER, 1e-3), crops())
    large, small = (scalars(tmp_path / name, "loss") for name in ("large", "small"))
    assert large == pytest.approx(small, rel=1e-5)


def test_validation_uses_the_metrics_whose_weights_are_found(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert validation.find_metrics(None, None) == {}
    torch.save(Musiq().state_dict(), tmp_path / "musiq_koniq_ckpt-0.pth")
    lpips = Lpips(AlexNet()).requires_grad_(False)
    for weight in lpips.weights:
        torch.nn.init.ones_(weight)
    monkeypatch.setattr(validation, "find_lpips", lambda folder: lpips)
    objective, metrics = TeacherObjective(network(), TEACHER, 1e-3), validation.find_metrics(None, None)
    scores, strip = validation.validate(lambda lr: objective.restore(lr, 0), PHOTOS, metrics)
    assert set(scores) == {"psnr", "ssim", "niqe", "lpips", "musiq", "detail"} and scores["lpips"] > 0
    assert strip.shape[-1] % 3 == 0
    better = validation.better
    assert better("lpips", 0.1, 0.2) and better("psnr", 0.2, 0.1) and not better("niqe", 5.0, 4.0)
    assert better("musiq", 60, 50)


def test_the_best_result_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By NIQE, for which lower is better, and across an interruption."""
    found = iter([5.0, 4.0, 4.5, 4.2])
    strip = torch.zeros(3, 8, 8)
    monkeypatch.setattr(loop, "validate", lambda *arguments: ({"niqe": next(found)}, strip))
    written = []
    objective = TeacherObjective(network(), TEACHER, 1e-3)
    save = objective.save
    monkeypatch.setattr(objective, "save", lambda folder: written.append(folder.name) or save(folder))
    settings = config(tmp_path / "run", steps=8, save_every=2, best="niqe")

    def stopped(*arguments):
        if arguments[-1] == 4:
            raise KeyboardInterrupt
        return step(*arguments)

    step = loop.training_step
    monkeypatch.setattr(loop, "training_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        loop.train(settings, objective, crops())
    monkeypatch.setattr(loop, "training_step", step)
    loop.train(settings, objective, crops())
    assert written == ["run", "best", "run", "best", "run", "run", "run"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"precision": "int3"}, "int3"),
        ({"best": "beauty"}, "beauty"),
        ({"best": "lpips"}, "--lpips"),
        ({"best": "musiq"}, "--musiq"),
    ],
)
def test_unknown_settings_end_in_one_sentence(changes: dict, words: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=words):
        loop.train(config(tmp_path, **changes), TeacherObjective(network(), TEACHER, 1e-3), crops())


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU decides there")
@pytest.mark.parametrize(("is_supported", "precision"), [(True, "bf16"), (False, "no")])
def test_half_precision_is_chosen_only_if_the_hardware_supports_it(is_supported, precision, monkeypatch) -> None:
    """It is chosen before the options are saved, so a run that is resumed elsewhere keeps its precision."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: is_supported)
    for asked, expected in (("auto", precision), ("fp16", "fp16")):
        training = TrainingOptions(output=Path("run"), precision=asked)
        started = training.config_of(Teacher(PhotoOptions(Path("photos")), training=training))
        assert started.precision == expected
        assert f'precision = "{expected}"' in started.run_file.splitlines()


def test_pairs_are_a_pure_function_of_seed_and_index() -> None:
    first, later = (CropPairs(PHOTOS, 64, Degradation(), 1) for _ in range(2))
    later[7]
    assert torch.equal(first[4]["lr"], later[4]["lr"])
    assert torch.equal(first[4]["hr"], later[4]["hr"])
    assert not torch.equal(first[4]["hr"], first[5]["hr"])
    assert first[0]["lr"].shape == (3, 16, 16)
