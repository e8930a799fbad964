"""Commands that write texts and measure them: `generate`, `sweep`, `steerability`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from steerlab.cli.app import command
from steerlab.cli.inputs import (
    DATA,
    make_method,
    parse_layers,
    parse_metrics,
    parse_numbers,
    parse_positions,
    read_data,
    read_steerers,
)
from steerlab.cli.job import Job, Result
from steerlab.cli.reading import LAYERS, Columns, Limit, Split, training_examples, write_csv
from steerlab.errors import DataError, SteeringError

if TYPE_CHECKING:
    import pandas as pd

    from steerlab.data.example import Example
    from steerlab.methods import Steerer

Steer = Annotated[tuple[str, ...], "a folder of fit, a hub repository or a gguf file; repeatable"]
Scale = Annotated[str, "unit of the strength: raw, norm (of each input's state) or token_norm (of each token's)"]
MaxNewTokens = Annotated[int, "limit of each text"]
Alphas = Annotated[str, "strengths, each for itself: 0,0.5,2 or -1:1:0.5; 0 is without"]
Method = Annotated[str, "methods to fit, joined by commas; by default mean where no --steer is given"]
MethodOptions = Annotated[tuple[str, ...], "an option of the methods, NAME=VALUE; repeatable", "--set"]
Train = Annotated[str, "data to fit the methods to; by default the split train of the data"]
SweptLayers = Annotated[str, f"{LAYERS}; by default all, or those of the folders"]
_ROWS = 64  # of a batch of texts in a sweep
METRICS = "of answers: propensity, accuracy, ...; of texts: is_refusal, distinct_n, ...; several joined by commas"


@command()
def generate(
    job: Job, prompts: Annotated[tuple[str, ...], "texts; or give --data"] = (), *,
    data: Annotated[str, DATA] = "", steer: Steer = (),
    alphas: Alphas = "0,1",
    positions: Annotated[str, "which tokens are steered: all, last+generated, ...; by default each method's own"] = "",
    scale: Scale = "raw",
    operator: Annotated[str, "what is done with the vector: add, project_out, replace or rotate"] = "add",
    split: Split = "", limit: Limit = None, columns: Columns = "",
    max_new_tokens: MaxNewTokens = 60, batch_size: Annotated[int, "texts at a time; each batch is kept"] = 16,
    out: Annotated[str, "the folder of texts.csv and of finished batches"] = "",
) -> Result:  # fmt: skip
    """Write texts without and with vectors, at one or several strengths."""
    from steerlab.analysis.texts import write_texts
    from steerlab.methods import Operation

    examples = _prompts(prompts, data, split=split, limit=limit, columns=columns)
    steerers = [
        one if operator == "add" else Operation(one, operator) for one in read_steerers(steer, job.model).values()
    ]
    strengths = parse_numbers(alphas) if steerers else [0.0]
    where = parse_positions(positions)
    if len(where) > 1:
        raise SteeringError(f"--positions {positions}: join them by +, such as last+generated")
    per_alpha = job.seconds_to_write(examples, max_new_tokens, batch_size)
    named = f" under {' and '.join(one.name for one in steerers)} at alpha {', '.join(f'{a:g}' for a in strengths)}"
    job.begin(
        f"write texts of at most {max_new_tokens} tokens for {len(examples)} prompts{named * bool(steerers)}",
        None if per_alpha is None else per_alpha * len(strengths),
    )
    frame = write_texts(
        job.model, examples, steerers, strengths, folder=out, batch_size=batch_size, scale=scale,
        positions=where[0] if where else None, max_new_tokens=max_new_tokens,
    )  # fmt: skip
    path = write_csv(frame, Path(out) / "texts.csv")
    return Result(_side_by_side(frame) + f"\n{path}", data={"rows": frame, "file": path})


def _prompts(prompts: Sequence[str], data: str, **options: Any) -> list[Example]:
    from steerlab.data.inputs import as_examples

    if bool(prompts) == bool(data):
        raise DataError("generate needs prompts, or --data FILE; one of the two")
    files = [one for one in prompts if Path(one).suffix and Path(one).is_file()]
    if files:
        raise DataError(f"{files[0]} is a file: give it as --data {files[0]}")
    return read_data(data, **options) if data else as_examples(prompts)


def _side_by_side(frame: pd.DataFrame) -> str:
    """The texts of each prompt, one strength below the other."""
    lines = []
    for _, rows in frame.groupby("example_id", sort=False):
        lines.append(f"> {rows['prompt'].iloc[0]}")
        for alpha, text in zip(rows["alpha"], rows["text"], strict=True):
            name = f"alpha {alpha:g}" if alpha else "without"
            lines.append(f"  {name:<10} {' '.join(text.split())}")
    return "\n".join(lines)


@command()
def sweep(
    job: Job, data: Annotated[str, DATA], *, steer: Steer = (),
    method: Method = "",
    options: MethodOptions = (), train: Train = "",
    layers: SweptLayers = "",
    alphas: Alphas = "-1.5:1.5:0.5",
    positions: Annotated[str, "which tokens are steered; several, joined by commas, are compared"] = "last+generated",
    scale: Scale = "raw",
    metric: Annotated[str, METRICS] = "propensity",
    split: Split = "", limit: Limit = None, columns: Columns = "", max_new_tokens: MaxNewTokens = 60,
    out: Annotated[str, "the folder of results.csv and of finished batches"] = "",
) -> Result:  # fmt: skip
    """Measure every method, layer, strength and position on the same inputs, and choose the best."""
    frame = run_sweep(job)
    path = write_csv(frame, Path(out) / "results.csv")
    keys = [key for key in ("method", "positions", "metric") if frame[key].nunique() > 1]
    means = frame.groupby([*keys, "layer", "alpha"], sort=False)["value"].mean()
    table = means.unstack("alpha")
    table.columns = [f"{alpha:g}" for alpha in table.columns]
    if "0" in table:
        table = table.assign(gain=table.max(axis=1) - table["0"])
    bars = ["gain"] * ("gain" in table)
    found = {"rows": means.reset_index(), "chosen": _choice(frame), "file": path}
    return Result(f"{found['chosen']}\n{path}", table.reset_index(), bars, found)


def run_sweep(job: Job) -> pd.DataFrame:
    """The frame of the sweep that the options of a job describe."""
    import steerlab

    given, model = job.options, job.model
    source = {"limit": given["limit"], "columns": given["columns"]}
    everything = read_data(given["data"], split=given["split"], **source)
    measured = [one for one in everything if one.split != "train" or given["split"]]
    metrics = parse_metrics(given["metric"])
    if any(isinstance(one, str) for one in metrics.values()):
        measured = [one for one in measured if one.contrast]
    if not measured:
        raise DataError(f"{given['data']} has no inputs to measure: {given['metric']} needs inputs with a contrast")
    names = (given["method"] or "" if given["steer"] else given["method"] or "mean").split(",")
    fitted: dict[str, Any] = read_steerers(given["steer"], model)
    unfitted = {name: make_method(name, "", model.n_layers, given["options"]) for name in names if name}
    sites = parse_layers(given["layers"] or "all", model.n_layers) if given["layers"] or unfitted else None
    arguments = {
        "layers": sites, "alphas": parse_numbers(given["alphas"]), "positions": parse_positions(given["positions"]),
        "metric": metrics, "scale": given["scale"], "generation": {"max_new_tokens": given["max_new_tokens"]},
    }  # fmt: skip
    training = _training_examples(given, everything, source) if unfitted else []
    plan = steerlab.sweep(model, measured, fitted | _placeholders(job, unfitted, sites), dry_run=True, **arguments)
    job.begin(*_announcement(job, plan, measured, training, given["out"]))
    train = None
    if unfitted:
        options = next(iter(unfitted.values())).capture_options(training) | {"layers": sites, "progress": True}
        train = steerlab.capture(model, training, folder=Path(given["out"]) / "activations", **options).load()
    return steerlab.sweep(model, measured, fitted | unfitted, train=train, folder=given["out"], **arguments)


def _training_examples(given: dict[str, Any], everything: list[Example], source: dict[str, Any]) -> list[Example]:
    found = read_data(given["train"], **source) if given["train"] else read_data(given["data"], **source)
    if not given["train"] and not any(one.split == "train" for one in found):
        raise DataError(
            f"{given['data']} has no split train to fit {given['method'] or 'mean'} to: give --train FILE, or a fitted "
            "vector with --steer"
        )
    return training_examples(found)


def _placeholders(job: Job, unfitted: dict[str, Steerer], sites: list[Any] | None) -> dict[str, Any]:
    """Vectors in the place of methods that are not fitted yet: what a sweep costs does not depend on their values."""
    import torch

    from steerlab.methods import SteeringVector

    ones = {site: torch.ones(job.model.width(job.model.site(site)) or 1) for site in sites or ()}
    return {name: SteeringVector(ones) for name in unfitted}


def _announcement(
    job: Job, plan: Any, measured: list[Example], training: list[Example], out: str
) -> tuple[str, float | None]:
    """What a sweep will do, and its seconds: forwards from the plan, texts from some that were written."""
    per_row = job.seconds_to_read(measured)
    seconds = None
    if per_row is not None:
        planned = 0.0 if plan.answers is None else plan.answers.planned
        seconds = per_row / len(measured) * (planned + len(training))
        if plan.prompts is not None:  # texts are written in full batches
            n_texts, tokens = len(plan.settings) * len(measured), plan.arguments["generation"]["max_new_tokens"]
            rows = [measured[k % len(measured)].replace(id=str(k)) for k in range(min(n_texts, _ROWS))]
            seconds += (job.seconds_to_write(rows, tokens, _ROWS) or 0.0) * n_texts / len(rows)
    fit = f"fit to {len(training)} inputs, then " if training else ""
    return f"{fit}measure {len(plan.settings)} settings on {len(measured)} inputs, into {out}", seconds


def _choice(frame: pd.DataFrame) -> str:
    """The chosen layer and strength, on validation rows where there are any."""
    from steerlab.analysis.layer_selection import select_layers

    metric = str(frame["metric"].iloc[0])
    one_sweep = frame["method"].nunique() == frame["positions"].nunique() == 1
    if "validation" in set(frame["split"]) and one_sweep:
        return str(select_layers(frame, metric))
    means = (
        frame[(frame["metric"] == metric) & (frame["alpha"] != 0)]
        .groupby(["method", "layer", "alpha", "positions"])["value"]
        .mean()
    )
    method, layer, alpha, positions = means.idxmax()
    return (
        f"{metric}: largest mean {means.max():.3g} of {method} at layer {layer}, alpha {alpha:g}, positions "
        f"{positions} (chosen on the rows that it is measured on)"
    )


@command()
def steerability(
    job: Job, data: Annotated[str, f"a folder of sweep; or {DATA}"], *, steer: Steer = (),
    method: Method = "",
    options: MethodOptions = (), train: Train = "",
    layers: SweptLayers = "",
    alphas: Alphas = "-1.5:1.5:0.5",
    positions: Annotated[str, "which tokens are steered"] = "last+generated", scale: Scale = "raw",
    metric: Annotated[str, "whose slope over the strength is taken"] = "propensity",
    split: Split = "", limit: Limit = None, columns: Columns = "", max_new_tokens: MaxNewTokens = 60,
    out: Annotated[str, "the folder of results.csv, slopes.csv and of finished batches"] = "",
) -> Result:  # fmt: skip
    """Measure how far each input follows the strength: mean slope, and the share of inputs that move the wrong way."""
    import pandas as pd

    from steerlab.analysis import steerability as of_slopes

    stored = Path(data) / "results.csv"
    if stored.is_file():
        job.begin(f"read the slopes of the sweep in {data}", 1.0)
        frame = pd.read_csv(stored)
    else:
        frame = run_sweep(job)
        write_csv(frame, Path(out) / "results.csv")
    slopes = of_slopes.slopes(frame, metric)
    table = of_slopes.steerability(slopes)
    path = write_csv(slopes, Path(out) / "slopes.csv")
    shown = [
        c
        for c in table
        if c in ("layer", "steerability", "low", "high", "anti_steerable", "n") or table[c].nunique() > 1
    ]
    shown = [c for c in shown if c not in ("median", "std", "anti_steerable_low", "anti_steerable_high")]
    return Result(f"{path}", table[shown], ["steerability"], {"rows": table, "file": path})
