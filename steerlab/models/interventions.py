"""The edits of one forward: what is done with which vector to which row, at which site, on which columns.

Every engine applies the same edits: it calls `apply_edits` on the state at a site and puts the result back. Columns are
absolute places in the padded sequence. The first column of a forward follows from the length of the attention mask, so
cached decoding, recomputation without a cache and chunked prefill are one case; that a forward has one token means
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steerlab.errors import SteeringError
from steerlab.models.edit_stats import EditStats
from steerlab.models.operators import EditRule
from steerlab.models.patches import entries_per_row
from steerlab.models.sites import Site

State = Float[Tensor, "rows tokens hidden"]
VectorFn = Callable[[Float[Tensor, "batch hidden"]], Float[Tensor, "batch hidden"]]


class _Change:
    """What an edit of tokens and one of images share."""

    rule: EditRule
    stats: EditStats

    def _delta(
        self, h: State, stop: int | None, vectors: Tensor, strength: Tensor, mask: Tensor, counted: Tensor
    ) -> Tensor:
        """What an edit that adds vectors adds to `h`: float32, zero where nothing is written."""
        change = self.rule.apply(torch.zeros_like(vectors[:, None]), vectors[:, None], strength[..., None])
        self.stats.add(change, h, counted, stop)
        return torch.where(mask[:, :, None], change, 0.0)

    def _changed(
        self, h: State, stop: int | None, vectors: Tensor, strength: Tensor, mask: Tensor, counted: Tensor
    ) -> Tensor:
        """The states under another operator, computed in float32; those that are not written stay bit-identical."""
        before = h if h.dtype == torch.float64 else h.float()
        after = self.rule.apply(before, vectors[:, None], strength[..., None])
        self.stats.add(after - before, h, counted, stop)
        return torch.where(mask[:, :, None], after.to(h.dtype), h)


@dataclass
class Edit(_Change):
    """A change of the states at one site.

    Attributes:
        vectors: `(batch, hidden)` float32; None where `vector_fn` computes them, or the operator uses none.
        prompt: `(batch, width)`, the columns of the encoded batch to write to.
        generated: whether columns beyond the encoded batch are written to as well.
        vector_fn: computes the vectors from the state of this site at column `last`, where `vectors` is None.
        last: `(batch,)` column of the last prompt token, for `vector_fn`.
        row_mask: `(batch,)`, rows whose generated tokens are steered; None means all.
        stats: what the edit did.
        read_site: `vector_fn` takes the state of the unsteered prompt at this site instead, once, before the run.
        strengths: `(batch,)`, alpha times gate; None means 1.
        rule: what is done with vector and strength, and to which generated tokens.
        whole_prompts: whether new tokens begin after the batch's last column, also for rows padded on the right.
    """

    vectors: Float[Tensor, "batch hidden"] | None
    prompt: Bool[Tensor, "batch width"]
    generated: bool
    vector_fn: VectorFn | None = None
    last: Int[Tensor, " batch"] | None = None
    row_mask: Bool[Tensor, " batch"] | None = None
    stats: EditStats = field(default_factory=EditStats)
    read_site: Site | None = None
    strengths: Float[Tensor, " batch"] | None = None
    rule: EditRule = field(default_factory=EditRule)
    whole_prompts: bool = False

    def __post_init__(self) -> None:
        self._any_prompt = bool(self.prompt.any())
        self._counted = 0  # the columns before it are counted: without a cache, each step writes to all of them again

    def __getstate__(self) -> dict[str, Any]:
        """Each vector is sent once: many rows of a sweep share a vector, and rows of other settings are 0."""
        if self.vectors is None:
            return self.__dict__
        return self.__dict__ | {"vectors": torch.unique(self.vectors, dim=0, return_inverse=True)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        packed = state["vectors"]
        self.__dict__ |= state | {"vectors": packed if packed is None else packed[0][packed[1]]}

    @property
    def is_noop(self) -> bool:
        """Whether no state is written to, generated tokens included."""
        generated = self.generated and (self.row_mask is None or bool(self.row_mask.any()))
        return not self._any_prompt and not generated

    @property
    def _computed_in_forward(self) -> bool:
        return self.vector_fn is not None and self.read_site is None

    def affects(self, start: int, stop: int) -> bool:
        """Whether the edit needs a forward of the columns `start:stop`; decided without synchronizing the device."""
        width = self.prompt.shape[1]
        needed_later = self._computed_in_forward and self.generated and start == 0
        return needed_later or (self._any_prompt and start < width) or (self.generated and stop > width)

    def resolve_vectors(self, h: State) -> None:
        """Compute the vectors from the state of the unsteered prompt at `read_site`."""
        self.vectors = self._call_vector_fn(h, 1)

    def read(self, h: State, stop: int) -> None:
        """Compute the vectors from the unedited state, if this is the forward of the prompts."""
        if self._computed_in_forward and stop == h.shape[1]:
            self._compute_vectors(h, len(h) // len(self.prompt))

    def delta(self, h: State, stop: int) -> Float[Tensor, "rows tokens hidden"]:
        """What to add to `h`, whose last column is `stop - 1`: float32, zero where nothing is written."""
        return self._delta(h, stop, *self._operands(h, stop))

    def changed(self, h: State, stop: int) -> State:
        """The states after an operator that does not add."""
        return self._changed(h, stop, *self._operands(h, stop))

    def _operands(self, h: State, stop: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Vectors `(rows, hidden)`, strengths `(rows, 1 or tokens)`, and the masks `(rows, tokens)` of what a forward
        writes and of what of that is new.
        """
        start, copies = stop - h.shape[1], len(h) // len(self.prompt)  # beams and return sequences repeat each row

        def repeated(per_row: Tensor) -> Tensor:
            return per_row.to(h.device).repeat_interleave(copies, 0)

        unused = self.rule.operator.uses == "nothing"
        vectors = h.new_zeros(len(h), h.shape[2]).float() if unused else repeated(self._resolved(h.device))
        mask = repeated(self._mask(start, stop, h.device))
        ones = torch.ones(len(self.prompt), device=h.device)
        strength = repeated(ones if self.strengths is None else self.strengths)[:, None]
        timed = self.rule.first is not None or self.rule.decay != 1
        last = None if self.whole_prompts else self.last
        last = torch.full((len(self.prompt),), self.prompt.shape[1] - 1) if last is None else last
        steps = torch.arange(start, stop, device=h.device) - repeated(last)[:, None] - 1 if timed else None
        if steps is not None and self.rule.first is not None:
            mask = mask & (steps < self.rule.first)
        factors = self.rule.factors(h, steps)
        if factors is not None:
            strength, mask = strength * factors, mask & (factors != 0)
        counted = mask.clone()
        counted[:, : max(self._counted - start, 0)] = False
        self._counted = max(self._counted, stop)
        return vectors, strength, mask, counted

    def row(self, number: int, start: int, stop: int) -> Edit:
        """The edit of one row without its padding, for an engine that runs each row by itself.

        Args:
            number: which row.
            start: column at which the row begins; it becomes column 0.
            stop: the column after its last.
        """
        one = slice(number, number + 1)
        of_rows = (self.vectors, self.row_mask, self.strengths)
        vectors, row_mask, strengths = (given if given is None else given[one] for given in of_rows)
        return replace(
            self, vectors=vectors, prompt=self.prompt[one, start:stop], row_mask=row_mask, strengths=strengths,
            last=None if self.last is None else self.last[one] - start, stats=EditStats(),
            vector_fn=self.vector_fn if self.read_site is None else None,  # with a read_site the vectors are known
        )  # fmt: skip

    def _call_vector_fn(self, h: State, copies: int) -> Tensor:  # of a shape that is checked by `_compute_vectors`
        assert self.vector_fn is not None and self.last is not None
        last = self.last.to(h.device).repeat_interleave(copies)
        found = self.vector_fn(h[torch.arange(len(h), device=h.device), last].float())
        rows = torch.ones(len(self.prompt)) if self.row_mask is None else self.row_mask
        used = rows.to(h.device).repeat_interleave(copies, 0).bool()
        if self.rule.operator.uses == "direction" and bool((used & ~found.any(-1)).any()):
            raise SteeringError("a vector_fn returned a vector of length zero, whose direction an operator uses")
        return found

    def _compute_vectors(self, h: State, copies: int) -> None:
        if h.shape[1] < self.prompt.shape[1]:
            raise SteeringError(
                f"a method reads the last prompt token, but a forward has {h.shape[1]} of {self.prompt.shape[1]} "
                "columns: leave prefill_chunk_size out, or read the unsteered prompt (AlphaSteer: gates='frozen')"
            )
        found = self._call_vector_fn(h, copies)
        if found.shape != (len(h), h.shape[2]):
            raise SteeringError(f"a vector_fn returned {tuple(found.shape)} for {len(h)} rows of width {h.shape[2]}")
        if copies == 1 or self.vectors is None:
            self.vectors = found[::copies]  # kept for the decoding steps

    def _resolved(self, device: torch.device) -> Float[Tensor, "batch hidden"]:
        if self.vectors is None:
            raise SteeringError(
                "a vector_fn has no vectors yet: a decoding step came before any prompt"
                if self.read_site is None
                else f"the state at {self.read_site} was not read beforehand: only remote engines do that"
            )
        self.vectors = self.vectors.to(device)
        return self.vectors

    def _mask(self, start: int, stop: int, device: torch.device) -> Bool[Tensor, "batch tokens"]:
        self.prompt = self.prompt.to(device)
        width = self.prompt.shape[1]
        known = self.prompt[:, start : min(stop, width)]
        new = torch.full((len(known), max(stop - max(start, width), 0)), self.generated, device=device)
        if self.row_mask is not None:
            new = new & self.row_mask.to(device)[:, None]
        return torch.cat([known, new], 1)


