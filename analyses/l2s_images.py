"""A model answers by what is usual, not by what the image shows: does one vector correct it, or a predicted one?

    python analyses/l2s_images.py --out results/l2s_images
    python figures/l2s_images.py results/l2s_images

`scenes-vlm` answers questions about existence, color, number and neighbors by what is usual for a kind of object, often
against what the image shows. The contrast of a question is its true answer and another one. It is read at the answer's
token, so it contains the difference of the two words' embeddings, and a question's own vector mostly makes the
model give the true answer. The study compares how well each method tells the true answer from the plain prompt's state.

All methods that predict read the last prompt token of one layer, the one at which linear probes of the true answers
are best, or of several layers. They are fitted to questions of all four types at once, and to captions, for which their
vector is zero. Each has four options; they, and layer and strength for each type of question, are chosen by true
answers to validation questions, from the same grid for all. A regression predicts shorter vectors the less it knows:
with `max_norm` all but the shortest get the same length, and the strength is in units of it.

The rivals of L2S: the best single vector (the mean contrast of one answer, or of all of a type), the mean contrast of
the answer that a probe reads, the mean of the nearest neighbors, and a ridge regression. Two oracles: the mean contrast
of the true answer, and the question's own contrast. "paper" and "released_pope" are L2S with the training settings of
the paper and of the released code for POPE, "shuffled" is L2S fitted to the contrasts of other questions with the same
answer, "gated" is L2S with its own choice behind a probe that tells questions from captions. Each seed draws four
fifths of the training images, and the weights of the net. Test questions are answered once; intervals are over images.
`--earlier` takes options, settings and answers from the folder of a finished run, and answers what that lacks.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import cache, partial
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from _common import estimate, numbers, parser, provenance, show_table
from _image_questions import (
    CAPTION,
    TYPES,
    VALUES,
    ImageQuestions,
    answers,
    as_answers,
    image_questions,
    shares_by_image,
)
from scenes.questions import scene_vocabulary

import steerlab
from steerlab import L2S, Activations, Example, Request, SteeringVector
from steerlab._support.files import fingerprint
from steerlab.analysis.probe_gap import fit_probe
from steerlab.analysis.shuffling import shuffle_contrasts
from steerlab.analysis.study import Study
from steerlab.data import data_hash
from steerlab.errors import MismatchError
from steerlab.methods import L2S_PAPER, P2S, Context, Gated, LinearProbe, NearestNeighbors, RoutedMean, Steerer
from steerlab.metrics import chair, paired_bootstrap
from steerlab.models.fingerprint import differences
from steerlab.plots import read_summary

IMAGES = {"train": 1200, "validation": 300, "test": 600}
POSITIONS = "last+generated"
MIN_TRAIN_IMAGES = 400  # training images: with fewer, an answer may have less than two questions in four fifths of them
CONTEXT_LAYERS = (1, 3)  # the layers that are read together
MAX_NORM = 0.3  # of the mean norm of the targets
NET: dict[str, Any] = {"hidden_units": 300, "activation": "relu"}
NET["config"] = replace(L2S_PAPER, epochs=200, plateau_patience=None, weight_decay=0.0)
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "routed_mean": [{"C": 0.1}, {"C": 1.0}],
    "nearest_neighbors": [{"k": 3}, {"k": 10}],
    "linear": [{"net": "linear", "max_norm": norm} for norm in (None, MAX_NORM)],
    "l2s": [{**NET, "max_norm": norm} for norm in (None, MAX_NORM)],
    "paper": [{"config": "paper", "max_norm": norm} for norm in (None, MAX_NORM)],
    "released_pope": [{"config": "released_pope", "hidden_units": units} for units in (100, 400)],  # LLaVA, Qwen2-VL
}
VARIANTS["shuffled"] = VARIANTS["l2s"]
OPTIONS = {
    name: [{**variant, "several": several} for variant in variants for several in (False, True)]
    for name, variants in VARIANTS.items()
}
MEANS: dict[str, type[Any]] = {"routed_mean": RoutedMean, "nearest_neighbors": NearestNeighbors}  # all others are L2S
ORACLES = ("answer_mean", "own")
TESTED = ("one_vector", *OPTIONS, "gated", *ORACLES, "probe")
ALL = "all answers"


def predictor(name: str, option: int, layer: int, context: int, seed: int, **overrides: Any) -> Steerer:
    """A method with one of its options, not yet fitted: it predicts from the states at the context layers."""
    options = OPTIONS[name][option] | {"context_layer": context, "zero_behaviors": [CAPTION]} | overrides
    if options.pop("several"):
        options["context_layer"] = CONTEXT_LAYERS
    if name not in (*MEANS, "linear"):
        options |= {"seed": seed, "progress": False}
    steerer: Steerer = MEANS.get(name, L2S)(layer, **options)
    return steerer


def fit_predictor(name: str, option: int, layer: int, context: int, seed: int, train: Activations) -> Steerer:
    """The method, fitted; "shuffled" is fitted to contrasts of other questions with the same answer."""
    if name == "gated":
        probe = LinearProbe(context, positive=sorted(chain(*VALUES.values())), negative=[CAPTION]).fit(train)
        return Gated(fit_predictor("l2s", option, layer, context, seed, train), probe, threshold=0.5)
    contrasts = shuffle_contrasts(train, seed=seed) if name == "shuffled" else train
    return predictor(name, option, layer, context, seed).fit(contrasts)


def as_request(steerer: Steerer, alpha: float) -> Request:
    """A steerer at a strength, in units of the largest norm of its vectors if it has one."""
    predicts = steerer.steerer if isinstance(steerer, Gated) else steerer
    return Request(steerer, alpha / (getattr(predicts, "max_norm", None) or 1.0), POSITIONS)


def oracle(name: str, layer: int, train: Activations, tested: Activations) -> Steerer:
    """The questions' own contrasts, or the training means of their true answers."""
    own = P2S(layer).fit(tested)
    if name == "own":
        return own
    means, answer = answer_means(layer, train), tested.labels(list(own.ids_))
    return P2S.from_table(layer, {i: means[b] for i, b in zip(own.ids_, answer, strict=True)})


