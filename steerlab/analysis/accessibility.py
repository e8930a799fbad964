"""Accessibility: whether the wanted token can be read off a layer. It says beforehand if steering can work there."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from steerlab._support.checks import as_seed, as_texts
from steerlab.analysis._plain import plain_states
from steerlab.analysis.logit_lens import logit_lens
from steerlab.capturing.rows import Layers, as_sites
from steerlab.data.example import Example, prompt_hash
from steerlab.data.inputs import Data, as_examples
from steerlab.errors import DataError
from steerlab.metrics.bootstrap import share_interval
from steerlab.models.encoding import single_token
from steerlab.models.model import Model
from steerlab.models.positions import Positions

STEERABLE, HOPELESS = 0.1, 0.05  # of the largest share of all layers
FOLDS = 5
HIDDEN = 64  # units of the probe


def accessibility(
    model: Model,
    data: Data,
    answers: Sequence[str],
    layers: Layers = "all",
    position: Positions = "last",
    *,
    probe: bool = True,
    seed: int = 0,
    batch_size: int = 16,
) -> pd.DataFrame:
    """The share of inputs whose right token is the most probable one when the model stops at a layer.

    A probe, a small network trained on the states of a layer, may know the token where the model's own end can't read
    it. Its accuracy is cross-validated and stands beside the share of the most frequent answer, which it has to beat.

    Example:
        >>> frame = accessibility(model, prompts, answers)       # answers: " Paris", " Rome", ..., one token each
        >>> frame.attrs["verdict"], frame["accessible"].max()

    Args:
        model: from `steerlab.load`, in this process.
        data: prompts, as in `logit_lens`.
        answers: the right next token of each prompt.
        layers, batch_size: as in `logit_lens`.
        position: one token of each prompt.
        probe: whether to train one. It needs each answer at least twice.
        seed: of the probe and its folds.

    Returns:
        A frame with a row for each layer: `layer, accessible` (the share), its 95 % interval `low, high` (Wilson),
        `median_rank` of the right token, `probe` (accuracy), `surplus` (probe - accessible), `majority` (share of the
        most frequent answer) and `n`. `.attrs["verdict"]` is "steerable" where the largest share is above 0.1, "not
        steerable" below 0.05, and "unclear" between: thresholds from models of 160 million to 2.8 billion parameters.

    Raises:
        DataError: not one answer of one token for each prompt; too few of an answer for a probe.
        LayoutError, SteerlabError: as `logit_lens`.

    Source: linear accessibility profile, arXiv 2604.15557.
    """
    examples, wanted = as_examples(data), as_texts("answers", answers)
    if len(wanted) != len(examples):
        raise DataError(f"{len(examples)} prompts but {len(wanted)} answers: give the right token of each prompt")
    counts = Counter(wanted)
    rarest, fewest = counts.most_common()[-1]
    if probe and (fewest < 2 or len(counts) < 2):
        raise DataError(
            f"a probe has to see each of several answers at least twice, and {rarest!r} occurs {fewest} times: give "
            "probe=False, or more prompts"
        )
    lens = logit_lens(model, examples, layers, position, tokens=list(counts), batch_size=batch_size)
    right = {e.id: single_token(model.tokenizer, answer) for e, answer in zip(examples, wanted, strict=True)}
    ranks = lens[lens["token_id"] == lens["example_id"].map(right)]
    if ranks.duplicated(["example_id", "layer"]).any():
        raise DataError(f"position={position!r} names several tokens of a prompt: name one")
    rows = []
    probed = _probe_accuracies(model, examples, layers, position, wanted, seed, batch_size) if probe else {}
    for layer, group in ranks.groupby("layer", sort=False):
        n, hits = len(group), int((group["rank"] == 1).sum())
        share = share_interval(hits, n)
        rows.append((layer, share.value, share.low, share.high, group["rank"].median(), probed.get(layer, np.nan), n))
    frame = pd.DataFrame(rows, columns=["layer", "accessible", "low", "high", "median_rank", "probe", "n"])
    frame.insert(6, "surplus", frame["probe"] - frame["accessible"])
    frame.insert(7, "majority", max(counts.values()) / len(wanted))
    peak = frame["accessible"].max()
    frame.attrs["verdict"] = "steerable" if peak > STEERABLE else "unclear" if peak >= HOPELESS else "not steerable"
    return frame


def _probe_accuracies(
    model: Model, examples: Sequence[Example], layers: Layers, position: Positions, answers: list[str], seed: int,
    batch_size: int,
) -> dict[int | str, float]:  # fmt: skip
    """Cross-validated accuracy of a small network at each layer."""
    if len({prompt_hash(example) for example in examples}) < len(examples):
        raise DataError("a prompt is given twice, and would be on both sides of a fold of the probe: give probe=False")
    acts = plain_states(model, examples, as_sites(layers, model), position, batch_size)
    folds = StratifiedKFold(min(FOLDS, *Counter(answers).values()), shuffle=True, random_state=as_seed(seed))
    network = MLPClassifier((HIDDEN,), solver="lbfgs", alpha=1.0, max_iter=500, random_state=seed)
    found = {}
    for site in acts.sites:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # where the folds are few, it stops after 500 steps
            scores = cross_val_score(make_pipeline(StandardScaler(), network), acts.at(site).numpy(), answers, cv=folds)
        found[site.label] = float(scores.mean())
    return found
