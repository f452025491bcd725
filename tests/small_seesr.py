"""TAD-SeeSR's published folders and RAM's files, random, for a small base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from onestep_sr.sr_models.families.tagger import THRESHOLDS_FILE, read_tagger
from onestep_sr.sr_models.networks.ram import RAM, RAMConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

PICTURE_WIDTH = 16  # at most the prompt's, which is 32 in the small base
TAGS = 12
RAM_CONFIG = RAMConfig(8, (2, 2), (1, 2), 12, PICTURE_WIDTH, 16, 32, tag_heads=4, tag_layers=2, tags=TAGS)


def randomized(network: nn.Module, seed: int, gain: float = 1.0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for name, weight in network.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.ndim > 1:
            weight.data = gain * noise / weight[0].numel() ** 0.5
        else:
            weight.data = 0.1 * noise + ("norm" in name.lower() and name.endswith("weight"))
    return network.requires_grad_(False)


def attentions(network: nn.Module) -> dict[str, Any]:
    """The network's attentions to the prompt, by name."""
    return {name: module for name, module in network.named_modules() if name.split(".")[-2:-1] == ["attentions"]}


def image_attentions(network: nn.Module, seed: int, width: int = PICTURE_WIDTH) -> dict[str, nn.Module]:
    """One attention to the picture for each to the prompt, by its published name."""
    found = {}
    for number, (name, text) in enumerate(attentions(network).items()):
        sizes = {key: value for key, value in text.config.items() if not key.startswith("_")}
        image = type(text)(**sizes | {"cross_attention_dim": width})
        found[name.replace("attentions", "image_attentions")] = randomized(image, seed + number)
    return found


def write_networks(base: Path, folder: Path, width: int = PICTURE_WIDTH) -> Path:
    """The folders `unet` and `controlnet`; `width` is RAM's embedding of the picture."""
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    control: Any = randomized(ControlNetModel.from_unet(unet, load_weights_from_unet=False), 11)
    randomized(control.controlnet_cond_embedding, 12, gain=2.0)  # its activations would make the picture fade
    generator = torch.Generator().manual_seed(10)
    for weight in unet.parameters():
        weight.data *= 1 + 0.05 * torch.randn(weight.shape, generator=generator)
    for part, network, seed in (("unet", unet, 20), ("controlnet", control, 40)):
        tensors = dict(network.state_dict())
        for name, image in image_attentions(network, seed, width).items():
            tensors |= {f"{name}.{key}": tensor for key, tensor in image.state_dict().items()}
        (folder / part).mkdir(parents=True)
        save_file(tensors, folder / part / "diffusion_pytorch_model.safetensors")
    return folder


def networks(base: Path, folder: Path) -> list[tuple[Any, dict[str, nn.Module]]]:
    """The U-Net and the ControlNet in float64, each with its attentions to the picture by the name of those to the
    prompt."""
    unet, found = UNet2DConditionModel.from_pretrained(base / "unet"), []
    for part, plain in (("unet", unet), ("controlnet", ControlNetModel.from_unet(unet))):
        tensors, images = load_file(folder / part / "diffusion_pytorch_model.safetensors"), {}
        for name, image in image_attentions(plain, 0).items():
            image.load_state_dict({key: tensors.pop(f"{name}.{key}") for key in image.state_dict()})
            images[name.replace("image_attentions", "attentions")] = image.double()
        plain.load_state_dict(tensors)
        found.append((plain.double().requires_grad_(False), images))
    return found


def look(plain: nn.Module, images: dict[str, nn.Module], embedding: Tensor, order: str = "text, image") -> None:
    """Let each attention to the picture work on the result of the one to the prompt, or before it."""
    for name, image in images.items():
        if order == "image, text":
            plain.get_submodule(name).register_forward_pre_hook(
                lambda module, args, image=image: (image(args[0], encoder_hidden_states=embedding).sample,)
            )
        elif order == "text, image":
            plain.get_submodule(name).register_forward_hook(
                lambda module, args, result, image=image: (image(result[0], encoder_hidden_states=embedding).sample,)
            )


def write_ram(folder: Path, config: RAMConfig = RAM_CONFIG) -> dict[str, dict[str, Tensor]]:
    """RAM's files; returns the tensors of the two weights files. The picture has 145 tokens only if 12 pixels are left
    of its side."""
    network, generator = randomized(RAM(config), 50), torch.Generator().manual_seed(51)
    weights, lora = network.state_dict(), {}
    for name in [
        name.removesuffix(".weight") for name in weights if name.endswith((".qkv.weight", "self.query.weight"))
    ]:
        rows, columns = weights[f"{name}.weight"].shape
        both = 2 if name.endswith("qkv") else 1
        for module in {name, name.replace(".query", ".key")}:
            columns = weights[f"{module}.weight"].shape[1]
            lora[f"{module}.lora_A"] = torch.randn(8 * both, columns, generator=generator)
            lora[f"{module}.lora_B"] = 0.3 * torch.randn(rows * 2 // 3 if both == 2 else rows, 8, generator=generator)
    folder.mkdir()
    torch.save({"model": weights | {"text_decoder.weight": torch.zeros(2)}}, folder / "ram_swin_large_14m.pth")
    torch.save(lora, folder / "DAPE.pth")
    (folder / "ram_tag_list.txt").write_text("\n".join(f"tag {i}" for i in range(config.tags)))
    return {"weights": weights, "lora": lora}


def write_thresholds(folder: Path, picture: Tensor) -> None:
    """Thresholds at which about half of the tags are found in a picture."""
    tagger = read_tagger(folder)
    middle = float(tagger.network.probabilities(tagger.embedding(picture)).median())
    (folder / THRESHOLDS_FILE).write_text(f"{middle}\n" * len(tagger.names))
