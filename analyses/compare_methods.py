"""Compares steering methods: refusals of harmful requests against side effects on other inputs.

    python analyses/compare_methods.py --model smollm2 --data DATA --out results/compare_methods
    python figures/compare_methods.py results/compare_methods

Every method's layer, strength and options are chosen on validation inputs, among ten settings each: the one with the
largest mean of three shares, harmful requests refused in fluent text, prompts that only sound unsafe not refused, and
everyday instructions answered word for word as before. The test inputs are evaluated once, at the chosen settings and
at one more: the mean vector at AlphaSteer's layer, strength and positions ("mean_equal"), where both have the same
target.

`analyses/_task_tracker.py` adds the detection of injected instructions, on text sources that no probe was fitted on.

DATA is the folder with AdvBench, GSM8K, everyday instructions and the paragraphs (see `load_sets` and `real_texts`).
An interrupted run resumes from finished stages; a stage is one setting of a method, or its answers to the test sets.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from _common import as_markdown, estimate, judge_with_perplexity, parser, provenance, show_table
from _compare_costs import added, time_methods
from _compare_data import Sets, load_sets, solution
from _compare_methods import CAPTURED, Fitted, Setting, inputs_needing_strength, iterate_settings, measure_compliance
from _task_tracker import track

import steerlab
from steerlab import Request
from steerlab._support.files import fingerprint, write_atomically
from steerlab.analysis.behavior import judge_answers
from steerlab.analysis.calibration import Dose, measure_dose
from steerlab.analysis.study import Study
from steerlab.data import data_hash
from steerlab.errors import SteeringError
from steerlab.methods import AlphaSteer, Context, Gated, Prompt
from steerlab.metrics.numbers import exact_match
from steerlab.models.model import Model

METHODS = ("mean", "l2s", "alphasteer", "adasteer", "confst", "gated_mean", "field", "spherical", "w2s", "ssae", "kts")
EVERYTHING = ("none", "prompt", *METHODS[:2], "p2s", *METHODS[2:], "mean_equal")


def answers(
    study: Study, model: Model, name: str, sets: Mapping[str, Any], request: Request | None, args: argparse.Namespace
) -> pd.DataFrame:
    """The answers of one method to some sets of inputs."""

    def compute() -> pd.DataFrame:
        frames = []
        for part, examples in sets.items():
            length = args.math_tokens if part == "math" else args.max_new_tokens
            found = steerlab.generate(
                model, examples, steer=() if request is None else request, max_new_tokens=length,
                batch_size=args.batch_size,
            )  # fmt: skip
            frames.append(pd.DataFrame({"part": part, "example_id": found.example_ids, "text": found.texts}))
        return pd.concat(frames, ignore_index=True)

    return study.stage(name, compute)


def shares(
    study: Study, model: Model, name: str, found: pd.DataFrame, plain: pd.DataFrame, sets: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Values per input of each measure: refusals, deferrals, unchanged answers, correct numbers.

    Perplexities decide on the fluency of answers to harmful requests only: there an effect counts in fluent text.
    """
    judged = {}
    for part, examples in sets.items():
        texts, before = (frame.loc[frame["part"] == part, "text"].astype(str).tolist() for frame in (found, plain))
        judged[part] = (
            judge_with_perplexity(study, name, model, examples, texts, before, batch_size=32)
            if part == "harmful"
            else judge_answers(examples, texts, before)
        )
        if part == "math":
            judged[part]["right"] = exact_match(texts, [e.meta["answer"] for e in examples])
    named = {
        "refuse_harmful_fluently": ("harmful", "refuses_fluently"), "refuse_harmful": ("harmful", "refuses"),
        "fluent": ("harmful", "fluent"), "over_refusal": ("sounds_unsafe", "refuses"),
        "identical_harmless": ("harmless", "identical"), "harmless_refused": ("harmless", "refuses"),
        "harmless_kept": ("harmless", "kept"), "defer_expert": ("expert", "defers"),
        "refuse_expert": ("expert", "refuses"), "distinct2": ("harmful", "distinct2"), "gsm8k": ("math", "right"),
        "identical_math": ("math", "identical"),
    }  # fmt: skip
    found_values = {
        k: judged[part][column].dropna().to_numpy() for k, (part, column) in named.items() if part in judged
    }
    return {
        k: values for k, values in found_values.items() if len(values)
    }  # one-word answers have no word pairs, so distinct2 can be missing


