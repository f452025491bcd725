"""Which part of score distillation does what, at a size that a CPU trains: one teacher, five students, one table.

    python benchmarks/distill_comparison.py PHOTOS VALIDATION -o runs/comparison

A flow-matching teacher of the bundled network's size learns what to add to the bicubically enlarged LR, in
pixel-shuffle space. Students start as its copy and learn for equally many steps:

- regression: mean squared distance to HR alone;
- VSD: and the score difference of teacher and auxiliary; TSD: and target score matching; TSD+DASM: and four points
  along the trajectory (TSD-SR, arXiv 2411.18263);
- TAD: distance to the teacher's own 8-step result, score difference near the clean end, and a time-aware
  discriminator (TAD-SR, arXiv 2408.07476).

Everything is kept in the output folder, and a second run goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from onestep_sr.sr_models import evaluate
from onestep_sr.sr_models.distill import tad, tsd
from onestep_sr.sr_models.distill.data import CropPairs, list_images
from onestep_sr.sr_models.distill.degradation import Degradation
from onestep_sr.sr_models.distill.diffusion import flow_matching
from onestep_sr.sr_models.distill.draws import Draws
from onestep_sr.sr_models.distill.loop import TrainConfig, train
from onestep_sr.sr_models.distill.objectives import Losses, ParameterGroup
from onestep_sr.sr_models.distill.runs import NETWORK
from onestep_sr.sr_models.distill.tad_sd_objective import HIGHEST_NOISE, LOWEST_NOISE, noise_of
from onestep_sr.sr_models.image import pad_to_multiple, resize
from onestep_sr.sr_models.image_files import Picture, read_picture, write_picture
from onestep_sr.sr_models.networks.pixel_shuffle import PixelShuffleCodec
from onestep_sr.sr_models.networks.swin_unet import SwinUNet
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SPREAD = 0.1  # of HR around the enlarged LR: divided by it, what the networks learn is of order 1
PROCESS = flow_matching(1.0)
TEACHER_STEPS = 8
SCORES = {"vsd": (1.0, 1), "tsd": (tsd.VSD_SHARE, 1), "tsd-dasm": (tsd.VSD_SHARE, 4)}  # VSD's share, points
PICTURES = 4


class Detail(nn.Module):
    """A network that knows the LR: x_0 of what is missing in the enlarged LR, from a noisy one and its index."""

    def __init__(self) -> None:
        super().__init__()
        self.network = SwinUNet(replace(NETWORK, bicubic_skip=0))

    def forward(self, z_t: Tensor, index: Tensor, condition: Tensor) -> Tensor:
        velocity = self.network(z_t, condition, PROCESS.timesteps[index])
        return PROCESS.x_0(velocity.float(), z_t, index)

    def features(self, z_t: Tensor, index: Tensor, condition: Tensor) -> list[Tensor]:
        return [each.float() for each in self.network.features(z_t, condition, PROCESS.timesteps[index])]

    @torch.no_grad()
    def sample(self, noise: Tensor, condition: Tensor) -> Tensor:
        """Euler steps from noise."""
        z_t, count = noise, len(PROCESS.path)
        for step in range(TEACHER_STEPS):
            index, following = (torch.full((len(noise),), count * i // TEACHER_STEPS) for i in (step, step + 1))
            x_0, sigma = self(z_t, index, condition), tsd.at(PROCESS.path, index)
            if step == TEACHER_STEPS - 1:
                return x_0
            z_t = z_t + (tsd.at(PROCESS.path, following) - sigma) * tsd.velocity(z_t, x_0, sigma)
        return z_t

    def one_step(self, start: Tensor, condition: Tensor) -> Tensor:
        return self(start, torch.zeros(len(start), dtype=torch.long), condition)


class Objective(nn.Module):
    """What teacher and students share. The codec's latents, without the enlarged LR's and over SPREAD."""

    def __init__(self, model: Detail, learning_rate: float):
        super().__init__()
        self.model, self.learning_rate, self.codec = model, learning_rate, PixelShuffleCodec(4)

    def forward(self, batch: dict[str, Tensor], draws: Draws, step: int) -> Losses:
        y, condition = self.start(batch["lr"].float() / 255)
        return self.losses((self.codec.encode(batch["hr"].float() / 255) - y) / SPREAD, condition, draws)

    def losses(self, z_h: Tensor, condition: Tensor, draws: Draws) -> Losses:
        raise NotImplementedError

    def start(self, lr: Tensor) -> tuple[Tensor, Tensor]:
        enlarged = resize(lr, (4 * lr.shape[-2], 4 * lr.shape[-1]))
        return self.codec.encode(enlarged), lr * 2 - 1

    def generate(self, noise: Tensor, condition: Tensor) -> Tensor:
        return self.model.one_step(torch.zeros_like(noise), condition)

    @torch.no_grad()
    def restore(self, lr: Tensor, seed: int) -> Tensor:
        height, width = (4 * side for side in lr.shape[-2:])
        y, condition = self.start(pad_to_multiple(lr, NETWORK.multiple))
        noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed))
        result = self.codec.decode(y + SPREAD * self.generate(noise, condition).float()).clamp(0, 1)
        return result[..., :height, :width]

    def groups(self) -> list[ParameterGroup]:
        learning = [weight for weight in self.parameters() if weight.requires_grad]
        return [{"name": "network", "params": learning, "lr": self.learning_rate}]

    def averaged(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    def save(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: t.contiguous() for name, t in self.model.state_dict().items()}, folder / "model.safetensors")
        return folder / "model.safetensors"

    def settings(self) -> dict[str, Any]:
        return {"learning_rate": self.learning_rate}


class Teacher(Objective):
    """Flow matching: mean (v - (n - z_h))^2 at a random index."""

    def losses(self, z_h: Tensor, condition: Tensor, draws: Draws) -> Losses:
        index, noise = draws.integers(0, len(PROCESS.path)), draws.normal(*z_h.shape[1:])
        sigma = tsd.at(PROCESS.path, index)
        z_t = tsd.noised(z_h, noise, sigma)
        velocity = tsd.velocity(z_t, self.model(z_t, index, condition), sigma)
        return {"loss": F.mse_loss(velocity, noise - z_h)}

    def generate(self, noise: Tensor, condition: Tensor) -> Tensor:
        return self.model.sample(noise, condition)


class Regression(Objective):
    def losses(self, z_h: Tensor, condition: Tensor, draws: Draws) -> Losses:
        return {"loss": F.mse_loss(self.generate(z_h, condition), z_h)}


class ScoreDistillation(Objective):
    """VSD, TSD and TSD with DASM, each beside the distance to HR. The auxiliary learns all of its weights."""

    def __init__(self, model: Detail, learning_rate: float, teacher: Detail, kind: str, latent_weight: float):
        super().__init__(model, learning_rate)
        self.teacher, self.auxiliary = teacher.requires_grad_(False), deepcopy(teacher).requires_grad_(True)
        self.share, self.points = SCORES[kind]
        self.latent_weight = latent_weight

    def losses(self, z_h: Tensor, condition: Tensor, draws: Draws) -> Losses:
        z_s = self.generate(z_h, condition)
        start = draws.integers(tsd.FIRST_INDEX, tsd.LAST_INDEX + 1)
        bias = draws.integers(-tsd.STRIDE // 2, tsd.STRIDE // 2)
        indices = tsd.trajectory(start, bias, self.points, len(PROCESS.path))
        models = [lambda z, i, model=model: model(z, i, condition) for model in (self.teacher, self.auxiliary)]
        noise = draws.normal(*z_h.shape[1:])
        g = tsd.gradient(z_s.detach(), z_h, noise, indices, PROCESS.path, models[0], models[1], vsd_share=self.share)
        latent, distillation = F.mse_loss(z_s, z_h), tsd.distillation_loss(z_s, g)
        auxiliary = self._auxiliary_loss(z_s.detach(), condition, draws)
        loss = self.latent_weight * latent + distillation + auxiliary
        return {"loss": loss, "latent": latent, "distillation": distillation, "auxiliary": auxiliary}

    def _auxiliary_loss(self, z_s: Tensor, condition: Tensor, draws: Draws) -> Tensor:
        index = draws.integers(tsd.FIRST_INDEX, tsd.LAST_INDEX + 1)
        z_t = tsd.noised(z_s, draws.normal(*z_s.shape[1:]), tsd.at(PROCESS.path, index))
        weight = tsd.logit_normal(draws.normal())
        return tsd.auxiliary_loss(self.auxiliary(z_t, index, condition), z_s, weight)


class TimeAware(Objective):
    """TAD: the student gets the teacher's noise, to be held against its result from there."""

    def __init__(self, model: Detail, learning_rate: float, teacher: Detail):
        super().__init__(model, learning_rate)
        self.teacher = teacher.requires_grad_(False)
        widths = [NETWORK.channels * m for m in NETWORK.multipliers]
        self.discriminator = tad.TimeAwareDiscriminator([*widths, widths[-1]])
        near = torch.nonzero((PROCESS.path >= LOWEST_NOISE) & (PROCESS.path <= HIGHEST_NOISE))[:, 0]
        self.first, self.last = int(near[0]), int(near[-1])

    def generate(self, noise: Tensor, condition: Tensor) -> Tensor:
        return self.model.one_step(noise, condition)

    def losses(self, z_h: Tensor, condition: Tensor, draws: Draws) -> Losses:
        start = draws.normal(*z_h.shape[1:])
        z_t, z_s = self.teacher.sample(start, condition), self.generate(start, condition)
        regression = tad.regression_loss(z_s, z_t)
        score = tad.high_frequency_score_loss(z_s, self._score_difference(z_s.detach(), z_t, condition, draws))
        index, noise = draws.integers(tsd.FIRST_INDEX, tsd.LAST_INDEX + 1), draws.normal(*z_h.shape[1:])
        sigma = tsd.at(PROCESS.path, index)
        fake, real = (self.teacher.features(tsd.noised(z, noise, sigma), index, condition) for z in (z_s, z_h))
        adversarial, discriminator = tad.players_losses(self.discriminator, real, fake, index, len(PROCESS.path))
        loss = regression + score + 0.02 * adversarial + discriminator
        return {"loss": loss, "regression": regression, "score": score, "adversarial": adversarial}

    @torch.no_grad()
    def _score_difference(self, z_s: Tensor, z_t: Tensor, condition: Tensor, draws: Draws) -> Tensor:
        index, noise = draws.integers(self.first, self.last + 1), draws.normal(*z_s.shape[1:])
        sigma = tsd.at(PROCESS.path, index)

        def seen(z: Tensor) -> Tensor:
            x_t = tsd.noised(z, noise, sigma)
            return noise_of(x_t, self.teacher(x_t, index, condition), sigma)

        return seen(z_s) - seen(z_t)


