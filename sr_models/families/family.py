"""A family describes one method: how to recognise its files, which recipes it has, and how to open it.

There are two kinds. A `ModelFamily` is a complete model. A `LoraFamily` needs a Stable Diffusion, which a host
provides: diffusers or ComfyUI. Hosts read a family's data and never check its name, so a new method is one file in this
folder and one line in `registry.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, cast
from warnings import warn

import torch
from torch import Tensor, nn

from ..checkpoints.conditions import Condition as FileCondition
from ..checkpoints.header import Header
from ..checkpoints.low_rank import Adapter
from ..checkpoints.prompt_embeddings import PromptEmbeddings
from ..core.compiled import compiled
from ..core.model import Condition, Conditioner, Fixed, Guided, SRModel
from ..core.process import Level, Process
from ..core.recipe import Recipe
from ..core.report import Notice
from ..core.step import NoisePredictor, PredictedNoise, Step
from ..errors import UserError
from .bases import BaseKind, NetworkKind


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """The attributes of every method.

    Attributes:
        name: unique name in the registry.
        title: the method's title, as used in messages.
        licence: the licence of the published weights.
        citation: the paper, as shown in lists.
        condition: recognises this method's files.
        recipes: by the names that users choose from; empty if each file contains its own.
        summary: header -> a short description of the file.
    """

    name: str
    title: str
    licence: str
    citation: str
    condition: FileCondition
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    summary: Callable[[Header], str]

    @property
    def is_non_commercial(self) -> bool:
        return "non-commercial" in self.licence

    @property
    def with_article(self) -> str:
        """The title as it stands in a sentence: "an OSEDiff"."""
        sounds = self.title.startswith(("A", "E", "I", "O", "S3")) and not self.title.startswith("One")
        return f"{'an' if sounds else 'a'} {self.title}"

    @property
    def licence_notice(self) -> str:
        """A sentence about the licence of the weights, to show when they are first loaded."""
        if self.is_non_commercial:
            return f"{self.title} may not be used commercially. Its licence: {self.licence}."
        return f"Licence of {self.title}: {self.licence}."

    def recipe(self, name: str) -> Recipe:
        """The recipe with this name. Raises UserError if this method does not have it."""
        if not self.recipes:
            raise UserError(f"{self.title} models bring a recipe of their own: leave {name!r} out.")
        if name not in self.recipes:
            raise UserError(f"Recipe {name!r} is unknown for {self.title}: choose one of {', '.join(self.recipes)}.")
        return self.recipes[name]


# Methods that are complete models


@dataclass(frozen=True)
class OpenOptions:
    """The options of `load`; None lets the family choose.

    Attributes:
        autoencoder: the autoencoder's file, for methods that need one.
        recipe: the name of one of the family's recipes.
        dtype: precision of the weights and the computation.
        budget, spill: the autoencoder's memory budget, and the folder for what exceeds it, as in `AutoencoderCodec`.
    """

    autoencoder: Path | None = None
    recipe: str | None = None
    dtype: torch.dtype = torch.float32
    budget: int | None = None
    spill: Path | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelFamily(Family):
    """Attributes:
    outline: header, and a recipe's name or None -> the recipe that `open` uses, and the codec's factor.
    open: header, options -> the model, on the CPU.
    beside: the names of files that are also needed, in the model's folder.
    save: writes the model of a header to a single file; None if there is no such format.
    """

    outline: Callable[[Header, str | None], tuple[Recipe, int]]
    open: Callable[[Header, OpenOptions], OpenedModel]
    beside: tuple[str, ...] = ()
    save: Callable[[Path, Header], None] | None = None


# Methods that are a LoRA for a Stable Diffusion


Encode = Callable[[str], Condition]


def fixed_prompt(encode: Encode, prompt: str) -> Conditioner:
    """One prompt for every picture."""
    return Fixed(encode(prompt))


def guided(encode: Encode, recipe: Recipe) -> Encode:
    """`encode` for the recipe: a text and the recipe's negative prompt as `Guided`, if it uses guidance."""
    if recipe.guidance == 1:
        return encode
    negative = encode(recipe.negative_prompt)
    return lambda text: Guided(encode(text), negative, recipe.guidance)


class BaseStep(Step, Protocol):
    """A step at one timestep that needs the base's process before it can run; see `OneStep`."""

    @property
    def timestep(self) -> float: ...

    def on(self, process: Process) -> Step: ...


Strengths = Mapping[str, float]  # of a LoRA's adapters, by name


def one_pass(step: BaseStep, strengths: Strengths) -> tuple[tuple[BaseStep, Strengths], ...]:
    """The usual passes: one, with the network's adapters at the strengths that the user chose."""
    return ((step, strengths),)


