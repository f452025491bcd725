"""Target score distillation (TSD-SR, arXiv 2411.18263): the equations, for every kind of base.

They use x_0 on the straight path z_t = (1 - sigma) z_0 + sigma n from a latent (sigma 0) to noise (sigma 1). A base
is a function from z_t and its index in a decreasing table of sigmas to x_0, whatever its network predicts (see
`process.py`). On this path, flow matching's velocity is (z_t - x_0) / sigma.

Shapes: latents and noise (B, c, h, w); indices (B,) integers; sigmas (S,), index 0 the noisiest. `z_s` is the
student's latent, `z_h` the HR's; `teacher` is psi, `auxiliary` phi, the model of the student's own results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Predictor = Callable[[Tensor, Tensor], Tensor]
Matching = Literal["score", "velocity"]

FIRST_INDEX, LAST_INDEX = 50, 949  # range of trajectory starts in the published training, inclusive
STRIDE = 50
STEP_WEIGHTS = (1.0, 0.3, 0.3, 0.3)
VSD_SHARE = 0.7


def trajectory(start: Tensor, bias: Tensor, steps: int, count: int, stride: int = STRIDE) -> Tensor:
    """DASM's indices, (B, steps + 1): evenly spaced from `start` (B,) to start + stride * steps + bias, at most
    count - 1, rounded down.

    `bias` (B,), integers in -stride/2 .. stride/2 - 1, is added to the length of the whole trajectory.
    """
    length = (start + stride * steps + bias).clamp_max(count - 1) - start
    return start[:, None] + torch.arange(steps + 1, device=start.device) * length[:, None] // steps


def at(sigmas: Tensor, index: Tensor) -> Tensor:
    """The table's values at indices (B,), as (B, 1, 1, 1)."""
    return sigmas[index][:, None, None, None]


def noised(z: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """z_t = (1 - sigma) z + sigma n."""
    return (1 - sigma) * z + sigma * noise


def velocity(z_t: Tensor, x_0: Tensor, sigma: Tensor) -> Tensor:
    """v = (z_t - x_0) / sigma, flow matching's n - x_0."""
    return (z_t - x_0) / sigma


@torch.no_grad()
def gradient(
    z_s: Tensor,
    z_h: Tensor,
    noise: Tensor,
    indices: Tensor,
    sigmas: Tensor,
    teacher: Predictor,
    auxiliary: Predictor,
    weights: Sequence[float] = STEP_WEIGHTS,
    vsd_share: float = VSD_SHARE,
    matching: Matching = "score",
) -> Tensor:
    """g = share g_vsd + (1 - share) g_tsm, summed along the distribution-aware sampling (DASM) of `trajectory`.

    g_vsd = sum_i w_i sigma_i^2 (v_psi(z_t) - v_phi(z_t)), where z_t starts from z_s and h_t from z_h with the same
    noise, and they take Euler steps along the auxiliary's and the teacher's velocity, respectively. `indices` are
    (B, steps + 1) with steps at most len(weights); one step is plain TSD.

    g_tsm compares the teacher's predictions for z_t and h_t, by `matching`:
    - score: predicted noise, as in the paper (equation 6). As noise is z_t + (1 - sigma) v, this is
      sum_i w_i sigma_i^2 (v_psi(z_t) - v_psi(h_t) + (z_t - h_t) / (1 - sigma_i)), in the scale of g_vsd.
    - velocity: as in the published script, without the last term. If the teacher recovers the clean latents, its
      velocities are n - z_s and n - z_h, so this pushes z_s away from z_h.
    """
    z_t, h_t = (noised(z, noise, at(sigmas, indices[:, 0])) for z in (z_s, z_h))
    g = torch.zeros_like(z_s)
    steps = indices.shape[1] - 1
    for i, weight in zip(range(steps), weights, strict=False):
        sigma, following = at(sigmas, indices[:, i]), at(sigmas, indices[:, i + 1])
        v_teacher = velocity(z_t, teacher(z_t, indices[:, i]), sigma)
        v_target = velocity(h_t, teacher(h_t, indices[:, i]), sigma)
        v_auxiliary = velocity(z_t, auxiliary(z_t, indices[:, i]), sigma)
        vsd, tsm = v_teacher - v_auxiliary, v_teacher - v_target
        if matching == "score":
            tsm = tsm + (z_t - h_t) / (1 - sigma)
        g += weight * sigma**2 * (vsd_share * vsd + (1 - vsd_share) * tsm)
        z_t = z_t + (following - sigma) * v_auxiliary
        h_t = h_t + (following - sigma) * v_target
    return g


def distillation_loss(z_s: Tensor, g: Tensor) -> Tensor:
    """0.5 mean (z_s - stopgrad(z_s - g))^2: its value is 0.5 mean g^2, its gradient in z_s is g / N."""
    return 0.5 * F.mse_loss(z_s, (z_s - g).detach())


def auxiliary_loss(x_0: Tensor, z_s: Tensor, weight: Tensor) -> Tensor:
    """mean 0.5 w (x_0 - z_s)^2 with a weight per sample, (B,): phi learns the student's results, held constant."""
    return (0.5 * weight[:, None, None, None] * (x_0 - z_s.detach()).square()).mean()


def logit_normal(normal: Tensor) -> Tensor:
    """Standard normal numbers -> weights in 0 .. 1, logit-normally distributed (arXiv 2403.03206, section 3.1)."""
    return torch.sigmoid(normal)
