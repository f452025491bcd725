"""File formats by their first bytes, and the reasons why some are refused."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from .profiles import UnreadableError

# Pillow's names of the formats, by where their files begin. Formats that Pillow hands to another program, or
# recognises only by trying, are left out.
BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
    (b"\xff\x0a", "JXL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JXL"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"\x76\x2f\x31\x01", "EXR"),
    (b"8BPS", "PSD"),
    (b"qoif", "QOI"),
    (b"DDS ", "DDS"),
    (b"\0\0\x01\0", "ICO"),
    (b"\x01\xda", "SGI"),
    *((b"P" + kind, "PPM") for kind in (b"1", b"2", b"3", b"4", b"5", b"6", b"F", b"f")),
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"<svg", "SVG"),
    (b"IIRO", "raw"),
    (b"IIU\0", "raw"),
    (b"FUJIFILMCCD-RAW", "raw"),
)
HEAD = 1024
# Videos that are written, with their formats' names in FFmpeg. VIDEOS has no .ts and .mts, which TypeScript uses, too.
VIDEO_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
VIDEOS = (*VIDEO_FORMATS, ".avi", ".mpg", ".mpeg", ".m2ts", ".wmv", ".flv", ".3gp", ".ogv", ".vob")
BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"crx ": "raw"}
BRANDS |= dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIF")
REFUSED = {
    "PDF": "is a PDF document: save its pages as PNG or TIFF first.",
    "PostScript": "is a PostScript document: save it as PNG or TIFF first.",
    "SVG": "is a drawing (SVG) that has no pixels: export it in the size that you want.",
    "raw": "is a camera's raw file: develop it to TIFF or JPEG first.",
    "video": "is a video: save its frames as pictures first.",
}
# Formats that need an optional package: its module, its name on PyPI, and the format's name.
PLUGINS = {
    "HEIF": ("pi_heif", "pi-heif", "HEIC"),
    "JXL": ("pillow_jxl", "pillow-jxl-plugin", "JPEG XL"),
    "EXR": ("OpenEXR", "OpenEXR", "OpenEXR"),
}


def format_of(path: Path) -> str | None:
    """'PNG', 'TIFF', 'HEIF', ...; 'PDF', 'video' and the like for what is refused; None for what is not a picture."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    for beginning, kind in BEGINNINGS:
        if head.startswith(beginning):
            return "raw" if kind == "TIFF" and head[8:10] == b"CR" else kind
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"<?xml", b"<!--", b"<!DOCTYPE svg")) and b"<svg" in head:
        return "SVG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        brands = [head[start : start + 4] for start in (8, *range(16, 64, 4))]
        if any(brand in (b"avif", b"avis") for brand in brands[: head[3] // 4]):
            return "AVIF"
        return BRANDS.get(brands[0], "video")
    return "TGA" if path.suffix.lower() == ".tga" else None


def is_video(path: Path) -> bool:
    """Whether the file's name is that of a video; animations (GIF, WebP, APNG, AVIF) are pictures."""
    return path.suffix.lower() in VIDEOS


def require_decoder(kind: str) -> None:
    """Raises UnreadableError where this kind is not read, or needs a package that is not installed."""
    if kind in REFUSED:
        raise UnreadableError(REFUSED[kind])
    if kind not in PLUGINS:
        return
    module, package, name = PLUGINS[kind]
    try:
        plugin = import_module(module)  # pillow_jxl registers itself with Pillow
    except ImportError:
        reason = f"is {name}, which needs another package: pip install {package}, or convert it to PNG or TIFF."
        raise UnreadableError(reason) from None
    if kind == "HEIF":
        plugin.register_heif_opener()
