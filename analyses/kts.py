"""KL-then-steer: does training a model to bear steering buy refusals at a lower price than steering it as it is?

    python analyses/kts.py --model smollm2 --data DATA --out results/kts
    python figures/kts.py results/kts

Harmful prompts are those of AdvBench, or questions of MM-SafetyBench (`--prompts mm_safetybench`) for a model that
refuses nine tenths of AdvBench under the weakest vector.

The model is trained (LoRA, on a copy) on everyday instructions with its own answers, so that steering it towards
refusal changes them less. Three recipes: "published", whose loss knows nothing else; "kept", with a second loss of ours
that holds the steered model to the steered original on harmful prompts with two written answers; and "own", where these
are the original's own answers, steered and unsteered, and strengths end where it breaks. Then three are steered over a
range of strengths: the model as it is, the trained one with a vector fitted to it anew, and, the simplest rival, the
model as it is with a probe that steers only what it takes for harmful: to the other prompts its answers are the
unsteered ones. The price is paid on instructions that were not trained on: KL to the unsteered original, answers kept,
problems of GSM8K solved; and on safe prompts that sound unsafe.

What training changed is put on by the largest of five shares that leaves the unsteered model within .01 nats. The
recipe is chosen on validation prompts: the lowest KL with at least seven tenths of the refusals in fluent text. The
trained model is compared there at the strength with the most such refusals, the other two at the smallest strength that
reaches as many, or at their own best. Test prompts are looked at once.

DATA is the folder with `harmful_prompts/`, `math/` and `noncommercial_cc_by_nc/`. An interrupted run resumes.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from _common import (
    as_markdown,
    estimate,
    judge_with_perplexity,
    numbers,
    parser,
    provenance,
    show_table,
    stage_of_answers,
)
from _compare_data import solution
from _refusal_prompts import TESTED, load_sets, own_contrasts
from _refusal_questions import load_questions
from _safety import publishable_examples

import steerlab
from steerlab import Activations, Example, MeanDifference, Request
from steerlab._support.files import fingerprint, write_atomically
from steerlab.analysis.divergence import text_divergence
from steerlab.analysis.study import Study
from steerlab.data import data_hash, demo_set, read_jsonl, xstest
from steerlab.methods import Context, KTSConfig, LinearProbe, ModelEdit, Steerer, kl_then_steer
from steerlab.metrics import Estimate, exact_match, is_refusal, paired_bootstrap
from steerlab.models.layout import blocks
from steerlab.models.model import Model
from steerlab.models.reference import probe_rows
from steerlab.steering import bake

LAYERS = {30: 16, 24: 13}  # by number of blocks; where earlier studies steer these models
# by number of blocks; Qwen2.5-Coder-0.5B refuses by itself, and everything at .25 already
STRENGTHS = {30: (0.25, 0.5, 0.75, 1.0, 1.25), 24: (0.125, 0.25, 0.5, 1.0)}
RECIPES: dict[str, dict[str, Any]] = {
    "own": {"keep_weight": 1.0}, "kept": {"keep_weight": 1.0}, "published": {"keep_weight": 0.0},
}  # fmt: skip
TRAINED_ON, PROBLEMS, SAFE, LEAST_EFFECT = (200, 420), 30, 40, 0.7
# of the effect by likelihoods, in training, by number of blocks; on Qwen .7 left no trained weights to choose from
GUARD = {30: 0.7, 24: 0.5}
AS_GOOD = 0.05  # by so little fewer refusals in fluent text than at the best strength, a strength is as good
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6)  # of the trained change
MOST_UNSTEERED = 0.01  # nats that it may cost without steering
BUDGETS = (0.02, 0.05, 0.1, 0.2, 0.4)  # nats per token, within which refusals are compared
RIVALS = ("as it is", "behind a probe")  # of the trained model
MEASURES = {"refuse": ("refuses", "refuses_fluently", "fluent"), "answer": ("kl", "kept", "identical")}  # by behavior


@dataclass(frozen=True)
class Data:
    """Prompts by role; `benign` is trained on, the pairs are harmful and harmless prompts, `safe` sound unsafe."""

    benign: list[Example]
    contrasts: list[Example]
    validation: tuple[list[Example], list[Example]]
    test: tuple[list[Example], list[Example]]
    problems: list[Example]
    safe: list[Example]

    @classmethod
    def load(cls, folder: str, seed: int, limit: int | None, part: str, prompts: str = "advbench") -> Data:
        """Read all sets; instructions for training are neither in the validation nor in the test part."""
        of_advbench, root = prompts == "advbench", Path(folder)
        sets = load_sets(folder, seed, limit) if of_advbench else load_questions(folder, seed, limit)
        everyday = read_jsonl(
            root / "noncommercial_cc_by_nc/alpaca_harmless/harmless_train_600.jsonl", "instruction", behavior="answer"
        )
        written = [e.replace(contrast=None) for e in demo_set() if e.behavior == "answer"]
        benign = [*written, *everyday[slice(*TRAINED_ON)]][: limit and 4 * limit]
        problems = read_jsonl(
            root / "math/gsm8k_test_sampled.jsonl", prompt_field="problem", behavior="answer", id_prefix="gsm8k",
            meta_fields=("answer", "solution"),
        )  # fmt: skip
        test = (sets[part][0][:60], sets[part][1][:40]) if of_advbench else sets["test"]
        safe = [e for e in xstest() if e.behavior == "answer"]
        random.Random(seed).shuffle(safe)
        chosen = (problems[: limit or PROBLEMS], safe[: limit or SAFE])
        return cls(benign, sets["train"][0], sets["validation"], test, *chosen)

    @property
    def everything(self) -> list[Example]:
        """All inputs, for the fingerprint; ids repeat between data sets."""
        parts = (self.benign, self.contrasts, *self.validation, *self.test, self.problems, self.safe)
        return [e.replace(id=f"{i}/{e.id}") for i, rows in enumerate(parts) for e in rows]


class Answers:
    """What the original answers, and measures of what a steered model answers and is likely to say."""

    def __init__(self, study: Study, original: Model, data: Data, args: argparse.Namespace) -> None:
        self.study, self.original, self.data, self.args = study, original, data, args
        self.plain = {
            part: [self.texts(f"{part}-{side}-original", original, rows, None) for side, rows in enumerate(pair)]
            for part, pair in (("validation", data.validation), ("test", data.test))
        }

    def texts(
        self, stage: str, model: Model, rows: Sequence[Example], request: Request | None, length: int | None = None
    ) -> list[str]:
        """A model's answers; a stage of the study."""
        return stage_of_answers(
            self.study, stage, model, rows, request, max_new_tokens=length or self.args.max_new_tokens,
            batch_size=self.args.batch_size,
        )  # fmt: skip

    def measured(self, part: str, name: str, model: Model, request: Request | None) -> pd.DataFrame:
        """A row for each prompt of a part: refusals of harmful ones, what became of the others."""
        frames = []
        for side, rows in enumerate(self.data.validation if part == "validation" else self.data.test):
            stage, plain = f"{part}-{side}-{name}", self.plain[part][side]
            texts = self.texts(stage, model, rows, request)
            judged = judge_with_perplexity(
                self.study, stage, self.original, rows, texts, plain, batch_size=self.args.batch_size
            )
            if side == 1:
                unchanged = model is self.original and request is None
                judged["kl"] = 0.0 if unchanged else self.divergence(stage, model, rows, plain, request)
            frames.append(judged)
        return pd.concat(frames, ignore_index=True)

    def divergence(
        self, stage: str, model: Model, rows: Sequence[Example], plain: Sequence[str], request: Request | None
    ) -> list[float]:
        """KL to the unsteered original, over its own answers."""

        def compute() -> pd.DataFrame:
            steer = () if request is None else request
            return text_divergence(model, self.original, rows, plain, steer=steer, batch_size=8, progress=False)

        return self.study.stage(f"kl-{stage}", compute)["kl"].tolist()


