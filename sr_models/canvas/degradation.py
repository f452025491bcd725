"""Create LR counterparts of HR crops: clean resampling, or a random chain of blur, resampling, noise and JPEG.

The chain follows Real-ESRGAN (arXiv 2107.10833, section 3) at mild to medium strength, because most
pictures that people upscale are clean or lightly compressed.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from PIL import Image
from torch import Tensor

CLEAN_FILTERS = (Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.BOX)
CHAIN_FILTERS = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.BOX)


@dataclass(frozen=True)
class Degradation:
    """Ranges of the random degradation. Sigmas are in pixels, noise in 8-bit levels, JPEG in Pillow's quality.

    `clean`: share of LR pictures that are only resampled; a quarter of those also get light JPEG compression.
    `second`: share of the others that go through a second, milder round.
    """

    scale: int = 4
    clean: float = 0.5
    second: float = 0.4
    blur: float = 0.7
    blur_sigma: tuple[float, float] = (0.2, 2.0)
    resize: tuple[float, float] = (0.5, 1.2)
    noise: float = 0.5
    noise_level: tuple[float, float] = (1.0, 12.0)
    jpeg: float = 0.7
    jpeg_quality: tuple[int, int] = (50, 95)
    light_jpeg_quality: tuple[int, int] = (75, 97)

    def __call__(self, hr: Image.Image, rng: Generator) -> Image.Image:
        """HR (RGB, sides multiples of the scale) -> LR, both 8-bit; all randomness comes from `rng`."""
        size = (hr.width // self.scale, hr.height // self.scale)
        if rng.random() < self.clean:
            lr = hr.resize(size, CLEAN_FILTERS[rng.choice(3, p=(0.6, 0.2, 0.2))])
            return jpeg(lr, rng.integers(*self.light_jpeg_quality)) if rng.random() < 0.25 else lr
        degraded = self._round(hr, rng, strength=1.0)
        if rng.random() < self.second:
            degraded = self._round(degraded.resize((hr.width // 2, hr.height // 2), _pick(rng)), rng, strength=0.5)
        lr = degraded.resize(size, _pick(rng))
        lr = add_noise(lr, rng.uniform(*self.noise_level) * 0.5, rng) if rng.random() < self.noise else lr
        return jpeg(lr, rng.integers(*self.jpeg_quality)) if rng.random() < self.jpeg else lr

    def _round(self, image: Image.Image, rng: Generator, strength: float) -> Image.Image:
        if rng.random() < self.blur:
            low, high = self.blur_sigma
            sigmas = rng.uniform(low, low + (high - low) * strength, size=2)
            sigmas = sigmas if rng.random() < 0.5 else np.full(2, sigmas[0])
            image = blur(image, gaussian_kernel(*sigmas, angle=rng.uniform(0, np.pi)))
        factor = rng.uniform(*self.resize)
        image = image.resize((max(8, round(image.width * factor)), max(8, round(image.height * factor))), _pick(rng))
        if rng.random() < self.noise:
            image = add_noise(image, rng.uniform(*self.noise_level) * strength, rng)
        return jpeg(image, rng.integers(*self.jpeg_quality)) if rng.random() < self.jpeg * 0.5 else image


def _pick(rng: Generator) -> Image.Resampling:
    return CHAIN_FILTERS[rng.integers(len(CHAIN_FILTERS))]


def gaussian_kernel(sigma_x: float, sigma_y: float, angle: float) -> Tensor:
    """A rotated Gaussian kernel (k, k) that sums to 1; k is odd and covers three standard deviations on each side."""
    radius = max(1, int(np.ceil(3 * max(sigma_x, sigma_y))))
    y, x = torch.meshgrid(*[torch.arange(-radius, radius + 1, dtype=torch.float32)] * 2, indexing="ij")
    along = (x * np.cos(angle) + y * np.sin(angle)) / sigma_x
    across = (y * np.cos(angle) - x * np.sin(angle)) / sigma_y
    kernel = torch.exp(-0.5 * (along**2 + across**2))
    return kernel / kernel.sum()


def blur(image: Image.Image, kernel: Tensor) -> Image.Image:
    radius = len(kernel) // 2
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[:, None].float()
    pixels = F.pad(pixels, (radius,) * 4, mode="replicate")
    return _to_image(F.conv2d(pixels, kernel[None, None])[:, 0].permute(1, 2, 0).numpy())


def add_noise(image: Image.Image, level: float, rng: Generator) -> Image.Image:
    """Add Gaussian noise of `level` 8-bit steps; grey noise in two of five cases, as from film and sensors."""
    channels = 1 if rng.random() < 0.4 else 3
    pixels = np.asarray(image, dtype=np.float32)
    return _to_image(pixels + level * rng.standard_normal((*pixels.shape[:2], channels), dtype=np.float32))


def jpeg(image: Image.Image, quality: int | np.integer) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(quality))
    return Image.open(buffer).convert("RGB")


def _to_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
