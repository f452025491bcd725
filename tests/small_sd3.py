"""A small random Stable Diffusion 3 with a TSD-SR LoRA, in every file layout that users hold, from one seed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from onestep_sr.sr_models.core.step import OneStep
from onestep_sr.sr_models.families import tsd_sr
from onestep_sr.sr_models.families.registry import FAMILIES
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

BLOCKS, HEADS, RANK = 2, 2, 4
FULL_WIDTHS = (128, 256, 512, 512)
TRANSFORMER_MODULES = ["to_k", "to_q", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj"]
TRANSFORMER_MODULES += ["proj", "linear", "proj_out"]
VAE_MODULES = (
    r"encoder\.(conv_in|conv_out|.*\.(conv1|conv2|conv_shortcut)|.*\.downsamplers\.0\.conv"
    r"|.*\.(to_q|to_k|to_v|to_out\.0))"
)
ORIGINAL_NAMES = {
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "proj_out": "final_layer.linear",
}
ORIGINAL_BLOCK_NAMES = {
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
    "attn.norm_q": "x_block.attn.ln_q",  # from here on, SD3.5 only
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
}
QKV = {
    "x_block.attn": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "context_block.attn": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "x_block.attn2": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
}
SD35 = {"qk_norm": "rms_norm", "dual_attention_layers": (0,)}
SWAPPED = ("norm_out.linear", f"transformer_blocks.{BLOCKS - 1}.norm1_context.linear")


@dataclass(frozen=True)
class SmallSD3:
    """Where the files are: `folder` (diffusers), `checkpoint` (one file), `lora` and `embeddings` (published)."""

    root: Path

    @property
    def folder(self) -> Path:
        return self.root / "sd3"

    @property
    def checkpoint(self) -> Path:
        return self.root / "sd3.safetensors"

    @property
    def lora(self) -> Path:
        return self.root / "tsdsr"

    @property
    def embeddings(self) -> Path:
        return self.root / "embeddings"


def write(root: Path, vae_widths: tuple[int, ...] = FULL_WIDTHS) -> SmallSD3:
    """Write everything. ComfyUI knows SD3's VAE by its full width only; narrower ones are for diffusers alone."""
    transformer, vae = build_transformer(), build_vae(vae_widths)
    files = write_folder(root, transformer, vae)
    single = {f"model.diffusion_model.{k}": v for k, v in original_transformer(transformer.state_dict()).items()}
    single |= {f"first_stage_model.{k}": v for k, v in original_vae(vae.state_dict()).items()}
    save_file({name: tensor.contiguous() for name, tensor in single.items()}, files.checkpoint)
    write_lora(files.lora, transformer, vae)
    return files


def write_folder(root: Path, transformer: nn.Module, vae: nn.Module) -> SmallSD3:
    """Fill both networks, on their device, and write them as a diffusers folder, with embeddings."""
    files = SmallSD3(root)
    generator = torch.Generator(next(transformer.parameters()).device).manual_seed(0)
    fill(transformer, generator)
    fill(vae, generator)
    transformer.save_pretrained(files.folder / "transformer")
    vae.save_pretrained(files.folder / "vae")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(files.folder / "scheduler")
    files.embeddings.mkdir()
    torch.save(0.5 * normal((1, 333, 4096), generator).cpu(), files.embeddings / "prompt_embeds.pt")
    torch.save(normal((1, 2048), generator).cpu(), files.embeddings / "pool_embeds.pt")
    return files


def write_sd35(root: Path, vae: Path) -> SmallSD3:
    """A small SD3.5-medium, whose first block has a second attention; with the VAE of another folder."""
    files = SmallSD3(root)
    transformer = build_transformer(**SD35)
    fill(transformer, torch.Generator().manual_seed(1))
    transformer.save_pretrained(files.folder / "transformer")
    (files.folder / "vae").symlink_to(vae, target_is_directory=True)
    single = {f"model.diffusion_model.{k}": v for k, v in original_transformer(transformer.state_dict()).items()}
    save_file({name: tensor.contiguous() for name, tensor in single.items()}, files.checkpoint)
    return files


def build_transformer(**changes) -> SD3Transformer2DModel:
    sizes = {"num_layers": BLOCKS, "num_attention_heads": HEADS, "caption_projection_dim": 64 * HEADS}
    sizes |= {"attention_head_dim": 64, "pos_embed_max_size": 192, "pooled_projection_dim": 2048}
    return SD3Transformer2DModel(sample_size=128, joint_attention_dim=4096, **sizes | changes).eval()


def build_vae(widths: tuple[int, ...]) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=2,
        latent_channels=16,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


def normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Standard normal numbers, on the generator's device."""
    return torch.randn(tuple(shape), generator=generator, device=generator.device)


