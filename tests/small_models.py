"""Small networks of published models that need no Stable Diffusion, for the families' own files."""

import sys
import types
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from onestep_sr.sr_models.checkpoints.vae_names import diffusers_vae_parameter
from onestep_sr.sr_models.families import adcsr, tad_faceir
from onestep_sr.sr_models.networks.adcsr import AdcConfig, AdcUNet, HalfDecoder
from onestep_sr.sr_models.networks.swin_unet_faces import FaceUNet, FaceUNetConfig
from onestep_sr.sr_models.networks.vq_autoencoder import VQAutoencoder, VQConfig
from small_swin import randomised

FACES = FaceUNetConfig(channels=32, multipliers=(1, 2), swin_channels=64, window=4, mlp_ratio=2, native_size=8)
FACES_VQ = VQConfig(32, (1, 1, 1, 2), (1, 2, 1, 1), latent_channels=8, codes=64)
ADCSR = AdcConfig((24, 48, 48), (2, 4, 4), VQConfig(32, (1, 1, 1, 2), 1, latent_channels=24))

ADCSR_NAME = "net_params_200.pkl"
FACES_NAMES = "TAD-faceir.pth", tad_faceir.F8.file


def use_small_networks(put: Callable[[Any, str, Any], None]) -> None:
    """`put` is setattr, or a monkeypatch's. Small pictures are then not enlarged to 512 px either."""
    put(adcsr, "SIZES", ADCSR)
    put(adcsr.HALF, "sides", (ADCSR.decoder.channels,))
    put(tad_faceir, "FaceUNet", partial(FaceUNet, FACES))
    put(tad_faceir, "F8", replace(tad_faceir.F8, config=FACES_VQ))
    recipes = {name: replace(recipe, shortest=0) for name, recipe in tad_faceir.RECIPES.items()}
    put(tad_faceir, "RECIPES", recipes)
    put(tad_faceir, "FAMILY", replace(tad_faceir.FAMILY, recipes=recipes))


def write_faces(folder: Path) -> Path:
    """TAD-faceir's published files, of small random networks."""
    for name, network in zip(FACES_NAMES, (FaceUNet(FACES), VQAutoencoder(FACES_VQ)), strict=True):
        torch.save({"state_dict": randomised(network, int(name == FACES_NAMES[1])).state_dict()}, folder / name)
    return folder / FACES_NAMES[0]


class Saved:
    """What Lightning puts beside the weights."""


def write_adcsr(folder: Path) -> Path:
    """The published files, of small random networks."""
    unet, half = randomised(AdcUNet(ADCSR)).state_dict(), randomised(HalfDecoder(ADCSR.decoder), 1).state_dict()
    for kind in ("weight", "bias"):  # as a trained one, it stays in range
        half[f"decoder.conv_out.{kind}"] *= 0.2
    decoder = {diffusers_vae_parameter(name).removeprefix("decoder."): tensor for name, tensor in half.items()}
    decoder = {n: t[..., 0, 0] if ".to_" in n and t.ndim == 4 else t for n, t in decoder.items()}
    for kind in ("weight", "bias"):
        unet[f"conv_out.{kind}"] = decoder.pop(f"conv_in.{kind}")
    whole = {f"module.body.1.{name}": tensor for name, tensor in unet.items()}
    blocks = [f"{kind}_blocks.{n}." for kind in ("down", "up") for n in range(3)]
    blocks = [*blocks[:3], "mid_block.", *blocks[3:], "conv_norm_out.", "conv_act.", "conv_out."]
    for number, block in enumerate(blocks):
        inside = {name.removeprefix(block): tensor for name, tensor in unet.items() if name.startswith(block)}
        whole |= {f"module.body.1.body.{number}.{name}": tensor for name, tensor in inside.items()}
    middle = {name.removeprefix("mid_block."): t for name, t in decoder.items() if "mid_block" in name}
    whole |= {f"module.body.2.{name}": tensor for name, tensor in middle.items()}
    torch.save(whole, folder / ADCSR_NAME)
    # The half decoder has a first convolution and a middle of its own, from before the U-Net was trained.
    before = {"conv_in.weight": torch.zeros(64, 4, 3, 3), "conv_in.bias": torch.zeros(64)}
    before |= {f"mid_block.{name}": tensor.flip(0) for name, tensor in middle.items()}
    package = types.ModuleType("pytorch_lightning")
    package.Saved = Saved  # pyright: ignore[reportAttributeAccessIssue]
    Saved.__module__, sys.modules["pytorch_lightning"] = "pytorch_lightning", package
    state = {f"decoder.{name}": tensor for name, tensor in (decoder | before).items()} | {
        "loss.logvar": torch.zeros(())
    }
    torch.save({"state_dict": state, "epoch": 3, "callbacks": {Saved: Saved()}}, folder / adcsr.HALF_DECODER)
    torch.save(state, folder / "plain.pt")
    del sys.modules["pytorch_lightning"]
    Saved.__module__ = __name__
    return folder / ADCSR_NAME
