"""Shard a frozen base over several processes (FSDP, arXiv 2304.11277).

Each process stores a part of every weight, and gathers a block's full weights while that block runs. Adapters are not
sharded, so gradients, averages and checkpoints are the same as without sharding.
"""

from __future__ import annotations

from collections.abc import Iterable

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ...errors import UserError


def shard(network: nn.Module, blocks: Iterable[nn.Module]) -> None:
    """Shard the frozen weights of `network` block by block, and move it to the process's device.

    Raises UserError if there is only one process.
    """
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    if state.num_processes == 1:
        raise UserError("Sharing the base needs at least two processes: start them with accelerate launch.")
    assert state.device is not None  # noqa: S101 (for the type checker)
    mesh = init_device_mesh(state.device.type, (state.num_processes,))
    learning = {weight for weight in network.parameters() if weight.requires_grad}
    for module in (*blocks, network):
        fully_shard(module, mesh=mesh, ignored_params=learning)
    network.to(state.device)
