"""Names of the modules of Stable Diffusion's VAE: diffusers' and the original ones."""

from __future__ import annotations

LEVELS = 4  # of encoder and decoder; the original decoder numbers them from the finest one


def original_vae_name(module: str) -> str:
    """The original name, which ComfyUI also uses, of a diffusers module of the VAE."""
    half, *inside = module.split(".")
    return ".".join([half, *_inside(inside)]) if half in ("encoder", "decoder") else module


def original_vae_parameter(name: str) -> str:
    """The original name of a diffusers parameter of the VAE."""
    module, _, end = name.rpartition(".")
    return f"{original_vae_name(module)}.{end}"


def _inside(parts: list[str]) -> list[str]:
    match parts:
        case ["down_blocks", level, *rest]:
            return ["down", level, *_in_level(rest)]
        case ["up_blocks", level, *rest] if level.isdecimal():
            return ["up", str(LEVELS - 1 - int(level)), *_in_level(rest)]
        case ["mid_block", "resnets", block, *rest] if block.isdecimal():
            return ["mid", f"block_{int(block) + 1}", *_resnet(rest)]
        case ["mid_block", "attentions", "0", *rest]:
            names = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "group_norm": "norm"}
            return ["mid", "attn_1", names.get(".".join(rest), ".".join(rest))]
        case ["conv_norm_out"]:
            return ["norm_out"]
    return parts


def _in_level(parts: list[str]) -> list[str]:
    match parts:
        case ["resnets", block, *rest]:
            return ["block", block, *_resnet(rest)]
        case ["downsamplers", "0", *rest]:
            return ["downsample", *rest]
        case ["upsamplers", "0", *rest]:
            return ["upsample", *rest]
    return parts


def _resnet(rest: list[str]) -> list[str]:
    return ["nin_shortcut" if part == "conv_shortcut" else part for part in rest]
