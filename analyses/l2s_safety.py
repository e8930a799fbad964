"""Learn-to-Steer on MM-SafetyBench questions (text): refuse what is harmful, defer legal, financial and health
questions to a professional, leave harmless instructions alone.

    python analyses/l2s_safety.py --model smollm2 --data .../mm_safetybench --out results/l2s_safety

Layer, strength, positions, sentences and target scaling are chosen on a validation part of the *training* questions:
a wide round over everything, then narrow ones around the best cell (balanced norms and end-of-turn tokens; other words
for deferral; the layer L2S reads and its kind of net), for L2S and for the mean vector alike; the last ones have twice
the inputs and decide. The wide round generates 86,400 answers: minutes on a GPU, many hours on two CPU cores
(`--rounds narrow deferral context net again units` runs the others alone). Finished blocks, activations and answers are
kept, and a run resumes. The test questions are the published split's.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import pandas as pd
from _common import (
    as_markdown,
    estimate,
    limited,
    of_split,
    parser,
    provenance,
    show_table,
    tidy,
)
from _safety import capture_sets, check_behaviours, cosines, run_methods, steerers, summarise
from _search import LAYERS, ROUNDS, THREE, pick, search

import steerlab
from steerlab import Activations, Example
from steerlab.analysis.behaviour import goals
from steerlab.analysis.selection import reaches
from steerlab.analysis.study import Study
from steerlab.data import harmless_instructions, mm_safety_bench, validation_split

METHODS = ("none", "prompt", "random", "mean", "l2s", "p2s")


def load_data(args: argparse.Namespace) -> tuple[list[Example], list[Example], list[Example]]:
    """Training inputs, those among them that are kept for validation, and test inputs.

    Harmless instructions are among each of them.
    """
    questions = mm_safety_bench(args.data)
    folder = Path(args.harmless or Path(args.data).parent / "alpaca_harmless")
    train = [e.with_(split="train") for e in harmless_instructions(folder / "harmless_train_600.jsonl")[:400]]
    test = [e.with_(split="test") for e in harmless_instructions(folder / "harmless_test_200.jsonl")]
    fit, held = validation_split(of_split(questions, "train") + train, 0.25, seed=args.seed)
    random.Random(args.seed).shuffle(held)
    spare = limited([e.with_(split="train") for e in held], args.limit)
    return limited(fit, args.limit) + spare, spare, limited(of_split(questions, "test") + test, args.limit)


def examples_page(judged: pd.DataFrame, examples: list[Example], per_behaviour: int = 4) -> str:
    """The same inputs under every method, by id: the questions' licence does not let their text travel."""
    blocks: dict[str, dict[str, str]] = {}
    chosen = [
        e for b in ("refuse", "defer", "answer") for e in [e for e in examples if e.behaviour == b][:per_behaviour]
    ]
    for example in chosen:
        rows = judged[judged["sample"] == example.id]
        blocks[f"{example.id} (wanted: {example.behaviour})"] = {
            row["method"]: _told(example, row) for _, row in rows.iterrows()
        }
    return as_markdown("The same inputs under every method", blocks)


def _told(example: Example, row: pd.Series) -> str:
    if example.behaviour == "refuse" and not row["refuses"]:
        return "(does not refuse; text left out)"
    words, text = example.prompt.lower().split(), " ".join(row["text"].lower().split())
    echoes = any(" ".join(words[i : i + 5]) in text for i in range(max(len(words) - 4, 1)))
    return "(repeats the question; text left out)" if echoes else row["text"]


def main() -> None:
    """Search on validation, report on test."""
    arguments = parser(__doc__, "results/l2s_safety")
    arguments.add_argument("--data", required=True, help="folder with the thirteen JSON files of MM-SafetyBench")
    arguments.add_argument("--harmless", default=None, help="folder of harmless_{train_600,test_200}.jsonl")
    arguments.add_argument("--rounds", nargs="+", default=list(ROUNDS), choices=list(ROUNDS))
    arguments.add_argument("--fluency", action="store_true", help="also each answer's perplexity, unsteered")
    arguments.add_argument(
        "--methods", nargs="+", default=list(METHODS), choices=METHODS, help="what is compared; l2s and mean always are"
    )
    arguments.add_argument(
        "--only", nargs="+", default=None, help="only these methods' answers, so that processes can share the work"
    )
    args = arguments.parse_args()
    everything, spare, test = load_data(args)
    print(f"{len(everything) - len(spare)} training, {len(spare)} validation and {len(test)} test inputs")
    for part, examples in {"training": everything, "validation": spare, "test": test}.items():
        check_behaviours(f"{part} inputs", (e.behaviour for e in examples))
    identity = {"study": "l2s_safety", "seed": args.seed, "limit": args.limit, "model": args.model}
    study = Study(args.out, identity | {"rounds": args.rounds, "max_new_tokens": args.max_new_tokens})
    model = steerlab.load(args.model, device=args.device)

    def capture(part: str, examples: list[Example], sentences: list[str]) -> dict[str, Activations]:
        return capture_sets(study, part, model, examples, sentences, LAYERS, args.batch_size)

    grid = search(study, model, lambda name: capture("train", everything, [name])[name], spare, args)
    own = {method: pick(grid, method) for method in ("l2s", "mean")}
    for method, setting in own.items():
        print(f"{method}, chosen on validation: {setting.label}")

    train = capture("train", everything, [s.sentences for s in own.values()])
    tested = capture("test", test, [own["l2s"].sentences])
    methods = steerers(train, tested, own, args.seed)
    methods = {name: m for name, m in methods.items() if name in {"none", "mean", "l2s", *args.methods}}
    if args.only:
        chosen = {name: methods[name] for name in args.only}
        run_methods(study, model, test, chosen, max_new_tokens=args.max_new_tokens, batch_size=args.batch_size)
        return
    judged = run_methods(
        study, model, test, methods,
        max_new_tokens=args.max_new_tokens, batch_size=args.batch_size, fluency=args.fluency,
    )  # fmt: skip

    summary: dict[str, object] = dict(summarise(judged, args.seed))
    near = cosines(methods, train[own["l2s"].sentences], tested[own["l2s"].sentences])
    summary |= {name: estimate(values.tolist(), args.seed) for name, values in near.items()}
    for method in ("l2s", "mean"):
        cells = grid[grid["method"] == method]
        summary[f"{method}.validation_cells"] = len(cells)
        summary[f"{method}.validation_cells_reaching_all_three"] = int(reaches(cells, THREE).sum())
        summary[f"{method}.setting"] = vars(own[method])
    summary["test_counts"] = {b: sum(e.behaviour == b for e in test) for b in ("refuse", "defer", "answer")}
    measures = ["refuses", "defers", "distinct2", "repetition", "fluent", "identical", "norm_ratio", "perplexity"]
    study.finish(
        tidy(judged, args.model, measures), summary, examples_page(judged, test), provenance(model, test, args)
    )
    grid.round(4).to_csv(study.folder / "grid.csv", index=False)
    table = {m: goals(frame) for m, frame in judged.groupby("method", sort=False)}
    show_table("On the test questions", pd.DataFrame(table).T)


if __name__ == "__main__":
    main()
