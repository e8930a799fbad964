"""Opening images as RGB, whatever their mode; files that are no images are refused."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from steerlab._support.errors import DataError


@dataclass(frozen=True)
class ZippedImage:
    """An image file inside a zip: kept encoded, and decoded whenever it is used.

    Attributes:
        name: the zip and the place in it, for messages.
        data: the file.
    """

    name: str
    data: bytes = field(repr=False)

    def __str__(self) -> str:
        return self.name


ImageInput = str | os.PathLike[str] | Image.Image | ZippedImage
MAX_PIXELS = 100_000_000  # about 300 MB as RGB


def open_image(image: ImageInput) -> Image.Image:
    """An image as RGB, rotated as its EXIF data say, with transparency over white.

    Example:
        >>> open_image("photo.jpg").mode
        'RGB'

    Args:
        image: a file, one inside a zip, or an open image; grayscale (also of 16 bits), palette, RGBA and CMYK are
            converted.

    Raises:
        DataError: no such file, not an image, broken, without pixels, of more than 100 million pixels, or of numbers
            of unknown range.
    """
    with _in_words(image):
        if isinstance(image, Image.Image):
            return _upright(_decoded(image))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit of `_decoded` is ours
            image = Image.open(io.BytesIO(image.data) if isinstance(image, ZippedImage) else image)
        with image:
            return _upright(_decoded(image))


@contextmanager
def _in_words(image: ImageInput) -> Iterator[None]:
    """Turn any error about an image into a `DataError` that names it."""
    name = "the image" if isinstance(image, Image.Image) else f"the image {str(image)!r}"
    try:
        yield
    except DataError as error:
        raise DataError(f"{name} {error}") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{name} has more than {MAX_PIXELS:,} pixels ({error}): scale it down first") from error
    except FileNotFoundError as error:
        raise DataError(f"{name} does not exist") from error
    except Exception as error:  # what broken files make the many decoders raise is open-ended
        raise DataError(f"{name} can't be read ({error}): it is broken, empty or no image") from error


def _decoded(image: Image.Image) -> Image.Image:
    """The image with decoded pixels; too many are refused before they are decoded."""
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}: scale it down first")
    if image.width * image.height == 0:
        raise DataError(f"has no pixels ({image.width} x {image.height})")
    if image.mode in ("I", "F"):
        raise DataError(f"holds numbers of unknown range (mode {image.mode}): convert it to 8 or 16 bits first")
    image.load()
    return image


def _upright(image: Image.Image) -> Image.Image:
    return _rgb(ImageOps.exif_transpose(image))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow's own conversion cuts everything above 255 to white
        return Image.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def image_hash(image: ImageInput) -> str:
    """Sixteen hexadecimal digits of an image's file, or of its pixels where it is open already.

    Raises:
        DataError: no such file, or an open image that `open_image` would refuse.
    """
    if isinstance(image, Image.Image):
        with _in_words(image):
            data = f"{image.mode} {image.size} ".encode() + _decoded(image).tobytes()
    elif isinstance(image, ZippedImage):
        data = image.data
    else:
        path = Path(image)
        if not path.is_file():
            raise DataError(f"the image {os.fspath(image)!r} does not exist")
        data = path.read_bytes()
    return hashlib.sha256(data).hexdigest()[:16]
