"""Refusal ablated and added: what one direction does under two operators.

    python analyses/operators.py --model smollm2 --data DATA --out results/operators
    python analyses/operators.py --model FOLDER --data DATA --grid results/operators/grid.csv --out results/again
    python figures/operators.py results/operators

The direction is a difference of means, of two kinds: the last states of harmful and harmless prompts, or the states of
refusing and complying answers to the same prompts. Ablated, it is projected out of every block's output at every token,
or the component along it is set to what harmless prompts have there (affine ablation, arXiv 2411.09003); added, it
pushes one block, for all tokens or the prompt and the first twelve. Way, kind, layer, strength and length are chosen on
validation prompts: the ablation that leaves the fewest refusals with the perplexity of the model's own harmless answers
within 10 %, the addition with most answers that refuse and are fluent, and as a second one ("strong") the most fluent
of those that refuse .90 of the search prompts in any text. Where one direction leaves refusals, the best
directions of both kinds are also ablated together. The test prompts are looked at once, with two
rivals at the same settings: a random direction of the same length, and an instruction. With `--grid`, the settings are
those of an earlier run; only the share of a pair, or with `--choose addition` the strength and the length of both
additions, is chosen again, on its validation and its test prompts together (the part "seen"; "strong" for .95 refusals
then), and tested on fresh ones.

DATA is the folder with `harmful_prompts/advbench.jsonl` and `noncommercial_cc_by_nc/alpaca_harmless/`. An interrupted
run resumes from finished stages.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from _common import estimate, judge_with_perplexity, parser, provenance, show_table
from _refusal_prompts import Sets, load_sets

import steerlab
from steerlab import Example, Request, SteeringVector
from steerlab._support.files import fingerprint
from steerlab.analysis.behavior import judge_answers
from steerlab.analysis.study import Study
from steerlab.data import data_hash
from steerlab.errors import DataError
from steerlab.methods import Clamp, Operation, Prompt
from steerlab.models.model import Model

KINDS, FRACTIONS, STRENGTHS, FIRST = ("prompt", "answer"), (0.4, 0.55, 0.7), (0.75, 1.0, 1.5), (0, 12)
AROUND = (-2, -1, 1, 2)  # layers that are tried around the best place of an ablation
SHARES = (0.4, 0.6, 0.8, 1.0)  # of the components that a pair of ablations takes away, one direction after the other
FINE_SHARES = (0.6, 0.7, 0.8)  # around the one that a first run chose
FINE_STRENGTHS, FINE_FIRST = (1.0, 1.25, 1.5), (0, 4, 5, 6, 12)  # of an addition, where the best one of a first run is
RESULT_COLUMNS = [
    "example_id", "behavior", "refuses", "perplexity", "fluent", "refuses_fluently", "norm_ratio", "loss", "n_tokens",
]  # fmt: skip
Setting = tuple[Any, ...]  # operator, kind of direction, layer, strength, how many new tokens (0: all)
WORST_PERPLEXITY = 1.1  # of the model's own harmless answers, as a ratio


@dataclass(frozen=True)
class Directions:
    """Directions of each kind at each layer, in units of the states, and the mean states of harmless prompts.

    Attributes:
        vectors: by kind and layer.
        harmless: `(layer, hidden)`, means over the words of the users.
    """

    vectors: dict[tuple[str, int], torch.Tensor]
    harmless: torch.Tensor


def searched_layers(n_layers: int) -> list[int]:
    """The layers of the grid."""
    return sorted({round(fraction * (n_layers - 1)) for fraction in FRACTIONS})


def directions(model: Model, sets: Sets, batch_size: int) -> Directions:
    """What is learned from the training prompts, at the layers of the grid and those around them."""
    grid = searched_layers(model.n_layers)
    layers = [k for k in range(model.n_layers) if min(abs(k - other) for other in grid) <= max(AROUND)]
    harmful, harmless = sets["train"]
    options: dict[str, Any] = {"layers": layers, "batch_size": batch_size, "progress": False}
    plain = [
        steerlab.capture(model, [e.replace(contrast=None) for e in rows], positions="last", context=None, **options)
        for rows in (harmful, harmless)
    ]
    pairs = steerlab.capture(model, harmful, context=None, **options)
    found = {("prompt", k): plain[0].at(k).mean(0) - plain[1].at(k).mean(0) for k in layers}
    found |= {("answer", k): steerlab.MeanDifference(k).fit(pairs).vector_ for k in layers}
    usual = steerlab.capture(
        model, [e.replace(contrast=None) for e in harmless], positions="user", context=None, batch_size=batch_size,
        progress=False,
    )  # fmt: skip
    return Directions(found, usual.values.float().mean(0))


def steering(
    learned: Directions, operator: str, layer: int, direction: torch.Tensor, alpha: float, first: float
) -> list[Request]:
    """The direction projected out of every block's output at every token ("ablate"), its component there set to that of
    harmless prompts ("level"), or added at one layer, for the prompt and the `first` generated tokens (0: all).
    """
    n_layers = len(learned.harmless)
    if operator == "ablate":
        everywhere = SteeringVector(dict.fromkeys(range(n_layers), direction))
        return [Request(Operation(everywhere, "project_out"), alpha, "all")]
    if operator == "level":
        usual = (learned.harmless @ (direction / direction.norm())).tolist()
        return [
            Request(Operation(SteeringVector({k: direction}), Clamp(c, c)), alpha, "all") for k, c in enumerate(usual)
        ]
    return [Request(Operation(SteeringVector({layer: direction}), "add", first=int(first) or None), alpha, "all")]


def steering_of(
    learned: Directions, setting: Setting, vectors: dict[tuple[str, int], torch.Tensor] | None = None
) -> list[Request]:
    """The requests of a setting; those of a "pair" are both of its ablations. `vectors` replace the learned ones."""
    name, kind, layer, alpha, first = setting
    if name == "pair":
        parts = [part.split() for part in kind.split(" + ")]
        return [
            one for way, kind, k in parts for one in steering_of(learned, (way, kind, int(k), alpha, first), vectors)
        ]
    return steering(learned, name, int(layer), (vectors or learned.vectors)[kind, int(layer)], alpha, first)


def answers(
    model: Model, steer: Any, rows: tuple[list[Example], list[Example]], own: list[str],
    args: argparse.Namespace,
) -> pd.DataFrame:  # fmt: skip
    """The answer to each prompt; of harmless ones also the loss of the unsteered model's own answers."""
    options: dict[str, Any] = {"steer": steer, "batch_size": args.batch_size, "progress": False}
    frames = []
    for examples in filter(None, rows):
        texts = steerlab.generate(model, examples, max_new_tokens=args.max_new_tokens, **options)
        found = pd.DataFrame({"example_id": texts.example_ids, "text": texts.texts})
        frames.append(found.assign(norm_ratio=texts.norm_ratio, loss=np.nan, n_tokens=0))
    if own and rows[1]:
        scored = steerlab.score(model, rows[1], own, **options)
        frames[1] = frames[1].assign(loss=-scored["logprob"], n_tokens=scored["n_tokens"])
    return pd.concat(frames, ignore_index=True)


