"""Compare the parts of score distillation at a size that a CPU can train: one teacher, several students, one table.

    python benchmarks/distill_comparison.py PHOTOS VALIDATION -o runs/comparison

A flow-matching teacher of the bundled network's size learns the difference between HR and the bicubically enlarged LR,
in pixel-shuffle space; it starts from the bundled weights, which saves most of the training time. Students start as
copies of the teacher and train for the same number of steps:

- regression: mean squared distance to HR only;
- VSD: plus the score difference of teacher and auxiliary; TSD: plus target score matching; TSD+DASM: plus four points
  along the trajectory (TSD-SR, arXiv 2411.18263); the last two also with velocities instead of scores (`-v`), as in
  the published script;
- TAD: distance to the teacher's own 8-step result, score difference near the clean end, and a time-aware
  discriminator (TAD-SR, arXiv 2408.07476).

All results are stored in the output folder, and an interrupted run resumes. `--seed` changes crops, degradations and
noise; the table contains the given `--students`.
"""

from __future__ import annotations

import argparse
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from onestep_sr.sr_models.canvas.degradation import Degradation
from onestep_sr.sr_models.canvas.resize import pad_to_multiple, resize
from onestep_sr.sr_models.codecs.pixel_shuffle import PixelShuffleCodec
from onestep_sr.sr_models.core.process import flow_matching
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.families.bundled import BUNDLED
from onestep_sr.sr_models.files.listing import list_images
from onestep_sr.sr_models.files.read import read_picture
from onestep_sr.sr_models.jobs.model_choice import ModelChoice, open_model
from onestep_sr.sr_models.measures import evaluate
from onestep_sr.sr_models.networks.swin_unet import SwinUNet
from onestep_sr.sr_models.training import tad
from onestep_sr.sr_models.training.data import CropPairs
from onestep_sr.sr_models.training.draws import Draws
from onestep_sr.sr_models.training.loop import TrainConfig, fastest_precision, train
from onestep_sr.sr_models.training.objective import Losses, ParameterGroup
from onestep_sr.sr_models.training.runs import NETWORK
from onestep_sr.sr_models.training.sd import tsd
from onestep_sr.sr_models.training.sd.tad_objective import near_clean, noise_of
from PIL import Image, ImageDraw
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SPREAD = 0.08  # deviation of HR from the enlarged LR; dividing by it gives the networks' targets a variance of about 1
PROCESS = flow_matching(1.0)
TEACHER_STEPS = 8
SHARE = tsd.VSD_SHARE
SCORES: dict[str, tuple[float, int, tsd.Matching]] = {  # VSD's share, DASM points, what target score matching compares
    "vsd": (1.0, 1, "score"),
    "tsd": (SHARE, 1, "score"),
    "tsd-dasm": (SHARE, 4, "score"),
    "tsd-v": (SHARE, 1, "velocity"),
    "tsd-dasm-v": (SHARE, 4, "velocity"),
}
STUDENTS = ("regression", *SCORES, "tad")
PICTURES, DETAIL = (3, 11), 176  # indices in the validation folder, and the side of the details shown


