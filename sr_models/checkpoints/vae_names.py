"""Names of the modules of Stable Diffusion's VAE: diffusers' and the original ones."""

from __future__ import annotations


def diffusers_vae_name(module: str) -> str:
    """diffusers' name of a module of the VAE's encoder, from the original name, which ComfyUI also uses."""
    parts = module.split(".")
    match parts:
        case ["encoder", "down", level, "block", block, *rest]:
            return ".".join(["encoder", "down_blocks", level, "resnets", block, *_resnet(rest)])
        case ["encoder", "down", level, "downsample", *rest]:
            return ".".join(["encoder", "down_blocks", level, "downsamplers", "0", *rest])
        case ["encoder", "mid", "block_1" | "block_2" as block, *rest]:
            return ".".join(["encoder", "mid_block", "resnets", str(int(block[-1]) - 1), *_resnet(rest)])
        case ["encoder", "mid", "attn_1", part]:
            names = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0", "norm": "group_norm"}
            return f"encoder.mid_block.attentions.0.{names.get(part, part)}"
    return module


def _resnet(rest: list[str]) -> list[str]:
    return ["conv_shortcut" if part == "nin_shortcut" else part for part in rest]
