"""RAM under ComfyUI's model management, and prompts with its tags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfy import model_management
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from torch import Tensor

from ..sr_models.errors import UserError
from ..sr_models.families.tagger import Tagger
from .host_image_attention import Seen
from .host_lora import require_carried
from .host_prompts import PICTURE

PROMPT_TOKENS = 77  # more tags are cut, as published
Conditioning = list[list[Any]]


@dataclass(frozen=True)
class HostedTagger:
    """A tagger, and ComfyUI's patcher of its network."""

    tagger: Tagger
    patcher: ModelPatcher

    def loaded(self) -> Tagger:
        """The tagger with its network on the device."""
        model_management.load_models_gpu([self.patcher], force_full_load=True)
        self.patcher.model.to(self.patcher.load_device)  # with --novram ComfyUI does not move plain modules
        return self.tagger

    def second_look(self, picture: Tensor) -> Tensor:
        return self.loaded().second_look(picture)


def adopt(tagger: Tagger) -> HostedTagger:
    devices = model_management.get_torch_device(), model_management.text_encoder_offload_device()
    return HostedTagger(tagger, ModelPatcher(tagger.network, *devices))


def tagged(
    hosted: HostedTagger, images: Tensor, model: ModelPatcher, clip: CLIP, text: str
) -> tuple[Conditioning, str]:
    """The CONDITIONING for images (B, 3, H, W), with the prompt of the LoRA that the MODEL carries and the embedding of
    each image, and the tags, a line for each image. Raises UserError for a LoRA that does not use tags."""
    lora = require_carried(model).lora
    family, text = lora.family, text or lora.family.recipe(lora.recipe).prompt
    if not family.tagged_prompt:
        raise UserError(f"{family.title} does not use tags: connect One-Step SR Prompt in place of One-Step SR Tags.")
    tagger = hosted.loaded()
    embeddings = torch.cat([tagger.embedding(image) for image in images.split(1)])
    tags = [line for one in embeddings.split(1) for line in tagger.tags(one)]
    prompts = [family.tagged_prompt.format(tags=line, text=text) for line in tags]
    encoded = [clip.encode_from_tokens(clip.tokenize(prompt)) for prompt in prompts]
    prompt = torch.cat([prompt[:, :PROMPT_TOKENS] for prompt in encoded])
    return [[prompt, {PICTURE: Seen(images, embeddings, hosted.second_look)}]], "\n".join(tags)
