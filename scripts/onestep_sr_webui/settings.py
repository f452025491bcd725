"""The section on the Settings page."""

from __future__ import annotations

from collections.abc import Mapping

import gradio as gr
from modules import shared

from ...sr_models.canvas.color import COLOR_MATCHES
from ...sr_models.core.options import DETAIL
from ...sr_models.jobs.model_choice import DTYPES
from .host import AUTO

SECTION = ("onestep_sr", "One-Step SR")
COLORS = [AUTO, *COLOR_MATCHES]
TILES = {"minimum": 0, "maximum": 4096, "step": 64}
DETAILS = {"minimum": 0, "maximum": 1, "step": 0.05}
STRENGTHS = {"minimum": 0, "maximum": 1, "step": 0.05}
OVERLAPS = {"minimum": 0, "maximum": 1024, "step": 8}


def add_settings() -> None:
    """Add the settings at startup, because without a UI (--nowebui) the Settings page is never built."""
    _add("tile", 0, "Tile size, in pixels of the result (0: the model's default)", gr.Slider, TILES)
    _add("overlap", 64, "Tile overlap, in pixels of the result (at most half a tile)", gr.Slider, OVERLAPS)
    _add("color", AUTO, "Match the picture's colours (auto: the model's default)", gr.Radio, {"choices": COLORS})
    _add("detail", DETAIL, "Detail, for models with a faithful and a detailed set of weights", gr.Slider, DETAILS)
    _add("strength", 1.0, "Strength: how much of the model's detail a result has", gr.Slider, STRENGTHS)
    _add("dtype", AUTO, "Precision (auto: same as the host)", gr.Radio, {"choices": [AUTO, *DTYPES]})
    _add(
        "budget",
        0,
        "Memory for an autoencoder's feature maps, in MB (0: all free memory)",
        gr.Slider,
        {"minimum": 0, "maximum": 16384, "step": 64},
    )


def _add(name: str, default: object, label: str, component: type, arguments: Mapping[str, object]) -> None:
    info = shared.OptionInfo(default, label, component, dict(arguments), section=SECTION)
    shared.opts.add_option(f"{SECTION[0]}_{name}", info)
