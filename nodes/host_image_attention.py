"""Networks of ComfyUI that attend to a picture as well as to a prompt: MODEL and ControlNet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.ops
import comfy.utils
import torch
from comfy import model_management
from comfy.cldm import cldm
from comfy.controlnet import ControlNet
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..sr_models.checkpoints.image_attention import IMAGE, Placed, joined, modules_at, split, with_picture
from ..sr_models.core.model import Conditioner
from ..sr_models.errors import UserError, reason_of
from ..sr_models.families.family import LoraFamily, OneStepLora
from .host_prompts import PICTURE, row_of
from .host_sd import Conditioning

Conds = dict[str, list[dict[str, Any]]]  # of a guider, by name
PROMPT = "cross_attn"  # its key in them
UNET = "diffusion_model."
END = ".norm.weight"  # of an attention's first parameter
NOT_IN_CONTROLNET = ("out_channels", "disable_unet_model_creation")


class TextThenImage(SpatialTransformer):
    """ComfyUI's attention to the prompt, then one to the picture. The condition is from `joined`.

    It has the modules of the first under their own names, so that weights keep their keys, and `image`.
    """

    def __init__(self, text: SpatialTransformer, image: SpatialTransformer, width: int):
        nn.Module.__init__(self)
        modules = {**text._modules, "image": image}
        self.__dict__.update(text.__dict__ | {"_modules": modules, "width": width})

    def forward(self, x: Tensor, context: Tensor, transformer_options: Mapping[str, Any] = {}) -> Tensor:
        prompt, picture = split(context, self.width)
        x = super().forward(x, prompt, transformer_options)
        # Patches of other packs are meant for attentions to the prompt.
        rest = {key: value for key, value in transformer_options.items() if not key.startswith("patches")}
        return self.image(x, picture, rest)


def add_image_attentions(patched: ModelPatcher, lora: OneStepLora) -> None:
    """Put the LoRA's attentions to the picture into a MODEL. Raises UserError for weights that do not fit."""
    model, size = patched.model, patched.model_size()
    kind = _Kind(model.get_dtype(), model.manual_cast_dtype)
    names = comfy.utils.unet_to_diffusers(model.model_config.unet_config)
    for place, weights in _places(lora.image_attentions, names, lora):
        key = f"{UNET}{place}"
        both = _with_image(patched.get_model_object(key), weights, kind, lora)
        patched.add_object_patch(key, both)
        size += model_management.module_size(both.image)
    patched.size = size  # what ComfyUI makes room for


def open_control(model: ModelPatcher, lora: OneStepLora) -> ControlNet | None:
    """The LoRA's ControlNet, as ComfyUI's for this MODEL; None if it has none. Raises UserError for weights that do not
    fit."""
    if not lora.control:
        return None
    config, device = dict(model.model.model_config.unet_config), model_management.get_torch_device()
    kind = _Kind(model.model.get_dtype(), model.model.manual_cast_dtype)
    names = _control_names(comfy.utils.unet_to_diffusers(config), lora.control)
    config = {key: value for key, value in config.items() if key not in NOT_IN_CONTROLNET}
    network = cldm.ControlNet(**config | kind.arguments, hint_channels=3)
    images = {name: tensor for name, tensor in lora.control.items() if f".{IMAGE}." in name}
    rest = {names.get(name, name): tensor for name, tensor in lora.control.items() if name not in images}
    _fill(network, rest, lora)
    for place, weights in _places(images, names, lora):
        comfy.utils.set_attr(network, place, _with_image(network.get_submodule(place), weights, kind, lora))
    return ControlNet(network, load_device=device, manual_cast_dtype=kind.compute)


@dataclass(frozen=True)
class _Kind:
    """The precision of a network's weights, and of its computation if that is another."""

    weights: torch.dtype
    compute: torch.dtype | None

    @property
    def arguments(self) -> dict[str, Any]:
        operations = comfy.ops.pick_operations(self.weights, self.compute)
        return {"dtype": self.weights, "device": model_management.unet_offload_device(), "operations": operations}


def _places(images: Mapping[str, Tensor], names: Mapping[str, str], lora: OneStepLora) -> list[Placed]:
    """ComfyUI's name of the attention to the prompt before each attention to the picture, and the latter's weights."""
    own = {name.removesuffix(END): key.removesuffix(END) for name, key in names.items() if name.endswith(END)}
    places = [name for name in own if ".attentions." in name]
    found = modules_at(places, images, lora.sentence, "the connected MODEL")
    return [(own[place], weights) for place, weights in found]


def _with_image(text: Any, weights: Mapping[str, Tensor], kind: _Kind, lora: OneStepLora) -> TextThenImage:
    attention, width = text.transformer_blocks[0].attn1, weights["transformer_blocks.0.attn2.to_k.weight"].shape[1]
    image = SpatialTransformer(
        text.in_channels,
        attention.heads,
        attention.dim_head,
        context_dim=width,
        use_linear=text.use_linear,
        attn_precision=attention.attn_precision,
        **kind.arguments,
    )
    _fill(image, weights, lora)
    return TextThenImage(text, image, width)


