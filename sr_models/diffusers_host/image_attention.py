"""U-Nets and ControlNets that attend to a picture as well as to a prompt, built from diffusers' own parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.image_attention import IMAGE, modules_at, split
from ..checkpoints.prompt_embeddings import PromptEmbeddings
from ..errors import UserError, reason_of
from ..families.family import OneStepLora
from .denoiser import PromptedDenoiser


class TextThenImage(nn.Module):
    """An attention to the prompt, then one to the picture, in the place of the first. The condition is `joined`."""

    def __init__(self, text: nn.Module, image: Any):
        super().__init__()
        self.text, self.image = text, image

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, **options: Any) -> Any:
        prompt, picture = split(encoder_hidden_states, self.image.config.cross_attention_dim)
        hidden = self.text(hidden_states, encoder_hidden_states=prompt, **options)[0]
        return self.image(hidden, encoder_hidden_states=picture, **options)


def add_image_attentions(network: nn.Module, tensors: Mapping[str, Tensor], lora: str) -> None:
    """Put the attentions of `tensors`, in diffusers' parameter names, after the network's own.

    `lora` starts the message of the UserError for weights that do not fit the network.
    """
    places = [name for name, _ in network.named_modules() if name.split(".")[-2:-1] == ["attentions"]]
    for place, weights in modules_at(places, tensors, lora, "the base"):
        text: Any = network.get_submodule(place)
        width = weights["transformer_blocks.0.attn2.to_k.weight"].shape[1]
        sizes = {key: value for key, value in text.config.items() if not key.startswith("_")}
        with torch.device("meta"):
            image = type(text)(**sizes | {"cross_attention_dim": width})
        _fill(image, weights, lora, network)
        network.set_submodule(place, TextThenImage(text, image))


def open_control(unet: Any, lora: OneStepLora) -> nn.Module:
    """The LoRA's ControlNet for a U-Net, frozen. Raises UserError for weights that do not fit."""
    from diffusers import ControlNetModel

    images = {name: tensor for name, tensor in lora.control.items() if f".{IMAGE}." in name}
    rest = {name: tensor for name, tensor in lora.control.items() if name not in images}
    with torch.device("meta"):
        control = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    _fill(control, rest, lora.sentence, unet)
    add_image_attentions(control, images, lora.sentence)
    return control


def _fill(module: nn.Module, weights: Mapping[str, Tensor], lora: str, like: nn.Module) -> None:
    """Give a module on the meta device its weights, in the precision of `like`."""
    dtype = next(like.parameters()).dtype
    try:
        module.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()}, assign=True)
    except RuntimeError as error:
        raise UserError(
            f"{lora}, but its weights do not fit the base ({reason_of(error)}): use another base."
        ) from error
    module.requires_grad_(False).eval()


class ControlledUNet(nn.Module):
    """A U-Net and its ControlNet, which sees the enlarged picture."""

    def __init__(self, unet: Any, control: Any):
        super().__init__()
        self.unet, self.control = unet, control

    def forward(self, latent: Tensor, picture: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """latent (B, 4, h, w), picture (B, 3, 8 h, 8 w) in [0, 1] -> the prediction (B, 4, h, w)."""
        shared: dict[str, Any] = {"encoder_hidden_states": condition, "return_dict": False}
        down, middle = self.control(latent, timesteps, controlnet_cond=picture, **shared)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return self.unet(latent, timesteps, **shared, **residuals)[0]


class ControlledDenoiser(PromptedDenoiser):
    """Runs a ControlledUNet. The condition's prompt is from `joined`."""

    def predict(self, latent: Tensor, lr: Tensor, timesteps: Tensor, condition: PromptEmbeddings) -> Tensor:
        picture = (lr / 2 + 0.5).clamp(0, 1)  # enlarging may leave [0, 1]
        return self.network(latent, picture.to(latent), timesteps, condition.prompt)
