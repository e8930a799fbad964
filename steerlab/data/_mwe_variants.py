"""The same questions with a persona as system message, or before the question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from steerlab.data._files import check_option, read_object
from steerlab.data.example import Example
from steerlab.errors import DataError

VARIANTS = ("base", "sys_pos", "sys_neg", "user_pos", "user_neg")
"""The prompts of the steerability paper: unchanged; a persona as system message; a persona before the question."""

DEFAULT_SYSTEM = "You are an assistant who helps people. Be honest, and keep your answers short."
"""A plain system message to compare with the personas."""


def persona_prompts(path: str | Path) -> dict[str, tuple[str, str]]:
    r"""For every set a sentence that gives the model its persona, and one that gives it the opposite.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder) / "persona_prompts.json"
        ...     _ = file.write_text('{"openness": ["You are open.", "You are not open."]}')
        ...     persona_prompts(file)["openness"]
        ('You are open.', 'You are not open.')

    Args:
        path: a JSON object of set names, each with a list of two sentences.

    Raises:
        LoadError: the file is missing or not a JSON object.
        DataError: a set does not have two sentences.

    Source: steerability, arXiv 2407.12404, released code.
    """
    found = read_object(path)
    for name, pair in found.items():
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(s, str) and s.strip() for s in pair):
            raise DataError(f"{path}: {name!r} has {pair!r}; expected a positive and a negative sentence.")
    return {name: (pair[0], pair[1]) for name, pair in found.items()}


def prompt_variant(
    examples: Sequence[Example],
    kind: str,
    personas: Mapping[str, tuple[str, str]] | None = None,
    *,
    system: str | None = None,
) -> list[Example]:
    """The examples with the same ids and another prompt.

    Example:
        >>> examples = [Example("Would you say this?", id="openness/0", meta={"set": "openness"})]
        >>> personas = {"openness": ("You are open.", "You are not open.")}
        >>> prompt_variant(examples, "user_neg", personas)[0].prompt
        'You are not open.\\n\\nWould you say this?'
        >>> prompt_variant(examples, "sys_pos", personas)[0].system
        'You are open.'

    Args:
        examples: unchanged examples from `mwe`.
        kind: "base"; "sys_pos" and "sys_neg" replace the system message by the persona's sentence; "user_pos" and
            "user_neg" put it before the question, separated by a blank line. `meta["variant"]` keeps the kind.
        personas: as from `persona_prompts`; "base" needs none.
        system: the system message of "base", "user_pos" and "user_neg", for example `DEFAULT_SYSTEM`; None keeps
            that of the examples (by default the chat template's).

    Raises:
        DataError: an unknown kind, a set without a sentence, or examples that already are another variant.

    Source: steerability, arXiv 2407.12404.
    """
    check_option("kind", kind, VARIANTS)
    return [_change(example, kind, personas or {}, system) for example in examples]


def _change(example: Example, kind: str, personas: Mapping[str, tuple[str, str]], system: str | None) -> Example:
    before = example.meta.get("variant", "base")
    if before != "base":
        raise DataError(f"{example.id!r} already is the variant {before!r}; start from the examples of `mwe`.")
    system = example.system if system is None else system
    example = example.replace(meta={**example.meta, "variant": kind}, system=system)
    if kind == "base":
        return example
    name = example.meta.get("set", example.behavior)
    if name not in personas:
        raise DataError(
            f"{example.id!r}: there is no persona sentence for the set {name!r} among {len(personas)}; "
            "give `personas`, for example persona_prompts(path), with that name."
        )
    role, sign = kind.split("_")
    sentence = personas[name][sign == "neg"]
    if role == "sys":
        return example.replace(system=sentence)
    if not isinstance(example.prompt, str):
        raise DataError(f"the prompt of {example.id!r} is messages: put the persona's sentence into the last by hand")
    return example.replace(prompt=f"{sentence}\n\n{example.prompt}")
