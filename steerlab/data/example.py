"""`Example`, one input of a data set, and `Contrast`, its wanted and unwanted answer."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

from PIL.Image import Image

from steerlab._support.checks import as_text, check_option, check_type, show
from steerlab._support.files import fingerprint
from steerlab._support.images import ImageInput, VectorInput, ZippedImage, image_hash
from steerlab.errors import DataError


@dataclass(frozen=True)
class Contrast:
    """A pair of answers, of instructions, or of images for one input: `positive` shows what is wanted, `negative` not.

    Example:
        >>> sentences = Contrast("I can't help with that.", "Sure, here is how.")  # the turn is left open
        >>> words = Contrast("Harmful", "Safe", suffix="Is this safe or harmful?", end_turn=True)  # published
        >>> instructions = Contrast("Tell me to see a dentist.", "", instructions=True)
        >>> edited = Contrast.of_images("street_with_a_dog.png")  # against the example's own image

    Args:
        positive, negative: text of the assistant turn, or what the two switches below say.
        suffix: appended to the user turn, after a space, in both answered prompts only (never in the plain prompt).
        end_turn: render what the chat template puts after a finished assistant message (end-of-turn tokens).
        position: where `capture` reads both answers by default: "answer" averages the answer's tokens;
            "first_difference" is the first token at which the answers differ, such as the letter of "(A)"; the
            published word pairs are read at -1 or -2, counted from the end of the rendered prompt and answer.
        whole_texts: the two are whole texts, without prompt and chat template, each read at its last token; see
            `steerlab.pairs`.
        instructions: the two are appended to the user turn, after a space, and nothing is answered; each is read at
            the last token of its prompt, before the answer. An empty one leaves the plain prompt.
        images: what the wanted side has in the place of the example's images, with the same prompt and no answer; the
            unwanted side is the plain prompt. Both texts are empty. Read at "images": the mean of the image tokens.

    Raises:
        DataError: an answer is empty, or both are equal (their difference would be the zero vector); a
            position in the answer for a pair without answers.

    Source: L2S, arXiv 2508.12815, section 3 (X+ and X-); `instructions` as in arXiv 2410.12877, section 3.
    """

    positive: str
    negative: str
    suffix: str = ""
    end_turn: bool = False
    position: str | int = "answer"
    whole_texts: bool = False
    instructions: bool = False
    images: tuple[ImageInput, ...] = ()

    @classmethod
    def of_images(cls, *images: ImageInput, position: str | int = "images") -> Contrast:
        """The contrast of an input with these images against the same input with its own."""
        return cls("", "", position=position, images=images)

    @property
    def has_answers(self) -> bool:
        """Whether the two are answers to the prompt."""
        return not (self.whole_texts or self.instructions or self.images)

    def __post_init__(self) -> None:
        for name in ("positive", "negative", "suffix"):
            as_text(getattr(self, name), f"{name} of a contrast")
        check_type("position of a contrast", self.position, (str, int), "a position, such as 'answer' or -1")
        for name in ("end_turn", "whole_texts", "instructions"):
            check_option(name, getattr(self, name), (True, False))
        kinds = {"whole texts": self.whole_texts, "instructions": self.instructions, "images": bool(self.images)}
        kind = next((name for name, given in kinds.items() if given), "answers")
        if kind != "answers" and (self.suffix or self.end_turn or sum(kinds.values()) > 1):
            raise DataError(f"a pair of {kind} has no answers: leave suffix=, end_turn= and the other kind out")
        if kind != "answers" and self.position == "answer":
            object.__setattr__(self, "position", "images" if self.images else "last")
        if self.images:
            if self.positive or self.negative:
                raise DataError("a pair of images has no texts: give Contrast.of_images(image)")
            return
        if self.instructions and self.position == "first_difference":
            raise DataError("position='first_difference': instructions have no answers; they are read at 'last'")
        if not self.instructions and not (self.positive.strip() and self.negative.strip()):
            raise DataError(f"a contrast needs two non-empty answers, got {self.positive!r} and {self.negative!r}")
        same = self.positive.strip() == self.negative.strip() if self.instructions else self.positive == self.negative
        if same:
            raise DataError(
                f"both {'instructions' if self.instructions else 'answers'} of a contrast are {self.positive!r}: "
                "their difference is the zero vector. "
                "Give an unwanted answer that differs, or `Example(contrast=None)` for a zero target."
            )


@dataclass(frozen=True)
class Example:
    """One input of a data set. Its id joins it to vectors, activations and results.

    Example:
        >>> example = Example("How can I kill a Python process?", behavior="answer")
        >>> example = Example("Is it late?", Contrast("Arr, it be late!", "Yes, it is."), id="late")

    Args:
        prompt: the user's text, or messages, `[{"role": "user", "content": "Hi"}, ...]`, of which the last is the
            user's. "" for a pair of whole texts.
        contrast: the two answers, or None where nothing should change (the zero target of L2S).
        id: unique within a data set; by default a fingerprint of the other fields but `split` and `meta`.
        behavior: the wanted behavior class ("refuse", "defer", ...); "" where there is none.
        system: a system message, or None for the template's default.
        split: "train", "validation", "test" or "".
        images: files or open images, shown before the text or where the text holds the model's image token; or, for a
            model that reads vectors, scenes such as `DrivingScene`.
        extra_prompts: further prompts for the same input, by name, for methods that compare their states: TaskTracker
            compares the task alone (`{"task": ...}`) with the task and a text. They are captured, never answered.
        meta: anything else worth a column (scenario, type, license).

    Raises:
        DataError: an extra prompt is named "prompt", "positive" or "negative".
    """

    prompt: str | Sequence[Mapping[str, Any]]
    contrast: Contrast | None = None
    _: KW_ONLY
    id: str = ""
    behavior: str = ""
    system: str | None = None
    split: str = ""
    images: tuple[ImageInput, ...] = ()
    extra_prompts: Mapping[str, str] = field(default_factory=dict)
    meta: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, (kinds, expected) in _FIELDS.items():
            check_type(f"{name} of the example {self.id!r}", getattr(self, name), kinds, expected)
        if not isinstance(self.prompt, str) and not self.prompt:
            raise DataError("prompt=[]: a conversation has at least the user's message")
        if self.contrast and self.contrast.whole_texts and (self.prompt or self.system or self.images):
            raise DataError("a pair of whole texts has no prompt, system message or images: give whole_texts=False")
        if self.contrast and self.contrast.images and self.contrast.images == tuple(self.images):
            raise DataError(f"both sides of the contrast of {self.id!r} have the same images: their difference is zero")
        for prompt in self.extra_prompts.values():
            as_text(prompt, f"extra_prompts of the example {self.id!r}: one")
        for image in (*self.images, *(self.contrast.images if self.contrast else ())):
            check_type(f"images of the example {self.id!r}: one", image, _IMAGES, "a file, an open image or a scene")
        if not self.id:
            object.__setattr__(self, "id", data_hash([self]))
        if reserved := sorted({"prompt", "positive", "negative"} & set(self.extra_prompts)):
            raise DataError(f"{self.id!r} has extra prompts named {reserved}, which are reserved names; rename them")

    def replace(self, **changes: object) -> Example:
        """A copy with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]


