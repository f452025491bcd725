"""Training: every loss against numpy in float64, a run that learns, and a resume that changes nothing."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from click import Command, Context
from onestep_sr.sr_models.canvas.degradation import Degradation, gaussian_kernel
from onestep_sr.sr_models.codecs.pixel_shuffle import PixelShuffleCodec
from onestep_sr.sr_models.commands.train import train_app
from onestep_sr.sr_models.core.schedule import ResShiftSchedule
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families import bundled
from onestep_sr.sr_models.measures.lpips import Lpips
from onestep_sr.sr_models.measures.musiq import Musiq
from onestep_sr.sr_models.networks.swin_unet import SwinUNet, SwinUNetConfig
from onestep_sr.sr_models.training import loop, tad, validation
from onestep_sr.sr_models.training.data import CropPairs
from onestep_sr.sr_models.training.draws import Draws
from onestep_sr.sr_models.training.objective import Objective
from onestep_sr.sr_models.training.pixel_objectives import Batch, StudentObjective, StudentWeights, TeacherObjective
from places import PHOTOS
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.main import get_command

NETWORK = SwinUNetConfig(
    latent_channels=48,
    channels=32,
    multipliers=(1, 1),
    blocks_per_level=1,
    swin_channels=32,
    mlp_ratio=2,
    native_size=16,
    bicubic_skip=4,
)
SCHEDULE = ResShiftSchedule(steps=4, kappa=0.5, min_noise=0.2)
CODEC = PixelShuffleCodec(4)
TEACHER, STUDENT = bundled.Description(NETWORK, SCHEDULE, 4), bundled.Description(NETWORK, SCHEDULE, 1)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(seed: int = 0) -> SwinUNet:
    torch.manual_seed(seed)
    made = SwinUNet(NETWORK)
    torch.nn.init.normal_(made.out[2].weight, std=0.02)
    return made


def batch(count: int = 2, size: int = 16) -> Batch:
    pairs = [CropPairs(PHOTOS, 4 * size, Degradation(), 5)[i] for i in range(count)]
    return Batch.from_pairs(torch.stack([p["hr"] for p in pairs]), torch.stack([p["lr"] for p in pairs]), CODEC)


def student_objective(weights: StudentWeights) -> StudentObjective:
    teacher = network()
    return StudentObjective(deepcopy(teacher), teacher, STUDENT, weights, 1e-3)


def test_losses_equal_their_formulae() -> None:
    z_s, z_t, real, fake = (normal(2, 3, 4, 5, seed=i) for i in range(4))
    a, b, r, f = (t.numpy() for t in (z_s, z_t, real, fake))
    assert float(tad.regression_loss(z_s, z_t)) == pytest.approx(((a - b) ** 2).mean(), rel=1e-9)
    assert float(tad.generator_loss(fake)) == pytest.approx(-f.mean(), rel=1e-9)
    hinge = np.maximum(1 - r, 0).mean() + np.maximum(1 + f, 0).mean()
    assert float(tad.discriminator_loss(real, fake)) == pytest.approx(hinge, rel=1e-9)


def test_score_difference_equals_its_formula_and_its_loss_has_gradient_g_over_n() -> None:
    z_s, z_t, y, noise = (normal(3, 2, 4, 4, seed=i) for i in range(4))
    t = torch.tensor([0, 1, 2])
    teacher = lambda x, condition, t: 0.3 * x + 0.1 * condition + t[:, None, None, None]  # noqa: E731
    z_s.requires_grad_(True)
    g = tad.score_difference(teacher, SCHEDULE, z_s, z_t, y, y, t, noise)

    s0 = min(0.2 / 0.5, 0.2, 0.001**0.5)
    u = (np.arange(4) / 3) ** 0.3 * 3
    eta = ((s0 * (0.99 / s0) ** (u / 3)) ** 2)[:3].reshape(3, 1, 1, 1)

    def seen(z: np.ndarray) -> np.ndarray:
        x_t = z + eta * (y.numpy() - z) + 0.5 * np.sqrt(eta) * noise.numpy()
        x_0 = 0.3 * x_t / np.sqrt(1 + 0.25 * eta) + 0.1 * y.numpy() + np.arange(3).reshape(3, 1, 1, 1)
        return (x_t - (1 - eta) * x_0 - eta * y.numpy()) / (0.5 * np.sqrt(eta))

    expected = seen(z_s.detach().numpy()) - seen(z_t.numpy())
    assert np.abs(g.numpy() - expected).max() < 1e-5 * np.abs(expected).max()
    assert not g.requires_grad
    loss = tad.high_frequency_score_loss(z_s, g)
    assert float(loss.detach()) == pytest.approx((expected * z_s.detach().numpy()).mean(), rel=1e-5)
    loss.backward()
    assert torch.allclose(z_s.grad, g / z_s.numel(), rtol=1e-12, atol=0)
    assert not tad.score_difference(teacher, SCHEDULE, z_t, z_t, y, y, t, noise).any()


@pytest.mark.parametrize("adversarial", [0.0, 1.0])
def test_each_player_learns_from_its_own_loss_only(adversarial: float) -> None:
    objective = student_objective(StudentWeights(0, 0, adversarial))
    for head in objective.discriminator.heads:
        torch.nn.init.normal_(head.mix.weight, std=0.1)
    losses = objective.losses(batch(), Draws(0, range(2)))
    losses["loss"].backward()
    student = [p.grad for p in objective.network.parameters()]
    moved = [g for g in student if g is not None and g.abs().max() > 0]
    assert bool(moved) == bool(adversarial)
    assert all(p.grad is None for p in objective.teacher.parameters())
    judge = {n: p.grad.clone() for n, p in objective.discriminator.named_parameters()}

    alone = student_objective(StudentWeights(0, 0, 0))
    alone.discriminator.load_state_dict(objective.discriminator.state_dict())
    assert any(g.abs().max() > 0 for g in judge.values()), "the discriminator learns whatever L_G's weight"


def test_the_discriminator_sees_the_timestep() -> None:
    discriminator = tad.TimeAwareDiscriminator([32, 32])
    for head in discriminator.heads:
        torch.nn.init.normal_(head.mix.weight, std=0.1)
    features = [normal(2, 32, 8, 8, seed=1).float(), normal(2, 32, 4, 4, seed=2).float()]
    early, late = (discriminator(features, torch.tensor([t, t]), 4) for t in (0, 2))
    assert early.shape == (2, 80)
    assert not torch.allclose(early, late, atol=1e-3)


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
def test_a_stopped_run_goes_on_as_if_it_had_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
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
    # The worst moment to stop: the old checkpoint is out of the way, the new one not yet in its place.
    (tmp_path / "parts" / "checkpoint").rename(tmp_path / "parts" / "checkpoint.old")
    loop.train(config(tmp_path / "parts"), objective(), crops())

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
    for name, batch, accumulate in (("large", 4, 1), ("small", 2, 2)):
        changes = {"steps": 3, "batch": batch, "accumulate": accumulate, "validation": None}
        loop.train(config(tmp_path / name, **changes), TeacherObjective(network(), TEACHER, 1e-3), crops())
    large, small = (scalars(tmp_path / name, "loss") for name in ("large", "small"))
    assert large == pytest.approx(small, rel=1e-5)


def test_validation_asks_the_judges_whose_weights_are_here(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert validation.find_judges(None, None) == {}
    torch.save(Musiq().state_dict(), tmp_path / "musiq_koniq_ckpt-0.pth")
    lpips = Lpips().requires_grad_(False)
    for weight in lpips.weights:
        torch.nn.init.ones_(weight)
    monkeypatch.setattr(validation, "find_lpips", lambda folder: lpips)
    objective, judges = TeacherObjective(network(), TEACHER, 1e-3), validation.find_judges(None, None)
    scores, strip = validation.validate(lambda lr: objective.restore(lr, 0), PHOTOS, judges)
    assert set(scores) == {"psnr", "ssim", "niqe", "lpips", "musiq", "detail"} and scores["lpips"] > 0
    assert strip.shape[-1] % 3 == 0
    better = validation.better
    assert better("lpips", 0.1, 0.2) and better("psnr", 0.2, 0.1) and not better("niqe", 5.0, 4.0)
    assert better("musiq", 60, 50)


def test_the_best_result_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By NIQE, where lower is better; over a stop."""
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
@pytest.mark.parametrize(("has_units", "precision"), [(True, "bf16"), (False, "no")])
def test_halves_are_chosen_only_where_there_are_units_for_them(has_units, precision, monkeypatch) -> None:
    """And before the options are written down, so that a run goes on elsewhere in what it had."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_units)
    option = next(each for each in get_command(train_app).commands["teacher"].params if each.name == "precision")
    context = Context(Command("teacher"))
    assert option.process_value(context, "auto") == precision
    assert option.process_value(context, "fp16") == "fp16"


def test_pairs_are_a_pure_function_of_seed_and_index() -> None:
    first, later = (CropPairs(PHOTOS, 64, Degradation(), 1) for _ in range(2))
    later[7]
    assert torch.equal(first[4]["lr"], later[4]["lr"])
    assert torch.equal(first[4]["hr"], later[4]["hr"])
    assert not torch.equal(first[4]["hr"], first[5]["hr"])
    assert first[0]["lr"].shape == (3, 16, 16)


def test_degradation_keeps_the_picture_in_place() -> None:
    pairs = CropPairs(PHOTOS, 64, Degradation(clean=0), 2)
    errors = {}
    for shift in (-1, 0, 1):
        total = 0.0
        for index in range(24):
            pair = pairs[index]
            small = pair["hr"].float().unfold(1, 4, 4).unfold(2, 4, 4).mean((-1, -2))
            total += float((torch.roll(small, shift, -1) - pair["lr"].float())[:, 2:-2, 2:-2].square().mean())
        errors[shift] = total
    assert errors[0] < 0.6 * min(errors[-1], errors[1])


def test_blur_kernel_is_a_gaussian() -> None:
    kernel = gaussian_kernel(1.5, 1.5, 0.7).double().numpy()
    radius = len(kernel) // 2
    axis = np.exp(-0.5 * (np.arange(-radius, radius + 1) / 1.5) ** 2)
    assert np.abs(kernel - np.outer(axis, axis) / axis.sum() ** 2).max() < 1e-7
