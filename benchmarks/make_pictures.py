"""Create the pictures of the README and the quick-start template from demo/photo.png with the bundled model.

    python benchmarks/make_pictures.py

Left of the white line is bicubic upscaling, right of it the model's result, both x4.
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
# Left, top, width and height of both parts, in pixels of the result.
README_BOX = (200, 40, 440, 400)
TEMPLATE_BOX = (336, 84, 256, 288)


def side_by_side(before: Tensor, after: Tensor, box: tuple[int, int, int, int]) -> Image.Image:
    left, top, width, height = box
    pixels = [picture[0, :, top : top + height, left : left + width] for picture in (before, after)]
    strip = Image.new("RGB", (2 * width + 4, height), "white")
    for index, part in enumerate(pixels):
        values = (part.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        strip.paste(Image.fromarray(values), (index * (width + 4), 0))
    return strip


def main() -> None:
    photo = read_picture(ROOT / "demo" / "photo.png").pixels[None]
    after = upscale(load().model, photo)
    before = resize(photo, (after.shape[-2], after.shape[-1])).clamp(0, 1)
    (ROOT / "docs").mkdir(exist_ok=True)
    side_by_side(before, after, README_BOX).save(ROOT / "docs" / "before-after.jpg", quality=90)
    side_by_side(before, after, TEMPLATE_BOX).save(ROOT / "workflows" / "onestep-sr-01-quick-start.jpg", quality=88)


if __name__ == "__main__":
    main()
