"""Encode prompts for Stable Diffusion 3 with the text encoders of a diffusers folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import prompt_embeddings
from ..checkpoints.prompt_embeddings import PromptEmbeddings
from ..errors import UserError
from .folder import open_part
from .packages import require_transformers


def open_text_encoders(base: Path, *, device: torch.device, dtype: torch.dtype) -> Callable[[str], PromptEmbeddings]:
    """Open the text encoders of a diffusers folder. Returns a function from a text to its embeddings.

    The third encoder, T5, may be missing: zeros are used in its place. Raises UserError for a single-file checkpoint,
    and if the `transformers` package or one of the other two encoders is missing.
    """
    if not base.is_dir():
        raise UserError(
            f"{base.name} is a single file without tokenizers, so it cannot encode the prompt: provide the LoRA's "
            f"prompt embeddings ({prompt_embeddings.PROMPT_FILE} and {prompt_embeddings.POOLED_FILE}), or choose a "
            "diffusers folder."
        )
    require_transformers(", or provide the LoRA's prompt embeddings")
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import AutoTokenizer, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel

    # Load each part here: the classes that a pipeline's index names could be code in the folder.
    kinds: list[tuple[str, Any, Any]] = [
        ("", CLIPTextModelWithProjection, CLIPTokenizer),
        ("_2", CLIPTextModelWithProjection, CLIPTokenizer),
        ("_3", T5EncoderModel, AutoTokenizer),
    ]
    parts: dict[str, Any] = {"vae": None, "scheduler": FlowMatchEulerDiscreteScheduler()}
    try:
        for end, encoder, tokenizer in kinds:
            if end == "_3" and not (base / "text_encoder_3").is_dir():
                parts |= {"text_encoder_3": None, "tokenizer_3": None}
                continue
            parts[f"text_encoder{end}"] = open_part(encoder, base, f"text_encoder{end}", dtype).to(device)
            parts[f"tokenizer{end}"] = tokenizer.from_pretrained(str(base), subfolder=f"tokenizer{end}")
        # Without T5, diffusers only uses the transformer for the width of the zeros.
        with torch.device("meta"):
            config: Any = SD3Transformer2DModel.load_config(str(base), subfolder="transformer")
            parts["transformer"] = SD3Transformer2DModel.from_config(config)
        pipeline: Any = StableDiffusion3Pipeline(**parts)
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise _no_encoders(base, error) from error

    @torch.no_grad()
    def encode(prompt: str) -> PromptEmbeddings:
        try:
            encoded, _, pooled, _ = pipeline.encode_prompt(
                prompt, prompt_2=prompt, prompt_3=prompt, device=device, do_classifier_free_guidance=False
            )
        except (OSError, ValueError, TypeError, AttributeError) as error:  # encoders that do not belong together
            raise _no_encoders(base, error) from error
        return PromptEmbeddings(encoded.cpu(), pooled.cpu())

    return encode


def _no_encoders(base: Path, error: Exception) -> UserError:
    reason = str(error).splitlines()[0]
    return UserError(
        f"The text encoders in {base} cannot be read ({reason}): provide the LoRA's prompt embeddings instead."
    )
