"""From weights files to SR models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ..checkpoints.weights_file import WeightsFile, fill, read_metadata, read_weights
from ..codecs.autoencoder import AutoencoderCodec
from ..codecs.pixel_shuffle import PixelShuffleCodec
from ..core.model import Codec, SRModel
from ..core.network_denoiser import NetworkDenoiser
from ..core.recipe import Recipe
from ..errors import UserError
from ..networks.vq_autoencoder import VQConfig
from . import bundled, one_step_lora, resshift
from .bundled import BUNDLED
from .resshift import AUTOENCODER_NAME


@dataclass(frozen=True)
class LoadedModel:
    """An SR model and the torch modules in it, for a host that moves them between devices itself."""

    model: SRModel
    modules: tuple[nn.Module, ...]


def load(
    path: Path = BUNDLED,
    *,
    autoencoder: Path | None = None,
    recipe: str | None = None,
    dtype: torch.dtype = torch.float32,
    budget: int | None = None,
) -> LoadedModel:
    """Read an SR model onto the CPU.

    Args:
        path: our own safetensors file (the bundled model by default), or a published TAD-SR, SinSR or
            ResShift x4 file.
        autoencoder: the VQ-f4 autoencoder of a published file; None looks for `autoencoder_vq_f4.pth`
            beside it. Our own files need none.
        recipe: for published files, in place of the recipe that the file's name stands for.
        dtype: of the weights and the computation.
        budget: of the autoencoder, as `AutoencoderCodec` takes it.

    Raises:
        UserError: for a file that is missing, broken, of an unknown kind or incomplete.
    """
    file = read_weights(path)
    if bundled.METADATA_KEY in file.metadata:
        return _load_own(file, dtype)
    if resshift.is_network(file):
        chosen = resshift.recipe_for(file.name, recipe)
        return _load_published(file, chosen, autoencoder or path.with_name(AUTOENCODER_NAME), dtype, budget)
    if resshift.is_autoencoder(file):
        raise UserError(
            f"{file.name} is an autoencoder, which cannot upscale by itself: choose a TAD-SR, SinSR or "
            "ResShift file, and this one as its autoencoder."
        )
    if one_step_lora.is_tsd_sr(file):
        raise UserError(
            f"{file.name} is a TSD-SR LoRA, which works on a Stable Diffusion: in ComfyUI put it into models/loras and "
            "use Apply One-Step SR LoRA; on the command line give --base and --lora."
        )
    raise UserError(f"{file.name} is no model that this pack knows: choose a TAD-SR, SinSR or ResShift x4 file.")


def recipe_of(path: Path, recipe: str | None = None) -> tuple[Recipe, int]:
    """The recipe that `load` would give a file, and its codec's factor, without reading weights.

    Files without our own description are taken for published ones. Raises UserError as `load` does for files
    that cannot be opened.
    """
    metadata = read_metadata(path)
    if bundled.METADATA_KEY in metadata:
        description = bundled.describe(WeightsFile(path, {}, metadata))
        return bundled.recipe(description, path.stem), description.network.bicubic_skip
    return resshift.recipe_for(path.name, recipe), VQConfig().factor


def _load_own(file: WeightsFile, dtype: torch.dtype) -> LoadedModel:
    description = bundled.describe(file)
    network = fill(bundled.build(description), file, "One-Step SR", dtype)
    return _assemble(
        bundled.recipe(description, file.path.stem), network, PixelShuffleCodec(description.network.bicubic_skip)
    )


def _load_published(
    file: WeightsFile, recipe: Recipe, autoencoder: Path, dtype: torch.dtype, budget: int | None
) -> LoadedModel:
    if not autoencoder.is_file():
        raise UserError(
            f"{file.name} needs its autoencoder, and {autoencoder} is not there: "
            f"copy {AUTOENCODER_NAME} beside it or choose it."
        )
    network = resshift.load_network(file, dtype)
    vq = resshift.load_autoencoder(read_weights(autoencoder), dtype)
    codec = AutoencoderCodec(vq, vq.config.factor, vq.config.latent_channels, budget=budget)
    loaded = _assemble(replace(recipe, multiple=network.config.multiple), network, codec)
    return replace(loaded, modules=(network, vq))


def _assemble(recipe: Recipe, network: nn.Module, codec: Codec) -> LoadedModel:
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return LoadedModel(SRModel(recipe, NetworkDenoiser(network), codec), (network,))


def identify(path: Path) -> str:
    """What a weights file is, or why it cannot run, in a few words."""
    try:
        file = read_weights(path)
        if bundled.METADATA_KEY in file.metadata:
            description = bundled.describe(file)
            return f"One-Step SR model, x{description.network.bicubic_skip}, {description.evaluations} evaluation(s)"
        if one_step_lora.is_tsd_sr(file):
            return one_step_lora.summary(one_step_lora.read_file(path))
    except UserError as error:
        return str(error)
    if resshift.is_network(file):
        return f"{resshift.recipe_for(file.name).title}, x4"
    return "VQ-f4 autoencoder" if resshift.is_autoencoder(file) else "no file that this pack can run"
