"""Texts of the same prompts at several strengths, kept in a folder batch by batch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from steerlab._support.checks import as_seed, as_whole
from steerlab._support.contents import content_fingerprint
from steerlab._support.files import fingerprint
from steerlab._support.progress import bar as progress_bar
from steerlab._support.progress import interruptible
from steerlab.analysis._sweep.settings import as_alphas
from steerlab.analysis.study import Study
from steerlab.data.example import Example, data_hash
from steerlab.data.inputs import Data, as_examples
from steerlab.errors import SteeringError
from steerlab.models.model import Model
from steerlab.models.ready import check_ready
from steerlab.steering.batches import Steer, encode_examples
from steerlab.steering.generate import generate
from steerlab.steering.requests import Request

_QUOTED = ["example_id", "prompt", "text"]


def write_texts(
    model: Model, data: Data, steer: Steer = (), alphas: Sequence[float] = (0.0, 1.0), *,
    folder: str | Path | None = None, batch_size: int = 16, progress: bool = True, **options: Any,
) -> pd.DataFrame:  # fmt: skip
    """Generate a text for each prompt at each strength.

    Example:
        >>> frame = write_texts(model, prompts, vector, [0.0, 0.5, 1.0], folder="results/texts")
        >>> frame.pivot(index="prompt", columns="alpha", values="text")

    Args:
        model, data: as in `steerlab.generate`.
        steer: a fitted steerer, vectors by layer, or several.
        alphas: strengths, each for itself.
        folder: where finished batches are stored; a second call continues from there. None: nothing is stored.
        batch_size: prompts of a batch.
        progress: show a progress bar.
        options: `positions`, `scale`, `max_new_tokens` and so on, as in `steerlab.generate`.

    Returns:
        One row per strength and text: `alpha, example_id, prompt, text, norm_ratio` (the mean of its batch).

    Raises:
        As `generate`. SteeringError: a `Request`. MismatchError: the folder belongs to other texts; both are named.
    """
    check_ready(model)
    if any(isinstance(one, Request) for one in (steer if isinstance(steer, list | tuple) else [steer])):
        raise SteeringError(
            "a Request has a strength of its own: give the steerer, with alphas=, positions= and scale= beside it"
        )
    examples, strengths = as_examples(data), as_alphas(alphas)
    as_whole("batch_size", batch_size)
    parts = [(alpha, start) for alpha in strengths for start in range(0, len(examples), batch_size)]
    study = None if folder is None else Study(folder, _identity(model, examples, steer, batch_size, strengths, options))
    frames: list[pd.DataFrame] = []
    with (
        progress_bar(len(parts), "generate", "batch", progress) as bar,
        interruptible(folder, lambda: f"{0 if study is None else study.n_finished} of {len(parts)} batches"),
    ):
        for alpha, start in parts:
            chosen = examples[start : start + batch_size]
            seed = as_seed(options.get("seed", 0)) + start  # a sampled batch doesn't repeat the one before
            write = partial(_write, model, chosen, steer, alpha, {"batch_size": batch_size, **options, "seed": seed})
            name = f"texts-{strengths.index(alpha):03d}-{start:06d}"
            frames.append(write() if study is None else study.stage(name, write))
            bar.update(1)
    found = pd.concat(frames, ignore_index=True)
    return found.assign(**{name: found[name].map(json.loads) for name in _QUOTED})


def _write(model: Model, examples: list[Example], steer: Steer, alpha: float, options: dict[str, Any]) -> pd.DataFrame:
    """The texts of one batch."""
    found = generate(model, examples, steer=steer, alpha=alpha, progress=False, **options)
    columns = {"example_id": found.example_ids, "prompt": found.prompts, "text": found.texts}
    # as JSON: read back from a file, a text of digits alone would become a number
    quoted = {name: [json.dumps(one) for one in columns[name]] for name in _QUOTED}
    return pd.DataFrame({"alpha": alpha, **quoted, "norm_ratio": found.norm_ratio if found.steered_tokens else 0.0})


def _identity(
    model: Model, examples: list[Example], steer: Steer, batch_size: int, alphas: list[float], options: dict[str, Any]
) -> dict[str, Any]:
    info = {name: value for name, value in model.info().items() if name != "versions"}
    parts = {"steer": steer, "options": options, "generation_config": model.hf.generation_config}
    given = {name: content_fingerprint(value) for name, value in parts.items()}
    given |= {"data": data_hash(examples), "tokens": fingerprint([row.ids for row in encode_examples(model, examples)])}
    return {"study": "texts", **info, "alphas": alphas, "batch_size": batch_size, **given}
