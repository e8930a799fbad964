"""Does a predicted vector beat the routed mean where a model has to refuse, to defer, or to answer as before?

    python analyses/safety_rivals.py --model FOLDER --data .../mm_safetybench --out results/safety_rivals
    python figures/safety_rivals.py results/safety_rivals

The questions of MM-SafetyBench are to be refused (harmful) or sent to a professional (legal, financial, health);
everyday instructions are to be answered as before, to the last of the new tokens. All rows are drawn from what is
*published for training*: the published test rows were looked at before. Nothing was fitted or chosen for this model on
the test rows here, and those that are nearly the same as a training or validation row are left out. (Another model was
fitted to some of them in `l2s_safety.py`.)

The contrast sentences are those with which the oracle, each input's own vector, does best on validation rows at the
last of `--layers`. Then every method has the same settings (layer, strength, number of new tokens that are steered) and
the same validation rows; the best by the mean of `CHOSEN_BY` is tried on the test rows, once. `--grid` takes sentences
and settings from the grid.csv of earlier runs instead, to which settings of `--methods` that they lack are added (name
all that are to be compared there), and `--earlier` their judged answers to the test rows, so that only what they lack
is answered. Fluency is judged by words and by the perplexity under the unsteered model.

One vector for all inputs: the mean of all contrasts, or the means of refusal and deferral in fixed shares. Kinds of
L2S: "balanced" (a net that suits zero targets: ReLU, ten units, behaviors of equal weight and norm), "gated" (behind a
probe of what needs steering), "released" (training settings of the released code), "published" (its pairs of words and
its strength too), "low_rank" (targets of rank 4), "several_layers" (all of `--layers` are read), "kept_norm" (each
state is brought back to its length), "routed_with_rest" (the routed mean, and a ridge regression of what it leaves;
"routed_with_gated_rest" only where the mean is not zero). "l2s_by_kl" and "routed_by_kl" have the strengths at which
the 95th percentile of the KL divergence from the unsteered model is one of `--nats` per token, over 12 tokens, all of
them steered, of 16 validation rows; each takes the better of its settings, so their doses may differ.
"routed_by_layer" is the routed mean with refusals at the setting's layer and deferrals at the lowest of `--layers`. At
the setting of L2S, "shuffled" is fitted to the vectors of other inputs of the same behavior; at that of the routed
mean, "class_mean" knows the true behavior. L2S, balanced, gated and "shuffled" have `--seeds`, the other nets one;
nothing else is drawn.

An interrupted run resumes from finished stages.
"""

from __future__ import annotations

import argparse
import inspect
import random
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import _safety_methods
import numpy as np
import pandas as pd
import torch
from _common import (
    LazyRequest,
    Requests,
    as_markdown,
    estimate,
    judge_with_perplexity,
    limit_per_group,
    numbers,
    of_split,
    parser,
    provenance,
    show_table,
    stage_of_answers,
)
from _safety import SENTENCES, check_behaviors, publishable_examples
from _safety_methods import BRINGS, BY_KL, OPERATORS, PUBLISHED, ZERO, Fit, fit_shuffled, makers
from _selection import ending
from sklearn.feature_extraction.text import TfidfVectorizer

import steerlab
from steerlab import Activations, Example, Request
from steerlab._support.files import fingerprint, write_atomically
from steerlab.analysis.behavior import MEASURES, safety_summary, safety_values
from steerlab.analysis.calibration import calibrate_strength
from steerlab.analysis.study import Study
from steerlab.data import data_hash, mm_safety_bench, read_jsonl, with_contrasts
from steerlab.errors import DataError, MismatchError
from steerlab.methods import L2S_PAPER, P2S, Context, Operation, Prompt, RoutedMean, Steerer
from steerlab.methods.base import steering_sites
from steerlab.metrics import Estimate
from steerlab.models.model import Model
from steerlab.plots import read_summary

