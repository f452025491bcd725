"""CONDITIONINGs with a row for each picture of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy.samplers import CFGGuider
from comfy.sd import CLIP
from torch import Tensor
from torch.nn import functional as F

from ..sr_models.errors import UserError
from .host_sd import Conditioning

POOLED = "pooled_output"  # ComfyUI's name for it
PICTURE = "onestep_sr_picture"  # the Seen of the pictures, in the dictionary of a CONDITIONING
TOKENS = "onestep_sr_tokens"  # the prompts' numbers of tokens, if they differ


def encoded(clip: CLIP, texts: Sequence[str]) -> Conditioning:
    """The texts as one CONDITIONING with a row for each."""
    known = {text: clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in dict.fromkeys(texts)}
    if len(texts) == 1:
        return known[texts[0]]
    return [_joined(entries) for entries in zip(*(known[text] for text in texts), strict=True)]


def _joined(entries: Sequence[Any]) -> Any:
    """Entries of several texts as one. Shorter prompts are padded, and `row_of` removes the padding."""
    prompts, more = [prompt for prompt, _ in entries], dict(entries[0][1])
    tokens = [prompt.shape[1] for prompt in prompts]
    if len(set(tokens)) > 1:
        more[TOKENS] = tokens
    if isinstance(more.get(POOLED), Tensor):
        more[POOLED] = torch.cat([others[POOLED] for _, others in entries])
    return [torch.cat([F.pad(prompt, (0, 0, 0, max(tokens) - prompt.shape[1])) for prompt in prompts]), more]


def pictures_of(*conditionings: Conditioning) -> int:
    """How many pictures CONDITIONINGs have rows for; 1 if they are for any number. Raises UserError if they differ."""
    counts = sorted({len(prompt) for conditioning in conditionings for prompt, _ in conditioning} - {1})
    if len(counts) > 1:
        raise UserError(f"One prompt is for {counts[0]} images, another for {counts[-1]}: connect as many of each.")
    return max(counts, default=1)


def row_of(prompt: Tensor, more: dict[str, Any], index: int) -> tuple[Tensor, dict[str, Any]]:
    """The entry of a CONDITIONING for one picture of a batch."""
    count, row = len(prompt), index if len(prompt) > 1 else 0
    own = {key: more[key][row : row + 1] for key in (POOLED,) if _has_rows(more.get(key), count)}
    tokens = more[TOKENS][row] if TOKENS in more else prompt.shape[1]
    rest = {key: value for key, value in more.items() if key != TOKENS}
    return prompt[row : row + 1, :tokens], rest | own


def _has_rows(value: Any, count: int) -> bool:
    return isinstance(value, Tensor) and len(value) == count


def require_rows(guider: CFGGuider, pictures: int) -> None:
    """Raise UserError unless the guider's prompts are for this number of latents, and can run at once."""
    for entry in (entry for entries in guider.conds.values() for entry in entries):
        count = 1 if entry.get("cross_attn") is None else len(entry["cross_attn"])
        if count not in (1, pictures):
            raise UserError(
                f"The number of prompts ({count}) is not that of the images ({pictures}): connect one prompt, or one "
                "per image."
            )
        if TOKENS in entry:
            raise UserError(
                f"The prompts of the batch have {min(entry[TOKENS])} to {max(entry[TOKENS])} tokens, but One-Step SR "
                "Sampler needs the same number in all: shorten the long ones, or use Upscale Image (One-Step SR)."
            )
