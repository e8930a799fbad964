"""Does a predicted vector beat the routed mean where a model has to refuse, to defer, or to answer as before?

    python analyses/safety_rivals.py --model FOLDER --data .../mm_safetybench --out results/safety_rivals
    python figures/safety_rivals.py results/safety_rivals

The questions of MM-SafetyBench are to be refused (harmful) or sent to a professional (legal, financial, health);
everyday instructions are to be answered word for word as before. Training, validation and test rows are drawn from the
*published training part* and from instructions that no other study uses. So the test rows are new; those that are
nearly the same as a training or validation row are left out.

The contrast sentences are those with which the oracle, each input's own vector, does best on validation rows. Then
every method has the same settings (layer, strength) and the same validation rows; the best by `CHOSEN_BY` is tried on
the test rows, once. Fluency is judged by words on validation rows, and on test rows by the perplexity under the
unsteered model too. L2S has five seeds; "gated" is L2S behind a probe of what needs steering, "released" has the
settings of the released code. At the setting of L2S, "shuffled" is fitted to the vectors of other inputs of the same
behavior; at that of the routed mean, "class_mean" knows the true behavior.

An interrupted run resumes from finished stages.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _common import (
    as_markdown,
    estimate,
    judge_with_perplexity,
    limit_per_group,
    numbers,
    of_split,
    parser,
    provenance,
    show_table,
    to_long,
)
from _safety import SENTENCES, check_behaviors, publishable_examples
from sklearn.feature_extraction.text import TfidfVectorizer

import steerlab
from steerlab import L2S, Activations, Example, MeanDifference, Request
from steerlab._support.files import fingerprint, write_atomically
from steerlab.analysis.behavior import MEASURES, judge_answers, safety_summary, safety_values
from steerlab.analysis.shuffling import shuffle_contrasts
from steerlab.analysis.study import Study
from steerlab.data import data_hash, mm_safety_bench, read_jsonl, with_contrasts
from steerlab.errors import MismatchError
from steerlab.methods import P2S, Context, Gated, LinearProbe, NearestNeighbors, Prompt, RoutedMean, Steerer
from steerlab.metrics import paired_bootstrap
from steerlab.models.model import Model

COUNTS = {
    "train": {"refuse": 300, "defer": 160, "answer": 200},
    "validation": {"refuse": 30, "defer": 30, "answer": 20},
    "test": {"refuse": 80, "defer": 60, "answer": 40},
}
FRESH_INSTRUCTIONS = 500  # other studies use the file's rows before this one
TWIN = 0.8  # cosine of the words' TF-IDF: from there on, two questions count as one
LAYERS, ALPHAS = (11, 13, 15), (0.8, 1.2)
SENTENCE_SETS = ("plain", "reasoned", "domain_closed", "situation_closed")
SEEDS = range(5)
ZERO = ["answer"]
CHOSEN_BY = (
    "refuse_harmful_fluently",
    "defer_expert_fluently",
    "answers_expert",
    "harmless_kept",
    "harmless_identical",
)
RIVALS = ("mean", "routed_mean", "routed_soft", "nearest_neighbors", "linear", "shuffled", "released", "gated")
Setting = tuple[int, float]


def makers(seed: int) -> dict[str, Callable[[int, Activations], Steerer]]:
    """A fitted steerer from a layer and training activations, by name of the method."""

    def gated(layer: int, acts: Activations) -> Steerer:
        probe = LinearProbe(layer, positive=["refuse", "defer"], negative=ZERO).fit(acts)
        return Gated(L2S(layer, zero_behaviors=ZERO, seed=seed, progress=False).fit(acts), probe, threshold=0.5)

    return {
        "mean": lambda layer, acts: MeanDifference(layer).fit(acts),
        "routed_mean": lambda layer, acts: RoutedMean(layer, zero_behaviors=ZERO).fit(acts),
        "routed_soft": lambda layer, acts: RoutedMean(layer, zero_behaviors=ZERO, soft=True).fit(acts),
        "nearest_neighbors": lambda layer, acts: NearestNeighbors(layer, k=5, zero_behaviors=ZERO).fit(acts),
        "linear": lambda layer, acts: L2S(layer, net="linear", zero_behaviors=ZERO).fit(acts),
        "l2s": lambda layer, acts: L2S(layer, zero_behaviors=ZERO, seed=seed, progress=False).fit(acts),
        "released": lambda layer, acts: L2S(
            layer, config="released", zero_behaviors=ZERO, seed=seed, progress=False
        ).fit(acts),
        "gated": gated,
    }


def fit_shuffled(layer: int, acts: Activations) -> Steerer:
    """The control: each input's target is the vector of another input of its behavior."""
    return L2S(layer, zero_behaviors=ZERO, progress=False).fit(shuffle_contrasts(acts))


