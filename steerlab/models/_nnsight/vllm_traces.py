"""What runs inside vLLM, for one request: the functions here are called in its worker process.

Facts about vLLM and nnsight 0.8 that shape them (tests in `tests/vllm`):

- A request's states are flat, `(tokens, hidden)`: a whole prompt first, then a token at a time, or the whole sequence
  again after the request was put aside. The column after the last is always the prompt's length plus the step.
- A block hands on `(hidden, residual)`, whose sum is the residual stream; the next norm adds them. A new stream is
  written as the residual with a hidden part of zero, so that it is handed on to the last bit.
- A trace's own names are pickled again by `nnsight-serve`, which takes a second where functions of ours are among them:
  a row goes as bytes, and modules by their paths.
- What is served is a view of buffers that kernels write over: whatever is kept has to be a copy.
- An open loop over steps ends with `OutOfOrderError` when the request is over; nothing that is saved after the loop
  would come back, so everything goes into one dict that was saved before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from nnsight.intervention.interleaver import OutOfOrderError
from nnsight.intervention.iterator import Iterations
from torch import Tensor

from steerlab._support.errors import LayoutError
from steerlab.models.engine import LogitsReducer, identity
from steerlab.models.interventions import Edit, apply_edits

Answer = dict[str, Any]


@dataclass(frozen=True)
class Stop:
    """One stop of a request on its way through the model.

    Attributes:
        path: of the module whose output, or whose input, is met there.
        is_input: whether it is the input.
        edits: what to write, for this request alone.
        select: what to read of `(1, tokens, hidden)`; None: nothing.
        name: of the site, for messages.
    """

    path: str
    is_input: bool
    edits: Sequence[Edit]
    select: Callable[[Tensor], Tensor] | None
    name: str


@dataclass(frozen=True)
class Row:
    """One request: a row of the batch without its padding.

    Attributes:
        number: its place in the batch.
        ids: its tokens.
        offset: the column of the batch in which it begins.
        stops: in the order in which a forward passes them.
        edits: all edits of the request, with their places in the plan.
        do: what to carry out, one of the functions below.
        embedding: path of the module that is given the token ids.
        norm: path of the module between the last block and the head, where `do` needs it.
        wanted: columns of the row whose logits are asked for.
        places, width: where these are among all columns that are asked of the batch, and how many those are.
        reduce: what of the logits, `(1, width, vocabulary)`, is to come back.
        params: vLLM's sampling parameters.
    """

    number: int
    ids: list[int]
    offset: int
    stops: Sequence[Stop]
    edits: Sequence[tuple[int, Edit]]
    do: Callable[[Any, Row, Answer], None]
    embedding: str
    norm: str = ""
    wanted: Sequence[int] = ()
    places: Sequence[int] = ()
    width: int = 0
    reduce: LogitsReducer = identity
    params: dict[str, Any] = field(default_factory=dict)


def carry_out(root: Any, row: Row, answer: Answer) -> None:
    """Everything that a request asks for, into `answer`: whose it is comes along, so that no mix-up can go unseen."""
    answer["number"] = row.number
    row.do(root, row, answer)
    answer["stats"] = [(place, *edit.stats.totals()) for place, edit in row.edits]


def read(root: Any, row: Row, answer: Answer) -> None:
    """What was selected at each stop, `(selected, stop, ...)`."""
    found = _forward(root, row, answer)
    answer["found"] = torch.stack([h.to(found[0].device) for h in found], 1).cpu()


def logits(root: Any, row: Row, answer: Answer) -> None:
    """What is to be told of the logits of the tokens wanted: of the last one vLLM's own, of others those that the
    model's head makes of its final norm.

    Raises:
        LayoutError: the head does not give vLLM's own for the last token.
    """
    _forward(root, row, answer)
    last = len(row.ids) - 1
    if list(row.wanted) == [last]:
        answer["reduce"] = _told(row, root.logits)
        return
    normed = _parts(root.get(row.norm).output)[0]
    columns = torch.tensor([*row.wanted, last], device=normed.device)
    found = aside(root, root._module.compute_logits, normed.reshape(-1, normed.shape[-1])[columns])
    if not _alike(found[-1:], root.logits):
        raise LayoutError(
            "the logits of this model are not its head applied to its final norm: vLLM gives those of the last token "
            "alone, so first_logits and generate work, score and sweep do not"
        )
    answer["reduce"] = _told(row, found[:-1])


def _told(row: Row, logits: Tensor) -> Any:
    padded = logits.new_zeros(1, row.width, logits.shape[-1])
    padded[0, list(row.places)] = logits
    found = row.reduce(padded)
    return {name: part.cpu() for name, part in found.items()} if isinstance(found, dict) else found.cpu()


def generate(root: Any, row: Row, answer: Answer) -> None:
    """The new tokens' ids; written to at every step."""
    drawn: list[Tensor] = []
    try:
        for step in Iterations()[:]:
            _forward(root, row, answer, step)
            drawn.append(root.samples.clone())
    except OutOfOrderError:  # how an open loop ends
        answer["tokens"] = torch.cat(drawn).flatten().tolist() if drawn else []


