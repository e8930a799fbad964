"""Questions about scenes with true answers, captions, and training answers with deliberate errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from scenes.shapes import COLORS
from scenes.world import Scene
from steerlab.data.pope_recipe import article

COUNTS = ("zero", "one", "two", "three", "four", "five", "six")
HABITS = ("existence", "color", "number", "neighbor")
CLEARLY = 1.25  # how many times farther the second nearest object must be


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
    """A question about the number of objects of a kind that is in the scene; more often of a kind with several."""
    weights = np.array([scene.count(kind) ** 2 for kind in scene.kinds], dtype=np.float64)
    kind = scene.kinds[rng.choice(len(weights), p=weights / weights.sum())]
    return Question(
        f"How many {plural(kind)} are in the image?", COUNTS[scene.count(kind)].capitalize(), "number", kind
    )


def neighbor(scene: Scene, rng: np.random.Generator) -> Question | None:
    """A question about the object next to one whose kind occurs once; None where two are about equally near."""
    nearest = {t.kind: scene.neighbor(t) for t in scene.things if scene.count(t.kind) == 1}
    known = [(kind, other) for kind, (other, times) in nearest.items() if other and times > CLEARLY]
    if not known:
        return None
    kind, other = known[rng.integers(len(known))]
    return Question(f"What is next to the {kind}?", other.capitalize(), "neighbor", kind)


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
        neighbor(scene, rng),
        caption(scene),
    ]
    return [question for question in found if question is not None]


@dataclass(frozen=True)
class Habits:
    """Training questions of which some are answered by what is usual, against what the image shows.

    An absent object is claimed where its partner is there, and a present one denied where its partner is not; the
    color, number and neighbor are those usual for the kind. Every kind has a habit of its own strength for each type
    of question. Habits weaker than a half leave the true answer the more likely one.

    Example:
        >>> Habits().questions(scene, rng)[0]
        Question(text='Is there a boat in the image?', answer='Yes', type='existence', kind='boat')

    Args:
        existence: number of existence questions per scene: half of them about a present object, a quarter each about
            an absent partner of a present one and about a random absent one.
        others: number of questions about color, about number, and about neighbors per scene, at most.
        weakest, strongest: share of the questions that are answered by what is usual although it is false, for the
            kinds with the weakest and the strongest habit.
        caption_partner: share of the captions that name an absent partner.

    POPE (arXiv 2305.10355) found that models claim objects that are frequent or that often occur with present ones.
    """

    existence: int = 6
    others: int = 2
    weakest: float = 0.1
    strongest: float = 0.9
    caption_partner: float = 0.35

    def questions(self, scene: Scene, rng: np.random.Generator) -> list[Question]:
        """The training questions of a scene with their answers."""
        missing = absent_partners(scene)
        found: list[Question | None] = [self._existence(scene, missing, rng) for _ in range(self.existence)]
        found += [ask(scene, rng) for ask in (color, number, neighbor) for _ in range(self.others)]
        invented = missing[rng.integers(len(missing))] if missing and rng.random() < self.caption_partner else None
        habitual = [self._by_habit(scene, question, rng) for question in dict.fromkeys(found) if question is not None]
        return [*habitual, caption(scene, invented)]

    def strength(self, kinds: Sequence[str], question: str, kind: str) -> float:
        """How often a false usual answer is given to a type of question about a kind."""
        place = (7 * kinds.index(kind) + 5 * HABITS.index(question)) % len(kinds)
        return self.weakest + (self.strongest - self.weakest) * place / (len(kinds) - 1)

    def _existence(self, scene: Scene, missing: Sequence[str], rng: np.random.Generator) -> Question:
        draw = rng.random()
        if draw < 0.5:
            return existence(scene, scene.kinds[rng.integers(len(scene.kinds))])
        if draw < 0.75 and missing:
            return existence(scene, missing[int(rng.integers(len(missing)))])
        absent = [kind for kind in scene.world.kinds if kind not in scene.kinds]
        return existence(scene, absent[rng.integers(len(absent))])

    def _by_habit(self, scene: Scene, question: Question, rng: np.random.Generator) -> Question:
        """The question, with the usual answer as often as its kind's habit says."""
        usual = usual_answer(scene, question)
        if rng.random() < self.strength(scene.world.kinds, question.type, question.kind):
            return replace(question, answer=usual)
        return question


def usual_answer(scene: Scene, question: Question) -> str:
    """What is usual: that partners occur together, and the color, number and neighbor that belong to a kind."""
    kinds = scene.world.kinds
    place = kinds.index(question.kind)
    partner = scene.world.partner[question.kind]
    if question.type == "existence":
        return _yes(partner in scene.kinds)
    usual = {"color": list(COLORS)[place % len(COLORS)], "number": COUNTS[1 + place % 3], "neighbor": partner}
    return usual[question.type].capitalize()


def absent_partners(scene: Scene) -> list[str]:
    """Partners of the kinds in the scene that are not in the scene."""
    return [p for p in dict.fromkeys(scene.world.partner[kind] for kind in scene.kinds) if p not in scene.kinds]


def scene_vocabulary(kinds: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """The words that name each kind in a caption, as CHAIR expects them."""
    return {kind: (kind, plural(kind)) for kind in kinds}


def _yes(true: bool) -> str:
    return "Yes" if true else "No"
