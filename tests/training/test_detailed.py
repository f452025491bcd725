"""The detailed phase of a network from picture to picture, and joining both phases' results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onestep_sr.sr_models.commands.cli import app
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families import conv_sr
from onestep_sr.sr_models.networks.conv_sr import ConvSR, ConvSRConfig
from onestep_sr.sr_models.training import loop
from onestep_sr.sr_models.training.detailed_objective import DetailedObjective, DetailWeights
from onestep_sr.sr_models.training.discriminator import UNetDiscriminator, players_losses
from onestep_sr.sr_models.training.draws import Draws
from onestep_sr.sr_models.training.perceptual import PerceptualLosses
from onestep_sr.sr_models.training.picture_runs import DetailedRun, join, train_detailed
from onestep_sr.sr_models.training.pictures import PairConfig
from perceptual_weights import write_perceptual_weights
from PIL import Image
from places import PHOTOS
from safetensors.torch import load_file
from torch import Tensor, nn

NUMBERS = [0, 1]


@pytest.fixture(scope="module")
def perceptual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_perceptual_weights(tmp_path_factory.mktemp("perceptual"))


@pytest.fixture
def network() -> ConvSR:
    torch.manual_seed(0)
    made = ConvSR(ConvSRConfig(8, 1))
    nn.init.normal_(made.out.weight, std=0.02)
    return made


@pytest.fixture
def start(network: ConvSR, tmp_path: Path) -> Path:
    conv_sr.save(tmp_path / "faithful.safetensors", network)
    return tmp_path / "faithful.safetensors"


def pictures(count: int = 2, side: int = 48) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.rand(count, 3, side, side, generator=generator) for _ in range(2))
    return first, second


class Line(nn.Module):
    """A discriminator whose logit is w x mean(picture) of each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(3.0))

    def forward(self, image: Tensor) -> Tensor:
        return self.weight * image.mean(dim=(1, 2, 3))


def test_the_players_losses_and_gradients_equal_their_formulas() -> None:
    real, fake = pictures()
    fake.requires_grad_(True)
    line = Line()
    generator, discriminator = players_losses(line, real, fake)
    r, f = (picture.detach().double().mean(dim=(1, 2, 3)).numpy() for picture in (real, fake))
    assert float(generator.detach()) == pytest.approx(np.log1p(np.exp(-3 * f)).mean(), rel=1e-5)
    expected = (np.log1p(np.exp(-3 * r)).mean() + np.log1p(np.exp(3 * f)).mean()) / 2
    assert float(discriminator.detach()) == pytest.approx(expected, rel=1e-5)
    (generator + discriminator).backward()
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    assert line.weight.grad is not None and fake.grad is not None
    # The discriminator learns from its own loss only, and the result from the generator's only.
    slope = ((-r * sigmoid(-3 * r)).mean() + (f * sigmoid(3 * f)).mean()) / 2
    assert float(line.weight.grad) == pytest.approx(slope, rel=1e-4)
    pull = -3 * sigmoid(-3 * f) / len(f) / fake[0].numel()
    assert fake.grad[:, 0, 0, 0].numpy() == pytest.approx(pull, rel=1e-4)


def test_the_discriminator_sees_every_phase_of_a_pixel_grid() -> None:
    torch.manual_seed(0)
    discriminator = UNetDiscriminator(16).eval()
    flat = torch.full((1, 3, 64, 64), 0.5)
    assert discriminator(flat).shape == (1, 1, 32, 32)
    changed = []
    for row in range(2):
        for column in range(2):
            dotted = flat.clone()
            dotted[..., row::2, column::2] += 0.1
            changed.append(float((discriminator(dotted) - discriminator(flat)).abs().max().detach()))
    assert min(changed) > 1e-3 and len({round(value, 6) for value in changed}) == 4


