"""Differences in which a few concepts change at once: synthetic ones with known concepts, and pairs of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.checks import as_number, as_seed, as_whole, check_option
from steerlab.data._files import BUILTIN, read_object
from steerlab.data.example import Contrast, Example
from steerlab.errors import DataError

CODES = ("uniform", "positive", "normal", "binary", "signs")
TEXT_KINDS = ("sentences", "objects")
_TEXTS = BUILTIN / "attribute_texts.json"


@dataclass(frozen=True)
class ConceptShifts:
    """Differences of states, and the changes of concepts that they are made of.

    Example:
        >>> made = concept_shifts(100, n_concepts=4)
        >>> made.codes.shape
        torch.Size([100, 4])

    Attributes:
        differences: `(pair, hidden)`, `codes @ concepts` and noise.
        codes: `(pair, concept)`, how far each concept changes; 0 for most.
        concepts: `(concept, hidden)`, of norm 1.
    """

    differences: Float[Tensor, "pair hidden"]
    codes: Float[Tensor, "pair concept"]
    concepts: Float[Tensor, "concept hidden"]


def concept_shifts(
    n: int = 6000, n_concepts: int = 8, hidden: int = 32, *, codes: str = "uniform", changed: tuple[int, int] = (1, 3),
    correlation: float = 0.0, coherent: bool = False, noise: float = 0.0, seed: int = 0,
) -> ConceptShifts:  # fmt: skip
    """Synthetic differences with known concepts.

    Example:
        >>> made = concept_shifts(codes="binary", changed=(1, 3))
        >>> made.differences.shape, made.codes.shape
        (torch.Size([6000, 32]), torch.Size([6000, 8]))

    Args:
        n, n_concepts, hidden: the sizes.
        codes: how far a concept changes: "uniform" in [-1, 1], "positive" in [0, 1], "normal" around 1 with deviation
            .3, "binary" always 1, or "signs" 1 or -1.
        changed: the smallest and largest number of concepts that change in a pair, drawn evenly. `(n_concepts,
            n_concepts)` is dense.
        correlation: with this probability the neighbor (0 and 1, 2 and 3, ...) of a changed concept changes too, beyond
            `changed`.
        coherent: concepts with whole positive coordinates, which have large cosines, instead of random directions.
        noise: deviation of the noise in each coordinate.
        seed: of everything.

    Raises:
        DataError: a number out of range, or an unknown kind of codes.

    Source: arXiv 2502.12179, section 5.1.
    """
    as_whole("n", n)
    check_option("codes", codes, CODES)
    as_number("correlation", correlation, 0.0, 1.0)
    as_number("noise", noise, 0.0)
    least, most = (as_whole("changed", number, 1, n_concepts) for number in changed)
    rng = np.random.default_rng(as_seed(seed))
    shape = (n_concepts, hidden)
    mixing = rng.integers(1, 10, shape).astype(float) if coherent else rng.normal(size=shape)
    mixing /= np.linalg.norm(mixing, axis=1, keepdims=True)
    places = rng.random((n, n_concepts)).argsort(1)  # the concepts of each pair in a random order
    active = places < rng.integers(least, most + 1, (n, 1))
    neighbors = np.minimum(np.arange(n_concepts) ^ 1, n_concepts - 1)
    active |= active[:, neighbors] & (rng.random((n, n_concepts)) < correlation)
    sizes = {
        "uniform": rng.uniform(-1, 1, active.shape), "positive": rng.uniform(0, 1, active.shape),
        "normal": rng.normal(1, 0.3, active.shape), "binary": np.ones(active.shape),
        "signs": rng.choice([-1.0, 1.0], active.shape),
    }[codes]  # fmt: skip
    found = np.where(active, sizes, 0.0)
    differences = found @ mixing + noise * rng.normal(size=(n, hidden))
    return ConceptShifts(*(torch.from_numpy(array).float() for array in (differences, found, mixing)))


def attribute_pairs(
    kind: str = "sentences", n: int = 600, *, changed: tuple[int, int] = (1, 3), seed: int = 0
) -> list[Example]:
    """Pairs of short texts that differ in one to three attributes at once, as contrasts of whole texts.

    "sentences": language (English, French), gender (male, female) and tense (present, past) of a sentence such as "My
    uncle opens the door." "objects": shape, color and object of "a round red table.", with many values each.

    Example:
        >>> row = attribute_pairs("objects", 1, changed=(2, 2))[0]
        >>> row.contrast.negative, row.contrast.positive, row.behavior
        ('the flat white door.', 'the flat blue mirror.', 'color+object')

    Args:
        kind: one of `TEXT_KINDS`.
        n: the number of pairs. No two are the same; the start is the contrast's negative text.
        changed: the smallest and largest number of attributes that change in a pair, drawn evenly.
        seed: of the draw.

    Returns:
        Examples whose `behavior` names the changed attributes, joined by "+", and whose `meta` has each attribute of
        both texts, such as "color_before" and "color_after", and "words": the English phrase of a sentence, or the
        article of an object. A fifth of these words, whatever the seed, is kept for the split "test".

    Raises:
        DataError: an unknown kind, a number out of range, or more pairs than there are.

    Source: written for steerlab, after the data sets of arXiv 2502.12179.
    """
    check_option("kind", kind, TEXT_KINDS)
    as_whole("n", n)
    texts = _sentences() if kind == "sentences" else _objects()
    names = list(next(iter(texts))[1])
    least, most = (as_whole("changed", number, 1, len(names)) for number in changed)
    rng = np.random.default_rng(as_seed(seed))
    by_base: dict[tuple[str, str], list[tuple[str, dict[str, str]]]] = {}  # texts that differ in attributes alone
    for text, attributes, subject, words in texts:
        by_base.setdefault((subject, words), []).append((text, attributes))
    known = sorted({words for _, words in by_base})
    held_out = set(np.random.default_rng(0).permutation(known)[: len(known) // 5].tolist())
    bases = sorted(by_base)
    pairs: dict[tuple[str, str], Example] = {}
    for _ in range(20 * n):
        subject, words = bases[rng.integers(len(bases))]
        some = by_base[subject, words]
        start, before = some[rng.integers(len(some))]
        number = int(rng.integers(least, most + 1))
        others = [(text, after) for text, after in some if sum(after[k] != before[k] for k in names) == number]
        end, after = others[rng.integers(len(others))]
        behavior = "+".join(k for k in names if after[k] != before[k])
        meta = {f"{k}_before": before[k] for k in names} | {f"{k}_after": after[k] for k in names} | {"words": words}
        pairs.setdefault(
            (start, end),
            Example(
                "", id=f"{kind}-{len(pairs)}", contrast=Contrast(end, start, whole_texts=True), behavior=behavior,
                split="test" if words in held_out else "train", meta=meta,
            ),
        )  # fmt: skip
        if len(pairs) == n:
            return list(pairs.values())
    raise DataError(f"there are not many more than {len(pairs)} different pairs: {n} were asked for")


def change_labels(examples: Sequence[Example]) -> pd.DataFrame:
    """What changed in each pair of `attribute_pairs`: a column for each value of an attribute, 1 where it came, -1
    where it went. Of an attribute with two values only the second has a column, since the first says the same.

    Example:
        >>> change_labels(attribute_pairs("sentences")).columns.tolist()
        ['language=French', 'gender=female', 'tense=past']
    """
    if not examples:
        raise DataError("there are no pairs: give those of attribute_pairs")
    names = [key.removesuffix("_before") for key in examples[0].meta if key.endswith("_before")]
    values = read_object(_TEXTS)["values"]
    columns = {
        f"{name}={value}": [(e.meta[f"{name}_after"] == value) - (e.meta[f"{name}_before"] == value) for e in examples]
        for name in names
        for value in (values[name] if len(values[name]) > 2 else values[name][1:])
    }  # fmt: skip
    return pd.DataFrame(columns, index=[e.id for e in examples])


_Text = tuple[str, dict[str, str], str, str]


def _sentences() -> list[_Text]:
    """Every sentence, with its attributes, subject and phrase."""
    found, rows = read_object(_TEXTS), []
    languages, genders, tenses = (found["values"][name] for name in ("language", "gender", "tense"))
    for subject, phrase in product(found["subjects"], found["phrases"]):
        for (k, language), (a, gender), (b, tense) in product(*map(enumerate, (languages, genders, tenses))):
            text = f"{subject[k][a]} {phrase[k][b]}."
            rows.append((text, {"language": language, "gender": gender, "tense": tense}, subject[0][0], phrase[0][0]))
    return rows


def _objects() -> list[_Text]:
    """Every object with its attributes, and the article."""
    values = read_object(_TEXTS)["values"]
    names = ("shape", "color", "object")
    return [
        (f"{article} {' '.join(some)}.", dict(zip(names, some, strict=True)), "", article)
        for article in ("a", "the", "my", "that", "one")
        for some in product(*(values[name] for name in names))
    ]
