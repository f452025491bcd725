"""MUSIQ (arXiv 2108.05997): perceived quality without a reference, by a transformer over several sizes of a picture.

The weights are pyiqa's `musiq_koniq_ckpt-*.pth`, which no package contains; module names follow that file.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..checkpoints.weights_file import read_weights
from ..errors import UserError

PATCH, WIDTH, HIDDEN, HEADS, BLOCKS = 32, 384, 1152, 6, 14
LONGER_SIDES = (224, 384)  # and the picture's own size
GRID = 10  # patches of every size share a table of 10 x 10 positions
STEM = 64
FILES = "musiq_koniq*.pth"


def same_padding(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zero-pad x (B, C, h, w) for ceil(side / stride) windows per side; an odd pixel goes right and below."""
    height, width = ((-(-side // stride) - 1) * stride + kernel - side for side in x.shape[-2:])
    height, width = max(0, height), max(0, width)
    return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))


class StandardizedConv(nn.Conv2d):
    """A convolution whose weights are standardised to mean 0 and deviation 1 (arXiv 1903.10520)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1):
        super().__init__(inputs, outputs, kernel, stride, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        x = same_padding(input, self.kernel_size[0], self.stride[0])
        return F.conv2d(x, (self.weight - mean) / (deviation + 1e-5), stride=self.stride)


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1, self.gn1 = StandardizedConv(inputs, inputs, 1), nn.GroupNorm(32, inputs, eps=1e-4)
        self.conv2, self.gn2 = StandardizedConv(inputs, inputs, 3), nn.GroupNorm(32, inputs, eps=1e-4)
        self.conv3, self.gn3 = StandardizedConv(inputs, outputs, 1), nn.GroupNorm(32, outputs, eps=1e-4)
        self.conv_proj, self.gn_proj = StandardizedConv(inputs, outputs, 1), nn.GroupNorm(32, outputs, eps=1e-4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.gn1(self.conv1(x)))
        hidden = F.relu(self.gn2(self.conv2(hidden)))
        return F.relu(self.gn3(self.conv3(hidden)) + self.gn_proj(self.conv_proj(x)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (rearrange(each(x), "b n (h c) -> b h n c", h=HEADS) for each in (self.query, self.key, self.value))
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n c -> b n (h c)"))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(WIDTH, eps=1e-6), Attention()
        self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(WIDTH, HIDDEN), "fc2": nn.Linear(HIDDEN, WIDTH)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Encoder(nn.Module):
    """Patches (B, n, WIDTH), with position and size indices (n,) -> the picture's embedding (B, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        self.posembed_input = nn.ParameterDict({"position_emb": torch.zeros(1, GRID**2, WIDTH)})
        self.scaleembed_input = nn.ParameterDict({"scale_emb": torch.zeros(len(LONGER_SIDES) + 1, WIDTH)})
        self.cls = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.transformer = nn.ModuleDict({f"encoderblock_{index}": Block() for index in range(BLOCKS)})
        self.encoder_norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, x: Tensor, places: Tensor, sizes: Tensor) -> Tensor:
        x = x + self.posembed_input["position_emb"][0, places] + self.scaleembed_input["scale_emb"][sizes]
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1)
        for block in self.transformer.values():
            x = block(x)
        return self.encoder_norm(x)[:, 0]


class Musiq(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_root, self.gn_root = StandardizedConv(3, STEM, 7, 2), nn.GroupNorm(32, STEM, eps=1e-6)
        self.block1 = Bottleneck(STEM, 4 * STEM)
        self.embedding = nn.Linear(4 * STEM * (PATCH // 4) ** 2, WIDTH)
        self.transformer_encoder = Encoder()
        self.head = nn.Linear(WIDTH, 1)

    @classmethod
    def load(cls, path: Path) -> Musiq:
        """Raises UserError for a file with other weights."""
        made, tensors = cls(), read_weights(path).tensors
        try:
            made.load_state_dict({key.removeprefix("module."): tensor for key, tensor in tensors.items()})
        except RuntimeError as error:
            raise UserError(f"{path} does not contain the weights of MUSIQ: choose pyiqa's {FILES}.") from error
        return made.requires_grad_(False).eval()

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, h, w) in [0, 1] -> scores (B,), from about 0 (bad) to about 100 (good)."""
        sizes = [*(_resized(image, side) for side in LONGER_SIDES), image]
        tokens, places = zip(*(self._tokens(each * 2 - 1) for each in sizes), strict=True)
        numbers = torch.cat([torch.full_like(place, number) for number, place in enumerate(places)])
        return self.head(self.transformer_encoder(torch.cat(tokens, dim=1), torch.cat(places), numbers))[:, 0]

    def _tokens(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """A picture's patches as (B, n, WIDTH), and their indices in the position table."""
        patches = same_padding(image, PATCH, PATCH)
        rows, columns = (side // PATCH for side in patches.shape[-2:])
        patches = rearrange(patches, "b c (r p) (q s) -> (b r q) c p s", p=PATCH, s=PATCH)
        hidden = same_padding(F.relu(self.gn_root(self.conv_root(patches))), 3, 2)
        hidden = self.block1(F.max_pool2d(hidden, 3, 2))
        tokens = self.embedding(rearrange(hidden, "(b n) c h w -> b n (h w c)", b=len(image)))
        row, column = (torch.arange(n, device=image.device) * GRID // n for n in (rows, columns))
        return tokens, (row[:, None] * GRID + column).flatten()


def _resized(image: Tensor, longer: int) -> Tensor:
    """As for the published figures: bicubic without antialiasing."""
    ratio = longer / max(image.shape[-2:])
    height, width = (round(side * ratio) for side in image.shape[-2:])
    return F.interpolate(image, (height, width), mode="bicubic", align_corners=False)


def find_musiq(path: Path | None) -> Musiq | None:
    """Load MUSIQ from the given file, or else from torch's cache; None if the cache does not contain it.

    Raises UserError if the given file has other weights or is broken.
    """
    if path is not None:
        return Musiq.load(path)
    found = sorted(Path(torch.hub.get_dir()).rglob(FILES))
    return Musiq.load(found[0]) if found else None
