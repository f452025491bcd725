"""Checks whether a LoRA fits a network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ..errors import UserError
from .low_rank import Adapter
from .weights_file import shortened


def require_fit(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]], lora: str, target: str, base: str) -> None:
    """Raise UserError unless the target has a weight of matching shape for every module of the adapter's update, both
    have the same transformer blocks, and the update has every module of the target that the adapter's method trains.

    `shapes` are the target's weight shapes by diffusers' module names. The rest is for the message: `lora` describes
    the LoRA, `target` names the network, and `base` is the base that the LoRA needs. If a module has more outputs than
    its update, the update is applied to the first ones: in SD3.5 medium, `norm1.linear` has the outputs that it shares
    with SD3 first, and then those for a second attention.
    """
    update = adapter.update
    absent = sorted(update.keys() - shapes.keys())
    if absent:
        raise UserError(
            f"{lora}, but {target} lacks {len(absent)} of the LoRA's modules ({shortened(absent)}): use {base}."
        )
    if _blocks(update) != _blocks(shapes):
        raise UserError(
            f"{lora}, but it changes only {len(_blocks(update))} of the {len(_blocks(shapes))} transformer blocks of "
            f"{target}: use {base}, or download the file again."
        )
    trained = [module for module in shapes if re.fullmatch(adapter.trained, module)]
    left_out = sorted(set(trained) - update.keys())
    if left_out:
        raise UserError(
            f"{lora}, but it is incomplete: {len(left_out)} of the {len(trained)} modules of {target} that it should "
            f"change are missing ({shortened(left_out)}): download it again."
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
    """The part of a weight that an update with `rows` rows changes: all of it, or SD3's six of SD3.5's nine parts."""
    return (rows, *shape[1:]) if rows * 9 == shape[0] * 6 else shape


def _blocks(modules: Iterable[str]) -> set[str]:
    return {module.split(".")[1] for module in modules if module.startswith("transformer_blocks.")}
