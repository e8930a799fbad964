"""What a concept stands for: words, examples, image regions; and what steering from one to another does."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from PIL import Image, ImageStat
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from torch import Tensor

from steerlab._support.checks import as_whole
from steerlab._support.images import open_image
from steerlab.analysis.logit_lens import end_logprobs
from steerlab.capturing import Activations, capture
from steerlab.data.inputs import Data, as_examples
from steerlab.errors import DataError
from steerlab.methods import ConceptDictionary
from steerlab.models.model import Model


def concept_words(
    model: Model, concepts: Float[Tensor, "concept hidden"], *, top: int = 10, among: int = 200, min_letters: int = 3,
    stop_words: Collection[str] = ENGLISH_STOP_WORDS,
) -> list[list[str]]:  # fmt: skip
    """The words that a model would say next from each concept: the logit lens, without signs and stop words.

    Example:
        >>> concept_words(model, concepts.concepts_, top=5)[0]
        ['happy', 'glad', 'delighted', 'proud', 'excited']

    Args:
        model: whose end (final norm and head) reads them.
        concepts: states or directions, a row each.
        top: how many words at most.
        among: how many of the most probable tokens are looked at.
        min_letters: of a word; numbers are kept whatever their length.
        stop_words: words that say nothing by themselves, in lower case.

    Returns:
        The words of each concept, in lower case, the most probable first; fewer than `top` where most tokens are no
        words. A token that continues a word can't always be told from a whole one.

    Source: arXiv 2501.03012, section 3 (text grounding).
    """
    as_whole("among", among, top, model.hf.config.get_text_config().vocab_size)
    found = []
    for ids in end_logprobs(model, concepts).topk(among).indices.tolist():
        texts = [str(model.tokenizer.decode([i])).strip().lower() for i in ids]
        words = [t for t in texts if t.isdigit() or (t.isalpha() and len(t) >= min_letters and t not in stop_words)]
        found.append(list(dict.fromkeys(words))[:top])
    return found


def overlap(found: Sequence[str], others: Sequence[str]) -> float:
    """The share of a concept's words, or of the ids of its examples, that are among another's; NaN without any.

    Example:
        >>> overlap(["happy", "glad"], ["glad", "sad"])
        0.5

    Source: arXiv 2501.03012, section 3 (T-Overlap and I-Overlap; its released code counts, without dividing).
    """
    return float(np.mean([one in others for one in found])) if found else float("nan")


def concept_examples(concepts: ConceptDictionary, acts: Activations, n: int = 5) -> pd.DataFrame:
    """The examples of each concept that activate it most: of those that activate no other concept more.

    Example:
        >>> concept_examples(concepts, acts, n=3).query("concept == 0")

    Returns:
        `concept, rank, example_id, activation`, the first rank is 1; an example counts once, by its highest row. A
        concept without examples has no row.
    """
    top = concepts.activations(acts.at(concepts.site)).max(1)
    table = pd.DataFrame({"concept": top.indices, "activation": top.values, "example_id": acts.index["example_id"]})
    of_example = table[table["activation"] > 0].groupby(["concept", "example_id"], sort=False)
    most = of_example["activation"].max().reset_index()
    most = most.sort_values(["concept", "activation"], ascending=[True, False], kind="stable", ignore_index=True)
    most.insert(1, "rank", most.groupby("concept").cumcount() + 1)
    return most[most["rank"] <= n].reset_index(drop=True)


def concept_regions(
    model: Model, concepts: ConceptDictionary, data: Data, *, grid: int = 8, position: str = "last",
    batch_size: int = 16,
) -> pd.DataFrame:  # fmt: skip
    """Which regions of an image a concept needs: how far its activation falls when a region is covered.

    The states of image tokens themselves say little: what the model reads off a region may be written in another
    direction than the concept of the answer. Covering asks the model itself.

    Example:
        >>> regions = concept_regions(model, concepts, examples)
        >>> regions.loc[regions.groupby("example_id")["drop"].idxmax()]    # the patch that fires

    Args:
        model: the image-text model of the concepts.
        concepts: a fitted dictionary of states at `position`.
        data: Examples with one image each; a contrast is ignored.
        grid: the image is covered in `grid` x `grid` rectangles, one at a time, by its mean color.
        position: token of the plain prompt whose concept is read.
        batch_size: rows of a forward; each example has `grid` x `grid` + 1.

    Returns:
        `example_id, concept, row, column, drop`: the concept that the whole image activates, and the share of its
        activation that is lost; below 0 where covering makes it stronger.

    Raises:
        DataError: an example without an image, or with several.
        SteeringError: concepts of PCA or semi-NMF, whose activations may be 0 or negative.
    """
    concepts.check_centroids()
    examples = as_examples(data)
    as_whole("grid", grid, 1)
    frames = []
    for example in examples:
        if len(example.images) != 1:
            raise DataError(f"{example.id!r} has {len(example.images)} images: give examples with one image")
        image = open_image(example.images[0])
        cells = [(row, column) for row in range(grid) for column in range(grid)]
        shown = [image, *(_cover(image, *cell, grid) for cell in cells)]
        rows = [
            example.replace(images=(one,), contrast=None, extra_prompts={}, id=str(i)) for i, one in enumerate(shown)
        ]
        acts = capture(model, rows, layers=[concepts.site], positions=position, batch_size=batch_size, progress=False)
        active = concepts.activations(acts.at(concepts.site))
        concept = int(active[0].argmax())
        drop = 1 - active[1:, concept] / active[0, concept]
        frame = pd.DataFrame(cells, columns=["row", "column"])
        frames.append(frame.assign(example_id=example.id, concept=concept, drop=drop.numpy()))
    return pd.concat(frames, ignore_index=True)[["example_id", "concept", "row", "column", "drop"]]


def _cover(image: Image.Image, row: int, column: int, grid: int) -> Image.Image:
    """A copy in which one rectangle has the image's mean color."""
    covered, (width, height) = image.copy(), image.size
    mean = tuple(round(value) for value in ImageStat.Stat(image).mean)
    left, right = (place * width // grid for place in (column, column + 1))
    top, bottom = (place * height // grid for place in (row, row + 1))
    covered.paste(mean, (left, top, right, bottom))
    return covered


def rank_concept_vectors(changes: pd.DataFrame, top: int = 5) -> pd.DataFrame:
    """How clearly each vector steers to one answer, or to a few alike.

    Of the `top` answers that a vector makes more frequent, those of the upper of two clusters are its targets. The
    score is by how many answers the weakest target is ahead of all others.

    Example:
        >>> ranked = rank_concept_vectors(counts - unsteered)
        >>> ranked[ranked["n_targets"] == 1].groupby("target").head(1)

    Args:
        changes: a row for each vector, a column for each answer: how many more inputs are answered so than without.
        top: how many answers are looked at.

    Returns:
        The rows of `changes`, best first, with `target` (several joined by "|"), `n_targets` and `score`; no target and
        score 0 where no answer becomes more frequent.

    Raises:
        DataError: no vectors, or no answers.

    Source: arXiv 2501.03012, section 4 (its released code clusters the letters of a lone answer).
    """
    if changes.empty:
        raise DataError("there are no vectors or no answers to rank")
    rows = []
    for name, row in changes.iterrows():
        most = row.clip(lower=0).nlargest(top)
        start = np.array([[most.iloc[0]], [most.iloc[-1]]])
        targets = list(most.index[most > 0])
        if len(most.unique()) > 1:
            targets = list(most.index[KMeans(2, n_init=1, init=start).fit(most.to_numpy(float)[:, None]).labels_ == 0])
        rest = row.drop(targets)
        score = float(row[targets].min() - (rest.max() if len(rest) else 0)) if targets else 0.0
        rows.append({"vector": name, "target": "|".join(map(str, targets)), "n_targets": len(targets), "score": score})
    return pd.DataFrame(rows).sort_values("score", ascending=False, kind="stable", ignore_index=True)
