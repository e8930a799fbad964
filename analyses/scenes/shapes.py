"""The drawn objects of the scenes world: two dozen shapes made of polygons and circles."""

from __future__ import annotations

from functools import lru_cache
from math import cos, pi, sin
from typing import NamedTuple

from PIL import Image, ImageDraw

Point = tuple[float, float]
Polygon = tuple[Point, ...]

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 165, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 205, 40),
    "purple": (150, 60, 190),
    "orange": (240, 140, 30),
}


def _ring(n: int, radius: float = 0.5, turn: float = -pi / 2, inner: float | None = None) -> Polygon:
    """A regular polygon, or a star if an inner radius is given, around the center of the unit square."""
    radii = [radius] if inner is None else [radius, inner]
    total = n * len(radii)
    return tuple(
        (0.5 + radii[i % len(radii)] * cos(turn + 2 * pi * i / total),
         0.5 + radii[i % len(radii)] * sin(turn + 2 * pi * i / total))
        for i in range(total)
    )  # fmt: skip


def _box(left: float, top: float, right: float, bottom: float) -> Polygon:
    return ((left, top), (right, top), (right, bottom), (left, bottom))


class _Disc(NamedTuple):
    x: float
    y: float
    radius: float
    hole: bool = False


class _Hole(NamedTuple):
    points: Polygon


def _gap(x: float, y: float, radius: float) -> _Disc:
    return _Disc(x, y, radius, hole=True)


# parts in the unit square, drawn in this order
_SHAPES: dict[str, tuple[_Disc | _Hole | Polygon, ...]] = {
    "ball": (_Disc(0.5, 0.5, 0.48),),
    "box": (_box(0.05, 0.05, 0.95, 0.95),),
    "tent": (((0.5, 0.02), (1.0, 0.95), (0.0, 0.95)),),
    "star": (_ring(5, 0.52, inner=0.2),),
    "cross": (_box(0.36, 0.0, 0.64, 1.0), _box(0.0, 0.36, 1.0, 0.64)),
    "kite": (((0.5, 0.0), (0.85, 0.4), (0.5, 1.0), (0.15, 0.4)),),
    "moon": (_Disc(0.5, 0.5, 0.48), _gap(0.72, 0.42, 0.4)),
    "ring": (_Disc(0.5, 0.5, 0.5), _gap(0.5, 0.5, 0.25)),
    "house": (_box(0.15, 0.45, 0.85, 1.0), ((0.5, 0.0), (1.0, 0.45), (0.0, 0.45)), _Hole(_box(0.4, 0.65, 0.6, 1.0))),
    "tree": (_box(0.42, 0.6, 0.58, 1.0), ((0.5, 0.0), (0.9, 0.7), (0.1, 0.7))),
    "cup": (((0.1, 0.15), (0.7, 0.15), (0.6, 0.95), (0.2, 0.95)), _Disc(0.74, 0.45, 0.2), _gap(0.74, 0.45, 0.1)),
    "flag": (_box(0.1, 0.0, 0.2, 1.0), ((0.2, 0.0), (0.95, 0.25), (0.2, 0.5))),
    "arrow": (_box(0.0, 0.4, 0.6, 0.6), ((0.55, 0.1), (1.0, 0.5), (0.55, 0.9))),
    "bolt": (((0.6, 0.0), (0.15, 0.55), (0.45, 0.55), (0.35, 1.0), (0.85, 0.4), (0.52, 0.4)),),
    "cloud": (_Disc(0.27, 0.6, 0.25), _Disc(0.52, 0.42, 0.3), _Disc(0.76, 0.6, 0.23), _box(0.25, 0.6, 0.78, 0.84)),
    "fish": (_Disc(0.42, 0.5, 0.34), ((0.6, 0.5), (1.0, 0.15), (1.0, 0.85)), _gap(0.28, 0.42, 0.07)),
    "key": (_Disc(0.22, 0.5, 0.22), _gap(0.22, 0.5, 0.1), _box(0.4, 0.43, 1.0, 0.57), _box(0.75, 0.5, 0.88, 0.78)),
    "heart": (_Disc(0.28, 0.3, 0.26), _Disc(0.72, 0.3, 0.26), ((0.04, 0.4), (0.96, 0.4), (0.5, 1.0))),
    "hat": (_box(0.0, 0.72, 1.0, 0.9), _box(0.25, 0.15, 0.75, 0.75)),
    "boat": (((0.0, 0.65), (1.0, 0.65), (0.8, 1.0), (0.2, 1.0)), ((0.5, 0.0), (0.85, 0.58), (0.5, 0.58))),
    "chair": (_box(0.15, 0.0, 0.28, 1.0), _box(0.15, 0.5, 0.85, 0.63), _box(0.72, 0.5, 0.85, 1.0)),
    "hammer": (_box(0.1, 0.05, 0.9, 0.33), _box(0.43, 0.3, 0.57, 1.0)),
    "flower": (*(_Disc(0.5 + 0.27 * cos(a), 0.5 + 0.27 * sin(a), 0.2) for a in (0.0, 1.26, 2.51, 3.77, 5.03)),
               _gap(0.5, 0.5, 0.12)),
    "ladder": (_box(0.2, 0.0, 0.32, 1.0), _box(0.68, 0.0, 0.8, 1.0),
               *(_box(0.2, y, 0.8, y + 0.1) for y in (0.15, 0.45, 0.75))),
}  # fmt: skip
KINDS: tuple[str, ...] = tuple(_SHAPES)
_FINE = 4  # drawn larger by this factor and scaled down, for smooth edges


@lru_cache(maxsize=4096)
def stamp(kind: str, size: int) -> Image.Image:
    """The shape of a kind as a mask of `size` by `size` pixels, 255 inside.

    Example:
        >>> stamp("star", 16).size
        (16, 16)
    """
    side = size * _FINE
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)
    for part in _SHAPES[kind]:
        if isinstance(part, _Disc):
            left, top = (part.x - part.radius) * side, (part.y - part.radius) * side
            box = (left, top, left + 2 * part.radius * side, top + 2 * part.radius * side)
            pen.ellipse(box, fill=0 if part.hole else 255)
        else:
            points = part.points if isinstance(part, _Hole) else part
            pen.polygon([(x * side, y * side) for x, y in points], fill=0 if isinstance(part, _Hole) else 255)
    return mask.resize((size, size), Image.Resampling.BOX)