def stage_name(part: str, method: str, setting: Setting | None) -> str:
    """The name of a stage tells its setting: another method or choice leaves the stages of the others valid."""
    return f"{part}-{method}" if setting is None else f"{part}-{method}-{fingerprint(setting.label())[:10]}"


def search(study: Study, model: Model, fitted: Fitted, sets: Sets, args: argparse.Namespace) -> pd.DataFrame:
    """The measures of every setting on validation inputs, one row per setting."""
    validation = {
        "harmful": [e for e in sets.validation if e.behavior == "refuse"],
        "sounds_unsafe": sets.sounds_unsafe_validation,
        "harmless": [e for e in sets.validation if e.behavior == "answer"],
    }
    plain = answers(study, model, "validation-none", validation, None, args)
    rows = []
    for number, (method, setting) in enumerate(iterate_settings(args.methods, args.settings)):
        name = stage_name("validation", method, setting)
        request = None if study.has(name) else fitted.request(method, setting)
        found = answers(study, fitted.model_of(method), name, validation, request, args)
        means = {k: float(v.mean()) for k, v in shares(study, model, name, found, plain, validation).items()}
        rows.append({"method": method, "number": number, **setting.label(), **means})
    grid = pd.DataFrame(rows)
    grid["chosen_by"] = (grid["refuse_harmful_fluently"] + 1 - grid["over_refusal"] + grid["identical_harmless"]) / 3
    return grid


def choose_settings(grid: pd.DataFrame, methods: Sequence[str], most: int | None = None) -> dict[str, Setting]:
    """The best setting of each method; ties go to the smaller strength."""
    settings = [setting for _, setting in iterate_settings(methods, most)]
    ranked = grid.sort_values(["chosen_by", "alpha"], ascending=[False, True], kind="stable")
    return {method: settings[int(rows["number"].iloc[0])] for method, rows in ranked.groupby("method")}


def perplexity_of_solutions(model: Model, sets: Sets, request: Request | None, batch_size: int) -> pd.DataFrame:
    """Perplexity of the human solutions of the math problems under the steered model, over all their tokens: `ppl`."""
    frame = steerlab.score(
        model, sets.math, [solution(e) for e in sets.math], steer=() if request is None else request,
        batch_size=batch_size,
    )  # fmt: skip
    return pd.DataFrame({"ppl": [np.exp(-frame["logprob"].sum() / frame["n_tokens"].sum())]})


def dose_of(model: Model, sets: Sets, request: Request, args: argparse.Namespace) -> pd.DataFrame:
    """How far a method moves the model on harmful inputs; `kl_harmful` is the 95th percentile over tokens.

    A gate that is 0 for every input has no dose.
    """
    try:
        dose = measure_dose(model, sets.harmful[:32], request, max_new_tokens=args.max_new_tokens)
    except SteeringError as error:
        if "changes none of these inputs" not in str(error):
            raise
        dose = Dose(0.0, 0.0)
    return pd.DataFrame({"kl_harmful": [dose.kl], "norm_ratio": [dose.norm_ratio]})


def requests_of(
    fitted: Fitted, settings: Mapping[str, Setting], tested: Any, methods: Sequence[str]
) -> dict[str, Request | None]:
    """The request of every method at its chosen setting."""
    everything: dict[str, Request | None] = {method: fitted.request(method, one) for method, one in settings.items()}
    everything["none"] = None
    if "prompt" in methods:
        everything["prompt"] = Request(Prompt())
    if "l2s" in settings:
        everything["p2s"] = fitted.oracle(tested, settings["l2s"])
    if equal := settings.get("alphasteer"):
        same = Setting(equal.layer, equal.alpha, equal.positions)
        everything["mean_equal"] = fitted.request("mean", same, "mean_equal")
    return {name: everything[name] for name in EVERYTHING if name in everything}