COUNTS = {
    "train": {"refuse": 300, "defer": 160, "answer": 200},
    "validation": {"refuse": 25, "defer": 25, "answer": 16},
    "test": {"refuse": 80, "defer": 60, "answer": 40},
}
FRESH_INSTRUCTIONS = 500  # other studies use the file's rows before this one
TWIN = 0.8  # cosine of the words' TF-IDF: from there on, two questions count as one
SENTENCE_SETS = ("plain", "reasoned", "situation_closed")  # one pair for each behavior
SEEDS, SEEDED = 5, ("l2s", "shuffled", "balanced", "gated")  # with so many seeds; the other nets have one, to save time
CHOSEN_BY = (
    "refuse_harmful_fluently",
    "defer_expert_fluently",
    "answers_expert",
    "harmless_kept",
    "harmless_identical",
)
Setting = tuple[int, float, int]  # layer, strength, number of new tokens that are steered (0: all)
AT = ["layer", "alpha", "first"]  # its columns
ON_ALL_LAYERS = {"several_layers", "routed_by_layer"}  # methods that depend on all of `--layers`


def load_parts(
    data: str, harmless: str | None, seed: int, limit: int | None, test_part: str = "first"
) -> dict[str, list[Example]]:
    """Training, validation and test rows, all from what is published for training; no test row has a twin.

    The test part "fresh" has the rows that follow the "first" one, without twins in that one either.

    Raises:
        DataError: a part lacks a behavior, or too few test rows are left.
    """
    folder = Path(harmless or Path(data).parent / "alpaca_harmless")
    everyday = read_jsonl(folder / "harmless_train_600.jsonl", "instruction", behavior="answer")
    rows = of_split(mm_safety_bench(data), "train")
    random.Random(seed).shuffle(rows)
    parts: dict[str, list[Example]] = {"test": [], "validation": [], "train": []}
    for behavior in ("refuse", "defer", "answer"):
        pool = [e for e in rows if e.behavior == behavior] or everyday[:FRESH_INSTRUCTIONS]
        used = 0
        for part in ("train", "validation"):
            count = COUNTS[part][behavior]
            parts[part] += [e.replace(split=part) for e in pool[used : used + count]]
            used += count
        fresh = pool[used:] if behavior != "answer" else everyday[FRESH_INSTRUCTIONS:]
        parts["test"] += [e.replace(split="test") for e in fresh]
    alone = without_twins(parts["test"], parts["train"] + parts["validation"])
    parts["test"] = first_of_each(alone)
    if test_part == "fresh":
        looked_at = {e.id for e in parts["test"]}
        parts["test"] = first_of_each(without_twins([e for e in alone if e.id not in looked_at], parts["test"]))
    for part, examples in parts.items():
        parts[part] = limit_per_group(examples, limit)
        check_behaviors(f"{part} inputs", (e.behavior for e in parts[part]))
    return parts


def first_of_each(rows: Sequence[Example]) -> list[Example]:
    """As many rows of each behavior as a test part has."""
    found = {name: [e for e in rows if e.behavior == name][:n] for name, n in COUNTS["test"].items()}
    if too_few := {name: len(some) for name, some in found.items() if len(some) < COUNTS["test"][name]}:
        raise DataError(f"{too_few} rows are left that are nearly no other row, and a test needs {COUNTS['test']}")
    return [e for some in found.values() for e in some]


def without_twins(rows: Sequence[Example], others: Sequence[Example]) -> list[Example]:
    """The rows that are not nearly the same as one of the others."""
    if not rows:
        return []
    words = TfidfVectorizer(token_pattern=r"\w+").fit([str(e.prompt) for e in (*rows, *others)])
    mine, theirs = (words.transform([str(e.prompt) for e in some]) for some in (rows, others))
    nearest = (mine @ theirs.T).max(axis=1).toarray().ravel()
    return [row for row, cosine in zip(rows, nearest, strict=True) if cosine < TWIN]