def test_the_discriminators_weights_have_norm_one() -> None:
    torch.manual_seed(0)
    discriminator = UNetDiscriminator(16)
    for _ in range(30):  # the power iteration takes a step per pass
        discriminator(torch.rand(1, 3, 32, 32))
    for layer in (*discriminator.down, *discriminator.up, discriminator.refine):
        assert float(torch.linalg.matrix_norm(layer.weight.flatten(1), 2).detach()) == pytest.approx(1, abs=0.05)


def mean4(pictures: torch.Tensor) -> np.ndarray:
    return pictures.double().numpy().reshape(2, 3, 12, 4, 12, 4).mean(axis=(3, 5))


def pillow_bicubic(channel: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(channel.astype(np.float32)).resize((12, 12), Image.Resampling.BICUBIC))


def test_the_loss_is_the_weighted_sum_of_its_terms(network: ConvSR, perceptual: Path) -> None:
    weights = DetailWeights(pixel=1.5, coarse=2.5, lpips=0.3, dists=0.7, adversarial=0.2, grid=0.4, chroma=0.6)
    objective = DetailedObjective(network, PerceptualLosses(perceptual, 32), weights, (1e-3, 1e-3)).eval()
    hr, result = pictures()
    found = {n: float(v.detach()) for n, v in objective.losses(result, {"hr": hr}, Draws(0, NUMBERS)).items()}
    difference = (result - hr).double().numpy()
    assert found["pixel"] == pytest.approx(np.abs(difference).mean(), rel=1e-5)
    small = [mean4(hr), np.stack([[pillow_bicubic(channel) for channel in picture] for picture in hr.double().numpy()])]
    assert found["coarse"] == pytest.approx(np.abs(mean4(result) - sum(small) / 2).mean(), rel=1e-3)
    colours = [picture - picture.mean(axis=1, keepdims=True) for picture in (p.double().numpy() for p in (result, hr))]
    assert found["chroma"] == pytest.approx(np.abs(colours[0] - colours[1]).mean(), rel=1e-4)
    names = ("pixel", "coarse", "lpips", "dists", "adversarial", "grid", "chroma")
    expected = sum(getattr(weights, name) * found[name] for name in names) + found["discriminator"]
    assert found["loss"] == pytest.approx(expected, rel=1e-5)


def test_perceptual_losses_are_taken_at_changing_places(perceptual: Path) -> None:
    losses = PerceptualLosses(perceptual, window=32, every=2)
    hr, result = pictures(4)
    values = {float(losses(result, hr, Draws(seed, [0, 1, 2, 3]))[1]) for seed in range(6)}
    assert len(values) > 2
    same = losses(hr, hr, Draws(0, [0, 1, 2, 3]))
    assert float(same[0]) == 0 and float(same[1]) == pytest.approx(0, abs=1e-5)


def detailed_run(start: Path, perceptual: Path, **changes) -> DetailedRun:
    return DetailedRun(PHOTOS, start, perceptual, **({"pairs": PairConfig(crop=48, margin=16)} | changes))