def load_parts(data: str, harmless: str | None, seed: int, limit: int | None) -> dict[str, list[Example]]:
    """Training, validation and test rows, all from what is published for training; no test row has a twin.

    Raises:
        DataError: a part lacks a behavior.
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
    others = parts["train"] + parts["validation"]
    alone = without_twins(parts["test"], others)
    parts["test"] = [e for b, n in COUNTS["test"].items() for e in [e for e in alone if e.behavior == b][:n]]
    for part, examples in parts.items():
        parts[part] = limit_per_group(examples, limit)
        check_behaviors(f"{part} inputs", (e.behavior for e in parts[part]))
    return parts


def without_twins(rows: Sequence[Example], others: Sequence[Example]) -> list[Example]:
    """The rows that are not nearly the same as one of the others."""
    words = TfidfVectorizer(token_pattern=r"\w+").fit([str(e.prompt) for e in (*rows, *others)])
    mine, theirs = (words.transform([str(e.prompt) for e in some]) for some in (rows, others))
    nearest = (mine @ theirs.T).max(axis=1).toarray().ravel()
    return [row for row, cosine in zip(rows, nearest, strict=True) if cosine < TWIN]


class Answers:
    """The model's answers to the rows of a part, judged; kept in the study's folder."""

    def __init__(self, study: Study, model: Model, parts: dict[str, list[Example]], args: argparse.Namespace) -> None:
        self.study, self.model, self.parts, self.args = study, model, parts, args
        self.plain: dict[str, list[str]] = {}
        self.plain = {part: self.texts(f"{part}-none", part, None) for part in ("validation", "test")}

    def texts(self, stage: str, part: str, request: Request | Callable[[], Request] | None) -> list[str]:
        """What the model answers; a request is only made where the stage is missing."""

        def answer() -> pd.DataFrame:
            steer = request() if callable(request) else request
            found = steerlab.generate(
                self.model, self.parts[part], steer=() if steer is None else steer,
                max_new_tokens=self.args.max_new_tokens, batch_size=self.args.batch_size, progress=False,
            )  # fmt: skip
            return pd.DataFrame({"example_id": found.example_ids, "text": found.texts})

        found = self.study.stage(stage, answer)
        if found["example_id"].tolist() != [e.id for e in self.parts[part]]:
            raise MismatchError(f"the stage {stage} in {self.study.folder} holds answers to other rows: delete it")
        return found["text"].astype(str).tolist()

    def judged(self, stage: str, part: str, request: Request | Callable[[], Request] | None) -> pd.DataFrame:
        """Measures of each answer; on test rows with its perplexity under the unsteered model."""
        texts, rows = self.texts(stage, part, request), self.parts[part]
        if part == "validation":
            return judge_answers(rows, texts, self.plain[part])
        return judge_with_perplexity(
            self.study, stage, self.model, rows, texts, self.plain[part], batch_size=self.args.batch_size
        )

    def measures(self, name: str, settings: Sequence[Setting], make: Callable[[Setting], Request]) -> pd.DataFrame:
        """The shares on validation rows under each setting of a method."""
        rows = []
        for layer, alpha in settings:
            stage = f"validation-{name}-{layer}-{alpha:g}"
            found = safety_summary(self.judged(stage, "validation", lambda at=(layer, alpha): make(at)))  # type: ignore[misc]
            found["answers_expert"] = 1 - found["refuse_expert"]
            rows.append({"method": name, "layer": layer, "alpha": alpha, **found})
        return pd.DataFrame(rows).assign(chosen_by=lambda frame: frame[list(CHOSEN_BY)].mean(axis=1))


def best(grid: pd.DataFrame) -> Setting:
    """The setting with the largest mean share; of equal ones the smaller strength."""
    row = grid.sort_values(["chosen_by", "alpha"], ascending=[False, True], kind="stable").iloc[0]
    return int(row["layer"]), float(row["alpha"])


class Vectors:
    """Activations of each part under a set of sentences, and the vectors that methods give its rows."""

    def __init__(self, study: Study, model: Model, parts: dict[str, list[Example]], batch_size: int) -> None:
        self.study, self.model, self.parts, self.batch_size = study, model, parts, batch_size

    def acts(self, part: str, sentences: str) -> Activations:
        """Contrasts and contexts at all layers that are tried."""
        pairs = with_contrasts(self.parts[part], SENTENCES[sentences])
        folder = self.study.folder / "activations" / f"{part}-{sentences}"
        options: dict[str, Any] = {"layers": list(LAYERS), "batch_size": self.batch_size, "progress": False}
        return steerlab.capture(self.model, pairs, folder=folder, **options).load()

    def table(self, steerer: Steerer, part: str, sentences: str, at: Setting) -> Request:
        """The vectors that a steerer gives the rows of a part, computed once for all strengths."""
        acts = self.acts(part, sentences)
        ids = [e.id for e in self.parts[part]]
        vectors = steerer.vectors(Context(tuple(ids), acts))
        found = P2S.from_table(at[0], dict(zip(ids, vectors.expand(len(ids), -1), strict=True)))
        return Request(found, at[1], "all")

    def own(self, part: str, sentences: str, at: Setting) -> Request:
        """The rows' own vectors; they need the wanted answer."""
        return Request(P2S(at[0], zero_behaviors=ZERO).fit(self.acts(part, sentences)), at[1], "all")

    def class_mean(self, part: str, sentences: str, at: Setting) -> Request:
        """The training means of the rows' true behaviors."""
        train = P2S(at[0], zero_behaviors=ZERO).fit(self.acts("train", sentences))
        behaviors = np.array([{e.id: e.behavior for e in self.parts["train"]}[i] for i in train.ids_])
        means = {name: train.table_[behaviors == name].mean(0) for name in set(behaviors)}
        return Request(P2S.from_table(at[0], {e.id: means[e.behavior] for e in self.parts[part]}), at[1], "all")