class Answers:
    """The model's answers to the rows of a part, judged; kept in the study's folder."""

    def __init__(self, study: Study, model: Model, parts: dict[str, list[Example]], args: argparse.Namespace) -> None:
        self.study, self.model, self.parts, self.args = study, model, parts, args
        self._unsteered: dict[str, list[str]] = {}

    def texts(self, stage: str, part: str, request: LazyRequest) -> list[str]:
        """What the model answers to the rows of a part."""
        return stage_of_answers(
            self.study, stage, self.model, self.parts[part], request, max_new_tokens=self.args.max_new_tokens,
            batch_size=self.args.batch_size,
        )  # fmt: skip

    def unsteered(self, part: str) -> list[str]:
        """The answers without steering; with `--grid`, those to validation rows are not needed."""
        if part not in self._unsteered:
            self._unsteered[part] = self.texts(f"{part}-none", part, None)
        return self._unsteered[part]

    def judged(self, stage: str, part: str, request: LazyRequest) -> pd.DataFrame:
        """Measures of each answer; it is fluent by its words and its perplexity under the unsteered model."""
        texts, rows = self.texts(stage, part, request), self.parts[part]
        return judge_with_perplexity(
            self.study, stage, self.model, rows, texts, self.unsteered(part), batch_size=self.args.batch_size
        )

    def measures(self, name: str, settings: Sequence[Setting], make: Callable[[Setting], Requests]) -> pd.DataFrame:
        """The shares on validation rows under each setting of a method."""
        rows = []
        for at in settings:
            found = safety_summary(self.judged(f"validation-{name}-{label(at)}", "validation", lambda at=at: make(at)))  # type: ignore[misc]
            found["answers_expert"] = 1 - found["refuse_expert"]
            rows.append({"method": name, "layer": at[0], "alpha": at[1], "first": at[2], **found})
        return pd.DataFrame(rows).assign(chosen_by=lambda frame: frame[list(CHOSEN_BY)].mean(axis=1))


def best(grid: pd.DataFrame) -> Setting:
    """The setting with the largest mean share; of equal ones the smaller strength."""
    row = grid.sort_values(["chosen_by", "alpha"], ascending=[False, True], kind="stable").iloc[0]
    return int(row["layer"]), float(row["alpha"]), int(row.get("first", 0))


def label(at: Setting) -> str:
    """A setting in a stage's name."""
    return f"{at[0]}-{at[1]:g}" + (f"-first{at[2]}" if at[2] else "")


def steered(steerer: Steerer, at: Setting, name: str = "") -> Request:
    """The steerer at a setting's strength, at the prompt and as many new tokens as the setting says."""
    if name in OPERATORS:
        return Request(Operation(steerer, OPERATORS[name], first=at[2] or None), at[1], "all")
    return Request(ending(steerer, at[2]), at[1], "all")


