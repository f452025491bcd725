"""The registry of all methods, which identifies the method of a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..checkpoints.conditions import is_pipeline
from ..checkpoints.header import Header, read_header
from ..checkpoints.weights_file import beside
from ..core.recipe import Recipe
from ..errors import UserError
from . import (
    adcsr,
    bundled,
    conv_sr,
    gdpo_sr,
    hypir,
    invsr,
    omgsr_s,
    osediff,
    pisa_sr,
    resshift,
    s3diff,
    tad_faceir,
    tad_seesr,
    trained_here,
    tsd_sr,
)
from .family import Family, LoraFamily, ModelFamily, OneStepLora
from .other_kinds import OTHER_KINDS

LIKELY = 0.5  # of the conditions of a method; a file that meets more may be a broken one of it


class Registry:
    """Families, in the order in which they are checked for a file."""

    def __init__(self, *families: Family):
        self._families: tuple[Family, ...] = ()
        for family in families:
            self.register(family)

    def register(self, family: Family) -> None:
        """Add a family at the end.

        Raises ValueError, without a change, if the name is taken, if the condition accepts every file, or if a recipe
        of a LoRA has a step without `on`.
        """
        if family.name in {known.name for known in self._families}:
            raise ValueError(f"a family named {family.name!r} is already registered")
        if not family.condition.missing(Header(Path("empty"), {})):
            raise ValueError(f"{family.name!r} would match every file: its condition requires nothing")
        if isinstance(family, LoraFamily) and not all(hasattr(r.step, "on") for r in family.recipes.values()):
            raise ValueError(f"{family.name!r} has a recipe with a step that cannot run on a base")
        self._families = (*self._families, family)

    def remove(self, name: str) -> None:
        """Remove a family."""
        self._families = tuple(family for family in self._families if family.name != name)

    def __iter__(self) -> Iterator[Family]:
        return iter(self._families)

    @property
    def loras(self) -> list[LoraFamily]:
        return [family for family in self if isinstance(family, LoraFamily)]

    @property
    def lora_recipes(self) -> dict[str, Recipe]:
        """All recipes of LoRAs by name. If methods share a name, it is the first one's recipe."""
        found: dict[str, Recipe] = {}
        for name, recipe in (item for family in self.loras for item in family.recipes.items()):
            found.setdefault(name, recipe)
        return found

    @property
    def model_recipes(self) -> dict[str, Recipe]:
        """Recipes that can be chosen for files of methods that open by themselves, by name."""
        return {name: recipe for family in self._models for name, recipe in family.recipes.items()}

    @property
    def files_beside(self) -> list[str]:
        """Names of the files that models need in their folder."""
        return [name for family in self._models for name in family.beside]

    @property
    def _models(self) -> list[ModelFamily]:
        return [family for family in self if isinstance(family, ModelFamily)]

    def identify(self, header: Header) -> Family:
        """The family of a file. For any other file, raises a UserError that says what it is."""
        for family in self:
            if not family.condition.missing(header):
                _require_readable(header)
                return family
        for kind in OTHER_KINDS:
            if not kind.condition.missing(header):
                raise UserError(f"{header.name} is {kind.title}: {kind.advice}.")
        _require_readable(header)
        nearest = max(self, key=lambda family: family.condition.share(header))
        hint = ""
        if nearest.condition.share(header) > LIKELY:
            hint = f" (it is most similar to {nearest.title}, but {nearest.condition.missing(header)})"
        raise UserError(
            f"{header.name} is not a supported model{hint}: choose a TAD-SR, SinSR or ResShift x4 file, or "
            "a one-step LoRA."
        )


def _require_readable(header: Header) -> None:
    if header.refused:
        raise UserError(header.refused)


FAMILIES = Registry(
    bundled.FAMILY,
    conv_sr.FAMILY,
    resshift.FAMILY,
    tad_faceir.FAMILY,
    adcsr.FAMILY,
    tsd_sr.FAMILY,
    trained_here.FAMILY,
    pisa_sr.FAMILY,
    osediff.FAMILY,
    hypir.FAMILY,
    omgsr_s.FAMILY,
    tad_seesr.FAMILY,
    gdpo_sr.FAMILY,
    s3diff.FAMILY,
    invsr.FAMILY,
)


def identify(path: Path) -> Family:
    """The family of a file. Raises UserError as `Registry.identify` and `read_header` do."""
    return FAMILIES.identify(read_header(path))


def require_model(header: Header) -> ModelFamily:
    """The family of a complete model. Raises UserError as `Registry.identify`, and for LoRAs."""
    family = FAMILIES.identify(header)
    if isinstance(family, ModelFamily):
        return family
    raise UserError(
        f"{header.name} is {family.with_article} LoRA, which needs a Stable Diffusion: use Apply One-Step SR LoRA in "
        "ComfyUI (from models/loras), or --base and --lora on the command line."
    )


def read_lora(path: Path, partner: Path | None = None) -> OneStepLora:
    """Read a one-step LoRA.

    Args:
        path: one of its files, or a folder that contains its files under their published names.
        partner: the second file, for methods with two files, if it is not in the same folder.

    Raises UserError for files that are missing, broken or of another kind, and for two files for the same part.
    """
    file = _in_folder(path) if path.is_dir() else path
    family = identify(file)
    if isinstance(family, LoraFamily):
        return family.read(family, file, partner)
    raise UserError(
        f"{file.name} is {family.with_article} model, not a LoRA: choose it in ComfyUI's Load 4x Super Resolution "
        "Model (One-Step SR), or as --model on the command line."
    )


def files_with(path: Path) -> list[Path]:
    """The files of LoRAs with several, in the places where they would be if `path` was one of them."""
    places = {(name, name.count("/")) for family in FAMILIES.loras for name in family.files}
    return sorted(path.parents[depth] / name for name, depth in places if depth < len(path.parents))


def _in_folder(folder: Path) -> Path:
    """The file that identifies the LoRA in a folder."""
    names = sorted({family.files[0] for family in FAMILIES.loras if family.files})
    if is_pipeline(folder):
        names = [name for name in names if "/" not in name]  # those are the base's own networks
    found = [file for name in names if (file := beside(folder / name, Path(name).name)).is_file()]
    if len(found) > 1:
        raise UserError(f"{folder} contains LoRAs for two kinds of base: move each to its own folder.")
    if not found:
        advice = "choose the LoRA's folder or file" + (", and this one as --base" if is_pipeline(folder) else "")
        raise UserError(f"{folder} does not contain {' or '.join(names)}: {advice}.")
    return found[0]