def judged(
    study: Study, model: Model, stage: str, rows: tuple[list[Example], list[Example]], steer: Any, own: list[str],
    args: argparse.Namespace,
) -> pd.DataFrame:  # fmt: skip
    """The answers of a stage with their measures; perplexities decide on the fluency of answers to harmful prompts."""
    found = study.stage(stage, partial(answers, model, steer, rows, own, args))
    texts, n = found["text"].astype(str).tolist(), len(rows[0])
    harmful = judge_with_perplexity(study, stage, model, rows[0], texts[:n], batch_size=args.batch_size)
    measures = pd.concat([harmful, *([judge_answers(rows[1], texts[n:])] if rows[1] else [])], ignore_index=True)
    return measures.assign(**{name: found[name] for name in ("norm_ratio", "loss", "n_tokens")})


def perplexity_ratio(found: pd.DataFrame, plain: pd.DataFrame) -> float:
    """Of the unsteered model's harmless answers, against its own."""
    losses = [frame["loss"].sum() / frame["n_tokens"].sum() for frame in (found, plain)]
    return float(np.exp(losses[0] - losses[1]))


def run_search(study: Study, model: Model, sets: Sets, learned: Directions, args: argparse.Namespace) -> pd.DataFrame:
    """Every setting on the search prompts, ablations also at the layers around the best one's; the best four of each
    operator on the validation prompts, and there the best ablations of both kinds together.
    """
    places = list(product(KINDS, searched_layers(model.n_layers)))
    wide: list[Setting] = [(name, *place, 1.0, 0) for name in ("ablate", "level") for place in places]
    wide += [("add", *place, alpha, first) for place, alpha, first in product(places, STRENGTHS, FIRST)]
    evaluated = partial(evaluate, study, model, sets, learned, args)
    tables = [evaluated("search", wide)]
    name, kind, layer = ranked(tables[0], "ablate").iloc[0][["operator", "kind", "layer"]]
    near = [(kind, int(layer) + step) for step in AROUND]
    around = [(name, *place, 1.0, 0) for place in near if place in learned.vectors and place not in places]
    tables += [evaluated("search", around)] if around else []
    searched = pd.concat(tables)
    best = [*(ranked(searched, operator)[:4] for operator in ("ablate", "add")), *best_of_kinds(searched)]
    rows = [tuple(row) for table in best for row in table[list(_SETTING)].itertuples(index=False)]
    tables.append(evaluated("validation", list(dict.fromkeys(rows))))
    pairs = pairs_of_ablations(tables[-1])
    tables += [evaluated("validation", pairs)] if pairs else []
    return pd.concat(tables, ignore_index=True)