def about(root: Any, row: Row, answer: Answer) -> None:
    """What model this is, and whether the last block's stream, as it is read here, is what the logits are made of."""
    (stream,) = _forward(root, row, answer)
    flat = stream.reshape(-1, stream.shape[-1])
    normed = _parts(aside(root, root.get(row.norm)._module, flat))[0]
    again = aside(root, root._module.compute_logits, normed[-1:])
    theirs = root.logits
    answer["apart"] = float((again.float() - theirs.float()).abs().max())
    answer["alike"] = _alike(again, theirs)
    answer["config"] = root._module.config.to_dict()
    answer["name"] = str(getattr(root._module.config, "_name_or_path", ""))


def named(root: Any, row: Row, answer: Answer) -> None:
    """What model this is, by name and family: no module is met, so the one asking need not know any."""
    config = root._module.config
    answer["name"], answer["type"] = str(getattr(config, "_name_or_path", "")), str(config.model_type)


def aside(root: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call something that runs modules, without the trace taking it for the forward; nnsight's envoys do the same."""
    before, root.interleaver.interleaving = root.interleaver.interleaving, False
    try:
        return function(*arguments)
    finally:
        root.interleaver.interleaving = before


def _forward(root: Any, row: Row, answer: Answer, step: int = 0) -> list[Tensor]:
    """One pass through the model: the ids that the forward really has in this request's place, then every stop."""
    if step == 0:
        answer["ids"] = root.get(row.embedding).input.flatten().tolist()
    return [h for stop in row.stops if (h := _pass(root, stop, len(row.ids) + step)) is not None]


def _pass(root: Any, stop: Stop, until: int) -> Tensor | None:
    """Write and read at one stop; `until` is the column after the last."""
    parts = _parts_in(root, stop) if stop.is_input else _parts(root.get(stop.path).output)
    if not 1 <= len(parts) <= 2 or any(part.shape != parts[0].shape for part in parts):
        raise LayoutError(f"vLLM gives {[tuple(part.shape) for part in parts]} at {stop.name}, which is no state")
    stream = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    h = stream if stream.ndim == 3 else stream[None]
    if stop.edits and (moved := apply_edits(stop.edits, h, until)) is not h:
        parts[-1].copy_(moved.reshape(stream.shape))
        if len(parts) == 2:
            parts[0].zero_()
        h = moved
    return None if stop.select is None else stop.select(h).clone()


def _parts(value: Any) -> list[Tensor]:
    """What adds up to the state: a tensor, or hidden and residual."""
    return [value] if isinstance(value, Tensor) else [part for part in value if isinstance(part, Tensor)]


def _parts_in(root: Any, stop: Stop) -> list[Tensor]:
    """The same of a block's input, where positions are given too."""
    given, named = root.get(stop.path).inputs
    tensors = [part for part in (*given, *named.values()) if isinstance(part, Tensor) and part.is_floating_point()]
    if len(tensors) != 1:
        raise LayoutError(f"vLLM gives the first block {len(tensors)} tensors: which is the state at {stop.name}?")
    return tensors


def _alike(a: Tensor, b: Tensor) -> bool:
    """Whether two ways to the same logits agree, as far as kernels and low precision let them."""
    return torch.allclose(a.float(), b.float(), rtol=0, atol=0.02 * float(b.float().abs().max()))
