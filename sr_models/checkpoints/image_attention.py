"""What networks that attend to a picture as well as to a prompt have in common: one condition, and their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from .weights_file import shortened

Placed = tuple[str, dict[str, Tensor]]
PICTURE_TOKENS = 145  # RAM's: the mean and 12 x 12 pixels
IMAGE = "image_attentions"


def joined(prompt: Tensor, picture: Tensor) -> Tensor:
    """Both in one condition, so that they go through any network's code together: prompt (B, n, c) and picture
    (B, 145, d), d up to c -> (B, n + 145, c), the picture padded with zeros."""
    padded = F.pad(picture.to(prompt), (0, prompt.shape[-1] - picture.shape[-1]))
    return torch.cat([prompt, padded.expand(len(prompt), -1, -1)], dim=1)


def with_picture(condition: Tensor, picture: Tensor) -> Tensor:
    """A condition from `joined` with another picture."""
    return joined(condition[:, :-PICTURE_TOKENS], picture)


def split(condition: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The inverse of `joined`; `width` is the picture's."""
    return condition[:, :-PICTURE_TOKENS], condition[:, -PICTURE_TOKENS:, :width]


def modules_of(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Image attentions by the names of their modules, as `mid_block.image_attentions.0`."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        block, _, rest = name.partition(f".{IMAGE}.")
        number, _, parameter = rest.partition(".")
        found.setdefault(f"{block}.{IMAGE}.{number}", {})[parameter] = tensor
    return found


def modules_at(places: Iterable[str], tensors: Mapping[str, Tensor], lora: str, target: str) -> list[Placed]:
    """Each attention to the prompt of a network, as `mid_block.attentions.0`, with the weights of the attention to the
    picture that comes after it.

    `lora` starts the message of the UserError for other places than those of the weights, and `target` names the
    network's model.
    """
    found, wanted = modules_of(tensors), {place.replace("attentions", IMAGE): place for place in places}
    different = wanted.keys() ^ found.keys()
    if different:
        raise UserError(
            f"{lora}, but its image attentions are not those of {target} (they differ at "
            f"{shortened(sorted(different))}): use another one, or download the LoRA again."
        )
    return [(wanted[name], weights) for name, weights in found.items()]
