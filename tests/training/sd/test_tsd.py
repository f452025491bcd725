"""Target score distillation: the equations against numpy in float64, in each base's own terms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onestep_sr.sr_models.core.process import Process, flow_matching, variance_preserving
from onestep_sr.sr_models.training.sd import tsd

SHAPE = (3, 2, 4, 5)
STARTS, BIASES = torch.tensor([50, 612, 949]), torch.tensor([0, 24, -25])


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape or SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def process(kind: str) -> Process:
    if kind == "flow":
        return flow_matching(3.0)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return variance_preserving(kind, torch.cumprod(1 - betas, 0))


def network(scale: float, offset: float):
    """A network that is neither linear nor blind to its timestep, for torch and numpy alike."""
    return lambda z, t: scale * z + offset * z**2 / (1 + z**2) + t / 2000


TEACHER, AUXILIARY = network(0.4, 0.3), network(0.2, -0.5)


def predictor(net, base: Process) -> tsd.Predictor:
    def predict(z: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        z_t = base.network_input(z, index)
        return base.x_0(net(z_t, base.timesteps[index][:, None, None, None]), z_t, index)

    return predict


def ours(kind: str, steps: int, matching: tsd.Matching = "score", **changes) -> torch.Tensor:
    base = process(kind)
    indices = tsd.trajectory(STARTS, BIASES, steps, 1000)
    given = {"z_s": normal(0), "z_h": normal(1), "noise": normal(2)} | changes
    models = predictor(TEACHER, base), predictor(AUXILIARY, base)
    return tsd.gradient(given["z_s"], given["z_h"], given["noise"], indices, base.path, *models, matching=matching)


def tables(kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """alpha, sigma and timesteps in float64, the noisiest first."""
    if kind == "flow":
        t = np.arange(1000, 0, -1) / 1000
        sigma = 3 * t / (1 + 2 * t)
        return 1 - sigma, sigma, 1000 * sigma
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    share = np.cumprod(1 - betas)[::-1]
    return np.sqrt(share), np.sqrt(1 - share), np.arange(999, -1, -1)


def by_hand(kind: str, steps: int, matching: str = "score") -> np.ndarray:
    """Sample by sample in the base's own terms: flow matching's Euler steps, or DDIM's with noise and x_0."""
    alpha, sigma, times = tables(kind)
    z_s, z_h, n = (normal(seed).numpy() for seed in range(3))
    result = np.zeros(SHAPE)
    for b in range(SHAPE[0]):
        start, bias = int(STARTS[b]), int(BIASES[b])
        end = min(start + 50 * steps + bias, 999)
        walk = np.floor(start + (end - start) * np.arange(steps + 1) / steps).astype(int)
        z_t, h_t = (alpha[walk[0]] * z + sigma[walk[0]] * n[b] for z in (z_s[b], z_h[b]))
        for i, weight in zip(range(steps), (1, 0.3, 0.3, 0.3), strict=False):
            a, s, t = alpha[walk[i]], sigma[walk[i]], times[walk[i]]
            psi_s, psi_h, phi_s = (both(kind, f(z, t), z, a, s) for f, z in
                                   ((TEACHER, z_t), (TEACHER, h_t), (AUXILIARY, z_t)))  # fmt: skip
            v_psi_s, v_psi_h, v_phi_s = (noise - x_0 for noise, x_0 in (psi_s, psi_h, phi_s))
            share = s / (a + s)
            matched = (psi_s[0] - psi_h[0]) / (1 - share) if matching == "score" else v_psi_s - v_psi_h
            result[b] += weight * share**2 * (0.7 * (v_psi_s - v_phi_s) + 0.3 * matched)
            a, s = alpha[walk[i + 1]], sigma[walk[i + 1]]
            z_t, h_t = (s * noise + a * x_0 for noise, x_0 in (phi_s, psi_h))
    return result


def both(kind: str, output: np.ndarray, z_t: np.ndarray, a: float, s: float) -> tuple[np.ndarray, np.ndarray]:
    """The noise and the clean latent that a network's output means."""
    if kind == "flow":
        return z_t + (1 - s) * output, z_t - s * output
    if kind == "epsilon":
        return output, (z_t - s * output) / a
    return s * z_t + a * output, a * z_t - s * output


