"""The section in Extras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
from modules import shared
from modules.scripts_postprocessing import PostprocessedImage, ScriptPostprocessing
from modules.ui_common import create_refresh_button
from modules.ui_components import FormRow, InputAccordion

from ...sr_models.canvas.target import MAX_SCALE, MIN_SCALE
from . import host, models
from .settings import COLORS, DETAILS, OVERLAPS, TILES

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
        return parts

    def process_firstpass(self, pp: PostprocessedImage, enable: bool | None = None, scale: float = 1, **_: Any) -> None:
        """Tell other sections the size of the result."""
        if enable:
            pp.shared.target_width = round(pp.image.width * scale)
            pp.shared.target_height = round(pp.image.height * scale)

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
        detail: float | None = None,
    ) -> None:
        """Replace the picture by the upscaled one. If the user interrupts, it is skipped and nothing is saved.

        The host's `extra-single-image` API only knows the host's own sections, and passes None for all arguments.
        """
        if not enable:
            return
        choice, options = models.choose(model, checkpoint), host.options(scale, tile, overlap, color, seed, detail)
        result = models.upscale(choice, pp.image, options)
        if result is None:
            shared.state.skipped = True
            return
        pp.image = result
        # The host omits values that are None.
        pp.info |= {
            f"{self.name} model": model,
            f"{self.name} checkpoint": choice.checkpoint and choice.checkpoint.name,
            f"{self.name} scale": options.scale,
            f"{self.name} tile": options.tile,
            f"{self.name} overlap": options.overlap,
            f"{self.name} color": options.color,
            f"{self.name} seed": options.seed,
            f"{self.name} detail": options.detail,
        }


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
