"""The versions of Stable Diffusion that LoRAs are made for, and how to distinguish them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..core.process import Prediction
from ..core.recipe import Footprint

NetworkKind = Literal["transformer", "unet"]  # the name of the network's folder in a diffusers folder


@dataclass(frozen=True)
class BaseKind:
    """A version of Stable Diffusion.

    Attributes:
        prediction: None if a LoRA works with any prediction, or if the version has only one.
        tuned: the name of a model that was fine-tuned from this version. Its networks have the same shapes, so it
            cannot be told from the version itself.
    """

    title: str
    network: NetworkKind
    prediction: Prediction | None = None
    tuned: str = ""

    def __str__(self) -> str:
        title = f"{self.tuned} ({self.title})" if self.tuned else self.title
        return f"{title} with {self.prediction} prediction" if self.prediction else title

    def suits(self, found: BaseKind) -> bool:
        """Whether `found` may be this base. A U-Net of unknown width suits any title: its shapes are checked later."""
        other = self.title != found.title and OTHER_UNET.title not in (self.title, found.title)
        predictions = {self.prediction, found.prediction} - {None}
        return self.network == found.network and not other and len(predictions) < 2


SD3_MEDIUM = BaseKind("Stable Diffusion 3 medium", "transformer")
SD35_MEDIUM = BaseKind("Stable Diffusion 3.5 medium", "transformer")
SD35_LARGE = BaseKind("Stable Diffusion 3.5 large", "transformer")
SD15 = BaseKind("Stable Diffusion 1.5", "unet")
SD21 = BaseKind("Stable Diffusion 2.1", "unet")
SD_TURBO = BaseKind("Stable Diffusion 2.1", "unet", "epsilon", tuned="SD-Turbo")
SDXL = BaseKind("SDXL", "unet")
OTHER_UNET = BaseKind("a Stable Diffusion with a U-Net", "unet")
# An autoencoder whose last level has 128 channels: those of a residual block's input, with 256, and its two results.
MAPPED = 512
# Values per pixel of one pass: computed by benchmarks/network_memory.py.
SD21_FOOTPRINT = Footprint(weights=865_910_724 + 83_653_863, per_pixel=8400, mapped=MAPPED)
SD3_FOOTPRINT = Footprint(weights=2_028_328_000 + 83_819_683, per_pixel=5800, mapped=MAPPED)
BY_PROMPT_WIDTH = {768: SD15, 1024: SD21, 2048: SDXL}


def sd3_kind(*, normalized: bool, dual: bool) -> BaseKind:
    """SD3's version: 3.5 normalizes queries and keys, and 3.5 medium also has a second attention."""
    if not normalized:
        return SD3_MEDIUM
    return SD35_MEDIUM if dual else SD35_LARGE


def unet_kind(prompt_width: int, prediction: Prediction | None = None) -> BaseKind:
    return replace(BY_PROMPT_WIDTH.get(prompt_width, OTHER_UNET), prediction=prediction)
