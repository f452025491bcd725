"""ResShift's schedule and the steps, compared with the published numbers and float64 formulae."""

import math

import pytest
import torch
from onestep_sr.sr_models.core.process import flow_level
from onestep_sr.sr_models.core.schedule import ResShiftSchedule
from onestep_sr.sr_models.core.step import OneStep, ResShiftStep, one_step, sample
from onestep_sr.sr_models.families.resshift import RECIPES, T4, T15

# Of the published code
PUBLISHED_15 = (
    *(0.02, 0.11717, 0.1763, 0.23363, 0.29157, 0.35101, 0.41236, 0.47586),
    *(0.54167, 0.60991, 0.68066, 0.75399, 0.82995, 0.90861, 0.99),
)

FLOW = OneStep(1000.0, level=flow_level(1000.0))
PUBLISHED_4 = (0.1, 0.52010, 0.76138, 0.99)  # the journal version of ResShift
BOUNDED_4 = (0.03162, 0.37644, 0.66732, 0.99)  # TAD-SR, and ResShift before
SCHEDULES = pytest.mark.parametrize("schedule", [T15, T4], ids=["T15", "T4"])


def latents(count, channels=3, size=6, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, channels, size, size + 2, generator=random, dtype=torch.float64)


class Recorder:
    """A network that computes a formula and records its inputs."""

    def __init__(self, answer):
        self.answer, self.calls = answer, []

    def __call__(self, latent, condition, timestep):
        self.calls.append((latent, condition, timestep))
        return self.answer(latent, condition, timestep)


@pytest.mark.parametrize(
    ("schedule", "table"),
    [(T15, PUBLISHED_15), (T4, PUBLISHED_4), (ResShiftSchedule(steps=4, min_noise=0.2), BOUNDED_4)],
)
def test_tables_are_the_published_ones(schedule, table):
    assert schedule.steps == len(schedule.sqrt_eta) == len(table)
    assert schedule.kappa == 2
    for ours, theirs in zip(schedule.sqrt_eta, table, strict=True):
        assert ours == pytest.approx(theirs, abs=5.1e-6)


def test_a_schedule_of_any_length_starts_and_ends_correctly():
    schedule = ResShiftSchedule(steps=7, kappa=0.5, min_noise=0.01, end=0.9)
    assert schedule.sqrt_eta[0] == pytest.approx(0.01)
    assert schedule.sqrt_eta[-1] == pytest.approx(0.9)
    assert list(schedule.sqrt_eta) == sorted(schedule.sqrt_eta)


