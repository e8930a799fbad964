"""Which clues to a language need a predicted vector, and which can do with one vector for all inputs?

    python analyses/l2s_evidence.py --model FOLDER --out results/l2s_evidence [--clues city name]
    python figures/l2s_evidence.py results/l2s_evidence

Questions in English end with a clue to another language: a message in it, its name, or a city where it is spoken.
Wanted is a fluent answer in that language. Each method is fitted to thirteen languages and tested on other clues to
them (other sentences around the same name), and on three languages that it has not seen; cities have three such parts,
each with a seed of its own. All methods that read the input read the same state, the last token before the final
punctuation mark. The strength of each is chosen on validation questions of the languages that it has seen; the
oracles', on those of all languages.

The rivals of L2S: one vector (the mean), the mean of each language behind a probe, the nearest neighbors, a ridge
regression, and an instruction; its control is fitted to the vectors of other inputs of the same language. Three oracles
know the language: an instruction that names it, the input's own vector, and the mean vector of its language. An answer
is fluent if it is so for the unsteered model that was asked to answer in the wanted language.

Questions without a clue, alone or before a sentence that says nothing of a language, are to be answered in English.
Methods named "..._and_zero" are fitted to such questions too, with the zero vector as target; "gated_mean" is the mean
behind a probe that is fitted to both kinds. The others have not seen them. For the clue "message" they show little:
there the questions themselves are of another kind.

The summary has this task as section "expert", for which it was made (the README says why not experts), and beside it
the numbers of `l2s_images.py` ("pictures") and `safety_rivals.py` ("safety").

With `--only-sections` these two are copied anew; with `--readings`, too, the answers in OUT are counted anew by the
labels, without a model. Nothing else changes. Readers are A (`readable`) and B (`readable_b`).

An interrupted run resumes from finished stages. Processes can share the work by `--clues`: the last run, with all of
them, reads what is there. `--earlier` takes the judged answers of an earlier run from its results.csv, so that only
methods that it lacks, and questions without a clue, are answered.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from _common import (
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
from safety_rivals import CHOSEN_BY

import steerlab
from steerlab import L2S, Activations, Example, MeanDifference, Request
from steerlab._support.files import fingerprint, write_atomically, write_json
from steerlab.analysis.shuffling import shuffle_contrasts
from steerlab.analysis.study import Study
from steerlab.data import LANGUAGE_CLUES, QUESTION_LANGUAGES, data_hash, language_questions
from steerlab.errors import MismatchError
from steerlab.methods import P2S, Context, Gated, LinearProbe, NearestNeighbors, Prompt, RoutedMean, Steerer
from steerlab.metrics import Estimate, find_language, paired_bootstrap
from steerlab.models.fingerprint import differences
from steerlab.models.model import Model
from steerlab.plots import read_summary

UNSEEN = (("Dutch", "Korean", "Portuguese"), ("French", "Thai", "Turkish"), ("Italian", "Japanese", "Polish"))
PARTS = {"city": 3, "name": 1, "message": 1}  # names and messages have one, to save time
STRENGTHS = (0.5, 0.7)
CONTEXT_TOKEN = "last-6"  # in Qwen's template: a punctuation mark and <|im_end|>\n<|im_start|>assistant\n follow it
LANGUAGES = {"English": "en", **QUESTION_LANGUAGES}
CODES = list(LANGUAGES.values())
# what is said beside a question without a clue: the first seven in training, the last five in the test
UNRELATED = (
    "I live on the third floor.", "My home is small.", "I am writing from the kitchen.", "I speak slowly.",
    "At home we eat at six.", "I have little time.", "All my friends are busy.", "I live near a river.",
    "I grew up on a farm.", "I only understand short answers.", "My family talks a lot.", "I am new to this.",
)  # fmt: skip
RESULTS = Path(__file__).parent / "results"
SAFETY = (RESULTS / "safety_rivals", RESULTS / "safety_rivals/smollm2")
WITH_ZERO = ("gated_mean", "routed_mean_and_zero", "linear_and_zero", "l2s_and_zero")
INSTRUCTIONS = {
    "message": "Answer in the language of the message.", "name": "Answer in that language.",
    "city": "Answer in the language that is spoken there.",
}  # fmt: skip
READERS = {"right_readably": "readable", "right_readably_b": "readable_b"}  # measures by a reader's labels
RESULT_COLUMNS = [
    "clue", "part", "method", "alpha", "example_id", "behavior", "seen", "language", "right", "fluent", "perplexity",
    "right_fluently", *READERS, "answer",
]  # fmt: skip


def questions_without_clue(train: bool, limit: int | None = None) -> list[Example]:
    """Everyday questions, alone ("plain") and before a sentence that says nothing of a language ("unrelated").

    Those of training, or of validation and test together (with a clue, the former choose strengths).
    """
    rows = [e for e in language_questions("city") if (e.split == "train") == train]
    texts = list(dict.fromkeys(e.meta["question"] for e in rows))[:limit]
    said = UNRELATED[:7] if train else UNRELATED[7:]
    both = {"plain": texts, "unrelated": [f"{text} {said[i % len(said)]}" for i, text in enumerate(texts)]}
    name = "-train" if train else ""
    return [
        Example(text, id=f"{kind}{name}/{i}", behavior="English") for kind in both for i, text in enumerate(both[kind])
    ]


def makers(args: argparse.Namespace, seed: int) -> dict[str, Callable[[], Steerer]]:
    """The methods that are fitted to the seen languages, those of `WITH_ZERO` also to questions without a clue."""
    layer = args.layer
    options: dict[str, Any] = {"context_layer": args.context_layer, "context_position": CONTEXT_TOKEN}

    def predictors(zero_behaviors: Sequence[str] = ()) -> dict[str, Callable[[], Steerer]]:
        given = options | {"zero_behaviors": zero_behaviors}
        return {
            "routed_mean": lambda: RoutedMean(layer, **given),
            "linear": lambda: L2S(layer, net="linear", **given),
            "l2s": lambda: L2S(layer, net="mlp", seed=seed, progress=False, **given),
        }

    without_clue = LinearProbe(args.context_layer, positive=["English"], position=CONTEXT_TOKEN)
    return {
        "mean": lambda: MeanDifference(layer),
        "nearest_neighbors": lambda: NearestNeighbors(layer, k=5, **options),
        **predictors(),
        "shuffled": predictors()["l2s"],  # which is fitted to other inputs' vectors, see `Clue.part`
        "gated_mean": lambda: Gated(MeanDifference(layer), without_clue, threshold=0.5, when="not detected"),
        **{f"{name}_and_zero": make for name, make in predictors(["English"]).items()},
    }


class Clue:
    """One kind of clue: its questions, their activations, and what is answered.

    Args:
        study, model, args: of the study.
        name: one of `LANGUAGE_CLUES`.
        earlier: the judged answers of an earlier run.
    """

    def __init__(
        self, study: Study, model: Model, name: str, args: argparse.Namespace, earlier: pd.DataFrame | None = None
    ) -> None:
        self.study, self.model, self.name, self.args = study, model, name, args
        self.earlier = earlier if earlier is None else earlier[earlier["clue"] == name]
        self.without_clue = questions_without_clue(train=False, limit=args.limit)
        rows = limit_per_group(language_questions(name), args.limit)
        self.rows = {split: of_split(rows, split) for split in ("train", "validation", "test")}
        self.acts = {split: self.capture(split) for split in self.rows}

    def capture(self, split: str) -> Activations:
        """Contrasts at the steered layer and contexts at the layer that is read; kept in the study's folder.

        Those of the training part have questions without a clue, too, which have no contrast.
        """
        rows = self.rows[split] + (
            questions_without_clue(train=True, limit=self.args.limit) if split == "train" else []
        )
        folder = self.study.folder / "activations" / f"{self.name}-{split}"
        layers = sorted({self.args.layer, self.args.context_layer})
        store = steerlab.capture(
            self.model, rows, layers=layers, context=CONTEXT_TOKEN, batch_size=self.args.batch_size,
            folder=folder, progress=False,
        )  # fmt: skip
        return store.load()

    def judged(
        self, stage: str, steerer: Steerer | None, alpha: float, rows: Sequence[Example], *, named: bool = False
    ) -> pd.DataFrame:
        """The answers of a stage: their language, and whether they are right and fluent; `named`: it is asked for."""
        stage, args = f"{self.name}-{stage}", self.args
        explicit = [e.replace(prompt=f"{e.prompt} Answer in {e.behavior}.") for e in rows]
        request = None if steerer is None else Request(steerer, alpha, "all")
        texts = stage_of_answers(
            self.study, stage, self.model, explicit if named else rows, request, max_new_tokens=args.max_new_tokens,
            batch_size=args.batch_size,
        )  # fmt: skip
        # where fluency is measured, the wanted language is asked for: it is no surprise
        found = judge_with_perplexity(self.study, stage, self.model, explicit, texts, batch_size=args.batch_size)
        language = [find_language(text, CODES) for text in texts]
        wanted = [LANGUAGES[e.behavior] for e in rows]
        found = found.assign(clue=self.name, alpha=alpha, language=language)
        found["right"] = [float(one == other) for one, other in zip(language, wanted, strict=True)]
        return found.assign(right_fluently=found["right"] * found["fluent"])

    def best_strength(self, stage: str, steerer: Steerer, rows: Sequence[Example]) -> float:
        """The strength with the most right and fluent answers to validation questions, the smallest of equal ones."""
        found = {a: self.judged(f"{stage}-{a:g}-validation", steerer, a, rows) for a in STRENGTHS}
        return max(STRENGTHS, key=lambda a: found[a]["right_fluently"].mean())

    def oracles(self, split: str) -> dict[str, Steerer]:
        """The inputs' own vectors, and the training means of their languages."""
        layer, rows = self.args.layer, self.rows[split]
        train = P2S(layer).fit(self.acts["train"])  # questions without a clue have no vector
        language = np.array(self.acts["train"].labels(list(train.ids_)))
        means = {name: train.table_[language == name].mean(0) for name in QUESTION_LANGUAGES}
        table = {e.id: means[e.behavior] for e in rows}
        return {"own": P2S(layer).fit(self.acts[split]), "language_mean": P2S.from_table(layer, table)}

    def known(self, rows: Sequence[Example], number: int | None = None, method: str | None = None) -> pd.DataFrame:
        """The answers of an earlier run, of a method in a part, or (None) of what is the same in all parts.

        Raises:
            MismatchError: they answer other questions.
        """
        if self.earlier is None:
            return pd.DataFrame()
        own = self.earlier["part"].isna() if number is None else self.earlier["part"] == number
        found = self.earlier[own & (self.earlier["method"] == method if method else True)]
        if any(set(one["example_id"]) != {e.id for e in rows} for _, one in found.groupby("method")):
            raise MismatchError("--earlier holds answers to other questions: leave it out")
        return found.assign(text=None)  # judgments are kept, texts are not

    def constant(self) -> pd.DataFrame:
        """No steering, the instruction and the oracles: they are the same in every part."""
        rows = self.rows["test"]
        if len(known := self.known(rows)):
            return known
        found = [self.judged("none-test", None, 0.0, rows).assign(method="none")]
        instruction = Prompt(INSTRUCTIONS[self.name])
        found.append(self.judged("instruction-test", instruction, 1.0, rows).assign(method="instruction"))
        found.append(self.judged("named-test", None, 0.0, rows, named=True).assign(method="named_language"))
        validation, test = self.oracles("validation"), self.oracles("test")
        for name, steerer in validation.items():
            alpha = self.best_strength(name, steerer, every(self.rows["validation"], 2))
            found.append(self.judged(f"{name}-{alpha:g}-test", test[name], alpha, rows).assign(method=name))
        return pd.concat(found, ignore_index=True)

    def unsteered_without_clue(self) -> pd.DataFrame:
        """The answers to questions without a clue, without steering and with the instruction."""
        none = self.judged("none-plain", None, 0.0, self.without_clue).assign(method="none")
        instruction = Prompt(INSTRUCTIONS[self.name])
        instructed = self.judged("instruction-plain", instruction, 1.0, self.without_clue)
        return pd.concat([none, instructed.assign(method="instruction")], ignore_index=True)

    def part(self, number: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        """The fitted methods with three languages held out.

        Returns:
            Their judged answers; how close their vectors come; their judged answers to questions without a clue.
        """
        unseen = UNSEEN[number]
        seen_rows = {split: [e for e in rows if e.behavior not in unseen] for split, rows in self.rows.items()}
        acts = self.acts["train"].select(example_id=[e.id for e in seen_rows["train"]])
        with_zero = self.acts["train"].select(behavior=["English", *{e.behavior for e in seen_rows["train"]}])
        held_out = [e for e in self.rows["test"] if e.behavior in unseen]
        test = every(seen_rows["test"], 3, number) + held_out
        own, shuffled = P2S(self.args.layer).fit(self.acts["test"]), shuffle_contrasts(acts, seed=number)
        answered, close, without_clue = [], [], []
        fitted_to = {"shuffled": shuffled} | dict.fromkeys(WITH_ZERO, with_zero)
        for name, make in makers(self.args, number).items():
            steerer = make().fit(fitted_to.get(name, acts))
            stage = f"{name}-part{number}"
            if len(known := self.known(test, number, name)):
                alpha = float(known["alpha"].iloc[0])
                answered.append(known)
            else:
                alpha = self.best_strength(stage, steerer, every(seen_rows["validation"], 2))
                answered.append(self.judged(f"{stage}-{alpha:g}-test", steerer, alpha, test).assign(method=name))
            judged = self.judged(f"{stage}-{alpha:g}-plain", steerer, alpha, self.without_clue)
            without_clue.append(judged.assign(method=name))
            vectors = steerer.vectors(Context(tuple(own.ids_), self.acts["test"]))
            cosines = torch.cosine_similarity(vectors, own.table_, dim=-1)
            close.append(pd.DataFrame({"example_id": own.ids_, "method": name, "cosine": cosines.tolist()}))
        languages = {e.id: e.behavior for e in self.rows["test"]}
        cosines = pd.concat(close, ignore_index=True)
        cosines["seen"] = ~cosines["example_id"].map(languages).isin(unseen)
        found = pd.concat(answered, ignore_index=True)
        found["seen"] = ~found["behavior"].isin(unseen)
        others = pd.concat(without_clue, ignore_index=True)
        return found.assign(part=number), cosines.assign(part=number, clue=self.name), others.assign(part=number)


def with_readings(found: pd.DataFrame, readings: str | None) -> pd.DataFrame:
    """The answers with what readers, who did not know the method, found of those in the wanted language.

    Raises:
        MismatchError: an answer in the wanted language was not read, or the file holds other labels.
    """
    made = [fingerprint(text)[:12] for text in found["text"].astype(str)]
    found = found.assign(answer=found["answer"].fillna(pd.Series(made, found.index)) if "answer" in found else made)
    found = found.drop(columns=[*READERS], errors="ignore")  # an earlier run's: other methods lack it
    if readings is None:
        return found
    labels = pd.read_csv(readings)
    if not {"answer", "readable"} <= {*labels} or labels["answer"].duplicated().any():
        raise MismatchError(f"{readings}: expected columns answer, each once, and readable; it has {list(labels)}")
    for measure, column in READERS.items():
        if column not in labels:
            continue
        readable = found["answer"].map(labels.set_index("answer")[column])
        if not labels[column].dropna().isin([0, 1]).all():
            others = sorted({*labels[column].dropna()} - {0, 1}, key=str)
            raise MismatchError(f"{readings}: {column} is 1 or 0, not {others[:3]}")
        if missing := int((readable.isna() & (found["right"] == 1)).sum()):
            raise MismatchError(f"{readings} lacks {missing} answers in the wanted language ({column}): read them")
        found[measure] = found["right"] * readable.fillna(0)
    return found


def read_again(folder: Path, readings: str, seed: int) -> dict[str, Any]:
    """The numbers of a finished run with the labels of its answers as they are now; its results.csv is written anew."""
    results = pd.read_csv(folder / "results.csv", low_memory=False)
    plain = results["behavior"] == "English"
    found = with_readings(results[~plain].assign(text=None), readings).drop(columns="text")
    same, fitted = found[found["part"].isna()], found[found["part"].notna()]
    everything = pd.concat([same, fitted, results[plain]], ignore_index=True)
    table = everything[[name for name in RESULT_COLUMNS if name in everything]]
    write_atomically(folder / "results.csv", lambda partial: table.to_csv(partial, index=False))
    no_cosines = pd.DataFrame(columns=["clue", "example_id", "method", "seen", "cosine"])  # labels change none
    return summarize(same, fitted, no_cosines, seed) | side_effects(results[plain], seed)


def every(rows: Sequence[Example], step: int, start: int = 0) -> list[Example]:
    """Every `step`-th question of each language, from `start` on."""
    languages = pd.Series([row.behavior for row in rows])
    places = languages.groupby(languages).cumcount()
    return [row for row, place in zip(rows, places, strict=True) if place % step == start]


def earlier_answers(path: str, identity: Mapping[str, Any]) -> pd.DataFrame:
    """The judged answers of an earlier run to questions with a clue.

    Those of methods that were fitted to other questions without a clue are left out.

    Raises:
        MismatchError: the summary beside them is of another study: other weights, questions or settings.
    """
    there, here = dict(read_summary(Path(path).parent)["study"]), dict(identity)
    same = [*there.pop("without_clue", ())] == [*here.pop("without_clue")]
    if found := differences(there, here):
        raise MismatchError(f"{path} is of another study: its {', '.join(found)} differ. Leave --earlier out")
    answers = pd.read_csv(path).query("behavior != 'English'")
    return answers if same else answers[~answers["method"].isin(WITH_ZERO)]


def section(folder: str | Path, measures: Sequence[str]) -> dict[str, Any]:
    """By the name of its model, the numbers of a study's summary that have an interval and are one of the measures."""
    found = read_summary(folder)
    kept = {key: n for key, n in found.items() if isinstance(n, dict) and "low" in n and key.split(".")[-1] in measures}
    return {found["provenance"]["model"]: kept}


def sections_of_others(pictures: str | Path, safety: Sequence[str | Path]) -> dict[str, Any]:
    """The sections "pictures" and "safety", read from the results of their studies."""
    shares: dict[str, Any] = {}
    for folder in safety:
        shares |= section(folder, ("overall", *CHOSEN_BY, "refuse_expert"))
    return {"pictures": section(pictures, ("right", "chair_s")), "safety": shares}


def side_effects(answers: pd.DataFrame, seed: int) -> dict[str, Any]:
    """By clue and method, the shares of questions without a clue, "plain" alone and before an "unrelated" sentence,
    that are answered in English; questions are resampled."""
    found = {}
    kinds = answers["example_id"].str.split("/").str[0].rename("kind")
    for (clue, kind, method), rows in answers.groupby(["clue", kinds, "method"], sort=False):
        for measure in ("right", "right_fluently"):
            shares = rows.groupby("example_id")[measure].mean()
            found[f"{clue}.{kind}.{method}.{measure}"] = estimate(shares.tolist(), seed)
    return found


def summarize(constant: pd.DataFrame, parts: pd.DataFrame, cosines: pd.DataFrame, seed: int) -> dict[str, Any]:
    """By clue, for seen and unseen languages: shares of answers, and what L2S (with zeros, too) has over its rivals.

    Languages are resampled, not questions: answers in one language are alike.
    """
    summary: dict[str, Any] = {}
    fitted = parts["method"].unique()
    measures = [name for name in ("right", "right_fluently", *READERS) if name in parts]
    for (clue, seen), rows in parts.groupby(["clue", "seen"], sort=False):
        key = f"{clue}.{'seen' if seen else 'unseen'}"
        same = constant[(constant["clue"] == clue) & constant["example_id"].isin(rows["example_id"])]
        for measure in measures:
            table = pd.concat([rows, same]).groupby(["behavior", "method"])[measure].mean().unstack("method")
            for method in table:
                summary[f"{key}.{method}.{measure}"] = estimate(table[method].tolist(), seed)
            for one, rival in (*(("l2s", name) for name in fitted), *(("l2s_and_zero", name) for name in WITH_ZERO)):
                if one != rival:
                    difference = paired_bootstrap(table[one], table[rival], seed=seed)
                    summary[f"{key}.{one}_over_{rival}.{measure}"] = numbers(difference)
            if table["own"].mean() > table["none"].mean():
                summary |= {f"{key}.{m}.{measure}_closed": closed(table, m, seed) for m in fitted}
        near = cosines[(cosines["clue"] == clue) & cosines["example_id"].isin(rows["example_id"])]
        near = near[near["seen"] == seen].assign(language=lambda frame: frame["example_id"].str.split("/").str[1])
        for method, values in near.groupby(["method", "language"])["cosine"].mean().groupby("method"):
            summary[f"{key}.{method}.cosine"] = estimate(values.tolist(), seed)
    for (clue, method, part), rows in pd.concat([constant, parts]).groupby(["clue", "method", "part"], dropna=False):
        name = method if pd.isna(part) else f"{method}.part{part:g}"
        summary[f"{clue}.{name}.strength"] = float(rows["alpha"].iloc[0])
    return summary


def closed(table: pd.DataFrame, method: str, seed: int) -> dict[str, float]:
    """The share of the way from no steering to the inputs' own vectors that a method goes, languages resampled."""
    gains = np.stack([table[name] - table["none"] for name in (method, "own")])
    draws = np.random.default_rng(seed).integers(0, len(table), (2000, len(table)))
    of_method, of_own = gains[:, draws].mean(-1)
    shares = of_method[of_own > 0] / of_own[of_own > 0]
    low, high = np.quantile(shares, [0.025, 0.975])
    value = gains[0].mean() / gains[1].mean()
    return numbers(Estimate(float(value), float(low), float(high), len(table)))


def main() -> None:
    arguments = parser(__doc__, "results/l2s_evidence")
    arguments.add_argument("--layer", type=int, default=11, help="the block that is steered")
    arguments.add_argument("--context-layer", type=int, default=7, help="the block whose output is read")
    arguments.add_argument("--clues", nargs="+", choices=LANGUAGE_CLUES, default=list(LANGUAGE_CLUES))
    arguments.add_argument("--earlier", help="results.csv of an earlier run: its answers are taken")
    arguments.add_argument("--pictures", default=RESULTS / "l2s_images", help="results of l2s_images.py")
    arguments.add_argument("--safety", nargs="+", default=SAFETY, help="results of safety_rivals.py, one a model")
    arguments.add_argument(
        "--only-sections",
        action="store_true",
        help="copy the other studies' numbers into OUT/summary.json (with --readings labels, too) and stop",
    )
    arguments.add_argument("--readings", help="CSV file: which answers (by fingerprint) a reader found readable")
    arguments.set_defaults(max_new_tokens=24, batch_size=32)
    args = arguments.parse_args()
    if args.limit is not None and args.limit < 3:
        arguments.error("--limit: give at least 3, so that every part has questions")
    sections = sections_of_others(args.pictures, args.safety)
    if args.only_sections:
        before = read_summary(args.out)
        if args.readings:
            [(name, shares)] = before["expert"].items()
            kept = {key: value for key, value in shares.items() if "right_readably" not in key}
            before["expert"] = {name: kept | read_again(Path(args.out), args.readings, args.seed)}
            before["readings"] = fingerprint(Path(args.readings).read_text())
        write_json(Path(args.out) / "summary.json", before | sections)
        return
    model = steerlab.load(args.model, device=args.device)
    everything = [e for name in LANGUAGE_CLUES for e in language_questions(name)]
    identity = {"study": "l2s_evidence", "weights": model.info()["weights"], "data": data_hash(everything)}
    identity |= {"limit": args.limit, "tokens": args.max_new_tokens, "layer": args.layer, "parts": PARTS}
    identity |= {"context_layer": args.context_layer, "token_read": CONTEXT_TOKEN, "strengths": STRENGTHS}
    identity |= {"unseen": UNSEEN, "instructions": INSTRUCTIONS, "without_clue": UNRELATED}
    study = Study(args.out, identity)
    earlier = None if args.earlier is None else earlier_answers(args.earlier, study.identity)
    constant, parts, cosines, without_clue = [], [], [], []
    for name in args.clues:
        clue = Clue(study, model, name, args, earlier)
        constant.append(clue.constant())
        without_clue.append(clue.unsteered_without_clue())
        for number in range(PARTS[name]):
            found, near, others = clue.part(number)
            parts.append(found)
            cosines.append(near)
            without_clue.append(others)
        print(f"{name} is done", flush=True)
    same, fitted, near = (pd.concat(frames, ignore_index=True) for frames in (constant, parts, cosines))
    same, fitted = (with_readings(frame, args.readings) for frame in (same, fitted))
    near.round({"cosine": 4}).to_csv(study.folder / "cosines.csv", index=False)
    others = pd.concat(without_clue, ignore_index=True)
    results = pd.concat([same, fitted, others], ignore_index=True)
    results = results[[name for name in RESULT_COLUMNS if name in results]]
    numbers_here = summarize(same, fitted, near, args.seed) | side_effects(others, args.seed)
    summary = {"expert": {model.id: numbers_here}, **sections}
    if args.readings:
        summary["readings"] = fingerprint(Path(args.readings).read_text())
    study.finish(results.round({"perplexity": 2}), summary, page(same, fitted), provenance(model, everything, args))
    measure = "right_readably" if args.readings else "right_fluently"
    show_table(measure, fitted.groupby(["clue", "seen", "method"])[measure].mean().unstack())


def page(constant: pd.DataFrame, fitted: pd.DataFrame) -> str:
    """The first answers of each method to the same question of an unseen language, by clue."""
    lines = ["# One question of an unseen language under every method", ""]
    answered = pd.concat([constant, fitted]).dropna(subset="text").drop_duplicates(["method", "example_id"])
    for example in fitted[~fitted["seen"]].groupby("clue", sort=False)["example_id"].first():
        lines += [f"## {example}", ""]
        lines += [
            f"- **{row.method}**: {' '.join(str(row.text).split())}"
            for row in answered[answered["example_id"] == example].itertuples()
        ]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