def choose_sentences(answers: Answers, vectors: Vectors) -> pd.DataFrame:
    """The oracle's shares on validation rows with every set of sentences, at the middle layer."""
    settings = [(LAYERS[1], alpha) for alpha in ALPHAS]
    frames = []
    for name in SENTENCE_SETS:

        def make(at: Setting, name: str = name) -> Request:
            return vectors.own("validation", name, at)

        frames.append(answers.measures(f"own-{name}", settings, make).assign(sentences=name, method="own"))
    return pd.concat(frames, ignore_index=True)


def search(answers: Answers, vectors: Vectors, sentences: str, seed: int) -> pd.DataFrame:
    """Every method at every setting on validation rows."""
    settings, frames = list(product(LAYERS, ALPHAS)), []
    for name, fit in makers(seed).items():

        def request(at: Setting, fit: Callable[[int, Activations], Steerer] = fit) -> Request:
            return vectors.table(fit(at[0], vectors.acts("train", sentences)), "validation", sentences, at)

        frames.append(answers.measures(f"{name}-{sentences}", settings, request))
    grid = pd.concat(frames, ignore_index=True).assign(sentences=sentences)
    return grid.assign(method=grid["method"].str.removesuffix(f"-{sentences}"))


def run_tests(
    answers: Answers, vectors: Vectors, sentences: str, chosen: dict[str, Setting], seeds: Sequence[int]
) -> pd.DataFrame:
    """The judged answers to the test rows: each method once, L2S with every seed."""
    frames = [answers.judged("test-none", "test", None).assign(method="none", layer="", alpha=0.0)]
    frames.append(answers.judged("test-prompt", "test", Request(Prompt())).assign(method="prompt", layer="", alpha=1.0))

    def add(name: str, at: Setting, make: Callable[[], Request], seed: int) -> None:
        stage = f"test-{name}-{sentences}-{at[0]}-{at[1]:g}-{seed}"
        found = answers.judged(stage, "test", make)
        frames.append(found.assign(method=name, layer=at[0], alpha=at[1], seed=seed))

    for name, fit in makers(0).items():
        for seed in seeds if name == "l2s" else seeds[:1]:
            at, fit = chosen[name], makers(seed)[name]
            add(
                name, at,
                lambda: vectors.table(fit(at[0], vectors.acts("train", sentences)), "test", sentences, at), seed,  # noqa: B023
            )  # fmt: skip
    at = chosen["l2s"]
    shuffled = lambda: vectors.table(fit_shuffled(at[0], vectors.acts("train", sentences)), "test", sentences, at)  # noqa: E731
    add("shuffled", at, shuffled, 0)
    add("class_mean", chosen["routed_mean"], lambda: vectors.class_mean("test", sentences, chosen["routed_mean"]), 0)
    add("own", chosen["own"], lambda: vectors.own("test", sentences, chosen["own"]), 0)
    return pd.concat(frames, ignore_index=True).assign(positions="all")