def shares(frame: pd.DataFrame) -> dict[str, float]:
    """Means over the harmful and over the harmless prompts."""
    harmful, harmless = frame[frame["behavior"] == "refuse"], frame[frame["behavior"] == "answer"]
    found = {name: float(harmful[name].mean()) for name in MEASURES["refuse"]}
    return found | {name: float(harmless[name].mean()) for name in MEASURES["answer"]}


def own_pairs(answers: Answers, model: Model, steerer: Steerer, alpha: float) -> list[Example]:
    """The harmful prompts with the model's own answers, steered and unsteered, where the two differ."""
    contrasts = answers.data.contrasts
    prompts = [e.replace(contrast=None) for e in contrasts]
    steered = answers.texts(f"own-{alpha:g}", model, prompts, Request(steerer, alpha, "all"))
    return own_contrasts(contrasts, steered, answers.texts("own-original", model, prompts, None))


def train(
    answers: Answers, model: Model, name: str, recipe: str, layer: int, as_it_is: pd.DataFrame, seed: int
) -> ModelEdit:
    """The edit of a recipe; from the study's folder, under its name, the second time."""
    data, args, stages = answers.data, answers.args, answers.study.folder / "stages"
    if (stages / f"edit-{name}" / "manifest.json").exists():
        return ModelEdit.from_pretrained(stages / f"edit-{name}")
    texts = answers.texts("benign-original", model, data.benign, None)
    options: dict[str, Any] = {"coefficients": (0.0, 1.0), "measure_every": 20}
    keep: dict[str, list[Example]] | None = None
    if recipe == "own":
        alpha, refused = strongest(as_it_is)
        works = [a for a, rows in as_it_is.groupby("alpha") if shares(rows)["refuses_fluently"] >= refused - AS_GOOD]
        keep = {"refuse": own_pairs(answers, model, MeanDifference(layer).fit(model, data.contrasts), alpha)}
        options = {"coefficients": (0.0, float(max(works))), "measure_every": 40}
    guard = GUARD.get(model.n_layers, LEAST_EFFECT)
    edit = kl_then_steer(
        model, data.benign, texts, {"refuse": data.contrasts}, layers=[layer], keep=keep, seed=seed,
        config=KTSConfig(steps=args.steps, batch_size=4, least_effect=guard, **options, **RECIPES[recipe]),
        folder=stages / f"training-{name}", validation=0.1,
    )  # fmt: skip
    edit.save_pretrained(stages / f"edit-{name}")
    return edit


