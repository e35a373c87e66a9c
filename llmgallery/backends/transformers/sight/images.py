"""Bytes that somebody sent as an image become pixels, or are refused. Pillow reads them; nothing here knows a model."""

from __future__ import annotations

import io
import warnings
from typing import Any

from llmgallery.core.errors import InvalidField

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Of what Pillow reads, the formats that web clients send: its other readers stay out of reach."""

MOST_BYTES = 32 << 20
MOST_PIXELS = 64 << 20
WHITE = (255, 255, 255)


def read_image(data: bytes, field: str) -> Any:
    """A PIL image in RGB, turned as its EXIF says: the first picture of an animation, on white where it is transparent. Raises
    InvalidField naming `field`."""
    from PIL import Image, ImageOps

    if len(data) > MOST_BYTES:
        raise InvalidField(f"{field}: the image has {len(data)} bytes; {MOST_BYTES} are taken at most", field=field)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's of sizes, which are checked here, and of odd metadata
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(image, field)
                return _opaque(ImageOps.exif_transpose(image))
        except InvalidField:
            raise
        except Image.DecompressionBombError as exc:
            raise InvalidField(f"{field}: the image is too large: {exc}", field=field) from exc
        except Exception as exc:  # Pillow's readers raise whatever damaged files lead them to
            known = ", ".join(FORMATS)
            raise InvalidField(f"{field}: not an image that can be read ({known}): {_reason(exc)}", field=field) from exc


def _check_size(image: Any, field: str) -> None:
    """By the header, before anything is unpacked."""
    width, height = image.size
    if width * height > MOST_PIXELS:
        what = f"the image has {width} x {height} pixels; {MOST_PIXELS} are taken at most"
        raise InvalidField(f"{field}: {what}", field=field)


def _opaque(image: Any) -> Any:
    from PIL import Image

    if image.mode in ("I", "I;16", "I;16B", "I;16L", "F"):
        image = image.point(lambda value: value / 256).convert("L")  # 16 bits a pixel, which a plain conversion clips
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        whole = image.convert("RGBA")
        ground = Image.new("RGBA", whole.size, (*WHITE, 255))
        return Image.alpha_composite(ground, whole).convert("RGB")
    return image.convert("RGB")


def _reason(exc: Exception) -> str:
    """Without the address of the buffer that Pillow names."""
    text = " ".join(str(exc).split())
    return "its format is none of these" if not text or "cannot identify" in text else text