def answer_means(layer: int, train: Activations) -> dict[str, torch.Tensor]:
    """The mean contrast of each answer, and of all answers to each type of question."""
    fitted = P2S(layer).fit(train)
    answer = np.array(train.labels(list(fitted.ids_)))
    means = {value: fitted.table_[answer == value].mean(0) for value in sorted(set(answer))}
    for kind, values in VALUES.items():
        means[f"{kind}, {ALL}"] = fitted.table_[np.isin(answer, values)].mean(0)
    return means


class ImageStudy:
    """The data, activations and stages of the study."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        sizes = {part: min(n, args.limit or n) for part, n in IMAGES.items()}
        sizes["train"] = max(sizes["train"], MIN_TRAIN_IMAGES)
        self.parts = {part: image_questions(part, n, args.seed) for part, n in sizes.items()}
        self.everything = [row for part in self.parts.values() for row in part.rows]
        self.model = steerlab.load(args.model, device=args.device, task="image-text", backend="hooks")
        identity = {"study": "l2s_images", "seed": args.seed, "sizes": sizes, "data": data_hash(self.everything)}
        identity |= {"weights": self.model.info()["weights"], "layers": args.layers, "strengths": args.strengths}
        identity |= {"positions": POSITIONS, "seeds": args.seeds, "options": repr((OPTIONS, CONTEXT_LAYERS))}
        self.study = Study(args.out, identity)
        self.acts = {part: self.capture(part) for part in self.parts}

    def capture(self, part: str) -> Activations:
        """Contrasts and contexts of all layers."""
        folder = self.study.folder / "stages" / f"activations-{part}"
        layers, size = list(range(self.model.n_layers)), self.args.batch_size
        return steerlab.capture(self.model, self.parts[part].rows, layers=layers, batch_size=size, folder=folder).load()

    def answer(self, rows: list[Example], steerer: Steerer | None, alpha: float = 1.0) -> pd.DataFrame:
        """The answers under a steerer."""
        request = None if steerer is None else as_request(steerer, alpha)
        return answers(self.model, rows, request, self.args.batch_size)

    def probes(self) -> pd.DataFrame:
        """Accuracy of a linear probe of the true answer by layer and type, on validation questions."""

        def states(part: str, layer: int, kind: str) -> tuple[Any, list[str]]:
            ids, x = self.acts[part].by_example(layer, side="prompt")
            keep = np.array(self.acts[part].labels(ids, "split")) == kind
            return x.double().numpy()[keep], np.array(self.acts[part].labels(ids))[keep].tolist()

        def compute() -> pd.DataFrame:
            found = []
            for layer, kind in product(range(self.model.n_layers), TYPES):
                probe = fit_probe(*states("train", layer, kind), self.args.seed)
                accuracy = probe.score(*states("validation", layer, kind))
                found.append({"layer": layer, "type": kind, "accuracy": accuracy})
            return pd.DataFrame(found)

        return self.study.stage("probes", compute)

    def options(self, context: int) -> pd.DataFrame:
        """Shares of true answers to validation questions, for every method and option at one layer and strength."""
        layer, alpha = self.args.layers[-1], self.args.strengths[len(self.args.strengths) // 2]

        def compute(name: str) -> pd.DataFrame:
            found = []
            for option in range(len(OPTIONS[name])):
                steerer = fit_predictor(name, option, layer, context, self.args.seed, self.acts["train"])
                shares = self.shares(self.parts["validation"].of_type(*TYPES), steerer, alpha)
                found.append({"method": name, "option": option, "right": shares["right"].mean()})
            return pd.DataFrame(found)

        return pd.concat([self.study.stage(f"options-{name}", partial(compute, name)) for name in OPTIONS])

    def shares(self, questions: list[Example], steerer: Steerer, alpha: float) -> pd.DataFrame:
        """The share of true answers to validation questions, by type."""
        found = self.answer(questions, steerer, alpha).assign(method="right")
        return shares_by_image(found, self.parts["validation"]).groupby("type").mean()

    def search(self, context: int, option: dict[str, int]) -> pd.DataFrame:
        """Shares of true answers to validation questions of each type, at every layer and strength."""
        train, part = self.acts["train"], self.parts["validation"]

        def candidates(name: str, layer: int) -> Iterator[tuple[str, list[Example], Steerer]]:
            """The vector's name if there are several, the questions that it is tried on, and the steerer."""
            if name == "one_vector":
                means = answer_means(layer, train)
                for kind, values in VALUES.items():
                    for value in (*values, f"{kind}, {ALL}"):
                        yield value, part.of_type(kind), SteeringVector({layer: means[value]})
            elif name in ORACLES:
                yield "", part.of_type(*TYPES), oracle(name, layer, train, self.acts["validation"])
            else:
                steerer = fit_predictor(name, option[name], layer, context, self.args.seed, train)
                yield "", part.of_type(*TYPES), steerer

        def try_all(name: str, layer: int) -> pd.DataFrame:
            return pd.concat(
                self.shares(questions, steerer, alpha).reset_index().assign(alpha=alpha, vector=vector)
                for vector, questions, steerer in candidates(name, layer)
                for alpha in self.args.strengths
            )

        found = []
        for name, layer in product(["one_vector", *OPTIONS, *ORACLES], self.args.layers):
            tried = self.study.stage(f"search-{name}-{layer}", partial(try_all, name, layer))
            found.append(tried.assign(method=name, layer=layer))
        return pd.concat(found, ignore_index=True)


