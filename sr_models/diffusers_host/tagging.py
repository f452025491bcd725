"""Prompts with a picture's tags, and the embedding of the picture for networks that attend to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ..checkpoints.image_attention import joined
from ..checkpoints.prompt_embeddings import PromptEmbeddings
from ..errors import UserError
from ..families.family import Encode, LoraFamily
from ..families.tagger import Tagger
from .offload import Placement


@dataclass(frozen=True)
class TaggedPrompt:
    """The family's prompt with the tags of each picture, which is encoded anew for each; `text` is the user's part."""

    family: LoraFamily
    encode: Encode
    tagger: Tagger
    text: str
    placement: Placement

    def __call__(self, picture: Tensor, index: int) -> PromptEmbeddings:
        with self.placement.on_device(self.tagger.network):
            embedding = self.tagger.embedding(picture)
            [tags] = self.tagger.tags(embedding)
        condition = self.encode(self.family.tagged_prompt.format(tags=tags, text=self.text))
        if not self.family.sees_picture:
            return condition
        return replace(condition, prompt=joined(condition.prompt, embedding))


def require_suitable(family: LoraFamily, tagger: Path | None) -> None:
    """Raise UserError for a tagger that the method has no use for, and if it needs one and there is none."""
    if tagger is not None and not family.tagged_prompt:
        raise UserError(f"{family.title} does not use tags: remove --tagger.")
    if tagger is None and family.sees_picture:
        raise UserError(
            f"{family.title} needs RAM, whose embedding of the picture it attends to: give --tagger and the folder "
            "with ram_swin_large_14m.pth and DAPE.pth."
        )