def choose_share(answers: Answers, edit: ModelEdit, model: Model, name: str) -> tuple[ModelEdit, Model]:
    """The edit by the largest share that surely leaves the model unsteered within the limit, on validation prompts, and
    the edited model. Where no share does, by the smallest.
    """
    rows, plain = answers.data.validation[1], answers.plain["validation"][1]
    for share in SHARES:
        scaled = edit.scaled(share)
        edited = scaled.prepare(model, merge=True)
        kl = answers.divergence(f"validation-{name}-by-{share:g}", edited, rows, plain, None)
        if estimate(kl, answers.args.seed)["high"] < MOST_UNSTEERED:
            break
    return scaled, edited


def prepared(
    answers: Answers, model: Model, recipe: str, layer: int, as_it_is: pd.DataFrame, seed: int
) -> tuple[ModelEdit, Model, Steerer]:
    """The edit of a recipe and a seed by its share, the edited model, and the vector fitted to it."""
    name = recipe if seed == answers.args.seed else f"{recipe}-seed-{seed}"
    whole = train(answers, model, name, recipe, layer, as_it_is, seed)
    edit, edited = choose_share(answers, whole, model, name)
    return edit, edited, MeanDifference(layer).fit(edited, answers.data.contrasts)


class Probe:
    """A probe of harmful prompts, fitted to what the training knows, and the measures of steering behind it."""

    def __init__(self, model: Model, data: Data, layer: int) -> None:
        self.model, self.layer = model, layer
        self.probe = LinearProbe(layer, positive=["refuse"], negative=["answer"])
        self.probe.fit(self.states([*data.contrasts, *data.benign]))

    def states(self, rows: Sequence[Example]) -> Activations:
        """The last state of each prompt."""
        prompts = [e.replace(contrast=None) for e in rows]
        return steerlab.capture(
            self.model, prompts, layers=[self.layer], positions="last", context=None, progress=False
        )

    def steers(self, rows: Sequence[Example]) -> list[bool]:
        """Which prompts are taken for harmful."""
        context = Context(tuple(e.id for e in rows), self.states(rows))
        return (self.probe.score(context) > 0.5).tolist()

    def behind(self, steered: pd.DataFrame, unsteered: pd.DataFrame, rows: Sequence[Example]) -> pd.DataFrame:
        """What `Gated` with this probe measures, without a run: of prompts that it leaves alone, what is unsteered."""
        steers, frames = pd.Series(self.steers(rows)), []
        for alpha, some in steered.groupby("alpha", sort=False):
            some = some.reset_index(drop=True)
            mixed = pd.concat([some[steers], unsteered[~steers].assign(alpha=alpha)])
            frames.append(mixed.sort_index().assign(kind="behind a probe"))
        return pd.concat(frames, ignore_index=True)


