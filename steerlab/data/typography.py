"""Phrases drawn as images: black letters on white."""

from __future__ import annotations

from functools import cache

from PIL import Image, ImageDraw, ImageFont

from steerlab._support.checks import as_text, as_whole
from steerlab._support.extras import require
from steerlab.errors import DataError


def draw_phrase(phrase: str, width: int = 512) -> Image.Image:
    """An image of the phrase in black letters on white, in as many lines as needed.

    Example:
        >>> draw_phrase("water the plants", width=256).size[0]
        256

    Args:
        phrase: one or more words.
        width: of the image, in pixels. The font size is an eleventh of it; for longer words it shrinks by half at
            most, and words that are still too long are split.

    Returns:
        A gray-scale image, as high as its lines need.

    Raises:
        DataError: the phrase is empty, or the width is less than 32 pixels.

    Source: typographic images of MM-SafetyBench, arXiv 2311.17600; in DejaVu Sans (part of matplotlib), not Arial.
    """
    words = as_text(phrase, "the phrase").split()
    if not words or as_whole("width", width) < 32:
        raise DataError(f"can't draw {phrase!r} {width} pixels wide; expected a word or more, and 32 pixels or more")
    margin = width // 32
    room = width - 2 * margin
    sizes = range(max(width // 11, 6), max(width // 22, 5), -1)
    font = _font(next((size for size in sizes if max(map(_font(size).getlength, words)) <= room), sizes[-1]))
    lines = [""]
    for piece in (piece for word in words for piece in _split_word(word, font, room)):
        longer = f"{lines[-1]} {piece}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= room else [*lines, piece]
    step = sum(font.getmetrics())
    image = Image.new("L", (width, step * len(lines) + 2 * margin), 255)
    pen = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        pen.text((margin, margin + number * step), line, fill=0, font=font)
    return image


def _split_word(word: str, font: ImageFont.FreeTypeFont, room: int) -> list[str]:
    """The word in pieces that fit into the room."""
    pieces = [""]
    for letter in word:
        fits = font.getlength(pieces[-1] + letter) <= room
        pieces = [*pieces[:-1], pieces[-1] + letter] if fits or not pieces[-1] else [*pieces, letter]
    return pieces


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    require("draw_phrase", "plots", "matplotlib")
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
