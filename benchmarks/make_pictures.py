"""Create the pictures of the README, of the templates that need no download and of the help pages, from demo/ with the
bundled model.

    python benchmarks/make_pictures.py

Left of the white line is bicubic upscaling, right of it the model's result, both x4. The other templates' pictures show
their graphs, because their results need files that are not part of the pack.
"""

from pathlib import Path

import numpy as np
import torch
from onestep_sr.sr_models.canvas import color
from onestep_sr.sr_models.canvas.resize import resize
from onestep_sr.sr_models.core.options import UpscaleOptions
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.families.loading import load
from onestep_sr.sr_models.files.read import read_picture
from PIL import Image, ImageDraw
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
# Left, top, width and height of both parts, in pixels of the result.
FACE_BOX, SIGN_BOX = (205, 95, 300, 420), (0, 0, 300, 420)
TEMPLATE_BOX = (225, 150, 256, 288)
REGION = (200, 90, 520, 510)  # of the ellipse: left, top, right, bottom
REGION_VIEW = (140, 40, 580, 560)
CLIP_LEFTS, CLIP_TOP, CLIP_SIDE = (120, 220, 320), 90, 208
HELP = ROOT / "web" / "docs" / "images"
DETAIL_BOX, COLOR_BOX = (225, 120, 240, 320), (120, 60, 320, 400)
COLOR_SHIFT = 0.12  # of red at the left border and of blue at the right one


def image_of(picture: Tensor) -> Image.Image:
    return Image.fromarray((picture[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))


def side_by_side(pictures: tuple[Tensor, ...], box: tuple[int, int, int, int]) -> Image.Image:
    left, top, width, height = box
    strip = Image.new("RGB", (len(pictures) * (width + 4) - 4, height), "white")
    for index, picture in enumerate(pictures):
        part = image_of(picture).crop((left, top, left + width, top + height))
        strip.paste(part, (index * (width + 4), 0))
    return strip


def region(before: Tensor, after: Tensor) -> Image.Image:
    """The result of the template for a region: the model inside an ellipse, interpolation outside."""
    result, inside = image_of(before), image_of(after)
    mask = Image.new("L", result.size)
    ImageDraw.Draw(mask).ellipse(REGION, fill=255)
    result.paste(inside, mask=mask)
    ImageDraw.Draw(result).ellipse(REGION, outline="white", width=4)
    return result.crop(REGION_VIEW)


def clip(after: Tensor) -> Image.Image:
    """Three frames of a camera that pans over the photo."""
    frames = Image.new("RGB", (3 * CLIP_SIDE + 8, 2 * CLIP_SIDE), "white")
    for index, left in enumerate(CLIP_LEFTS):
        box = (left, CLIP_TOP, left + CLIP_SIDE, CLIP_TOP + 2 * CLIP_SIDE)
        frames.paste(image_of(after).crop(box), (index * (CLIP_SIDE + 4), 0))
    return frames


def before_and_after(name: str) -> tuple[Tensor, Tensor]:
    photo = read_picture(ROOT / "demo" / name).pixels[None]
    after = upscale(load().model, photo)
    return resize(photo, (after.shape[-2], after.shape[-1])).clamp(0, 1), after


def readme(face: tuple[Tensor, Tensor], sign: tuple[Tensor, Tensor]) -> Image.Image:
    """A face and lettering, each before and after."""
    strips = [side_by_side(face, FACE_BOX), side_by_side(sign, SIGN_BOX)]
    picture = Image.new("RGB", (sum(strip.width for strip in strips) + 12, strips[0].height), "white")
    picture.paste(strips[0], (0, 0))
    picture.paste(strips[1], (strips[0].width + 12, 0))
    return picture


def detail(before: Tensor, after: Tensor) -> Image.Image:
    """Bicubic, and the model at both ends of its slider."""
    photo = read_picture(ROOT / "demo" / "photo.png").pixels[None]
    faithful = upscale(load().model, photo, UpscaleOptions(detail=0.0))
    return side_by_side((before, faithful, after), DETAIL_BOX)


def matched(before: Tensor, after: Tensor) -> Image.Image:
    """The original, a result whose colours were shifted, and the same matched."""
    ramp = torch.linspace(COLOR_SHIFT, -COLOR_SHIFT, after.shape[-1])
    shifted = (after + torch.stack([ramp, 0 * ramp, -ramp])[None, :, None]).clamp(0, 1)
    return side_by_side((before, shifted, color.match(shifted, before, "wavelet").clamp(0, 1)), COLOR_BOX)


def main() -> None:
    before, after = before_and_after("photo.png")
    sign = before_and_after("sign.png")
    readme((before, after), sign).save(ROOT / "docs" / "before-after.jpg", quality=90)
    results = {
        "OneStepSRLoadModel": side_by_side(sign, SIGN_BOX),
        "OneStepSRUpscaleImage": detail(before, after),
        "OneStepSRUpscaleImage-region": region(before, after),
        "OneStepSRMatchColor": matched(before, after),
    }
    for name, picture in results.items():
        picture.save(HELP / f"{name}-result.jpg", quality=80)
    pictures = {
        "01-quick-start": side_by_side((before, after), TEMPLATE_BOX),
        "02-region-only": region(before, after),
        "03-video-frames": clip(after),
    }
    for name, picture in pictures.items():
        picture.save(ROOT / "workflows" / f"onestep-sr-{name}.jpg", quality=80)


if __name__ == "__main__":
    main()
