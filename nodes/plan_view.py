"""The estimate that *Upscale Image (One-Step SR)* shows before a run, requested by the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..sr_models.core.forecast import Forecast, forecast
from ..sr_models.core.options import UpscaleOptions
from ..sr_models.core.recipe import Recipe
from ..sr_models.errors import UserError
from ..sr_models.families.loading import recipe_of
from ..sr_models.families.registry import FAMILIES, identify
from . import host, host_sd, pace, stable_diffusion, upscaling

ROUTE = "/onestep_sr/plan"
GIGABYTE = 1e9
LONG = 100  # seconds; longer times are shown in minutes


@dataclass(frozen=True)
class Question:
    """The page's request: the node connected as SR_MODEL, its widgets, the image's size, the upscale node's widgets."""

    node: str
    model: dict[str, Any]
    width: int
    height: int
    upscale_by: float
    tile: int
    overlap: int


def add_route() -> None:
    """POST a Question as JSON -> {text, width, height}: the line to show, and the result's size or None."""
    host.add_route(ROUTE, answer)


def answer(content: dict[str, Any]) -> dict[str, Any]:
    """Raises KeyError, TypeError or ValueError for content that is not a Question."""
    question = Question(**content)
    size = int(question.height), int(question.width)
    options = UpscaleOptions(float(question.upscale_by), int(question.tile) or None, int(question.overlap))
    try:
        recipe, factor = _recipe(question.node, question.model)
        run = forecast(recipe, factor, size, options)
    except UserError as error:
        return {"text": str(error), "width": None, "height": None}
    return {"text": _line(recipe, run), "width": run.result[1], "height": run.result[0]}


def _recipe(node: str, widgets: dict[str, Any]) -> tuple[Recipe, int]:
    """The recipe and the codec's factor of the node's SR_MODEL, from its widgets."""
    if node == stable_diffusion.MODEL_ID:
        return _lora_recipe(widgets["recipe"], widgets.get("lora")), host_sd.VAE_FACTOR
    model, recipe = widgets["model"], widgets["recipe"]
    if model != upscaling.BUNDLED_NAME and model not in host.weights_files(host.MODEL_FOLDER):
        raise UserError(f"{model} is not in models/{host.MODEL_FOLDER}: choose another model.")
    return recipe_of(upscaling.model_path(model), None if recipe == upscaling.AUTO else recipe)


def _lora_recipe(name: str, lora: str | None) -> Recipe:
    """The recipe of One-Step SR Model; `lora` is the file in Apply One-Step SR LoRA before it, if the page found it."""
    if lora is None or lora not in host.weights_files(stable_diffusion.LORA_FOLDER):
        if name == upscaling.AUTO:
            raise UserError("The estimate needs Apply One-Step SR LoRA before One-Step SR Model.")
        return FAMILIES.lora_recipes[name]
    recipes = identify(host.weights_path(lora, stable_diffusion.LORA_FOLDER)).recipes
    return recipes.get(name) or next(iter(recipes.values()))


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
