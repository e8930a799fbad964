"""Hidden states with a labeled index: rows are found by label, layers by their number in the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.checks import show
from steerlab._support.display import notebook_html
from steerlab._support.hub import Shareable
from steerlab.errors import ActivationError, DataError
from steerlab.models.sites import Site

INDEX_COLUMNS = ("example_id", "side", "position", "behavior", "split", "column", "token", "n_tokens")
CapturedBatch = tuple[Tensor, pd.DataFrame]
ByExample = tuple[list[str], Float[Tensor, "example hidden"]]  # ids, and a row for each


def as_stored(site: Site | int, info: Mapping[str, Any]) -> Site:
    """A site as captures name it: a layer of the text that is counted from the last has its number from the first."""
    found = Site.of(site)
    counts = found.layer < 0 and found.part == "text" and "layers" in info
    return found.resolve(int(info["layers"])) if counts else found


def sorted_by_id(ids: Sequence[str], rows: Tensor) -> tuple[list[str], Tensor]:
    """Ids in order, and their rows, so that the order of capture changes no split and no resample."""
    order = sorted(range(len(ids)), key=ids.__getitem__)
    return [ids[i] for i in order], rows[order]


@dataclass(frozen=True)
class Activations(Shareable):
    """A tensor of activations and a frame with the labels of its rows.

    Example:
        >>> acts = steerlab.capture(model, pairs, layers=[16, 17])
        >>> acts.select(side="prompt", behavior="refuse").at(17)        # (rows, hidden)
        >>> ids, z = acts.contrast(17)                                   # positive minus negative, by example id

    Attributes:
        values: `(row, site, hidden)`, float, on the host.
        index: one row per row of `values`: `example_id`, `side` ("prompt", "positive", "negative", or the name of an
            extra prompt), `position` (as given to `capture`), `behavior`, `split`, `column` (token number in the
            unpadded sequence; -1 for a mean), `token` (id; -1 for a mean), `n_tokens` (number of tokens averaged).
            `select` and `labels` also work with columns added later.
        sites: the sites of the second axis, in order.
        info: provenance (model id and revision, template and data hashes, versions).

    Raises:
        ActivationError: shapes and index disagree, or a value is NaN or infinite.
    """

    values: Float[Tensor, "row site hidden"]
    index: pd.DataFrame
    sites: tuple[Site, ...]
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows, sites = self.values.shape[:2]
        if rows != len(self.index) or sites != len(self.sites):
            raise ActivationError(
                f"values are {tuple(self.values.shape)} but the index has {len(self.index)} rows and there are "
                f"{len(self.sites)} sites"
            )
        if missing := [c for c in INDEX_COLUMNS if c not in self.index]:
            raise ActivationError(f"the index lacks the columns {missing}")
        finite = torch.isfinite(self.values).flatten(1).all(1)
        if not bool(finite.all()):
            bad = self.index.loc[~finite.numpy()].iloc[0]
            first = self.sites[torch.isfinite(self.values).all(2).all(0).tolist().index(False)]
            raise ActivationError(
                f"{int((~finite).sum())} of {rows} rows hold NaN or infinity, first at site {first}, first example "
                f"{bad['example_id']!r} ({bad['side']}, {bad['position']}). Half precision overflow is the usual "
                "cause: load the model with dtype=torch.float32 or torch.bfloat16."
            )

    @classmethod
    def join(cls, batches: Sequence[CapturedBatch], sites: tuple[Site, ...], info: dict[str, Any]) -> Activations:
        """The rows of all batches, sorted by the index column `order`, which is dropped."""
        values, frames = zip(*batches, strict=True)
        index = pd.concat(frames, ignore_index=True).sort_values("order", kind="stable")
        rows = torch.cat(values)[index.index.tolist()]
        return cls(rows, index.drop(columns="order").reset_index(drop=True), sites, info)

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        sides = ", ".join(f"{side} {n}" for side, n in self.index["side"].value_counts().items())
        sites = ", ".join(map(str, self.sites[:8])) + (", ..." if len(self.sites) > 8 else "")
        of = f" of {self.info['model']}" if "model" in self.info else ""
        return f"Activations({len(self)} rows ({sides}) x {len(self.sites)} sites ({sites}) x {self.hidden_size}{of})"

    def _repr_html_(self) -> str:
        groups = self.index.groupby(["side", "position", "behavior", "split"], sort=False)
        return notebook_html(self, groups.size().rename("rows").reset_index())

    def _save_pretrained(self, save_directory: Path) -> None:
        from steerlab.capturing.store import save  # which reads and writes activations

        save(self, save_directory)

    @classmethod
    def _from_folder(cls, folder: Path, model: Any, force: bool) -> Activations:
        from steerlab.capturing.store import load

        return load(folder, model, force)

    def _card_facts(self) -> dict[str, Any]:
        known = ("model", "revision", "weights", "hidden_size", "template", "data", "positions", "context", "versions")
        facts = {"rows": len(self), "sites": ", ".join(map(str, self.sites))}
        return facts | {name: self.info[name] for name in known if name in self.info}

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.values.shape[-1]

    @property
    def layers(self) -> tuple[int, ...]:
        """The captured decoder layers, in order; sites of the vision tower and the projector are only in `sites`."""
        return tuple(site.layer for site in self.sites if site.part == "text")

    def rows(self, keep: pd.Series | Tensor | np.ndarray | Sequence[Any]) -> Activations:
        """The rows where `keep`, a truth value for each row, is true; in order."""
        if isinstance(keep, pd.Series) and not keep.index.equals(self.index.index):
            raise ActivationError("keep has other row numbers than the index: give keep.to_numpy(), in its order")
        keep = keep.tolist() if isinstance(keep, Tensor) else keep
        if wrong := [k for k in keep if not isinstance(k, bool | np.bool_)]:
            raise ActivationError(f"keep holds {show(wrong[0])}: give True or False for each row")
        mask = torch.tensor([bool(k) for k in keep])
        return Activations(self.values[mask], self.index[mask.numpy()].reset_index(drop=True), self.sites, self.info)

    def select(self, **labels: Any) -> Activations:
        """The rows with these labels, for example `select(side="prompt", behavior=["refuse", "defer"])`.

        Raises:
            ActivationError: an unknown column, a label that no row has, or no row matches.
        """
        keep = pd.Series(True, index=self.index.index)
        for column, wanted in labels.items():
            self._check_column(column)
            allowed = list(wanted) if isinstance(wanted, Iterable) and not isinstance(wanted, str) else [wanted]
            keep &= self.index[column].isin(allowed)
            known = {*self.index[column]}
            if (missing := [one for one in allowed if one not in known]) or not keep.any():
                have = ", ".join(sorted(map(repr, known))[:20])
                raise ActivationError(f"no row has {column} in {(missing or allowed)[:3]}; {column} is one of [{have}]")
        return self.rows(keep)

    def at(self, site: Site | int) -> Float[Tensor, "row hidden"]:
        """The rows at one site; an int is the output of that block (its number in the model).

        Raises:
            ActivationError: the site was not captured.
        """
        wanted = as_stored(site, self.info)
        if wanted not in self.sites:
            raise ActivationError(
                f"site {wanted} was not captured; captured are {', '.join(map(str, self.sites))}. "
                f"Add it to capture(layers=...)."
            )
        return self.values[:, self.sites.index(wanted)]

    def by_example(self, site: Site | int, *, side: str, position: str | None = None) -> ByExample:
        """The example ids and one row per example at a site, in row order.

        Raises:
            ActivationError: nothing matches, or an example has several rows (name the position then).
        """
        chosen = self.select(side=side) if position is None else self.select(side=side, position=position)
        ids = chosen.index["example_id"].tolist()
        if len(set(ids)) != len(ids):
            raise ActivationError(
                f"several rows per example on side {side!r}; name one position of "
                f"{sorted(chosen.index['position'].unique())}, or capture a mean (reduce='mean')"
            )
        return ids, chosen.at(site)

    def contrast(self, site: Site | int, position: str | None = None) -> ByExample:
        """The example ids and, per example, the positive minus the negative activation (the P2S vector).

        Raises:
            DataError: an example has only one of the two sides.
        """
        ids, positive = self.by_example(site, side="positive", position=position)
        negative_ids, negative = self.by_example(site, side="negative", position=position)
        if set(ids) != set(negative_ids):
            lone = sorted(set(ids) ^ set(negative_ids))[:3]
            raise DataError(f"these examples have one side of the contrast only: {lone}")
        row_of = {example_id: row for row, example_id in enumerate(negative_ids)}
        return ids, positive.float() - negative.float()[[row_of[example_id] for example_id in ids]]

    def labels(self, example_ids: Sequence[str], column: str = "behavior") -> list[Any]:
        """The label of each example, in the order given; "" where the column is empty.

        Raises:
            ActivationError: an unknown column or example, or rows of one example with different labels.
        """
        self._check_column(column)
        known = self.index[["example_id", column]].dropna().drop_duplicates()  # other rows of an example may have none
        if len(several := known[known["example_id"].duplicated()]):
            raise ActivationError(f"rows of the example {several['example_id'].iloc[0]!r} differ in {column!r}")
        lookup = dict.fromkeys(self.index["example_id"], "") | dict(known.itertuples(index=False))
        if unknown := [example_id for example_id in example_ids if example_id not in lookup]:
            raise ActivationError(f"no activations of the examples {unknown[:3]} (and {len(unknown)} in all)")
        return [lookup[example_id] for example_id in example_ids]

    def _check_column(self, column: str) -> None:
        if column not in self.index:
            raise ActivationError(f"no label {column!r}; the labels are {list(self.index.columns)}")
