"""Commands that write texts and measure them: `generate`, `sweep`, `steerability`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import steerlab
from steerlab.cli import inputs
from steerlab.cli.app import command
from steerlab.cli.inputs import ALL, DATA, LAYERS, Choice, make_method, read_data, read_steerers
from steerlab.cli.job import Job, Result, write_csv
from steerlab.cli.reading import training_examples
from steerlab.errors import DataError, SteeringError

if TYPE_CHECKING:
    import pandas as pd

    from steerlab.data.example import Example
    from steerlab.methods import Steerer

_ROWS = 64  # of a batch of texts in a sweep
Steer = Annotated[tuple[str, ...], "a folder of fit, a hub repository or a gguf file; repeatable"]
Together = Annotated[tuple[str, ...], "a folder of fit, a hub repository or a gguf file; several are used together"]
Alphas = Annotated[str, "strengths, each for itself: 0,0.5,2 or -1:1:0.5; 0 is without"]
Scale = Annotated[str, "unit of the strength: raw, norm (of each input's state) or token_norm (of each token's)"]
MaxNewTokens = Annotated[int, "limit of each text"]


@dataclass(frozen=True)
class Settings:
    """What a sweep compares; options of `sweep` and `steerability`."""

    steer: Steer = ()
    method: Annotated[str, "methods to fit, joined by commas; by default mean where no --steer is given"] = ""
    options: Annotated[tuple[str, ...], "an option of the methods, NAME=VALUE; repeatable", "--set"] = ()
    train: Annotated[str, "data to fit the methods to; by default the split train of the data"] = ""
    layers: Annotated[str, f"{LAYERS}; by default all, or those of the folders"] = ""
    alphas: Alphas = "-1.5:1.5:0.5"
    positions: Annotated[str, "which tokens are steered; several, joined by commas, are compared"] = "last+generated"
    scale: Scale = "raw"
    metric: Annotated[
        str, "of answers: propensity, accuracy, ...; of texts: is_refusal, distinct_n, ...; several joined by commas"
    ] = "propensity"
    max_new_tokens: MaxNewTokens = 60


@command()
def generate(
    job: Job, prompts: Annotated[tuple[str, ...], "texts; or give --data"] = (), *,
    data: Annotated[str, DATA] = "", steer: Together = (), alphas: Alphas = "0,1",
    positions: Annotated[str, "which tokens are steered: all, last+generated, ...; by default each method's own"] = "",
    scale: Scale = "raw",
    operator: Annotated[str, "what is done with the vector: add, project_out, replace or rotate"] = "add",
    choice: Choice = ALL, max_new_tokens: MaxNewTokens = 60,
    batch_size: Annotated[int, "texts at a time; each batch is kept"] = 16,
    out: Annotated[str, "the folder of texts.csv and of finished batches"] = "",
) -> Result:  # fmt: skip
    """Write texts without and with vectors, at one or several strengths."""
    from steerlab.analysis.texts import write_texts

    if not steer and (unused := job.given("alphas", "positions", "scale", "operator")):
        raise SteeringError(f"{unused[0]} says how to steer, and there is no --steer VECTOR")
    examples, steerers = _prompts(prompts, data, choice), list(read_steerers(steer, job.model).values())
    if operator != "add":
        steerers = [steerlab.methods.Operation(one, operator) for one in steerers]
    strengths, where = inputs.parse_numbers(alphas) if steerers else [0.0], inputs.parse_positions(positions)
    if len(where) > 1:
        raise SteeringError(f"--positions {positions}: join them by +, such as last+generated")
    named = f" under {' and '.join(one.name for one in steerers)} at alpha {', '.join(f'{a:g}' for a in strengths)}"
    job.begin(
        f"write texts of at most {max_new_tokens} tokens for {len(examples)} prompts{named * bool(steerers)}",
        job.seconds_to_write(examples, max_new_tokens, batch_size, len(strengths)),
    )
    frame = write_texts(
        job.model, examples, steerers, strengths, folder=out, batch_size=batch_size, scale=scale,
        positions=where[0] if where else None, max_new_tokens=max_new_tokens,
    )  # fmt: skip
    path = write_csv(frame, Path(out) / "texts.csv")
    return Result(f"{_side_by_side(frame)}\n{path}", data={"rows": frame, "file": path})


def _prompts(prompts: Sequence[str], data: str, choice: Choice) -> list[Example]:
    from steerlab.data.inputs import as_examples

    if bool(prompts) == bool(data):
        raise DataError("generate needs prompts, or --data FILE; one of the two")
    if files := [one for one in prompts if Path(one).suffix and Path(one).is_file()]:
        raise DataError(f"{files[0]} is a file: give it as --data {files[0]}")
    return read_data(data, choice) if data else as_examples(prompts)


def _side_by_side(frame: pd.DataFrame) -> str:
    """The texts of each prompt, one strength below the other."""
    lines = []
    for _, rows in frame.groupby("example_id", sort=False):
        lines.append(f"> {rows['prompt'].iloc[0]}")
        for alpha, text in zip(rows["alpha"], rows["text"], strict=True):
            lines.append(f"  {f'alpha {alpha:g}' if alpha else 'without':<10} {' '.join(text.split())}")
    return "\n".join(lines)


@command()
def sweep(
    job: Job, data: Annotated[str, DATA], *, settings: Settings = Settings(), choice: Choice = ALL,
    out: Annotated[str, "the folder of results.csv and of finished batches"] = "",
) -> Result:  # fmt: skip
    """Measure every method, layer, strength and position on the same inputs, and choose the best."""
    frame = _sweep(job, data, settings, choice, Path(out))
    keys = [key for key in ("method", "positions", "metric") if frame[key].nunique() > 1]
    means = frame.groupby([*keys, "layer", "alpha"], sort=False)["value"].mean()
    table = means.unstack("alpha").rename(columns=lambda alpha: f"{alpha:g}")
    if "0" in table:
        table = table.assign(gain=table.max(axis=1) - table["0"])
    found = {"rows": means.reset_index(), "chosen": _best(frame), "file": Path(out) / "results.csv"}
    return Result(f"{found['chosen']}\n{found['file']}", table.reset_index(), ["gain"] * ("gain" in table), found)


def _sweep(job: Job, data: str, given: Settings, choice: Choice, out: Path) -> pd.DataFrame:
    """The frame of a sweep, also written to results.csv."""
    model, metrics = job.model, inputs.parse_metrics(given.metric)
    fitted: dict[str, Any] = dict(read_steerers(given.steer, model))
    names = given.method.split(",") if given.method else [] if fitted else ["mean"]
    unfitted = {name: make_method(name, "", model.n_layers, given.options) for name in names}
    if both := sorted({*fitted} & {*unfitted}):
        raise SteeringError(f"--steer and --method both have a {both[0]!r}: rename the folder")
    if not unfitted and (given.train or given.options):
        raise SteeringError("--train and --set are for methods that are fitted: give --method, or leave them out")
    strengths = inputs.parse_numbers(given.alphas)
    if not any(strengths):
        raise SteeringError(f"--alphas {given.alphas}: there is no strength but 0")
    layers = inputs.parse_layers(given.layers or "all", model.n_layers) if given.layers or unfitted else None
    arguments: dict[str, Any] = {
        "layers": layers, "alphas": strengths, "positions": inputs.parse_positions(given.positions),
        "metric": metrics, "scale": given.scale, "generation": {"max_new_tokens": given.max_new_tokens},
    }  # fmt: skip
    measured = _measured(data, choice, any(isinstance(one, str) for one in metrics.values()))
    training = _training(data, given, choice) if unfitted else []
    plan = steerlab.sweep(model, measured, fitted | _placeholders(job, names, layers), dry_run=True, **arguments)
    fit = f"fit {', '.join(names)} to {len(training)} inputs, then " if training else ""
    what = f"{fit}measure {len(plan.settings)} settings on {len(measured)} inputs, into {out}"
    job.begin(what, _seconds(job, plan, measured, len(training)))
    train = None
    if unfitted:
        options = [one.capture_options(training) for one in unfitted.values()]
        read: dict[str, Any] = {key: list(dict.fromkeys(item for one in options for item in one.get(key, ())))
                for key in ("positions", "context")}  # fmt: skip
        read = {key: positions for key, positions in read.items() if positions}
        extra = [one["extra_prompts"] for one in options]  # None: all
        read["extra_prompts"] = None if None in extra else sorted({name for names in extra for name in names})
        train = steerlab.capture(model, training, folder=out / "activations", layers=layers, **read).load()
    frame = steerlab.sweep(model, measured, fitted | unfitted, train=train, folder=out, **arguments)
    write_csv(frame, out / "results.csv")
    return frame


def _measured(data: str, choice: Choice, with_contrast: bool) -> list[Example]:
    """The inputs of a sweep: without those of the split train, unless that was chosen."""
    found = [one for one in read_data(data, choice) if one.split != "train" or choice.split]
    found = [one for one in found if one.contrast or not with_contrast]
    if not found:
        raise DataError(f"{data} has nothing to measure: answers need inputs with a contrast, not of the split train")
    return found


def _training(data: str, given: Settings, choice: Choice) -> list[Example]:
    """The inputs that methods are fitted to."""
    found = read_data(given.train or data, replace(choice, split=""))
    if not given.train and not any(one.split == "train" for one in found):
        raise DataError(f"{data} has no split train: give --train FILE, or a fitted vector with --steer")
    return training_examples(found)


def _placeholders(job: Job, names: Sequence[str], layers: Sequence[Any] | None) -> dict[str, Steerer]:
    """Vectors in the place of methods that are not fitted yet: what a sweep costs does not depend on their values."""
    import torch

    ones = {site: torch.ones(job.model.width(job.model.site(site)) or 1) for site in layers or ()}
    return {name: steerlab.SteeringVector(ones) for name in names}


def _seconds(job: Job, plan: Any, measured: list[Example], n_training: int) -> float | None:
    """The seconds of a sweep: forwards as the plan counts them, and texts, which are written in full batches."""
    to_read = job.seconds_to_read(measured)
    if to_read is None:
        return None
    planned = 0.0 if plan.answers is None else plan.answers.planned
    seconds = to_read / len(measured) * (planned + n_training)
    if plan.prompts is not None:
        n_texts, tokens = len(plan.settings) * len(measured), plan.arguments["generation"]["max_new_tokens"]
        rows = [measured[k % len(measured)].replace(id=str(k)) for k in range(min(n_texts, _ROWS))]
        seconds += job.seconds_to_write(rows, tokens, _ROWS, n_texts / len(rows)) or 0.0
    return seconds


def _best(frame: pd.DataFrame) -> str:
    """The chosen layer and strength, on validation rows where there are any, and what it reaches on test rows."""
    from steerlab.analysis.layer_selection import select_layers

    metric = str(frame["metric"].iloc[0])
    chosen_on = frame["split"] == "validation"
    if chosen_on.any() and frame["method"].nunique() == frame["positions"].nunique() == 1:
        return str(select_layers(frame, metric))
    steered = (frame["metric"] == metric) & (frame["alpha"] != 0)
    keys = ["method", "layer", "alpha", "positions"]
    means = frame[steered & chosen_on if chosen_on.any() else steered].groupby(keys)["value"].mean()
    method, layer, alpha, positions = best = means.idxmax()
    setting = f"{method} at layer {layer}, alpha {alpha:g}, positions {positions}"
    tested = frame[steered & (frame["split"] == "test")].groupby(keys)["value"].mean()
    where = (
        "(chosen on the rows that it is measured on)" if not chosen_on.any()
        else "on validation rows" + (f", {tested[best]:.3g} on test rows" if best in tested else "")
    )  # fmt: skip
    return f"{metric}: largest mean {means.max():.3g} of {setting} {where}"


@command()
def steerability(
    job: Job, data: Annotated[str, f"a folder of sweep; or {DATA}"], *,
    settings: Settings = Settings(), choice: Choice = ALL,
    out: Annotated[str, "the folder of results.csv, slopes.csv and of finished batches"] = "",
) -> Result:  # fmt: skip
    """Measure how far each input follows the strength: mean slope, and the share of inputs that move the wrong way."""
    import pandas as pd

    from steerlab.analysis import steerability as analysis

    stored = Path(data) / "results.csv"
    if stored.is_file():
        if settings != Settings(metric=settings.metric) or choice != ALL:
            raise SteeringError(f"{data} is a sweep that is done: of the options of a sweep only --metric is used")
        job.begin(f"compute the slopes of the sweep in {data}", 1.0)
        texts = ("method", "model", "positions", "example_id", "behavior", "split", "metric")  # an id may be "001"
        frame = pd.read_csv(stored, keep_default_na=False, dtype=dict.fromkeys(texts, str))
    else:
        frame = _sweep(job, data, settings, choice, Path(out))
    slopes = analysis.slopes(frame, settings.metric.split(",")[0])
    table = analysis.steerability(slopes)
    path = write_csv(slopes, Path(out) / "slopes.csv")
    always = ["layer", "steerability", "low", "high", "anti_steerable", "n"]
    keys = [one for one in ("method", "positions", "behavior") if one in table and table[one].nunique() > 1]
    return Result(str(path), table[[*keys, *always]], ["steerability"], {"rows": table, "file": path})