def relative(found: torch.Tensor, expected: np.ndarray) -> float:
    return float(np.abs(found.numpy() - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("matching", ["score", "velocity"])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("kind", ["flow", "epsilon", "v"])
def test_the_gradient_is_the_one_by_hand(kind: str, steps: int, matching: tsd.Matching) -> None:
    assert relative(ours(kind, steps, matching=matching), by_hand(kind, steps, matching)) < 1e-5


def test_a_perfect_teacher_has_no_effect_on_scores_and_pushes_velocities_away_from_hr() -> None:
    """A teacher that predicts nothing pulls towards HR with both."""
    base, (z_s, z_h, noise) = process("flow"), (normal(i) for i in range(3))
    indices, sigma = tsd.trajectory(STARTS, BIASES, 1, 1000), tsd.at(base.path, STARTS)

    def seeing(z_t: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return (z_t - sigma * noise) / (1 - sigma)

    def blind(z_t: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(z_t)

    def matched(teacher: tsd.Predictor, matching: tsd.Matching) -> torch.Tensor:
        options = {"vsd_share": 0.0, "matching": matching}
        return tsd.gradient(z_s, z_h, noise, indices, base.path, teacher, teacher, **options)

    assert torch.allclose(matched(seeing, "score"), torch.zeros_like(z_s), atol=1e-6)
    assert torch.allclose(matched(seeing, "velocity"), -(sigma**2) * (z_s - z_h), rtol=1e-5, atol=1e-6)
    assert torch.allclose(matched(blind, "score"), sigma * (z_s - z_h), rtol=1e-5, atol=1e-6)
    assert torch.allclose(matched(blind, "velocity"), sigma * (1 - sigma) * (z_s - z_h), rtol=1e-5, atol=1e-6)


MISTAKES = {
    "other noise for HR": lambda: ours("flow", 4, z_h=normal(1) + 0.05 * normal(3)),
    "a step too few": lambda: ours("flow", 3),
    "no bias": lambda: tsd.gradient(
        *(normal(i) for i in range(3)),
        tsd.trajectory(STARTS, 0 * BIASES, 4, 1000),
        process("flow").path,
        predictor(TEACHER, process("flow")),
        predictor(AUXILIARY, process("flow")),
    ),
    "models swapped": lambda: tsd.gradient(
        *(normal(i) for i in range(3)),
        tsd.trajectory(STARTS, BIASES, 4, 1000),
        process("flow").path,
        predictor(AUXILIARY, process("flow")),
        predictor(TEACHER, process("flow")),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_would_show(mistake: str) -> None:
    assert relative(MISTAKES[mistake](), by_hand("flow", 4)) > 1e-3


def test_one_model_in_three_parametrisations_gives_one_gradient() -> None:
    """The equations only use x_0: on the same path, the kind of prediction makes no difference."""
    base = process("v")

    def predictor_of(scale: float, prediction: str) -> tsd.Predictor:
        def predict(z: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            a, s = tsd.at(base.alpha, index), tsd.at(base.sigma, index)
            z_t = base.network_input(z, index)
            x_0 = scale * z_t.tanh()
            noise = (z_t - a * x_0) / s
            output = noise if prediction == "epsilon" else a * noise - s * x_0
            return Process(prediction, base.alpha, base.sigma, base.timesteps).x_0(output, z_t, index)

        return predict

    indices = tsd.trajectory(STARTS, BIASES, 4, 1000)
    inputs = [normal(i) for i in range(3)]
    found = [
        tsd.gradient(*inputs, indices, base.path, predictor_of(0.9, kind), predictor_of(0.5, kind))
        for kind in ("epsilon", "v")
    ]
    assert torch.allclose(*found, rtol=1e-4, atol=1e-6)  # the tables are float32


@given(st.integers(50, 949), st.integers(-25, 24), st.integers(1, 4))
def test_trajectories_are_the_published_ones(start: int, bias: int, steps: int) -> None:
    end = min(start + 50 * steps + bias, 999)
    expected = torch.linspace(start, end, steps + 1, dtype=torch.float64).add(1e-9).long()
    found = tsd.trajectory(torch.tensor([start]), torch.tensor([bias]), steps, 1000)[0]
    assert torch.equal(found, expected)


@settings(deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1, 2, 4]), st.sampled_from(["flow", "epsilon", "v"]))
def test_the_gradient_vanishes_where_it_should(seed: int, steps: int, kind: str) -> None:
    base, inputs = process(kind), [normal(seed), normal(seed + 1), normal(seed + 2)]
    indices = tsd.trajectory(STARTS, BIASES, steps, 1000)
    teacher, auxiliary = predictor(TEACHER, base), predictor(AUXILIARY, base)
    same = tsd.gradient(*inputs, indices, base.path, teacher, teacher, vsd_share=1.0)
    assert not same.any(), "nothing to learn from an auxiliary that is the teacher"
    z = inputs[0]
    there = tsd.gradient(z, z, inputs[2], indices[:, :2], base.path, teacher, auxiliary, vsd_share=0.0)
    assert not there.any(), "a student at its target"
    whole, vsd, tsm = (
        tsd.gradient(*inputs, indices, base.path, teacher, auxiliary, vsd_share=share) for share in (0.7, 1.0, 0.0)
    )
    assert torch.allclose(whole, 0.7 * vsd + 0.3 * tsm, rtol=1e-9, atol=1e-12)


def test_the_distillation_losses_gradient_is_g_over_n() -> None:
    z_s, g = normal(0).requires_grad_(), normal(1)
    loss = tsd.distillation_loss(z_s, g)
    assert float(loss.detach()) == pytest.approx(0.5 * (g.numpy() ** 2).mean(), rel=1e-12)
    loss.backward()
    assert torch.allclose(z_s.grad, g / g.numel(), rtol=1e-9)


def test_the_auxiliary_loss_and_its_gradient_equal_the_formula() -> None:
    x_0, z_s, weight = normal(0).requires_grad_(), normal(1).requires_grad_(), normal(2, 3).sigmoid()
    loss = tsd.auxiliary_loss(x_0, z_s, weight)
    a, b, w = x_0.detach().numpy(), z_s.detach().numpy(), weight.numpy().reshape(3, 1, 1, 1)
    assert float(loss.detach()) == pytest.approx((0.5 * w * (a - b) ** 2).mean(), rel=1e-12)
    loss.backward()
    assert z_s.grad is None, "the student does not chase the auxiliary"
    step = np.zeros(SHAPE)
    step[1, 0, 2, 3] = 1e-6
    values = [(0.5 * w * (a + sign * step - b) ** 2).mean() for sign in (1, -1)]
    assert float(x_0.grad[1, 0, 2, 3]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)
