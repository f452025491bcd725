"""Reading TIFF pages of any photometric interpretation, sample format and layout (TIFF 6.0, with its Lab and
BigTIFF supplements)."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .exif import Exif, exif_at
from .metadata import Metadata, resolution_of, upright
from .picture import MAX_PIXELS, Picture, from_values, turned
from .profiles import UnreadableError, cmyk_to_srgb, lab_to_srgb

if TYPE_CHECKING:
    import tifffile

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, SEPARATED, YCBCR, CIELAB, ICCLAB = 0, 1, 2, 3, 5, 6, 8, 9
COLOR_CHANNELS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, SEPARATED: 4, YCBCR: 3, CIELAB: 3, ICCLAB: 3}
CFA, LINEAR_RAW = 32803, 34892
UINT, INT, FLOAT = 1, 2, 3
UNSPECIFIED, ASSOCIATED = 0, 1
NO_COMPRESSION, JPEG_COMPRESSIONS = 1, (6, 7, 33007, 34892)
REDUCED, IS_MASK = 1, 4
DNG_VERSION, INKS, BLACK_WHITE_POINTS = 50706, 332, 532
# What tags of a TIFF file say about the picture, rather than about how it is stored: names, dates, makers, EXIF.
DESCRIPTIVE = {11, 269, 270, 271, 272, 282, 283, 285, 296, 305, 306, 315, 316, 33432, 18246, 18249}
DESCRIPTIVE |= {36867, 36868, *range(40091, 40096)}
RESOLUTION = (282, 283, 296)
XMP, IPTC = 700, 33723
BROKEN = "is broken or truncated: copy or download it again."
HIGHEST_RATIO = 3000  # of Deflate's, LZW's and PackBits' data to theirs: more is a damaged header
BOUNDED_COMPRESSIONS = (NO_COMPRESSION, 5, 8, 32946, 32773)


def count_pages(path: Path) -> tuple[int, int]:
    """The number of full pages, and the pixels of the largest."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        pages = _full_pages(file)
        return len(pages), max(page.imagewidth * page.imagelength for page in pages)


