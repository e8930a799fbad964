"""How concepts move between two models, and what concepts stand for."""

import numpy as np
import pandas as pd
import pytest
import torch
from scenes.world import Scene, World
from synthetic_acts import activations, normal

from steerlab import Activations, Example, load
from steerlab.analysis.concepts import concept_examples, concept_regions, concept_words, overlap, rank_concept_vectors
from steerlab.analysis.logit_lens import end_logprobs
from steerlab.analysis.representation_shift import representation_shift
from steerlab.errors import DataError, MismatchError, SteeringError
from steerlab.methods import ConceptDictionary
from steerlab.metrics import match_directions
from steerlab.testing import tiny_lm

CENTERS = 5 * torch.eye(8)[:4]


def made(shift: torch.Tensor | float = 0.0, n: int = 80, noise: float = 0.2) -> Activations:
    """States of four concepts, each moved by a row of `shift`."""
    which = torch.arange(n) % 4
    moved = torch.as_tensor(shift).expand(4, 8)[which] if isinstance(shift, torch.Tensor) else shift
    x = CENTERS[which] + noise * normal(n, 8) + moved
    return activations(x[:, None], [3], {}, example_id=[f"s{i}" for i in range(n)])


def concepts(acts: Activations, n: int = 4) -> ConceptDictionary:
    return ConceptDictionary(3, n).fit(acts)


def test_identical_models_do_not_shift_and_a_constant_shift_is_recovered() -> None:
    before, constant = made(), normal(1, 8, seed=3)
    found = representation_shift(concepts(before), before, before)
    assert not found.vectors.any() and found.consistency.tolist() == [1.0] * 4
    for center in ("mean", "median", "trimmed"):
        found = representation_shift(concepts(before), before, made(constant), center=center)
        torch.testing.assert_close(found.vectors, constant.expand(4, -1), atol=1e-5, rtol=0)
        for consistency in (found.consistency, found.consistency_others):
            torch.testing.assert_close(consistency, torch.ones(4), atol=1e-5, rtol=0)
    assert found.frame()["members"].tolist() == [20] * 4


def test_center_decides_what_an_outlier_does() -> None:
    before, after = made(n=80), made(torch.ones(1, 8), n=80)
    values = after.values.clone()
    values[0] += 1000
    known = concepts(before)
    after = Activations(values, after.index, after.sites)
    shift = {c: representation_shift(known, before, after, center=c) for c in ("mean", "median", "trimmed")}
    k = int(known.assign(before.at(3))[0])
    assert shift["mean"].vectors[k].mean() == pytest.approx(51, abs=0.1)
    assert all(shift[c].vectors[k].mean() == pytest.approx(1, abs=0.01) for c in ("median", "trimmed"))


def test_moved_concepts_are_the_later_means_of_the_same_members() -> None:
    before, after = made(), made(normal(4, 8, seed=5))
    known = concepts(before)
    found = representation_shift(known, before, after)
    active = known.assign(before.at(3))
    for k in range(4):
        torch.testing.assert_close(found.predicted()[k], after.at(3)[active == k].mean(0), atol=1e-4, rtol=0)
    recovered = found.recovery(concepts(after))
    assert recovered["cosine_predicted"].min() > 0.999 and recovered["recovered"].min() > 0.95
    assert list(found.recovery(concepts(after), alpha=0.0)["recovered"]) == [0.0] * 4
    torch.testing.assert_close(found.vector(2).at(3), found.vectors[2])


def test_shifts_without_direction_are_consistent_only_with_themselves() -> None:
    """Random moves agree with their own mean by 1 / sqrt(n): without the own part they do not."""
    before = made(n=16)
    after = Activations(before.values + normal(16, 1, 8, seed=9), before.index, before.sites)
    found = representation_shift(concepts(before), before, after)
    assert float(found.consistency.mean()) > 0.35 and abs(float(found.consistency_others.mean())) < 0.25


def test_permuted_dictionary_is_matched_with_cosine_one() -> None:
    known, order = concepts(made()), torch.tensor([2, 0, 3, 1])
    found = match_directions(known.concepts_, known.concepts_[order])
    assert torch.equal(order[found.order], torch.arange(4)) and found.mean == pytest.approx(1.0)


def test_one_concept_recovers_the_nearest_of_several() -> None:
    before, constant = made(), normal(1, 8, seed=3)
    shift = representation_shift(concepts(before, 1), before, made(constant))
    after = concepts(made(constant))
    after.concepts_ = torch.stack([200 + torch.zeros(8), shift.predicted()[0], torch.zeros(8) - 90])
    assert shift.recovery(after)["partner"].tolist() == [1]


def test_share_of_no_distance_is_missing() -> None:
    shift = representation_shift(concepts(made()), made(), made(0.1))
    assert shift.recovery(shift.concepts)["recovered"].isna().all()


def test_concepts_that_no_state_activates_have_no_shift() -> None:
    known = concepts(made())
    some = made().select(example_id=["s0", "s4", "s1"])
    found = representation_shift(known, some, some)
    assert sorted(found.members.tolist()) == [0, 0, 1, 2]
    empty = int(found.members.argmin())
    assert np.isnan(float(found.consistency[empty])) and len(found.recovery(known)) == 2
    with pytest.raises(SteeringError, match="has no shift"):
        found.vector(empty)
    with pytest.raises(DataError):
        found.vector(4)


