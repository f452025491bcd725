"""Open Stable Diffusion 2.1 from a single checkpoint file in Stability's format, such as SD-Turbo or 2.1-base.

Nothing is downloaded: configurations follow from the tensors' shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checkpoints.header import read_header
from ..checkpoints.low_rank import under
from ..checkpoints.prompt_embeddings import PromptEmbeddings
from ..checkpoints.weights_file import WeightsFile, read_weights
from ..core.process import Process, variance_preserving
from ..errors import UserError, reason_of
from .packages import require_transformers
from .sd3_files import VAE_PREFIX, assign, vae_config

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

UNET_PREFIX, TEXT_PREFIX = "model.diffusion_model.", "cond_stage_model.model."
ENTRANCE = f"{UNET_PREFIX}input_blocks.0.0.weight"
EMBEDDING = f"{TEXT_PREFIX}token_embedding.weight"
TITLE = "Stable Diffusion 2.1"
SCALING, HEAD_WIDTH = 0.18215, 64
BETAS, TIMESTEPS = (0.00085, 0.012), 1000
V_DEVIATION = 0.09  # of the last transformer's first bias: more in 2.1's v model, less in 2.1-base (as ComfyUI decides)
VOCABULARY, VOCABULARY_FILES = "openai/clip-vit-large-patch14", ("vocab.json", "tokenizer.json")
START, END, PADDING, LENGTH = 49406, 49407, 0, 77


def is_checkpoint(base: Path) -> bool:
    """Whether `base` is a checkpoint file with a U-Net. Raises UserError as `read_header`."""
    return base.is_file() and ENTRANCE in read_header(base).shapes


def open_checkpoint(path: Path, dtype: torch.dtype) -> tuple[UNet2DConditionModel, Any, Process]:
    """U-Net, VAE and noise process of a checkpoint, frozen, on the CPU. Raises UserError for another one."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    file = _read(path)
    inside, vae_inside = under(file.tensors, UNET_PREFIX), under(file.tensors, VAE_PREFIX)
    try:
        with torch.device("meta"):
            unet = UNet2DConditionModel(**_unet_config(inside))
            vae = AutoencoderKL(**vae_config(vae_inside, SCALING))
        assign(unet, convert_ldm_unet_checkpoint(dict(file.tensors), unet.config), dtype)
        assign(vae, convert_ldm_vae_checkpoint(dict(vae_inside), vae.config), dtype)
    except (KeyError, RuntimeError, ValueError) as error:
        raise _incomplete(path, error) from error
    first, last = (beta**0.5 for beta in BETAS)
    alphas = 1 - torch.linspace(first, last, TIMESTEPS, dtype=torch.float64) ** 2
    return unet, vae, variance_preserving("v" if _predicts_v(inside) else "epsilon", alphas.cumprod(0))


def _read(path: Path) -> WeightsFile:
    file = read_weights(path)
    if EMBEDDING not in file.tensors:
        raise UserError(
            f"{path.name} is not a checkpoint of {TITLE} with its text encoder: choose one, or a diffusers folder."
        )
    return file


def _incomplete(path: Path, error: Exception) -> UserError:
    return UserError(f"{path.name} is not a complete {TITLE} checkpoint ({reason_of(error)}): download it again.")


