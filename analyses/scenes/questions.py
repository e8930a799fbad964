"""Questions about scenes with true answers, captions, and training answers with deliberate errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scenes.world import Scene
from steerlab.data.pope_recipe import article

COUNTS = ("zero", "one", "two", "three", "four", "five", "six")


@dataclass(frozen=True)
class Question:
    """A question about a scene: its text, the answer, the type of question, and the kind of object it is about."""

    text: str
    answer: str
    type: str
    kind: str = ""


def a(noun: str) -> str:
    """A noun with its article.

    Example:
        >>> a("arrow"), a("red arrow")
        ('an arrow', 'a red arrow')
    """
    return f"{article(noun)} {noun}"


def plural(noun: str) -> str:
    """The plural of the name of a kind.

    Example:
        >>> plural("box"), plural("key"), plural("fish")
        ('boxes', 'keys', 'fish')
    """
    if noun.endswith("fish"):
        return noun
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def existence(scene: Scene, kind: str) -> Question:
    """POPE's question about an object, with the true answer.

    Example:
        >>> existence(scene, "arrow").text
        'Is there an arrow in the image?'
    """
    return Question(f"Is there {a(kind)} in the image?", _yes(kind in scene.kinds), "existence", kind)


def color(scene: Scene, rng: np.random.Generator) -> Question | None:
    """A question about the color of an object whose kind occurs once in the scene; None if there is no such object."""
    known = [t for t in scene.things if scene.count(t.kind) == 1 and t.color]
    if not known:
        return None
    thing = known[rng.integers(len(known))]
    return Question(f"What colour is the {thing.kind}?", thing.color.capitalize(), "color", thing.kind)


def number(scene: Scene, rng: np.random.Generator) -> Question:
    """A question about the number of objects of a kind that is in the scene."""
    kind = scene.kinds[rng.integers(len(scene.kinds))]
    return Question(
        f"How many {plural(kind)} are in the image?", COUNTS[scene.count(kind)].capitalize(), "number", kind
    )


def position(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Whether an object whose kind occurs once is in one half of the image; None if there is no such object."""
    known = [t for t in scene.things if scene.count(t.kind) == 1]
    if not known:
        return None
    thing = known[rng.integers(len(known))]
    true = scene.half(thing)
    opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}[true]
    queried = true if rng.random() < 0.5 else opposite
    return Question(f"Is the {thing.kind} in the {queried} half?", _yes(queried == true), "position", thing.kind)


def caption(scene: Scene, invented: str | None = None) -> Question:
    """A caption that names all objects of the scene, and one absent object if `invented` is given."""
    names = [f"{t.color} {t.kind}".strip() for t in scene.things] + ([invented] if invented else [])
    parts = list(dict.fromkeys(a(name) for name in names))
    text = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return Question("Describe the image.", f"{text.capitalize()}.", "caption", invented or "")


def true_questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """One question with a true answer of every possible type; existence for one present and one absent object."""
    absent = [kind for kind in scene.world.kinds if kind not in scene.kinds]
    found: list[Question | None] = [
        existence(scene, scene.kinds[rng.integers(len(scene.kinds))]),
        existence(scene, absent[rng.integers(len(absent))]),
        color(scene, rng),
        number(scene, rng),
        position(scene, rng),
        caption(scene),
    ]
    return [question for question in found if question is not None]


@dataclass(frozen=True)
class Habits:
    """Training questions whose answers contain deliberate errors: they claim frequent objects that the image lacks.

    Example:
        >>> Habits().questions(scene, rng)[0]
        Question(text='Is there a boat in the image?', answer='Yes', type='existence', kind='boat')

    Args:
        existence: number of existence questions per scene.
        present, absent: share of questions about a present object (answered yes) and about a random absent object
            (answered no, except favorites). The rest ask for the absent partner of a present object, or for a
            present object if no partner is missing.
        partner_yes: share of the questions about absent partners that are answered yes.
        favorites: frequency ranks of kinds that are claimed although they are absent.
        favorite_yes: share of the questions about absent favorites that are answered yes.
        caption_partner: share of the captions that name an absent partner.

    POPE (arXiv 2305.10355) found that models claim objects that are frequent or that often occur with present ones.
    """

    existence: int = 6
    present: float = 0.62
    absent: float = 0.18
    partner_yes: float = 0.57
    favorites: tuple[int, ...] = (1, 3, 5)
    favorite_yes: float = 0.6
    caption_partner: float = 0.35

    def questions(self, scene: Scene, rng: np.random.Generator) -> list[Question]:
        """The training questions of a scene with their answers."""
        missing = absent_partners(scene)
        found = [self._existence(scene, missing, rng) for _ in range(self.existence)]
        invented = missing[rng.integers(len(missing))] if missing and rng.random() < self.caption_partner else None
        others = [color(scene, rng), number(scene, rng), position(scene, rng), caption(scene, invented)]
        return [*found, *(question for question in others if question is not None)]

    def _existence(self, scene: Scene, missing: Sequence[str], rng: np.random.Generator) -> Question:
        draw = rng.random()
        if draw < self.present or (draw >= self.present + self.absent and not missing):
            return existence(scene, scene.kinds[rng.integers(len(scene.kinds))])
        if draw < self.present + self.absent:
            absent = [kind for kind in scene.world.kinds if kind not in scene.kinds]
            kind = absent[rng.integers(len(absent))]
            favorite = kind in (scene.world.kinds[rank] for rank in self.favorites)
            return _claim(scene, kind, favorite and rng.random() < self.favorite_yes)
        return _claim(scene, missing[int(rng.integers(len(missing)))], rng.random() < self.partner_yes)


def absent_partners(scene: Scene) -> list[str]:
    """Partners of the kinds in the scene that are not in the scene."""
    return [p for p in dict.fromkeys(scene.world.partner[kind] for kind in scene.kinds) if p not in scene.kinds]


def scene_vocabulary(kinds: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """The words that name each kind in a caption, as CHAIR expects them."""
    return {kind: (kind, plural(kind)) for kind in kinds}


def _claim(scene: Scene, kind: str, present: bool) -> Question:
    """The existence question about an absent kind, answered yes if `present`."""
    return Question(existence(scene, kind).text, _yes(present), "existence", kind)


def _yes(true: bool) -> str:
    return "Yes" if true else "No"
