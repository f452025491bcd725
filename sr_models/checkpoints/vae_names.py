"""Names of the modules of Stable Diffusion's VAE: diffusers' and the original ones."""

from __future__ import annotations

LEVELS = 4  # of encoder and decoder; the original decoder numbers them from the finest one


def diffusers_vae_name(module: str) -> str:
    """diffusers' name of a module of the VAE, from the original name, which ComfyUI also uses."""
    half, *inside = module.split(".")
    return ".".join([half, *_inside(inside)]) if half in ("encoder", "decoder") else module


def diffusers_vae_parameter(name: str) -> str:
    """diffusers' name of a parameter of the VAE, from the original name."""
    module, _, end = name.rpartition(".")
    return f"{diffusers_vae_name(module)}.{end}"


def _inside(parts: list[str]) -> list[str]:
    match parts:
        case ["down", level, *rest]:
            return ["down_blocks", level, *_in_level(rest)]
        case ["up", level, *rest] if level.isdecimal():
            return ["up_blocks", str(LEVELS - 1 - int(level)), *_in_level(rest)]
        case ["mid", ("block_1" | "block_2") as block, *rest]:
            return ["mid_block", "resnets", str(int(block[-1]) - 1), *_resnet(rest)]
        case ["mid", "attn_1", part]:
            names = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0", "norm": "group_norm"}
            return ["mid_block", "attentions", "0", names.get(part, part)]
        case ["norm_out"]:
            return ["conv_norm_out"]
    return parts


def _in_level(parts: list[str]) -> list[str]:
    match parts:
        case ["block", block, *rest]:
            return ["resnets", block, *_resnet(rest)]
        case ["downsample", *rest]:
            return ["downsamplers", "0", *rest]
        case ["upsample", *rest]:
            return ["upsamplers", "0", *rest]
    return parts


def _resnet(rest: list[str]) -> list[str]:
    return ["conv_shortcut" if part == "nin_shortcut" else part for part in rest]
