"""The GPU memory that TSD-SR takes, computed from the shapes of all tensors of a run, without a GPU.

    PYTHONPATH=tests python benchmarks/device_memory.py [--sides 512 1024 2048 4096] [--cards 8 24 80] [--other 0.6]

The networks have the sizes of Stable Diffusion 3 medium in half precision, and run on a device that has shapes only, as
on a card with that many GiB, of which `--other` GiB belong to CUDA and other programs. The table has the weights and
the most memory of tensors beside them. cuDNN's workspaces are not counted.
"""

from __future__ import annotations

import argparse
from unittest import mock

import small_sd3
import torch
import tsd_sr as published
from null_device import NULL, DeviceMemory, device_memory
from onestep_sr.sr_models.checkpoints.prompt_embeddings import PromptEmbeddings
from onestep_sr.sr_models.core import memory
from onestep_sr.sr_models.core.model import SRModel
from onestep_sr.sr_models.core.process import flow_matching
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.diffusers_host.codec import LatentCodec
from onestep_sr.sr_models.diffusers_host.denoiser import PromptedDenoiser
from onestep_sr.sr_models.diffusers_host.offload import Placement
from onestep_sr.sr_models.diffusers_host.sd3 import call_transformer
from onestep_sr.sr_models.families import tsd_sr
from onestep_sr.sr_models.families.family import on_base

GIB = 2**30
LORA = 89_000_000  # merged into the weights
PROMPT = PromptEmbeddings(torch.zeros(1, 333, 4096), torch.zeros(1, 2048))


def build() -> tuple[SRModel, int]:
    """TSD-SR, and the bytes of its weights."""
    with NULL:
        transformer = small_sd3.build_transformer(**published.FULL).half().eval().requires_grad_(False)
        vae = small_sd3.build_vae(small_sd3.FULL_WIDTHS).half().eval().requires_grad_(False)
    placement = Placement(NULL, False)
    model = SRModel(
        on_base(tsd_sr.TSD_SR, flow_matching(shift=1.0)),
        PromptedDenoiser(transformer, call_transformer, placement),
        LatentCodec(vae, placement, float(vae.config.scaling_factor), None, None),
        tsd_sr.FAMILY.conditioner(lambda _: PROMPT, ""),
    )
    tensors = [tensor for module in (transformer, vae) for tensor in (*module.parameters(), *module.buffers())]
    return model, sum(tensor.nbytes for tensor in tensors)


def run(model: SRModel, weights: int, side: int, room: int) -> DeviceMemory:
    """A picture of `side` px, on a card with `room` bytes for weights and work."""
    with device_memory() as used:

        def available(device: torch.device, ask=memory.available) -> int:
            return room - weights - used.now if device == NULL else ask(device)

        with mock.patch.object(memory, "available", available):
            upscale(model, torch.rand(1, 3, side // 4, side // 4))
    return used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--cards", type=float, nargs="+", default=[8, 12, 24, 80])
    parser.add_argument("--other", type=float, default=0.6)
    options = parser.parse_args()
    model, weights = build()
    print(f"weights: {weights / GIB:.1f} GiB; the same and the most of a run beside them, in GiB\n")
    print(f"| result |{''.join(f' {card:g} GiB |' for card in options.cards)}\n|{' --- |' * (len(options.cards) + 1)}")
    for side in options.sides:
        peaks = [run(model, weights, side, int((card - options.other) * GIB)).peak for card in options.cards]
        print(f"| {side} px |{''.join(f' {(weights + peak) / GIB:.1f} |' for peak in peaks)}", flush=True)


if __name__ == "__main__":
    main()
