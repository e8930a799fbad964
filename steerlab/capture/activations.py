"""Activations with a labeled index: no row without a name, no layer looked up by list position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.errors import ActivationError, DataError
from steerlab.models.sites import Site

INDEX_COLUMNS = ("example_id", "side", "position", "behavior", "split", "column", "token", "n_tokens")


@dataclass(frozen=True)
class Activations:
    """A tensor of activations and a frame that says what each row is.

    Example:
        >>> acts = steerlab.capture(model, pairs, layers=[16, 17])
        >>> acts.select(side="prompt", behavior="refuse").at(17)        # (rows, hidden)
        >>> ids, z = acts.contrast(17)                                   # positive minus negative, by example_id id

    Attributes:
        values: `(row, site, hidden)`, float, on the host.
        index: one row per row of `values`: `example_id` (id), `side` ("prompt", "positive", "negative", or the name of
            one
            of the example's own `extra_prompts`), `position` (the name that was asked for), `behavior`, `split`,
            `column`
            (token place in the unpadded sequence; -1 for a mean), `token` (id; -1 for a mean), `n_tokens` (how many
            tokens the row averages). Columns of your own may be added: `select` and `labels` know them.
        sites: what the second axis means, in order.
        info: provenance (model id and revision, template and data hashes, versions, batch size).

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
        missing = [c for c in INDEX_COLUMNS if c not in self.index]
        if missing:
            raise ActivationError(f"the index lacks the columns {missing}")
        finite = torch.isfinite(self.values).flatten(1).all(1)
        if not bool(finite.all()):
            bad = self.index.loc[~finite.numpy()].iloc[0]
            raise ActivationError(
                f"{int((~finite).sum())} of {rows} rows hold NaN or infinity, first sample {bad['example_id']!r} "
                f"({bad['side']}, {bad['position']}). Half precision overflow is the usual cause: load the model "
                "with dtype=torch.float32 or torch.bfloat16."
            )

    def __len__(self) -> int:
        return len(self.index)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.values.shape[-1]

    @property
    def layers(self) -> tuple[int, ...]:
        """The decoder layers captured, in order; sites of the vision tower and the projector are in `sites` alone."""
        return tuple(site.layer for site in self.sites if site.part == "text")

    def rows(self, keep: pd.Series | Sequence[bool]) -> Activations:
        """The rows where `keep` is true, in order."""
        mask = torch.tensor([bool(k) for k in keep])
        return Activations(self.values[mask], self.index[mask.numpy()].reset_index(drop=True), self.sites, self.info)

    def select(self, **labels: str | Sequence[str]) -> Activations:
        """The rows whose labels match, for example `select(side="prompt", behavior=["refuse", "defer"])`."""
        keep = pd.Series(True, index=self.index.index)
        for column, wanted in labels.items():
            if column not in self.index:
                raise ActivationError(f"no label {column!r}; the labels are {list(self.index.columns)}")
            allowed = [wanted] if isinstance(wanted, str) else list(wanted)
            keep &= self.index[column].isin(allowed)
            if not keep.any():
                have = sorted(map(str, self.index[column].unique()))
                raise ActivationError(f"no row has {column} in {allowed} (with {labels}); {column} is one of {have}")
        return self.rows(keep)

    def at(self, site: Site | int) -> Float[Tensor, "row hidden"]:
        """The rows at one site; an int means that block's output. Looked up by true layer id."""
        wanted = Site.of(site)
        if wanted.layer < 0 and wanted.part == "text" and "layers" in self.info:
            wanted = wanted.resolve(int(self.info["layers"]))  # captured sites are counted from the bottom
        if wanted not in self.sites:
            raise ActivationError(
                f"site {wanted} was not captured; captured are {', '.join(map(str, self.sites))}. "
                f"Add it to capture(layers=...)."
            )
        return self.values[:, self.sites.index(wanted)]

    def by_example(
        self, site: Site | int, *, side: str, position: str | None = None
    ) -> tuple[list[str], Float[Tensor, "example hidden"]]:
        """One row per sample at a site, with the sample ids in row order.

        Raises:
            ActivationError: nothing matches, or a sample has several rows (name the position then).
        """
        chosen = self.select(side=side) if position is None else self.select(side=side, position=position)
        ids = chosen.index["example_id"].tolist()
        if len(set(ids)) != len(ids):
            raise ActivationError(
                f"several rows per sample on side {side!r}; name one position of "
                f"{sorted(chosen.index['position'].unique())}, or capture a mean (reduce='mean')"
            )
        return ids, chosen.at(site)

    def contrast(
        self, site: Site | int, position: str | None = None
    ) -> tuple[list[str], Float[Tensor, "example hidden"]]:
        """Per sample, the positive minus the negative activation (the P2S vector), joined by sample id.

        Raises:
            DataError: a sample has only one of the two sides.
        """
        plus, positive = self.by_example(site, side="positive", position=position)
        minus, negative = self.by_example(site, side="negative", position=position)
        if set(plus) != set(minus):
            lone = sorted(set(plus) ^ set(minus))[:3]
            raise DataError(f"these samples have one side of the contrast only: {lone}")
        order = {example_id: row for row, example_id in enumerate(minus)}
        return plus, positive - negative[[order[example_id] for example_id in plus]]

    def labels(self, example_ids: Sequence[str], column: str = "behavior") -> list[str]:
        """The label of each sample, in the order given; "" where the column holds nothing for it."""
        if column not in self.index:
            raise ActivationError(f"no label {column!r}; the labels are {list(self.index.columns)}")
        lookup = dict(zip(self.index["example_id"], self.index[column].fillna(""), strict=True))
        unknown = [s for s in example_ids if s not in lookup]
        if unknown:
            raise ActivationError(f"no activations of the samples {unknown[:3]} (and {len(unknown)} in all)")
        return [lookup[example_id] for example_id in example_ids]