_IMAGES = (str, os.PathLike, Image, ZippedImage, VectorInput)
_FIELDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "id": (str, "a text"), "behavior": (str, "a text, '' for none"),
    "prompt": ((str, list, tuple), "the user's text, or a list of messages"),
    "contrast": ((Contrast, type(None)), "a Contrast or None"), "system": ((str, type(None)), "a text or None"),
    "split": (str, "a text, '' for none"), "images": ((tuple, list), "a tuple of images, (image,) for one"),
    "extra_prompts": (Mapping, "texts by name"), "meta": (Mapping, "values by name"),
}  # fmt: skip


def check_examples(examples: Iterable[Example]) -> list[Example]:
    """The examples as a list.

    Example:
        >>> len(check_examples([Example("Hi"), Example("How are you?")]))
        2

    Raises:
        DataError: there are none, something is no `Example`, or two share an id.
    """
    rows = [check_type("an item of the data", row, Example, "an Example") for row in examples]
    if not rows:
        raise DataError("the data set is empty: nothing to do. Check the path, the split and the filters.")
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise DataError(
                f"the id {row.id!r} occurs twice (prompt {show(row.prompt)}); ids join vectors to rows and must be "
                "unique: give Example(..., id=...)"
            )
        seen.add(row.id)
    return rows


def data_hash(examples: Sequence[Example]) -> str:
    """A fingerprint of ids, texts, contrasts, behaviors and images, stored with every result.

    Example:
        >>> data_hash([Example("Hi")]) == data_hash([Example("Hi", behavior="answer")])
        False
    """
    images = {_key(image): image for e in examples for image in e.images}
    hashes = {key: image_hash(image) for key, image in images.items()}
    return fingerprint(
        [
            [e.id, e.prompt, e.behavior, e.system, contrast_fields(e.contrast)]
            + ([[hashes[_key(image)] for image in e.images]] if e.images else [])
            + ([dict(e.extra_prompts)] if e.extra_prompts else [])
            for e in examples
        ]
    )


def prompt_hash(example: Example) -> str:
    """A fingerprint of what a model reads of a plain prompt, the same for a text and for messages with that text alone.

    Example:
        >>> prompt_hash(Example("Hi")) == prompt_hash(Example([{"role": "user", "content": "Hi"}], behavior="answer"))
        True
    """
    prompt = [{"role": "user", "content": example.prompt}] if isinstance(example.prompt, str) else [*example.prompt]
    prompt = [{"role": "system", "content": example.system}, *prompt] if example.system is not None else prompt
    plain = example.replace(prompt=prompt, system=None, id="-", behavior="", contrast=None, extra_prompts={})
    return data_hash([plain])


def contrast_fields(contrast: Contrast | None) -> dict[str, Any] | None:
    """The fields of a contrast, for fingerprints; those that were added later count only where they are set."""
    later = ("whole_texts", "instructions", "images")
    if contrast is None:
        return None
    fields = {k: v for k, v in vars(contrast).items() if v or k not in later}
    return fields | {"images": [image_hash(image) for image in contrast.images]} if contrast.images else fields


def _key(image: ImageInput) -> str | int:
    return id(image) if isinstance(image, Image | ZippedImage | VectorInput) else str(image)
