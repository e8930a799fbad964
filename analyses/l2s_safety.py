"""Learn-to-Steer on MM-SafetyBench questions (text): refuse what is harmful, defer legal, financial and health
questions to a professional, leave harmless instructions alone.

    python analyses/l2s_safety.py --model smollm2 --data .../mm_safetybench --out results/l2s_safety

Layer, strength, positions, sentences and target scaling are chosen on a validation part of the *training* questions.
The wide round tries the same settings for L2S and for the mean vector. The narrow rounds are centered on the best
settings of L2S (balanced norms and end-of-turn tokens; other words for deferral; the layer it reads and its kind of
net), and try the mean vector beside it; "again" and "mean" are centered on the best settings of the mean vector.
The choice is made among rounds with twice the inputs. The wide round generates 86,400 answers: minutes on a GPU, many
hours on two CPU cores (select rounds with `--rounds`). `--grid` gives the grid of earlier rounds, to be extended:

    python analyses/l2s_safety.py --data .../mm_safetybench --rounds mean --grid analyses/results/l2s_safety/grid.csv \
        --search-only --batch-size 64 --out results/l2s_safety_mean

An interrupted run resumes and loses at most the 480 answers of one stage. The test questions are those of the
published split.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import pandas as pd
from _common import as_markdown, estimate, limit_per_group, of_split, parser, provenance, show_table, to_long
from _safety import (
    Setting,
    capture_sets,
    check_behaviors,
    cosines,
    publishable_examples,
    published_counts,
    run_methods,
    steerers,
    summarize,
)
from _search import BEHAVIOR_GOALS, ROUNDS, distinct, layers_of, pick_setting, read_grid, search, search_fingerprints
from _selection import reaches_goals

import steerlab
from steerlab import Activations, Example
from steerlab._support.files import fingerprint, write_atomically, write_json
from steerlab.analysis.behavior import MEASURES, rules_fingerprint, safety_summary
from steerlab.analysis.study import Study
from steerlab.data import data_hash, mm_safety_bench, read_jsonl, validation_split
from steerlab.models.model import Model

METHODS = ("none", "prompt", "random", "mean", "l2s", "p2s")


def load_data(args: argparse.Namespace) -> tuple[list[Example], list[Example], list[Example]]:
    """Training inputs (which include the validation inputs), validation inputs, and test inputs.

    Each includes harmless instructions.
    """
    questions = mm_safety_bench(args.data)
    folder = Path(args.harmless or Path(args.data).parent / "alpaca_harmless")
    train, test = (
        [e.replace(split=split) for e in read_jsonl(folder / file, "instruction", behavior="answer")]
        for split, file in (("train", "harmless_train_600.jsonl"), ("test", "harmless_test_200.jsonl"))
    )
    fit, held_out = validation_split(of_split(questions, "train") + train[:400], 0.25, seed=args.seed)
    random.Random(args.seed).shuffle(held_out)
    validation = limit_per_group([e.replace(split="train") for e in held_out], args.limit)
    return (
        limit_per_group(fit, args.limit) + validation,
        validation,
        limit_per_group(of_split(questions, "test") + test, args.limit),
    )


def identity(
    args: argparse.Namespace, model: Model, parts: dict[str, list[Example]], earlier: pd.DataFrame | None
) -> dict[str, Any]:
    """Everything that the stages depend on; stages of a study with another identity are not used."""
    named = ("seed", "limit", "model", "rounds", "max_new_tokens")
    return {
        "study": "l2s_safety",
        **{name: getattr(args, name) for name in named},
        "revision": model.revision,
        "weights": model.info()["weights"],
        "data": fingerprint([data_hash(examples) for examples in parts.values()]),
        **search_fingerprints(args.rounds),
        "rules": rules_fingerprint(),
        "grid": None if earlier is None else fingerprint(earlier.to_csv(index=False)),
    }


def summarize_choice(grid: pd.DataFrame, chosen: dict[str, Setting]) -> dict[str, Any]:
    """Per method: how many settings were tried, how many reach the three behavior goals, and the chosen one."""
    found: dict[str, Any] = {}
    for method, setting in chosen.items():
        settings = distinct(grid[grid["method"] == method])
        found[f"{method}.validation_settings"] = len(settings)
        found[f"{method}.validation_settings_reaching_all_three"] = int(reaches_goals(settings, BEHAVIOR_GOALS).sum())
        found[f"{method}.setting"] = vars(setting)
    return found


def _arguments() -> argparse.Namespace:
    arguments = parser(__doc__, "results/l2s_safety")
    arguments.add_argument("--data", required=True, help="folder with the thirteen JSON files of MM-SafetyBench")
    arguments.add_argument("--harmless", default=None, help="folder of harmless_{train_600,test_200}.jsonl")
    arguments.add_argument("--rounds", nargs="+", default=list(ROUNDS), choices=list(ROUNDS))
    arguments.add_argument("--grid", default=None, help="grid.csv of earlier rounds on this model")
    arguments.add_argument("--search-only", action="store_true", help="stop after writing grid.csv and search.json")
    arguments.add_argument(
        "--methods",
        nargs="+",
        default=list(METHODS),
        choices=METHODS,
        help="methods to compare; l2s and mean are always included",
    )
    arguments.add_argument(
        "--only",
        nargs="+",
        default=None,
        help="compute only these methods' answers; lets several processes share the work",
    )
    args = arguments.parse_args()
    searched = {method for name in args.rounds for method in ROUNDS[name].get("methods", ("mean", "l2s"))}
    if searched != {"mean", "l2s"} and not (args.grid or args.search_only):
        arguments.error(f"these rounds try settings of {sorted(searched)} only: give --grid, or --search-only")
    return args


def main() -> None:
    """Choose settings on validation inputs, evaluate on test inputs."""
    args = _arguments()
    earlier = read_grid(args.grid, args.rounds, rules_fingerprint()) if args.grid else None
    everything, validation, test = load_data(args)
    counts = published_counts(args.data)
    print("published split: " + ", ".join(f"{name.removeprefix('counts.')} {n}" for name, n in counts.items()))
    print(f"{len(everything) - len(validation)} training, {len(validation)} validation and {len(test)} test inputs")
    parts = {"training": everything, "validation": validation, "test": test}
    for part, examples in parts.items():
        check_behaviors(f"{part} inputs", (e.behavior for e in examples))
    model = steerlab.load(args.model, device=args.device)
    study = Study(args.out, identity(args, model, parts, earlier))

    def capture(part: str, examples: list[Example], sentences: list[str]) -> dict[str, Activations]:
        return capture_sets(study, part, model, examples, sentences, layers_of(model), args.batch_size)

    grid = search(study, model, lambda name: capture("train", everything, [name])[name], validation, args, earlier)
    searched = [method for method in ("l2s", "mean") if not args.search_only or (grid["method"] == method).any()]
    chosen = {method: pick_setting(grid, method) for method in searched}
    for method, setting in chosen.items():
        print(f"{method}, chosen on validation: {setting.label}")
    summary: dict[str, object] = {**counts, **summarize_choice(grid, chosen)}
    source = provenance(model, test, args)
    if not args.only:  # of processes that share the work, only one writes
        write_atomically(study.folder / "grid.csv", lambda partial: grid.round(4).to_csv(partial, index=False))
    if args.search_only:
        write_json(study.folder / "search.json", {**summary, "study": study.identity, "provenance": source})
        return

    train = capture("train", everything, [s.sentences for s in chosen.values()])
    tested = capture("test", test, [chosen["l2s"].sentences])
    methods = steerers(train, tested, chosen, args.seed)
    methods = {name: m for name, m in methods.items() if name in {"none", "mean", "l2s", *args.methods}}
    if args.only:
        selected = {name: methods[name] for name in args.only}
        run_methods(study, model, test, selected, max_new_tokens=args.max_new_tokens, batch_size=args.batch_size)
        return
    judged = run_methods(
        study, model, test, methods,
        max_new_tokens=args.max_new_tokens, batch_size=args.batch_size,
    )  # fmt: skip

    summary = {**summarize(judged, args.seed), **summary}
    similarities = cosines(methods, train[chosen["l2s"].sentences], tested[chosen["l2s"].sentences])
    summary |= {name: estimate(values.tolist(), args.seed) for name, values in similarities.items()}
    summary["test_counts"] = {b: sum(e.behavior == b for e in test) for b in ("refuse", "defer", "answer")}
    measures = [*MEASURES, "norm_ratio"]
    study.finish(
        to_long(judged, args.model, measures),
        summary,
        as_markdown("The same inputs under every method", publishable_examples(judged, test)),
        source,
    )
    table = {m: safety_summary(frame) for m, frame in judged.groupby("method", sort=False)}
    show_table("On the test questions", pd.DataFrame(table).T)


if __name__ == "__main__":
    main()
