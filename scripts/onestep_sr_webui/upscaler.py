"""Models that need no checkpoint, in the host's lists of upscalers."""

from __future__ import annotations

from pathlib import Path

from modules import modelloader, script_loading, shared
from modules.upscaler import LANCZOS, Upscaler, UpscalerData
from PIL import Image

from ...sr_models.canvas.target import MAX_SCALE
from . import host, models


class UpscalerOneStepSR(Upscaler):
    """The host creates one instance at startup and lists its `scalers`."""

    def __init__(self, path: str | None = None):
        self.name = host.MODEL_FOLDER.name
        self.user_path = path
        super().__init__(create_dirs=True)
        choices = {name: choice for name, choice in models.listed().items() if not choice.is_lora}
        self.scalers = [UpscalerData(name, str(choice.file), self, 4) for name, choice in choices.items()]

    def upscale(self, img: Image.Image, scale: float, selected_model: str | None = None) -> Image.Image:
        """Upscale to exactly `scale` times the size; the host's own method would round sides down to multiples of 8.

        As in the host's other upscalers, Lanczos resizing is used for scales under 1, for what exceeds x8, and for
        the original picture if the user interrupts.
        """
        size = (round(img.width * scale), round(img.height * scale))
        if scale >= 1:
            choice = models.Choice(Path(str(selected_model)))
            img = models.upscale(choice, img, host.default_options(min(scale, MAX_SCALE))) or img
        return img if img.size == size else img.resize(size, LANCZOS)


def keep_listed() -> None:
    """Add our upscalers to the lists of Forge Neo and reForge, now and whenever they list upscalers anew.

    Those two have a fixed list of classes. Others list subclasses of `Upscaler`, so ours are there and nothing is done.
    """
    if any(isinstance(entry.scaler, UpscalerOneStepSR) for entry in shared.sd_upscalers):
        return
    list_theirs = modelloader.load_upscalers

    def list_all() -> None:
        list_theirs()
        shared.sd_upscalers += UpscalerOneStepSR().scalers

    shared.sd_upscalers += UpscalerOneStepSR().scalers
    for module in (modelloader, *script_loading.loaded_scripts.values()):  # the refresh button is in one of its scripts
        if getattr(module, "load_upscalers", None) is list_theirs:
            module.load_upscalers = list_all