@dataclass(frozen=True, kw_only=True, eq=False)
class LoraFamily(Family):
    """A LoRA method. Its recipes have a `BaseStep`, and the prompt that is used if the user gives none.

    Attributes:
        network: the kind of network that its LoRAs are for.
        read: the family, a file, and its second file (or None) -> the LoRA; called by `registry.read_lora`.
        files: the file names of a LoRA that is a folder, inside it. The first one identifies the method.
        near: titles of other bases that the LoRA also runs on, each with the warning to show.
        prompt_is_fixed: whether a prompt from the user is an error.
        strengths: the lowest and highest strength of an adapter.
        passes: step and the chosen strengths of the network's adapters -> the passes of the network, at least one: the
            step of each, and the scales at which the adapters are added to the weights.
        save: writes a LoRA to a single file; None if there is no such format.
        modulate: a LoRA with a modulator, and a picture (1, 3, H, W) in [0, 1] -> the LoRA for this picture; None if
            the LoRA is the same for all pictures.
        conditioner: creates the conditioner from the encoder and the prompt; by default, one prompt for all pictures.
            In ComfyUI, the user connects the condition instead.
        tagged_prompt: the prompt with a picture's tags, a format of `tags` and `text` (the user's or the recipe's
            prompt); empty if the method was trained without tags.
        sees_picture: whether its network also attends to the tagger's embedding of the picture.
    """

    network: NetworkKind
    read: Callable[[LoraFamily, Path, Path | None], OneStepLora]
    files: tuple[str, ...] = ()
    near: Mapping[str, str] = field(default_factory=dict)
    prompt_is_fixed: bool = False
    strengths: tuple[float, float] = (-2.0, 2.0)
    passes: Callable[[Any, Strengths], Sequence[tuple[BaseStep, Strengths]]] = one_pass
    save: Callable[[Path, OneStepLora], None] | None = None
    modulate: Callable[[OneStepLora, Tensor], OneStepLora] | None = None
    conditioner: Callable[[Encode, str], Conditioner] = fixed_prompt
    tagged_prompt: str = ""
    sees_picture: bool = False

    def prompt(self, recipe: Recipe, chosen: str | None) -> str:
        """The prompt to use: `chosen`, or the recipe's. Raises UserError for a choice if the prompt is fixed."""
        if chosen is not None and self.prompt_is_fixed:
            raise UserError(f"{self.title} has a fixed prompt: remove the prompt.")
        return recipe.prompt if chosen is None else chosen


def start_level(recipe: Recipe, process: Process) -> Level:
    """The noise level of a base's process at which the recipe's step starts."""
    return process.level(cast(BaseStep, recipe.step).timestep)


def on_base(recipe: Recipe, process: Process, predictor: NoisePredictor | None = None) -> Recipe:
    """The recipe, its steps using a base's process, and the LoRA's predictor if its method has one."""
    first, *further = (cast(BaseStep, step).on(process) for step in (recipe.step, *recipe.further))
    if isinstance(first, PredictedNoise):
        first = replace(first, predictor=predictor)
    return replace(recipe, step=first, further=tuple(further))


