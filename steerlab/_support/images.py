"""Opening images: every mode is converted to RGB, and files that are no usable image are refused."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from steerlab.errors import DataError


@dataclass(frozen=True)
class ZippedImage:
    """The file of an image in a zip archive; decoded whenever it is used, and not kept decoded.

    Attributes:
        name: the archive and the path in it, for messages.
        data: the bytes of the file.
    """

    name: str
    data: bytes = field(repr=False)

    def __str__(self) -> str:
        return self.name


class VectorInput(ABC):
    """What some models read in the place of an image: objects described by numbers, which must not change."""

    @property
    @abstractmethod
    def tensors(self) -> Mapping[str, Any]:
        """The arrays by name, float32."""


ImageInput = str | os.PathLike[str] | Image.Image | ZippedImage | VectorInput
MAX_PIXELS = 100_000_000  # about 300 MB as RGB


def open_image(image: ImageInput) -> Image.Image:
    """The image as RGB, turned as its EXIF orientation says, with transparency over white.

    Example:
        >>> open_image("photo.jpg").mode
        'RGB'

    Args:
        image: a file, a file in a zip archive, or an open image; gray-scale (also 16 bits), palette, RGBA and CMYK
            images are converted.

    Raises:
        DataError: the file does not exist, or is no readable image; the image has no pixels, more than 100 million, or
            pixel values of unknown range.
    """
    with _named_errors(image):
        if isinstance(image, VectorInput):
            raise DataError("is a scene of object vectors, which has no pixels")
        if isinstance(image, Image.Image):
            return _to_rgb(_load_pixels(image))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `_load_pixels` has a limit of its own
            opened = Image.open(io.BytesIO(image.data) if isinstance(image, ZippedImage) else image)
        with opened:
            return _to_rgb(_load_pixels(opened))


@contextmanager
def _named_errors(image: ImageInput) -> Iterator[None]:
    """Turn every error into a `DataError` that names the image."""
    name = "the image" if isinstance(image, Image.Image) else f"the image {str(image)!r}"
    if isinstance(image, VectorInput):
        name = "the input"
    try:
        yield
    except DataError as error:
        raise DataError(f"{name} {error}") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{name} has more than {MAX_PIXELS:,} pixels ({error}): scale it down first") from error
    except FileNotFoundError as error:
        raise DataError(f"{name} does not exist") from error
    except Exception as error:  # decoders raise errors of any type for broken files
        raise DataError(f"{name} cannot be read ({error}): it is broken, empty or no image") from error


def _load_pixels(image: Image.Image) -> Image.Image:
    """The image with its pixels decoded; checked before, as decoding too many would fill the memory."""
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}: scale it down first")
    if image.width * image.height == 0:
        raise DataError(f"has no pixels ({image.width} x {image.height})")
    if image.mode in ("I", "F"):
        raise DataError(f"has pixel values of unknown range (mode {image.mode}): convert it to 8 or 16 bits first")
    image.load()
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow's conversion clips every value above 255 to white
        return Image.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8)).convert("RGB")
    if {"A", "a"} & {*image.getbands()} or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def image_hash(image: ImageInput) -> str:
    """Sixteen hexadecimal digits of an image's file, of an open image as it is shown, or of the numbers of a scene.

    Raises:
        DataError: the file does not exist, or `open_image` would refuse the open image.
    """
    with _named_errors(image):
        if isinstance(image, Image.Image):
            shown = _to_rgb(_load_pixels(image))  # two palettes, or orientations, may have the same stored bytes
            data = f"{shown.mode} {shown.size} ".encode() + shown.tobytes()
        elif isinstance(image, VectorInput):
            arrays = [(name, np.asarray(array, dtype=np.float32)) for name, array in image.tensors.items()]
            data = b"".join(f"{name} {array.shape} ".encode() + array.tobytes() for name, array in arrays)
        else:
            data = image.data if isinstance(image, ZippedImage) else Path(image).read_bytes()
    return hashlib.sha256(data).hexdigest()[:16]
