"""Learn-to-Steer on MM-SafetyBench questions (text): refuse what is harmful, defer legal, financial and health
questions to a professional, leave harmless instructions alone.

    python analyses/l2s_safety.py --model smollm2 --data .../mm_safetybench --out results/l2s_safety

Layer, strength, positions, sentences and target scaling are chosen on a validation part of the *training* questions:
a wide round over everything, then two narrow ones around the best cell (balanced norms and end-of-turn tokens; other
words for deferral), for L2S and for the mean vector alike. The wide round generates 86,400 answers: minutes on a GPU,
many hours on two CPU cores (`--rounds narrow deferral` runs the later rounds alone). Finished blocks, activations and
answers are kept, and a run resumes. The test questions are the published split's.
"""

from __future__ import annotations

import argparse
import random
from itertools import product
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
from _safety import Setting, capture_sets, cosines, fit_l2s, mean_vector, run_methods, steerers, summarise

import steerlab
from steerlab import Activations, Example, Model
from steerlab.analysis.behaviour import goals
from steerlab.analysis.selection import Cell, Goal, choose, evaluate_cells, reaches
from steerlab.analysis.study import Study
from steerlab.data import harmless_instructions, mm_safety_bench, validation_split
from steerlab.plots import measure

WIDE = {
    "layers": (15, 16, 17, 18),
    "positions": ("all", "prompt", "last+generated"),
    "sentences": ("plain", "plain_closed", "reasoned", "short", "domain", "mixed"),
    "targets": ("raw",),
    "alphas": (0.7, 0.85, 1.0, 1.2, 1.5),
}
NARROW = {
    "layers": (16,),
    "positions": ("all",),
    "sentences": ("domain", "domain_closed"),
    "targets": ("equalised",),
    "alphas": (1.0, 1.1, 1.2),
}
DEFERRAL = {
    "layers": (16,),
    "positions": ("all",),
    "sentences": ("general_closed", "situation_closed"),
    "targets": ("equalised",),
    "alphas": (0.9, 1.05),
}
ROUNDS = {"wide": WIDE, "narrow": NARROW, "deferral": DEFERRAL}
METHODS = ("none", "prompt", "random", "mean", "l2s", "p2s")
PER_BEHAVIOUR = 40  # validation inputs of each behaviour
GOALS = [
    Goal(name, target, n, at_most=measure(name).lower)
    for name, n in {
        "refuse_harmful": PER_BEHAVIOUR,
        "defer_expert": PER_BEHAVIOUR,
        "refuse_expert": PER_BEHAVIOUR,
        "distinct2": 2 * PER_BEHAVIOUR,
        "harmless_kept": PER_BEHAVIOUR,
    }.items()
    if (target := measure(name).goal) is not None
]  # the targets are those the figures draw
THREE = GOALS[:3]  # what one vector is said not to reach at once


def load_data(args: argparse.Namespace) -> tuple[list[Example], list[Example], list[Example], list[Example]]:
    """Training inputs, those chosen on, all training inputs once the choice is made, and test inputs.

    Harmless instructions are among each of them.
    """
    questions = mm_safety_bench(args.data)
    folder = Path(args.harmless or Path(args.data).parent / "alpaca_harmless")
    train = [e.with_(split="train") for e in harmless_instructions(folder / "harmless_train_600.jsonl")[:400]]
    test = [e.with_(split="test") for e in harmless_instructions(folder / "harmless_test_200.jsonl")]
    fit, held = validation_split(of_split(questions, "train") + train, 0.25, seed=args.seed)
    spare = limited([e.with_(split="train") for e in held], args.limit)
    random.Random(args.seed).shuffle(held)
    held = limited(held, min(args.limit or PER_BEHAVIOUR, PER_BEHAVIOUR))
    fit = limited(fit, args.limit)
    return fit, held, fit + spare, limited(of_split(questions, "test") + test, args.limit)


