"""A frozen base spread over the processes (FSDP, arXiv 2304.11277).

Each process keeps its part of every weight, and gathers a block's whole weights while that block runs. Adapters stay
whole in every process, so that gradients, averages and checkpoints are what they are without.
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
    """Spread the weights of `network` that do not learn, block by block, and move it to the process's device.

    Raises UserError where there is one process only.
    """
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    if state.num_processes == 1:
        raise UserError("One process has nobody to share the base with: start several with accelerate launch.")
    assert state.device is not None  # noqa: S101 (for the type checker)
    mesh = init_device_mesh(state.device.type, (state.num_processes,))
    learning = {weight for weight in network.parameters() if weight.requires_grad}
    for module in (*blocks, network):
        fully_shard(module, mesh=mesh, ignored_params=learning)
    network.to(state.device)
