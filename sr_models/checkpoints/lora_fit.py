"""Whether a LoRA fits the network that it is for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..errors import UserError
from .low_rank import Update
from .weights_file import shortened


def require_fit(update: Update, shapes: Mapping[str, tuple[int, ...]], lora: str, target: str, base: str) -> None:
    """Raise UserError unless every module of the update is among the target's weights and takes its shape, and
    no transformer block is left out.

    `shapes` are the target's weight shapes by diffusers' module names. The rest is for the sentence: `lora` says what
    the file is, `target` what it was given, and `base` what it needs. A base with more outputs in a module than its
    update takes it on its first ones: in SD3.5-medium `norm1.linear` modulates a second attention after what it
    shares with SD3.
    """
    absent = sorted(update.keys() - shapes.keys())
    if absent:
        raise UserError(
            f"{lora}, but {target} lacks {len(absent)} of the modules that it changes ({shortened(absent)}): "
            f"use {base}."
        )
    if _blocks(update) != _blocks(shapes):
        raise UserError(
            f"{lora} that changes {len(_blocks(update))} transformer blocks, but {target} has {len(_blocks(shapes))}: "
            f"use {base}, or download the file again."
        )
    unfit = [module for module in update if not update[module].fits(_taken(shapes[module], update[module].rows))]
    if unfit:
        example = unfit[0]
        raise UserError(
            f"{lora}, but {len(unfit)} modules of {target} have other shapes ({example} has {shapes[example]}; the "
            f"LoRA's matrices are {tuple(update[example].down.shape)} and {tuple(update[example].up.shape)}): "
            f"use {base}."
        )


def _taken(shape: tuple[int, ...], rows: int) -> tuple[int, ...]:
    """The part of a weight that an update of so many rows is for: all, or SD3's six of SD3.5's nine parts."""
    return (rows, *shape[1:]) if rows * 9 == shape[0] * 6 else shape


def _blocks(modules: Iterable[str]) -> set[str]:
    return {module.split(".")[1] for module in modules if module.startswith("transformer_blocks.")}
