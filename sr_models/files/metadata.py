"""What a file says about its picture: EXIF, GPS, XMP, IPTC, texts and resolution."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from . import exif as tags
from .exif import Exif

COMMENT = "Comment"  # the text of JPEG's COM and of GIF's comment, PNG's own name for it
SEGMENT = 65_000  # bytes that a JPEG segment has room for, beside its name
MANY = 2**16 - 1
IPTC_RESOURCE = 0x0404  # of Photoshop's resources
RAW_EXIF = "Raw profile type exif"
PARAMETERS = "parameters"  # where Automatic1111 keeps its settings


@dataclass(frozen=True)
class Metadata:
    """Everything about a picture except its pixels and colour space.

    text: names and texts, as PNG has them; a JPEG's or GIF's comment is 'Comment'. xmp: the packet; iptc: the
    IIM records; dpi: across and down. The picture that it belongs to stands upright.
    """

    exif: Exif = field(default_factory=Exif)
    xmp: bytes | None = None
    iptc: bytes | None = None
    text: Mapping[str, str] = field(default_factory=dict)
    dpi: tuple[float, float] | None = None


def metadata_of(image: Image.Image) -> Metadata:
    """What an opened file holds besides its pixels; damaged parts are left out. Decode the pixels first: PNG may have
    texts after them."""
    info = image.info
    exif = _exif_of(info)
    invented = image.format in ("JPEG", "MPO") and not info.get("jfif_unit")  # Pillow's 72 where there is none
    across, down = (None if invented else info.get("dpi")) or resolution_of(exif) or (0, 0)
    return Metadata(
        upright(exif),
        xmp=_as_bytes(info.get("xmp")),
        iptc=info.get("photoshop", {}).get(IPTC_RESOURCE),
        text=_texts_of(image),
        dpi=(_dots(across), _dots(down)) if across > 0 and down > 0 else None,
    )


def _exif_of(info: Mapping[Any, Any]) -> Exif:
    """ImageMagick keeps EXIF of a PNG in a text, as hexadecimal digits after three lines."""
    block = info.get("exif")
    try:
        if not block and RAW_EXIF in info:
            block = bytes.fromhex("".join(info[RAW_EXIF].split("\n")[3:]))
        return tags.parse_exif(block) if block else Exif()
    except (ValueError, TypeError):
        return Exif()


def _texts_of(image: Image.Image) -> dict[str, str]:
    left_out = ("XML:com.adobe.xmp", RAW_EXIF)
    texts = {name: str(text) for name, text in getattr(image, "text", {}).items() if name not in left_out}
    comment = _as_bytes(image.info.get("comment"))
    if comment and image.format != "PNG":
        texts[COMMENT] = _decoded(comment)
    return texts


def _as_bytes(value: Any) -> bytes | None:
    return value.encode() if isinstance(value, str) else value if isinstance(value, bytes) else None


def _decoded(text: bytes) -> str:
    try:
        return text.decode().rstrip("\0")
    except UnicodeDecodeError:
        return text.decode("latin-1").rstrip("\0")


def _dots(value: float) -> float:
    """PNG counts dots a metre: 300 dots an inch come back as 299.9994."""
    return float(round(value)) if abs(value - round(value)) < 0.01 else float(value)


def describe(source: Metadata, made_by: Mapping[str, str], strip: bool = False) -> Metadata:
    """The metadata of a result: the source's, and how the result was made.

    `made_by` has a `software`, and whatever else tells how: {"software": "One-Step SR 0.1.0", "scale": "4"}
    becomes "One-Step SR 0.1.0 (scale: 4)". It follows the source's own EXIF Software and PNG text of that name.
    With `strip` nothing is kept or added.
    """
    if strip:
        return Metadata()
    settings = ", ".join(f"{name}: {value}" for name, value in made_by.items() if name != "software")
    signature = made_by.get("software", "") + (f" ({settings})" if settings else "")
    if not signature:
        return source
    before = tags.text_of(source.exif.main.get(tags.SOFTWARE)) or source.text.get("Software", "")
    software = "; ".join(part for part in (before, signature) if part)
    changed = source.exif.with_main({tags.SOFTWARE: tags.ascii_entry(software)})
    return replace(source, exif=changed, text={**source.text, "Software": software})


def fitted(metadata: Metadata, height: int, width: int) -> Metadata:
    """The same for an upright picture of this size: orientation and sizes in EXIF and XMP agree with it."""
    exif = upright(metadata.exif)
    sizes = {tags.WIDTH: exif.long(width), tags.HEIGHT: exif.long(height)}
    exif = exif.with_main({tag: size for tag, size in sizes.items() if tag in exif.main})
    if exif.photo:
        exif = exif.with_photo({tags.PIXEL_WIDTH: exif.long(width), tags.PIXEL_HEIGHT: exif.long(height)})
    xmp = None if metadata.xmp is None else _fitted_xmp(metadata.xmp, height, width)
    return replace(metadata, exif=exif, xmp=xmp)


def upright(exif: Exif) -> Exif:
    return exif.with_main({tags.ORIENTATION: exif.short(1)}) if tags.ORIENTATION in exif.main else exif


def _fitted_xmp(packet: bytes, height: int, width: int) -> bytes:
    values = {
        b"tiff:Orientation": 1,
        b"tiff:ImageWidth": width,
        b"tiff:ImageLength": height,
        b"exif:PixelXDimension": width,
        b"exif:PixelYDimension": height,
    }
    for name, value in values.items():
        number = str(value).encode()
        packet = re.sub(rb"(\b%s\s*=\s*[\"'])\d+([\"'])" % name, rb"\g<1>%s\g<2>" % number, packet)
        packet = re.sub(rb"(<%s>)\s*\d+\s*(</%s>)" % (name, name), rb"\g<1>%s\g<2>" % number, packet)
    return packet


def resolution_of(exif: Exif) -> tuple[float, float] | None:
    """Dots per inch, from EXIF's or TIFF's tags; None where they have no unit."""
    unit = exif.number(exif.main.get(tags.RESOLUTION_UNIT))
    across = exif.ratio(exif.main.get(tags.X_RESOLUTION))
    down = exif.ratio(exif.main.get(tags.Y_RESOLUTION))
    if not across or not down or unit not in (None, tags.INCHES, tags.CENTIMETRES):
        return None
    factor = 2.54 if unit == tags.CENTIMETRES else 1
    return across * factor, down * factor


def with_resolution(exif: Exif, dpi: tuple[float, float] | None) -> Exif:
    """EXIF that has the resolution; where it has one, that stays."""
    if dpi is None or tags.X_RESOLUTION in exif.main:
        return exif
    return exif.with_main(
        {
            tags.X_RESOLUTION: exif.rational(dpi[0]),
            tags.Y_RESOLUTION: exif.rational(dpi[1]),
            tags.RESOLUTION_UNIT: exif.short(tags.INCHES),
        }
    )


def with_texts(exif: Exif, text: Mapping[str, str]) -> Exif:
    """EXIF with the texts of a PNG in its UserComment, for formats that have no texts.

    `parameters` comes first and without its name, as Automatic1111 writes and reads it; each other text is
    `name: text`. What EXIF has in tags of its own is left out.
    """
    before = tags.comment_of(exif.photo.get(tags.USER_COMMENT), exif.order)
    others = [f"{name}: {value}" for name, value in text.items() if name not in (PARAMETERS, "Software")]
    parts = [before] if before else []
    parts += [part for part in [text.get(PARAMETERS, ""), *others] if part and part not in before]
    if parts in ([], [before]):
        return exif
    return exif.with_photo({tags.USER_COMMENT: tags.comment_entry("\n".join(parts), exif.order)})


def all_in_exif(metadata: Metadata) -> Exif:
    """EXIF that carries the resolution and the texts too, for formats that have no other place for them."""
    return with_texts(with_resolution(metadata.exif, metadata.dpi), metadata.text)


def in_exif_settings(metadata: Metadata, profile: bytes | None) -> dict[str, Any]:
    """Pillow's options for saving WebP and AVIF."""
    settings = {"exif": tags.to_block(all_in_exif(metadata)), "xmp": metadata.xmp, "icc_profile": profile}
    return {name: value for name, value in settings.items() if value}