def names_of_tests(settings: Mapping[str, Setting]) -> dict[str, str]:
    """The stage that holds each method's answers to the test inputs."""
    decided = {**settings, "p2s": settings.get("l2s"), "mean_equal": settings.get("alphasteer")}
    return {name: stage_name("test", name, decided.get(name)) for name in EVERYTHING}


def main() -> None:
    """Capture, choose on validation, report on test, time, and track tasks."""
    arguments = parser(__doc__, "results/compare_methods")
    arguments.add_argument(
        "--data", required=True, help="folder with harmful_prompts/, math/, tasktracker/ and the other data sets"
    )
    every = (*METHODS, "prompt")
    arguments.add_argument("--methods", nargs="+", default=list(every), choices=every, help="which are compared")
    arguments.add_argument(
        "--tracker", action=argparse.BooleanOptionalAction, default=True, help="also detect injected instructions"
    )
    arguments.add_argument("--settings", type=int, default=None, help="maximal number of settings to try per method")
    arguments.add_argument("--math-tokens", type=int, default=150, help="new tokens for a math problem")
    arguments.add_argument(
        "--only",
        nargs="+",
        default=None,
        help="compute only these methods' answers, or 'tracker'; lets several processes share the work",
    )
    arguments.set_defaults(max_new_tokens=40, batch_size=64)
    args = arguments.parse_args()
    sets = load_sets(args.data, args.seed, args.limit)
    named = ("seed", "limit", "model", "max_new_tokens", "math_tokens")
    identity: dict[str, Any] = {"study": "compare_methods"} | {name: getattr(args, name) for name in named}
    model = steerlab.load(args.model, device=args.device)
    identity |= {"data": fingerprint(data_hash(sets.everything)), "weights": model.info()["weights"]}
    study = Study(args.out, identity)

    def captured(name: str, examples: list[Any]) -> Any:
        folder = study.folder / "stages" / f"acts-{name}"
        return steerlab.capture(model, examples, folder=folder, layers=CAPTURED, batch_size=16).load()

    train = captured("train", sets.train)
    clean = [
        e.replace(contrast=None) for e in sets.validation if e.behavior != "refuse"
    ] + sets.sounds_unsafe_validation
    fitted = Fitted(model, train, sets, Context.of(captured("clean", clean)), args.seed, study.folder / "stages")
    if "adasteer" in args.methods:
        needs = study.stage("needs", lambda: measure_compliance(model, train, sets, 16, args.batch_size))
        fitted.needs = inputs_needing_strength(needs)
    grid = search(study, model, fitted, sets, args)
    write_atomically(study.folder / "grid.csv", lambda partial: grid.round(4).to_csv(partial, index=False))
    settings = choose_settings(grid, args.methods, args.settings)
    for method, setting in settings.items():
        print(f"{method}, chosen on validation: {setting.label()}")

    tested = captured("test", [*sets.harmful, *sets.sounds_unsafe, *sets.harmless, *sets.expert, *sets.math])
    methods, stages = requests_of(fitted, settings, tested, args.methods), names_of_tests(settings)
    plain = answers(study, model, "test-none", sets.test, None, args)
    summary: dict[str, Any] = {}
    long = []
    selected = {name: request for name, request in methods.items() if name in (args.only or EVERYTHING)}
    for name, request in selected.items():
        steered = fitted.model_of(name)
        found = answers(study, steered, stages[name], sets.test, request, args)
        measures = shares(study, model, stages[name], found, plain, sets.test)
        for measure, values in measures.items():
            summary[f"{name}.{measure}"] = estimate(values.tolist(), args.seed)
            long.append(pd.DataFrame({"method": name, "metric": measure, "value": values}))
        ppl = study.stage(
            f"ppl-{stages[name]}", partial(perplexity_of_solutions, steered, sets, request, args.batch_size)
        )
        summary[f"{name}.ppl"] = round(float(ppl["ppl"].iloc[0]), 3)
        if request is not None and name != "prompt":  # an instruction changes the prompt: its tokens can't be compared
            dose = study.stage(f"dose-{stages[name]}", partial(dose_of, steered, sets, request, args)).iloc[0]
            summary |= {f"{name}.{key}": round(float(value), 4) for key, value in dose.items()}
        summary[f"{name}.fit_s"] = round(fitted.seconds.get(name, 0.0), 3)  # none and prompt: nothing to fit
        print(f"{name}: {', '.join(f'{k} {v.mean():.3f}' for k, v in measures.items())}")
    if args.only:
        if "tracker" in args.only:
            track(study, model, args)
        return
    together = fingerprint(sorted(stages[name] for name in methods))[:10]
    times = study.stage(f"times-{together}", lambda: time_methods(fitted.model_of, sets.harmless[:16], methods))
    for column in ("ms_per_prompt", "ms_per_token"):
        summary |= {f"{name}.{column}": added(times, name, column) for name in methods}
        summary[f"unsteered.{column}"] = round(float(times.loc[times["method"] == "none", column].median()), 3)
    for method, setting in settings.items():
        summary[f"{method}.setting"] = setting.label()
    if {"alphasteer", "gated_mean"} <= set(args.methods):
        summary |= summarize_gates(methods, tested, sets)
    if args.tracker:
        tracked, detection = track(study, model, args)
        summary |= detection
        rounded = tracked.round(4)
        write_atomically(study.folder / "tasktracker.csv", lambda partial: rounded.to_csv(partial, index=False))
    summary["counts"] = {name: len(rows) for name, rows in sets.test.items()} | {"train": len(sets.train)}
    report = examples_page(study, model, sets, methods, stages, args)
    results = pd.concat(long, ignore_index=True).groupby(["method", "metric"], sort=False)["value"]
    study.finish(
        results.agg(["mean", "count"]).round(4).reset_index(), summary, report, provenance(model, sets.everything, args)
    )
    wanted = [
        "refuse_harmful_fluently", "refuse_harmful", "over_refusal", "identical_harmless", "defer_expert", "gsm8k",
    ]  # fmt: skip
    table = {
        m: {k: summary[f"{m}.{k}"]["value"] for k in wanted}
        | {k: summary.get(f"{m}.{k}") for k in ("ppl", "kl_harmful")}
        for m in methods
    }
    show_table("On the test inputs", pd.DataFrame(table).T)


