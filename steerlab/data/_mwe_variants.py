"""The same questions under another system message, or with a sentence put before them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from steerlab._support.errors import DataError
from steerlab.data.example import Example

VARIANTS = ("base", "sys_pos", "sys_neg", "user_pos", "user_neg")
"""The prompts of the steerability paper: as they are; a persona as system message; a persona before the question."""

DEFAULT_SYSTEM = "You are an assistant who helps people. Be honest, and keep your answers short."
"""A plain system message to set beside the personas."""


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
        DataError: the file is missing, is not JSON, or a name has not two sentences.

    Source: steerability, arXiv 2407.12404, released code.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"there is no file {file}; expected persona_prompts.json. Check the path.")
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{file} is not JSON ({error}); fetch it again.") from error
    if not isinstance(found, dict):
        raise DataError(f"{file} holds a {type(found).__name__}; expected an object of names and sentences.")
    for name, pair in found.items():
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(s, str) and s.strip() for s in pair):
            raise DataError(f"{file}: {name!r} has {pair!r}; expected a positive and a negative sentence.")
    return {name: (pair[0], pair[1]) for name, pair in found.items()}


def prompt_variant(
    examples: Sequence[Example],
    kind: str,
    personas: Mapping[str, tuple[str, str]] | None = None,
    *,
    system: str | None = None,
) -> list[Example]:
    """The same questions, with the same ids, in another prompt.

    Example:
        >>> rows = [Example("openness/0", "Would you say this?", meta={"set": "openness"})]
        >>> personas = {"openness": ("You are open.", "You are not open.")}
        >>> prompt_variant(rows, "user_neg", personas)[0].prompt
        'You are not open.\\n\\nWould you say this?'
        >>> prompt_variant(rows, "sys_pos", personas)[0].system
        'You are open.'

    Args:
        examples: rows as `mwe` reads them, not yet changed.
        kind: "base"; "sys_pos" and "sys_neg" replace the system message by the persona's sentence; "user_pos" and
            "user_neg" put it before the question, parted by a blank line. `meta["prompt_variant"]` keeps the kind.
        personas: what `persona_prompts` gives; "base" needs none.
        system: the system message of "base", "user_pos" and "user_neg", for example `DEFAULT_SYSTEM`; None leaves
            what the rows have (by default the chat template's own).

    Raises:
        DataError: an unknown kind, a set without a sentence, or rows that already are another variant.

    Source: steerability, arXiv 2407.12404.
    """
    if kind not in VARIANTS:
        raise DataError(f"the variant {kind!r} is unknown; expected one of {list(VARIANTS)}.")
    return [_changed(row, kind, personas or {}, system) for row in examples]


def _changed(row: Example, kind: str, personas: Mapping[str, tuple[str, str]], system: str | None) -> Example:
    before = row.meta.get("variant", "base")
    if before != "base":
        raise DataError(f"{row.id!r} is the variant {before!r} already; start from the rows that `mwe` reads.")
    row = row.replace(meta={**row.meta, "variant": kind}, system=row.system if system is None else system)
    if kind == "base":
        return row
    name = row.meta.get("set", row.behavior)
    if name not in personas:
        raise DataError(
            f"{row.id!r}: there is no persona sentence for the set {name!r} among {len(personas)}; "
            "give `personas`, for example persona_prompts(path), with that name."
        )
    place, side = kind.split("_")
    sentence = personas[name][side == "neg"]
    return row.replace(system=sentence) if place == "sys" else row.replace(prompt=f"{sentence}\n\n{row.prompt}")