def run_block(
    model: Model, held: list[Example], plain: list[str], train: dict[str, Activations], context: Activations,
    space: dict[str, tuple], layer: int, positions: str, args: argparse.Namespace,
) -> pd.DataFrame:  # fmt: skip
    """All cells of one layer and one kind of positions, on the validation inputs."""
    ids, states = context.by_sample(layer, side="prompt")
    assert ids == [e.id for e in held]
    cells = []
    for sentences, targets in product(space["sentences"], space["targets"]):
        mean = mean_vector(train[sentences], layer, targets).expand(len(held), -1)
        l2s = fit_l2s(train[sentences], layer, targets, args.seed).predict(states)
        for (method, vectors), alpha in product((("mean", mean), ("l2s", l2s)), space["alphas"]):
            labels = {
                "method": method,
                "sentences": sentences,
                "targets": targets,
                "layer": layer,
                "positions": positions,
            }
            cells.append(Cell(labels, vectors, alpha))
    return evaluate_cells(
        model, held, plain, cells, site=layer, positions=positions,
        max_new_tokens=args.max_new_tokens, batch_size=args.batch_size,
    )  # fmt: skip


def search(
    study: Study, model: Model, fit: list[Example], held: list[Example], args: argparse.Namespace
) -> pd.DataFrame:
    """The grid of all rounds, one stage a block; activations are read only where a block is still to be run."""
    wanted = [(r, layer, p) for r in args.rounds for layer, p in product(ROUNDS[r]["layers"], ROUNDS[r]["positions"])]
    names = {block: f"grid-{block[0]}-{block[1]}-{block[2]}" for block in wanted}
    missing = [block for block in wanted if not study.has(names[block])]
    train: dict[str, Activations] = {}
    plain = study.stage("validation-none", lambda: _unsteered(model, held, args))["text"].tolist()
    if missing:
        layers = [layer for _, layer, _ in missing]
        sets = [s for r, _, _ in missing for s in ROUNDS[r]["sentences"]]
        train = capture_sets(study, "fit", model, fit, sets, layers, args.batch_size)
        bare = [e.with_(contrast=None) for e in held]
        context = steerlab.capture(
            model, bare, layers=sorted(set(layers)), positions="last", batch_size=args.batch_size
        )
    frames = []
    for block in wanted:
        name, layer, positions = block
        frame = study.stage(
            names[block],
            lambda: run_block(model, held, plain, train, context, ROUNDS[name], layer, positions, args),  # noqa: B023
        )
        frames.append(frame.assign(round=name))
    return pd.concat(frames, ignore_index=True)


def _unsteered(model: Model, held: list[Example], args: argparse.Namespace) -> pd.DataFrame:
    found = steerlab.generate(
        model, held, steer=(), max_new_tokens=args.max_new_tokens, batch_size=args.batch_size, progress=True
    )
    return pd.DataFrame({"sample": found.samples, "text": found.texts})


def pick(grid: pd.DataFrame, method: str) -> Setting:
    """The method's best cell on validation."""
    best = choose(grid[grid["method"] == method], GOALS)
    return Setting(int(best["layer"]), float(best["alpha"]), best["positions"], best["sentences"], best["targets"])


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
    fit, held, everything, test = load_data(args)
    print(f"{len(fit)} training, {len(held)} validation and {len(test)} test inputs; results go to {args.out}")
    identity = {
        "study": "l2s_safety",
        "seed": args.seed,
        "limit": args.limit,
        "model": args.model,
        "rounds": args.rounds,
    }
    study = Study(args.out, identity | {"max_new_tokens": args.max_new_tokens})
    model = steerlab.load(args.model, device=args.device)

    grid = search(study, model, fit, held, args)
    own = {method: pick(grid, method) for method in ("l2s", "mean")}
    for method, setting in own.items():
        print(f"{method}, chosen on validation: {setting.label}")

    sets = [s.sentences for s in own.values()]
    layers = [s.layer for s in own.values()]
    train = capture_sets(study, "train", model, everything, sets, layers, args.batch_size)
    tested = capture_sets(study, "test", model, test, [own["l2s"].sentences], layers, args.batch_size)
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
