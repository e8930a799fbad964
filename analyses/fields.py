"""Mean, gated mean, L2S, gradient field, spherical and W2S at equal dose: what does each reach for the same change?

    python analyses/fields.py --data DATA --out results/fields
    python figures/fields.py results/fields

The dose is the 95th percentile, over the tokens of the model's own answers to validation prompts, of KL(steered,
unsteered). Every method's strength is calibrated to the same dose, its layer chosen on validation prompts at that dose,
and the test prompts are looked at once. A random direction at the same dose is the control.

- Choices: ten persona sets (arXiv 2212.09251), states changed from the last prompt token on. Measured is how far the
  difference of the two letters' logits moves. The layer is one of the two at which the mean vector moves training
  prompts the most (which favors the mean vector).
- Layers, not at equal dose but by the published protocol, slopes per unit of each layer's mean vector: W2S, the layer
  best in training, each test prompt's best layer, and a W2S whose training slopes were shuffled.
- Refusal: harmful and harmless prompts (AdvBench, instructions), the states of all tokens changed. Measured is which
  answers refuse and are fluent, at several doses.

DATA is the folder with `mwe/`, `harmful_prompts/` and `noncommercial_cc_by_nc/alpaca_harmless/`. An interrupted run
resumes from finished stages.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _common import estimate, judge_with_perplexity, numbers, of_split, parser, provenance, show_table
from _fields import FITS, FRACTIONS, Fitted, strength_at
from _refusal_prompts import Sets, load_sets
from _steerability import SHIFTED, read

import steerlab
from steerlab import Example
from steerlab.analysis.study import Study
from steerlab.data import data_hash
from steerlab.methods import Context, Steerer
from steerlab.metrics import paired_bootstrap

CHOICES = tuple(name for name in FITS if name != "gated_mean")  # every choice has a contrast: there is nothing to gate
KL, REFUSAL_KL = 1.0, (1.0, 2.0, 4.0)  # nats per token; the layer for a refusal is chosen at the second
CALIBRATED_ON = 12  # validation prompts
REFUSAL_DEPTHS = (0.5, 0.6)  # of those in `FRACTIONS`
REFUSAL_PROMPTS = (64, 32)  # harmful and harmless test prompts
MEASURED = ["refuses", "fluent", "refuses_fluently"]
REFUSAL_COLUMNS = [
    "example_id", "behavior", "refuses", "perplexity", "fluent", "refuses_fluently", "method", "budget", "layer",
    "alpha", "kl", "norm_ratio",
]  # fmt: skip
Strengths = dict[str, tuple[Steerer, float]]  # by name


def move_letters(fitted: Fitted, rows: Sequence[Example], steered: Strengths) -> pd.DataFrame:
    """How far each row's logit difference moves under each method at its strength (`effect`), and whether the wanted
    letter is the likelier one `before` and `after`; with `method, example_id`.
    """
    alphas = sorted({alpha for _, alpha in steered.values()})
    frame = steerlab.sweep(
        fitted.model, rows, {name: one for name, (one, _) in steered.items()}, None, (0.0, *alphas), fitted.positions,
        progress=False,
    )  # fmt: skip
    value = frame.pivot_table(index=["method", "example_id"], columns="alpha", values="value")
    plain = frame[frame["alpha"] == 0].groupby("example_id")["value"].first()
    moved = []
    for name, (_, alpha) in steered.items():
        after = value.loc[name, alpha].reindex([e.id for e in rows])
        before = plain.reindex(after.index)
        columns = {"effect": after - before, "before": before > 0, "after": after > 0}
        moved.append(pd.DataFrame(columns).astype(float).rename_axis("example_id").reset_index().assign(method=name))
    return pd.concat(moved, ignore_index=True)


def compare_choices(fitted: Fitted, rows: Sequence[Example]) -> pd.DataFrame:
    """Every method on the test rows of one set, at its layer and strength."""
    validation, test = of_split(rows, "validation"), of_split(rows, "test")
    best = fitted.slopes.groupby("layer")["slope"].mean().nlargest(2).index
    tried = {(method, int(k)): FITS[method](fitted, int(k)) for method in CHOICES for k in best}
    found = {
        key: strength_at(fitted, steerer, validation[:CALIBRATED_ON], KL, n_tokens=3) for key, steerer in tried.items()
    }
    reached = {key: (tried[key], one["alpha"]) for key, one in found.items() if np.isfinite(one["alpha"])}
    effects = move_letters(fitted, validation, {f"{method} {layer}": one for (method, layer), one in reached.items()})
    mean = effects.groupby("method")["effect"].mean()
    chosen = {
        method: max((key for key in reached if key[0] == method), key=lambda key: mean[f"{key[0]} {key[1]}"])
        for method in dict.fromkeys(method for method, _ in reached)
    }
    moved = move_letters(fitted, test, {method: reached[key] for method, key in chosen.items()})
    settings = [{"method": method, "layer": key[1], **found[key]} for method, key in chosen.items()]
    settings += [  # at no layer is there such a strength
        {"method": method, "layer": -1, "alpha": np.nan} for method in CHOICES if method not in chosen
    ]
    return moved.merge(pd.DataFrame(settings), on="method", how="right")


def choose_layers(fitted: Fitted, rows: Sequence[Example]) -> pd.DataFrame:
    """The slope of each test row at the layer that W2S chooses, at the one best in training, and at its own best."""
    test, best = of_split(rows, "test"), int(fitted.slopes.groupby("layer")["slope"].mean().idxmax())
    context = Context.of(steerlab.capture(fitted.model, test, layers=[best], context="last", progress=False))
    table = fitted.measure_slopes(test).pivot(index="example_id", columns="layer", values="slope")
    table = table.loc[list(context.example_ids), fitted.layers]
    shuffled = fitted.slopes.pivot(index="example_id", columns="layer", values="slope")
    shuffled[:] = shuffled.sample(frac=1, random_state=fitted.seed).to_numpy()
    other = shuffled.reset_index().melt("example_id", var_name="layer", value_name="slope")
    values, found = table.to_numpy(), {"fixed": table[best].to_numpy(), "oracle": table.max(axis=1).to_numpy()}
    for name, w2s in (("shuffled", fitted.w2s(best, other)), ("w2s", fitted.w2s(best))):
        chosen = w2s.choose(context).numpy()
        found[name] = values[np.arange(len(values)), chosen]
    found |= {"fixed_layer": np.full(len(values), best), "w2s_layer": np.array(fitted.layers)[chosen]}
    return pd.DataFrame(found, index=table.index).reset_index()


def answers(
    fitted: Fitted, rows: tuple[list[Example], list[Example]], steerer: Steerer | None, alpha: float,
    args: argparse.Namespace,
) -> pd.DataFrame:  # fmt: skip
    """The answers to harmful and to harmless prompts."""
    examples = [*rows[0], *rows[1]]
    steer: dict[str, Any] = {"steer": steerer, "alpha": alpha, "positions": fitted.positions}
    texts = steerlab.generate(
        fitted.model, examples, max_new_tokens=args.max_new_tokens, batch_size=args.batch_size, progress=False,
        **({} if steerer is None else steer),
    )  # fmt: skip
    return pd.DataFrame({"example_id": texts.example_ids, "text": texts.texts})


def compare_refusals(study: Study, fitted: Fitted, sets: Sets, args: argparse.Namespace) -> pd.DataFrame:
    """Every method at every dose on the test prompts, at the layer chosen on validation prompts at the second."""
    depths = sorted({round(fraction * (fitted.model.n_layers - 1)) for fraction in REFUSAL_DEPTHS})
    prompts = sets["validation"][0][:CALIBRATED_ON]
    harmful, harmless = (rows[:n] for rows, n in zip(sets["test"], REFUSAL_PROMPTS, strict=True))
    parts: Sets = {"validation": (sets["validation"][0], []), "test": (harmful, harmless)}
    fit = cache(lambda method, layer: FITS[method](fitted, layer))

    def dose(method: str, layer: int, kl: float) -> pd.DataFrame:
        return pd.DataFrame([strength_at(fitted, fit(method, layer), prompts, kl, args.max_new_tokens)])

    def measured(part: str, method: str, layer: int, kl: float) -> pd.DataFrame:
        found = study.stage(f"dose-{method}-{layer}-{kl:g}", partial(dose, method, layer, kl)).iloc[0]
        if not np.isfinite(found["alpha"]):
            return pd.DataFrame()
        frame = judged(part, f"{method}-{layer}-{kl:g}", lambda: fit(method, layer), found["alpha"])
        return frame.assign(method=method, layer=layer, budget=kl, **found)

    def judged(part: str, setting: str, steerer: Callable[[], Steerer | None], alpha: float) -> pd.DataFrame:
        rows = parts[part]
        name = f"{part}-{setting}-{len(rows[0])}"
        found = study.stage(name, lambda: answers(fitted, rows, steerer(), alpha, args))
        return judge_with_perplexity(
            study, name, fitted.model, [*rows[0], *rows[1]], found["text"].tolist(), batch_size=args.batch_size
        )

    frames = [judged("test", "none", lambda: None, 0.0).assign(method="none", budget=0.0)]
    for method in FITS:
        tried = {k: measured("validation", method, k, REFUSAL_KL[1]) for k in depths}
        if not any(map(len, tried.values())):  # at no layer is there such a strength
            print(f"{method} does not reach {REFUSAL_KL[1]:g} nats", flush=True)
            continue
        layer = max(depths, key=lambda k: tried[k]["refuses_fluently"].mean() if len(tried[k]) else -1.0)
        print(f"{method}: layer {layer}", flush=True)
        frames += [measured("test", method, layer, kl) for kl in REFUSAL_KL]
    return pd.concat(frames, ignore_index=True)


def summarize(choices: pd.DataFrame, layers: pd.DataFrame, refusals: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Estimates with intervals: of choices over the sets, whose rows share one fit; of refusals over the prompts."""
    summary: dict[str, Any] = {}
    choices = choices.dropna(subset="effect").assign(letter=lambda rows: rows["after"] - rows["before"])
    by_set = choices.groupby(["behavior", "method"], sort=False)[["effect", "letter"]].mean().unstack("method")
    for method in by_set["effect"].columns:
        reached = by_set["effect"][method].dropna()
        summary[f"choices.{method}.effect"] = estimate(reached.tolist(), seed)
        summary[f"choices.{method}.wanted_letter"] = estimate(by_set["letter"][method].dropna().tolist(), seed)
        if method != "mean":
            both = by_set["effect"][[method, "mean"]].dropna()
            summary[f"choices.{method}.over_mean"] = numbers(paired_bootstrap(both[method], both["mean"], seed=seed))
            summary[f"choices.{method}.sets_above_mean"] = int((both[method] > both["mean"]).sum())
    for name in ("w2s", "shuffled", "oracle"):
        gains = (layers[name] - layers["fixed"]).groupby(layers["behavior"], sort=False)
        summary[f"layers.{name}.over_fixed"] = estimate(gains.mean().tolist(), seed)
        of_sets = [estimate(rows.tolist(), seed) for _, rows in gains]
        summary[f"layers.{name}.sets_above"] = sum(one["value"] > 0 for one in of_sets)
        summary[f"layers.{name}.sets_with_interval_above"] = sum(one["low"] > 0 for one in of_sets)
    for name, rows in layers.groupby("behavior", sort=False):
        counts = pd.crosstab(rows["w2s_layer"], rows["letter"]).to_numpy()
        # .5 if the layer says nothing of the wanted letter; somewhat more by chance where many layers are chosen
        summary[f"layers.w2s.letter_guessed_from_layer.{name}"] = round(counts.max(1).sum() / counts.sum(), 4)
    summary["layers.fixed.slope"] = estimate(layers.groupby("behavior")["fixed"].mean().tolist(), seed)
    for (method, kl, behavior), rows in refusals.groupby(["method", "budget", "behavior"], sort=False):
        part = "harmful" if behavior == "refuse" else "harmless"
        for measure in MEASURED:
            summary[f"refusal.{method}.{kl:g}.{part}.{measure}"] = estimate(rows[measure].tolist(), seed)
    return summary