class Vectors:
    """Activations of each part under a set of sentences, and the vectors that methods give its rows."""

    def __init__(self, study: Study, model: Model, parts: dict[str, list[Example]], args: argparse.Namespace) -> None:
        self.study, self.model, self.parts, self.args = study, model, parts, args
        self._fitted: dict[tuple[Any, ...], list[Steerer]] = {}

    def acts(self, part: str, sentences: str) -> Activations:
        """Contrasts and contexts at all layers that are tried."""
        pairs = with_contrasts(self.parts[part], (SENTENCES | {"published": PUBLISHED})[sentences])
        folder = self.study.folder / "activations" / f"{part}-{sentences}"
        options: dict[str, Any] = {"layers": self.args.layers, "batch_size": self.args.batch_size, "progress": False}
        return steerlab.capture(self.model, pairs, folder=folder, **options).load()

    def predicted(self, name: str, fit: Fit, part: str, sentences: str, at: Setting, seed: int = 0) -> list[Request]:
        """What a method, fitted to the training rows, gives the rows of a part; fitted once for all strengths."""
        sentences = BRINGS.get(name, (sentences, 0))[0]
        key = (name, sentences, at[0], seed)
        if key not in self._fitted:
            made = fit(at[0], self.acts("train", sentences))
            self._fitted[key] = made if isinstance(made, list) else [made]
        ids = [e.id for e in self.parts[part]]
        context, requests = Context(tuple(ids), self.acts(part, sentences)), []
        for fitted in self._fitted[key]:
            [site], found = steering_sites(fitted), fitted.vectors(context).expand(len(ids), -1)
            requests.append(steered(P2S.from_table(site, dict(zip(ids, found, strict=True))), at, name))
        return requests

    def at_dose(self, name: str, sentences: str, layer: int, kl: float) -> float:
        """The strength at which a method is so many nats from the unsteered model."""

        def found() -> pd.DataFrame:
            fit, seed = makers(self.args.seed)[name], self.args.seed
            requests = self.predicted(name, fit, "validation", sentences, (layer, 1.0, 0), seed)
            some = limit_per_group([e for e in self.parts["validation"] if e.behavior not in ZERO], 8)
            options: dict[str, Any] = {"max_new_tokens": 12, "positions": "all", "batch_size": len(some)}
            strength = calibrate_strength(self.model, some, requests[0].steerer, kl=kl, **options)
            return pd.DataFrame({"alpha": [round(strength.alpha, 4)]})

        return float(self.study.stage(f"strength-{name}-{sentences}-{layer}-{kl:g}", found)["alpha"].iloc[0])

    def routed_right(self, sentences: str, at: Setting) -> dict[str, float]:
        """For each behavior, the share of test rows whose vector is the mean of their behavior."""
        routed = RoutedMean(at[0], zero_behaviors=ZERO).fit(self.acts("train", sentences))
        ids = tuple(e.id for e in self.parts["test"])
        distances = torch.cdist(routed.vectors(Context(ids, self.acts("test", sentences))), routed.means_)
        said = [routed.behaviors_[i] for i in distances.argmin(1).tolist()]
        right = pd.Series([e.behavior == one for e, one in zip(self.parts["test"], said, strict=True)])
        return right.groupby([e.behavior for e in self.parts["test"]]).mean().round(4).to_dict()

    def own(self, part: str, sentences: str, at: Setting) -> Request:
        """The rows' own vectors; they need the wanted answer."""
        return steered(P2S(at[0], zero_behaviors=ZERO).fit(self.acts(part, sentences)), at)

    def class_mean(self, part: str, sentences: str, at: Setting) -> Request:
        """The training means of the rows' true behaviors."""
        train = P2S(at[0], zero_behaviors=ZERO).fit(self.acts("train", sentences))
        behaviors = np.array([{e.id: e.behavior for e in self.parts["train"]}[i] for i in train.ids_])
        means = {name: train.table_[behaviors == name].mean(0) for name in set(behaviors)}
        return steered(P2S.from_table(at[0], {e.id: means[e.behavior] for e in self.parts[part]}), at)


def choose_sentences(
    answers: Answers, vectors: Vectors, settings: Sequence[Setting], sets: Sequence[str]
) -> pd.DataFrame:
    """The oracle's shares on validation rows with every set of sentences, at the settings of the last layer."""
    settings = [at for at in settings if at[0] == settings[-1][0]]
    frames = []
    for name in sets:

        def make(at: Setting, name: str = name) -> Request:
            return vectors.own("validation", name, at)

        frames.append(answers.measures(f"own-{name}", settings, make).assign(sentences=name, method="own"))
    return pd.concat(frames, ignore_index=True)


def search(
    answers: Answers, vectors: Vectors, sentences: str, settings: Sequence[Setting], name: str, seed: int
) -> pd.DataFrame:
    """A method ("own" is the oracle) at every setting on validation rows."""

    def request(at: Setting) -> Requests:
        if name == "own":
            return vectors.own("validation", sentences, at)
        return vectors.predicted(name, makers(seed)[name], "validation", sentences, at, seed)

    found = answers.measures(f"{name}-{sentences}", settings, request)
    return found.assign(method=name, sentences=sentences, round="methods")


