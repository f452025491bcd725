"""Student, auxiliary and teacher on one set of frozen weights, so that the base is in memory only once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...checkpoints import low_rank
from ...checkpoints.low_rank import Update
from ...checkpoints.weights_file import read_weights
from ...core.process import Process
from ...errors import UserError
from ...families.lora_files import VAE_TRAINED
from ...families.registry import read_lora
from ..checkpoint import fingerprint
from .bases import Base, Condition
from .lora import active, adapter_parameters, add_adapter, checkpointed, load_adapter, save_adapter

STUDENT, AUXILIARY, TEACHER = "student", "auxiliary", "teacher"


@dataclass(frozen=True)
class Ranks:
    """Ranks of the student's adapters on the network and the VAE encoder, and of the auxiliary's; 0 for no adapter."""

    student: int = 64
    vae: int = 64
    auxiliary: int = 64


class SharedBase(nn.Module):
    """A base with its adapters. Images are (B, 3, 8h, 8w) in [-1, 1], latents (B, c, h, w) float32, scaled but not
    shifted; `z` is on the straight path of `process.py`, at indices (B,)."""

    process: Process

    def __init__(self, base: Base, ranks: Ranks, *, start: Path | None = None, teacher: Path | None = None):
        """`start`: the student's initial LoRA, as in `read_lora`; `teacher`: a LoRA file applied to the teacher.

        Raises UserError if they do not fit the base.
        """
        super().__init__()
        self.family, self.process, self.network, self.vae = base.family, base.process, base.network, base.vae
        self.ranks, self.dtype, self.start = ranks, base.vae.dtype, start
        self.scaling = float(base.vae.config.scaling_factor)
        self._add_student(ranks, start)
        if ranks.auxiliary:
            add_adapter(self.network, AUXILIARY, ranks.auxiliary, self.family.auxiliary)
        if teacher is not None:
            update = read_update(teacher, self.family.layout.prefix)
            load_adapter(self.network, TEACHER, update, self.family.layout.trained, teacher.name)
        self.teacher_adapters = () if teacher is None else (TEACHER,)
        self.requires_grad_(False)
        for weight in (*self.student_parameters(), *self.auxiliary_parameters()):
            weight.requires_grad_(True)
        self.frozen = fingerprint(weight for weight in self.parameters() if not weight.requires_grad)

    def _add_student(self, ranks: Ranks, start: Path | None) -> None:
        layout = self.family.layout
        if start is None:
            add_adapter(self.network, STUDENT, ranks.student, layout.trained)
            add_adapter(self.vae, STUDENT, ranks.vae, VAE_TRAINED)
            return
        lora = read_lora(start)
        if lora.replaced or (len(lora.network), len(lora.vae)) != (1, 1):
            raise UserError(
                f"{lora.name} is {lora.family.with_article} LoRA, which cannot be trained further: choose TSD-SR's, or "
                "one that was trained here."
            )
        for network, [adapter], modules in (
            (self.network, lora.network, layout.trained),
            (self.vae, lora.vae, VAE_TRAINED),
        ):
            load_adapter(network, STUDENT, adapter.update, modules, lora.name)

    def enable_gradient_checkpointing(self) -> None:
        networks: tuple[Any, ...] = (self.network, self.vae)
        for network in networks:
            network.enable_gradient_checkpointing(checkpointed)

    def student_parameters(self) -> list[nn.Parameter]:
        parts = (self.network, self.vae)
        return [weight for part in parts for weight in adapter_parameters(part, STUDENT).values()]

    def auxiliary_parameters(self) -> list[nn.Parameter]:
        return list(adapter_parameters(self.network, AUXILIARY).values())

    def settings(self) -> dict[str, Any]:
        """Identifies this base and its adapters, independent of file paths."""
        return {"ranks": asdict(self.ranks), "start": self.start and self.start.name, "frozen": self.frozen}

    # The VAE

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """Encode with the student's encoder: a posterior sample for standard normal `noise`, else the mode."""
        with active(self.vae, STUDENT):
            posterior = self.vae.encode(image.to(self.dtype)).latent_dist
        latent = posterior.mean.float() if noise is None else posterior.mean.float() + posterior.std.float() * noise
        return self.scaling * latent

    def decode(self, latent: Tensor) -> Tensor:
        """Decode with the base's own decoder, which has no adapters."""
        return self.vae.decode((latent / self.scaling).to(self.dtype)).sample.float()

    # The network

    def student(self, z_lr: Tensor, condition: Condition) -> Tensor:
        """z_s: x_0 in one evaluation, with the LR latent as z_t at the noisiest index."""
        index = torch.zeros(len(z_lr), dtype=torch.long, device=z_lr.device)
        with active(self.network, STUDENT):
            return self.process.x_0(self._output(z_lr, index, condition), z_lr, index)

    def teacher(self, z: Tensor, index: Tensor, condition: Condition) -> Tensor:
        """x_0 of the teacher, psi."""
        with active(self.network, *self.teacher_adapters):
            return self._x_0(z, index, condition)

    def auxiliary(self, z: Tensor, index: Tensor, condition: Condition) -> Tensor:
        """x_0 of the auxiliary, phi."""
        with active(self.network, AUXILIARY):
            return self._x_0(z, index, condition)

    @property
    def feature_widths(self) -> list[int]:
        """Channels of each map of `features`."""
        return [width for _, width in self.family.taps(self.network)]

    def features(self, z: Tensor, index: Tensor, condition: Condition) -> list[Tensor]:
        """Features of z in the base without adapters, at the family's taps: maps (B, C, h', w')."""
        outputs: list[Any] = []
        keep = lambda module, inputs, output: outputs.append(output)  # noqa: E731
        hooks = [module.register_forward_hook(keep) for module, _ in self.family.taps(self.network)]
        try:
            with active(self.network):
                self._x_0(z, index, condition)
        finally:
            for hook in hooks:
                hook.remove()
        return [self.family.feature(output, (z.shape[-2], z.shape[-1])).float() for output in outputs]

    def _x_0(self, z: Tensor, index: Tensor, condition: Condition) -> Tensor:
        z_t = self.process.network_input(z, index)
        return self.process.x_0(self._output(z_t, index, condition), z_t, index)

    def _output(self, z_t: Tensor, index: Tensor, condition: Condition) -> Tensor:
        z_t, timesteps = z_t.to(self.dtype), self.process.timesteps[index]
        return self.family.call(self.network, z_t, timesteps, condition.to(z_t)).float()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SharedBase:
        """Move the process's tables with the weights, but keep their precision."""
        super()._apply(fn, recurse)
        self.process = self.process.to(next(self.vae.parameters()).device)
        return self

    def save(self, folder: Path) -> None:
        """Write the student as two LoRA files; for Stable Diffusion 3, in the published format."""
        folder.mkdir(parents=True, exist_ok=True)
        layout = self.family.layout
        network_file, vae_file = layout.files
        save_adapter(folder / network_file, self.network, STUDENT, layout.prefix)
        save_adapter(folder / vae_file, self.vae, STUDENT, layout.vae_prefix)


def read_update(path: Path, prefix: str) -> Update:
    """A LoRA file's update by module name, without the prefix. Raises UserError if the file is not a LoRA."""
    file = read_weights(path)
    return low_rank.parse({key.removeprefix(prefix): tensor for key, tensor in file.tensors.items()}, file.name)


def guided(
    predict: Callable[[Tensor, Tensor, Condition], Tensor], condition: Condition, null: Condition, scale: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """Classifier-free guidance (arXiv 2207.12598, equation 6), for x_0 as for any other prediction: null + scale
    (conditioned - null), in one batch of twice the size."""
    both = Condition(torch.cat([null.prompt, condition.prompt]), torch.cat([null.pooled, condition.pooled]))

    def predict_guided(z: Tensor, index: Tensor) -> Tensor:
        without, given = predict(torch.cat([z, z]), torch.cat([index, index]), both).chunk(2)
        return without + scale * (given - without)

    return predict_guided