def read_pages(path: Path) -> Iterator[Picture]:
    """Every full page, one at a time. Raises UnreadableError for what cannot be read correctly."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        full = _full_pages(file)
        notices = _masks(file)
        for page in full:
            picture = _read_page(path, page)
            yield replace(picture, notices=(*picture.notices, *notices))


def _masks(file: tifffile.TiffFile) -> tuple[str, ...]:
    count = sum(bool(page.subfiletype & IS_MASK) for page in file.pages)  # pyright: ignore
    return (f"Pages with a transparency mask that are not used: {count}.",) if count else ()


def _full_pages(file: tifffile.TiffFile) -> list[Any]:
    """Pages that are pictures of their own, not thumbnails, overviews or masks."""
    with mmap.mmap(file.filehandle.fileno(), 0, access=mmap.ACCESS_READ) as block:
        try:
            count = len(list(page_offsets(block, file.byteorder, file.is_bigtiff)))
        except struct.error:
            raise UnreadableError(BROKEN) from None
    pages = [file.pages[number] for number in range(len(file.pages))]
    if not pages or len(pages) != count:
        raise UnreadableError(BROKEN)
    first = pages[0]
    if DNG_VERSION in first.tags or first.photometric in (CFA, LINEAR_RAW):  # pyright: ignore
        raise UnreadableError("is a camera's raw file: develop it to TIFF or JPEG first.")
    full = [page for page in pages if not page.subfiletype & (REDUCED | IS_MASK)]  # pyright: ignore
    if not full:
        raise UnreadableError("holds a preview only, as a camera's raw file does: develop it to TIFF or JPEG first.")
    return full


def page_offsets(block: mmap.mmap, order: str, big: bool) -> Iterator[int]:
    """Where the directories are. Raises struct.error where the chain leaves the file or comes back to itself."""
    head, link, entry = ("Q", "Q", 20) if big else ("H", "I", 12)
    (offset,) = struct.unpack_from(order + link, block, 8 if big else 4)
    seen: set[int] = set()
    while offset:
        if offset in seen:
            raise struct.error
        seen.add(offset)
        yield offset
        (count,) = struct.unpack_from(order + head, block, offset)
        (offset,) = struct.unpack_from(order + link, block, offset + struct.calcsize(order + head) + entry * count)


def _read_page(path: Path, page: Any) -> Picture:
    _require_readable(page)
    profile = _tag(page, 34675)
    values, extras, notices = _samples(page)
    photometric = int(page.photometric)
    if photometric == PALETTE:
        values, extras = _through_palette(page, values)
    elif photometric == SEPARATED:
        values, profile = cmyk_to_srgb(_as_integers(values, page), profile), None
    elif photometric in (CIELAB, ICCLAB):
        values, profile = lab_to_srgb(_lab(values, photometric)), None
    else:
        values = _as_fractions(values, page)
        values = 1 - values if photometric == WHITE_IS_ZERO else values
        values = _from_ycbcr(page, values) if photometric == YCBCR else values
    if extras is not None:
        values, extras = _with_alpha(page, _fractions_of(values), extras)
        values = np.concatenate([values, extras], axis=-1)
    picture = from_values(_fractions_of(values), profile)
    is_float = page.sampleformat == FLOAT
    bits = 32 if is_float else 8 if page.bitspersample <= 8 else 16
    if not is_float and page.bitspersample > 16:
        notices = (*notices, f"Integers of {page.bitspersample} bits are reduced to 16.")
    picture = replace(picture, bits=bits, notices=(*notices, *(picture.notices if is_float else ())))
    picture = picture if is_float else replace(picture, excess=None)
    metadata, orientation = _metadata(path, page)
    return turned(replace(picture, metadata=metadata), orientation)


def _tag(page: Any, code: int, default: Any = None) -> Any:
    tag = page.tags.get(code)
    return default if tag is None else tag.value


def _require_readable(page: Any) -> None:
    height, width = page.imagelength, page.imagewidth
    if height * width > MAX_PIXELS:
        raise UnreadableError(f"has {width} x {height} px, too large: split it into parts.")
    if page.imagedepth > 1:
        raise UnreadableError(f"is a volume of {page.imagedepth} layers: save its layers as pages.")
    if page.photometric is None or int(page.photometric) not in COLOR_CHANNELS:
        name = getattr(page.photometric, "name", page.photometric)
        raise UnreadableError(f"has an unsupported colour type ({name}): convert it to RGB first.")
    if page.sampleformat not in (UINT, INT, FLOAT):
        raise UnreadableError(f"has samples of an unsupported type ({page.sampleformat}): convert it to 16 bits first.")
    if page.photometric == SEPARATED and _tag(page, INKS, 1) != 1:
        raise UnreadableError("uses inks other than cyan, magenta, yellow and black: convert it to RGB first.")
    if len(page.dataoffsets) < np.prod(page.chunked):
        raise UnreadableError(BROKEN)
    ends = [start + size for start, size in zip(page.dataoffsets, page.databytecounts, strict=False)]
    if max(ends, default=0) > page.parent.filehandle.size:
        raise UnreadableError(BROKEN)
    stored, size = sum(page.databytecounts), height * width * page.samplesperpixel * page.bitspersample // 8
    limit = 1.01 if page.compression == NO_COMPRESSION else HIGHEST_RATIO
    if page.compression in BOUNDED_COMPRESSIONS and size > limit * stored + 4096:
        raise UnreadableError(
            f"is broken: {stored} bytes cannot hold {width} x {height} px; copy or download it again."
        )


def _samples(page: Any) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """(H, W, colours) as stored, and (H, W, 1) fractions of the alpha."""
    values = page.asarray()
    values = np.moveaxis(values, 0, -1) if page.axes == "SYX" else values
    values = values[..., None] if values.ndim == 2 else values
    colors = COLOR_CHANNELS[int(page.photometric)]
    if values.ndim != 3 or values.shape[-1] < colors:
        raise UnreadableError(
            f"has {values.shape[-1]} channels where its kind of colour has {colors}: convert it to RGB."
        )
    if values.shape[-1] == colors:
        return values, None, ()
    place, kind = _alpha_of(page)
    alpha = _as_fractions(values[..., colors + place : colors + place + 1], page)
    left = values.shape[-1] - colors - 1
    notices = (f"Extra channels that are not kept: {left}.",) if left else ()
    return values[..., :colors], alpha if kind != UNSPECIFIED or alpha.any() else None, notices


def _alpha_of(page: Any) -> tuple[int, int]:
    """Which extra channel is the alpha, and of which kind: the first that says so, or the first of all."""
    kinds = [int(kind) for kind in page.extrasamples or (UNSPECIFIED,)]
    named = (pair for pair in enumerate(kinds) if pair[1] != UNSPECIFIED)
    return next(named, (0, UNSPECIFIED))


def _as_fractions(values: np.ndarray, page: Any) -> np.ndarray:
    """Samples of any format in [0, 1], floating point as it is. Raises UnreadableError for negative integers."""
    if values.dtype == bool:
        return values.astype(np.float32)
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    if values.dtype.kind == "i" and values.size and values.min() < 0:
        raise UnreadableError("holds negative numbers, whose black point is not defined: convert it to unsigned first.")
    top = 2 ** (page.bitspersample - (values.dtype.kind == "i")) - 1
    return (values / top).astype(np.float32) if page.bitspersample > 16 else values.astype(np.float32) / np.float32(top)


def _fractions_of(values: np.ndarray) -> np.ndarray:
    """uint8 and uint16 in full range -> fractions; floating point as it is."""
    return values if values.dtype.kind == "f" else values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)


def _as_integers(values: np.ndarray, page: Any) -> np.ndarray:
    """Samples as uint8 or uint16 in full range, whatever their format."""
    if values.dtype == np.uint8 and page.bitspersample == 8:
        return values
    kind = np.uint8 if page.bitspersample <= 8 else np.uint16
    return (_as_fractions(values, page).clip(0, 1) * np.iinfo(kind).max).round().astype(kind)


def _lab(values: np.ndarray, photometric: int) -> np.ndarray:
    """CIE L*a*b* in its own units: a* and b* are signed in CIELAB, and shifted by half the range in ICCLAB."""
    if values.dtype.kind == "f":
        return values.astype(np.float64)
    if values.dtype.itemsize > 2:
        raise UnreadableError("is Lab of more than 16 bits: convert it to RGB first.")
    unsigned = values.view(np.uint8 if values.dtype.itemsize == 1 else np.uint16)
    wide = unsigned.dtype == np.uint16
    if photometric == CIELAB:
        light = unsigned[..., :1] / (np.iinfo(unsigned.dtype).max / 100)
        chroma = unsigned[..., 1:].view(np.int16 if wide else np.int8) / (256.0 if wide else 1.0)
    else:
        light = unsigned[..., :1] / (652.8 if wide else 2.55)
        chroma = unsigned[..., 1:] / (256.0 if wide else 1.0) - 128
    return np.concatenate([light, chroma], axis=-1)


def _through_palette(page: Any, values: np.ndarray) -> tuple[np.ndarray, None]:
    """Colour maps hold 16 bits, of which 8 are meant: writers fill the lower ones in three ways, or only those."""
    colors = np.asarray(page.colormap)
    colors = colors if colors.max(initial=0) < 256 else colors >> 8
    return colors[:, values[..., 0].astype(np.intp)].transpose(1, 2, 0).astype(np.uint8), None


def _from_ycbcr(page: Any, values: np.ndarray) -> np.ndarray:
    """YCbCr of full range -> RGB, by the file's coefficients; JPEG's decoder has done it already."""
    if page.compression in JPEG_COMPRESSIONS:
        return values
    points = [
        float(over) / float(under or 1) for over, under in np.reshape(_tag(page, BLACK_WHITE_POINTS, ()), (-1, 2))
    ]
    if points and not np.allclose(points, (0, 255, 128, 255, 128, 255)):
        raise UnreadableError("holds YCbCr of limited range: convert it to RGB first.")
    red, green, blue = 0.299, 0.587, 0.114
    y, cb, cr = values[..., 0], values[..., 1] - 128 / 255, values[..., 2] - 128 / 255
    r, b = y + 2 * (1 - red) * cr, y + 2 * (1 - blue) * cb
    return np.stack([r, (y - red * r - blue * b) / green, b], axis=-1).clip(0, 1).astype(np.float32)


def _with_alpha(page: Any, values: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours of associated alpha divided by it."""
    if _alpha_of(page)[1] != ASSOCIATED:
        return values, alpha
    divided = values / np.maximum(alpha, 1e-6)
    is_float = page.sampleformat == FLOAT
    return np.where(alpha > 0, divided if is_float else divided.clip(0, 1), 0).astype(np.float32), alpha


def _metadata(path: Path, page: Any) -> tuple[Metadata, int]:
    """What the page's tags say about the picture, and its orientation."""
    file = page.parent
    order, big = file.byteorder, file.is_bigtiff
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as block:
        found = exif_at(block, order, page.offset, big)
    iptc, xmp = found.main.get(IPTC), found.main.get(XMP)
    orientation = found.number(found.main.get(274)) or 1
    kept = {tag: entry for tag, entry in found.main.items() if tag in DESCRIPTIVE}
    if kept.get(270) and kept[270].data.startswith(b'{"shape"'):  # tifffile's own note on the array
        del kept[270]
    exif = Exif(order, kept, found.photo, found.gps, found.interop)
    dpi = resolution_of(exif)
    if dpi is None:  # a shape of pixels without a unit, which most writers set to 1
        exif = replace(exif, main={tag: entry for tag, entry in kept.items() if tag not in RESOLUTION})
    return Metadata(upright(exif), xmp and xmp.data, iptc and iptc.data, dpi=dpi), orientation