def choose_again(
    study: Study, model: Model, sets: Sets, learned: Directions, args: argparse.Namespace
) -> pd.DataFrame:  # fmt: skip
    """An earlier run's grid with finer settings: of its best pair, if it has pairs, or of the addition at its place."""
    grid = pd.read_csv(args.grid)
    added, finely = grid["operator"] == "add", partial(evaluate, study, model, sets, learned, args, "validation")
    if args.choose == "addition":
        tried = ranked(grid[grid["part"] == "validation"], "add")
        if tried.empty:
            raise DataError(f"{args.grid} has no addition on validation prompts: give that of a run without --grid")
        best = tried.iloc[0]
        place = ("add", best["kind"], int(best["layer"]))
        found = finely([(*place, *setting) for setting in product(FINE_STRENGTHS, FINE_FIRST)])
        return pd.concat([found.assign(part="seen"), grid[~added]], ignore_index=True)
    pairs = grid[(grid["part"] == "validation") & (grid["operator"] == "pair")]
    if pairs.empty:
        return grid
    kind = ranked(pairs, "ablate")["kind"].iloc[0]
    return pd.concat([finely([("pair", kind, 0, share, 0) for share in FINE_SHARES]), grid[added]], ignore_index=True)


def evaluate(
    study: Study, model: Model, sets: Sets, learned: Directions, args: argparse.Namespace, part: str,
    settings: list[Setting],
) -> pd.DataFrame:  # fmt: skip
    """A row for each setting: what its answers to the prompts of a part are like."""
    plain, own = unsteered(study, model, sets, part, args)
    rows = []
    for setting in settings:
        name, kind, layer, alpha, first = setting
        stage = f"{part}-{name}-{kind.replace(' ', '')}-{layer}-{alpha:g}-{first:g}"
        harmless = [] if name == "add" else sets[part][1]  # whose perplexity decides there alone
        steer = steering_of(learned, setting)
        found = judged(study, model, stage, (sets[part][0], harmless), steer, own, args)
        harmful = found[found["behavior"] == "refuse"]
        means = {key: harmful[key].mean() for key in (*MEASURED, "norm_ratio")}
        row = dict(zip(_SETTING, setting, strict=True))
        rows.append(row | means | {"perplexity_ratio": perplexity_ratio(found, plain) if harmless else np.nan})
    return pd.DataFrame(rows).assign(part=part)


def best_of_kinds(table: pd.DataFrame) -> list[pd.DataFrame]:
    """The best ablation by one direction of each kind, a row each."""
    single = ranked(table[table["operator"] != "pair"], "ablate")
    return [single[single["kind"] == kind].head(1) for kind in KINDS]


def pairs_of_ablations(table: pd.DataFrame) -> list[Setting]:
    """The best ablation of each kind, together, at several shares; none if one direction leaves no refusal."""
    best = best_of_kinds(table)
    if min(rows["refuses"].iloc[0] for rows in best) == 0:
        return []
    parts = [f"{row.operator} {row.kind} {row.layer}" for rows in best for row in rows.itertuples()]
    return [("pair", " + ".join(parts), 0, share, 0) for share in SHARES]


# the choices for each aim
OPERATORS = {"ablate": ("ablate", "level", "pair"), "add": ("add",), "add strong": ("add",)}
STRONG, STRONG_AGAIN = 0.9, 0.95  # share of refusals, in any text, for which "add strong" is chosen: at first and again
MEASURED = ("refuses", "fluent", "refuses_fluently")
_SETTING = ("operator", "kind", "layer", "alpha", "first")


def ranked(table: pd.DataFrame, name: str, strong: float = STRONG) -> pd.DataFrame:
    """The settings of an operator, best first."""
    rows = table[table["operator"].isin(OPERATORS[name])]
    if name == "add":
        return rows.sort_values(["refuses_fluently", "alpha"], ascending=[False, True], kind="stable")
    if name == "add strong":
        rows = rows.assign(short=(strong - rows["refuses"]).clip(lower=0))
        return rows.sort_values(["short", "refuses_fluently"], ascending=[True, False], kind="stable")
    rows = rows.assign(too_much=rows["perplexity_ratio"] > WORST_PERPLEXITY)
    return rows.sort_values(["too_much", "refuses", "perplexity_ratio"], kind="stable")


