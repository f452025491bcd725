"""Prompts for Stable Diffusion 3: its text encoders from a diffusers folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import prompt_embeddings
from ..checkpoints.prompt_embeddings import PromptEmbeddings
from ..errors import UserError
from .packages import require_transformers


def open_text_encoders(base: Path, *, device: torch.device, dtype: torch.dtype) -> Callable[[str], PromptEmbeddings]:
    """The text encoders of a diffusers folder: a function from a text to its embeddings.

    The third one, T5, may be missing: SD3 then gets zeros for its part. Raises UserError for a single-file
    checkpoint, and where the `transformers` package or the other two encoders are missing.
    """
    if not base.is_dir():
        raise UserError(
            f"{base.name} is a single file, which holds no tokenizers to encode the prompt with: give the LoRA's "
            f"prompt embeddings ({prompt_embeddings.PROMPT_FILE} and {prompt_embeddings.POOLED_FILE}), or a diffusers "
            "folder."
        )
    require_transformers(", or give the LoRA's prompt embeddings")
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import AutoTokenizer, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel

    # Part by part: what a pipeline's own index names may be code in the folder.
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
            parts[f"text_encoder{end}"] = encoder.from_pretrained(
                str(base), subfolder=f"text_encoder{end}", torch_dtype=dtype
            ).to(device)
            parts[f"tokenizer{end}"] = tokenizer.from_pretrained(str(base), subfolder=f"tokenizer{end}")
        # Where there is no T5, diffusers asks the transformer how wide its zeros have to be, and nothing else.
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
        f"{base} has no text encoders that can be read ({reason}): give the LoRA's prompt embeddings instead."
    )