def test_training_resumes_and_moves_both_players(start: Path, perceptual: Path, tmp_path: Path, monkeypatch) -> None:
    config = {"batch": 2, "warmup": 0, "workers": 0, "save_every": 2, "ema": 0.5, "log_every": 1}
    whole = train_detailed(loop.TrainConfig(tmp_path / "whole", steps=4, **config), detailed_run(start, perceptual))
    step = loop.training_step

    def stopped(*arguments):
        if arguments[-1] == 3:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(loop, "training_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_detailed(loop.TrainConfig(tmp_path / "cut", steps=4, **config), detailed_run(start, perceptual))
    monkeypatch.setattr(loop, "training_step", step)
    cut = train_detailed(loop.TrainConfig(tmp_path / "cut", steps=4, **config), detailed_run(start, perceptual))
    assert cut.read_bytes() == whole.read_bytes()
    before, after = conv_sr.read_one(start), conv_sr.read_one(whole)
    assert 0 < (after.out.weight - before.out.weight).abs().max() < 0.01
    with pytest.raises(UserError, match="other settings"):
        changed = detailed_run(start, perceptual, weights=DetailWeights(adversarial=1.0))
        train_detailed(loop.TrainConfig(tmp_path / "cut", steps=4, **config), changed)


def test_an_earlier_runs_discriminator_is_trained_further(start: Path, perceptual: Path, tmp_path: Path) -> None:
    config = {"batch": 1, "warmup": 0, "workers": 0, "steps": 1}
    train_detailed(loop.TrainConfig(tmp_path / "first", **config), detailed_run(start, perceptual))
    checkpoint = tmp_path / "first" / "checkpoint.safetensors"
    further = detailed_run(start, perceptual, discriminator=checkpoint, discriminator_rate=0.0)
    train_detailed(loop.TrainConfig(tmp_path / "second", **config, seed=1), further)
    first, second = (load_file(tmp_path / run / "checkpoint.safetensors") for run in ("first", "second"))
    weights = [name for name in first if name.startswith("weights/discriminator.") and not name.endswith(("_u", "_v"))]
    assert weights and all(torch.equal(first[name], second[name]) for name in weights)
    with pytest.raises(UserError, match=r"choose checkpoint\.safetensors of an earlier"):
        wrong = detailed_run(start, perceptual, discriminator=start)
        train_detailed(loop.TrainConfig(tmp_path / "third", **config), wrong)


def test_the_commands_make_one_model_with_both_ends(start: Path, perceptual: Path, tmp_path: Path) -> None:
    words = (
        f"train detailed {PHOTOS} --start {start} --perceptual {perceptual} -o {tmp_path / 'run'} --crop 48 --steps 1"
    )
    app([*words.split(), "--batch", "1", "--workers", "0", "--precision", "no", "--dists-weight", "0.4"])
    detailed, joined = tmp_path / "run" / "model.safetensors", tmp_path / "joined.safetensors"
    assert "dists_weight = 0.4" in (tmp_path / "run" / "run.toml").read_text()
    card = tmp_path / "card.txt"
    card.write_text("Made here.")
    app(["train", "join", str(start), str(detailed), "-o", str(joined), "--detail", "0.6", "--card", str(card)])
    assert "Made here." in joined.read_bytes()[:1000].decode(errors="ignore")
    ends = conv_sr.read(joined)
    assert ends.detailed is not None and ends.detail == 0.6
    assert torch.equal(ends.faithful.out.weight, conv_sr.read_one(start).out.weight)
    assert torch.equal(ends.detailed.out.weight, conv_sr.read_one(detailed).out.weight)


def test_what_does_not_fit_is_named(start: Path, perceptual: Path, tmp_path: Path) -> None:
    config, other = loop.TrainConfig(tmp_path / "run"), tmp_path / "other.safetensors"
    conv_sr.save(other, ConvSR(ConvSRConfig(12, 1)))
    few, grey = PairConfig(crop=48, plain=1.5), PairConfig(crop=48, grey=-0.5)
    both = join(start, start, 0.5, "", tmp_path / "both.safetensors")
    cases = [
        (lambda: train_detailed(config, detailed_run(start, perceptual, pairs=PairConfig(crop=40))), "Crop 40"),
        (lambda: train_detailed(config, detailed_run(start, tmp_path)), "does not contain"),
        (lambda: train_detailed(config, detailed_run(start, perceptual, pairs=few)), "share of plain pairs 1.5 is out"),
        (lambda: train_detailed(config, detailed_run(start, perceptual, pairs=grey)), "share of grey pairs -0.5"),
        (lambda: train_detailed(config, detailed_run(both, perceptual)), "two sets of weights"),
        (lambda: join(start, other, 0.5, "", tmp_path / "x.safetensors"), "different sizes"),
        (lambda: join(start, start, 1.5, "", tmp_path / "x.safetensors"), "Detail 1.5 is out of bounds"),
    ]
    for attempt, message in cases:
        with pytest.raises(UserError, match=message):
            attempt()
    assert not (tmp_path / "run").exists() and not (tmp_path / "x.safetensors").exists()
