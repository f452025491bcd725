"""S3Diff (arXiv 2409.17058): a LoRA on SD-Turbo and on its VAE's encoder that depends on the picture. It starts from
the LR's latent at t = 999, with guidance: z_0 = (z - sigma e) / alpha, e = e_negative + 1.07 (e_positive - e_negative).

For each picture the update of a module is 8/r B M^T A, with the matrix M that `S3DiffModulator` gives for the module's
block. The published files are `s3diff.pkl`, which also holds the U-Net's first convolution, and `de_net.pth`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints.conditions import All, AnyOf, Has, HasPrefix, HasSuffix
from ..checkpoints.header import Header, header_of
from ..checkpoints.low_rank import Adapter, Update, named, under
from ..checkpoints.weights_file import WeightsFile, beside, fill, read_weights, shortened
from ..core.recipe import Recipe
from ..core.step import OneStep
from ..errors import UserError
from ..networks.s3diff import S3DiffModulator
from . import adapter_file, peft_file
from .bases import SD21_FOOTPRINT, SD_TURBO
from .family import LoraFamily, OneStepLora
from .lora_files import ATTENTION, CONVOLUTIONS
from .lora_files import UNET as UNET_LAYOUT

FILES = ("s3diff.pkl", "de_net.pth")
UNET, VAE = "state_dict_unet/", "state_dict_vae/"
REPLACED = ("conv_in.weight", "conv_in.bias")
EMBEDDINGS = re.compile(r"state_embeddings/state_dict_(vae|unet)_block/(.+)")
MODULATION = re.compile(r"state_dict_((?:vae|unet)_\w+_mlp)/(.+)")
DEGRADATION = "de_net."
TRAINED = {
    "unet": rf"(?!conv_in){UNET_LAYOUT.trained}",
    "vae": rf"encoder\.{named(*ATTENTION, *CONVOLUTIONS)}",
}

RECIPE = Recipe(
    "s3diff",
    "S3Diff on SD-Turbo",
    "arXiv 2409.17058",
    OneStep(999.0, evaluations=2),
    scale=1,
    tile=96,
    overlap=32,
    multiple=8,
    color="wavelet",
    prompt="A high-resolution, 8K, ultra-realistic image with sharp focus, vibrant colors, and natural lighting.",
    negative_prompt=("oil painting, cartoon, blur, dirty, messy, low quality, deformation, low resolution, oversmooth"),
    guidance=1.07,
    enlarging="bilinear",
    footprint=SD21_FOOTPRINT,
)
_LORAS = All(HasPrefix(UNET), HasPrefix(VAE), HasSuffix(".lora_A.vae_skip.weight"), Has("w"))
_ESTIMATOR = Has("conv_first.1.weight", "body.1.8.conv2.weight", "fc_degree.1.2.weight")


def read(family: LoraFamily, path: Path, partner: Path | None) -> OneStepLora:
    """Read one of the two published files and the other one, or the single file.

    Raises UserError for files that are missing or incomplete, and for two files for the same part.
    """
    file = read_weights(path)
    if adapter_file.is_single(header_of(file)):
        parts = (adapter_file.UNET_LORA, adapter_file.VAE_LORA, *adapter_file.NEW_CONV_IN)
        lora = adapter_file.read(family, file, SD_TURBO, RECIPE.name, parts, TRAINED)
        return replace(lora, modulator=_modulator(file, under(file.tensors, adapter_file.MODULATOR)))
    is_estimator = not _ESTIMATOR.missing(header_of(file))
    other = read_weights(partner or _partner(path, FILES[0] if is_estimator else FILES[1]))
    loras, estimator = (other, file) if is_estimator else (file, other)
    for part, condition, name in ((loras, _LORAS, FILES[0]), (estimator, _ESTIMATOR, FILES[1])):
        if missing := condition.missing(header_of(part)):
            raise UserError(f"{part.path} is not S3Diff's {name} (it {missing}): choose that file.")
    unet, vae = under(loras.tensors, UNET), under(loras.tensors, VAE)
    replaced = {name: unet.pop(name) for name in REPLACED if name in unet}
    if len(replaced) != len(REPLACED):
        missing = [name for name in REPLACED if name not in replaced]
        raise UserError(f"{loras.name} is incomplete (it lacks {shortened(missing)}): download it again.")
    network, encoder = (_adapter(loras, name, tensors) for name, tensors in (("unet", unet), ("vae", vae)))
    modulator = _modulator(loras, _modulation(loras) | {f"{DEGRADATION}{n}": t for n, t in estimator.tensors.items()})
    adapters = (network,), (encoder,)
    return OneStepLora(family, loras.name, SD_TURBO, RECIPE.name, *adapters, replaced=replaced, modulator=modulator)


def _partner(path: Path, name: str) -> Path:
    found = beside(path, name)
    if not found.is_file():
        raise UserError(f"{path} is one of S3Diff's two files, but {found} does not exist: copy it there.")
    return found


def _adapter(file: WeightsFile, part: str, tensors: Mapping[str, Tensor]) -> Adapter:
    found = peft_file.by_adapter(tensors, file.name)
    return Adapter(part, peft_file.joined(found, found, file, ()), trained=TRAINED[part])


def _modulation(file: WeightsFile) -> dict[str, Tensor]:
    """The modulator's tensors in the LoRAs' file, by its own names. Raises UserError for tensors of other names."""
    found, others = {}, []
    for name, tensor in file.tensors.items():
        if match := MODULATION.fullmatch(name):
            found[f"{match[1]}.{match[2]}"] = tensor
        elif match := EMBEDDINGS.fullmatch(name):
            found[f"{match[1]}_block_embeddings.{match[2]}"] = tensor
        elif name == "w":
            found[name] = tensor
        elif not name.startswith((UNET, VAE)):
            others.append(name)
    if others:
        raise UserError(f"{file.name} has weights that S3Diff does not have ({shortened(others)}): download it again.")
    return found


def _modulator(file: WeightsFile, tensors: dict[str, Tensor]) -> S3DiffModulator:
    """The modulator, its ranks taken from its last layers. Raises UserError for tensors that are not its own."""
    fuse = {part: tensors.get(f"{part}_fuse_mlp.bias", torch.zeros(1)) for part in ("vae", "unet")}
    with torch.device("meta"):
        modulator = S3DiffModulator({part: isqrt(bias.numel()) for part, bias in fuse.items()})
    fill(modulator, replace(file, tensors=tensors), "S3Diff", torch.float32)
    return modulator


def modulate(lora: OneStepLora, picture: Tensor) -> OneStepLora:
    """Puts M^T A in place of every A. Raises UserError for a LoRA whose rank is not that of the matrices."""
    if lora.modulator is None:
        return lora
    matrices = lora.modulator(picture)
    network, vae = (
        tuple(replace(each, update=_modulated(lora, part, each.update, matrices[part].cpu())) for each in adapters)
        for part, adapters in (("unet", lora.network), ("vae", lora.vae))
    )
    return replace(lora, network=network, vae=vae)


def _modulated(lora: OneStepLora, part: str, update: Update, matrices: Tensor) -> Update:
    block_of = {"unet": unet_block, "vae": vae_block}[part]
    ranks = {layer.rank for layer in update.values()}
    if ranks != {matrices.shape[-1]}:
        raise UserError(
            f"{lora.name} is broken (its {part} LoRA has rank {max(ranks)}, but the matrices that change it have "
            f"{matrices.shape[-1]}): download it again."
        )
    return {
        module: replace(layer, down=torch.einsum("kr,k...->r...", matrices[block_of(module)], layer.down.float()))
        for module, layer in update.items()
    }


def unet_block(module: str) -> int:
    """The row of the embedding for a module of the U-Net: 0 to 3 down, 4 in the middle, 5 to 8 up, the last for the
    rest."""
    if match := re.match(r"(down|up)_blocks\.([0-3])\.", module):
        return int(match[2]) + (0 if match[1] == "down" else 5)
    return 4 if module.startswith("mid_block.") else 9


def vae_block(module: str) -> int:
    """The row of the embedding for a module of the VAE's encoder: 0 to 3 down, 4 in the middle, 5 for the rest."""
    if match := re.match(r"encoder\.down_blocks\.([0-3])\.", module):
        return int(match[1])
    return 4 if module.startswith("encoder.mid_block.") else 5


def _summary(header: Header) -> str:
    if not _ESTIMATOR.missing(header):
        return "S3Diff: degradation network"
    return f"S3Diff: U-Net and VAE encoder LoRA, rank {adapter_file.ranks(header)}, that depends on the picture"


FAMILY = LoraFamily(
    name="s3diff",
    title="S3Diff",
    network="unet",
    licence="Apache-2.0; the base has its own",
    citation=RECIPE.citation,
    condition=AnyOf(_LORAS, _ESTIMATOR, adapter_file.condition("s3diff")),
    recipes={RECIPE.name: RECIPE},
    summary=_summary,
    read=read,
    files=FILES,
    save=adapter_file.save,
    modulate=modulate,
)