def main() -> None:
    """Compare on choices, then on refusals, and write the tables."""
    arguments = parser(__doc__, "results/fields")
    arguments.add_argument("--data", required=True)
    arguments.add_argument("--items", type=int, default=200, help="number of items per persona set")
    arguments.set_defaults(max_new_tokens=32, batch_size=32)
    args = arguments.parse_args()
    model = steerlab.load(args.model, device=args.device)
    names = SHIFTED[: args.limit]
    persona = {name: read(Path(args.data) / "mwe", name, args.items, args.seed) for name in names}
    sets = load_sets(args.data, args.seed, args.limit)
    everything = [e for rows in persona.values() for e in rows]
    everything += [e for part in sets.values() for rows in part for e in rows]
    identity: dict[str, Any] = {"study": "fields", "weights": model.info()["weights"], "data": data_hash(everything)}
    identity |= {k: getattr(args, k) for k in ("seed", "limit", "items", "max_new_tokens")}
    identity["design"] = [KL, REFUSAL_KL, FRACTIONS, REFUSAL_DEPTHS, REFUSAL_PROMPTS, CALIBRATED_ON]
    study = Study(args.out, identity)
    options = {"batch_size": args.batch_size}
    choices: list[pd.DataFrame] = []
    layers: list[pd.DataFrame] = []
    for name, rows in persona.items():
        fitted = Fitted(model, of_split(rows, "train"), "last+generated", args.seed, options)
        letters = {row.id: row.meta["option"] for row in rows}
        for tables, kind, compute in ((choices, "choices", compare_choices), (layers, "layers", choose_layers)):
            found = study.stage(f"{kind}-{name}", partial(compute, fitted, rows))
            tables.append(found.assign(behavior=name, letter=found["example_id"].map(letters)))
        print(f"{name}: done", flush=True)
    harmful, harmless = sets["train"]
    fitted = Fitted(model, [*harmful, *harmless], "all", args.seed, options)
    refusals = compare_refusals(study, fitted, sets, args)
    frames = [pd.concat(choices, ignore_index=True), pd.concat(layers, ignore_index=True), refusals]
    summary = summarize(frames[0], frames[1], frames[2], args.seed)
    frames[1].round(4).to_csv(study.folder / "layers.csv", index=False)
    frames[2].reindex(columns=REFUSAL_COLUMNS).round(4).to_csv(study.folder / "refusals.csv", index=False)
    study.finish(frames[0].round(4), summary, _page(refusals), provenance(model, everything, args))
    show_table("Choices: logit difference moved", frames[0].groupby("method", sort=False)[["effect", "alpha"]].mean())
    table = refusals.groupby(["method", "budget", "behavior"], sort=False)[MEASURED].mean()
    show_table("Refusals", table)


def _page(refusals: pd.DataFrame) -> str:
    """Fluent refusals of each method at the second dose; other answers to harmful prompts are left out."""
    rows = refusals[(refusals["behavior"] == "refuse") & (refusals["refuses_fluently"] == 1)]
    rows = rows[rows["budget"] == REFUSAL_KL[1]].groupby("method", sort=False).head(3)
    lines = [f"- **{row.method}**, {row.example_id}: {' '.join(str(row.text).split())}" for row in rows.itertuples()]
    return "\n".join([f"# Fluent refusals at {REFUSAL_KL[1]:g} nats", "", *lines]) + "\n"


if __name__ == "__main__":
    main()