def _unet_config(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """diffusers' configuration of a checkpoint's U-Net, from the tensors' shapes."""
    blocks = _count(tensors, "input_blocks.")
    levels = 1 + sum(f"input_blocks.{i}.0.op.weight" in tensors for i in range(blocks))
    layers = blocks // levels - 1
    firsts = [1 + level * (layers + 1) for level in range(levels)]
    widths = [tensors[f"input_blocks.{first}.0.out_layers.3.weight"].shape[0] for first in firsts]
    attends = [f"input_blocks.{first}.1.proj_in.weight" in tensors for first in firsts]
    return {
        "block_out_channels": tuple(widths),
        "layers_per_block": layers,
        "down_block_types": tuple("CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attends),
        "up_block_types": tuple("CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attends)),
        "cross_attention_dim": tensors["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        "attention_head_dim": tuple(width // HEAD_WIDTH for width in widths),  # the number of heads, despite its name
        "use_linear_projection": True,
        "in_channels": tensors["input_blocks.0.0.weight"].shape[1],
        "out_channels": tensors["out.2.weight"].shape[0],
    }


def _count(tensors: dict[str, Tensor], prefix: str) -> int:
    return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in tensors if name.startswith(prefix))


def _predicts_v(tensors: dict[str, Tensor]) -> bool:
    last = _count(tensors, "output_blocks.") - 1
    bias = tensors.get(f"output_blocks.{last}.1.transformer_blocks.0.norm1.bias")
    return "v_pred" in tensors or (bias is not None and float(bias.float().std(correction=0)) > V_DEVIATION)


# Prompts


def open_text_encoder(base: Path, *, device: torch.device, dtype: torch.dtype) -> Callable[[str], PromptEmbeddings]:
    """Open the checkpoint's text encoder. Returns a function from a text to its embeddings.

    A checkpoint has no vocabulary. It is read from a folder `tokenizer` beside the file, or from what Hugging Face's
    libraries have downloaded before; the empty text needs none. The function raises UserError for other texts without
    a vocabulary.
    """
    require_transformers("")
    encoder: Any = _text_encoder(base, dtype)
    encoder.to(device)

    @torch.no_grad()
    def encode(text: str) -> PromptEmbeddings:
        ids = _tokens(base, text) if text else [START, END]
        tokens = torch.tensor([ids + [PADDING] * (LENGTH - len(ids))])
        return PromptEmbeddings(encoder(tokens.to(device)).last_hidden_state.float().cpu(), torch.zeros(1, 0))

    return encode


def _text_encoder(path: Path, dtype: torch.dtype) -> CLIPTextModel:
    """OpenCLIP's text encoder without its last layer, as Stable Diffusion 2 uses it."""
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
    from transformers import CLIPTextConfig, CLIPTextModel

    tensors = dict(_read(path).tensors)
    vocabulary, width = tensors[EMBEDDING].shape
    layers = _count(tensors, f"{TEXT_PREFIX}transformer.resblocks.")
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers - 1,
        num_attention_heads=max(1, width // HEAD_WIDTH),
        hidden_act="gelu",
        bos_token_id=START,
        eos_token_id=END,
        pad_token_id=PADDING,
    )
    encoder = CLIPTextModel(config)
    try:
        converted = convert_open_clip_checkpoint(encoder, tensors, TEXT_PREFIX)
        wanted = encoder.state_dict()
        plain = {name.removeprefix("text_model."): tensor for name, tensor in converted.items()}
        found = {name: plain[name.removeprefix("text_model.")] for name in wanted if not name.endswith("position_ids")}
        encoder.load_state_dict({name: tensor.to(dtype) for name, tensor in found.items()}, strict=False, assign=True)
    except (KeyError, RuntimeError) as error:
        raise _incomplete(path, error) from error
    return encoder.eval().requires_grad_(False)


def _tokens(base: Path, text: str) -> list[int]:
    from transformers import CLIPTokenizer

    folder = require_vocabulary(base, f"the prompt {text!r}")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder} cannot be read as a tokenizer ({reason}): download it again.") from error
    return tokenizer(text, truncation=True, max_length=LENGTH).input_ids


def require_vocabulary(base: Path, texts: str) -> Path:
    """The folder of the vocabulary of a checkpoint file. Raises UserError if there is none to read `texts` with."""
    folder = _vocabulary(base)
    if folder is None:
        raise UserError(
            f"{base.name} has no vocabulary to read {texts} with: copy the folder tokenizer of a diffusers folder of "
            "Stable Diffusion 2.1 next to the file, or choose such a folder as --base."
        )
    return folder


def _vocabulary(base: Path) -> Path | None:
    """The folder of a vocabulary on this machine: transformers itself takes a missing one for an empty one."""
    from huggingface_hub import try_to_load_from_cache

    places = [base.with_name("tokenizer")]
    cached = try_to_load_from_cache(VOCABULARY, "vocab.json")
    if isinstance(cached, str):
        places.append(Path(cached).parent)
    return next((place for place in places if any((place / name).is_file() for name in VOCABULARY_FILES)), None)