def best(grid: pd.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    """The setting of every method and type of question with the most true answers; of equal ones the weakest."""
    ranked = grid.sort_values(["right", "alpha"], ascending=[False, True], kind="stable")
    first = ranked.groupby(["method", "type"], sort=False).first()
    columns = {"layer": int, "alpha": float, "vector": str, "right": float}
    return {(str(m), str(t)): {k: to(row[k]) for k, to in columns.items()} for (m, t), row in first.iterrows()}


def answer_test_questions(
    run: ImageStudy, chosen: dict[tuple[str, str], dict[str, Any]], context: int, option: dict[str, int],
    names: Collection[str],
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """The answers of these methods and all seeds to the test questions, and the scores of the first seed's captions."""
    chosen, option = dict(chosen), option | {"gated": option["l2s"]}
    chosen |= {("gated", kind): chosen["l2s", kind] for kind in TYPES}
    tested, part = run.acts["test"], run.parts["test"]

    @cache
    def train(seed: int) -> Activations:
        return four_fifths(run.acts["train"], run.parts["train"], seed)

    @cache  # a stage that is finished needs no fit
    def fitted(name: str, layer: int, vector: str, seed: int) -> Steerer:
        if name == "one_vector":
            return SteeringVector({layer: answer_means(layer, train(seed))[vector]})
        if name in ORACLES:
            return oracle(name, layer, train(seed), tested)
        return fit_predictor(name, option[name], layer, context, seed, train(seed))

    def steerer_of(name: str, kind: str, seed: int) -> Steerer:
        at = chosen[name, kind]
        return fitted(name, at["layer"], at["vector"], seed)

    def answer(name: str, kind: str, seed: int) -> pd.DataFrame:
        return run.answer(part.of_type(kind), steerer_of(name, kind, seed), chosen[name, kind]["alpha"])

    def read(kind: str, seed: int) -> pd.DataFrame:
        return probe_answers(steerer_of("routed_mean", kind, seed), part.of_type(kind), tested)

    def describe(name: str) -> Request:
        return as_request(steerer_of(name, "existence", 0), chosen[name, "existence"]["alpha"])

    none = run.study.stage("test-none", lambda: run.answer(part.of_type(*TYPES), None))
    found = [none.assign(method="none", seed=0)]
    scores = [captions(run, "none", lambda: ())]
    for name in [name for name in names if name != "probe"]:
        for seed, kind in product(range(1 if name in ORACLES else run.args.seeds), TYPES):
            answered = run.study.stage(f"test-{name}-{kind}-{seed}", partial(answer, name, kind, seed))
            found.append(answered.assign(method=name, seed=seed))
        if name not in ORACLES:
            scores.append(captions(run, name, partial(describe, name)))
    for seed, kind in product(range(run.args.seeds if "probe" in names else 0), TYPES):
        answered = run.study.stage(f"test-probe-{kind}-{seed}", partial(read, kind, seed))
        found.append(answered.assign(method="probe", seed=seed))
    return pd.concat(found, ignore_index=True), pd.concat(scores, ignore_index=True)


def probe_answers(steerer: Steerer, rows: list[Example], acts: Activations) -> pd.DataFrame:
    """The answers that the probe of a routed mean reads."""
    assert isinstance(steerer, RoutedMean)
    ids = [row.id for row in rows]
    chosen = steerer.probabilities(steerer.contexts(Context(tuple(ids), acts))).argmax(-1).tolist()
    return as_answers(rows, [steerer.behaviors_[number] for number in chosen])


def four_fifths(acts: Activations, part: ImageQuestions, seed: int) -> Activations:
    """The activations of four fifths of the images."""
    names = np.random.default_rng(seed).permutation(sorted(part.scenes))[: len(part.scenes) * 4 // 5]
    kept = set(names.tolist())
    return acts.select(example_id=[row.id for row in part.rows if row.meta["image"] in kept])


def captions(run: ImageStudy, name: str, steer: Callable[[], Request | tuple[()]]) -> pd.DataFrame:
    """Of each test caption, whether it names an absent kind and the share of the present ones that it names.

    A method has its setting for questions about existence.
    """
    part = run.parts["test"]
    rows = part.of_type(CAPTION)
    objects = {row.id: part.scenes[row.meta["image"]].kinds for row in rows}

    def compute() -> pd.DataFrame:
        texts = steerlab.generate(run.model, rows, steer=steer(), max_new_tokens=40, batch_size=64, progress=False)
        return pd.DataFrame({"example_id": list(objects), "text": list(texts)})

    texts = run.study.stage(f"captions-{name}", compute)["text"].astype(str)
    words = scene_vocabulary(next(iter(part.scenes.values())).world.kinds)
    found = chair(dict(zip(objects, texts, strict=True)), objects, words).captions
    wrong = [int(bool(found[key].hallucinated)) for key in objects]
    named = [len(found[key].mentioned & {*kinds}) / len({*kinds}) for key, kinds in objects.items()]
    return pd.DataFrame({"example_id": list(objects), "method": name, "chair_s": wrong, "recall": named})


def summarize_captions(scores: pd.DataFrame, seed: int) -> dict[str, Any]:
    """CHAIR_s and recall of the captions under each method, and what each has over unsteered captions."""
    summary: dict[str, Any] = {}
    for measure in ("chair_s", "recall"):
        shares = scores.pivot(index="example_id", columns="method", values=measure)
        for method in shares:
            summary[f"captions.{method}.{measure}"] = estimate(shares[method].tolist(), seed)
            if method != "none":
                over = paired_bootstrap(shares[method], shares["none"], seed=seed)
                summary[f"captions.{method}_over_none.{measure}"] = numbers(over)
    return summary


def summarize(run: ImageStudy, found: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Shares of true answers by type of question, and what L2S has over each rival; images are resampled."""
    part, summary = run.parts["test"], dict[str, Any]()
    for kind, shares in shares_by_image(found, part).groupby("type"):
        for method in shares:
            summary[f"{kind}.{method}.right"] = estimate(shares[method].tolist(), seed)
        for rival in shares.columns.drop("l2s"):
            difference = paired_bootstrap(shares["l2s"], shares[rival], seed=seed)
            summary[f"{kind}.l2s_over_{rival}.right"] = numbers(difference)
    rows = {row.id: row for row in part.rows}
    kinds = found["example_id"].map({i: row.split for i, row in rows.items()})
    for (method, kind, number), right in found.groupby(["method", kinds, "seed"])["right"]:
        if method in OPTIONS or method == "gated":
            summary[f"{kind}.{method}.seed{number:g}"] = round(float(right.mean()), 4)
    none = found[found["method"] == "none"].set_index("example_id")
    for value in VALUES["existence"]:
        questions = [row.id for row in part.of_type("existence") if row.behavior == value]
        summary[f"existence.none.{value}_wrong"] = round(1 - float(none.loc[questions, "right"].mean()), 4)
    for kind in TYPES[1:]:  # a wrong answer about existence is the other one, usual or not
        wrong = none.loc[[row.id for row in part.of_type(kind)]].query("right == 0")
        summary[f"{kind}.none.errors_usual"] = round(float((wrong["said"] == wrong.index.map(part.usual)).mean()), 4)
    return summary


class EarlierRun:
    """The choices, answers and captions in the folder of a finished run."""

    def __init__(self, folder: str, study: Study) -> None:
        self.folder, self.summary = Path(folder), read_summary(folder)
        if found := differences(self.summary["study"], study.identity):
            raise MismatchError(f"{folder} is of another study: its {', '.join(found)} differ. Leave --earlier out")
        self.option, self.context = self.summary["options"], self.summary["context_layer"]
        self.chosen = {
            (name, kind): self.summary[f"{kind}.{name}.setting"]
            for name, kind in product(["one_vector", *OPTIONS, *ORACLES], TYPES)
        }
        self.answers = pd.read_csv(self.folder / "results.csv").melt(
            "example_id", var_name="method", value_name="right"
        )
        self.captions = pd.read_csv(self.folder / "captions.csv")

    def lacks(self) -> list[str]:
        """The methods that it has no answers of."""
        return [name for name in TESTED if name not in set(self.answers["method"])]

    def joined(self, kept: pd.DataFrame, made: pd.DataFrame, measure: str) -> pd.DataFrame:
        """Its rows, and those of the methods that it lacks.

        Raises:
            MismatchError: unsteered rows are not the same.
        """
        before, now = (frame[frame["method"] == "none"].set_index("example_id")[measure] for frame in (kept, made))
        if not before.sort_index().equals(now.sort_index().astype(before.dtype)):
            raise MismatchError(f"{self.folder} holds other rows, or other unsteered answers: leave --earlier out")
        return pd.concat([kept, made[~made["method"].isin(kept["method"])]], ignore_index=True)


def page(run: ImageStudy, found: pd.DataFrame) -> str:
    """The answers of every method to some questions of each type."""
    said = found[found["seed"] == 0].pivot(index="example_id", columns="method", values="said")
    lines = ["# The same question under every method", ""]
    for kind in TYPES:
        for row in run.parts["test"].of_type(kind)[:6]:
            lines.append(f"- {row.id}: {row.prompt} True: {row.behavior}. {said.loc[row.id].to_dict()}")
    return "\n".join(lines)


def main() -> None:
    """Choose on validation questions, answer the test questions."""
    arguments = parser(__doc__, "results/l2s_images")
    arguments.set_defaults(model="scenes-vlm", batch_size=64)
    arguments.add_argument("--layers", type=int, nargs="+", default=[3, 5], help="blocks to steer, to choose from")
    arguments.add_argument("--strengths", type=float, nargs="+", default=[4.0, 8.0, 16.0], help="alphas to choose from")
    arguments.add_argument("--seeds", type=int, default=5, help="how often the methods are fitted for the test")
    arguments.add_argument("--earlier", help="folder of a finished run: its choices and answers are taken")
    args = arguments.parse_args()
    run = ImageStudy(args)
    if args.earlier:
        return add_to(run, EarlierRun(args.earlier, run.study))
    probes = run.probes()
    context = int(probes.groupby("layer")["accuracy"].mean().idxmax())
    options = run.options(context)
    ranked = options.sort_values("right", ascending=False, kind="stable").groupby("method")["option"].first()
    option = {str(name): int(number) for name, number in ranked.items()}
    grid = run.search(context, option)
    chosen = best(grid)
    found, scores = answer_test_questions(run, chosen, context, option, TESTED)
    summary = summarize(run, found, args.seed) | summarize_captions(scores, args.seed)
    summary |= {"context_layer": context, "options": option}
    summary |= {f"{kind}.{name}.setting": at for (name, kind), at in chosen.items()}
    for name, frame in {"grid": grid, "probes": probes, "options": options, "captions": scores}.items():
        frame.round(4).to_csv(run.study.folder / f"{name}.csv", index=False)
    finish(run, found, summary, page(run, found))


def add_to(run: ImageStudy, earlier: EarlierRun) -> None:
    """Answer what an earlier run lacks, with its choices, and write the results of both."""
    found, scores = answer_test_questions(run, earlier.chosen, earlier.context, earlier.option, earlier.lacks())
    both = earlier.joined(earlier.answers, found, "right")
    captions = earlier.joined(earlier.captions, scores, "chair_s")
    new = summarize(run, both, run.args.seed) | summarize_captions(captions, run.args.seed)
    captions.round(4).to_csv(run.study.folder / "captions.csv", index=False)
    for name in ("grid", "probes", "options"):
        pd.read_csv(earlier.folder / f"{name}.csv").to_csv(run.study.folder / f"{name}.csv", index=False)
    new["answers_of_earlier_runs"] = [fingerprint((earlier.folder / "results.csv").read_text())]
    finish(run, both, new | earlier.summary, (earlier.folder / "examples.md").read_text())


def finish(run: ImageStudy, found: pd.DataFrame, summary: dict[str, Any], examples: str) -> None:
    """Write the results and show the shares."""
    results = found.groupby(["example_id", "method"])["right"].mean().unstack("method").round(2).reset_index()
    run.study.finish(results, summary, examples, provenance(run.model, run.everything, run.args))
    shares = shares_by_image(found, run.parts["test"]).groupby("type").mean().T
    show_table("Share of true answers to test questions", shares)


if __name__ == "__main__":
    main()