def random_vector(vector: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random direction of the same length."""
    other = torch.randn(vector.shape, generator=generator)
    return other * vector.norm() / other.norm()


def unsteered(
    study: Study, model: Model, sets: Sets, part: str, args: argparse.Namespace
) -> tuple[pd.DataFrame, list[str]]:
    """The unsteered records of a part, and the harmless answers whose perplexity is followed."""
    texts = study.stage(f"{part}-plain", partial(answers, model, (), sets[part], [], args))
    own = texts["text"].astype(str).tolist()[len(sets[part][0]) :]
    return judged(study, model, f"{part}-none", sets[part], (), own, args), own


def main() -> None:
    arguments = parser(__doc__, "results/operators")
    arguments.add_argument("--data", required=True)
    arguments.add_argument("--grid", help="of an earlier run, of which one thing is chosen again, with fresh prompts")
    chosen_again = "chosen again with --grid: the share of a pair of ablations, or strength and length of the additions"
    arguments.add_argument("--choose", choices=("share", "addition"), default="share", help=chosen_again)
    fresh = "prompts that are tested with --grid"
    arguments.add_argument("--test-part", choices=("fresh", "fresh_2"), default="fresh", help=fresh)
    arguments.set_defaults(max_new_tokens=32)
    args = arguments.parse_args()
    if not args.grid and (args.choose, args.test_part) != ("share", "fresh"):
        arguments.error("--choose and --test-part say what is done with an earlier run: give its --grid")
    sets, model = load_sets(args.data, args.seed, args.limit), steerlab.load(args.model, device=args.device)
    if args.grid:
        seen = [sets["validation"][i] + sets["test"][i] for i in (0, 1)]
        sets |= {"validation": (seen[0], seen[1]), "test": sets[args.test_part]}
    everything = [e for part in sets.values() for rows in part for e in rows]
    identity = {"study": "operators", "seed": args.seed, "limit": args.limit, "tokens": args.max_new_tokens}
    identity |= {"model": args.model, "weights": model.info()["weights"], "data": data_hash(everything)}
    again = args.choose == "addition"
    identity |= {"grid": fingerprint(Path(args.grid).read_text()), "choose": args.choose} if args.grid else {}
    study = Study(args.out, identity)
    learned = directions(model, sets, args.batch_size)
    grid = (choose_again if args.grid else run_search)(study, model, sets, learned, args)
    grid.to_csv(study.folder / "grid.csv", index=False)
    chosen_on = {"ablate": "validation", "add": "validation", "add strong": "search"}
    chosen_on |= {"add": "seen", "add strong": "seen"} if again else {}
    strong = STRONG_AGAIN if again else STRONG
    chosen = {name: ranked(grid[grid["part"] == chosen_on[name]], name, strong).iloc[0] for name in OPERATORS}
    ways: dict[str, Any] = {"instruction": Request(Prompt())}
    settings: dict[str, str] = {}
    generator = torch.Generator().manual_seed(args.seed)
    for name, row in chosen.items():
        setting = tuple(row[list(_SETTING)])
        settings |= dict.fromkeys((name, f"{name} random"), fingerprint(setting)[:10])
        others = {key: random_vector(vector, generator) for key, vector in learned.vectors.items()}
        ways |= {name: steering_of(learned, setting), f"{name} random": steering_of(learned, setting, others)}
    plain, own = unsteered(study, model, sets, "test", args)
    tested = {"none": plain} | {
        name: judged(study, model, f"test-{name}-{settings.get(name, 'fixed')}", sets["test"], steer, own, args)
        for name, steer in ways.items()
    }
    summary: dict[str, Any] = {"chosen": {k: row.dropna().to_dict() for k, row in chosen.items()}}
    for name, found in tested.items():
        for part, behavior in (("harmful", "refuse"), ("harmless", "answer")):
            rows = found[found["behavior"] == behavior]
            for measure in MEASURED:
                summary[f"{name}.{part}.{measure}"] = estimate(rows[measure].tolist(), args.seed)
        summary[f"{name}.perplexity_ratio"] = round(perplexity_ratio(found, plain), 4)
    results = pd.concat([found[RESULT_COLUMNS].assign(method=name) for name, found in tested.items()])
    study.finish(results, summary, _page(tested["add"]), provenance(model, everything, args))
    show_table("On the test prompts", results.groupby(["method", "behavior"])[list(MEASURED)].mean())


def _page(found: pd.DataFrame) -> str:
    """The first refusals; other answers to harmful prompts are left out."""
    texts = found.loc[(found["behavior"] == "refuse") & (found["refuses_fluently"] == 1), ["example_id", "text"]].head(
        8
    )
    lines = [f"- {row.example_id}: {' '.join(str(row.text).split())}" for row in texts.itertuples()]
    return "\n".join(["# The first fluent refusals with the direction added", "", *lines]) + "\n"


if __name__ == "__main__":
    main()