def test_other_models_and_other_rows_are_refused() -> None:
    before = made()
    known = concepts(before)
    known.info_ = {"model": "n", "weights": "v"}
    wide = activations(normal(80, 1, 9), [3], {}, example_id=[f"s{i}" for i in range(80)])
    with pytest.raises(MismatchError, match="width is 8 and 9"):
        representation_shift(known, before, wide)
    for key, one, other in (("layers", 4, 6), ("dtype", "float32", "bfloat16")):
        pair = [Activations(before.values, before.index, before.sites, {key: value}) for value in (one, other)]
        with pytest.raises(MismatchError, match=f"{key} is {one} and {other}: give one model and its further training"):
            representation_shift(known, *pair)
    moved = before.index.assign(column=before.index["column"] + 1)
    swapped = before.index.iloc[[1, 0, *range(2, 80)]].reset_index(drop=True)
    others = [Activations(before.values, one, before.sites) for one in (moved, before.index.assign(token=7), swapped)]
    for other in [made(n=76), *others]:
        with pytest.raises(MismatchError, match="two tokenizers"):
            representation_shift(known, before, other)
    texts = Activations(before.values, before.index, before.sites, {"tokens": "others"})
    with pytest.raises(MismatchError, match="read other tokens"):
        representation_shift(known, before, texts)
    directions = ConceptDictionary(3, 4, method="pca").fit(before)
    for first, second in ((directions, known), (known, directions)):
        with pytest.raises(SteeringError, match="no points in the space of states"):
            representation_shift(first, before, before).recovery(second)
    stranger = Activations(before.values, before.index, before.sites, {"model": "m", "weights": "w"})
    with pytest.raises(MismatchError, match="not of the first model"):
        representation_shift(known, stranger, stranger).recovery(known)
    with pytest.raises(MismatchError, match="one layer"):
        representation_shift(known, before, before).recovery(ConceptDictionary(2, 4).fit_states(before.at(3)))


def test_words_of_a_concept_are_the_likeliest_next_tokens_that_are_words() -> None:
    model = tiny_lm("llama")
    vectors = normal(2, model.hidden_size)
    words = concept_words(model, vectors, top=3, among=250, min_letters=1, stop_words=())
    for found, ids in zip(words, end_logprobs(model, vectors).argsort(descending=True).tolist(), strict=True):
        texts = [model.tokenizer.decode([i]).strip().lower() for i in ids[:250]]
        assert found == list(dict.fromkeys(t for t in texts if t.isalpha() or t.isdigit()))[:3]
    assert overlap(["a", "b"], ["b"]) == 0.5 and np.isnan(overlap([], ["b"]))


def test_examples_that_activate_a_concept_most() -> None:
    acts = made()
    known = concepts(acts)
    top = concept_examples(known, acts, n=3)
    distance = torch.cdist(acts.at(3), known.concepts_[:1])[:, 0]
    assert list(top.query("concept == 0")["example_id"]) == [f"s{i}" for i in distance.argsort()[:3].tolist()]


@pytest.mark.nightly
def test_region_that_a_concept_needs_holds_a_thing() -> None:
    model, rng = load("scenes-vlm", backend="hooks"), np.random.default_rng(3)
    scenes = [World().scene(rng) for _ in range(60)]
    things = [
        (scene, next(t for t in scene.things if scene.count(t.kind) == 1))
        for scene in scenes
        if _has_single(scene) and len(scene.things) > 2
    ]
    rows = [
        Example(f"What colour is the {thing.kind}?", id=str(i), images=(scene.image(),))
        for i, (scene, thing) in enumerate(things)
    ]
    known = ConceptDictionary(3, 6).fit(model, rows)
    found = concept_regions(model, known, rows[:12], batch_size=65)
    assert len(found) == 12 * 64
    best = found.loc[found.groupby("example_id")["drop"].idxmax()]
    shares, area = [], []
    for row in best.itertuples():
        inside = np.zeros((8, 8), dtype=bool)
        for thing in things[int(row.example_id)][0].things:
            middles = np.arange(8) * 8 + 4
            down, across = ((middles >= at) & (middles < at + thing.size) for at in (thing.y, thing.x))
            inside |= np.outer(down, across)
        shares.append(inside[row.row, row.column])
        area.append(inside.mean())
    assert np.mean(shares) > 0.8 > 2 * np.mean(area), "rows and columns of the frame are those of the image"
    with pytest.raises(DataError, match="2 images"):
        concept_regions(model, known, [rows[0].replace(images=rows[0].images * 2)])


def _has_single(scene: Scene) -> bool:
    return any(scene.count(t.kind) == 1 for t in scene.things)


def test_vectors_are_ranked_by_how_clearly_they_steer_to_one_answer() -> None:
    changes = pd.DataFrame(
        {"red": [40, 9, -60, -5], "blue": [1, 8, 30, 0], "green": [-41, 7, 29, -1], "gray": [0, 6, 1, 0]},
        index=["to red", "mixed", "two", "nothing"],
    )
    ranked = rank_concept_vectors(changes).set_index("vector")
    assert list(ranked.index[:2]) == ["to red", "two"]
    assert tuple(ranked.loc["to red"]) == ("red", 1, 39.0)
    assert tuple(ranked.loc["two"]) == ("blue|green", 2, 28.0)
    assert tuple(ranked.loc["nothing"]) == ("", 0, 0.0)
    lone = rank_concept_vectors(pd.DataFrame({"yes": [5.0]})).loc[0]
    assert (lone["target"], lone["score"]) == ("yes", 5.0), "one answer is no text"
    equal = rank_concept_vectors(pd.DataFrame([[5, 5, -9]], columns=["a", "b", "c"])).loc[0]
    assert (equal["target"], equal["score"]) == ("a|b", 14.0), "equal answers are all targets"
    with pytest.raises(DataError, match="no vectors"):
        rank_concept_vectors(pd.DataFrame())
