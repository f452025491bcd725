"""Networks from picture to picture that `onestep-sr train faithful` makes: one pass, without noise or a latent space.

The file is safetensors; the metadata key `onestep_sr_conv` holds JSON: `network` (ConvSRConfig) and `card` (free text:
data, licence, command).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ..checkpoints.conditions import Metadata
from ..checkpoints.header import Header
from ..checkpoints.metadata import broken_description, read_json, require_within
from ..checkpoints.weights_file import WeightsFile, fill, read_weights
from ..codecs.pixel_shuffle import PixelShuffleCodec
from ..core.model import SRModel
from ..core.network_denoiser import NetworkDenoiser
from ..core.recipe import Recipe
from ..core.step import Direct
from ..errors import UserError
from ..files.whole import write_whole
from ..networks.conv_sr import SCALE, ConvSR, ConvSRConfig
from .family import ModelFamily, OpenedModel, OpenOptions

METADATA_KEY = "onestep_sr_conv"
BOUNDS: dict[str, tuple[float, float]] = {"channels": (4, 512), "blocks": (1, 128)}


class AsDenoiser(nn.Module):
    """The network on pixel-shuffled latents, as an SR model runs it: it looks at the LR picture only."""

    def __init__(self, network: ConvSR):
        super().__init__()
        self.network = network

    def forward(self, latent: Tensor, lr: Tensor, timestep: Tensor) -> Tensor:
        """`lr` (B, 3, h, w) in [-1, 1] -> (B, 48, h, w), the result's latent."""
        image = (lr / 2 + 0.5).to(latent.dtype).contiguous(memory_format=torch.channels_last)
        return F.pixel_unshuffle(self.network(image) * 2 - 1, SCALE)


def save(path: Path, network: ConvSR, card: str = "", dtype: torch.dtype = torch.float16) -> None:
    """Write weights and description, whole or not at all."""
    weights = {name: p.detach().to("cpu", dtype).contiguous() for name, p in network.named_parameters()}
    text = json.dumps({"network": asdict(network.config), "card": card})
    write_whole(path, partial(save_file, weights, metadata={METADATA_KEY: text}))


def read(path: Path, dtype: torch.dtype = torch.float32) -> ConvSR:
    """The network of a file. Raises UserError for files that are missing, broken or of another kind."""
    file = read_weights(path)
    if METADATA_KEY not in file.metadata:
        raise UserError(
            f"{file.name} was not created by `onestep-sr train faithful`: choose a model.safetensors that was."
        )
    with torch.device("meta"):
        network = ConvSR(_config(file))
    fill(network, file, FAMILY.title, dtype)
    return network


def _config(file: Header | WeightsFile) -> ConvSRConfig:
    try:
        config = ConvSRConfig(**read_json(file.metadata[METADATA_KEY], file.name)["network"])
        require_within(asdict(config), BOUNDS)
        if config.channels % SCALE:
            raise ValueError(f"{config.channels} channels")
    except (KeyError, TypeError, ValueError) as error:
        raise broken_description(file.name, error) from error
    return config


def _outline(header: Header, chosen: str | None) -> tuple[Recipe, int]:
    _config(header)
    name = header.path.stem
    return Recipe(name, name, FAMILY.citation, Direct(), scale=SCALE, tile=256, overlap=32, multiple=1), SCALE


def _open(header: Header, options: OpenOptions) -> OpenedModel:
    network = AsDenoiser(read(header.path, options.dtype))
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    recipe, factor = _outline(header, options.recipe)
    return OpenedModel(FAMILY, SRModel(recipe, NetworkDenoiser(network), PixelShuffleCodec(factor)), (network,))


def _summary(header: Header) -> str:
    config = _config(header)
    return f"One-Step SR network, x{SCALE}, {config.channels} channels, {config.blocks} blocks"


FAMILY = ModelFamily(
    name="conv-sr",
    title="One-Step SR network",
    licence="of who trained it",
    citation="arXiv 1707.02921 (the blocks)",
    condition=Metadata(METADATA_KEY),
    summary=_summary,
    outline=_outline,
    open=_open,
)
