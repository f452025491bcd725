"""Stable Diffusion models that can be trained: their differences, and how to open them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from ...checkpoints.low_rank import named
from ...core.process import Process, flow_matching
from ...diffusers_host.sd3 import call_transformer
from ...diffusers_host.sd3_files import open_networks
from ...diffusers_host.unet import call_unet
from ...diffusers_host.unet_files import is_unet, open_unet
from ...families import lora_files
from ...families.lora_files import ATTENTION, JOINT_ATTENTION, Layout

SD3_SHIFT = 3.0


@dataclass(frozen=True)
class Condition:
    """Encoded prompts: `prompt` (B, tokens, width), and `pooled` (B, width), or (B, 0) if the model has none."""

    prompt: Tensor
    pooled: Tensor

    def expand(self, count: int) -> Condition:
        """Repeat one prompt for a whole batch."""
        return Condition(self.prompt.expand(count, -1, -1), self.pooled.expand(count, -1))

    def to(self, like: Tensor) -> Condition:
        return Condition(self.prompt.to(like), self.pooled.to(like))


Call = Callable[[Any, Tensor, Tensor, Condition], Tensor]


@dataclass(frozen=True)
class TrainableBase:
    """The properties of a Stable Diffusion architecture.

    Attributes:
        layout: the names in LoRA files, and the modules that get the student's adapters.
        auxiliary: the modules that get the auxiliary's adapters, as in `Adapter.trained`.
        blocks: the network's main blocks, which contain most of its weights.
        call: network, z_t, timesteps (B,) and condition -> the network's output.
        taps: modules whose outputs the discriminator uses, each with its channels.
        feature: such an output, and the latent's size (h, w) -> a map (B, C, h', w').
    """

    layout: Layout
    auxiliary: str
    blocks: Callable[[Any], list[nn.Module]]
    call: Call
    taps: Callable[[Any], list[tuple[nn.Module, int]]]
    feature: Callable[[Any, tuple[int, int]], Tensor]


def _call_transformer(network: Any, z_t: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
    return call_transformer(network, z_t, timesteps, condition.prompt, condition.pooled)


def _transformer_taps(network: Any) -> list[tuple[nn.Module, int]]:
    """The last block of each quarter of the transformer."""
    blocks = network.transformer_blocks
    return [(blocks[i], network.inner_dim) for i in sorted({max(0, len(blocks) * k // 4 - 1) for k in (1, 2, 3, 4)})]


def _transformer_feature(output: tuple[Tensor, Tensor], size: tuple[int, int]) -> Tensor:
    """A block returns the prompt's tokens and the picture's, with one token per 2 x 2 latent pixels."""
    return output[1].transpose(1, 2).unflatten(2, (size[0] // 2, size[1] // 2))


def _unet_taps(network: Any) -> list[tuple[nn.Module, int]]:
    """The encoder's levels and the middle block."""
    widths = network.config.block_out_channels
    return [*zip(network.down_blocks, widths, strict=True), (network.mid_block, widths[-1])]


def _unet_feature(output: Any, size: tuple[int, int]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _call_unet(network: Any, z_t: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
    return call_unet(network, z_t, timesteps, condition.prompt, condition.pooled)


TRANSFORMER = TrainableBase(
    layout=lora_files.TRANSFORMER,
    auxiliary=named(*JOINT_ATTENTION),
    blocks=lambda network: [*network.transformer_blocks],
    call=_call_transformer,
    taps=_transformer_taps,
    feature=_transformer_feature,
)
UNET = TrainableBase(
    layout=lora_files.UNET,
    auxiliary=named(*ATTENTION),
    blocks=lambda network: [*network.down_blocks, network.mid_block, *network.up_blocks],
    call=_call_unet,
    taps=_unet_taps,
    feature=_unet_feature,
)


@dataclass(frozen=True)
class Base:
    """An opened base: its network and VAE (both diffusers', frozen, on the CPU) and its noise process."""

    family: TrainableBase
    network: nn.Module
    vae: Any
    process: Process


def open_base(path: Path, dtype: torch.dtype) -> Base:
    """Open Stable Diffusion 3 or 3.5 (a diffusers folder or a checkpoint file), or 1.5, 2.1 or SDXL (a folder; 2.1 also
    as a checkpoint file).

    Raises UserError for anything else, and for files that are broken.
    """
    if is_unet(path):
        return Base(UNET, *open_unet(path, dtype))
    transformer, vae = open_networks(path, dtype)
    # Depends on shapes only, and is a tenth of the LoRA's size: leave it out of checkpoints.
    transformer.pos_embed.register_buffer("pos_embed", transformer.pos_embed.pos_embed, persistent=False)
    return Base(TRANSFORMER, transformer, vae, flow_matching(_shift(path)))


def _shift(path: Path) -> float:
    from diffusers import FlowMatchEulerDiscreteScheduler

    if not (path / "scheduler").is_dir():
        return SD3_SHIFT
    config: Any = FlowMatchEulerDiscreteScheduler.load_config(str(path), subfolder="scheduler")
    return float(config.get("shift", SD3_SHIFT))


class _Widened(nn.Module):
    """Converts a stored weight to the compute precision."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, weight: Tensor) -> Tensor:
        return weight.to(self.dtype)


def store_in_fp8(network: nn.Module) -> None:
    """Store a network's linear layers that do not learn in fp8 (e4m3), and compute in their original precision.

    Half the memory of bf16, with 3 bits of mantissa. Call it before adapters are added.
    """
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    for module in [each for each in linear if not each.weight.requires_grad]:
        widened = _Widened(module.weight.dtype)
        module.weight = nn.Parameter(module.weight.to(torch.float8_e4m3fn), requires_grad=False)
        register_parametrization(module, "weight", widened, unsafe=True)
