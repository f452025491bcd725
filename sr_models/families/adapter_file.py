"""A single safetensors file for any family's LoRA: what `onestep-sr convert` writes.

Names are `network/<adapter>/` or `vae/<adapter>/` and peft's names with diffusers' modules, and `replaced/network/` or
`replaced/vae/` and the name of a parameter that takes the place of the base's, and `modulator/` and the name of one of
the modulator's, `predictor/` and of the noise predictor's, and `control/` and of the ControlNet's. Attentions to the
picture are among the network's replaced parameters. The metadata names the family.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ..checkpoints import low_rank
from ..checkpoints.conditions import Metadata
from ..checkpoints.header import Header
from ..checkpoints.low_rank import Adapter, LowRank
from ..checkpoints.weights_file import WeightsFile, shortened
from ..errors import UserError
from ..files.whole import write_whole
from .bases import BaseKind
from .family import LoraFamily, OneStepLora

FAMILY_KEY = "onestep_sr_family"
REPLACED, MODULATOR, PREDICTOR, CONTROL = "replaced/", "modulator/", "predictor/", "control/"
UNET_LORA, VAE_LORA = "network/unet/", "vae/vae/"
WHOLE_NETWORKS = (f"{REPLACED}network/", f"{REPLACED}vae/")
NEW_CONV_IN = tuple(f"{REPLACED}network/conv_in.{end}" for end in ("weight", "bias"))
PREFIXES = ("network/", "vae/", f"{REPLACED}network/", f"{REPLACED}vae/", MODULATOR, PREDICTOR, CONTROL)


def condition(family: str) -> Metadata:
    """Recognises a family's single file."""
    return Metadata(FAMILY_KEY, family)


def save(path: Path, lora: OneStepLora) -> None:
    """Write a LoRA. On an error, no partial file is left."""
    tensors: dict[str, Tensor] = {}
    for part, adapters in (("network", lora.network), ("vae", lora.vae)):
        for adapter in adapters:
            tensors |= low_rank.to_tensors(adapter.update, f"{part}/{adapter.name}/")
    for part, replaced in (("network", {**lora.replaced, **lora.image_attentions}), ("vae", lora.replaced_vae)):
        tensors |= {f"{REPLACED}{part}/{name}": tensor for name, tensor in replaced.items()}
    for prefix, module in ((MODULATOR, lora.modulator), (PREDICTOR, lora.predictor)):
        tensors |= {} if module is None else {f"{prefix}{name}": tensor for name, tensor in module.state_dict().items()}
    tensors |= {f"{CONTROL}{name}": tensor for name, tensor in lora.control.items()}
    metadata = {
        FAMILY_KEY: lora.family.name,
        "base": str(lora.base),
        "rank": _numbers(layer.rank for layer in _layers(lora)),
        "alpha": _numbers(layer.rank if layer.alpha is None else layer.alpha for layer in _layers(lora)),
        "licence": lora.family.licence,
    }
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_whole(path, partial(save_file, tensors, metadata={key: value for key, value in metadata.items() if value}))


def read(
    family: LoraFamily,
    file: WeightsFile,
    base: BaseKind,
    recipe: str,
    needed: Iterable[str],
    trained: Mapping[str, str] | None = None,
) -> OneStepLora:
    """The inverse of `save`, without the modulator, the predictor and the ControlNet. `needed` are the parts of the
    file: names of tensors, or their beginnings. `trained` is that of the adapters, by name.

    Raises UserError for a file that lacks a part or has other weights.
    """
    others = sorted(name for name in file.tensors if not name.startswith(PREFIXES))
    if others:
        raise UserError(
            f"{file.name} has weights that {family.title} does not have ({shortened(others)}): convert it again."
        )
    missing = [part for part in needed if not any(name.startswith(part) for name in file.tensors)]
    if missing:
        raise UserError(f"{file.name} is incomplete (it lacks {shortened(missing)}): convert it again.")
    network, vae = (_adapters(file, part, trained or {}) for part in ("network", "vae"))
    replaced = {part: low_rank.under(file.tensors, f"{REPLACED}{part}/") for part in ("network", "vae")}
    return OneStepLora(family, file.name, base, recipe, network, vae, replaced["network"], replaced_vae=replaced["vae"])


def _adapters(file: WeightsFile, part: str, trained: Mapping[str, str]) -> tuple[Adapter, ...]:
    tensors = low_rank.under(file.tensors, f"{part}/")
    names = sorted({name.split("/")[0] for name in tensors})
    updates = {name: low_rank.parse(low_rank.under(tensors, f"{name}/"), file.name) for name in names}
    return tuple(Adapter(name, update, trained=trained.get(name, "")) for name, update in updates.items())


def ranks(header: Header) -> str:
    """The ranks of all LoRAs in a file with peft's names; empty if there are none."""
    return _numbers(shape[0] for name, shape in header.shapes.items() if ".lora_A." in name)


def is_single(header: Header) -> bool:
    return FAMILY_KEY in header.metadata


def _layers(lora: OneStepLora) -> list[LowRank]:
    return [layer for adapter in (*lora.network, *lora.vae) for layer in adapter.update.values()]


def _numbers(values: Iterable[float]) -> str:
    """Different numbers in order, for people: "4" or "4, 16"."""
    return ", ".join(f"{value:g}" for value in sorted(set(values)))
