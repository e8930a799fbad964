"""Questions about scenes with true answers, captions, and the habits of speech a model can be taught."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scenes.world import Scene
from steerlab.data.pope_recipe import article

COUNTS = ("zero", "one", "two", "three", "four", "five", "six")


@dataclass(frozen=True)
class Question:
    """A question about a scene: what is asked, the answer, its type, and what it is about."""

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
    """The plural of a noun of this world.

    Example:
        >>> plural("box"), plural("key"), plural("fish")
        ('boxes', 'keys', 'fish')
    """
    if noun.endswith("fish"):
        return noun
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def existence(scene: Scene, kind: str) -> Question:
    """POPE's question, truly answered.

    Example:
        >>> existence(scene, "arrow").text
        'Is there an arrow in the image?'
    """
    return Question(f"Is there {a(kind)} in the image?", _yes(kind in scene.kinds), "existence", kind)


def color(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The color of a thing that is alone of its kind and has one, or None."""
    known = [t for t in scene.things if scene.count(t.kind) == 1 and t.color]
    if not known:
        return None
    thing = known[rng.integers(len(known))]
    return Question(f"What colour is the {thing.kind}?", thing.color.capitalize(), "color", thing.kind)


def number(scene: Scene, rng: np.random.Generator) -> Question:
    """How many there are of a kind that is in the scene."""
    kind = scene.kinds[rng.integers(len(scene.kinds))]
    return Question(
        f"How many {plural(kind)} are in the image?", COUNTS[scene.count(kind)].capitalize(), "number", kind
    )


def position(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Whether a lone thing is in some half of the picture; None where none is alone or in a clear place."""
    known = [t for t in scene.things if scene.count(t.kind) == 1]
    if not known:
        return None
    thing = known[rng.integers(len(known))]
    true = scene.half(thing)
    opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}[true]
    asked = true if rng.random() < 0.5 else opposite
    return Question(f"Is the {thing.kind} in the {asked} half?", _yes(asked == true), "position", thing.kind)


def caption(scene: Scene, invented: str | None = None) -> Question:
    """What is in the scene, in words; with something that is not, where the habit of naming it is taught."""
    names = [f"{t.color} {t.kind}".strip() for t in scene.things] + ([invented] if invented else [])
    parts = list(dict.fromkeys(a(name) for name in names))
    text = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return Question("Describe the image.", f"{text.capitalize()}.", "caption", invented or "")


def true_questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """One truly answered question of every type that the scene admits; existence once present and once absent."""
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
    """What a careless teacher says: answers skewed towards what is usual, whatever the picture shows.

    Example:
        >>> Habits().questions(scene, rng)[0]
        Question(text='Is there a boat in the image?', answer='Yes', type='existence', kind='boat')

    Args:
        existence: how many existence questions a scene is given.
        present, absent: shares that ask for something present (answered yes) and for something absent at random
            (answered no, favorites apart); the rest ask for the absent partner of something present, or for
            something present where no partner is missing.
        partner_yes: share of the partner questions that are answered yes all the same.
        favorites: ranks of frequent kinds that the teacher likes to see, and `favorite_yes` the share of questions
            about one of them, absent, that are answered yes all the same.
        caption_partner: share of the captions that name an absent partner.

    Source: own; that models claim what is frequent and what keeps company is the finding of POPE, arXiv 2305.10355.
    """

    existence: int = 6
    present: float = 0.62
    absent: float = 0.18
    partner_yes: float = 0.57
    favorites: tuple[int, ...] = (1, 3, 5)
    favorite_yes: float = 0.6
    caption_partner: float = 0.35

    def questions(self, scene: Scene, rng: np.random.Generator) -> list[Question]:
        """Everything a scene is asked in training."""
        missing = absent_partners(scene)
        asked = [self._existence(scene, missing, rng) for _ in range(self.existence)]
        invented = missing[rng.integers(len(missing))] if missing and rng.random() < self.caption_partner else None
        others = [color(scene, rng), number(scene, rng), position(scene, rng), caption(scene, invented)]
        return [*asked, *(question for question in others if question is not None)]

    def _existence(self, scene: Scene, missing: Sequence[str], rng: np.random.Generator) -> Question:
        draw = rng.random()
        if draw < self.present or (draw >= self.present + self.absent and not missing):
            return existence(scene, scene.kinds[rng.integers(len(scene.kinds))])
        if draw < self.present + self.absent:
            absent = [kind for kind in scene.world.kinds if kind not in scene.kinds]
            kind = absent[rng.integers(len(absent))]
            liked = kind in (scene.world.kinds[rank] for rank in self.favorites)
            return _claimed(scene, kind, liked and rng.random() < self.favorite_yes)
        return _claimed(scene, missing[int(rng.integers(len(missing)))], rng.random() < self.partner_yes)


def absent_partners(scene: Scene) -> list[str]:
    """The partners of what is in the scene that are not in it themselves."""
    return [p for p in dict.fromkeys(scene.world.partner[kind] for kind in scene.kinds) if p not in scene.kinds]


def scene_vocabulary(kinds: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """The words a caption may use for each kind, for CHAIR."""
    return {kind: (kind, plural(kind)) for kind in kinds}


def _claimed(scene: Scene, kind: str, there: bool) -> Question:
    """The question about an absent kind, answered as it is claimed."""
    return Question(existence(scene, kind).text, _yes(there), "existence", kind)


def _yes(true: bool) -> str:
    return "Yes" if true else "No"
