"""The estimate that *Upscale Image (One-Step SR)* shows before a run, requested by the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..sr_models.checkpoints.weights_file import Stamp, file_stamps
from ..sr_models.core.forecast import Forecast, forecast
from ..sr_models.core.options import UpscaleOptions
from ..sr_models.core.recipe import Recipe
from ..sr_models.errors import UserError
from ..sr_models.families.family import LoraFamily
from ..sr_models.families.loading import recipe_of
from ..sr_models.families.registry import FAMILIES, identify
from . import host, host_sd, pace, stable_diffusion, upscaling

ROUTE = "/onestep_sr/plan"
GIGABYTE = 1e9
LONG = 100  # seconds; longer times are shown in minutes
MOST_PIXELS = 2**20  # of any length in a question


@dataclass(frozen=True)
class Question:
    """The page's request: the node connected as SR_MODEL, its widgets, the image's size, the upscale node's widgets."""

    node: str
    model: dict[str, Any]
    width: int
    height: int
    upscale_by: float
    tile: int
    overlap: int | None


def add_route() -> None:
    """POST a Question as JSON -> {text, width, height}: the line to show, and the result's size or None."""
    host.add_route(ROUTE, answer)


def answer(content: Any) -> dict[str, Any]:
    """Raises ValueError for content that is not a Question."""
    question = question_of(content)
    options = UpscaleOptions(question.upscale_by, question.tile or None, question.overlap)
    try:
        recipe, factor = _recipe(question.node, question.model)
        run = forecast(recipe, factor, (question.height, question.width), options)
    except UserError as error:
        return {"text": str(error), "width": None, "height": None}
    return {"text": _line(recipe, run), "width": run.result[1], "height": run.result[0]}


def question_of(content: Any) -> Question:
    """The request, its types and ranges checked. Raises ValueError for content that is not a Question."""
    names = [field.name for field in fields(Question)]
    if not isinstance(content, dict) or sorted(content) != sorted(names):
        raise ValueError(f"it must be an object with {', '.join(names)}")
    if not isinstance(content["model"], dict):
        raise ValueError("model must be an object")
    overlap = int(_number(content, "overlap", least=-1))
    return Question(
        _text(content, "node"),
        content["model"],
        width=int(_number(content, "width", least=1)),
        height=int(_number(content, "height", least=1)),
        upscale_by=float(_number(content, "upscale_by")),
        tile=int(_number(content, "tile")),
        overlap=None if overlap < 0 else overlap,
    )


def _number(content: dict[str, Any], name: str, least: int = 0) -> float:
    value = content[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= MOST_PIXELS:
        raise ValueError(f"{name} must be a number from {least} to {MOST_PIXELS}")
    return value


def _text(content: dict[str, Any], name: str) -> str:
    value = content.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text")
    return value


def _recipe(node: str, widgets: dict[str, Any]) -> tuple[Recipe, int]:
    """The recipe and the codec's factor of the node's SR_MODEL, from its widgets."""
    recipe = _text(widgets, "recipe")
    if node == stable_diffusion.MODEL_ID:
        return _lora_recipe(recipe, widgets.get("lora")), host_sd.VAE_FACTOR
    model = _text(widgets, "model")
    if model != upscaling.BUNDLED_NAME and model not in host.weights_files(host.MODEL_FOLDER):
        raise UserError(f"{model} is not in models/{host.MODEL_FOLDER}: choose another model.")
    [stamp] = file_stamps([upscaling.model_path(model)])
    return _recipe_of_file(stamp, None if recipe == upscaling.AUTO else recipe)


@lru_cache(maxsize=64)
def _recipe_of_file(stamp: Stamp, recipe: str | None) -> tuple[Recipe, int]:
    """`recipe_of`, which reads each file once: the header of a large torch file takes tens of milliseconds."""
    return recipe_of(Path(stamp[0]), recipe)


def _lora_recipe(name: str, lora: Any) -> Recipe:
    """The recipe of One-Step SR Model; `lora` is the file in Apply One-Step SR LoRA before it, if the page found it."""
    if name != upscaling.AUTO and name not in FAMILIES.lora_recipes:
        raise ValueError("recipe must be one of the node's choices")
    if lora not in host.weights_files(stable_diffusion.LORA_FOLDER):
        if name == upscaling.AUTO:
            raise UserError("The estimate needs Apply One-Step SR LoRA before One-Step SR Model.")
        return FAMILIES.lora_recipes[name]
    [stamp] = file_stamps([host.weights_path(lora, stable_diffusion.LORA_FOLDER)])
    recipes = _recipes_of_lora(stamp)
    return recipes.get(name) or next(iter(recipes.values()))


@lru_cache(maxsize=64)
def _recipes_of_lora(stamp: Stamp) -> Mapping[str, Recipe]:
    """The recipes of a LoRA's family; each file is read once. Raises UserError for files that are no one-step LoRA."""
    path = Path(stamp[0])
    family = identify(path)
    if not isinstance(family, LoraFamily):
        raise UserError(f"{path.name} is a {family.title} model, not a LoRA: choose another file.")
    return family.recipes


def _line(recipe: Recipe, run: Forecast) -> str:
    count = run.columns * run.rows
    tiles = "1 tile" if count == 1 else f"{count} tiles ({run.columns} x {run.rows})"
    seconds = pace.expected_seconds(recipe.name, run.work)
    time = "time known after a run" if seconds is None else f"about {_duration(seconds)}"
    return (
        f"{run.result[1]} x {run.result[0]} px: {tiles} of {run.tile[1]} x {run.tile[0]} px, "
        f"{_size(run.memory)} of main memory, {time}"
    )


def _size(amount: int) -> str:
    return f"{amount / 1e6:.0f} MB" if amount < GIGABYTE else f"{amount / GIGABYTE:.1f} GB"


def _duration(seconds: float) -> str:
    if seconds < LONG:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min"
