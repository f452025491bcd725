"""Memory and operations of a training step on Stable Diffusion 3 medium, computed from shapes without weights or GPU.

    python benchmarks/training_memory.py [--crop 512] [--batch 1] [--no-gradient-checkpointing]

Runs steps of the real objective on fake tensors, and adds up the memory that would be allocated. Not included are the
CUDA context (about half a GiB) and memory lost by the allocator.
"""

from __future__ import annotations

import argparse
from typing import Any
from weakref import WeakSet, finalize

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from onestep_sr.sr_models.core.process import flow_matching
from onestep_sr.sr_models.training.draws import Draws
from onestep_sr.sr_models.training.sd.bases import TRANSFORMER, Base, Condition
from onestep_sr.sr_models.training.sd.shared_base import Ranks, SharedBase
from onestep_sr.sr_models.training.sd.tsd_objective import TSDConfig, TSDObjective
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

GIB = 2**30
TRANSFORMER_CONFIG: dict[str, Any] = {
    "num_layers": 24,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "sample_size": 128,
}
VAE_CONFIG: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 16,
    "scaling_factor": 1.5305,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


class AliveBytes(TorchDispatchMode):
    """Tracks the total size of storages created by operations, while they exist."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.storages = WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.see, result)
        return result

    def see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self.storages:
            self.storages.add(storage)
            self._add(storage.nbytes())
            finalize(storage, self._add, -storage.nbytes())

    def _add(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


def objective(checkpointing: bool, early: bool) -> TSDObjective:
    """The objective on the meta device, in the precisions of a real run."""
    process = flow_matching(3.0)
    with torch.device("meta"):
        transformer = SD3Transformer2DModel(**TRANSFORMER_CONFIG).bfloat16().requires_grad_(False)
        vae = AutoencoderKL(**VAE_CONFIG).bfloat16().requires_grad_(False)
        base = SharedBase(Base(TRANSFORMER, transformer, vae, process), Ranks())
        prompts = [Condition(torch.zeros(1, 333, 4096), torch.zeros(1, 2048)) for _ in range(2)]
    if checkpointing:
        base.enable_gradient_checkpointing()
    return TSDObjective(base, prompts[0], prompts[1], TSDConfig(early_steps=int(early)))


def without_content(module: nn.Module) -> None:
    """Replace every tensor of a module on the meta device by one of the current FakeTensorMode."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                empty = torch.empty(weight.shape, dtype=weight.dtype, device="cpu")
                part._parameters[name] = nn.Parameter(empty, weight.requires_grad)
        for name, table in part._buffers.items():
            if table is not None:
                part._buffers[name] = torch.empty(table.shape, dtype=table.dtype, device="cpu")


def batch(crop: int, count: int) -> dict[str, torch.Tensor]:
    return {
        "hr": torch.zeros(count, 3, crop, crop, dtype=torch.uint8),
        "lr": torch.zeros(count, 3, crop // 4, crop // 4, dtype=torch.uint8),
        "z_h": torch.zeros(count, 16, crop // 8, crop // 8, dtype=torch.float16),
        "prompt": torch.zeros(count, 333, 4096, dtype=torch.float16),
        "pooled": torch.zeros(count, 2048, dtype=torch.float16),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--no-gradient-checkpointing", action="store_true")
    parser.add_argument("--early", action="store_true", help="the first stage of the curriculum, without DASM")
    options = parser.parse_args()
    made = objective(not options.no_gradient_checkpointing, options.early)
    with FakeTensorMode(allow_non_fake_inputs=True), AliveBytes() as alive:
        without_content(made)
        resting = alive.now
        optimizer = torch.optim.AdamW([dict(group) for group in made.groups()])
        for _ in range(2):  # the optimizer has its state from the second step on
            step(made, optimizer, options.crop, options.batch)
        between, peak = alive.now, alive.peak
        with FlopCounterMode(display=False) as operations:
            step(made, optimizer, options.crop, options.batch)
    learning = {group["name"]: sum(weight.numel() for weight in group["params"]) for group in made.groups()}
    everything = sum(weight.numel() for weight in made.parameters())
    print(
        f"{everything / 1e6:.0f} M weights, trainable:",
        {name: f"{n / 1e6:.1f} M" for name, n in learning.items()},
    )
    print(f"weights {resting / GIB:.2f} GiB, and with AdamW's state {between / GIB:.2f} GiB")
    print(
        f"peak during a step {peak / GIB:.2f} GiB; the student's average (EMA) adds {learning['student'] * 4 / GIB:.2f}"
    )
    print(f"operations per step: {operations.get_total_flops() / 1e12:.0f} TFLOP")


def step(made: TSDObjective, optimizer: torch.optim.Optimizer, crop: int, count: int) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        losses = made(batch(crop, count), Draws(0, range(count)), 0)
    losses["loss"].backward()
    optimizer.step()
    optimizer.zero_grad()


if __name__ == "__main__":
    main()