@dataclass
class ImageEdit(_Change):
    """A change of every patch of each row's images.

    Attributes:
        vectors: `(batch, hidden)` float32, zero in rows that are not changed and where the operator uses none.
        units: tiles or patches of each row.
        strengths: `(batch,)`, alpha times gate; None means 1.
        row_mask: `(batch,)`, the rows whose images are changed; None means all.
        rule: what is done with vector and strength.
        stats: what the edit did.
    """

    vectors: Float[Tensor, "batch hidden"]
    units: tuple[int, ...]
    strengths: Float[Tensor, " batch"] | None = None
    row_mask: Bool[Tensor, " batch"] | None = None
    rule: EditRule = field(default_factory=EditRule)
    stats: EditStats = field(default_factory=EditStats)

    def read(self, h: State, stop: int) -> None:
        """Nothing: no vector is computed from an image."""

    def delta(self, h: State, stop: int) -> Tensor:
        """What to add to `h`, `(units, patches, hidden)`, in float32."""
        return self._delta(h, None, *self._operands(h))

    def changed(self, h: State, stop: int) -> State:
        """The states after an operator that does not add."""
        return self._changed(h, None, *self._operands(h))

    def _operands(self, h: State) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        counts = torch.tensor(entries_per_row(self.units, len(h)), device=h.device)
        n = len(self.units)
        rows = torch.ones(n, dtype=torch.bool) if self.row_mask is None else self.row_mask
        strengths = torch.ones(n) if self.strengths is None else self.strengths
        vectors, strength, mask = (
            each.to(h.device).repeat_interleave(counts, 0) for each in (self.vectors, strengths[:, None], rows[:, None])
        )
        factors, mask = self.rule.factors(h, None), mask.expand(h.shape[:2])
        if factors is not None:
            strength, mask = strength * factors, mask & (factors != 0)
        return vectors, strength, mask, mask


