"""Time-aware distillation on a small Stable Diffusion 3: who learns from what, and a run on a teacher's results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_sd3
import torch
from onestep_sr.sr_models.families.registry import read_lora
from onestep_sr.sr_models.training.draws import Draws
from onestep_sr.sr_models.training.sd import prepare, shards, tad_objective
from onestep_sr.sr_models.training.sd import runs as sd_runs
from onestep_sr.sr_models.training.sd.bases import open_base
from onestep_sr.sr_models.training.sd.runs import SDRun
from onestep_sr.sr_models.training.sd.shared_base import Ranks, SharedBase
from small_training import (
    CONFIG,
    batch,
    gradients,
    mixed_devices,
    paired,
    prepared,
    run_config,
    scalars,
    shaken,
    write_base,
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> small_sd3.SmallSD3:
    return write_base(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def data(small: small_sd3.SmallSD3, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    assert prepared(small, folder) == []
    return folder


def test_the_noise_seen_is_the_noise_that_was_added() -> None:
    z, noise = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    sigma = torch.tensor([0.05, 0.25], dtype=torch.float64)[:, None, None, None]
    found = tad_objective.noise_of((1 - sigma) * z + sigma * noise, z, sigma)
    assert torch.allclose(found, noise, rtol=1e-9)


def tad_objective_of(small: small_sd3.SmallSD3, data: Path) -> tad_objective.TADObjective:
    base = shaken(SharedBase(open_base(small.folder, torch.float32), Ranks(4, 4, 0)))
    return tad_objective.TADObjective(base, *shards.read_prompts(data), tad_objective.TADConfig())


def test_a_step_of_tad_runs_on_the_objectives_device(small, data) -> None:
    assert mixed_devices(tad_objective_of(small, data), batch(data)) == []


def test_each_part_of_tad_learns_from_its_own_loss_only(small, data) -> None:
    torch.manual_seed(0)
    made = tad_objective_of(small, data)
    for head in made.discriminator.heads:
        torch.nn.init.normal_(head.mix.weight, std=0.1)
    maps = made.base.features(
        torch.randn(2, 16, 8, 6), torch.tensor([100, 900]), shards.read_prompts(data)[0].expand(2)
    )
    assert [tuple(each.shape) for each in maps] == [(2, 128, 4, 3)] * 2
    losses = made(batch(data), Draws(0, [0, 1]), 0)
    assert all(torch.isfinite(value) for value in losses.values())
    for name, mine in (("adversarial", "base."), ("discriminator", "discriminator.")):
        made.zero_grad()
        losses[name].backward(retain_graph=True)
        moved = [key for key, gradient in gradients(made).items() if gradient.any()]
        assert moved and all(key.startswith(mine) for key in moved)
    made.zero_grad()
    losses["score"].backward()
    assert any(key.startswith("base.network") for key in gradients(made))


def test_the_score_difference_is_near_the_clean_end_and_vanishes_at_the_target(small, data, monkeypatch) -> None:
    base = SharedBase(open_base(small.folder, torch.float32), Ranks(4, 4, 0))
    made = tad_objective.TADObjective(base, *shards.read_prompts(data), tad_objective.TADConfig())
    seen = []
    teacher = base.teacher
    monkeypatch.setattr(
        base, "teacher", lambda z, index, c: seen.append(base.process.path[index]) or teacher(z, index, c)
    )
    z, condition = torch.randn(8, 16, 8, 8), shards.read_prompts(data)[0].expand(8)
    assert float(made._score_loss(z, z, condition, Draws(0, range(8)))) == 0
    assert all(((path >= 0.04) & (path <= 0.26)).all() for path in seen)


def test_without_a_target_the_base_is_compared_with_the_auxiliary(small, data, monkeypatch) -> None:
    torch.manual_seed(0)
    base = SharedBase(open_base(small.folder, torch.float32), Ranks(4, 4, 4))
    made = tad_objective.TADObjective(base, *shards.read_prompts(data), tad_objective.TADConfig())
    z, condition = torch.randn(2, 16, 8, 8), shards.read_prompts(data)[0].expand(2)
    assert float(made._score_loss(z, -z, condition, Draws(0, [0, 1]))) == 0, "a new adapter is the teacher itself"
    shaken(base)
    z_s = z.clone().requires_grad_(True)
    made._score_loss(z_s, -z, condition, Draws(0, [0, 1])).backward()

    draws = Draws(0, [0, 1])
    near = [i for i, share in enumerate(base.process.path.tolist()) if 0.04 <= share <= 0.26]
    index, noise = draws.integers(near[0], near[-1] + 1), draws.normal(16, 8, 8)
    s = base.process.path[index][:, None, None, None]
    x_t = (1 - s) * z + s * noise
    with torch.no_grad():
        difference = base.auxiliary(x_t, index, condition) - base.teacher(x_t, index, condition)
    assert z_s.grad is not None
    assert torch.allclose(z_s.grad * z.numel(), (1 - s) / s * difference, rtol=1e-3, atol=1e-4)

    assert made.near[-1] > 949, "nearer to the clean end than where TSD trains its auxiliary"
    seen = []
    monkeypatch.setattr(base, "auxiliary", lambda z, index, c: seen.extend(index.tolist()) or z)
    made.auxiliary_loss(torch.zeros(500, 16, 1, 1), condition, Draws(0, range(500)), made.near[-1])
    monkeypatch.undo()
    assert 949 < max(seen) <= made.near[-1] and min(seen) < 100
    losses = made(batch(data), Draws(0, [0, 1]), 0)
    losses["auxiliary"].backward()
    moved = [key for key, gradient in gradients(made).items() if gradient.any()]
    assert moved and all(".auxiliary." in key for key in moved)
    assert [group["name"] for group in made.groups()] == ["student", "discriminator", "auxiliary"]


@pytest.mark.parametrize("auxiliary", [0, 4])
def test_a_tad_run_on_targets_goes_through(small, tmp_path, auxiliary: int) -> None:
    folders = paired(tmp_path)
    config = replace(CONFIG, partners=prepare.Partners(targets=folders["targets"]))
    prepared(small, tmp_path / "out", config, folders["hr"])
    method = tad_objective.TADConfig(1e-3, 1e-3)
    run = SDRun(small.folder, tmp_path / "out", Ranks(4, 4, auxiliary))
    result = sd_runs.train_tad(run_config(tmp_path / "run", steps=2), run, method)
    assert read_lora(result).network[0].update
    for name in ("regression", "score", "adversarial", "discriminator", *["auxiliary"][: auxiliary > 0]):
        assert all(np.isfinite(value) for value in scalars(result, name).values())