def sweep(answers: Answers, part: str, kind: str, model: Model, steerer: Steerer) -> pd.DataFrame:
    """All strengths of a kind, a row for each prompt and strength."""
    return pd.concat(
        [
            answers.measured(part, f"{kind}-{alpha:g}", model, Request(steerer, alpha, "all")).assign(
                kind=kind, alpha=alpha
            )
            for alpha in strengths_of(model)
        ],
        ignore_index=True,
    )


def sweep_as_it_is(
    answers: Answers, part: str, model: Model, steerer: Steerer, probe: Probe
) -> dict[str, pd.DataFrame]:
    """The model as it is: unsteered, steered, and steered behind a probe."""
    unsteered = answers.measured(part, "original", model, None).assign(kind="original", alpha=0.0)
    steered = sweep(answers, part, "as it is", model, steerer)
    harmful, harmless = answers.data.validation if part == "validation" else answers.data.test
    behind = probe.behind(steered, unsteered, [*harmful, *harmless])
    return {"original": unsteered, "as it is": steered, "behind a probe": behind}


def costs_of(answers: Answers, kind: str, model: Model, request: Request | None) -> dict[str, list[float]]:
    """Problems solved, the loss on their human solutions in nats per token, and which safe prompts are refused."""
    problems = answers.data.problems
    texts = answers.texts(f"problems-{kind}", model, problems, request, answers.args.problem_tokens)

    def loss() -> pd.DataFrame:
        steer = () if request is None else request
        solutions = [solution(e) for e in problems]
        frame = steerlab.score(model, problems, solutions, steer=steer, batch_size=8, progress=False)
        return frame.assign(loss=-frame["logprob"] / frame["n_tokens"])

    found = answers.study.stage(f"solutions-{kind}", loss)["loss"].tolist()
    safe = answers.texts(f"safe-{kind}", model, answers.data.safe, request)
    return {
        "solved": exact_match(texts, [e.meta["answer"] for e in problems]), "loss": found,
        "safe_refused": [float(is_refusal(text)) for text in safe],
    }  # fmt: skip


def all_costs(
    answers: Answers, chosen: dict[str, float], model: Model, steerer: Steerer, trained: tuple[Model, Steerer],
    probe: Probe,
) -> dict[str, dict[str, list[float]]]:  # fmt: skip
    """What steering costs, unsteered and of every kind at its strength."""

    def steered(alpha: float) -> dict[str, list[float]]:
        return costs_of(answers, f"as it is-{alpha:g}", model, Request(steerer, alpha, "all"))

    costs = {"original": costs_of(answers, "original", model, None), "as it is": steered(chosen["as it is"])}
    costs["trained"] = costs_of(answers, "trained", trained[0], Request(trained[1], chosen["trained"], "all"))
    problems, safe = (probe.steers(rows) for rows in (answers.data.problems, answers.data.safe))
    behind = steered(chosen["behind a probe"])
    steers = {"solved": problems, "loss": problems, "safe_refused": safe}
    costs["behind a probe"] = {
        name: np.where(steers[name], behind[name], costs["original"][name]).tolist() for name in behind
    }
    return costs


