"""Time-aware distillation (TAD-SR, arXiv 2408.07476): a T-step ResShift teacher into a one-step student.

Shapes: latents (B, c, h, w); `condition` (B, 3, h, w), the LR picture in [-1, 1] on the latent grid;
timesteps (B,) integers. `y` is the latent of the bicubically enlarged LR, `z_s` the student's result,
`z_teacher` the teacher's, `z_h` the HR latent.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.schedule import ResShiftSchedule
from ..core.step import Network, predict


def regression_loss(z_s: Tensor, z_teacher: Tensor) -> Tensor:
    """mean (z_s - z_teacher)^2: the student's result against the teacher's from the same start."""
    return F.mse_loss(z_s, z_teacher)


@torch.no_grad()
def score_difference(
    teacher: Network,
    schedule: ResShiftSchedule,
    z_s: Tensor,
    z_teacher: Tensor,
    y: Tensor,
    condition: Tensor,
    t: Tensor,
    noise: Tensor,
) -> Tensor:
    """g = e(z_s) - e(z_teacher), the difference of the noise that the teacher predicts for both at timestep t.

    e(z) = [x(z) - (1 - eta_t) x_0(z) - eta_t y] / (kappa sqrt(eta_t)), with x(z) = noised(z, y, t, noise)
    and x_0(z) the teacher's prediction from it. Using the same noise for both cancels its variance; plain
    score distillation has `noise` instead of e(z_teacher), which adds the teacher's own bias.
    """

    def predicted_noise(z: Tensor) -> Tensor:
        x_t = schedule.noised(z, y, t, noise)
        return schedule.noise_of(x_t, predict(teacher, schedule, x_t, condition, t), y, t)

    return predicted_noise(z_s) - predicted_noise(z_teacher)


def high_frequency_score_loss(z_s: Tensor, gradient: Tensor) -> Tensor:
    """mean(g z_s) with g held constant, so that its gradient in z_s is g / N, N the number of values."""
    return (gradient.detach() * z_s).mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge: mean relu(1 - D(hr)) + mean relu(1 + D(z_s))."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """-mean D(z_s)."""
    return -fake.mean()


class DiscriminatorHead(nn.Module):
    """Maps one feature map of the frozen encoder to a logit per position, conditioned on the timestep."""

    def __init__(self, channels: int, time_channels: int):
        super().__init__()
        spectral_norm = nn.utils.parametrizations.spectral_norm
        self.norm = nn.GroupNorm(32, channels)
        self.time = nn.Linear(time_channels, 2 * channels)
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.mix.weight)
        self.enter = spectral_norm(nn.Conv1d(channels, channels, 1))
        self.residual = spectral_norm(nn.Conv1d(channels, channels, 9, padding=4))
        self.logit = spectral_norm(nn.Conv1d(channels, 1, 1))

    def forward(self, features: Tensor, time: Tensor) -> Tensor:
        """features (B, C, h, w), time (B, time_channels) -> logits (B, h w)."""
        scale, shift = self.time(time)[:, :, None, None].chunk(2, dim=1)
        hidden = features + self.mix(F.silu(self.norm(features) * (1 + scale) + shift))
        hidden = F.leaky_relu(self.enter(hidden.flatten(2)), 0.2)
        hidden = hidden + F.leaky_relu(self.residual(hidden), 0.2)
        return self.logit(hidden)[:, 0]


class TimeAwareDiscriminator(nn.Module):
    """Heads on the frozen teacher's encoder: one at the end of each level and one after the middle.

    Maps with more than `widest` channels are first projected to that many; otherwise the heads on a transformer would
    be larger than the student.
    """

    def __init__(self, channels: list[int], time_channels: int = 128, widest: int = 640):
        super().__init__()
        self.narrow = nn.ModuleList(nn.Conv2d(c, widest, 1) if c > widest else nn.Identity() for c in channels)
        self.time = nn.Sequential(nn.Linear(1, time_channels), nn.SiLU(), nn.Linear(time_channels, time_channels))
        self.heads = nn.ModuleList(DiscriminatorHead(min(c, widest), time_channels) for c in channels)

    def forward(self, features: list[Tensor], t: Tensor, steps: int) -> Tensor:
        """features: the encoder's maps; t (B,) of `steps` timesteps -> all heads' logits, (B, positions)."""
        time = F.silu(self.time(t[:, None].float() / steps))
        # Contiguous: on CPUs torch 2.13's group norm crashes in the backward pass of a channels-last input
        # that needs no gradient itself.
        maps = zip(self.heads, self.narrow, features, strict=True)
        return torch.cat([head(narrow(f).contiguous(), time) for head, narrow, f in maps], dim=1)


def adversarial_losses(
    discriminator: TimeAwareDiscriminator, real: list[Tensor], fake: list[Tensor], t: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """L_G with the discriminator's weights constant, and L_D with the student's result constant.

    `real` and `fake` are the encoder's maps of noised HR and student latents at timesteps t (B,) of `steps`.
    """
    constants = {name: weight.detach() for name, weight in discriminator.named_parameters()}
    logits_student = torch.func.functional_call(discriminator, constants, (fake, t, steps))
    logits_fake = discriminator([f.detach() for f in fake], t, steps)
    logits_real = discriminator(real, t, steps)
    return generator_loss(logits_student), discriminator_loss(logits_real, logits_fake)
