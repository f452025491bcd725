"""Our own file format: one safetensors file that says by itself how to build and run its network.

Metadata key `onestep_sr` holds JSON: `network` (SwinUNetConfig), `schedule` (ResShiftSchedule),
`evaluations` (1 for a student, T for a teacher), and `card` (free text: data, licence, command).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ..checkpoints.conditions import Metadata
from ..checkpoints.header import Header
from ..checkpoints.metadata import broken_description, read_json, require_within
from ..checkpoints.weights_file import WeightsFile, fill, read_weights
from ..codecs.pixel_shuffle import PixelShuffleCodec
from ..core.model import SRModel
from ..core.network_denoiser import NetworkDenoiser
from ..core.recipe import Recipe
from ..core.schedule import ResShiftSchedule
from ..core.step import ResShiftStep
from ..files.whole import write_whole
from ..networks.swin_unet import GROUPS, SwinUNet, SwinUNetConfig
from .family import ModelFamily, OpenedModel, OpenOptions

METADATA_KEY = "onestep_sr"
MAX_LEVELS = 6
BOUNDS: dict[str, tuple[float, float]] = {
    "latent_channels": (1, 1024),
    "condition_channels": (1, 64),
    "channels": (32, 1024),
    **{f"multiplier {level}": (1, 16) for level in range(MAX_LEVELS)},
    "blocks_per_level": (1, 8),
    "swin_channels": (32, 1024),
    "head_channels": (1, 1024),
    "swin_depth": (1, 8),
    "window": (1, 16),
    "mlp_ratio": (1, 16),
    "native_size": (1, 128),
    "bicubic_skip": (1, 16),
    "steps": (2, 1000),
    "kappa": (1e-3, 100.0),
    "power": (1e-3, 10.0),
    "min_noise": (1e-3, 10.0),
    "end": (1e-3, 1.0),
    "largest_start": (1e-4, 1.0),
}
BUNDLED = Path(__file__).parents[1] / "weights" / "onestep-sr-x4.safetensors"


@dataclass(frozen=True)
class Description:
    """What the metadata says."""

    network: SwinUNetConfig
    schedule: ResShiftSchedule
    evaluations: int = 1
    card: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Description:
        """Raises KeyError, TypeError, ValueError or ArithmeticError where the fields are no such description."""
        network = SwinUNetConfig(**{**fields["network"], "multipliers": tuple(fields["network"]["multipliers"])})
        schedule, evaluations = ResShiftSchedule(**fields["schedule"]), int(fields["evaluations"])
        _require_bounds(network, schedule)
        if len(schedule.sqrt_eta) != schedule.steps or evaluations not in (1, schedule.steps):
            raise ValueError(f"{evaluations} evaluations of {schedule.steps} steps")
        return cls(network, schedule, evaluations, str(fields.get("card", "")))


def _require_bounds(network: SwinUNetConfig, schedule: ResShiftSchedule) -> None:
    """Raise TypeError or ValueError for sizes that no network of this kind has, before any are built."""
    levels = len(network.multipliers)
    if not 1 <= levels <= MAX_LEVELS:
        raise ValueError(f"{levels} multipliers")
    require_within(asdict(network) | asdict(schedule), BOUNDS)
    require_within({f"multiplier {level}": value for level, value in enumerate(network.multipliers)}, BOUNDS)
    if any(
        grid > network.window and grid % network.window for grid in (network.native_size // 2**i for i in range(levels))
    ):
        raise ValueError(f"native_size {network.native_size} at {levels} levels with windows of {network.window}")
    if network.channels % GROUPS or network.swin_channels % GROUPS or network.swin_channels % network.head_channels:
        raise ValueError(f"{network.channels} and {network.swin_channels} channels")


def save(path: Path, network: nn.Module, description: Description, dtype: torch.dtype = torch.float16) -> None:
    """Write weights and description, whole or not at all."""
    learned = {name: p.detach().to("cpu", dtype).contiguous() for name, p in network.named_parameters()}
    write_whole(path, partial(save_file, learned, metadata={METADATA_KEY: description.to_json()}))


def build(description: Description) -> SwinUNet:
    """The network on the meta device: shapes and names, no memory."""
    with torch.device("meta"):
        return SwinUNet(description.network)


def recipe(description: Description, name: str) -> Recipe:
    """How such a file runs: its own schedule, on tiles four times as wide as it was trained on."""
    network = description.network
    return Recipe(
        name=name,
        title=name,
        citation=FAMILY.citation,
        step=ResShiftStep(description.schedule, description.evaluations),
        scale=network.bicubic_skip,
        tile=4 * network.native_size,
        multiple=network.multiple,
    )


def describe(file: Header | WeightsFile) -> Description:
    """Raises UserError where the file's metadata is broken."""
    try:
        return Description.from_fields(read_json(file.metadata[METADATA_KEY], file.name))
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise broken_description(file.name, error) from error


def _outline(header: Header, chosen: str | None) -> tuple[Recipe, int]:
    description = describe(header)
    return recipe(description, header.path.stem), description.network.bicubic_skip


def _open(header: Header, options: OpenOptions) -> OpenedModel:
    description = describe(header)
    network = fill(build(description), read_weights(header.path), FAMILY.title, options.dtype)
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    own_recipe, factor = _outline(header, options.recipe)
    model = SRModel(own_recipe, NetworkDenoiser(network), PixelShuffleCodec(factor))
    return OpenedModel(FAMILY, model, (network,))


def _summary(header: Header) -> str:
    description = describe(header)
    return f"One-Step SR model, x{description.network.bicubic_skip}, {description.evaluations} evaluation(s)"


FAMILY = ModelFamily(
    name="bundled",
    title="One-Step SR",
    licence="Apache-2.0",
    citation="arXiv 2408.07476 (the method)",
    condition=Metadata(METADATA_KEY),
    summary=_summary,
    outline=_outline,
    open=_open,
)