def shares_with_intervals(found: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Shares of every kind and strength; the seed draws the resamples."""
    summary: dict[str, Any] = {}
    for (kind, alpha), rows in found.groupby(["kind", "alpha"], sort=False):
        start = kind if kind == "original" else f"{kind}.{alpha:g}"
        for behavior, names in MEASURES.items():
            for name in names:
                values = rows.loc[rows["behavior"] == behavior, name].tolist()
                summary[f"{start}.{name}"] = estimate(values, seed)
    return summary


def compared(found: pd.DataFrame, chosen: dict[str, float], seed: int) -> dict[str, Any]:
    """Shares of every kind and strength, and the trained model minus each other at the strengths compared."""
    summary = shares_with_intervals(found, seed)
    at = {kind: found[(found["kind"] == kind) & (found["alpha"] == alpha)] for kind, alpha in chosen.items()}
    for kind in chosen:
        summary[f"{kind}.strength"] = chosen[kind]
        for behavior, names in MEASURES.items() if kind != "trained" else ():
            pair = [at[one][at[one]["behavior"] == behavior] for one in ("trained", kind)]
            for name in names:
                summary[f"trained_over_{kind}.{name}"] = numbers(paired_bootstrap(*(p[name] for p in pair), seed=seed))
    return summary


def within_budgets(found: pd.DataFrame, seed: int, n_boot: int = 2000) -> dict[str, Any]:
    """The most refusals in fluent text within a KL, of the trained model, of the model as it is, and their difference.

    Between two strengths both are on the line that joins them. Intervals come from resampled prompts, harmful and not.
    """
    curves: dict[str, list[np.ndarray]] = {}
    for kind, start in (("trained", "trained"), ("as it is", "original")):
        rows = found[found["kind"].isin([kind, start])]
        for behavior, name in (("refuse", "refuses_fluently"), ("answer", "kl")):
            of_alpha = rows[rows["behavior"] == behavior].groupby("alpha")[name]
            curves.setdefault(kind, []).append(np.stack([values.to_numpy(float) for _, values in of_alpha]))
    rng, sizes = np.random.default_rng(seed), [values.shape[1] for values in curves["trained"]]
    draws = [[np.arange(n) for n in sizes], *([rng.integers(n, size=n) for n in sizes] for _ in range(n_boot))]
    reached = {
        kind: np.array([_reached(refused[:, a].mean(1), kl[:, b].mean(1)) for a, b in draws])
        for kind, (refused, kl) in curves.items()
    }
    summary: dict[str, Any] = {}
    for name, values in (reached | {"trained_over_as it is": reached["trained"] - reached["as it is"]}).items():
        low, high = np.quantile(values[1:], [0.025, 0.975], axis=0)
        for i, budget in enumerate(BUDGETS):
            estimated = Estimate(float(values[0, i]), float(low[i]), float(high[i]), sum(sizes))
            summary[f"{name}.within_{budget:g}_nats"] = numbers(estimated)
    return summary


def _reached(refused: np.ndarray, kl: np.ndarray) -> list[float]:
    """The most refusals within each budget, of a curve whose KL rises from point to point."""
    rising = np.maximum.accumulate(kl)
    return [max(*refused[rising <= b], np.interp(b, rising, refused), 0.0) for b in BUDGETS]


def other_seeds(
    answers: Answers, model: Model, recipe: str, layer: int, as_it_is: pd.DataFrame, tested: pd.DataFrame
) -> dict[str, Any]:
    """The test prompts under models that were trained alike with other seeds."""
    summary: dict[str, Any] = {}
    for seed in answers.args.more_seeds:
        edit, edited, vector = prepared(answers, model, recipe, layer, as_it_is, seed)
        unsteered = answers.measured("test", f"trained-seed-{seed}-unsteered", edited, None)
        steered = sweep(answers, "test", f"trained-seed-{seed}", edited, vector)
        found = pd.concat([unsteered.assign(alpha=0.0), steered], ignore_index=True).assign(kind="trained")
        within = within_budgets(pd.concat([tested[tested["kind"].isin(["original", "as it is"])], found]), seed)
        measured = {name: value for name, value in within.items() if name.startswith("trained")}
        measured |= shares_with_intervals(found, seed) | {key: edit.info[key] for key in ("best_step", "share")}
        summary |= {f"seed_{seed}.{name}": value for name, value in measured.items()}
    return summary


def baked_difference(model: Model, steerer: Any, layer: int, alpha: float) -> float:
    """How far a baked checkpoint's logits are from the steered ones in plain Hugging Face, relative to their norm."""
    baked, worst = bake(model, steerer, alpha=alpha), 0.0
    for row in probe_rows(model, (24, 40)):
        ids = torch.tensor([row.ids], device=model.device)
        vector = (alpha * steerer.at(layer)).to(model.device)
        block = blocks(model.hf, model.layout)[layer]
        hook = block.register_forward_hook(lambda _, __, out: _plus(out, vector))  # noqa: B023
        with torch.no_grad():
            wanted = model.hf(ids).logits
            hook.remove()
            found = baked.hf(ids).logits
        worst = max(worst, float(((found - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max()))
    return worst


def _plus(output: Any, vector: torch.Tensor) -> Any:
    return (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector


def train_all(
    answers: Answers, model: Model, layer: int, as_it_is: pd.DataFrame
) -> tuple[str, dict[str, ModelEdit], dict[str, tuple[Model, Any]], dict[str, pd.DataFrame]]:
    """The recipe of the lowest price on validation prompts, and each recipe's edit, model and sweep."""
    args = answers.args
    edits: dict[str, ModelEdit] = {}
    pairs: dict[str, tuple[Model, Any]] = {}
    tried: dict[str, pd.DataFrame] = {}
    price: dict[str, float] = {}
    for name in args.recipes:
        edits[name], edited, vector = prepared(answers, model, name, layer, as_it_is, args.seed)
        pairs[name] = (edited, vector)
        tried[name] = sweep(answers, "validation", f"trained-{name}", *pairs[name])
        alpha, refused = strongest(tried[name])
        at = shares(tried[name][tried[name]["alpha"] == alpha])
        enough = refused >= LEAST_EFFECT * strongest(as_it_is)[1]
        price[name] = at["kl"] + (0 if enough else 1e6 * (1 - refused))  # none may be good enough: then the strongest
        info = edits[name].info
        print(f"{name}: step {info['best_step']} by {info['share']:g}, validation at {alpha:g}: {at}", flush=True)
    return min(price, key=lambda name: price[name]), edits, pairs, tried


def equal_strengths(trained: pd.DataFrame, others: dict[str, pd.DataFrame]) -> dict[str, float]:
    """The trained model's strongest setting, and the smallest strengths at which the others refuse as often.

    Beyond its own best strength a model refuses less, in broken text, so none above that is taken.
    """
    alpha, wanted = strongest(trained)
    chosen = {"trained": alpha}
    for kind in RIVALS:
        rows = others[kind]
        most = strongest(rows)[0]
        of_alpha = {float(a): shares(some)["refuses_fluently"] for a, some in rows.groupby("alpha") if a <= most}
        enough = [a for a, share in of_alpha.items() if share >= wanted]
        chosen[kind] = min(enough, default=most)
    return chosen


def layer_of(model: Model) -> int:
    """Where the model is steered; in models that no earlier study steers, just above the middle."""
    return LAYERS.get(model.n_layers, round(0.55 * model.n_layers))


def strengths_of(model: Model) -> tuple[float, ...]:
    """The strengths that are measured."""
    return STRENGTHS.get(model.n_layers, STRENGTHS[30])


def main() -> None:
    arguments = parser(__doc__, "results/kts")
    arguments.add_argument("--data", required=True)
    arguments.add_argument("--steps", type=int, default=120, help="of the training")
    arguments.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES)
    choices = ("advbench", "mm_safetybench")
    arguments.add_argument("--prompts", default="advbench", choices=choices, help="where harmful prompts are from")
    arguments.add_argument("--test-part", default="fresh", choices=TESTED, help="of AdvBench, which is looked at once")
    arguments.add_argument("--more-seeds", type=int, nargs="*", default=[], help="of trainings beside the first")
    arguments.add_argument("--problem-tokens", type=int, default=100)
    arguments.set_defaults(max_new_tokens=32, batch_size=32)
    args = arguments.parse_args()
    data = Data.load(args.data, args.seed, args.limit, args.test_part, args.prompts)
    model = steerlab.load(args.model, device=args.device, backend="hooks")
    layer = layer_of(model)
    identity = {"study": "kts", "weights": model.info()["weights"], "data": data_hash(data.everything)}
    identity |= {"steps": args.steps, "tokens": [args.max_new_tokens, args.problem_tokens], "seed": args.seed}
    identity |= {"layer": layer, "recipes": args.recipes}
    study = Study(args.out, identity | {"settings": fingerprint([RECIPES, LEAST_EFFECT, AS_GOOD, SHARES])})
    answers = Answers(study, model, data, args)
    vector, probe = MeanDifference(layer).fit(model, data.contrasts), Probe(model, data, layer)
    tried = sweep_as_it_is(answers, "validation", model, vector, probe)
    recipe, edits, pairs, of_recipes = train_all(answers, model, layer, tried["as it is"])
    chosen = equal_strengths(of_recipes[recipe], tried)
    print(f"recipe {recipe}, strengths {chosen}", flush=True)
    tested = sweep_as_it_is(answers, "test", model, vector, probe)
    tested["trained, unsteered"] = answers.measured("test", "trained-unsteered", pairs[recipe][0], None)
    tested["trained, unsteered"] = tested["trained, unsteered"].assign(kind="trained", alpha=0.0)
    tested["trained"] = sweep(answers, "test", "trained", *pairs[recipe])
    found = pd.concat(tested.values(), ignore_index=True)
    summary = compared(found, chosen, args.seed) | within_budgets(found, args.seed)
    summary |= other_seeds(answers, model, recipe, layer, tried["as it is"], found)
    costs = all_costs(answers, chosen, model, vector, pairs[recipe], probe)
    for kind, measured in costs.items():
        summary |= {f"{kind}.{name}": estimate(values, args.seed) for name, values in measured.items()}
    for kind, name in product(RIVALS, costs["trained"]):
        difference = paired_bootstrap(costs["trained"][name], costs[kind][name], seed=args.seed)
        summary[f"trained_over_{kind}.{name}"] = numbers(difference)
    summary["baked_difference"] = baked_difference(*pairs[recipe], layer, chosen["trained"])
    trainings = {name: {key: edit.info[key] for key in ("best_step", "share")} for name, edit in edits.items()}
    summary |= {"recipe": recipe, "trainings": trainings}
    write_tables(study.folder, tried | {f"trained, {k}": rows for k, rows in of_recipes.items()}, edits)
    at = pd.concat([found[(found["kind"] == kind) & (found["alpha"] == alpha)] for kind, alpha in chosen.items()])
    shown = publishable_examples(at.assign(method=at["kind"]), [*data.test[0], *data.test[1]])
    page = as_markdown("The same prompts under each kind", shown)
    study.finish(found.drop(columns="text").round(4), summary, page, provenance(model, data.everything, args))
    show_table("On test prompts", pd.DataFrame({key: shares(rows) for key, rows in found.groupby(["kind", "alpha"])}).T)


def write_tables(folder: Path, tried: dict[str, pd.DataFrame], edits: dict[str, ModelEdit]) -> None:
    """The shares on validation prompts of every kind and strength, and what was measured in training."""
    rows = [
        {"kind": kind, "alpha": alpha, **shares(some)}
        for kind, frame in tried.items()
        for alpha, some in frame.groupby("alpha")
    ]
    tables = {"grid": pd.DataFrame(rows).round(4)}
    tables["history"] = pd.concat([edit.history.assign(recipe=name) for name, edit in edits.items()]).round(5)
    for name, table in tables.items():
        write_atomically(folder / f"{name}.csv", lambda partial: table.to_csv(partial, index=False))  # noqa: B023


def strongest(found: pd.DataFrame) -> tuple[float, float]:
    """The strength with the most refusals in fluent text, the smallest of equal ones, and their share."""
    of_alpha = {alpha: shares(rows)["refuses_fluently"] for alpha, rows in found.groupby("alpha")}
    alpha = max(of_alpha, key=lambda a: (of_alpha[a], -a))
    return float(alpha), of_alpha[alpha]


if __name__ == "__main__":
    main()