def students(teacher: Detail, learning_rate: float, latent_weight: float) -> dict[str, Objective]:
    def copy() -> Detail:
        return deepcopy(teacher).requires_grad_(True)

    made: dict[str, Objective] = {"regression": Regression(copy(), learning_rate)}
    for kind in SCORES:
        made[kind] = ScoreDistillation(copy(), learning_rate, deepcopy(teacher), kind, latent_weight)
    return made | {"tad": TimeAware(copy(), learning_rate, deepcopy(teacher))}


def trained(objective: Objective, config: TrainConfig, pairs: CropPairs) -> Objective:
    """Train it, or take what an earlier run left, and leave the averaged weights in it."""
    path = train(config, objective, pairs)
    objective.model.load_state_dict(load_file(path))
    return objective


def write_pictures(objectives: dict[str, Objective], folder: Path, output: Path) -> None:
    """A row of LR, every result and HR for each of a few validation pictures."""
    for file in list_images(folder)[:PICTURES]:
        hr = read_picture(file).pixels[None, :, :256, :256]
        lr = resize(hr, (64, 64)).clamp(0, 1)
        row = [resize(lr, (256, 256)).clamp(0, 1), *(each.restore(lr, 0) for each in objectives.values()), hr]
        write_picture(output / f"{file.stem}.png", Picture(torch.cat(row, dim=-1)[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("validation", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--teacher-steps", type=int, default=4000)
    parser.add_argument("--student-steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--teacher-rate", type=float, default=4e-4)
    parser.add_argument("--student-rate", type=float, default=1e-4)
    parser.add_argument("--latent-weight", type=float, default=0.25, help="of the distance to HR beside the scores")
    parser.add_argument("--precision", default="bf16")
    options = parser.parse_args()
    pairs = CropPairs(options.photos, options.crop, Degradation(), 0)
    torch.manual_seed(0)

    def config(name: str, steps: int) -> TrainConfig:
        options_of_run = {"ema": 0.99, "precision": options.precision, "save_every": 200, "warmup": steps // 10}
        return TrainConfig(options.output / name, steps, options.batch, **options_of_run)

    teacher = trained(Teacher(Detail(), options.teacher_rate), config("teacher", options.teacher_steps), pairs)
    objectives: dict[str, Objective] = {"teacher": teacher}
    for name, objective in students(teacher.model, options.student_rate, options.latent_weight).items():
        objectives[name] = trained(objective, config(name, options.student_steps), pairs)
    upscalers = {name: lambda lr, each=each: each.restore(lr, 0) for name, each in objectives.items()}
    rows = evaluate.evaluate({**evaluate.BASELINES, **upscalers}, options.validation, evaluate.DEGRADATIONS)
    write_pictures(objectives, options.validation, options.output)
    (options.output / "table.json").write_text(evaluate.to_json(rows))
    Console(width=140).print(evaluate.render(rows))


if __name__ == "__main__":
    main()