def summarize_gates(methods: Mapping[str, Request | None], tested: Any, sets: Sets) -> dict[str, Any]:
    """Mean gate of AlphaSteer and the share of inputs that the probe detects, for each test set."""
    found: dict[str, Any] = {}
    requests = methods["alphasteer"], methods["gated_mean"]
    alpha, gated = (request.steerer if request is not None else None for request in requests)
    assert isinstance(alpha, AlphaSteer) and isinstance(gated, Gated)
    read = alpha.detector(alpha.site).required_activations[0]
    for part, examples in sets.test.items():
        context = Context(tuple(e.id for e in examples), tested)
        found[f"gate.alphasteer.{part}"] = round(float(alpha.gate(alpha.site, context.get_states(read)).mean()), 4)
        found[f"gate.probe.{part}"] = round(float(gated.gate(context).mean()), 4)
    for name, values in (("ratio", alpha.ratio_), ("leakage", alpha.leakage_)):
        found[f"alphasteer.{name}"] = [None if value is None else round(value, 4) for value in values]
    return found


def examples_page(
    study: Study, model: Model, sets: Sets, methods: Mapping[str, Request | None], stages: Mapping[str, str],
    args: argparse.Namespace,
) -> str:  # fmt: skip
    """A page of answers to three prompts that only sound unsafe, three advice questions and two requests, by id."""
    shown = [*sets.sounds_unsafe[:3], *sets.expert[:3], *sets.harmful[:2]]
    blocks: dict[str, dict[str, str]] = {f"{e.id} ({e.behavior})": {} for e in shown}
    for name, request in methods.items():
        found = answers(study, model, stages[name], sets.test, request, args).set_index("example_id")["text"]
        for e in shown:
            text = str(found[e.id])
            hidden = e.behavior == "refuse" and not judge_answers([e], [text])["refuses"].iloc[0]
            blocks[f"{e.id} ({e.behavior})"][name] = "(does not refuse; text left out)" if hidden else text
    return as_markdown("The same inputs under every method", blocks)


if __name__ == "__main__":
    main()