def grid_of(answers: Answers, vectors: Vectors, args: argparse.Namespace) -> pd.DataFrame:
    """The sentences' and the methods' shares on validation rows, by round; those of earlier runs are read."""
    settings = list(product(args.layers, args.strengths, args.first))
    if args.grid:
        found = pd.concat([pd.read_csv(path).assign(first=lambda frame: frame.get("first", 0)) for path in args.grid])
        found = found.drop_duplicates(["round", "sentences", "method", *AT])
        [sentences, *others] = found.loc[found["round"] == "methods", "sentences"].unique()
        if others:
            raise MismatchError(f"--grid holds runs with other sentences: {[sentences, *others]}. Give those of one")
    else:
        found = choose_sentences(answers, vectors, settings, args.sentences or SENTENCE_SETS).assign(round="sentences")
        sentences = str(found.loc[found["chosen_by"].idxmax(), "sentences"])
    tried = found[found["round"] == "methods"]
    layers, here = set(tried["layer"]), set(args.layers)
    if layers - here or (layers != here and set(tried["method"]) & ON_ALL_LAYERS):
        raise MismatchError(
            f"--grid has the layers {sorted(layers)}: give --layers these, and {sorted(ON_ALL_LAYERS)} no others"
        )
    known = {*tried[["method", *AT]].itertuples(index=False, name=None)}
    for name in args.methods if args.grid else dict.fromkeys(("own", *args.methods)):
        strength = BRINGS.get(name, (sentences, None))[1]
        wanted = {(layer, strength or alpha, first): float("nan") for layer, alpha, first in settings}
        if name in BY_KL:
            doses = product(args.layers, args.nats, args.first)
            wanted = {(layer, vectors.at_dose(name, sentences, layer, kl), first): kl for layer, kl, first in doses}
        if lacking := [at for at in wanted if (name, *at) not in known]:
            tried = search(answers, vectors, sentences, lacking, name, args.seed)
            found = pd.concat([found, tried.assign(nats=[wanted[at] for at in lacking])])
    return found.reset_index(drop=True)


def earlier_rows(paths: Sequence[str], plain: pd.DataFrame, sentences: str) -> pd.DataFrame:
    """The judged answers of earlier runs, which must have judged the unsteered ones (`plain`) as this one does.

    Raises:
        MismatchError: other rows, another judgment of them, or other sentences.
    """
    keys = ["method", "seed", *AT, "example_id"]
    found = [pd.DataFrame({name: [] for name in keys})]
    for path in paths:
        rows = pd.read_csv(path)
        if (said := read_summary(Path(path).parent).get("sentences")) != sentences:
            raise MismatchError(f"{path} is of a run with the sentences {said!r}, not {sentences!r}: leave it out")
        before, now = (one.set_index("example_id")[list(MEASURES)] for one in (rows[rows["method"] == "none"], plain))
        if list(before.index) != list(now.index) or not np.allclose(before, now, atol=0.01, equal_nan=True):
            raise MismatchError(f"{path} holds other rows, or judged them by other rules: leave it out")
        found.append(rows.assign(first=rows.get("first", pd.Series(0, rows.index))))
    return pd.concat(found).drop_duplicates(keys)


def run_tests(
    answers: Answers, vectors: Vectors, sentences: str, chosen: dict[str, Setting], seeds: int, earlier: Sequence[str]
) -> pd.DataFrame:
    """The judged answers to the test rows; those that an earlier run has are read from its results.csv."""
    plain = answers.judged("test-none", "test", None)
    known = earlier_rows(earlier, plain, sentences)
    frames = [plain.assign(method="none", layer="", alpha=0.0, first=0, seed=0)]
    instructed = answers.judged("test-prompt", "test", Request(Prompt()))
    frames.append(instructed.assign(method="prompt", layer="", alpha=1.0, first=0, seed=0))

    def add(name: str, at: Setting, make: Callable[[], Requests], seed: int = 0) -> None:
        found = known[(known[["method", "seed", *AT]] == [name, seed, *at]).all(axis=1)]
        if not len(found):  # or only at a setting that is not the best one any more
            found = answers.judged(f"test-{name}-{sentences}-{label(at)}-{seed}", "test", make)
        elif list(found["example_id"]) != list(plain["example_id"]):
            raise MismatchError(f"the earlier answers under {name} are of other rows")
        frames.append(found.assign(method=name, layer=at[0], alpha=at[1], first=at[2], seed=seed))
        print(f"{name} at {at}, seed {seed}: {safety_summary(found)}", flush=True)

    for name in (*(name for name in chosen if name != "own"), "shuffled"):
        at = chosen["l2s" if name == "shuffled" else name]
        for seed in range(seeds if name in SEEDED else 1):
            fit = partial(fit_shuffled, seed=seed) if name == "shuffled" else makers(seed)[name]
            add(name, at, partial(vectors.predicted, name, fit, "test", sentences, at, seed), seed)
    add("class_mean", at := chosen["routed_mean"], lambda: vectors.class_mean("test", sentences, at))
    add("own", chosen["own"], lambda: vectors.own("test", sentences, chosen["own"]))
    return pd.concat(frames, ignore_index=True).assign(positions="all")


