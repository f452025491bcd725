"""Compare upscalers on a folder of HR pictures."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from rich.table import Table
from torch import Tensor

from ..canvas.degradation import Degradation, jpeg
from ..canvas.resize import resize
from ..errors import UserError
from ..files.listing import list_images
from ..files.read import read_picture
from . import dists, niqe, vgg
from .artifacts import Artifacts, artifacts, grid
from .dists import Dists
from .lpips import LINEAR_FILES, Lpips
from .metrics import high_frequency_power, psnr, ssim
from .pretrained import search

SCALE = 4
Upscaler = Callable[[Tensor], Tensor]
Degrade = Callable[[Image.Image, int], Image.Image]
# Of a result from HR, both (1, 3, H, W) in [0, 1]. HR comes first: its features are the same for all results.
FromHR = Callable[[Tensor], Tensor]
Distance = Callable[[Tensor], FromHR]
Report = Callable[[int, int], None]  # results that are done, and of how many
DISTANCES = {"lpips": "LPIPS", "lpips_vgg": "LPIPS VGG", "dists": "DISTS"}
MEDIANS = ("detail", "seconds")


@dataclass(frozen=True)
class Row:
    """Means over the pictures; `detail` and `seconds` are medians.

    `psnr` (in dB, over RGB) and `ssim` leave out a border of 8 px; for `niqe`, lower is better; `detail` is the
    power above a quarter of the Nyquist frequency, relative to HR's; `grid` is the mark of a 4 px grid. `lpips` (on
    AlexNet), `lpips_vgg` and `dists` are perceptual distances to HR, None without weights.
    """

    upscaler: str
    degradation: str
    psnr: float
    ssim: float
    niqe: float
    detail: float
    grid: float
    seconds: float
    lpips: float | None = None
    lpips_vgg: float | None = None
    dists: float | None = None


def bicubic(image: Tensor) -> Tensor:
    """(1, 3, h, w) -> (1, 3, 4h, 4w), both in [0, 1]."""
    return resize(image, (image.shape[-2] * SCALE, image.shape[-1] * SCALE)).clamp(0, 1)


def lanczos(image: Tensor) -> Tensor:
    """(1, 3, h, w) -> (1, 3, 4h, 4w), both in [0, 1]; Pillow's filter on 8-bit values."""
    small = Image.fromarray((image[0] * 255).round().byte().permute(1, 2, 0).numpy())
    return _to_tensor(small.resize((small.width * SCALE, small.height * SCALE), Image.Resampling.LANCZOS))


