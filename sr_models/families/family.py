"""What a published method is here: how its files are recognised, how it takes its step, and how it is opened.

There are two kinds. A `ModelFamily` opens by itself. A `LoraFamily` works on a Stable Diffusion that a host brings:
diffusers, or ComfyUI. Hosts ask a family's data and never its name, so that a new method is one file in this folder
and one line in `registry.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from ..checkpoints.conditions import Condition as FileCondition
from ..checkpoints.header import Header
from ..checkpoints.low_rank import Adapter
from ..checkpoints.prompt_embeddings import PromptEmbeddings
from ..core.model import Condition, Conditioner, Fixed, SRModel
from ..core.process import Level, Process
from ..core.recipe import Recipe
from ..core.step import Step
from ..errors import UserError
from .bases import BaseKind


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """What every method has.

    Attributes:
        name: in the registry.
        title: of the method, for sentences.
        licence: of the published weights.
        citation: of the paper, for lists.
        condition: which files are this method's.
        recipes: by the names that users choose them by; none where each file brings its own.
        summary: what a file of it is, in a few words.
    """

    name: str
    title: str
    licence: str
    citation: str
    condition: FileCondition
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    summary: Callable[[Header], str]

    def recipe(self, name: str) -> Recipe:
        """Raises UserError for a name that this method does not have."""
        if not self.recipes:
            raise UserError(f"{self.title} models bring a recipe of their own: leave {name!r} out.")
        if name not in self.recipes:
            raise UserError(f"Recipe {name!r} is unknown for {self.title}: choose one of {', '.join(self.recipes)}.")
        return self.recipes[name]


# Methods that open by themselves


@dataclass(frozen=True)
class OpenOptions:
    """What `load` was told; None leaves the choice to the family.

    Attributes:
        autoencoder: the file of one, for methods that need it.
        recipe: one of the family's.
        dtype: of the weights and the computation.
        budget: of the autoencoder, as `AutoencoderCodec` takes it.
    """

    autoencoder: Path | None = None
    recipe: str | None = None
    dtype: torch.dtype = torch.float32
    budget: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelFamily(Family):
    """Attributes:
    outline: header, and a recipe's name or None -> the recipe that `open` would take, and the codec's factor.
    open: onto the CPU.
    """

    outline: Callable[[Header, str | None], tuple[Recipe, int]]
    open: Callable[[Header, OpenOptions], OpenedModel]


# Methods that are a LoRA on a Stable Diffusion


Encode = Callable[[str], Condition]


def fixed_prompt(encode: Encode, prompt: str) -> Conditioner:
    """One prompt for every picture."""
    return Fixed(encode(prompt))


class BaseStep(Step, Protocol):
    """A step at a timestep of a base's process, which has to be told the process; see `OneStep`."""

    @property
    def timestep(self) -> float: ...

    def on(self, process: Process) -> Step: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class LoraFamily(Family):
    """Recipes have a `BaseStep`, and the prompt that is used where the user gives none.

    Attributes:
        read: the family, a file, and its partner (or None) -> what they hold; called by `registry.read_lora`.
        files: the names of a set's files, the one that tells the kind first; for sets that are a folder.
        near: titles of bases on which it also runs, each with the warning to show.
        prompt_is_fixed: the user's prompt is refused.
        conditioner: how prompts become conditions, where one fixed prompt is not the way. ComfyUI's users connect the
            condition themselves.
    """

    read: Callable[[LoraFamily, Path, Path | None], OneStepLora]
    files: tuple[str, ...] = ()
    near: Mapping[str, str] = field(default_factory=dict)
    prompt_is_fixed: bool = False
    conditioner: Callable[[Encode, str], Conditioner] = fixed_prompt

    def prompt(self, recipe: Recipe, chosen: str | None) -> str:
        """Raises UserError for a choice where there is none."""
        if chosen is not None and self.prompt_is_fixed:
            raise UserError(f"{self.title} runs with a fixed prompt: leave the prompt out.")
        return recipe.prompt if chosen is None else chosen


def start_level(recipe: Recipe, process: Process) -> Level:
    """Where on a base's process the recipe's step begins."""
    return process.level(cast(BaseStep, recipe.step).timestep)


def on_base(recipe: Recipe, process: Process) -> Recipe:
    """The recipe with its step on a base's process."""
    return replace(recipe, step=cast(BaseStep, recipe.step).on(process))


@dataclass(frozen=True)
class OneStepLora:
    """What the files of a one-step LoRA hold.

    Attributes:
        name: the file's.
        base: what it was made for.
        recipe: the name of one of the family's, where the user chooses none.
        network, vae: LoRAs by diffusers' module names.
        replaced: weights that take the place of the network's own, by diffusers' parameter names.
        embeddings: the recipe's prompt, encoded, where the files bring it.
    """

    family: LoraFamily
    name: str
    base: BaseKind
    recipe: str
    network: tuple[Adapter, ...] = ()
    vae: tuple[Adapter, ...] = ()
    replaced: Mapping[str, Tensor] = field(default_factory=dict)
    embeddings: PromptEmbeddings | None = None

    @property
    def sentence(self) -> str:
        """What it is: the beginning of a refusal."""
        return f"{self.name} is a {self.family.title} LoRA for {self.base}"

    def require_base(self, found: BaseKind, target: str) -> tuple[str, ...]:
        """Warnings. Raises UserError for a base that it was not made for; `target` says where that was found."""
        if found.title in self.family.near and found.title != self.base.title:
            return (self.family.near[found.title],)
        if self.base.suits(found):
            return ()
        raise UserError(f"{self.sentence}, but {target} is {found}: use {self.base}.")


# What opening gives


class AppliedAdapter(Protocol):
    """An adapter on an opened model, whose strength can be changed between runs."""

    @property
    def name(self) -> str: ...

    @property
    def strength(self) -> float: ...

    def set_strength(self, strength: float) -> None: ...


@dataclass(frozen=True)
class OpenedModel:
    """An SR model, ready to run, and what its host should know.

    Attributes:
        modules: the torch modules in it, for hosts that move them; none where ComfyUI brings its own MODEL and VAE.
        takes_turns: the modules move to the device and back by themselves, one at a time.
        warnings: sentences for the user.
        adapters: LoRAs whose strengths can be changed.
    """

    family: Family
    model: SRModel
    modules: tuple[nn.Module, ...] = ()
    takes_turns: bool = False
    warnings: tuple[str, ...] = ()
    adapters: tuple[AppliedAdapter, ...] = ()

    @property
    def size(self) -> int:
        """Bytes that the weights take on the device."""
        sizes = [sum(p.numel() * p.element_size() for p in module.parameters()) for module in self.modules]
        return max(sizes, default=0) if self.takes_turns else sum(sizes)

    def to(self, device: torch.device) -> OpenedModel:
        """Move the modules, in place, unless they move by themselves."""
        for module in () if self.takes_turns else self.modules:
            module.to(device)
        return self

    @contextmanager
    def on_device(self, device: torch.device) -> Iterator[None]:
        """On the device for as long as the context lasts, on the CPU afterwards."""
        try:
            self.to(device)
            yield
        finally:
            self.to(torch.device("cpu"))
