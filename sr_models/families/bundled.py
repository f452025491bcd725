"""Our own file format: one safetensors file that says by itself how to build and run its network.

Metadata key `onestep_sr` holds JSON: `network` (SwinUNetConfig), `schedule` (ResShiftSchedule),
`evaluations` (1 for a student, T for a teacher), and `card` (free text: data, licence, command).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from ..checkpoints.conditions import Metadata
from ..checkpoints.header import Header
from ..checkpoints.weights_file import WeightsFile, fill, read_weights
from ..codecs.pixel_shuffle import PixelShuffleCodec
from ..core.model import SRModel
from ..core.network_denoiser import NetworkDenoiser
from ..core.recipe import Recipe
from ..core.schedule import ResShiftSchedule
from ..core.step import ResShiftStep
from ..errors import UserError
from ..files.whole import write_whole
from ..networks.swin_unet import SwinUNet, SwinUNetConfig
from .family import ModelFamily, OpenedModel, OpenOptions

METADATA_KEY = "onestep_sr"
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
    def from_json(cls, text: str) -> Description:
        """Raises KeyError, TypeError, ValueError or ArithmeticError where the text is no such description."""
        fields = json.loads(text)
        network = fields["network"]
        network["multipliers"] = tuple(network["multipliers"])
        schedule, evaluations = ResShiftSchedule(**fields["schedule"]), int(fields["evaluations"])
        if len(schedule.sqrt_eta) != schedule.steps or evaluations not in (1, schedule.steps):
            raise ValueError(f"{evaluations} evaluations of {schedule.steps} steps")
        config = SwinUNetConfig(**network)
        if config.bicubic_skip < 1:
            raise ValueError(f"bicubic_skip {config.bicubic_skip}")
        return cls(config, schedule, evaluations, str(fields.get("card", "")))


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
        return Description.from_json(file.metadata[METADATA_KEY])
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{file.name} has a broken description ({error}): download it again.") from error


def _outline(header: Header, chosen: str | None) -> tuple[Recipe, int]:
    if chosen is not None:
        FAMILY.recipe(chosen)  # refused: it has none
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
