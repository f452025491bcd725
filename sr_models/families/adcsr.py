"""AdcSR (arXiv 2411.13383): a pruned U-Net on the LR's own pixels and half a decoder, without a Stable Diffusion.

The published files are `net_params_200.pkl`, the U-Net and the decoder's middle, and `halfDecoder.ckpt`, a Lightning
checkpoint with the rest of the decoder.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..checkpoints.conditions import All, AnyOf, Has, Shape
from ..checkpoints.header import Header, read_header
from ..checkpoints.low_rank import under
from ..checkpoints.torch_file import read_tensors_only
from ..checkpoints.vae_names import diffusers_vae_parameter
from ..checkpoints.weights_file import WeightsFile, beside, fill, is_safetensors, read_weights, require_file
from ..codecs.autoencoder import DecoderCodec
from ..core.model import SRModel
from ..core.network_denoiser import NetworkDenoiser
from ..core.recipe import Footprint, Recipe
from ..core.step import Direct
from ..errors import UserError
from ..files.whole import write_whole
from ..networks.adcsr import AdcConfig, AdcUNet, HalfDecoder
from . import adapter_file
from .bases import MAPPED
from .family import ModelFamily, OpenedModel, OpenOptions

HALF_DECODER = "halfDecoder.ckpt"
UNET, MIDDLE = "body.1.", "body.2."  # in the published file
TWICE = f"{UNET}body."  # the U-Net's blocks again, under numbers
ATTENTION = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
SIZES = AdcConfig()
# Narrower than Stable Diffusion's, whose names it has.
HALF = Shape("decoder.conv_norm_out.weight", SIZES.decoder.channels)
VALUES_PER_PIXEL = 5600  # of one pass of the network

# The published script runs a picture in one piece; it was trained with results of 512 px.
RECIPE = Recipe(
    "adcsr",
    "AdcSR, one step",
    "arXiv 2411.13383",
    Direct(),
    tile=64,
    overlap=16,
    multiple=SIZES.multiple,
    color="adain",
    footprint=Footprint(weights=443_142_480 + 12_931_203, per_pixel=VALUES_PER_PIXEL, mapped=MAPPED // 2),
)


class AsDenoiser(nn.Module):
    """The U-Net as an SR model runs it: it looks at the LR picture only."""

    def __init__(self, unet: AdcUNet):
        super().__init__()
        self.unet = unet

    def forward(self, latent: Tensor, lr: Tensor, timestep: Tensor) -> Tensor:
        return self.unet(lr.to(self.unet.conv_in.weight.dtype))


def read(header: Header, half_decoder: Path | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of `AdcUNet` and of `HalfDecoder`, by name, as far as the files have them.

    Raises UserError for a half decoder that is missing or something else, or that is not needed.
    """
    file = read_weights(header.path)
    if adapter_file.is_single(header):
        if half_decoder is not None:
            raise UserError(f"{header.name} is complete in itself: leave {str(half_decoder)!r} out.")
        return under(file.tensors, "unet."), under(file.tensors, "decoder.")
    unet = under({name: tensor for name, tensor in file.tensors.items() if not name.startswith(TWICE)}, UNET)
    middle = {f"mid_block.{name}": tensor for name, tensor in under(file.tensors, MIDDLE).items()}
    first = {
        f"conv_in.{kind}": unet.pop(f"conv_out.{kind}") for kind in ("weight", "bias") if f"conv_out.{kind}" in unet
    }
    return unet, _in_our_names(_half_decoder(header, half_decoder) | middle | first)


def _half_decoder(header: Header, chosen: Path | None) -> dict[str, Tensor]:
    """The published half decoder, by diffusers' names. No class of it is made."""
    path = beside(header.path, HALF_DECODER) if chosen is None else chosen
    if not path.is_file():
        raise UserError(
            f"{header.name} needs its decoder, but {path} does not exist: copy {HALF_DECODER} there, or choose it as "
            "the autoencoder."
        )
    require_file(path)
    tensors = read_weights(path).tensors if is_safetensors(path) else read_tensors_only(path)
    found = under(tensors, "state_dict.decoder.") or under(tensors, "decoder.")
    if "conv_norm_out.weight" not in found:
        network = "" if FAMILY.condition.missing(read_header(path)) else "AdcSR's network, "
        raise UserError(f"{path.name} is {network}not AdcSR's half decoder: choose {HALF_DECODER}.")
    return found


def _in_our_names(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """From diffusers' names, in which projections are linear and not 1x1 convolutions."""
    with torch.device("meta"):
        wanted = HalfDecoder(SIZES.decoder).decoder.state_dict()
    names = {name: diffusers_vae_parameter(f"decoder.{name}").removeprefix("decoder.") for name in wanted}
    present = {name: found[theirs] for name, theirs in names.items() if theirs in found}
    return {
        name: tensor[..., None, None] if tensor.ndim == 2 and wanted[name].ndim == 4 else tensor
        for name, tensor in present.items()
    }


def save(path: Path, header: Header) -> None:
    """Write both published files as one. On an error, no partial file is left."""
    unet, decoder = _networks(header, None, None)
    tensors = {f"unet.{name}": tensor for name, tensor in unet.state_dict().items()}
    tensors |= {f"decoder.{name}": tensor for name, tensor in decoder.decoder.state_dict().items()}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata = {adapter_file.FAMILY_KEY: FAMILY.name, "licence": FAMILY.licence}
    write_whole(path, partial(save_file, tensors, metadata=metadata))


def _networks(header: Header, half_decoder: Path | None, dtype: torch.dtype | None) -> tuple[AdcUNet, HalfDecoder]:
    """Both networks; None keeps the file's precision."""
    unet_weights, decoder_weights = read(header, half_decoder)
    file = WeightsFile(header.path, unet_weights, {})
    dtype = dtype or next(iter(unet_weights.values())).dtype
    with torch.device("meta"):
        unet, decoder = AdcUNet(SIZES), HalfDecoder(SIZES.decoder)
    fill(unet, file, FAMILY.title, dtype)
    fill(decoder.decoder, replace(file, tensors=decoder_weights), FAMILY.title, dtype)
    return unet, decoder


def _outline(header: Header, chosen: str | None) -> tuple[Recipe, int]:
    return RECIPE if chosen is None else FAMILY.recipe(chosen), SIZES.decoder.factor


def _open(header: Header, options: OpenOptions) -> OpenedModel:
    recipe, factor = _outline(header, options.recipe)
    unet, decoder = _networks(header, options.autoencoder, options.dtype)
    network = AsDenoiser(unet)
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    channels = SIZES.decoder.latent_channels
    codec = DecoderCodec(decoder, factor, channels, budget=options.budget, spill=options.spill)
    return OpenedModel(
        FAMILY, SRModel(recipe, NetworkDenoiser(network, recipe.footprint.per_pixel), codec), (network, decoder)
    )


FAMILY = ModelFamily(
    name="adcsr",
    title="AdcSR",
    licence="Apache-2.0; it is made from Stable Diffusion 2.1, which has its own",
    citation=RECIPE.citation,
    condition=AnyOf(
        All(
            Has(f"{UNET}{ATTENTION}", f"{UNET}conv_out.weight", f"{MIDDLE}resnets.0.conv1.weight"),
            Shape(f"{UNET}conv_in.weight", None, 12, 3, 3),
        ),
        adapter_file.condition("adcsr"),
    ),
    recipes={RECIPE.name: RECIPE},
    summary=lambda header: f"{RECIPE.title}, x4",
    outline=_outline,
    open=_open,
    beside=(HALF_DECODER,),
    save=save,
)
