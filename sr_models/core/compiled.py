"""`torch.compile` for a model's networks, which fall back to running as they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from warnings import warn

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .memory import is_out_of_memory
from .model import Denoiser, Pass, SRModel
from .report import Notice


def compiled(model: SRModel, notice: Notice = warn) -> SRModel:
    """The model with networks that are compiled when they first run, in place; CUDA graphs on CUDA.

    The first tile of each size takes up to minutes. Results are equal within rounding. Networks that a host runs are
    left as they are.

    notice: called with a sentence if compilation fails, for example because there is no compiler. The network then runs
    without it.
    """
    detail, look = model.detail, model.by_picture

    def fast(denoiser: Denoiser) -> Denoiser:
        _compile(denoiser, notice)
        return denoiser

    return replace(
        model,
        denoiser=fast(model.denoiser),
        detail=None if detail is None else replace(detail, at=lambda position: fast(detail.at(position))),
        passes=_CompiledPasses(model.passes, notice) if model.passes else (),
        by_picture=None if look is None else lambda picture: compiled(look(picture), notice),
    )


@dataclass(frozen=True)
class _CompiledPasses:
    """The passes at the current strengths, each with a compiled network."""

    passes: Iterable[Pass]
    notice: Notice

    def __iter__(self) -> Iterator[Pass]:
        for each in self.passes:
            _compile(each.denoiser, self.notice)
            yield each


def _compile(denoiser: Denoiser, notice: Notice) -> None:
    network: Any = getattr(denoiser, "network", None)
    if isinstance(network, nn.Module) and network._compiled_call_impl is None:
        network._compiled_call_impl = CompiledCall(network, notice)  # copies of the network are made without it


class CompiledCall:
    """Takes the place of a network's call.

    A compiled network is for one size of input only, and so that a run's last tiles, when they are fewer, are not a
    size of their own, they are filled up to as many as before where that at most doubles them.
    """

    def __init__(self, network: nn.Module, notice: Notice):
        self.network, self.notice = network, notice
        self.compiled: Any = None
        self.most: dict[torch.Size, int] = {}  # tiles at once, by the size of a tile

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._filled_up(args, kwargs)
        except Exception as error:
            self.most = {}
            if is_out_of_memory(error):
                raise
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
        result = self.network._call_impl(*args, **kwargs)  # raises an error of the network's own
        self.network._compiled_call_impl = None
        self.notice(f"torch.compile failed ({reason}): the network runs without it, at its usual speed.")
        return result

    def _filled_up(self, args: Any, kwargs: Any) -> Any:
        latent = next(leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        count, size = len(latent), latent.shape[1:]
        most = max(count, self.most.get(size, 0))
        most = self.most[size] = most if most <= 2 * count else count
        args, kwargs = pytree.tree_map(lambda leaf: _repeated(leaf, count, most), (args, kwargs))
        self.compiled = self.compiled or self._compile(latent.device)
        on_graph = latent.device.type == "cuda"  # where the next call overwrites the result
        return pytree.tree_map(lambda leaf: _first(leaf, count, most, on_graph), self.compiled(*args, **kwargs))

    def _compile(self, device: torch.device) -> Any:
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        return torch.compile(self.network._call_impl, mode=mode, dynamic=False)


def _repeated(leaf: Any, count: int, most: int) -> Any:
    """A tensor for `count` tiles, with the last one repeated up to `most`."""
    if most == count or not isinstance(leaf, Tensor) or leaf.ndim == 0 or len(leaf) != count:
        return leaf
    return torch.cat([leaf, leaf[-1:].expand(most - count, *leaf.shape[1:])])


def _first(leaf: Any, count: int, most: int, on_graph: bool) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    own = leaf[:count] if leaf.ndim and len(leaf) == most else leaf
    return own.clone() if on_graph else own