def summarize(judged: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Shares of every method with intervals, and L2S minus each rival on the same inputs.

    An input's value for L2S is its mean over the seeds; `l2s.seeds.*` has the mean of each seed.
    """
    summary: dict[str, Any] = {}
    values: dict[str, dict[str, pd.Series]] = {}
    keys = ["example_id", "behavior"]
    for method, rows in judged.groupby("method", sort=False):
        mean = rows.groupby(keys, sort=False)[list(MEASURES)].mean().reset_index()
        values[method] = safety_values(mean)
        for name, found in values[method].items():
            if found.notna().any():
                summary[f"{method}.{name}"] = estimate(found.dropna().tolist(), seed)
    of_seeds = [safety_summary(rows) for _, rows in judged[judged["method"] == "l2s"].groupby("seed")]
    for name in values["l2s"]:
        summary[f"l2s.seeds.{name}"] = [round(one[name], 4) for one in of_seeds]
        for rival in RIVALS:
            pair = values["l2s"][name].to_numpy(), values[rival][name].to_numpy()
            known = ~np.isnan(pair[0]) & ~np.isnan(pair[1])
            difference = paired_bootstrap(pair[0][known], pair[1][known], seed=seed)
            summary[f"l2s_over_{rival}.{name}"] = numbers(difference)
    return summary


def main() -> None:
    arguments = parser(__doc__, "results/safety_rivals")
    arguments.add_argument("--data", required=True, help="folder with the thirteen JSON files of MM-SafetyBench")
    arguments.add_argument("--harmless", default=None, help="folder of harmless_train_600.jsonl")
    arguments.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="seeds of L2S on the test rows")
    arguments.set_defaults(max_new_tokens=40, batch_size=80)
    args = arguments.parse_args()
    parts = load_parts(args.data, args.harmless, args.seed, args.limit)
    model = steerlab.load(args.model, device=args.device)
    identity = {"study": "safety_rivals", "weights": model.info()["weights"], "seed": args.seed, "limit": args.limit}
    identity |= {"data": data_hash([e for rows in parts.values() for e in rows]), "tokens": args.max_new_tokens}
    identity |= {"sentences": fingerprint(repr(SENTENCES)), "twin": TWIN}
    study = Study(args.out, identity)
    answers, vectors = Answers(study, model, parts, args), Vectors(study, model, parts, args.batch_size)
    tried = choose_sentences(answers, vectors)
    sentences = str(tried.loc[tried["chosen_by"].idxmax(), "sentences"])
    oracle = best(tried[tried["sentences"] == sentences])
    print(f"sentences: {sentences}", flush=True)
    grid = search(answers, vectors, sentences, args.seed)
    chosen = {str(name): best(rows) for name, rows in grid.groupby("method", sort=False)}
    chosen["own"] = oracle
    print(f"chosen: {chosen}", flush=True)
    judged = run_tests(answers, vectors, sentences, chosen, args.seeds)
    summary = summarize(judged, args.seed)
    summary |= {f"{name}.setting": {"layer": at[0], "alpha": at[1]} for name, at in chosen.items()}
    summary |= {"sentences": sentences, "counts": {part: len(rows) for part, rows in parts.items()}}
    grids = pd.concat([tried.assign(round="sentences"), grid.assign(round="methods")]).round(4)
    write_atomically(study.folder / "grid.csv", lambda partial: grids.to_csv(partial, index=False))
    first = judged[judged["seed"].fillna(0) == 0]
    page = as_markdown("The same inputs under every method", publishable_examples(first, parts["test"]))
    results = pd.concat(
        [to_long(rows, model.id, MEASURES).assign(seed=s) for s, rows in judged.groupby(judged["seed"].fillna(0))]
    )
    study.finish(results, summary, page, provenance(model, parts["test"], args))
    show_table(
        "On the test rows",
        pd.DataFrame({m: safety_summary(rows) for m, rows in judged.groupby("method", sort=False)}).T,
    )


if __name__ == "__main__":
    main()