def held_by_jpeg(metadata: Metadata) -> Metadata:
    """The part that fits into JPEG's segments of 64 KB: the longest texts are left out first."""
    text = {name: value for name, value in metadata.text.items() if name != COMMENT}
    while text and len(_jpeg_block(metadata.exif, text)) > SEGMENT:
        del text[max(text, key=lambda name: len(text[name]))]
    exifs = (metadata.exif, replace(metadata.exif, photo={}), Exif())
    comment = metadata.text.get(COMMENT, "")
    return replace(
        metadata,
        exif=next(exif for exif in exifs if len(_jpeg_block(exif, text)) <= SEGMENT),
        xmp=_short(metadata.xmp),
        iptc=_short(metadata.iptc),
        text=text | ({COMMENT: comment} if comment and _short(comment.encode()) else {}),
    )


def _jpeg_block(exif: Exif, text: Mapping[str, str]) -> bytes:
    return tags.to_block(with_texts(exif, text))


def _short(value: bytes | None) -> bytes | None:
    return value if value and len(value) <= SEGMENT else None


def held_by_gif(metadata: Metadata) -> Metadata:
    """GIF has comments only."""
    return Metadata(text={name: metadata.text[name] for name in (COMMENT, "Software") if metadata.text.get(name)})


def left_out(metadata: Metadata, kept: Metadata) -> str:
    """A sentence about what a file does not keep; empty where it keeps everything."""
    blocks = [name.upper() for name in ("exif", "xmp", "iptc") if getattr(metadata, name) != getattr(kept, name)]
    texts = [f"the text {name!r}" for name in metadata.text if name not in kept.text]
    lost = ", ".join(blocks + texts)
    return f"This type of file has no room for some of the metadata, which is left out: {lost}." if lost else ""


def jpeg_settings(metadata: Metadata, profile: bytes | None) -> dict[str, Any]:
    """Pillow's options for saving JPEG."""
    metadata = held_by_jpeg(metadata)
    text = dict(metadata.text)
    comment = text.pop(COMMENT, "").encode()
    exif = _jpeg_block(metadata.exif, text)
    settings: dict[str, Any] = {
        "exif": b"Exif\0\0" + exif if exif else None,
        "xmp": metadata.xmp,
        "comment": comment,
        "extra": _iptc_segment(metadata.iptc),
        "dpi": metadata.dpi and tuple(min(round(dots), MANY) for dots in metadata.dpi),
        "icc_profile": profile,
    }
    return {name: value for name, value in settings.items() if value}


def _iptc_segment(records: bytes | None) -> bytes:
    """Photoshop's resource 0x0404 in an APP13 segment."""
    if not records:
        return b""
    padded = records + bytes(len(records) % 2)
    content = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + struct.pack(">I", len(records)) + padded
    return b"\xff\xed" + struct.pack(">H", len(content) + 2) + content
