"""Opening pictures: every mode becomes RGB, and what can't be a picture is refused in words."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from steerlab._support.errors import DataError

Picture = str | os.PathLike[str] | Image.Image
MAX_PIXELS = 100_000_000  # about 300 MB as RGB


def open_picture(picture: Picture) -> Image.Image:
    """A picture as RGB, turned as its camera says, with transparency over white.

    Example:
        >>> open_picture("photo.jpg").mode
        'RGB'

    Args:
        picture: a file, or a picture already open; grey-scale (16 bits too), palette, RGBA and CMYK are converted.

    Raises:
        DataError: no such file, not a picture, broken, without pixels, of more than 100 million pixels, or of numbers
            whose range nobody knows.

    Source: own.
    """
    name = "the picture" if isinstance(picture, Image.Image) else f"the picture {os.fspath(picture)!r}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is ours
            image = picture if isinstance(picture, Image.Image) else Image.open(picture)
        if image.width * image.height > MAX_PIXELS:
            raise DataError(
                f"{name} has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}: scale it down first"
            )
        if image.width * image.height == 0:
            raise DataError(f"{name} has no pixels ({image.width} x {image.height})")
        if image.mode in ("I", "F"):
            raise DataError(
                f"{name} holds numbers of unknown range (mode {image.mode}): convert it to 8 or 16 bits first"
            )
        image.load()
        return _rgb(ImageOps.exif_transpose(image))
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{name} has more than {MAX_PIXELS:,} pixels ({error}): scale it down first") from error
    except FileNotFoundError as error:
        raise DataError(f"{name} does not exist") from error
    except Exception as error:  # what broken files make the many decoders raise is open-ended
        raise DataError(f"{name} can't be read ({error}): it is broken, empty or no picture") from error
    finally:
        if not isinstance(picture, Image.Image) and "image" in locals():
            image.close()


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow's own conversion cuts everything above 255 to white
        return Image.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def picture_hash(picture: Picture) -> str:
    """Sixteen hexadecimal digits of a picture's file, or of its pixels where it is open already."""
    if isinstance(picture, Image.Image):
        data = f"{picture.mode} {picture.size} ".encode() + picture.tobytes()
    else:
        path = Path(picture)
        if not path.is_file():
            raise DataError(f"the picture {os.fspath(picture)!r} does not exist")
        data = path.read_bytes()
    return hashlib.sha256(data).hexdigest()[:16]
