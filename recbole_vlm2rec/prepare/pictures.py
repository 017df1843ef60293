"""One picture: its file name, and the same plain JPEG out of whatever bytes came in.

May import pillow and numpy. Thread-safe: nothing here touches Pillow's globals.
"""

from __future__ import annotations

import hashlib
import io
import re

import numpy as np
from PIL import Image

from recbole_vlm2rec.prepare.settings import Settings

Image.init()
FORMATS = [name for name in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF") if name in Image.OPEN]  # old Pillows lack AVIF
QUALITY = 90
LARGEST_RATIO = 200
"""Longer side to shorter side; the picture processors of several models refuse more."""

_PLAIN = re.compile(r"[A-Z0-9_-]{1,64}")
_RESERVED = re.compile(r"(CON|PRN|AUX|NUL|COM\d|LPT\d)")
_LIKE_HASHED = re.compile(r".*-[0-9A-F]{16}")
_ORIENTATION = 0x0112
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PictureError(ValueError):
    """The bytes are no picture that can be used; `reason` is short and the same for the same defect."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def image_name(token: str) -> str:
    """`<token>.jpg` for a plain token (capitals, digits, `_`, `-`), else a readable part and a hash of the token.

    No two tokens share a name, even where a file system ignores case, and no token leaves the folder.
    """
    if _PLAIN.fullmatch(token) and not _RESERVED.fullmatch(token) and not _LIKE_HASHED.fullmatch(token):
        return f"{token}.jpg"
    readable = re.sub(r"[^a-z0-9_]+", "-", token.lower()).strip("-")[:40]
    digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{readable}-{digest}.jpg"


def normalise(data: bytes, settings: Settings) -> bytes:
    """JPEG bytes: RGB, upright, first frame, transparent parts white, at most `settings.longest_side` pixels on the longer side.

    A JPEG that is all this already stays byte for byte. The format is that of the content, whatever the name said. Raises
    PictureError for what cannot be decoded whole, is a placeholder (below `min_side`) or too large (`max_pixels`).
    """
    if not data:
        raise PictureError("empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(*image.size, settings)
        upright = image.getexif().get(_ORIENTATION, 1) == 1
        plain = image.format == "JPEG" and image.mode == "RGB" and upright and max(image.size) <= settings.longest_side
        if not plain:
            # JPEG is decoded at a half, quarter or eighth where that is still large enough: faster, and no worse.
            image.draft(None, (settings.longest_side * 2, settings.longest_side * 2))
        image.load()
        return data if plain else _plain_jpeg(image, settings)
    except PictureError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, below a `max_pixels` that was raised
        limit = min(settings.max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or settings.max_pixels))
        raise PictureError(f"more than {limit} pixels") from error
    except Image.UnidentifiedImageError as error:
        raise PictureError(_what_it_is(data)) from error
    except Exception as error:
        # Pillow's decoders answer damage with any type (RuntimeError for AVIF, struct.error and TypeError for TIFF and EXIF, …),
        # and one picture must not end a whole preparation.
        raise PictureError("damaged or truncated picture") from error


def _check_size(width: int, height: int, settings: Settings) -> None:
    if width * height > settings.max_pixels:
        raise PictureError(f"more than {settings.max_pixels} pixels")
    if min(width, height) < settings.min_side:
        raise PictureError(f"a side below {settings.min_side} pixels")
    if max(width, height) > LARGEST_RATIO * min(width, height):
        raise PictureError(f"a side more than {LARGEST_RATIO} times the other")


def _plain_jpeg(image: Image.Image, settings: Settings) -> bytes:
    # Not ImageOps.exif_transpose: it also writes the EXIF anew, which fails for odd EXIF around good pixels.
    turn = _TO_UPRIGHT.get(image.getexif().get(_ORIENTATION))
    image = _to_rgb(image if turn is None else image.transpose(turn))
    scale = settings.longest_side / max(image.size)
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in image.size)
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    image.info.clear()  # a comment would be taken along, and a long one refused
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _eight_bits(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit and float greys scaled to 0–255; Pillow's own conversion would clip them to white."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    low = min(values.min(), 0.0)
    high = (
        65535.0 if image.mode != "F" and 255 < values.max() <= 65535 else max(values.max(), 1.0 if image.mode == "F" else 255.0)
    )
    return Image.fromarray(np.uint8(np.round((values - low) * (255.0 / max(high - low, 1e-12)))))


def _what_it_is(data: bytes) -> str:
    start = data[:512].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        return "HTML or XML, not a picture"
    return "not a picture of a known format"
