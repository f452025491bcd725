"""Values that exist at once in one pass of Stable Diffusion's networks and of InvSR's predictor, per latent pixel of a
tile, beside the weights.

    python benchmarks/network_memory.py [--sides 64 96]

Computed from shapes, without weights and without a GPU; attention is counted as if its scores were never stored, as on
GPUs. `sr_models/families/bases.py` and `invsr.py` have the numbers that estimates use.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from onestep_sr.sr_models.core.recipe import Footprint
from onestep_sr.sr_models.families.bases import SD3_FOOTPRINT, SD21_FOOTPRINT
from onestep_sr.sr_models.families.invsr import FOOTPRINT
from onestep_sr.sr_models.networks.invsr import NoisePredictor, PredictorConfig
from torch import Tensor, nn
from training_memory import AliveBytes

UNET: dict[str, Any] = {"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": (5, 10, 20, 20)}
HALF: dict[str, Any] = {"device": "meta", "dtype": torch.float16}


def without_scores(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    return query.new_empty(*query.shape[:-1], value.shape[-1])


def sd21(side: int) -> dict[str, Any]:
    return {
        "sample": torch.empty(1, 4, side, side, **HALF),
        "timestep": torch.tensor(999),
        "encoder_hidden_states": torch.empty(1, 77, 1024, **HALF),
    }


def sd3(side: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.empty(1, 16, side, side, **HALF),
        "timestep": torch.empty(1, device="meta"),
        "encoder_hidden_states": torch.empty(1, 333, 4096, **HALF),
        "pooled_projections": torch.empty(1, 2048, **HALF),
    }


def invsr(side: int) -> dict[str, Any]:
    return {"picture": torch.empty(1, 3, 2 * side, 2 * side, **HALF), "timesteps": torch.empty(1, device="meta")}


def networks() -> dict[str, tuple[nn.Module, Callable[[int], dict[str, Any]], Footprint]]:
    with torch.device("meta"):
        unet = UNet2DConditionModel(use_linear_projection=True, cross_attention_dim=1024, **UNET)
        transformer = SD3Transformer2DModel(
            num_layers=24,
            num_attention_heads=24,
            caption_projection_dim=1536,
            out_channels=16,
            pos_embed_max_size=192,
        )
        predictor = NoisePredictor(PredictorConfig())
    return {
        "Stable Diffusion 2.1": (unet.half(), sd21, SD21_FOOTPRINT),
        "Stable Diffusion 3 medium": (transformer.half(), sd3, SD3_FOOTPRINT),
        "InvSR's noise predictor": (predictor.half(), invsr, FOOTPRINT),
    }


@torch.no_grad()
def values_per_pixel(network: nn.Module, inputs: dict[str, Any], side: int) -> float:
    weights = [tensor.untyped_storage() for tensor in (*network.parameters(), *network.buffers())]
    alive = AliveBytes()
    alive.storages.update(weights)  # views of these are no work
    with alive:
        network(**inputs)
    return alive.peak / torch.float16.itemsize / side**2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 96], help="of the tile, in latent pixels")
    options = parser.parse_args()
    torch.nn.functional.scaled_dot_product_attention = without_scores
    print("network | weights | side | values per latent pixel")
    for title, (network, inputs, used) in networks().items():
        count = sum(weight.numel() for weight in network.parameters())
        for side in options.sides:
            found = values_per_pixel(network, inputs(side), side)
            print(f"{title} | {count:,} | {side} | {found:.0f} (used: {used.per_pixel})")


if __name__ == "__main__":
    main()
