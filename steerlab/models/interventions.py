"""The plan of a run: which vector goes to which row, at which site, on which columns.

Both back ends carry out the same plan: they call `apply_edits` on a site's state and put the result back. Columns
are absolute places in the padded sequence. A forward's first column is known from the attention mask's length, so
cached decoding, recomputation without a cache and chunked prefill are all the same case, and nothing is ever
concluded from a forward having one token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steerlab._support.errors import SteeringError
from steerlab.models.edit_stats import EditStats
from steerlab.models.patches import ImageEdit, apply_image_edits
from steerlab.models.sites import Site

State = Float[Tensor, "rows tokens hidden"]


@dataclass
class Edit:
    """One addition to the state at one site.

    Attributes:
        vectors: `(batch, hidden)` float32, everything multiplied in (alpha, gate).
        prompt: `(batch, width)`: the columns of the encoded batch to write to.
        generated: whether columns beyond the encoded batch are written to as well.
        vector_fn: gives the vectors from this site's own state at column `last`, instead of `vectors`.
        last: `(batch,)` column of the last prompt token, for `vector_fn`.
        row_mask: `(batch,)` the rows that `generated` speaks of; None: all.
        read_site: `vector_fn` is asked once, before the run, about the state at this site of the unsteered prompt.
    """

    vectors: Float[Tensor, "batch hidden"] | None
    prompt: Bool[Tensor, "batch width"]
    generated: bool
    vector_fn: Callable[[Float[Tensor, "batch hidden"]], Float[Tensor, "batch hidden"]] | None = None
    last: Int[Tensor, " batch"] | None = None
    row_mask: Bool[Tensor, " batch"] | None = None
    stats: EditStats = field(default_factory=EditStats)
    read_site: Site | None = None

    def __post_init__(self) -> None:
        self._any_prompt = bool(self.prompt.any())

    def __getstate__(self) -> dict[str, Any]:
        """On the way to a server every vector goes once: cells and inputs share them, and other cells' rows are 0."""
        if self.vectors is None:
            return self.__dict__
        vectors, rows = torch.unique(self.vectors, dim=0, return_inverse=True)
        return self.__dict__ | {"vectors": (vectors, rows)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        packed = state["vectors"]
        self.__dict__ |= state | {"vectors": packed if packed is None else packed[0][packed[1]]}

    def affects(self, start: int, stop: int) -> bool:
        """Whether any column of `start:stop` can be meant; decided on the host, without a synchronization."""
        width = self.prompt.shape[1]
        met = self.vector_fn is not None and self.read_site is None
        reads = met and self.generated and start == 0  # what is written later is read now
        return reads or (self._any_prompt and start < width) or (self.generated and stop > width)

    def resolve_vectors(self, h: State) -> None:
        """Make the vectors from the unsteered prompt's state at `read_site`."""
        assert self.vector_fn is not None and self.last is not None
        rows = torch.arange(h.shape[0], device=h.device)
        self.vectors = self.vector_fn(h[rows, self.last.to(h.device)].float())

    def delta(self, h: State, stop: int) -> Float[Tensor, "rows tokens hidden"]:
        """What to add to `h`, whose last column is `stop - 1`: float32, zero where nothing is meant."""
        start = stop - h.shape[1]
        copies = h.shape[0] // self.prompt.shape[0]  # beams and return sequences repeat each row
        vectors = self._resolve(h, start, copies)
        mask = self._mask(start, stop, h.device).repeat_interleave(copies, 0)
        self.stats.add(vectors, h, mask)
        return torch.where(mask[:, :, None], vectors[:, None, :], 0.0)

    def row(self, number: int, start: int, stop: int) -> Edit:
        """The edit of one row by itself, without its padding, as an engine needs that runs rows apart.

        Args:
            number: which row.
            start: column at which the row begins; it becomes column 0.
            stop: the column after its last.
        """
        own = slice(number, number + 1)
        flight = self.vector_fn if self.read_site is None else None  # what was met beforehand is in the vectors
        return Edit(
            None if self.vectors is None else self.vectors[own],
            self.prompt[own, start:stop],
            self.generated,
            None if flight is None else partial(_of_one, function=flight, number=number, rows=len(self.prompt)),
            None if self.last is None else self.last[own] - start,
            None if self.row_mask is None else self.row_mask[own],
            read_site=self.read_site,
        )

    @property
    def is_noop(self) -> bool:
        """Whether no state can ever be written to, not even of tokens to come."""
        coming = self.generated and (self.row_mask is None or bool(self.row_mask.any()))
        return not self._any_prompt and not coming

    def _resolve(self, h: State, start: int, copies: int) -> Float[Tensor, "rows hidden"]:
        if self.vector_fn is not None and start == 0 and self.read_site is None:
            assert self.last is not None
            rows = torch.arange(h.shape[0], device=h.device)
            last = self.last.to(h.device).repeat_interleave(copies)
            if h.shape[1] < self.prompt.shape[1]:
                raise SteeringError(
                    f"a method that reads the state at the last prompt token met a forward of {h.shape[1]} of the "
                    f"prompt's {self.prompt.shape[1]} columns: leave prefill_chunk_size out, or take a method that "
                    "reads the unsteered prompt beforehand (AlphaSteer: gates='frozen')"
                )
            fresh = self.vector_fn(h[rows, last].float())
            if fresh.shape != (h.shape[0], h.shape[2]):
                raise SteeringError(
                    f"a method that reads in flight gave {tuple(fresh.shape)} for {h.shape[0]} rows "
                    f"of width {h.shape[2]}"
                )
            if copies == 1 or self.vectors is None:
                self.vectors = fresh[::copies]  # frozen for the steps to come
        if self.vectors is None:
            raise SteeringError(
                "a method that reads in flight met a decoding step before any prompt"
                if self.read_site is None
                else f"the state at {self.read_site} was not read beforehand: only engines elsewhere do that"
            )
        self.vectors = self.vectors.to(h.device)
        return self.vectors.repeat_interleave(copies, 0)

    def _mask(self, start: int, stop: int, device: torch.device) -> Bool[Tensor, "batch tokens"]:
        self.prompt = self.prompt.to(device)
        width = self.prompt.shape[1]
        known = self.prompt[:, start : min(stop, width)]
        beyond = max(stop - max(start, width), 0)
        new = torch.full((len(known), beyond), self.generated, device=device)
        if self.row_mask is not None:
            new = new & self.row_mask.to(device)[:, None]
        return torch.cat([known, new], 1)


def _of_one(
    h: Float[Tensor, "1 hidden"], function: Callable[[Tensor], Tensor], number: int, rows: int
) -> Float[Tensor, "1 hidden"]:
    """A function of all rows (each has its own strength bound to it), asked about one of them alone."""
    return function(h.expand(rows, -1))[number : number + 1]


SiteEdits = Mapping[Site, Sequence[Edit | ImageEdit]]


def apply_edits(edits: Sequence[Edit | ImageEdit], h: Tensor, stop: int) -> Tensor:
    """The state with every edit of its site added.

    Several edits at one site add up: each sees the state before any of them, the sum is formed in float32 and cast
    once to the state's dtype.

    Args:
        edits: the edits of this site.
        h: `(rows, tokens, hidden)`; in the vision tower and the projector, all pictures' patches.
        stop: the absolute column after the last of `h`.
    """
    images = [edit for edit in edits if isinstance(edit, ImageEdit)]
    if images:
        return apply_image_edits(images, h)
    return _of_rows([edit for edit in edits if isinstance(edit, Edit)], h, stop)


def _of_rows(edits: Sequence[Edit], h: State, stop: int) -> State:
    if h.shape[0] % edits[0].prompt.shape[0]:
        raise SteeringError(
            f"a forward of {h.shape[0]} rows can't be matched to a plan for {edits[0].prompt.shape[0]} rows"
        )
    active = [e for e in edits if e.affects(stop - h.shape[1], stop)]
    if not active:
        return h
    total = active[0].delta(h, stop)
    for edit in active[1:]:
        total = total + edit.delta(h, stop)
    return h + total.to(h.dtype)


def last_column(kwargs: Mapping[str, Any]) -> int:
    """The absolute column after the last one of a forward, from the keyword arguments of the model's root.

    The attention mask covers everything so far. `generate` leaves it out where no row is padded; then the cache tells
    how much came before.
    """
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return mask.shape[-1]
    given = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else kwargs.get("inputs_embeds")
    if given is None:
        raise SteeringError("a forward with neither token ids nor embeddings: its columns are unknown")
    past = kwargs.get("past_key_values")
    return int(given.shape[1]) + (int(past.get_seq_length()) if past is not None else 0)


def check_edits(plan: SiteEdits, hidden_size: int | None) -> None:
    """Refuse vectors of another width (where it is known) or that are not finite, before any forward."""
    for site, edits in plan.items():
        for edit in edits:
            if edit.vectors is None:
                continue
            if hidden_size is not None and edit.vectors.shape[-1] != hidden_size:
                raise SteeringError(
                    f"a vector of width {edit.vectors.shape[-1]} can't be added at layer {site}, "
                    f"whose states are {hidden_size} wide: was it fitted on another model, or at another part of it?"
                )
            if not bool(torch.isfinite(edit.vectors).all()):
                raise SteeringError(f"a vector for layer {site} holds NaN or infinity")
