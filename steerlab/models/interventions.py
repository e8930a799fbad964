"""The edits of one forward: which vector is added to which row, at which site, on which columns.

Every engine applies the same edits: it calls `apply_edits` on the state at a site and puts the result back. Columns are
absolute places in the padded sequence. The first column of a forward follows from the length of the attention mask, so
cached decoding, recomputation without a cache and chunked prefill are one case; that a forward has one token means
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steerlab.errors import SteeringError
from steerlab.models.patches import entries_per_row
from steerlab.models.sites import Site
from steerlab.models.versions import given_cache

State = Float[Tensor, "rows tokens hidden"]
VectorFn = Callable[[Float[Tensor, "batch hidden"]], Float[Tensor, "batch hidden"]]


@dataclass
class EditStats:
    """What an edit did, per row: the number of states written, and the sum of ‖delta‖/‖h‖ over them.

    Both stay on the device until they are read.
    """

    writes: Tensor | None = None
    ratio: Tensor | None = None

    def add(self, vectors: Float[Tensor, "rows hidden"], h: State, mask: Bool[Tensor, "rows tokens"]) -> None:
        """Count the states in `mask`, to each of which the vector of its row is added."""
        norms = h.detach().float().norm(dim=-1).clamp_min(1e-12)
        ratio = torch.where(mask, vectors.float().norm(dim=-1)[:, None] / norms, 0.0).sum(1)
        written = mask.sum(1)
        self.ratio = ratio if self.ratio is None else self.ratio + ratio
        self.writes = written if self.writes is None else self.writes + written

    def rows(self) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
        """States written and sum of norm ratios, per row of the forward."""
        if self.writes is None or self.ratio is None:
            return torch.zeros(0, dtype=torch.long), torch.zeros(0)
        return self.writes, self.ratio

    def totals(self) -> tuple[int, float]:
        """States written and sum of norm ratios, over all rows."""
        writes, ratio = self.rows()
        return int(writes.sum()), float(ratio.sum())


@dataclass
class Edit:
    """One addition to the state at one site.

    Attributes:
        vectors: `(batch, hidden)` float32, with alpha and gate multiplied in.
        prompt: `(batch, width)`, the columns of the encoded batch to write to.
        generated: whether columns beyond the encoded batch are written to as well.
        vector_fn: computes the vectors from the state of this site at column `last`, where `vectors` is None.
        last: `(batch,)` column of the last prompt token, for `vector_fn`.
        row_mask: `(batch,)`, rows whose generated tokens are steered; None means all.
        stats: what the edit did.
        read_site: `vector_fn` takes the state of the unsteered prompt at this site instead, once, before the run.
    """

    vectors: Float[Tensor, "batch hidden"] | None
    prompt: Bool[Tensor, "batch width"]
    generated: bool
    vector_fn: VectorFn | None = None
    last: Int[Tensor, " batch"] | None = None
    row_mask: Bool[Tensor, " batch"] | None = None
    stats: EditStats = field(default_factory=EditStats)
    read_site: Site | None = None

    def __post_init__(self) -> None:
        self._any_prompt = bool(self.prompt.any())

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

    def delta(self, h: State, stop: int) -> Float[Tensor, "rows tokens hidden"]:
        """What to add to `h`, whose last column is `stop - 1`: float32, zero where nothing is written."""
        start = stop - h.shape[1]
        copies = h.shape[0] // self.prompt.shape[0]  # beams and return sequences repeat each row
        if self._computed_in_forward and start == 0:
            self._compute_vectors(h, copies)
        vectors = self._resolved(h.device).repeat_interleave(copies, 0)
        mask = self._mask(start, stop, h.device).repeat_interleave(copies, 0)
        self.stats.add(vectors, h, mask)
        return torch.where(mask[:, :, None], vectors[:, None, :], 0.0)

    def row(self, number: int, start: int, stop: int) -> Edit:
        """The edit of one row without its padding, for an engine that runs each row by itself.

        Args:
            number: which row.
            start: column at which the row begins; it becomes column 0.
            stop: the column after its last.
        """
        one = slice(number, number + 1)
        # not annotated: the source is sent to servers, which may not have the packages that annotations name
        local = self.vector_fn if self.read_site is None else None  # with a read_site the vectors are known by now
        function = local and partial(_of_one, function=local, number=number, rows=len(self.prompt))
        return Edit(
            None if self.vectors is None else self.vectors[one],
            self.prompt[one, start:stop],
            self.generated,
            function,
            None if self.last is None else self.last[one] - start,
            None if self.row_mask is None else self.row_mask[one],
            read_site=self.read_site,
        )

    def _call_vector_fn(self, h: State, copies: int) -> Tensor:  # of a shape that is checked by `_compute_vectors`
        assert self.vector_fn is not None and self.last is not None
        last = self.last.to(h.device).repeat_interleave(copies)
        return self.vector_fn(h[torch.arange(len(h), device=h.device), last].float())

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
class ImageEdit:
    """One addition to every patch of each row's images.

    Attributes:
        vectors: `(batch, hidden)` float32, with alpha and gate multiplied in.
        units: tiles or patches of each row.
        stats: what the edit did.
    """

    vectors: Float[Tensor, "batch hidden"]
    units: tuple[int, ...]
    stats: EditStats = field(default_factory=EditStats)

    def delta(self, h: Float[Tensor, "units patches hidden"]) -> Float[Tensor, "units 1 hidden"]:
        """What to add to `h`, in float32."""
        counts = torch.tensor(entries_per_row(self.units, len(h)), device=h.device)
        vectors = self.vectors.to(h.device).repeat_interleave(counts, 0)
        self.stats.add(vectors, h, torch.ones(h.shape[:2], dtype=torch.bool, device=h.device))
        return vectors[:, None]


SiteEdits = Mapping[Site, Sequence[Edit | ImageEdit]]


def apply_edits(edits: Sequence[Edit | ImageEdit], h: Tensor, stop: int) -> Tensor:
    """The state with every edit of its site added.

    Edits of one site add up: each sees the state before any of them, the sum is formed in float32 and cast once to the
    state's dtype.

    Args:
        edits: the edits of this site.
        h: `(rows, tokens, hidden)`; in the vision tower and the projector, the patches of all images.
        stop: the absolute column after the last of `h`.

    Raises:
        SteeringError: the rows of `h` are not a multiple of the rows of an edit.
    """
    image_edits = [edit for edit in edits if isinstance(edit, ImageEdit)]
    if image_edits:
        patches = h if h.ndim == 3 else h[:, None]
        return (patches + _sum([edit.delta(patches) for edit in image_edits]).to(h.dtype)).reshape(h.shape)
    text_edits = [edit for edit in edits if isinstance(edit, Edit)]
    n = len(text_edits[0].prompt)
    if len(h) % n:
        raise SteeringError(f"a forward of {len(h)} rows can't be matched to edits of {n} rows")
    deltas = [edit.delta(h, stop) for edit in text_edits if edit.affects(stop - h.shape[1], stop)]
    return h + _sum(deltas).to(h.dtype) if deltas else h


def last_column(kwargs: Mapping[str, Any], seen: int = 0) -> int:
    """The absolute column after the last one of a forward, from the keyword arguments of the model's root.

    The attention mask covers everything so far. `generate` omits it where no row is padded; then the cache tells how
    many columns came before.

    Args:
        kwargs: of the forward.
        seen: the result for the forward before this one, in the same run; 0 for the first.

    Raises:
        SteeringError: the columns can't be told: there are neither token ids nor embeddings, or neither mask nor cache
            says how many columns came before.
    """
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return mask.shape[-1]
    given, cache = given_tokens(kwargs), given_cache(kwargs)
    counted = 0 if cache is None else int(cache.get_seq_length())
    end = int(given.shape[1]) + counted
    if end <= seen or (cache is None and not seen and end == 1):
        what = "neither an attention mask nor a cache" if cache is None else "a cache that does not count its columns"
        raise SteeringError(
            f"a forward of {given.shape[1]} tokens has {what}: which columns these are is unknown. "
            "Give use_cache=False, so that every step runs whole rows"
        )
    return end


def given_tokens(kwargs: Mapping[str, Any]) -> Tensor:
    """The token ids, or the embeddings, that a forward is given: `(rows, tokens)` or `(rows, tokens, hidden)`.

    Raises:
        SteeringError: there are neither.
    """
    for name in ("input_ids", "inputs_embeds"):
        found = kwargs.get(name)
        if isinstance(found, Tensor):
            return found
    raise SteeringError("a forward with neither token ids nor embeddings: its columns are unknown")


def main_output(output: Any) -> Any:
    """The state among what a module gives: the output itself, or the first of a tuple or list."""
    return output[0] if isinstance(output, tuple | list) else output


def with_main_output(output: Any, h: Tensor) -> Any:
    """What a module gives, with another state; named tuples and lists stay what they are."""
    if hasattr(output, "_replace"):
        return output._replace(**{output._fields[0]: h})
    return type(output)((h, *output[1:])) if isinstance(output, tuple | list) else h


def with_rows(h: Tensor, rows: int) -> Tensor:
    """The states of a forward as `(rows, tokens, hidden)`: some modules flatten rows and tokens."""
    return h if h.ndim == 3 else h.reshape(rows, -1, h.shape[-1])


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


def _of_one(
    h: Float[Tensor, "1 hidden"], function: Callable[[Tensor], Tensor], number: int, rows: int
) -> Float[Tensor, "1 hidden"]:
    """A function of all rows (each with its strength bound to it), evaluated for one row."""
    return function(h.expand(rows, -1))[number : number + 1]


def _sum(deltas: Sequence[Tensor]) -> Tensor:
    return sum(deltas[1:], deltas[0])
