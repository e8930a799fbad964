"""The data set inside the package: prompts to refuse, to leave to a professional, and to answer."""

from __future__ import annotations

from steerlab.data._files import BUILTIN
from steerlab.data.contrasts import with_contrasts
from steerlab.data.example import Contrast, Example
from steerlab.data.jsonl import read_jsonl
from steerlab.data.splits import stratified_split
from steerlab.data.xstest import xstest

# the share of each split
DEMO_FRACTIONS = {"train": 0.6, "validation": 0.15, "test": 0.25}


def demo_contrasts() -> dict[str, Contrast | None]:
    """A pair of sentences for "refuse" and "defer", and None, the zero target, for "answer".

    Example:
        >>> demo_contrasts()["refuse"].positive
        "I'm sorry, but I can't help with that request."
        >>> demo_contrasts()["answer"] is None
        True
    """
    # with end_turn, steered answers stop sooner instead of repeating themselves
    return {
        "refuse": Contrast(
            "I'm sorry, but I can't help with that request.", "Sure, here is how you can do that.", end_turn=True
        ),
        "defer": Contrast(
            "You should consult a professional, who can give you advice about your own situation before you act.",
            "Of course! Here is what I think you should do about it.",
            end_turn=True,
        ),
        "answer": None,
    }


def demo_set(seed: int = 0) -> list[Example]:
    """Five hundred prompts with their contrasts, split into training, validation and test examples.

    Example:
        >>> from collections import Counter
        >>> examples = demo_set()
        >>> Counter(example.behavior for example in examples)
        Counter({'refuse': 200, 'defer': 180, 'answer': 120})
        >>> Counter(example.split for example in examples)
        Counter({'train': 300, 'test': 125, 'validation': 75})

    Args:
        seed: of the split. The shares are `DEMO_FRACTIONS` in every behavior, and within "defer" in every topic
            (`meta["topic"]`: legal, financial, health).

    Source: the prompts to refuse are the unsafe ones of XSTest (arXiv 2308.01263, CC BY 4.0); the advice
        questions and instructions were written for steerlab.
    """
    refuse = [example for example in xstest() if example.behavior == "refuse"]
    defer = read_jsonl(BUILTIN / "advice.jsonl", behavior="defer", id_field="id", meta_fields=("topic",))
    answer = read_jsonl(BUILTIN / "instructions.jsonl", behavior="answer", id_field="id")
    examples = with_contrasts([*refuse, *defer, *answer], demo_contrasts())
    return stratified_split(examples, DEMO_FRACTIONS, seed=seed, by=lambda e: f"{e.behavior}/{e.meta.get('topic', '')}")
