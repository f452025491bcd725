"""Several models on one set of frozen weights, by peft's low-rank adapters, of which one or none is active."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...checkpoints import low_rank
from ...checkpoints.low_rank import Update
from ...checkpoints.weights_file import shortened
from ...errors import UserError
from ...files.whole import write_whole


def add_adapter(network: nn.Module, name: str, rank: int, modules: str) -> None:
    """Add an adapter that has no effect yet: A is Gaussian, B is zero; alpha = rank, so its scale is 1.

    `modules` is a regular expression for full names. The adapter is in float32, independent of the base's precision.
    peft freezes adapters that were added before.
    """
    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=modules)
    with warnings.catch_warnings():  # peft warns about a second adapter
        warnings.simplefilter("ignore", UserWarning)
        network.add_adapter(config, adapter_name=name)  # pyright: ignore[reportCallIssue] (diffusers' mixin)
    for parameter in adapter_parameters(network, name).values():
        parameter.data = parameter.data.float()


def adapter_parameters(network: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """An adapter's weights, by name in the network."""
    return {key: weight for key, weight in network.named_parameters() if f".{name}." in key and ".lora_" in key}


def load_adapter(network: nn.Module, name: str, update: Update, modules: str, source: str) -> None:
    """Add an adapter with the given update. Raises UserError if it does not fit; `source` names the file."""
    ranks = {layer.rank for layer in update.values()}
    if len(ranks) != 1:
        raise UserError(f"{source} has ranks {sorted(ranks)}: training can only start from a LoRA with one rank.")
    add_adapter(network, name, ranks.pop(), modules)
    expected = get_peft_model_state_dict(network, adapter_name=name)
    tensors: dict[str, Tensor] = {}
    for module, layer in update.items():
        tensors[module + low_rank.DOWN], tensors[module + low_rank.UP] = layer.down, layer.scale * layer.up
    unfit = sorted(expected.keys() ^ tensors.keys())
    unfit += sorted(key for key in expected.keys() & tensors.keys() if expected[key].shape != tensors[key].shape)
    if unfit:
        raise UserError(f"{source} does not fit the base ({shortened(unfit)}): choose a LoRA that was trained on it.")
    set_peft_model_state_dict(network, {key: t.float() for key, t in tensors.items()}, adapter_name=name)


def save_adapter(path: Path, network: nn.Module, name: str, prefix: str) -> None:
    """Write an adapter in half precision, as `<prefix><module>.lora_A|lora_B.weight`."""
    state = get_peft_model_state_dict(network, adapter_name=name)
    tensors = {prefix + key: tensor.detach().to("cpu", torch.float16).contiguous() for key, tensor in state.items()}
    write_whole(path, lambda temporary: save_file(tensors, temporary))


@contextmanager
def active(network: nn.Module, *names: str) -> Iterator[None]:
    """Activate these adapters, or none, for the time being, without changing which weights are trainable."""
    layers = _layers(network)
    before = active_names(network)
    _activate(layers, names)
    try:
        yield
    finally:
        _activate(layers, before)


def active_names(network: nn.Module) -> tuple[str, ...]:
    return tuple(next(iter(_layers(network))).active_adapters) if _layers(network) else ()


def _layers(network: nn.Module) -> list[BaseTunerLayer]:
    return [module for module in network.modules() if isinstance(module, BaseTunerLayer)]


def _activate(layers: list[BaseTunerLayer], names: tuple[str, ...]) -> None:
    """Switch adapters. peft would also freeze the ones switched off, which may be trained at the same time."""
    for layer in layers:
        learns = [(weight, weight.requires_grad) for weight in layer.parameters()]  # pyright: ignore[reportAttributeAccessIssue]
        layer.set_adapter(list(names))
        for weight, learning in learns:
            weight.requires_grad_(learning)


def checkpointed(module: nn.Module, *arguments: object) -> Tensor:
    """Gradient checkpointing for a network with adapters: recomputation uses the adapters of the first forward pass.

    By then another adapter may be active, and plain checkpointing would compute gradients of the wrong model.
    """
    names = active_names(module)
    contexts = lambda: (nullcontext(), active(module, *names))  # noqa: E731
    return checkpoint(module, *arguments, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)  # pyright: ignore
