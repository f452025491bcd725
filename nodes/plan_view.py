"""The estimate that *Upscale Image (One-Step SR)* shows before a run, requested by the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from ..sr_models.canvas.target import FACTOR, Size, chosen_target
from ..sr_models.canvas.wrap import WRAPS, Wrap
from ..sr_models.checkpoints.weights_file import Stamp, file_stamps
from ..sr_models.core.forecast import LEVELS, Forecast, Level, Need, forecast, needs
from ..sr_models.core.options import UpscaleOptions
from ..sr_models.core.recipe import Recipe
from ..sr_models.errors import UserError
from ..sr_models.families.family import LoraFamily
from ..sr_models.families.loading import recipe_of
from ..sr_models.families.registry import FAMILIES, identify
from . import host, host_sd, pace, stable_diffusion, upscaling

ROUTE = "/onestep_sr/plan"
LONG = 100  # seconds; longer times are shown in minutes
MOST_PIXELS = 2**20  # of any length in a question


@dataclass(frozen=True)
class Question:
    """The page's request: the node connected as SR_MODEL, its widgets, the images' size and number, the upscale node's
    widgets. Width and height are 0 where the page does not know them; then only the model is checked."""

    node: str
    model: dict[str, Any]
    width: int
    height: int
    upscale_by: float
    tile: int
    overlap: int | None
    size: str = FACTOR
    pixels: int = 0
    megapixels: float = 0.0
    wrap: str = WRAPS[0]
    count: int = 1


def add_route() -> None:
    """POST a Question as JSON -> {text, level, width, height, noise}: the line to show, whether its memory is free
    ("fits", "tight" or "too little"; None if unknown), the result's size or None, and whether the model starts from
    noise, None if unknown."""
    host.add_route(ROUTE, answer)


def answer(content: Any) -> dict[str, Any]:
    """Raises ValueError for content that is not a Question."""
    question = question_of(content)
    recipe: Recipe | None = None
    try:
        recipe, factor = _recipe(question.node, question.model)
        if not question.width or not question.height:
            return _answer("", recipe)
        target = chosen_target(question.size, question.pixels, question.megapixels)
        wrap = cast("Wrap", question.wrap)  # other texts are refused
        options = UpscaleOptions(question.upscale_by, question.tile or None, question.overlap, target=target, wrap=wrap)
        run = forecast(recipe, factor, (question.height, question.width), options)
    except UserError as error:
        return _answer(str(error), recipe)
    memory = needs(run, question.count, host.compute_device(), host.free_memory)
    worst = max(memory, key=lambda need: LEVELS.index(need.level)).level
    return _answer(_line(recipe, run, question.count, memory), recipe, run.result, worst)


def _answer(text: str, recipe: Recipe | None, result: Size | None = None, level: Level | None = None) -> dict[str, Any]:
    width, height = (None, None) if result is None else (result[1], result[0])
    noise = None if recipe is None else recipe.step.noises > 0
    return {"text": text, "level": level, "width": width, "height": height, "noise": noise}


def question_of(content: Any) -> Question:
    """The request, its types and ranges checked. Raises ValueError for content that is not a Question."""
    names = {field.name: field.default is MISSING for field in fields(Question)}
    needed = {name for name, is_needed in names.items() if is_needed}
    if not isinstance(content, dict) or not needed <= content.keys() <= names.keys():
        raise ValueError(f"it must be an object with {', '.join(name for name in names if name in needed)}")
    if not isinstance(content["model"], dict):
        raise ValueError("model must be an object")
    overlap = int(_number(content, "overlap", least=-1))
    return Question(
        _text(content, "node"),
        content["model"],
        width=int(_number(content, "width")),
        height=int(_number(content, "height")),
        upscale_by=float(_number(content, "upscale_by")),
        tile=int(_number(content, "tile")),
        overlap=None if overlap < 0 else overlap,
        **_optional(content),
    )


def _optional(content: dict[str, Any]) -> dict[str, Any]:
    """The parts that a page of an earlier version does not send."""
    texts = {name: _text(content, name) for name in ("size", "wrap") if name in content}
    whole = {name: int(_number(content, name)) for name in ("pixels", "count") if name in content}
    return texts | whole | {name: float(_number(content, name)) for name in ("megapixels",) if name in content}


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
    """The recipe of the node that combines a LoRA's parts; `lora` is the file in Apply One-Step SR LoRA before it, if
    the page found it."""
    if name != upscaling.AUTO and name not in FAMILIES.lora_recipes:
        raise ValueError("recipe must be one of the node's choices")
    if lora not in host.weights_files(stable_diffusion.LORA_FOLDER):
        if name == upscaling.AUTO:
            raise UserError(f"The estimate needs Apply One-Step SR LoRA before {upscaling.COMBINER}.")
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
        raise UserError(f"{path.name} is {family.with_article} model, not a LoRA: choose it in {upscaling.LOADER}.")
    return family.recipes


def _line(recipe: Recipe, run: Forecast, images: int, memory: list[Need]) -> str:
    size = f"{run.result[1]} x {run.result[0]} px"
    if not run.work:
        return f"{size}: only shrunk, without the model"
    count = run.columns * run.rows
    tiles = "1 tile" if count == 1 else f"{count} tiles ({run.columns} x {run.rows})"
    seconds = pace.expected_seconds(recipe.name, run.work * images)
    time = "time known after a run" if seconds is None else f"about {_duration(seconds)}"
    each = "" if images == 1 else f"{images} images, each "
    return f"{each}{size}: {tiles} of {run.tile[1]} x {run.tile[0]} px, {time}, {', '.join(map(str, memory))}"


def _duration(seconds: float) -> str:
    if seconds < LONG:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min"
