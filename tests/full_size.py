"""Published networks at full size, in little memory."""

import torch


def on_meta(network_class):
    with torch.device("meta"):
        return network_class()


def weights_of(network_class, dtype=torch.float16) -> dict[str, torch.Tensor]:
    """A full-size state dict in which each tensor is one expanded number."""
    state = on_meta(network_class).state_dict()
    numbers = torch.linspace(0.01, 0.02, len(state)).to(dtype)
    return {
        name: numbers[i].expand(tensor.shape) if tensor.is_meta else tensor
        for i, (name, tensor) in enumerate(state.items())
    }
