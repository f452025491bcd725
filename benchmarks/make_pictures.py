"""Make the README's picture and the quick start's from demo/photo.png and the bundled model.

    python benchmarks/make_pictures.py

Left of the white line is bicubic enlargement, right of it the model's result, at 4 result pixels a photo pixel.
"""

from pathlib import Path

import numpy as np
from onestep_sr.sr_models.canvas.resize import resize
from onestep_sr.sr_models.core.upscale import upscale
from onestep_sr.sr_models.families.loading import load
from onestep_sr.sr_models.files.read import read_picture
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
# Left, top, width, height in result pixels; the width is split between both halves.
README_BOX = (200, 40, 440, 400)
TEMPLATE_BOX = (336, 84, 256, 288)


def halves(before: Tensor, after: Tensor, box: tuple[int, int, int, int]) -> Image.Image:
    left, top, width, height = box
    pixels = [picture[0, :, top : top + height, left : left + width] for picture in (before, after)]
    strip = Image.new("RGB", (2 * width + 4, height), "white")
    for index, half in enumerate(pixels):
        values = (half.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        strip.paste(Image.fromarray(values), (index * (width + 4), 0))
    return strip


def main() -> None:
    photo = read_picture(ROOT / "demo" / "photo.png").pixels[None]
    after = upscale(load().model, photo)
    before = resize(photo, (after.shape[-2], after.shape[-1])).clamp(0, 1)
    (ROOT / "docs").mkdir(exist_ok=True)
    halves(before, after, README_BOX).save(ROOT / "docs" / "before-after.jpg", quality=90)
    halves(before, after, TEMPLATE_BOX).save(ROOT / "workflows" / "onestep-sr-quick-start.jpg", quality=88)


if __name__ == "__main__":
    main()
