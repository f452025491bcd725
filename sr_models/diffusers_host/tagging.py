"""Prompts with a picture's tags, and the embedding of the picture for networks that attend to it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ..checkpoints.image_attention import joined, with_picture
from ..checkpoints.prompt_embeddings import PromptEmbeddings
from ..errors import UserError
from ..families.family import Encode, LoraFamily, OneStepLora
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

    def look_again(self, condition: PromptEmbeddings, picture: Tensor) -> PromptEmbeddings:
        """The condition with the embedding of a picture that has a result in it. The tags stay."""
        with self.placement.on_device(self.tagger.network):
            embedding = self.tagger.second_look(picture)
        return replace(condition, prompt=with_picture(condition.prompt, embedding))


def require_tagger(lora: OneStepLora) -> None:
    """Raise UserError for a LoRA without the tagger that its method needs."""
    if lora.family.sees_picture and lora.tagger is None:
        raise UserError(
            f"{lora.family.title} needs RAM, whose embedding of the picture it attends to: give --tagger and the "
            "folder with ram_swin_large_14m.pth and DAPE.pth."
        )
