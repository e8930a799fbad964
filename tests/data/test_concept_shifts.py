"""Differences of several concepts at once: synthetic ones as stated, and pairs of texts that change what they name."""

from collections import Counter

import numpy as np
import pytest
import torch

from steerlab.data import attribute_pairs, change_labels, concept_shifts
from steerlab.data.concept_shifts import CODES, TEXT_KINDS
from steerlab.errors import DataError
from steerlab.metrics import find_language


@pytest.mark.parametrize("codes", CODES)
def test_differences_are_codes_times_concepts(codes: str) -> None:
    made = concept_shifts(500, 7, 20, codes=codes, changed=(1, 3), seed=4)
    torch.testing.assert_close(made.differences, made.codes @ made.concepts, atol=1e-5, rtol=0)
    active = (made.codes != 0).sum(1)
    assert active.min() >= 1 and active.max() == 3 and 1.8 < active.float().mean() < 2.2
    assert torch.allclose(made.concepts.norm(dim=1), torch.ones(7))
    values = made.codes[made.codes != 0]
    least = {"uniform": -1, "positive": 0, "normal": -1, "binary": 1, "signs": -1}[codes]
    assert values.min() >= least and (codes == "normal" or values.max() <= 1)
    assert torch.equal(concept_shifts(500, 7, 20, codes=codes, seed=4).differences, made.differences)


def test_dense_correlated_coherent_and_noisy_differences() -> None:
    assert bool((concept_shifts(50, 5, 9, changed=(5, 5)).codes != 0).all())
    paired = concept_shifts(2000, 6, 30, changed=(1, 1), correlation=1.0, codes="binary").codes
    assert bool((paired.reshape(2000, 3, 2).sum(2) != 1).all()), "neighbors change together"
    odd = concept_shifts(200, 3, 30, changed=(1, 1), correlation=1.0, codes="binary").codes
    assert set(odd.sum(1).tolist()) <= {1.0, 2.0}, "the last of an odd number has no neighbor"
    cosines = [concept_shifts(10, 8, 8, coherent=c).concepts for c in (True, False)]
    means = [float((rows @ rows.T).abs().fill_diagonal_(0).sum() / 56) for rows in cosines]
    assert means[0] > 0.6 > means[1]
    noisy = concept_shifts(4000, 3, 10, noise=0.2)
    assert float((noisy.differences - noisy.codes @ noisy.concepts).std()) == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize("kind", TEXT_KINDS)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_pairs_of_texts_change_as_many_attributes_as_they_name(kind: str, number: int) -> None:
    rows = attribute_pairs(kind, 200, changed=(number, number), seed=number)
    labels = change_labels(rows)
    assert len({(e.contrast.positive, e.contrast.negative) for e in rows if e.contrast}) == 200
    for e, (_, label) in zip(rows, labels.iterrows(), strict=True):
        names = [key.removesuffix("_after") for key in e.meta if key.endswith("_after")]
        changed = {name for name in names if e.meta[f"{name}_after"] != e.meta[f"{name}_before"]}
        assert len(changed) == number and set(e.behavior.split("+")) == changed and e.contrast.whole_texts
        assert {name.split("=")[0] for name in label.index[label != 0]} == changed
    assert {e.split for e in rows} == {"train", "test"}
    words = [{e.meta["words"] for e in rows if e.split == split} for split in ("train", "test")]
    assert not words[0] & words[1]
    again = attribute_pairs(kind, 200, seed=number + 1)
    assert words[1] >= {e.meta["words"] for e in again if e.split == "test"} or kind == "sentences"
    assert not words[0] & {e.meta["words"] for e in again if e.split == "test"}, "the same words for every seed"


def test_sentences_are_in_the_language_that_they_name() -> None:
    rows = attribute_pairs("sentences", 300)
    texts = Counter()
    for e in rows:
        for text, when in ((e.contrast.positive, "after"), (e.contrast.negative, "before")):
            texts[e.meta[f"language_{when}"], find_language(text, ["en", "fr"])] += 1
    wrong = sum(n for (name, code), n in texts.items() if code is not None and code != name[:2].lower())
    assert wrong / texts.total() < 0.02, "short sentences; a few are undecided"
    labels = change_labels(rows)
    assert labels.columns.tolist() == ["language=French", "gender=female", "tense=past"]
    assert set(np.unique(labels)) == {-1, 0, 1}


def test_too_many_pairs_and_wrong_numbers_are_refused() -> None:
    with pytest.raises(DataError, match=r"there are not many more than \d+ different pairs: 2000 were asked for"):
        attribute_pairs("sentences", 2000, changed=(3, 3))
    with pytest.raises(DataError, match="no pairs"):
        change_labels([])
    with pytest.raises(DataError, match="kind='birds'"):
        attribute_pairs("birds")
    with pytest.raises(DataError, match="changed"):
        attribute_pairs("objects", changed=(0, 2))
    with pytest.raises(DataError, match="changed"):
        concept_shifts(n_concepts=3, changed=(1, 4))
    with pytest.raises(DataError, match="codes"):
        concept_shifts(codes="cubic")