SiteEdits = Mapping[Site, Sequence[Edit | ImageEdit]]


def apply_edits(edits: Sequence[Edit | ImageEdit], h: Tensor, stop: int) -> Tensor:
    """The state with every edit of its site applied, in their order.

    Edits that add vectors and follow each other commute: each sees the state before any of them, the sum is formed in
    float32 and cast once to the state's dtype. Any other operator sees the state that those before it gave. A
    `vector_fn` reads the state before all edits.

    Args:
        edits: the edits of this site.
        h: `(rows, tokens, hidden)`; in the vision tower and the projector, the patches of all images.
        stop: the absolute column after the last of `h`.

    Raises:
        SteeringError: the rows of `h` are not a multiple of the rows of an edit.
    """
    states = h if h.ndim == 3 else h[:, None]
    if isinstance(edits[0], Edit):
        n = len(edits[0].prompt)
        if len(h) % n:
            raise SteeringError(f"a forward of {len(h)} rows can't be matched to edits of {n} rows")
    live = [one for one in edits if isinstance(one, ImageEdit) or one.affects(stop - h.shape[1], stop)]
    if not live:
        return h
    for edit in live:
        edit.read(states, stop)
    for adds, group in groupby(live, lambda edit: edit.rule.adds):
        if adds:
            deltas = [edit.delta(states, stop) for edit in group]
            states = states + sum(deltas[1:], deltas[0]).to(h.dtype)
        else:
            for edit in group:
                states = edit.changed(states, stop)
    return states.reshape(h.shape)


def check_edits(edits: SiteEdits, hidden_size: int | None) -> None:
    """Refuse vectors of another width (where it is known) or that are not finite, before any forward.

    Raises:
        SteeringError: names the site.
    """
    for site, vectors in ((site, edit.vectors) for site, found in edits.items() for edit in found):
        if vectors is None:
            continue
        if hidden_size is not None and vectors.shape[-1] != hidden_size:
            wide = f"whose states are {hidden_size} wide: fit it on this model"
            raise SteeringError(f"a vector of width {vectors.shape[-1]} can't be added at layer {site}, {wide}")
        if not bool(torch.isfinite(vectors).all()):
            raise SteeringError(f"a vector for layer {site} holds NaN or infinity")
