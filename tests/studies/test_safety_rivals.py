"""The choices and sums of the study of rivals, without a model."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safety_rivals
import torch
from _safety_methods import AddKeepingNorm, RoutedWithRest, mix, routed_by_layer
from safety_rivals import CHOSEN_BY, best, earlier_rows, grid_of, parts_of_goal, stratified, without_twins
from synthetic_acts import make_acts, normal

from steerlab import Activations, Example, Site
from steerlab.analysis.behavior import MEASURES
from steerlab.errors import MismatchError
from steerlab.methods import P2S, Context, RoutedMean
from steerlab.methods.base import steering_sites


def judged() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    behaviors = np.repeat(["refuse", "defer", "answer"], [8, 6, 4])
    names = ("refuses", "refuses_fluently", "defers_fluently", "kept", "identical")
    return pd.DataFrame({name: rng.integers(0, 2, 18).astype(float) for name in names}).assign(behavior=behaviors)


def test_overall_is_the_mean_of_the_five_shares() -> None:
    frame = judged()
    harmful, expert, harmless = (frame[frame["behavior"] == b] for b in ("refuse", "defer", "answer"))
    shares = [
        harmful["refuses_fluently"].mean(), expert["defers_fluently"].mean(), 1 - expert["refuses"].mean(),
        harmless["kept"].mean(), harmless["identical"].mean(),
    ]  # fmt: skip
    found = stratified(parts_of_goal(frame), frame["behavior"], seed=0)
    assert len(CHOSEN_BY) == len(shares) and found["value"] == pytest.approx(np.mean(shares), abs=1e-3)
    assert found["low"] < found["value"] < found["high"]
    of_equal = stratified(parts_of_goal(frame) - parts_of_goal(frame), frame["behavior"], seed=0)
    assert (of_equal["value"], of_equal["low"], of_equal["high"]) == (0, 0, 0)


def test_best_setting_is_the_weaker_of_equal_ones() -> None:
    grid = pd.DataFrame({"layer": [11, 11, 13], "alpha": [1.2, 0.8, 1.2], "chosen_by": [0.7, 0.7, 0.6]})
    assert best(grid) == (11, 0.8, 0)


def test_rows_that_are_nearly_another_are_left_out() -> None:
    rows = [Example("How do I open a bank account for my son?"), Example("What is the best way to cook rice?")]
    others = [Example("how do i open a bank account for my son"), Example("Name three rivers of France.")]
    assert without_twins(rows, others) == rows[1:]


def test_fresh_test_rows_have_no_twin_in_any_row_that_was_used(monkeypatch) -> None:
    texts = {"refuse": ("Steal thing{}", 60), "defer": ("Sell item{}", 60), "answer": ("Describe place{}", 560)}
    rows = {  # each text twice
        name: [Example(text.format(i // 2), behavior=name, split="train", id=f"{name}{i}") for i in range(n)]
        for name, (text, n) in texts.items()
    }
    monkeypatch.setattr(safety_rivals, "mm_safety_bench", lambda _: rows["refuse"] + rows["defer"])
    monkeypatch.setattr(safety_rivals, "read_jsonl", lambda *_, **options: rows["answer"])
    counts = {part: dict.fromkeys(texts, n) for part, n in (("train", 6), ("validation", 3), ("test", 8))}
    monkeypatch.setattr(safety_rivals, "COUNTS", counts)
    first, fresh = (safety_rivals.load_parts("", "", 0, None, part) for part in ("first", "fresh"))
    assert all(first[part] == fresh[part] for part in ("train", "validation"))
    assert Counter(e.behavior for e in fresh["test"]) == counts["test"]
    assert without_twins(fresh["test"], [e for rows in first.values() for e in rows]) == fresh["test"]


def test_a_wider_grid_tries_what_it_lacks_and_refuses_other_sentences_and_layers(tmp_path: Path, monkeypatch) -> None:
    def search(answers, vectors, sentences, settings, name, seed) -> pd.DataFrame:
        columns = {"method": name, "sentences": sentences, "round": "methods"}
        return pd.DataFrame(settings, columns=["layer", "alpha", "first"]).assign(**columns)

    monkeypatch.setattr(safety_rivals, "search", search)
    for sentences in ("plain", "short"):
        search(None, None, sentences, [(11, 0.8, 0)], "l2s", 0).to_csv(tmp_path / f"{sentences}.csv", index=False)
    options = {"strengths": [0.8], "first": [0], "methods": ["l2s", "published", "l2s_by_kl"], "nats": [3.0], "seed": 0}

    def grid(layers: list[int], *names: str) -> pd.DataFrame:
        paths = [tmp_path / f"{name}.csv" for name in names]
        doses = argparse.Namespace(at_dose=lambda name, sentences, layer, kl: kl / layer)
        return grid_of(None, doses, argparse.Namespace(grid=paths, layers=layers, **options))

    found = grid([11, 13], "plain").groupby("method")[["layer", "alpha"]].agg(list)
    assert found.loc["l2s"].tolist() == [[11, 13], [0.8, 0.8]] and found.loc["published", "alpha"] == [2.2, 2.2]
    assert found.loc["l2s_by_kl", "alpha"] == [3 / 11, 3 / 13]  # a strength of its own at each layer
    with pytest.raises(MismatchError, match="other sentences"):
        grid([11], "plain", "short")
    with pytest.raises(MismatchError, match=r"has the layers \[11\]"):
        grid([13], "plain")
    search(None, None, "plain", [(11, 0.8, 0)], "routed_by_layer", 0).to_csv(tmp_path / "layer.csv", index=False)
    with pytest.raises(MismatchError, match="'routed_by_layer', 'several_layers'"):
        grid([9, 11], "layer")  # its deferrals would be at another layer


def acts(n: int = 60) -> Activations:
    """Three behaviors along one axis each, of which "answer" has no contrast; each target is linear in the state."""
    which = torch.arange(n) % 3
    contexts = normal(n, 24) * 0.3
    contexts[torch.arange(n), which] += 5
    targets = 4 * torch.eye(24)[which] + contexts @ normal(24, 24, seed=1) * 0.1
    names = [("refuse", "defer", "answer")[i] for i in which]
    bare = [f"s{i:04d}" for i in range(n) if names[i] == "answer"]
    return make_acts(contexts, targets, behaviors=names, bare=bare)


def test_one_vector_of_a_mix_has_the_means_in_its_shares() -> None:
    found = acts()
    refuse, defer, both = (mix(3, found, share).vectors(Context(("s0000",)))[0] for share in (1.0, 0.0, 0.25))
    own = P2S(3, zero_behaviors=["answer"]).fit(found)
    torch.testing.assert_close(refuse, own.table_[0::3].mean(0))
    torch.testing.assert_close(defer, own.table_[1::3].mean(0))
    torch.testing.assert_close(both, 0.25 * refuse + 0.75 * defer)


def test_refusals_and_deferrals_are_steered_at_a_layer_of_their_own() -> None:
    one = acts()
    found = Activations(torch.cat([one.values, 2 * one.values], 1), one.index, (Site(1), Site(3)), one.info)
    refusals, deferrals = routed_by_layer(3, found)
    assert [steering_sites(one) for one in (refusals, deferrals)] == [(Site(3),), (Site(1),)]
    both = [steerer.vectors(Context(("s0000", "s0001", "s0002"), found)) for steerer in (refusals, deferrals)]
    means = [RoutedMean(layer, zero_behaviors=["answer"]).fit(found).means_ for layer in (3, 1)]
    torch.testing.assert_close(both[0], torch.stack([means[0][2], *torch.zeros(2, 24)]))
    torch.testing.assert_close(both[1], torch.stack([torch.zeros(24), means[1][1], torch.zeros(24)]))


def test_rest_on_top_of_the_routed_mean_comes_closer_to_the_own_vectors() -> None:
    found = acts()
    own = P2S(3, zero_behaviors=["answer"]).fit(found)
    context = Context(tuple(own.ids_), found)
    errors = [
        float((method.fit(found).vectors(context) - own.table_).norm())
        for method in (RoutedMean(3, zero_behaviors=["answer"]), RoutedWithRest(3))
    ]
    assert errors[1] < 0.6 * errors[0]
    steered, everyday = Context(("s0000",), found), Context(("s0002",), found)
    rest, gated = (RoutedWithRest(3, everywhere).fit(found) for everywhere in (True, False))
    assert rest.vectors(everyday).any() and not gated.vectors(everyday).any()
    torch.testing.assert_close(gated.vectors(steered), rest.vectors(steered))


def test_adding_with_the_norm_kept_turns_a_state_and_keeps_its_length() -> None:
    h, vector = normal(2, 5, 8), normal(8, seed=1)
    found = AddKeepingNorm()(h, vector, 2.0)
    torch.testing.assert_close(found.norm(dim=-1), h.norm(dim=-1))
    torch.testing.assert_close(torch.cosine_similarity(found, h + 2 * vector, dim=-1), torch.ones(2, 5))
    torch.testing.assert_close(AddKeepingNorm()(h, vector, 0.0), h)


def test_earlier_runs_add_up_and_those_of_other_rows_are_refused(tmp_path: Path) -> None:
    plain = judged().assign(example_id=[f"e{i}" for i in range(18)], method="none", seed=0, layer=13, alpha=1.2)
    plain = plain.assign(**{name: 0.0 for name in MEASURES if name not in plain})
    paths = [tmp_path / "a.csv", tmp_path / "b.csv"]
    (tmp_path / "summary.json").write_text('{"sentences": "plain"}')
    for path, alpha in zip(paths, (1.2, 0.8), strict=True):
        pd.concat([plain, plain.assign(method="l2s", alpha=alpha)]).to_csv(path, index=False)
    found = earlier_rows([str(path) for path in paths], plain, "plain")
    counts = found.groupby(["method", "alpha"]).size()
    assert counts.to_dict() == {("l2s", 0.8): 18, ("l2s", 1.2): 18, ("none", 1.2): 18}
    assert set(found["first"]) == {0}
    with pytest.raises(MismatchError, match=r"a\.csv holds other rows"):
        earlier_rows([str(paths[0])], plain.assign(example_id=plain["example_id"][::-1].tolist()), "plain")
    with pytest.raises(MismatchError, match="of a run with the sentences 'plain', not 'short'"):
        earlier_rows([str(paths[0])], plain, "short")
