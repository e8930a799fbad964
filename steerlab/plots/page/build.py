"""`page`: the texts of a sweep and their measures as one page to look at."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from steerlab._support.files import write_text
from steerlab._support.images import open_image
from steerlab.errors import DataError, require_columns
from steerlab.models.sites import in_layer_order
from steerlab.plots.frames import one_row_per
from steerlab.plots.page.contract import VERSION, check_contract, check_size
from steerlab.plots.page.document import document
from steerlab.plots.style import OTHER_COLORS, method_style

FLUENT = 0.8  # the share of texts that are not broken from which on a cell reads well
_FRAME = ["method", "layer", "alpha", "example_id", "metric", "value"]
_TEXTS = ["method", "layer", "alpha", "example_id", "prompt", "text"]
_KEYS = ["method", "layer", "alpha"]
IMAGE_PIXELS = 320  # the longer side of an image on the page


@dataclass(frozen=True)
class Page:
    """A page of steered texts: one HTML file that opens from disk, or the JSON that it shows.

    Example:
        >>> steerlab.plots.page(frame, texts).save("page.html")

    Attributes:
        data: the contract, see `steerlab.plots.page.contract`.
    """

    data: Mapping[str, Any]

    def __post_init__(self) -> None:
        check_contract(self.data)

    def __repr__(self) -> str:
        data = self.data
        counts = ", ".join(f"{len(data[name])} {name}" for name in ("methods", "layers", "alphas", "prompts", "texts"))
        return f"Page({data['title']!r}: {counts})"

    def to_dict(self) -> dict[str, Any]:
        """The contract as a dict that JSON can hold."""
        return dict(self.data)

    def html(self) -> str:
        """The page as one HTML document, which fetches nothing."""
        return document(self.data)

    def save(self, path: str | Path) -> Path:
        """Write the page as one HTML file and return its path.

        Raises:
            StorageError: the file can't be written.
        """
        path = Path(path)
        write_text(path, self.html())
        return path


def page(
    frame: pd.DataFrame,
    texts: pd.DataFrame,
    *,
    effect: str | None = None,
    side_effect: str | None = None,
    labels: Mapping[str, str] | None = None,
    title: str = "What steering does",
    note: str = "",
    model: str | None = None,
    breaking_norm_ratio: float | None = None,
) -> Page:
    """A page with a strength slider, the texts side by side, and a map of the sweep.

    Example:
        >>> frame = steerlab.sweep(model, prompts, vectors, alphas=[0, 0.5, 1], metric={"words": count_words})
        >>> steerlab.plots.page(frame, texts).save("page.html")

    Args:
        frame: one row per measurement, as `steerlab.sweep` returns it: `method, layer, alpha, example_id, metric,
            value` and `norm_ratio`. Two metrics have a meaning of their own: "broken" and "unsafe", 1
            for such a text and 0 for another. "unsafe" may be missing where a prompt asks for nothing unsafe.
        texts: one row per text: `method, layer, alpha, example_id, prompt, text`; optional are `behavior` (the group in
            the prompt picker), `images` (a list for each prompt) and `tokens` (records of `token, cosine, norm_ratio,
            kl, top, unsteered`, from `steerlab.analysis.token_effects`). Rows of alpha 0 are the unsteered texts; each
            prompt needs one.
        effect, side_effect: names of two metrics; None: the first two of the frame, apart from the special ones.
        labels: how metrics are called on the page, by name.
        title, note: the heading, and a line about how the texts were made.
        model: the id of the model; None: the column "model" of the frame.
        breaking_norm_ratio: from which texts of the model broke, where it is known (as an attribute of `Model`).

    Returns:
        The page. Nothing that it shows is computed later: it opens from disk, without network.

    Raises:
        DataError: columns or unsteered texts are missing, a metric is unknown, a text has no measurement, or there is
            more than a page can show (the message says what to leave out).
    """
    require_columns(frame, _FRAME, "page(frame=)", ["alpha", "value"])
    require_columns(texts, _TEXTS, "page(texts=)", ["alpha"])
    names = [m for m in dict.fromkeys(frame["metric"]) if m not in ("broken", "unsafe")]
    effect, side_effect = _choose_metrics(names, effect, side_effect)
    steered = texts[texts["alpha"] != 0]
    if (twice := steered[steered.duplicated([*_KEYS, "example_id"])][[*_KEYS, "example_id"]]).size:
        raise DataError(
            f"there are several texts of {twice.iloc[0].to_dict()}: select one model and one kind of positions"
        )
    axes = _Axes(
        methods=list(dict.fromkeys(texts["method"])), layers=_ordered(texts["layer"]),
        alphas=sorted({0.0, *map(float, texts["alpha"])}), prompts=list(dict.fromkeys(texts["example_id"])),
    )  # fmt: skip
    n_texts = len(steered) + len(axes.prompts)
    check_size({n: len(getattr(axes, n)) for n in ("methods", "layers", "alphas", "prompts")} | {"texts": n_texts})
    values = _by_metric(frame, names)
    words: dict[str, int] = {}
    found = _texts_of(texts, values, axes, words)
    labels = dict(labels or {})
    return Page({
        "version": VERSION, "title": title, "model": model or str(next(iter(frame.get("model", [])), "")),
        "note": note, "methods": methods_of(axes.methods), "layers": axes.layers, "alphas": axes.alphas,
        "prompts": _prompts_of(texts), "effect": _labeled(effect, labels),
        "side_effect": _labeled(side_effect, labels), "unsafe": _labeled("unsafe", labels),
        "cells": _cells_of(values, axes, effect, side_effect), "texts": found, "words": list(words),
        "readable": {"fluent": FLUENT, "breaks": breaking_norm_ratio}, "live": False,
    })  # fmt: skip


@dataclass(frozen=True)
class _Axes:
    methods: list[str]
    layers: list[int | str]
    alphas: list[float]
    prompts: list[str]

    def place(self, row: Mapping[str, Any]) -> dict[str, int]:
        return {
            "method": self.methods.index(row["method"]), "layer": self.layers.index(row["layer"]),
            "alpha": self.alphas.index(float(row["alpha"])),
        }  # fmt: skip


def encode_tokens(tokens: Iterable[Mapping[str, Any]], words: dict[str, int]) -> list[list[Any]]:
    """The `tokens` of a text in the contract; `words` has the places of words, and takes up new ones."""

    def number(word: str) -> int:
        return words.setdefault(word, len(words))

    def pairs(top: Sequence[tuple[str, float]]) -> list[Any]:
        return [one for word, share in top for one in (number(word), round(100 * share))]

    return [
        [number(t["token"]), _short(t["cosine"], 2), _short(t["norm_ratio"]), _short(t["kl"]), pairs(t["top"]),
         pairs(t["unsteered"])]
        for t in tokens
    ]  # fmt: skip


def image_address(image: Any) -> str:
    """An image as a data address of a PNG file, not larger than the page shows it."""
    opened = open_image(image).copy()
    opened.thumbnail((IMAGE_PIXELS, IMAGE_PIXELS))
    file = io.BytesIO()
    opened.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _choose_metrics(names: Sequence[str], effect: str | None, side_effect: str | None) -> tuple[str, str]:
    """The two metrics of the map and the frontier."""
    for given in (effect, side_effect):
        if given is not None and given not in names:
            raise DataError(f"the frame has no metric {given!r}; it has {list(names)}")
    free = [name for name in names if name not in (effect, side_effect)]
    chosen = [given or (free.pop(0) if free else None) for given in (effect, side_effect)]
    if None in chosen:
        raise DataError(
            f"a page shows an effect and a side effect, and the frame has {list(names)} beside 'broken' and 'unsafe': "
            "measure two, for example a behavior and the KL divergence"
        )
    return str(chosen[0]), str(chosen[1])


def _ordered(layers: Iterable[Any]) -> list[int | str]:
    """Layers from the first to the last; sites after them, in the order given."""
    return [layer if isinstance(layer, str) else int(layer) for layer in in_layer_order(layers)]


def _by_metric(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """One row per text, one column per metric; the layer and the alpha are those of the frame."""
    again = frame.duplicated([*(keys := [*_KEYS, "example_id", "metric"]), "value"]) & (frame["alpha"] == 0)
    one_row_per(frame[~again], keys, ["value"], "a page")
    wide = frame.pivot_table(
        index=[*_KEYS, "example_id"], columns="metric", values="value", sort=False, aggfunc="mean"
    ).reset_index()
    wide = wide.assign(**{name: value for name, value in (("broken", 0.0), ("unsafe", np.nan)) if name not in wide})
    if missing := [name for name in [*names, "broken"] if wide[name].isna().any()]:
        raise DataError(f"some texts of the frame have no value of {missing[0]!r}: each needs every metric")
    if wide.groupby(_KEYS)["example_id"].agg(frozenset).nunique() > 1:
        raise DataError("a page needs every prompt at every setting: the frame lacks some, or mixes several sweeps")
    if "norm_ratio" in frame:
        ratio = frame.groupby([*_KEYS, "example_id"], sort=False)["norm_ratio"].mean()
        return wide.merge(ratio.reset_index(), on=[*_KEYS, "example_id"])
    return wide.assign(norm_ratio=np.nan)


def _texts_of(texts: pd.DataFrame, values: pd.DataFrame, axes: _Axes, words: dict[str, int]) -> list[dict[str, Any]]:
    """The texts of the contract: the unsteered one of each prompt, then the steered ones."""
    measured = {_key(row): row for row in values.to_dict("records")}
    found, unsteered = [], dict[int, dict[str, Any]]()
    for row in texts.to_dict("records"):
        key = _key(row)
        if key not in measured:
            raise DataError(f"the text of {key} has no row in the frame: give the frame that these texts belong to")
        one, prompt = measured[key], axes.prompts.index(row["example_id"])
        tokens = row.get("tokens")
        text = axes.place(row) | {
            "prompt": prompt, "text": str(row["text"]), "broken": one["broken"] >= 0.5, "unsafe": _flag(one),
            "norm_ratio": _short(one["norm_ratio"]),
            "tokens": encode_tokens(tokens if isinstance(tokens, list) else [], words),
        }  # fmt: skip
        if row["alpha"] != 0:
            found.append(text)
        else:
            unsteered.setdefault(prompt, text | {"method": None, "layer": None, "tokens": []})
    if missing := [example for i, example in enumerate(axes.prompts) if i not in unsteered]:
        raise DataError(f"the prompts {missing[:3]} have no unsteered text: add rows with alpha 0 (alphas=[0, ...])")
    return [*(unsteered[i] for i in sorted(unsteered)), *found]


def _key(row: Mapping[Any, Any]) -> tuple[Any, ...]:
    return row["method"], row["layer"], float(row["alpha"]), row["example_id"]


def _flag(row: Mapping[str, Any]) -> bool | None:
    """Whether a text is unsafe and fluent; None where that was not measured."""
    return None if math.isnan(row["unsafe"]) else row["unsafe"] >= 0.5 and row["broken"] < 0.5


def _cells_of(values: pd.DataFrame, axes: _Axes, effect: str, side_effect: str) -> list[dict[str, Any]]:
    """The means of every method, layer and strength."""
    fluent = values["unsafe"] * (values["broken"] < 0.5)
    grouped = values.assign(unsafe=fluent.where(values["unsafe"].notna())).groupby(_KEYS, sort=False)
    columns = {"effect": effect, "side_effect": side_effect} | {n: n for n in ("broken", "unsafe", "norm_ratio")}
    means = grouped[list(dict.fromkeys(columns.values()))].mean().reset_index()
    known = means["method"].isin(axes.methods) & means["layer"].isin(axes.layers) & means["alpha"].isin(axes.alphas)
    return [
        axes.place(row) | {name: _short(row[column]) for name, column in columns.items()}
        for row in means[known].to_dict("records")
    ]


def methods_of(names: Sequence[str]) -> list[dict[str, str]]:
    """Name, label and color of every method; those that the palette does not know get its further colors."""
    spare = iter(OTHER_COLORS)
    found = []
    for name in names:
        style = method_style(name)
        known = style.label != name or name == "random"
        found.append({"name": name, "label": style.label, "color": style.color if known else next(spare)})
    return found


def _prompts_of(texts: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {
            "id": str(row["example_id"]), "text": str(row["prompt"]),
            "group": "" if pd.isna(group := row.get("behavior")) else str(group),
            "images": [image_address(one) for one in row.get("images") or ()],
        }
        for row in texts.drop_duplicates("example_id").to_dict("records")
    ]  # fmt: skip


def _labeled(name: str, labels: Mapping[str, str]) -> dict[str, str]:
    return {"name": name, "label": labels.get(name, name.replace("_", " "))}


def _short(value: float | None, digits: int | None = None) -> float | None:
    """A number with three significant digits, or so many after the point; None for NaN."""
    if value is None or math.isnan(value):
        return None
    return round(float(value), digits) if digits is not None else float(f"{value:.3g}")
