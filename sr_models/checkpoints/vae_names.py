"""Names of the modules of Stable Diffusion's VAE: diffusers' and the original ones."""

from __future__ import annotations


def original_vae_name(module: str) -> str:
    """The original name, which ComfyUI also uses, of a diffusers module of the VAE's encoder."""
    parts = module.split(".")
    match parts:
        case ["encoder", "down_blocks", level, "resnets", block, *rest]:
            return ".".join(["encoder", "down", level, "block", block, *_resnet(rest)])
        case ["encoder", "down_blocks", level, "downsamplers", "0", *rest]:
            return ".".join(["encoder", "down", level, "downsample", *rest])
        case ["encoder", "mid_block", "resnets", block, *rest]:
            return ".".join(["encoder", "mid", f"block_{int(block) + 1}", *_resnet(rest)])
        case ["encoder", "mid_block", "attentions", "0", *rest]:
            names = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
            return f"encoder.mid.attn_1.{names.get('.'.join(rest), '.'.join(rest))}"
    return module


def _resnet(rest: list[str]) -> list[str]:
    return ["nin_shortcut" if part == "conv_shortcut" else part for part in rest]
