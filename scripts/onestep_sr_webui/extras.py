"""The section in Extras."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gradio as gr
from modules import shared
from modules.scripts_postprocessing import PostprocessedImage, ScriptPostprocessing
from modules.ui_common import create_refresh_button
from modules.ui_components import FormRow, InputAccordion

from ...sr_models.canvas.target import FACTOR, MAX_SCALE, MIN_SCALE, MIN_SIDE, SIZES, Target, chosen_target
from ...sr_models.canvas.wrap import WRAPS
from ...sr_models.core.options import UpscaleOptions
from . import host, models
from .settings import COLORS, DETAILS, OVERLAPS, STRENGTHS, TILES

SIZE_PARTS = ("size", "pixels", "megapixels")
SCALES = {"minimum": MIN_SCALE, "maximum": MAX_SCALE, "step": 0.05}


class ExtrasSection(ScriptPostprocessing):
    """All models, with all settings. TSD-SR is only available here, because it loads its own Stable Diffusion 3, and
    the host's model may have to be unloaded for it."""

    name = models.TITLE
    order = 1100  # after the host's own Upscale

    def ui(self) -> dict[str, Any]:
        """The components, named like the arguments of `process`."""
        parts: dict[str, Any] = {}
        with InputAccordion(False, label=self.name, elem_id="extras_onestep_sr") as parts["enable"]:
            with FormRow():
                parts["model"] = _list("model", "Model", lambda: list(models.listed()), models.BUNDLED_NAME)
                parts["checkpoint"] = _list(
                    "checkpoint",
                    "SD3, for TSD-SR",
                    host.checkpoint_names,
                    refresh=host.list_checkpoints,
                    info="One-Step SR opens it itself, also where the host no longer loads Stable Diffusion 3.",
                )
            with FormRow():
                parts["scale"] = _part(gr.Slider, "scale", "Scale", value=4.0, **SCALES)
                color = {"choices": COLORS, "value": host.setting("color")}
                parts["color"] = _part(gr.Dropdown, "color", "Match colours", **color)
            with FormRow():
                tile, overlap = TILES | {"value": host.setting("tile")}, OVERLAPS | {"value": host.setting("overlap")}
                parts["tile"] = _part(gr.Slider, "tile", "Tile (0: model's own)", **tile)
                parts["overlap"] = _part(gr.Slider, "overlap", "Overlap", **overlap)
            detail = DETAILS | {"value": host.setting("detail")}
            parts["detail"] = _part(gr.Slider, "detail", "Detail, for models that have it", **detail)
            parts["seed"] = _part(gr.Number, "seed", "Seed", value=0, precision=0, minimum=0)
            with FormRow():
                parts["size"] = _part(gr.Dropdown, "size", "Size", choices=list(SIZES), value=FACTOR)
                side = {"value": 4096, "precision": 0, "minimum": MIN_SIDE}
                parts["pixels"] = _part(gr.Number, "pixels", "Length of the side, px", **side)
                parts["megapixels"] = _part(gr.Number, "megapixels", "Megapixels", value=12)
            with FormRow():
                strength = STRENGTHS | {"value": host.setting("strength")}
                parts["strength"] = _part(gr.Slider, "strength", "Strength of the model's detail", **strength)
                wrap = {"choices": list(WRAPS), "value": WRAPS[0]}
                parts["wrap"] = _part(gr.Dropdown, "wrap", "Wrap, for tileable textures and panoramas", **wrap)
        return parts

    def process_firstpass(
        self,
        pp: PostprocessedImage,
        enable: bool | None = None,
        scale: float = 1,
        size: str | None = None,
        pixels: int | None = None,
        megapixels: float | None = None,
        **_: Any,
    ) -> None:
        """Tell other sections the size of the result."""
        if enable:
            options = UpscaleOptions(scale, target=_target(size, pixels, megapixels))
            pp.shared.target_height, pp.shared.target_width = options.size(pp.image.height, pp.image.width)

    def process(
        self,
        pp: PostprocessedImage,
        enable: bool | None = None,
        model: str = "",
        checkpoint: str | None = None,
        scale: float = 4.0,
        tile: int = 0,
        overlap: int = 0,
        color: Any = host.AUTO,
        seed: int = 0,
        **more: Any,
    ) -> None:
        """Replace the picture by the upscaled one. If the user interrupts, it is skipped and nothing is saved.

        The host's `extra-single-image` API only knows the host's own sections, and passes None for all arguments.
        """
        if not enable:
            return
        detail, strength, wrap = map(more.get, ("detail", "strength", "wrap"))
        target = _target(*map(more.get, SIZE_PARTS))
        options = host.options(scale, tile, overlap, color, seed, detail, strength, wrap)
        choice, options = models.choose(model, checkpoint), replace(options, target=target)
        result = models.upscale(choice, pp.image, options)
        if result is None:
            shared.state.skipped = True
            return
        pp.image = result
        # The host omits values that are None.
        pp.info |= {
            f"{self.name} model": model,
            f"{self.name} checkpoint": choice.checkpoint and choice.checkpoint.name,
            f"{self.name} scale": options.scale if target is None else None,
            f"{self.name} size": target and str(target),
            f"{self.name} tile": options.tile,
            f"{self.name} overlap": options.overlap,
            f"{self.name} color": options.color,
            f"{self.name} seed": options.seed,
            f"{self.name} detail": options.detail,
            f"{self.name} strength": None if options.strength == 1 else options.strength,
            f"{self.name} wrap": None if options.wrap == WRAPS[0] else options.wrap,
        }


def _target(size: str | None, pixels: float | None, megapixels: float | None) -> Target | None:
    """The chosen size; None for the scale, and where a caller of the API gives no size."""
    return chosen_target(size or FACTOR, int(pixels or 0), megapixels or 0.0)


def _part(kind: type, name: str, label: str, **arguments: Any) -> Any:
    return kind(label=label, elem_id=f"extras_onestep_sr_{name}", **arguments)


def _list(
    name: str,
    label: str,
    choices: Callable[[], list[str]],
    value: str | None = None,
    refresh: Callable[[], None] = lambda: None,
    info: str | None = None,
) -> Any:
    """A dropdown with a refresh button, which calls `refresh` before it asks for the choices again."""
    component = _part(gr.Dropdown, name, label, value=value, choices=choices(), info=info)
    create_refresh_button(component, refresh, lambda: {"choices": choices()}, f"extras_onestep_sr_{name}_refresh")
    return component
