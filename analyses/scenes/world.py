"""Small images with known content: objects with a kind, a color and a place.

Some kinds are much more frequent than others, and every kind has a partner that often occurs with it. A model that is
trained on these images learns to expect the partner, and claims it when it is absent. Models of photographs show the
same hallucinations of frequent objects; here the true answer to every question is known.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from scenes.shapes import COLORS, KINDS, stamp
from steerlab.errors import DataError

SIDE = 64
MOST = 3  # objects of a kind


@dataclass(frozen=True)
class Thing:
    """One object of a scene: its kind, its color, and its square box in pixels."""

    kind: str
    color: str
    x: int
    y: int
    size: int


@dataclass(frozen=True)
class Scene:
    """The content of an image, and the seed of its noise.

    Example:
        >>> scene = World().scene(np.random.default_rng(0))
        >>> scene.image().size, scene.kinds
        ((64, 64), ('tree', 'boat'))
    """

    things: tuple[Thing, ...]
    seed: int
    world: World = field(repr=False)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds in the scene, each once, in the order of the objects."""
        return tuple(dict.fromkeys(thing.kind for thing in self.things))

    def count(self, kind: str) -> int:
        """The number of objects of a kind."""
        return sum(thing.kind == kind for thing in self.things)

    def neighbor(self, thing: Thing) -> tuple[str, float]:
        """The kind of the nearest object of another kind ("" if there is none), and how many times farther the
        nearest object of a third kind is."""
        nearest: dict[str, float] = {}
        for other in self.things:
            if other.kind != thing.kind:
                down, across = (other.y + other.size / 2 - thing.y - thing.size / 2,
                                other.x + other.size / 2 - thing.x - thing.size / 2)  # fmt: skip
                nearest[other.kind] = min(nearest.get(other.kind, np.inf), float(np.hypot(down, across)))
        ranked = sorted(nearest, key=lambda kind: nearest[kind])
        if not ranked:
            return "", np.inf
        return ranked[0], nearest[ranked[1]] / max(nearest[ranked[0]], 1e-9) if len(ranked) > 1 else np.inf

    def image(self) -> Image.Image:
        """The image of the scene: a pale background, the objects in order, then noise."""
        rng = np.random.default_rng(self.seed)
        ground = Image.new("RGB", (SIDE, SIDE), tuple(int(v) for v in rng.integers(205, 245, 3)))
        for thing in self.things:
            if thing.color:
                shade = np.clip(np.array(COLORS[thing.color]) + rng.integers(-20, 21, 3), 0, 255)
                ground.paste(tuple(int(v) for v in shade), (thing.x, thing.y), stamp(thing.kind, thing.size))
            else:
                sprite = self.world.sprites[thing.kind].resize((thing.size, thing.size), Image.Resampling.BOX)
                ground.paste(sprite, (thing.x, thing.y), sprite)
        noisy = np.asarray(ground, dtype=np.float32) + rng.normal(0, self.world.noise, (SIDE, SIDE, 3))
        return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


@dataclass(frozen=True)
class World:
    """The kinds of objects, how frequent they are, and which kinds occur together.

    Example:
        >>> world = World()
        >>> world.partner["ball"] in world.kinds
        True

    Args:
        kinds: names, by falling frequency (rank to the power `-skew`).
        skew: exponent of the frequencies; 0 makes all kinds equally frequent.
        partner_probability: probability that an object is followed by its partner.
        repeat_probability: probability that an object is followed by another of its kind.
        max_things: largest number of objects in a scene.
        sizes: smallest and largest side of an object, in pixels.
        noise: standard deviation of the pixels' noise, in steps of 255.
        sprites: RGBA images by kind, for kinds that are pasted instead of drawn; these objects have no color.
    """

    kinds: tuple[str, ...] = KINDS
    skew: float = 0.6
    partner_probability: float = 0.5
    repeat_probability: float = 0.3
    max_things: int = 6
    sizes: tuple[int, int] = (14, 18)
    noise: float = 8.0
    sprites: dict[str, Image.Image] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS and kind not in self.sprites]
        if unknown or len(self.kinds) < 4:
            raise DataError(f"a world needs at least four kinds, each with a shape or a sprite; {unknown} have neither")

    @cached_property
    def partner(self) -> dict[str, str]:
        """The partner of each kind; frequent and rare kinds are paired."""
        half = len(self.kinds) // 2
        return {kind: self.kinds[(i + half) % len(self.kinds)] for i, kind in enumerate(self.kinds)}

    def scene(self, rng: np.random.Generator) -> Scene:
        """One random scene."""
        weights = np.arange(1, len(self.kinds) + 1, dtype=np.float64) ** -self.skew
        wanted, chosen = int(rng.integers(1, self.max_things + 1)), list[str]()
        while len(chosen) < wanted:
            kind = self.kinds[rng.choice(len(self.kinds), p=weights / weights.sum())]
            if chosen.count(kind) == MOST:
                continue
            chosen.append(kind)
            while len(chosen) < wanted and chosen.count(kind) < MOST and rng.random() < self.repeat_probability:
                chosen.append(kind)
            partner = self.partner[kind]
            if len(chosen) < wanted and chosen.count(partner) < MOST and rng.random() < self.partner_probability:
                chosen.append(partner)
        things: list[Thing] = []
        for kind in chosen:
            things.append(self._place(kind, things, rng))
        return Scene(tuple(things), int(rng.integers(2**31)), self)

    def _place(self, kind: str, others: Sequence[Thing], rng: np.random.Generator) -> Thing:
        """An object at the best of sixteen random places, the one that covers the least of the other objects."""
        color = "" if kind in self.sprites else list(COLORS)[rng.integers(len(COLORS))]
        best, least = None, np.inf
        for _ in range(16):
            size = int(rng.integers(self.sizes[0], self.sizes[1] + 1))
            x, y = (int(v) for v in rng.integers(0, SIDE - size + 1, 2))
            hidden = sum(_overlap(x, y, size, other) for other in others)
            if hidden < least:
                best, least = Thing(kind, color, x, y, size), hidden
        assert best is not None
        return best


def _overlap(x: int, y: int, size: int, other: Thing) -> float:
    """The share of the box of another object that a new one would cover."""
    width = min(x + size, other.x + other.size) - max(x, other.x)
    height = min(y + size, other.y + other.size) - max(y, other.y)
    return max(width, 0) * max(height, 0) / other.size**2


def emoji_sprites(folder: str | Path) -> dict[str, Image.Image]:
    """RGBA images by name from a folder of `emoji.jsonl` and `png64.zip` (Noto emoji, Apache-2.0).

    Example:
        >>> sprites = emoji_sprites("emoji/")
        >>> World(kinds=tuple(sprites)[:48], sprites=sprites)

    Raises:
        DataError: the files are not there.
    """
    root = Path(folder)
    if not (root / "emoji.jsonl").is_file() or not (root / "png64.zip").is_file():
        raise DataError(f"{root} holds no emoji.jsonl and png64.zip")
    records = [json.loads(line) for line in (root / "emoji.jsonl").read_text(encoding="utf-8").splitlines()]
    with zipfile.ZipFile(root / "png64.zip") as archive:
        names = {Path(name).name: name for name in archive.namelist()}
        return {
            str(r["name"]).lower(): Image.open(io.BytesIO(archive.read(names[r["image"]]))).convert("RGBA")
            for r in records
            if r["image"] in names
        }