def shrink(hr: Image.Image, index: int) -> Image.Image:
    """Pillow's bicubic to a quarter of each side: 8 bits, antialiased."""
    return hr.resize((hr.width // SCALE, hr.height // SCALE), Image.Resampling.BICUBIC)


def mild(hr: Image.Image, index: int) -> Image.Image:
    """Gaussian blur of 1.6 px, bicubic, noise of 4 levels, JPEG 70; seeded by the picture's index in the folder."""
    small = shrink(hr.filter(ImageFilter.GaussianBlur(1.6)), index)
    noise = 4 * np.random.default_rng((1, index)).standard_normal((small.height, small.width, 3))
    noisy = (np.asarray(small, np.float64) + noise).round().clip(0, 255).astype(np.uint8)
    return jpeg(Image.fromarray(noisy), 70)


def mixed(hr: Image.Image, index: int) -> Image.Image:
    """The training degradation without its clean share, seeded by the picture's index in the folder."""
    return Degradation(scale=SCALE, clean=0.0)(hr, np.random.default_rng((0, index)))


BASELINES: dict[str, Upscaler] = {"bicubic": bicubic, "lanczos": lanczos}
DEGRADATIONS: dict[str, Degrade] = {"bicubic": shrink, "mild": mild, "mixed": mixed}


def find_distances(folder: Path | None) -> dict[str, Distance]:
    """The perceptual distances whose weights the folder contains; none without a folder.

    Raises UserError for a folder without LPIPS on AlexNet.
    """
    if folder is None:
        return {}
    found: dict[str, Distance] = {"lpips": Lpips.load(folder).against}
    if search(folder, vgg.FILES):
        if search(folder, LINEAR_FILES["vgg"]):
            found["lpips_vgg"] = Lpips.load(folder, "vgg").against
        if search(folder, dists.FILES):
            found["dists"] = Dists.load(folder).against
    return found


@torch.inference_mode()
def evaluate(
    upscalers: dict[str, Upscaler],
    folder: Path,
    degradations: dict[str, Degrade],
    distances: dict[str, Distance] | None = None,
    report: Report = lambda done, total: None,
) -> list[Row]:
    """A row per degradation and upscaler, over all pictures of the folder.

    An upscaler maps (1, 3, h, w) to (1, 3, 4h, 4w), float32 in [0, 1]; the result may be on any device. A
    degradation maps an 8-bit HR picture and its index in the folder to an 8-bit LR picture. HR sides are cropped
    to multiples of 4 px. `distances` are as from `find_distances`, and `report` is called after each result. Raises
    UserError for a folder without pictures, and for a picture that is broken or has a side under 96 px.
    """
    model, files = niqe.NiqeModel.load(), list_images(folder)
    scores: dict[tuple[str, str], list[dict[str, float]]] = {
        (name, kind): [] for kind in degradations for name in upscalers
    }
    done = 0
    for index, file in enumerate(files):
        hr = _open(file)
        truth = _to_tensor(hr)
        known = {name: distance(truth) for name, distance in (distances or {}).items()}
        for kind, degrade in degradations.items():
            lr = _to_tensor(degrade(hr, index))
            for name, upscaler in upscalers.items():
                scores[name, kind].append(_scores(upscaler, lr, truth, model, known))
                done += 1
                report(done, len(files) * len(scores))
    return [_row(*names, measured) for names, measured in scores.items()]


def _scores(
    upscaler: Upscaler, lr: Tensor, truth: Tensor, model: niqe.NiqeModel, distances: dict[str, FromHR]
) -> dict[str, float]:
    begin = time.perf_counter()
    result = upscaler(lr).float().cpu()
    seconds = time.perf_counter() - begin
    result = (result.clamp(0, 1) * 255).round() / 255  # as in an 8-bit file
    picture, reference = result[0], truth[0]
    return {
        "psnr": psnr(picture, reference),
        "ssim": ssim(picture, reference),
        "niqe": niqe.score(picture, model),
        "detail": high_frequency_power(picture) / max(high_frequency_power(reference), 1e-12),
        "grid": grid(picture),
        "seconds": seconds,
        **{name: float(distance(result)) for name, distance in distances.items()},
    }


def _row(upscaler: str, degradation: str, scores: list[dict[str, float]]) -> Row:
    columns = {name: [picture[name] for picture in scores] for name in scores[0]}
    means = {name: (statistics.median if name in MEDIANS else statistics.fmean)(c) for name, c in columns.items()}
    return Row(upscaler=upscaler, degradation=degradation, **means)


def evaluate_artifacts(upscalers: dict[str, Upscaler], folder: Path, count: int = 4) -> dict[str, Artifacts]:
    """The marks of `artifacts` for each upscaler, on the folder's first pictures, shrunk bicubically."""
    pictures = [_to_tensor(shrink(_open(file), 0)) for file in list_images(folder)[:count]]
    with torch.inference_mode():
        return {
            name: artifacts(lambda lr, run=upscaler: run(lr).float().cpu().clamp(0, 1), pictures)
            for name, upscaler in upscalers.items()
        }


def _open(file: Path) -> Image.Image:
    """The picture in 8-bit RGB, sides cropped to multiples of the scale."""
    pixels = read_picture(file).pixels
    height, width = (side // SCALE * SCALE for side in pixels.shape[-2:])
    if min(height, width) < niqe.PATCH:
        raise UserError(f"{file} has {width} x {height} px: each side must be at least {niqe.PATCH} px.")
    values = (pixels[:, :height, :width] * 255).round().byte()
    return Image.fromarray(values.permute(1, 2, 0).numpy())


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


def render(rows: list[Row]) -> Table:
    """The rows as a table for a terminal; distances that no row has get no column."""
    measured = [name for name in DISTANCES if any(getattr(row, name) is not None for row in rows)]
    titles = ("PSNR dB", "SSIM", *(DISTANCES[name] for name in measured), "NIQE", "detail", "grid", "seconds")
    table = Table("degradation", "upscaler", *titles, caption="Means over all pictures; detail and seconds: medians.")
    for row in rows:
        distances = [f"{getattr(row, name):.3f}" for name in measured]
        numbers = (f"{row.niqe:.2f}", f"{row.detail:.3f}", f"{row.grid:.3f}", f"{row.seconds:.3f}")
        table.add_row(row.degradation, row.upscaler, f"{row.psnr:.2f}", f"{row.ssim:.4f}", *distances, *numbers)
    return table


def render_artifacts(marks: dict[str, Artifacts]) -> Table:
    """The marks as a table for a terminal."""
    caption = "What is added where nothing should be, in 8-bit levels; contrast is a share. 0 is best."
    table = Table("upscaler", *(field.name for field in fields(Artifacts)), caption=caption)
    for name, mark in marks.items():
        table.add_row(name, *(f"{value:.2f}" for value in asdict(mark).values()))
    return table


def to_json(rows: list[Row]) -> str:
    """A list of objects with Row's fields."""
    return json.dumps([asdict(row) for row in rows], indent=1)
