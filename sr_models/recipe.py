"""How each published method takes its step, as a table."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .canvas.color import ColorMatch
from .schedule import ResShiftSchedule
from .step import CleanStep, FlowStep, ResShiftStep, Step


@dataclass(frozen=True)
class Recipe:
    """What a method needs besides its weights.

    Attributes:
        scale: the network's own enlargement; 1 where it works on a picture enlarged beforehand.
        tile: side of its native window on the latent canvas, in latent pixels.
        overlap: what neighbouring windows share by default, in latent pixels.
        multiple: the latent canvas's sides are padded to multiples of this.
        color: the colour match that suits it.
        largest_tile: the widest window that the network can take, in latent pixels; 0 for no limit.
        shortest: smaller results are made at this shorter side, in latent pixels, and shrunk.
        prompt: what the text-conditioned ones were trained with.
    """

    name: str
    title: str
    citation: str
    step: Step
    scale: int = 4
    tile: int = 64
    overlap: int = 16
    multiple: int = 64
    color: ColorMatch = "none"
    largest_tile: int = 0
    shortest: int = 0
    prompt: str = ""


T15 = ResShiftSchedule()
T4 = ResShiftSchedule(steps=4, min_noise=0.2)

RESSHIFT_FAMILY = {
    recipe.name: recipe
    for recipe in (
        Recipe("tad-sr", "TAD-SR, one step", "arXiv 2408.07476", ResShiftStep(T15)),
        Recipe("sinsr", "SinSR, one step", "arXiv 2311.14760", ResShiftStep(T15)),
        Recipe("resshift", "ResShift, 15 steps", "arXiv 2307.12348", ResShiftStep(T15, evaluations=15)),
        Recipe("resshift-s4", "ResShift, 4 steps", "arXiv 2307.12348", ResShiftStep(T4, evaluations=4)),
    )
}

# The spelling is the published one.
TSD_PROMPT = (
    "Cinematic, High Contrast, highly detailed, taken using a Canon EOS R camera, hyper detailed photo - realistic "
    "maximum detail, 32k, Color Grading, ultra HD, extrememeticulous detailing, skin pore detailing, hyper sharpness, "
    "perfect without deformations."
)
TSD_SR = Recipe(
    "tsd-sr",
    "TSD-SR on Stable Diffusion 3",
    "arXiv 2411.18263",
    FlowStep(),
    scale=1,
    tile=64,
    overlap=8,
    multiple=2,
    color="wavelet",
    largest_tile=384,  # SD3's position table has 192 patches of two a side
    shortest=64,
    prompt=TSD_PROMPT,
)
TSD_FAMILY = {recipe.name: recipe for recipe in (TSD_SR, replace(TSD_SR, name="tsd-sr-mse", color="adain"))}


def on_unet(recipe: Recipe) -> Recipe:
    """TSD-SR's recipe for a Stable Diffusion with a U-Net, which may take windows of any size."""
    return replace(
        recipe, name=f"{recipe.name} on a U-Net", title="TSD-SR on a U-Net", step=CleanStep(), largest_tile=0
    )
