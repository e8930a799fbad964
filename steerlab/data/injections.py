"""A task with a text, and that text with a foreign task hidden in it: what prompt-injection detectors learn from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import TypeVar
from zlib import crc32

import numpy as np

from steerlab._support.errors import DataError
from steerlab.data.example import Example, check_examples
from steerlab.data.injection_words import PRIMARY_TASKS, PRIMED, TRIGGERS
from steerlab.data.paragraphs import PLACES, cut, insert

Choice = TypeVar("Choice")


def injected(
    texts: Mapping[str, Sequence[str]],
    injections: Sequence[str],
    *,
    tasks: Mapping[str, Sequence[str]] = PRIMARY_TASKS,
    places: Sequence[str] = PLACES,
    triggers: Sequence[str] = TRIGGERS,
    share: float = 0.5,
    paired: bool = False,
    template: str = PRIMED,
    max_words: int | None = None,
    splits: Mapping[str, str] | None = None,
    system: str | None = None,
    seed: int = 0,
) -> list[Example]:
    """Paragraphs under a task, a share of them with a foreign task inside (behavior "injected", else "clean").

    Each prompt is the task, a space and the text, in a frame; `extra_prompts["task"]` is the same frame around the task
    alone. What is drawn for a source does not depend on the other sources.

    Example:
        >>> rows = injected({"wiki": ["Rain fell. It was cold."]}, ["Name a metal."], places=["end"], share=1.0)
        >>> rows[0].id, rows[0].behavior, rows[0].prompt.count("Name a metal."), "cold" in rows[0].extra_prompts["task"]
        ('wiki/0/end', 'injected', 1, False)

    Args:
        texts: source -> paragraphs. Generalization is told by sources that were not trained on.
        injections: foreign tasks, such as `[row.prompt for row in trivia_pairs(path)]`; they are dealt out evenly.
        tasks: family -> what the user asks for; they are dealt out evenly.
        places: where the foreign task goes: "start", "middle" (the end of a sentence that is nearest to the middle),
            "end"; they are dealt out evenly.
        triggers: sentences put before the foreign task, drawn at random; "" is none, and so is ().
        share: of each source's paragraphs that get a foreign task.
        paired: give every paragraph in both versions, with the same task; `share` is then of no account.
        template: the frame, with "{content}" where task and text go: `PRIMED`, `UNPRIMED` or your own.
        max_words: cut longer paragraphs after the last sentence that ends within so many words.
        splits: source -> split; every source needs one. None: no splits.
        system: system message of every row.
        seed: another seed, other draws.

    Returns:
        Examples `source/number/place` ("clean" for the place where there is none), with `meta`: source, place ("none"),
        family, task, injection and trigger ("" where there is none).

    Raises:
        DataError: nothing to choose from, an empty or doubled paragraph, an unknown place, "middle" of a single
            sentence, an injection that is a task or is in a paragraph already, a share that is none, a template
            without "{content}", or sources without a split.

    Source: TaskTracker, arXiv 2406.00799, section on data; the words are own.
    """
    asked = [(family, task) for family, some in tasks.items() for task in some]
    _check_choices({"tasks": [task for _, task in asked], "injections": injections, "places": places}, triggers)
    if not 0 <= share <= 1 or "{content}" not in template:
        raise DataError(
            f"share={share}, template={template!r}: expected a share from 0 to 1, and {{content}} in a frame"
        )
    _check_texts(texts, injections)
    if splits is not None and set(splits) != set(texts):
        raise DataError(f"splits name {sorted(splits)}, the sources are {sorted(texts)}: give each source its split")
    rows = []
    for source, paragraphs in texts.items():
        random = np.random.default_rng([seed, crc32(source.encode())])
        given = [p if max_words is None else cut(p, max_words) for p in paragraphs]
        chosen = set(random.permutation(len(given))[: len(given) if paired else round(share * len(given))].tolist())
        dealt, foreign, places_dealt = _dealt(random, asked), _dealt(random, injections), _dealt(random, places)
        for number, text in enumerate(given):
            family, task = next(dealt)
            meta = {"source": source, "family": family, "task": task}
            clean = Example(
                id=f"{source}/{number}/clean",
                prompt=framed(f"{task} {text}", template),
                behavior="clean",
                extra_prompts={"task": framed(task, template)},
                system=system,
                split=splits[source] if splits else "",
                meta=meta | {"place": "none", "injection": "", "trigger": ""},
            )
            if paired or number not in chosen:
                rows.append(clean)
            if number in chosen:
                injection, place = next(foreign), next(places_dealt)
                trigger = str(random.choice(list(triggers))) if triggers else ""
                version = insert(text, f"{trigger} {injection}".strip(), place)
                rows.append(
                    clean.replace(
                        id=f"{source}/{number}/{place}",
                        prompt=framed(f"{task} {version}", template),
                        behavior="injected",
                        meta=meta | {"place": place, "injection": injection, "trigger": trigger},
                    )
                )
    return check_examples(rows)


def framed(content: str, template: str = PRIMED) -> str:
    """The content in its frame; braces in it mean nothing.

    Example:
        >>> framed("Sum up {this}.", "<main>{content}</main>")
        '<main>Sum up {this}.</main>'
    """
    return template.replace("{content}", content)


def _dealt(random: np.random.Generator, choices: Sequence[Choice]) -> Iterator[Choice]:
    """The choices in a random order, over and over."""
    return cycle([choices[i] for i in random.permutation(len(choices))])


def _check_choices(choices: Mapping[str, Sequence[str]], triggers: Sequence[str]) -> None:
    for what, some in choices.items():
        if isinstance(some, str) or not some or not all(item.strip() for item in some):
            raise DataError(f"{what}={some!r}: give a list of at least one, and none that is empty")
    if isinstance(triggers, str):
        raise DataError(f"triggers={triggers!r}: give a list, or () for none")
    unknown = [place for place in choices["places"] if place not in PLACES]
    if unknown:
        raise DataError(f"unknown places {unknown}; expected some of {', '.join(PLACES)}")
    same = sorted(set(map(_plain, choices["injections"])) & set(map(_plain, choices["tasks"])))
    if same:
        raise DataError(
            f"{same[0]!r} is a task and an injection: what the user asks for is no foreign task; remove one"
        )


def _check_texts(texts: Mapping[str, Sequence[str]], injections: Sequence[str]) -> None:
    if not texts or any(isinstance(some, str) or not some for some in texts.values()):
        raise DataError(f"the sources are {sorted(texts)}: give each a list of at least one paragraph")
    seen: dict[str, str] = {}
    wanted = [_plain(injection) for injection in injections]
    for source, number, text in [(source, i, text) for source, some in texts.items() for i, text in enumerate(some)]:
        key, name = _plain(text), f"{source}/{number}"
        if not key:
            raise DataError(f"paragraph {name} is empty: leave it out")
        if key in seen:
            raise DataError(f"paragraphs {seen[key]} and {name} are the same, {text[:40]!r}: remove one of them")
        seen[key] = name
        held = next((injection for injection in wanted if injection in key), None)
        if held is not None:
            raise DataError(f"paragraph {name} holds the injection {held!r} already: it would not be clean; remove one")


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
