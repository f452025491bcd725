"""Networks from picture to picture that `onestep-sr train faithful` and `train detailed` make: one pass, without noise
or a latent space.

The file is safetensors; the metadata key `onestep_sr_conv` holds JSON: `network` (ConvSRConfig) and `card` (free text:
data, licence, command). A file of `train join` has two sets of weights, the faithful one under the network's own names
and the detailed one after `detailed.`, and the number `detail`: the default position between them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ..checkpoints.conditions import Metadata
from ..checkpoints.header import Header
from ..checkpoints.metadata import broken_description, read_json, require_within
from ..checkpoints.weights_file import WeightsFile, fill, read_weights
from ..codecs.pixel_shuffle import PixelShuffleCodec
from ..core.model import DetailRange, SRModel
from ..core.network_denoiser import NetworkDenoiser
from ..core.recipe import Footprint, Recipe
from ..core.step import Direct
from ..errors import UserError
from ..files.whole import write_whole
from ..networks.conv_sr import SCALE, ConvSR, ConvSRConfig, interpolated
from .family import ModelFamily, OpenedModel, OpenOptions

METADATA_KEY = "onestep_sr_conv"
DETAILED = "detailed."
BOUNDS: dict[str, tuple[float, float]] = {"channels": (4, 512), "blocks": (1, 128)}


class AsDenoiser(nn.Module):
    """The network on pixel-shuffled latents, as an SR model runs it: it looks at the LR picture only."""

    def __init__(self, network: ConvSR):
        super().__init__()
        self.network = network

    def forward(self, latent: Tensor, lr: Tensor, timestep: Tensor) -> Tensor:
        """`lr` (B, 3, h, w) in [-1, 1] -> (B, 48, h, w), the result's latent."""
        image = (lr / 2 + 0.5).to(self.network.stem.weight.dtype).contiguous(memory_format=torch.channels_last)
        return F.pixel_unshuffle(self.network(image) * 2 - 1, SCALE)


@dataclass(frozen=True)
class Ends:
    """The contents of a file: one network, or a faithful and a detailed one with the default position between them."""

    faithful: ConvSR
    detailed: ConvSR | None = None
    detail: float = 1.0


def save(path: Path, ends: ConvSR | Ends, card: str = "", dtype: torch.dtype = torch.float16) -> None:
    """Write weights and description, whole or not at all."""
    ends = ends if isinstance(ends, Ends) else Ends(ends)
    description: dict[str, Any] = {"network": asdict(ends.faithful.config), "card": card}
    named = dict(ends.faithful.named_parameters())
    if ends.detailed is not None:
        description["detail"] = ends.detail
        named |= {f"{DETAILED}{name}": weight for name, weight in ends.detailed.named_parameters()}
    weights = {name: weight.detach().to("cpu", dtype).contiguous() for name, weight in named.items()}
    write_whole(path, partial(save_file, weights, metadata={METADATA_KEY: json.dumps(description)}))


def read(path: Path, dtype: torch.dtype = torch.float32) -> Ends:
    """The networks of a file. Raises UserError for files that are missing, broken or of another kind."""
    file = read_weights(path)
    if METADATA_KEY not in file.metadata:
        raise UserError(
            f"{file.name} was not created by `onestep-sr train faithful` or `train detailed`: choose a "
            "model.safetensors that was."
        )
    detail = _detail(file)
    faithful = {name: tensor for name, tensor in file.tensors.items() if not name.startswith(DETAILED)}
    network = _filled(file, faithful, dtype)
    if detail is None:
        return Ends(network)
    detailed = {n.removeprefix(DETAILED): t for n, t in file.tensors.items() if n.startswith(DETAILED)}
    return Ends(network, _filled(file, detailed, dtype), detail)


def read_one(path: Path) -> ConvSR:
    """The network of a file with one set of weights. Raises UserError for others, and as `read` does."""
    ends = read(path)
    if ends.detailed is not None:
        raise UserError(f"{path.name} contains two sets of weights: choose the file of one of the trainings.")
    return ends.faithful


def _filled(file: WeightsFile, tensors: dict[str, Tensor], dtype: torch.dtype) -> ConvSR:
    with torch.device("meta"):
        network = ConvSR(_config(file))
    return cast(ConvSR, fill(network, replace(file, tensors=tensors), FAMILY.title, dtype))


def _detail(file: Header | WeightsFile) -> float | None:
    """The default position; None for a file with one set of weights."""
    try:
        fields = read_json(file.metadata[METADATA_KEY], file.name)
        if "detail" not in fields:
            return None
        require_within({"detail": fields["detail"]}, {"detail": (0.0, 1.0)})
        return float(fields["detail"])
    except (KeyError, TypeError, ValueError) as error:
        raise broken_description(file.name, error) from error


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
    name, values = header.path.stem, _config(header).values_per_pixel
    sizes = Recipe(name, name, FAMILY.citation, Direct(), scale=SCALE, tile=256, overlap=32, multiple=1)
    return replace(sizes, footprint=Footprint(per_pixel=values)), SCALE


def _open(header: Header, options: OpenOptions) -> OpenedModel:
    ends = read(header.path, options.dtype)
    recipe, factor = _outline(header, options.recipe)
    networks = [AsDenoiser(each) for each in (ends.faithful, ends.detailed) if each is not None]
    for network in networks:
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    detail = None if ends.detailed is None else DetailRange(ends.detail, _mixer(ends.faithful, ends.detailed))
    model = SRModel(
        recipe, NetworkDenoiser(networks[0], recipe.footprint.per_pixel), PixelShuffleCodec(factor), detail=detail
    )
    return OpenedModel(FAMILY, model, tuple(networks))


def _mixer(faithful: ConvSR, detailed: ConvSR) -> Callable[[float], NetworkDenoiser]:
    """Position -> the denoiser, on the device that the networks are on. The last mixture is kept."""

    @lru_cache(maxsize=1)
    def mixed(position: float, device: torch.device) -> NetworkDenoiser:
        network = AsDenoiser(interpolated(faithful, detailed, position))
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return NetworkDenoiser(network, faithful.config.values_per_pixel)

    return lambda position: mixed(position, faithful.stem.weight.device)


def _summary(header: Header) -> str:
    config, detail = _config(header), _detail(header)
    kind = "" if detail is None else ", faithful to detailed"
    return f"One-Step SR network, x{SCALE}, {config.channels} channels, {config.blocks} blocks{kind}"


FAMILY = ModelFamily(
    name="conv-sr",
    title="One-Step SR network",
    licence="Apache-2.0 for the bundled model, yours for one that you trained",
    citation="arXiv 1707.02921 (the blocks)",
    condition=Metadata(METADATA_KEY),
    summary=_summary,
    outline=_outline,
    open=_open,
)