@torch.no_grad()
def fill(network: nn.Module, generator: torch.Generator) -> None:
    """Random weights at which outputs are of order 1 and no part is without effect."""
    modules = dict(network.named_modules())
    for name, weight in network.named_parameters():
        noise = normal(weight.shape, generator)
        if isinstance(modules[name.rpartition(".")[0]], nn.GroupNorm):
            weight.copy_(1 + 0.2 * noise if name.endswith("weight") else 0.1 * noise)
        elif weight.ndim >= 2:
            gain = {"encoder.conv_out.weight": 1.6, "decoder.conv_out.weight": 0.4}.get(name, 1.0)
            weight.copy_(noise * gain * (0.5 if "norm" in name else 1) / weight[0].numel() ** 0.5)
        else:
            weight.copy_(noise * 0.1)


def write_lora(folder: Path, transformer: nn.Module, vae: nn.Module, rank: int = RANK) -> None:
    """Both files as peft saves them, under the published prefix."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(2)
    for network, modules, name in (
        (transformer, TRANSFORMER_MODULES, "transformer.safetensors"),
        (vae, VAE_MODULES, "vae.safetensors"),
    ):
        network.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=modules))
        weights = get_peft_model_state_dict(network, adapter_name="default")
        halves = {f"transformer.{key}": random_half(key, weight, generator) for key, weight in weights.items()}
        save_file(halves, folder / name)


def random_half(name: str, weight: Tensor, generator: torch.Generator) -> Tensor:
    """Changes of a few percent to every weight."""
    noise = torch.randn(weight.shape, generator=generator)
    return noise / weight[0].numel() ** 0.5 if ".lora_A" in name else noise * 0.1 / weight.shape[1] ** 0.5


def original_transformer(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' names and order -> those of Stability's own checkpoints."""
    result = {"pos_embed": state["pos_embed.pos_embed"]}
    for kind in ("weight", "bias"):
        for name, original in ORIGINAL_NAMES.items():
            result[f"{original}.{kind}"] = state[f"{name}.{kind}"]
        result[f"final_layer.adaLN_modulation.1.{kind}"] = halves_swapped(state[f"norm_out.linear.{kind}"])
        for block in range(BLOCKS):
            here, there = f"transformer_blocks.{block}", f"joint_blocks.{block}"
            for original, names in QKV.items():
                keys = [f"{here}.{name}.{kind}" for name in names]
                if keys[0] in state:
                    result[f"{there}.{original}.qkv.{kind}"] = torch.cat([state[key] for key in keys])
            for name, original in ORIGINAL_BLOCK_NAMES.items():
                key = f"{here}.{name}"
                if f"{key}.{kind}" in state:
                    tensor = state[f"{key}.{kind}"]
                    result[f"{there}.{original}.{kind}"] = halves_swapped(tensor) if key in SWAPPED else tensor
    return result


def halves_swapped(tensor: Tensor) -> Tensor:
    """diffusers keeps scale before shift where the original has shift before scale."""
    return torch.cat(tensor.chunk(2)[::-1])


def original_vae(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {original_vae_name(name): (t[:, :, None, None] if is_linear(name, t) else t) for name, t in state.items()}


def is_linear(name: str, tensor: Tensor) -> bool:
    return "attentions" in name and tensor.ndim == 2


def original_vae_name(name: str) -> str:
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0.", "mid.attn_1.").replace("group_norm", "norm")
    for ours, original in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
        name = name.replace(ours, original)
    return name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")


def write_text_encoders(folder: Path) -> None:
    """Both CLIPs of SD3, of its widths but shallow, with a vocabulary of single letters; no T5."""
    letters = [chr(code) for code in range(33, 127)]
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: index for index, name in enumerate(names)}
    for end, width in (("", 768), ("_2", 1280)):
        tokenizer = folder / f"tokenizer{end}"
        tokenizer.mkdir()
        (tokenizer / "vocab.json").write_text(json.dumps(vocabulary))
        (tokenizer / "merges.txt").write_text("#version: 0.2\n")
        files = str(tokenizer / "vocab.json"), str(tokenizer / "merges.txt")
        CLIPTokenizer(*files, model_max_length=77).save_pretrained(tokenizer)
        config = CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=width,
            projection_dim=width,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=len(vocabulary) - 2,
            eos_token_id=len(vocabulary) - 1,
        )
        CLIPTextModelWithProjection(config).save_pretrained(folder / f"text_encoder{end}")
    clip, t5 = ["transformers", "CLIPTextModelWithProjection"], ["transformers", "T5EncoderModel"]
    index = {
        "_class_name": "StableDiffusion3Pipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        **{"text_encoder": clip, "text_encoder_2": clip, "text_encoder_3": t5},
        **{"tokenizer": ["transformers", "CLIPTokenizer"], "tokenizer_2": ["transformers", "CLIPTokenizer"]},
        "tokenizer_3": ["transformers", "T5TokenizerFast"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


@contextmanager
def step_of_tsd_sr(step: OneStep) -> Iterator[None]:
    """TSD-SR's LoRA runs with another step for as long as the context lasts."""
    changed = replace(tsd_sr.FAMILY, recipes={"tsd-sr": replace(tsd_sr.TSD_SR, step=step)})
    FAMILIES.remove(changed.name)
    FAMILIES.register(changed)
    try:
        yield
    finally:
        FAMILIES.remove(changed.name)
        FAMILIES.register(tsd_sr.FAMILY)