class Detail(nn.Module):
    """A network that predicts the detail missing in the enlarged LR, from noisy detail, its index and the LR.

    It is preconditioned: x_0 = (1 - s) / d^2 z_t + s / d F(z_t / d) with d^2 = (1 - s)^2 + s^2, so that the input
    and output of F have a variance of 1 at every s (EDM, arXiv 2206.00364, equation 7, for data of variance 1).
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = SwinUNet(replace(NETWORK, bicubic_skip=0))

    @classmethod
    def from_bundled(cls) -> Detail:
        """Start from the bundled network, which also adds its output to the enlarged LR, but without noise."""
        detail = cls()
        learned = {name: weight.float() for name, weight in load_file(BUNDLED).items()}
        learned |= {name: learned[name] / SPREAD for name in ("out.2.weight", "out.2.bias")}
        for name, weight in detail.network.named_parameters():
            weight.data.copy_(learned[name])
        return detail

    def forward(self, z_t: Tensor, index: Tensor, condition: Tensor) -> Tensor:
        s, d = tsd.at(PROCESS.path, index), self._deviation(index)
        output = self.network(z_t / d, condition, PROCESS.timesteps[index])
        return (1 - s) / d.square() * z_t + s / d * output.float()

    def features(self, z_t: Tensor, index: Tensor, condition: Tensor) -> list[Tensor]:
        maps = self.network.features(z_t / self._deviation(index), condition, PROCESS.timesteps[index])
        return [each.float() for each in maps]

    def _deviation(self, index: Tensor) -> Tensor:
        s = tsd.at(PROCESS.path, index)
        return ((1 - s).square() + s.square()).sqrt()

    @torch.no_grad()
    def sample(self, noise: Tensor, condition: Tensor) -> Tensor:
        """Sample by Euler steps from noise."""
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
    """Base class. Latents are the codec's minus those of the enlarged LR, divided by SPREAD."""

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
    """VSD, TSD and TSD with DASM, each plus the distance to HR. All weights of the auxiliary are trained."""

    def __init__(self, model: Detail, learning_rate: float, teacher: Detail, kind: str, latent_weight: float):
        super().__init__(model, learning_rate)
        self.teacher, self.auxiliary = teacher.requires_grad_(False), deepcopy(teacher).requires_grad_(True)
        self.share, self.points, self.matching = SCORES[kind]
        self.latent_weight = latent_weight

    def losses(self, z_h: Tensor, condition: Tensor, draws: Draws) -> Losses:
        z_s = self.generate(z_h, condition)
        start = draws.integers(tsd.FIRST_INDEX, tsd.LAST_INDEX + 1)
        bias = draws.integers(-tsd.STRIDE // 2, tsd.STRIDE // 2)
        indices = tsd.trajectory(start, bias, self.points, len(PROCESS.path))
        models = [lambda z, i, model=model: model(z, i, condition) for model in (self.teacher, self.auxiliary)]
        noise = draws.normal(*z_h.shape[1:])
        options: dict[str, Any] = {"vsd_share": self.share, "matching": self.matching}
        g = tsd.gradient(z_s.detach(), z_h, noise, indices, PROCESS.path, models[0], models[1], **options)
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
    """TAD: the student starts from the same noise as the teacher, and is compared with the teacher's result."""

    def __init__(self, model: Detail, learning_rate: float, teacher: Detail):
        super().__init__(model, learning_rate)
        self.teacher = teacher.requires_grad_(False)
        widths = [NETWORK.channels * m for m in NETWORK.multipliers]
        self.discriminator = tad.TimeAwareDiscriminator([*widths, widths[-1]])
        self.near = near_clean(PROCESS.path)

    def generate(self, noise: Tensor, condition: Tensor) -> Tensor:
        return self.model.one_step(noise, condition)

    def losses(self, z_h: Tensor, condition: Tensor, draws: Draws) -> Losses:
        start = draws.normal(*z_h.shape[1:])
        z_teacher, z_s = self.teacher.sample(start, condition), self.generate(start, condition)
        regression = tad.regression_loss(z_s, z_teacher)
        score = tad.high_frequency_score_loss(z_s, self._score_difference(z_s.detach(), z_teacher, condition, draws))
        index, noise = draws.integers(tsd.FIRST_INDEX, tsd.LAST_INDEX + 1), draws.normal(*z_h.shape[1:])
        sigma = tsd.at(PROCESS.path, index)
        fake, real = (self.teacher.features(tsd.noised(z, noise, sigma), index, condition) for z in (z_s, z_h))
        adversarial, discriminator = tad.adversarial_losses(self.discriminator, real, fake, index, len(PROCESS.path))
        loss = regression + score + 0.02 * adversarial + discriminator
        return {"loss": loss, "regression": regression, "score": score, "adversarial": adversarial}

    @torch.no_grad()
    def _score_difference(self, z_s: Tensor, z_teacher: Tensor, condition: Tensor, draws: Draws) -> Tensor:
        index, noise = draws.integers(self.near[0], self.near[-1] + 1), draws.normal(*z_s.shape[1:])
        sigma = tsd.at(PROCESS.path, index)

        def predicted_noise(z: Tensor) -> Tensor:
            x_t = tsd.noised(z, noise, sigma)
            return noise_of(x_t, self.teacher(x_t, index, condition), sigma)

        return predicted_noise(z_s) - predicted_noise(z_teacher)


def student(name: str, teacher: Detail, learning_rate: float, latent_weight: float) -> Objective:
    """The objective of one of STUDENTS, whose network starts as a copy of the teacher."""
    copy = deepcopy(teacher).requires_grad_(True)
    if name == "regression":
        return Regression(copy, learning_rate)
    if name == "tad":
        return TimeAware(copy, learning_rate, deepcopy(teacher))
    return ScoreDistillation(copy, learning_rate, deepcopy(teacher), name, latent_weight)


def trained(objective: Objective, config: TrainConfig, pairs: CropPairs) -> Objective:
    """Train the objective, or load the result of an earlier run; it then has the averaged weights."""
    path = train(config, objective, pairs)
    objective.model.load_state_dict(load_file(path))
    return objective


def write_pictures(upscalers: dict[str, evaluate.Upscaler], folder: Path, file: Path) -> None:
    """Write labelled details of every result and of HR, two rows for each of two validation pictures."""
    columns, line = (len(upscalers) + 2) // 2, 18
    grid = Image.new("RGB", (columns * DETAIL, len(PICTURES) * 2 * (DETAIL + line)), "white")
    for number, index in enumerate(PICTURES):
        hr = read_picture(list_images(folder)[index]).pixels[None, :, 128:384, 128:384]
        lr = resize(hr, (64, 64)).clamp(0, 1)
        results = {name: upscaler(lr) for name, upscaler in upscalers.items()} | {"HR": hr}
        for place, (name, result) in enumerate(results.items()):
            x, y = place % columns * DETAIL, (2 * number + place // columns) * (DETAIL + line)
            ImageDraw.Draw(grid).text((x + 4, y + 2), name, fill="black")
            cut = result[0, :, 40 : 40 + DETAIL, 40 : 40 + DETAIL].clamp(0, 1)
            grid.paste(Image.fromarray((cut * 255).round().byte().permute(1, 2, 0).numpy()), (x, y + line))
    grid.save(file, quality=88)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("validation", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--teacher-steps", type=int, default=2000)
    parser.add_argument("--student-steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--teacher-rate", type=float, default=4e-4)
    parser.add_argument("--student-rate", type=float, default=2e-4)
    parser.add_argument("--latent-weight", type=float, default=0.1, help="weight of the distance to HR")
    parser.add_argument("--precision", default=fastest_precision())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=STUDENTS)
    options = parser.parse_args()
    pairs = CropPairs(options.photos, options.crop, Degradation(), options.seed)
    torch.manual_seed(options.seed)

    def config(name: str, steps: int) -> TrainConfig:
        how: dict[str, Any] = {"ema": 0.99, "precision": options.precision, "seed": options.seed}
        return TrainConfig(options.output / name, steps, options.batch, warmup=steps // 10, save_every=200, **how)

    teacher = trained(
        Teacher(Detail.from_bundled(), options.teacher_rate), config("teacher", options.teacher_steps), pairs
    )
    objectives: dict[str, Objective] = {"teacher": teacher}
    for name in options.students:
        objective = student(name, teacher.model, options.student_rate, options.latent_weight)
        objectives[name] = trained(objective, config(name, options.student_steps), pairs)
    bundled = open_model(ModelChoice()).model
    upscalers = {name: lambda lr, each=each: each.restore(lr, 0) for name, each in objectives.items()}
    upscalers = {"bicubic": evaluate.bicubic, "bundled": lambda lr: upscale(bundled, lr), **upscalers}
    rows = evaluate.evaluate(upscalers, options.validation, evaluate.DEGRADATIONS)
    write_pictures(upscalers, options.validation, options.output / "pictures.jpg")
    (options.output / "table.json").write_text(evaluate.to_json(rows))
    Console(width=140).print(evaluate.render(rows))


if __name__ == "__main__":
    main()
