"""W2S: each input is steered at the site with the largest predicted slope, and nowhere else."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from synthetic_acts import activations, check_saved, normal

from steerlab import L2S, Contrast, Example, MeanDifference, SteeringVector, capture, generate, score, sweep
from steerlab.analysis.steerability import slopes
from steerlab.errors import DataError, SteeringError
from steerlab.methods import W2S, Context, Gated, LinearProbe
from steerlab.testing import tiny_lm

PROMPTS = ("Tell me of the Nile.", "Hi", "What does a heron eat, and where does it sleep at night?", "Oh no")
VECTORS = [SteeringVector({k: 4 * normal(32, seed=k)}) for k in (1, 2, 3)]


def planted(n: int = 80) -> tuple[object, pd.DataFrame]:
    """States and slopes that are linear in them, with a little noise."""
    states, weights = normal(n, 32), normal(32, 3, seed=1)
    ids = [f"s{i}" for i in range(n)]
    wanted = (states @ weights + torch.tensor([0.5, 0.0, -0.5]) + 0.01 * normal(n, 3, seed=2)).numpy()
    table = pd.DataFrame(wanted, index=ids, columns=[1, 2, 3]).rename_axis("example_id").reset_index()
    long = table.melt("example_id", var_name="layer", value_name="slope").sample(frac=1, random_state=0)
    return activations(states[:, None], [2], {}, example_id=ids), long


def test_slopes_are_predicted_and_the_largest_is_chosen(tmp_path: Path) -> None:
    acts, table = planted()
    w2s = W2S(VECTORS, 2).fit(acts, slopes=table)
    context = Context(tuple(f"s{i}" for i in range(80)), acts)
    wanted = table.pivot(index="example_id", columns="layer", values="slope").loc[list(context.example_ids)].to_numpy()
    predicted = w2s.predict_slopes(context).numpy()
    assert np.abs(predicted - wanted).max() < 0.1 and predicted.std() > 3
    clear = np.sort(wanted, 1)[:, -1] - np.sort(wanted, 1)[:, -2] > 0.3
    assert (w2s.choose(context).numpy() == wanted.argmax(1))[clear].all()
    assert set(w2s.choose(context).tolist()) == {0, 1, 2}
    gates = torch.stack([one.gate for one in w2s.interventions(context)], 1)
    assert torch.equal(gates, torch.nn.functional.one_hot(w2s.choose(context), 3).float())
    assert torch.equal(check_saved(w2s, tmp_path, context).predict_slopes(context), w2s.predict_slopes(context))


@pytest.mark.parametrize("backend", ["nnsight", "hooks"])
def test_texts_and_scores_are_those_of_the_chosen_vector_alone(backend: str) -> None:
    model = tiny_lm("llama", backend=backend)
    acts = capture(model, PROMPTS, layers=[2])
    ids = list(dict.fromkeys(acts.index["example_id"]))
    best = {example_id: number % 3 for number, example_id in enumerate(ids)}
    table = pd.DataFrame(
        [(i, layer, float(best[i] == number)) for i in ids for number, layer in enumerate((1, 2, 3))],
        columns=["example_id", "layer", "slope"],
    )
    w2s = W2S(VECTORS, 2).fit(model, PROMPTS, slopes=table)
    chosen = w2s.choose(Context(tuple(ids), acts)).tolist()
    assert chosen == [0, 1, 2, 0]
    options = {"positions": "last+generated", "alpha": 1.0}
    together = generate(model, PROMPTS, steer=w2s, max_new_tokens=5, **options)
    scored = score(model, PROMPTS, ["yes"] * 4, steer=w2s, **options)
    for number, prompt in enumerate(PROMPTS):
        alone = generate(model, [prompt], steer=VECTORS[chosen[number]], max_new_tokens=5, **options)
        assert together.ids[number] == alone.ids[0]
        one = score(model, [prompt], ["yes"], steer=VECTORS[chosen[number]], **options)
        assert scored["logprob"][number] == pytest.approx(one["logprob"][0], abs=1e-4)
    assert together.steered_tokens == sum(len(ids) for ids in together.ids), "each row at one site"


def test_fitted_to_a_sweep_of_its_own_steerers_and_wrapped() -> None:
    model = tiny_lm("llama")
    rows = [Example(p, Contrast("No, never.", "Yes, sure"), behavior="b", id=str(k)) for k, p in enumerate(PROMPTS)]
    every = MeanDifference([1, 3]).fit(model, rows)
    by_layer = {k: SteeringVector({k: every.at(k)}) for k in (1, 3)}
    frame = sweep(model, rows, {"mean": by_layer}, [1, 3], (-1.0, 0.0, 1.0), "last+generated", progress=False)
    found = slopes(frame, frame["metric"].iloc[0])
    w2s = W2S(every, 1).fit(model, rows, slopes=found)
    assert [site.layer for site in w2s.sites] == [1, 3]
    learned = [L2S(k, seed=0, progress=False).fit(capture(model, rows, layers=[k])) for k in (1, 3)]
    texts = generate(model, rows, steer=W2S(learned, 1).fit(model, rows, slopes=found), max_new_tokens=3)
    assert texts.steered_tokens > 0 and len(texts.norm_ratios["layer"].unique()) <= 2
    labeled = [row.replace(behavior="refuse" if k % 2 else "answer", contrast=None) for k, row in enumerate(rows)]
    probe = LinearProbe(1).fit(capture(model, labeled, layers=[1]))
    gated = generate(model, rows, steer=Gated(w2s, probe, threshold=0.5), max_new_tokens=3)
    assert 0 < gated.steered_tokens < generate(model, rows, steer=w2s, max_new_tokens=3).steered_tokens


def test_what_leaves_no_choice_is_refused() -> None:
    acts, table = planted()
    for given in (VECTORS[:1], [VECTORS[0], VECTORS[0]], [SteeringVector({1: normal(32), 2: normal(32)}), VECTORS[2]]):
        with pytest.raises(SteeringError, match="W2S chooses between sites"):
            W2S(given, 2)
    other = SteeringVector({1: normal(32)})
    other.default_positions = "prompt"
    for given in ([other, VECTORS[2]], [SteeringVector({-1: normal(32)}), VECTORS[0]]):
        with pytest.raises(SteeringError, match="the same default positions, their layers counted from 0"):
            W2S(given, 2)
    with pytest.raises(DataError, match="has none of 1 inputs, such as 's0'"):
        W2S(VECTORS, 2).fit(acts, slopes=table[table["example_id"] != "s0"])
    with pytest.raises(DataError, match="W2S is fitted to slopes="):
        W2S(VECTORS, 2).fit(acts)
    with pytest.raises(DataError, match=r"has the layers \[1, 2\], not \[3\]"):
        W2S(VECTORS, 2).fit(acts, slopes=table[table["layer"] != 3])
    with pytest.raises(DataError, match="an input and layer several times"):
        W2S(VECTORS, 2).fit(acts, slopes=pd.concat([table, table]))
    with pytest.raises(DataError, match="a slope for every site of at least 3 inputs"):
        W2S(VECTORS, 2).fit(acts, slopes=table.iloc[1:])
    with pytest.raises(SteeringError, match="another site for each input"):
        W2S(VECTORS, 2).fit(acts, slopes=table).vectors(Context.of(acts))