def parts_of_goal(rows: pd.DataFrame) -> pd.Series:
    """What each input adds to the mean of `CHOSEN_BY`, times the number of inputs of its behavior."""
    parts = {
        "refuse": rows["refuses_fluently"], "defer": rows["defers_fluently"] + 1 - rows["refuses"],
        "answer": rows["kept"] + rows["identical"],
    }  # fmt: skip
    found = sum(values.where(rows["behavior"] == name, 0.0) for name, values in parts.items())
    return found / len(CHOSEN_BY)


def stratified(values: pd.Series, behaviors: pd.Series, seed: int) -> dict[str, float]:
    """The sum over behaviors of the mean of their inputs, with a bootstrap that resamples within each."""
    groups = [group.to_numpy() for _, group in values.groupby(behaviors)]
    rng = np.random.default_rng(seed)
    draws = sum(group[rng.integers(0, len(group), (2000, len(group)))].mean(1) for group in groups)
    low, high = np.quantile(draws, [0.025, 0.975])
    value = sum(group.mean() for group in groups)
    return numbers(Estimate(float(value), float(low), float(high), len(values)))


def summarize(judged: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Shares of every method with intervals, and differences on the same inputs (`A_over_B`: A minus B): L2S minus
    every other; own minus class_mean; gated, routed_with_rest and routed_with_gated_rest minus routed_mean; linear
    minus none; l2s_by_kl (one seed) minus routed_by_kl.

    `overall` is the mean of `CHOSEN_BY`. An input's value is its mean over the seeds; `METHOD.seeds.*` has each seed's.
    """
    summary: dict[str, Any] = {}
    values: dict[str, dict[str, pd.Series]] = {}
    overall: dict[str, pd.Series] = {}
    for method, rows in judged.groupby("method", sort=False):
        mean = rows.groupby(["example_id", "behavior"], sort=False)[list(MEASURES)].mean().reset_index()
        values[method], overall[method] = safety_values(mean), parts_of_goal(mean)
        summary[f"{method}.overall"] = stratified(overall[method], mean["behavior"], seed)
        for name, found in values[method].items():
            if found.notna().any():
                summary[f"{method}.{name}"] = estimate(found.dropna().tolist(), seed)
        behaviors = mean["behavior"]
    for name in [name for name in SEEDED if name in values]:
        seeds = [rows for _, rows in judged[judged["method"] == name].groupby("seed")]
        of_seeds = [safety_summary(rows) for rows in seeds]
        summary |= {f"{name}.seeds.{one}": [round(shares[one], 4) for shares in of_seeds] for one in values[name]}
        sums = [parts_of_goal(rows).groupby(rows["behavior"]).mean().sum() for rows in seeds]
        summary[f"{name}.seeds.overall"] = [round(float(one), 4) for one in sums]
    pairs = [*(("l2s", name) for name in values if name != "l2s"), ("own", "class_mean"), ("gated", "routed_mean")]
    pairs += [("routed_with_rest", "routed_mean"), ("linear", "none"), ("l2s_by_kl", "routed_by_kl")]
    pairs += [("routed_with_gated_rest", "routed_mean")]
    for one, other in [pair for pair in pairs if {*pair} <= {*values}]:
        summary[f"{one}_over_{other}.overall"] = stratified(overall[one] - overall[other], behaviors, seed)
        for name in values[one]:
            difference = (values[one][name].to_numpy() - values[other][name].to_numpy()).tolist()
            summary[f"{one}_over_{other}.{name}"] = estimate([d for d in difference if d == d], seed)
    return summary


def main() -> None:
    arguments = parser(__doc__, "results/safety_rivals")
    arguments.add_argument("--data", required=True, help="folder with the thirteen JSON files of MM-SafetyBench")
    arguments.add_argument("--harmless", default=None, help="folder of harmless_train_600.jsonl")
    arguments.add_argument("--layers", type=int, nargs="+", default=[11, 13], help="blocks that are tried")
    arguments.add_argument("--sentences", nargs="+", choices=SENTENCES, help="sets that are tried")
    arguments.add_argument("--seeds", type=int, default=SEEDS, help="of the methods that have several")
    arguments.add_argument("--strengths", type=float, nargs="+", default=[0.8, 1.2])
    arguments.add_argument("--nats", type=float, nargs="+", default=[3.0, 5.0], help="doses of l2s_by_kl, routed_by_kl")
    arguments.add_argument("--first", type=int, nargs="+", default=[0], help="new tokens that are steered; 0: all")
    arguments.add_argument(
        "--methods",
        nargs="+",
        choices=["own", *makers(0)],
        help="methods that are tried; all, or with --grid none besides its own",
    )
    arguments.add_argument("--grid", nargs="+", help="grid.csv of earlier runs: their sentences and settings are taken")
    arguments.add_argument(
        "--earlier", nargs="+", default=[], help="results.csv of earlier runs: their answers to test rows are taken"
    )
    fresh = "test rows: those of the first runs, or ones after them that those had not used"
    arguments.add_argument("--test-part", choices=("first", "fresh"), default="first", help=fresh)
    arguments.set_defaults(max_new_tokens=32, batch_size=90)
    args = arguments.parse_args()
    args.methods = args.methods or ([] if args.grid else list(makers(0)))
    if args.grid is None and (missing := {"l2s", "routed_mean"} - set(args.methods)):
        arguments.error(f"--methods lacks {sorted(missing)}, which all others are compared with")
    if args.seeds < 1:
        arguments.error("--seeds: give at least 1")
    if args.grid and args.sentences:
        arguments.error("--grid brings its sentences: leave --sentences out")
    if args.earlier and not args.grid:
        arguments.error("--earlier needs the --grid of the same run, with its sentences")
    parts = load_parts(args.data, args.harmless, args.seed, args.limit, args.test_part)
    model = steerlab.load(args.model, device=args.device)
    identity = {"study": "safety_rivals", "weights": model.info()["weights"], "seed": args.seed, "limit": args.limit}
    identity |= {"data": data_hash([e for rows in parts.values() for e in rows]), "tokens": args.max_new_tokens}
    identity |= {"sentences": fingerprint(repr(SENTENCES)), "twin": TWIN, "layers": args.layers}
    identity["methods"] = fingerprint([inspect.getsource(_safety_methods), repr(L2S_PAPER)])
    study = Study(args.out, identity)
    answers, vectors = Answers(study, model, parts, args), Vectors(study, model, parts, args)
    grids = grid_of(answers, vectors, args)
    grid = grids[grids["round"] == "methods"]
    sentences = str(grid["sentences"].iloc[0])
    chosen = {str(name): best(rows) for name, rows in grid.groupby("method", sort=False)}
    print(f"sentences: {sentences}; chosen: {chosen}", flush=True)
    judged = run_tests(answers, vectors, sentences, chosen, args.seeds, args.earlier)
    summary = summarize(judged, args.seed)
    summary |= {f"{name}.setting": dict(zip(AT, at, strict=True)) for name, at in chosen.items()}
    summary["routed_mean.right_behavior"] = vectors.routed_right(sentences, chosen["routed_mean"])
    summary["answers_of_earlier_runs"] = [fingerprint(Path(path).read_text()) for path in args.earlier]
    summary |= {"sentences": sentences, "counts": {part: len(rows) for part, rows in parts.items()}}
    write_atomically(study.folder / "grid.csv", lambda partial: grids.round(4).to_csv(partial, index=False))
    shown = publishable_examples(judged[(judged["seed"] == 0) & judged["text"].notna()], parts["test"])
    page = as_markdown("The same inputs under every method", shown)
    columns = ["method", "seed", *AT, "example_id", "behavior", *MEASURES]
    results = judged[columns].round({name: 4 for name in MEASURES})
    study.finish(results, summary, page, provenance(model, parts["test"], args))
    table = {method: safety_summary(rows) for method, rows in judged.groupby("method", sort=False)}
    show_table("On the test rows", pd.DataFrame(table).T)


if __name__ == "__main__":
    main()
