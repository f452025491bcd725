"""Random weights of the networks that LPIPS and DISTS need, in files as they are published."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import torch
from onestep_sr.sr_models.measures.alexnet import CONVOLUTIONS, NUMBERS
from onestep_sr.sr_models.measures.dists import CHANNELS
from onestep_sr.sr_models.measures.vgg import STAGES, Vgg16
from safetensors.torch import save_file
from torch import Tensor


def write_perceptual_weights(folder: Path) -> Path:
    """AlexNet, VGG16, LPIPS's weights for both, and DISTS's alpha and beta."""
    generator = torch.Generator().manual_seed(0)
    shapes = {number: (spec[1], spec[0], spec[2], spec[2]) for number, spec in zip(NUMBERS, CONVOLUTIONS, strict=True)}
    torch.save(convolutions(shapes, generator), folder / "alexnet-owt-features.pth")
    sizes = [3, *chain.from_iterable([w] * len(s) for w, s in zip(Vgg16.widths, STAGES, strict=True))]
    numbers = list(chain(*STAGES))
    shapes = {number: (sizes[i + 1], sizes[i], 3, 3) for i, number in enumerate(numbers)}
    save_file(convolutions(shapes, generator), folder / "vgg16-features.safetensors")
    for name, widths in (("alex", [spec[1] for spec in CONVOLUTIONS]), ("vgg", Vgg16.widths)):
        lines = {f"lin{i}.model.1.weight": torch.rand(1, w, 1, 1, generator=generator) for i, w in enumerate(widths)}
        torch.save(lines, folder / f"{name}.pth")
    numbers = {name: torch.rand(1, sum(CHANNELS), 1, 1, generator=generator) for name in ("alpha", "beta")}
    save_file(numbers, folder / "dists.safetensors")
    return folder


def convolutions(shapes: dict[int, tuple[int, ...]], generator: torch.Generator) -> dict[str, Tensor]:
    """Weights and biases of torchvision's `features`, scaled so that activations keep their size."""
    made: dict[str, Tensor] = {}
    for number, shape in shapes.items():
        fan_in = shape[1] * shape[2] * shape[3]
        made[f"features.{number}.weight"] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        made[f"features.{number}.bias"] = torch.randn(shape[0], generator=generator) * 0.1
    return made