def _control_names(unet_names: Mapping[str, str], control: Mapping[str, Tensor]) -> dict[str, str]:
    """ComfyUI's names of a ControlNet's parameters by diffusers'."""
    names = {name: own for name, own in unet_names.items() if name in control}
    blocks = len({name.split(".")[2] for name in control if name.startswith("controlnet_cond_embedding.blocks.")})
    modules = {"controlnet_mid_block": "middle_block_out.0", "controlnet_cond_embedding.conv_in": "input_hint_block.0"}
    modules |= {f"controlnet_cond_embedding.blocks.{i}": f"input_hint_block.{2 * i + 2}" for i in range(blocks)}
    modules["controlnet_cond_embedding.conv_out"] = f"input_hint_block.{2 * blocks + 2}"
    down = {name.split(".")[1] for name in control if name.startswith("controlnet_down_blocks.")}
    modules |= {f"controlnet_down_blocks.{i}": f"zero_convs.{i}.0" for i in down}
    for module, own in modules.items():
        names |= {f"{module}.{end}": f"{own}.{end}" for end in ("weight", "bias")}
    return names


def _fill(module: nn.Module, weights: Mapping[str, Tensor], lora: OneStepLora) -> None:
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise UserError(
            f"{lora.sentence}, but its weights do not fit the connected MODEL ({reason_of(error)}): use another one."
        ) from error
    module.requires_grad_(False).eval()


@dataclass(frozen=True)
class Seen:
    """Pictures as a tagger sees them.

    Attributes:
        pictures: (B, 3, H, W) in [0, 1].
        embeddings: of each picture, (B, 145, d).
        second_look: the embedding of another picture (1, 3, H, W) in [0, 1], which has a result in it.
    """

    pictures: Tensor
    embeddings: Tensor
    second_look: Callable[[Tensor], Tensor]


def conditioner_for(conditioning: Conditioning, family: LoraFamily, control: ControlNet | None) -> Conditioner:
    """The conditioner for a CONDITIONING, which may have a prompt and an embedding of its own for each picture of a
    batch. Raises UserError if the family attends to the picture, and there is no embedding."""
    all_seen = all(PICTURE in more for _, more in conditioning)
    if family.sees_picture and not all_seen:
        raise _not_seen(family)
    return PicturePrompts(conditioning, control, family.sees_picture)


def _not_seen(family: LoraFamily) -> UserError:
    return UserError(
        f"{family.title} attends to the picture, but the connected CONDITIONING has no embedding of it: connect "
        "One-Step SR Tags."
    )


def seeing_conds(conds: Conds, family: LoraFamily, control: ControlNet | None) -> Conds:
    """The conditions of a guider for a family that attends to the picture. Raises UserError if one has no embedding."""
    if not all(PICTURE in one for each in conds.values() for one in each):
        raise _not_seen(family)
    extras = _extras(control)
    return {
        name: [_plain(one) | extras | {PROMPT: joined(one[PROMPT], one[PICTURE].embeddings)} for one in each]
        for name, each in conds.items()
    }


def seen_pictures(conds: Conds) -> Tensor:
    """The pictures (B, 3, H, W) in [0, 1] that the positive condition of `seeing_conds` was made for."""
    return conds["positive"][0][PICTURE].pictures


@dataclass(frozen=True)
class PicturePrompts:
    """A conditioner with each picture's part of a CONDITIONING. An embedding of the picture goes to the MODEL together
    with the prompt if `joins`."""

    conditioning: Conditioning
    control: ControlNet | None
    joins: bool

    def __call__(self, picture: Tensor, index: int) -> Conditioning:
        extras = _extras(self.control)
        rows = [(row_of(prompt, more, index), more.get(PICTURE)) for prompt, more in self.conditioning]
        return [(self._seen(prompt, seen, index), _plain(more) | extras) for (prompt, more), seen in rows]

    def look_again(self, condition: Conditioning, picture: Tensor) -> Conditioning:
        """The condition with the embedding of a picture that has a result in it. The tags stay."""
        looks = [more[PICTURE].second_look for _, more in self.conditioning]
        return [
            (with_picture(prompt, look(picture)), more) for (prompt, more), look in zip(condition, looks, strict=True)
        ]

    def _seen(self, prompt: Tensor, seen: Seen | None, index: int) -> Tensor:
        if seen is None or not self.joins:
            return prompt
        row = index if len(seen.embeddings) > 1 else 0
        return joined(prompt, seen.embeddings[row : row + 1])


def _extras(control: ControlNet | None) -> dict[str, Any]:
    return {} if control is None else {"control": control, "control_apply_to_uncond": True}


def _plain(more: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in more.items() if key != PICTURE}