@SCHEDULES
def test_noised_pictures_have_the_mean_and_variance_of_the_forward_process(schedule):
    noise = torch.randn(20_000, 1, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x_0, y = torch.full_like(noise, 0.7), torch.full_like(noise, -0.4)
    for t in range(schedule.steps):
        eta = schedule.sqrt_eta[t] ** 2
        x_t = schedule.noised(x_0, y, torch.full((20_000,), t), noise)
        deviation = 2 * math.sqrt(eta)
        assert x_t.mean().item() == pytest.approx(0.7 - 1.1 * eta, abs=4 * deviation / math.sqrt(20_000))
        assert x_t.std().item() == pytest.approx(deviation, rel=0.03)


@SCHEDULES
def test_each_picture_of_a_batch_has_its_own_timestep(schedule):
    x_0, y, noise = latents(3)
    t = torch.tensor([0, schedule.steps - 1])
    together = schedule.noised(x_0, y, t, noise)
    for i in range(2):
        root = schedule.sqrt_eta[t[i]]
        expected = x_0[i] + root**2 * (y[i] - x_0[i]) + 2 * root * noise[i]
        assert torch.allclose(together[i], expected, atol=1e-12)


@SCHEDULES
def test_noise_of_undoes_noised(schedule):
    x_0, y, noise = latents(3)
    for step in range(schedule.steps):
        t = torch.full((2,), step)
        x_t = schedule.noised(x_0, y, t, noise)
        assert torch.allclose(schedule.noise_of(x_t, x_0, y, t), noise, atol=1e-10)


def test_the_network_sees_the_picture_over_its_largest_deviation():
    (x_t,) = latents(1)
    seen = T15.network_input(x_t, torch.tensor([0, 14]))
    assert torch.allclose(seen[0], x_t[0] / math.sqrt(1 + 4 * 0.02**2), atol=1e-9)
    assert torch.allclose(seen[1], x_t[1] / math.sqrt(1 + 4 * 0.99**2), atol=1e-9)


def test_the_start_is_the_enlarged_picture_with_all_the_noise():
    y, noise = latents(2)
    assert torch.allclose(T15.start(y, noise), y + 1.98 * noise, atol=1e-12)


@SCHEDULES
def test_ddim_coefficients(schedule):
    """Each coefficient separately: two of the three pictures are zero, the third is one."""
    one, zero = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    for t in range(1, schedule.steps):
        eta, previous = schedule.sqrt_eta[t] ** 2, schedule.sqrt_eta[t - 1] ** 2
        m = math.sqrt(previous / eta)
        j = previous - math.sqrt(previous * eta)
        k = 1 - previous + math.sqrt(previous * eta) - m
        assert schedule.ddim_step(zero, one, zero, t).item() == pytest.approx(k, abs=1e-12)
        assert schedule.ddim_step(one, zero, zero, t).item() == pytest.approx(m, abs=1e-12)
        assert schedule.ddim_step(zero, zero, one, t).item() == pytest.approx(j, abs=1e-12)


@SCHEDULES
def test_ddim_with_the_exact_picture_stays_on_the_forward_process_with_the_same_noise(schedule):
    x_0, y, noise = latents(3)
    x_t = schedule.noised(x_0, y, torch.full((2,), schedule.steps - 1), noise)
    for t in range(schedule.steps - 1, 0, -1):
        x_t = schedule.ddim_step(x_t, x_0, y, t)
        assert torch.allclose(x_t, schedule.noised(x_0, y, torch.full((2,), t - 1), noise), atol=1e-10)


@SCHEDULES
def test_the_posterior_step_follows_from_the_forward_process_by_bayes_rule(schedule):
    """q(x_{t-1} | x_t, x_0, y) as the product of q(x_{t-1} | x_0, y) and q(x_t | x_{t-1}, x_0, y), two Gaussians, where
    x_t = x_{t-1} + alpha_t (y - x_0) + kappa sqrt(alpha_t) n (equations 1 and 2 of the paper)."""
    x_0, y, x_t = latents(3)
    zero, one = torch.zeros_like(x_0), torch.ones_like(x_0)
    for t in range(1, schedule.steps):
        eta, previous = schedule.sqrt_eta[t] ** 2, schedule.sqrt_eta[t - 1] ** 2
        alpha, kappa = eta - previous, schedule.kappa
        before, seen = kappa**2 * previous, kappa**2 * alpha  # the two variances
        variance = 1 / (1 / before + 1 / seen)
        mean = variance * ((x_0 + previous * (y - x_0)) / before + (x_t - alpha * (y - x_0)) / seen)
        assert torch.allclose(schedule.posterior_step(x_t, x_0, t, zero), mean, atol=1e-10)
        spread = schedule.posterior_step(x_t, x_0, t, one) - schedule.posterior_step(x_t, x_0, t, zero)
        assert torch.allclose(spread, math.sqrt(variance) * one, atol=1e-10)


@SCHEDULES
def test_the_stochastic_sampler_stays_on_the_forward_process(schedule):
    """For the exact picture, x_t has the mean and deviation of q(x_t | x_0, y) at every t, and x_0 is found."""
    count = 20_000
    x_0, y = torch.full((count, 1, 1, 1), 0.7, dtype=torch.float64), torch.full((count, 1, 1, 1), -0.4).double()
    random = torch.Generator().manual_seed(2)
    noise = torch.randn(count, schedule.steps, 1, 1, generator=random, dtype=torch.float64)
    oracle = Recorder(lambda latent, condition, t: x_0)
    step = ResShiftStep(schedule, schedule.steps, stochastic=True)
    assert step.noises == schedule.steps
    assert torch.equal(step(oracle, y, noise, torch.zeros(1)), x_0)
    for seen, _, times in oracle.calls[1:]:
        t = int(times[0])
        x_t, deviation = seen * math.sqrt(1 + 4 * schedule.sqrt_eta[t] ** 2), 2 * schedule.sqrt_eta[t]
        mean = 0.7 - 1.1 * schedule.sqrt_eta[t] ** 2
        assert x_t.mean().item() == pytest.approx(mean, abs=4 * deviation / math.sqrt(count))
        assert x_t.std().item() == pytest.approx(deviation, rel=0.03)


def test_the_stochastic_sampler_in_scalars():
    """The same loop in scalars, for a network that shrinks what it sees; each noise is used once, in this order."""
    y, noises, schedule = 0.3, (-1.2, 0.4, 2.0, -0.7), T4
    x = y + 2 * schedule.sqrt_eta[-1] * noises[0]
    for t, noise in zip((3, 2, 1), noises[1:], strict=True):
        eta, previous = schedule.sqrt_eta[t] ** 2, schedule.sqrt_eta[t - 1] ** 2
        x_0 = 0.5 * x / math.sqrt(1 + 4 * eta)
        mean = previous / eta * x + (eta - previous) / eta * x_0
        x = mean + 2 * math.sqrt(previous / eta * (eta - previous)) * noise
    expected = 0.5 * x / math.sqrt(1 + 4 * schedule.sqrt_eta[0] ** 2)
    result = ResShiftStep(schedule, 4, stochastic=True)(
        lambda latent, condition, t: 0.5 * latent,
        torch.full((1, 1, 1, 1), y, dtype=torch.float64),
        torch.tensor(noises, dtype=torch.float64).view(1, 4, 1, 1),
        torch.zeros(1),
    )
    assert result.item() == pytest.approx(expected, abs=1e-12)


@SCHEDULES
def test_the_sampler_with_an_oracle_finds_its_picture_in_all_steps(schedule):
    x_0, y, noise = latents(3)
    condition = torch.rand(2, 3, 6, 8)
    oracle = Recorder(lambda latent, condition, t: x_0)
    result = sample(oracle, schedule, y, condition, noise)
    assert torch.allclose(result, x_0, atol=1e-12)
    assert [t.tolist() for _, _, t in oracle.calls] == [[t, t] for t in reversed(range(schedule.steps))]
    assert all(seen is condition for _, seen, _ in oracle.calls)


def test_the_sampler_feeds_each_result_into_the_next_step():
    """The same loop in scalars, for a network that shrinks what it sees."""
    y, noise, schedule = 0.3, -1.2, T4
    x = y + 2 * schedule.sqrt_eta[-1] * noise
    for t in (3, 2, 1, 0):
        eta = schedule.sqrt_eta[t] ** 2
        x_0 = 0.5 * x / math.sqrt(1 + 4 * eta)
        if t == 0:
            x = x_0
            break
        previous = schedule.sqrt_eta[t - 1] ** 2
        # the noise that x implies, put onto the next mean
        implied = (x - (1 - eta) * x_0 - eta * y) / (2 * math.sqrt(eta))
        x = (1 - previous) * x_0 + previous * y + 2 * math.sqrt(previous) * implied
    shape = (1, 1, 1, 1)
    result = sample(
        lambda latent, condition, t: 0.5 * latent,
        schedule,
        torch.full(shape, y, dtype=torch.float64),
        torch.zeros(shape),
        torch.full(shape, noise, dtype=torch.float64),
    )
    assert result.item() == pytest.approx(x, abs=1e-12)


@SCHEDULES
def test_one_step_runs_the_network_once_at_the_last_timestep(schedule):
    y, noise = latents(2)
    condition = torch.rand(2, 3, 6, 8)
    network = Recorder(lambda latent, condition, t: 3 * latent)
    result = one_step(network, schedule, y, condition, noise)
    [(seen, passed_on, t)] = network.calls
    expected = (y + 1.98 * noise) / math.sqrt(1 + 1.98**2)
    assert torch.allclose(seen, expected, atol=1e-9)
    assert torch.allclose(result, 3 * expected, atol=1e-9)
    assert passed_on is condition
    assert t.tolist() == [schedule.steps - 1] * 2
    assert not t.is_floating_point()


@pytest.mark.parametrize(("schedule", "evaluations"), [(T15, 1), (T15, 15), (T4, 1), (T4, 4)])
def test_the_step_runs_the_network_evaluations_times(schedule, evaluations):
    y, noise = latents(2)
    network = Recorder(lambda latent, condition, t: latent)
    ResShiftStep(schedule, evaluations)(network, y, noise, torch.zeros(2, 3, 6, 8))
    assert len(network.calls) == evaluations


@pytest.mark.parametrize(("schedule", "evaluations"), [(T15, 2), (T15, 0), (T15, 14), (T15, 16), (T4, 15), (T4, -1)])
def test_a_resshift_step_refuses_other_numbers_of_evaluations(schedule, evaluations):
    with pytest.raises(ValueError, match=f"{evaluations} evaluations"):
        ResShiftStep(schedule, evaluations)


def test_the_flow_step_subtracts_the_velocity_at_timestep_1000_and_uses_no_noise():
    z, noise = latents(2)
    condition = torch.rand(2, 3, 6, 8)
    network = Recorder(lambda latent, condition, t: 0.25 * latent + 1)
    result = FLOW(network, z, noise * float("nan"), condition)
    [(seen, passed_on, t)] = network.calls
    assert torch.equal(seen, z)
    assert passed_on is condition
    assert t.tolist() == [1000, 1000]
    assert torch.allclose(result, 0.75 * z - 1, atol=1e-12)


def test_the_recipes_take_the_published_steps():
    steps = {name: (recipe.step.schedule.steps, recipe.step.evaluations) for name, recipe in RECIPES.items()}
    published = {"tad-sr": (15, 1), "sinsr": (15, 1), "resshift": (15, 15), "resshift-s4": (4, 4)}
    assert steps == published | {"resshift-ddim": (15, 15), "resshift-s4-ddim": (4, 4)}
    assert {name for name, recipe in RECIPES.items() if recipe.step.stochastic} == {"resshift", "resshift-s4"}
    assert all((recipe.scale, recipe.tile) == (4, 512) for recipe in RECIPES.values())
