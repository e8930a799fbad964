"""What we ask a model: an `Example`, and the contrast that spells out the wanted and the unwanted answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from PIL.Image import Image

from steerlab._support.errors import DataError
from steerlab._support.files import fingerprint
from steerlab._support.images import ImageInput, ZippedImage, image_hash


@dataclass(frozen=True)
class Contrast:
    """A pair of assistant turns for one input: `positive` shows the wanted behavior, `negative` the other.

    Example:
        >>> sentences = Contrast("I can't help with that.", "Sure, here is how.")  # the turn is left open
        >>> words = Contrast("Harmful", "Safe", suffix="Is this safe or harmful?", end_turn=True)  # published

    Args:
        positive, negative: text of the assistant turn.
        suffix: appended to the *user* turn, after a space, in both sides only (never in the plain prompt).
        end_turn: render what the chat template puts after a finished assistant message (end-of-turn tokens).
        position: the position at which both sides are read when `capture` is given none: "answer" averages the answer's
            tokens; "choice" is the first token at which the answers part, such as the letter of "(A)"; the published
            word pairs are read at -1 or -2, counted from the end of the rendered row.

    Raises:
        DataError: a side is empty, or both are equal (their difference would be the zero vector).

    Source: L2S, arXiv 2508.12815, section 3 (X+ and X-).
    """

    positive: str
    negative: str
    suffix: str = ""
    end_turn: bool = False
    position: str | int = "answer"

    def __post_init__(self) -> None:
        if not self.positive.strip() or not self.negative.strip():
            raise DataError(f"a contrast needs two non-empty sides, got {self.positive!r} and {self.negative!r}")
        if self.positive == self.negative:
            raise DataError(
                f"both sides of a contrast are {self.positive!r}: their difference is the zero vector. "
                "Give an unwanted answer that differs, or `Example(contrast=None)` for a zero target."
            )


@dataclass(frozen=True)
class Example:
    """One input with an identity that follows it through every table.

    Example:
        >>> row = Example(id="xstest/1", prompt="How can I kill a Python process?", behavior="answer")

    Args:
        id: unique within a data set; the key by which vectors, activations and results are joined.
        prompt: the user's text.
        behavior: the wanted behavior class ("refuse", "defer", ...); "" where there is none.
        contrast: the two answers, or None where nothing should change (the zero target of L2S).
        system: a system message, or None for the template's own default.
        split: "train", "validation", "test" or "".
        images: pictures (files, or open ones), shown before the text or where it holds the model's image token.
        extra_prompts: other prompts about the same input, by name, for methods that compare what they leave behind: the
            task alone beside the task with a text (`{"task": ...}`). They are read, never answered.
        meta: anything else worth a column (scenario, type, license).
    """

    id: str
    prompt: str
    behavior: str = ""
    contrast: Contrast | None = None
    system: str | None = None
    split: str = ""
    images: tuple[ImageInput, ...] = ()
    extra_prompts: Mapping[str, str] = field(default_factory=dict)
    meta: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        taken = sorted({"prompt", "positive", "negative"} & set(self.extra_prompts))
        if taken:
            raise DataError(f"{self.id!r} has captures called {taken}: these names are those of its own sides; rename")

    def replace(self, **changes: object) -> Example:
        """A copy with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]


def check_examples(examples: Iterable[Example]) -> list[Example]:
    """The examples as a list, refused when empty or when two share an id."""
    rows = list(examples)
    if not rows:
        raise DataError("the data set is empty: nothing to do. Check the path, the split and the filters.")
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise DataError(f"the id {row.id!r} occurs twice; ids join vectors to rows and must be unique")
        seen.add(row.id)
    return rows


def data_hash(examples: Sequence[Example]) -> str:
    """A fingerprint of ids, texts, contrasts, behaviors and pictures, stored with every result."""
    images = {_key(image): image for e in examples for image in e.images}
    hashes = {key: image_hash(image) for key, image in images.items()}
    return fingerprint(
        [
            [e.id, e.prompt, e.behavior, e.system, vars(e.contrast) if e.contrast else None]
            + ([[hashes[_key(p)] for p in e.images]] if e.images else [])
            + ([dict(e.extra_prompts)] if e.extra_prompts else [])
            for e in examples
        ]
    )


def _key(image: ImageInput) -> str | int:
    return id(image) if isinstance(image, Image | ZippedImage) else str(image)
