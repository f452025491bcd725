"""Time-aware distillation, against its formulae in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onestep_sr.sr_models.training import tad
from onestep_sr.sr_models.training.draws import Draws
from onestep_sr.sr_models.training.pixel_objectives import StudentWeights
from small_students import SCHEDULE, batch, normal, student_objective


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
def test_student_and_auxiliary_learn_from_their_own_losses_only(adversarial: float) -> None:
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