@dataclass(frozen=True)
class OneStepLora:
    """The contents of a one-step LoRA's files.

    Attributes:
        name: the file's name.
        base: the base that it was made for.
        recipe: the name of the family's recipe to use if the user chooses none.
        network, vae: LoRAs by diffusers' module names.
        replaced, replaced_vae: weights that replace the network's and the VAE's own, by diffusers' parameter names.
        embeddings: the recipe's encoded prompt, if the files contain it.
        image_attentions: attentions that are added to the network, one after each of its attentions to the prompt, by
            diffusers' parameter names.
        control: the weights of a ControlNet, which has image attentions too; empty if the method has none.
        tagger: RAM's files, as in `read_tagger`, for a prompt with the tags of each picture.
        modulator: the network that the family's `modulate` uses; None if the LoRA is the same for all pictures.
        predictor: the network of a `PredictedNoise`; None for methods without one.
        picture: what the predictor sees (1, 3, H, W) in [0, 1] where the host only has a latent; None if not known.
        captions: keep the text encoders, for pictures with a prompt of their own (`SRModel.with_prompt`).
    """

    family: LoraFamily
    name: str
    base: BaseKind
    recipe: str
    network: tuple[Adapter, ...] = ()
    vae: tuple[Adapter, ...] = ()
    replaced: Mapping[str, Tensor] = field(default_factory=dict)
    embeddings: PromptEmbeddings | None = None
    replaced_vae: Mapping[str, Tensor] = field(default_factory=dict)
    image_attentions: Mapping[str, Tensor] = field(default_factory=dict)
    control: Mapping[str, Tensor] = field(default_factory=dict)
    tagger: Path | None = None
    modulator: nn.Module | None = None
    predictor: nn.Module | None = None
    picture: Tensor | None = None
    captions: bool = False

    @property
    def needs_picture(self) -> bool:
        """Whether it depends on a picture that is not known yet."""
        return self.modulator is not None or (self.predictor is not None and self.picture is None)

    def for_picture(self, picture: Tensor) -> OneStepLora:
        """The LoRA for a picture (1, 3, H, W) in [0, 1], without a modulator."""
        if self.predictor is not None:
            return replace(self, picture=picture)
        if self.modulator is None or self.family.modulate is None:
            return self
        return replace(self.family.modulate(self, picture), modulator=None)

    @property
    def strengths(self) -> dict[str, float]:
        """The strengths of all adapters by name."""
        return {adapter.name: adapter.strength for adapter in (*self.network, *self.vae)}

    def with_tagger(self, files: Path | None) -> OneStepLora:
        """The same LoRA with a tagger. Raises UserError if its method does not use tags."""
        if files is not None and not self.family.tagged_prompt:
            raise UserError(f"{self.family.title} does not use tags: remove --tagger.")
        return replace(self, tagger=files)

    def with_captions(self, wanted: bool = True) -> OneStepLora:
        """The same LoRA for pictures with a prompt of their own. Raises UserError if its method has a fixed prompt."""
        if wanted and self.family.prompt_is_fixed:
            raise UserError(f"{self.family.title} has a fixed prompt: remove --captions.")
        return replace(self, captions=wanted)

    def at(self, strengths: Strengths) -> OneStepLora:
        """The same LoRA at other strengths; adapters that are not named keep theirs.

        Raises UserError for adapters that it does not have, and for strengths out of the family's bounds.
        """
        known, (least, most) = self.strengths, self.family.strengths
        for name, strength in strengths.items():
            if name not in known:
                advice = f"choose one of {', '.join(known)}" if known else "remove it, as this file has no strengths"
                raise UserError(f"{self.family.title} has no strength {name!r}: {advice}.")
            if not least <= strength <= most:
                raise UserError(f"Strength {name} is {strength:g}: choose a value from {least:g} to {most:g}.")
        network, vae = (
            tuple(replace(adapter, strength=strengths.get(adapter.name, adapter.strength)) for adapter in adapters)
            for adapters in (self.network, self.vae)
        )
        return replace(self, network=network, vae=vae)

    def passes(self, step: Step) -> Sequence[tuple[BaseStep, Strengths]]:
        """The passes of the network at this LoRA's strengths; see `LoraFamily.passes`."""
        return self.family.passes(step, {adapter.name: adapter.strength for adapter in self.network})

    @property
    def sentence(self) -> str:
        """A description of this LoRA, with which error messages start."""
        return f"{self.name} is {self.family.with_article} LoRA for {self.base}"

    def require_base(self, found: BaseKind, target: str) -> tuple[str, ...]:
        """Warnings for the user. Raises UserError if the LoRA was made for another base.

        `found` is the base to check, and `target` its name in the message.
        """
        if found.title in self.family.near and found.title != self.base.title:
            return (self.family.near[found.title],)
        if self.base.suits(found):
            return ()
        raise UserError(f"{self.sentence}, but {target} is {found}: use {self.base}.")


# Opened models


class AppliedAdapter(Protocol):
    """A LoRA that is applied to an opened model. Its strength can be changed between runs."""

    @property
    def name(self) -> str: ...

    @property
    def strength(self) -> float: ...

    def set_strength(self, strength: float) -> None: ...


@dataclass(frozen=True)
class OpenedModel:
    """An SR model that is ready to run, with information for its host.

    Attributes:
        modules: the model's torch modules, for hosts that move them; empty if it uses ComfyUI's MODEL and VAE.
        takes_turns: whether the model itself moves its modules to the device and back, one at a time.
        warnings: sentences for the user.
        adapters: the applied LoRAs.
    """

    family: Family
    model: SRModel
    modules: tuple[nn.Module, ...] = ()
    takes_turns: bool = False
    warnings: tuple[str, ...] = ()
    adapters: tuple[AppliedAdapter, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of the weights on the device: all modules, or the largest if they take turns."""
        sizes = [sum(p.numel() * p.element_size() for p in module.parameters()) for module in self.modules]
        return max(sizes, default=0) if self.takes_turns else sum(sizes)

    def to(self, device: torch.device) -> OpenedModel:
        """Move the modules to a device, in place, unless they take turns."""
        for module in () if self.takes_turns else self.modules:
            module.to(device)
        return self

    def compiled(self, notice: Notice = warn) -> OpenedModel:
        """With `torch.compile` for the networks, in place; see `core.compiled`."""
        return replace(self, model=compiled(self.model, notice))

    @contextmanager
    def on_device(self, device: torch.device) -> Iterator[None]:
        """A context in which the model is on the device. Afterwards it is moved to the CPU."""
        try:
            self.to(device)
            yield
        finally:
            self.to(torch.device("cpu"))
