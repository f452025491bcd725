"""Encode prompts for Stable Diffusion 1.5, 2.1 and SDXL with the text encoders of a diffusers folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.prompt_embeddings import PromptEmbeddings
from ..errors import UserError
from .folder import open_part
from .packages import require_transformers
from .unet_checkpoint import open_text_encoder


def open_text_encoders(base: Path, *, device: torch.device, dtype: torch.dtype) -> Callable[[str], PromptEmbeddings]:
    """Open the text encoders of a folder, or of a checkpoint file as in `open_text_encoder`. Returns a function from a
    text to its embeddings.

    SDXL uses the second-to-last layer of both encoders; the others use the last layer of their single encoder, and
    `pooled` is (1, 0). Raises UserError if the `transformers` package or an encoder is missing.
    """
    if base.is_file():
        return open_text_encoder(base, device=device, dtype=dtype)
    require_transformers("")
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    kinds: list[Any] = [CLIPTextModel, CLIPTextModelWithProjection]
    ends = ["", "_2"] if (base / "text_encoder_2").is_dir() else [""]
    try:
        tokenizers: list[Any] = [CLIPTokenizer.from_pretrained(str(base), subfolder=f"tokenizer{end}") for end in ends]
        encoders = [
            open_part(kind, base, f"text_encoder{end}", dtype).to(device)
            for kind, end in zip(kinds, ends, strict=False)
        ]
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"The text encoders in {base} cannot be read ({reason}): download the complete folder."
        ) from error

    @torch.no_grad()
    def encode(text: str) -> PromptEmbeddings:
        outputs = []
        for tokenizer, encoder in zip(tokenizers, encoders, strict=True):
            length = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
            tokens = tokenizer(text, return_tensors="pt", **length).input_ids
            outputs.append(encoder(tokens.to(device), output_hidden_states=True))
        if len(outputs) == 1:
            return PromptEmbeddings(outputs[0].last_hidden_state.float().cpu(), torch.zeros(1, 0))
        prompt = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return PromptEmbeddings(prompt.float().cpu(), outputs[-1].text_embeds.float().cpu())

    return encode
