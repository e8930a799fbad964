"""What runs inside vLLM's worker process for one request.

Facts about vLLM and nnsight 0.8 that shape these functions (tests in `tests/vllm`):

- The states of a request are flat, `(tokens, hidden)`: the whole prompt first, then one token at a time, or the whole
  sequence again after the request was preempted. The column after the last is always the prompt's length plus the step.
- A block outputs `(hidden, residual)`, whose sum is the residual stream; the next norm adds them. An edited stream is
  written as the residual, with a hidden part of zero, so that the sum is exact.
- `nnsight-serve` pickles the names of a trace again, which takes a second where functions of steerlab are among them:
  a request is sent as bytes, and modules as paths.
- Values are views of buffers that kernels overwrite: whatever is kept must be a copy.
- A loop over all steps ends with `OutOfOrderError` when the request is over, and nothing that is saved after the loop
  is returned: all results go into one dict that was saved before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from nnsight.intervention.interleaver import OutOfOrderError
from nnsight.intervention.iterator import Iterations
from torch import Tensor

from steerlab.errors import LayoutError
from steerlab.models._nnsight.traces import Visit
from steerlab.models.engine import LogitsReducer
from steerlab.models.interventions import Edit, apply_edits

Answer = dict[str, Any]


@dataclass(frozen=True)
class RowRequest:
    """One request: a row of the batch without its padding.

    Attributes:
        number: the row's place in the batch.
        ids: its tokens.
        offset: the column of the batch in which it begins.
        visits: the sites to edit and read, in the order of the forward; their edits are those of this row alone.
        edits: all edits of the row, each with its place among the edits of the batch.
        run: what to compute: one of the functions below, with its parameters.
        embedding: path of the module that receives the token ids.
        params: vLLM's sampling parameters.
    """

    number: int
    ids: list[int]
    offset: int
    visits: Sequence[Visit]
    edits: Sequence[tuple[int, Edit]]
    run: Callable[[Any, RowRequest, Answer], None]
    embedding: str
    params: dict[str, Any] = field(default_factory=dict)


def run_request(root: Any, row: RowRequest, answer: Answer) -> None:
    """Put everything that a request computes into `answer`, with the row's number, so that no mix-up goes unnoticed."""
    answer["number"] = row.number
    row.run(root, row, answer)
    answer["stats"] = {place: edit.stats.totals() for place, edit in row.edits}
    answer["columns"] = {place: edit.stats.columns for place, edit in row.edits if edit.stats.columns is not None}


def capture_states(root: Any, row: RowRequest, answer: Answer) -> None:
    """What each visit selects, `(selected, visit, ...)`."""
    states = _forward(root, row, answer)
    answer["states"] = torch.stack([h.to(states[0].device) for h in states], 1).cpu()


def logits(
    root: Any, row: RowRequest, answer: Answer, columns: Sequence[int], places: Sequence[int], width: int,
    norm: str | None, reduce: LogitsReducer,
) -> None:  # fmt: skip
    """`reduce` of the logits of some tokens, padded to `(1, width, vocabulary)`.

    vLLM computes logits of the last token only. Those of other tokens are its head applied to its final norm.

    Args:
        columns: the tokens.
        places: where their logits go in the padded tensor.
        width: of the padded tensor.
        norm: path of the final norm; None where only the last token is wanted.
        reduce: of the padded logits.

    Raises:
        LayoutError: the head of this model does not give vLLM's own logits of the last token.
    """
    _forward(root, row, answer)
    if norm is None:
        found = root.logits
    else:
        normed = _parts(root.get(norm).output)[0]
        indices = torch.tensor([*columns, len(row.ids) - 1], device=normed.device)
        found = _untraced(root, root._module.compute_logits, normed.reshape(-1, normed.shape[-1])[indices])
        if not _close(found[-1:], root.logits):
            raise LayoutError(
                "the logits of this model are not its head applied to its final norm: vLLM gives logits of the last "
                "token only, so next_token_logits and generate work, score and sweep do not"
            )
        found = found[:-1]  # in the order of the forward: the norm comes before vLLM's own logits
    padded = found.new_zeros(1, width, found.shape[-1])
    padded[0, list(places)] = found
    reduced = reduce(padded)
    answer["reduced"] = {k: v.cpu() for k, v in reduced.items()} if isinstance(reduced, dict) else reduced.cpu()


def generate(root: Any, row: RowRequest, answer: Answer) -> None:
    """The ids of the new tokens; edits are applied at every step."""
    drawn: list[Tensor] = []
    try:
        for step in Iterations()[:]:
            _forward(root, row, answer, step)
            drawn.append(root.samples.clone())
    except OutOfOrderError:  # how a loop over all steps ends
        answer["tokens"] = torch.cat(drawn).flatten().tolist() if drawn else []


def describe_model(root: Any, row: RowRequest, answer: Answer) -> None:
    """The name and the configuration of the model; uses none of its modules, so any model can be asked."""
    config = root._module.config
    answer["config"], answer["name"] = config.to_dict(), str(getattr(config, "_name_or_path", ""))


def check_model(root: Any, row: RowRequest, answer: Answer, norm: str) -> None:
    """Describe the model, and compare the logits of the last block's state, as it is read here, with vLLM's own."""
    (stream,) = _forward(root, row, answer)
    normed = _parts(_untraced(root, root.get(norm)._module, stream.reshape(-1, stream.shape[-1])))[0]
    ours, theirs = _untraced(root, root._module.compute_logits, normed[-1:]), root.logits
    answer["difference"] = float((ours.float() - theirs.float()).abs().max())
    answer["same_logits"] = _close(ours, theirs)
    describe_model(root, row, answer)


def _untraced(root: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function that runs modules, without the trace taking this for the forward, as nnsight's envoys do."""
    before, root.interleaver.interleaving = root.interleaver.interleaving, False
    try:
        return function(*arguments)
    finally:
        root.interleaver.interleaving = before


def _forward(root: Any, row: RowRequest, answer: Answer, step: int = 0) -> list[Tensor]:
    """The selected states of one forward; at the first step also the ids that the model received."""
    if step == 0:
        answer["ids"] = root.get(row.embedding).input.flatten().tolist()
    states = [_pass(root, visit, len(row.ids) + step) for visit in row.visits]
    return [h for h in states if h is not None]


def _pass(root: Any, visit: Visit, end: int) -> Tensor | None:
    """Edit and read the state at one visit; `end` is the column after the last."""
    parts = _input_parts(root, visit) if visit.is_input else _parts(root.get(visit.path).output)
    if not 1 <= len(parts) <= 2 or any(part.shape != parts[0].shape for part in parts):
        raise LayoutError(f"vLLM gives {[tuple(part.shape) for part in parts]} at {visit.site}, which is no state")
    stream = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    h = stream if stream.ndim == 3 else stream[None]
    if visit.edits and (edited := apply_edits(visit.edits, h, end)) is not h:
        parts[-1].copy_(edited.reshape(stream.shape))
        if len(parts) == 2:
            parts[0].zero_()
        h = edited
    return None if visit.select is None else visit.select(h).clone()


def _parts(value: Any) -> list[Tensor]:
    """The tensors that add up to the state: one, or hidden and residual."""
    return [value] if isinstance(value, Tensor) else [part for part in value if isinstance(part, Tensor)]


def _input_parts(root: Any, visit: Visit) -> list[Tensor]:
    """The state among the inputs of a block, which include position ids, or of an attention's output projection."""
    module = root.get(visit.path)
    args, kwargs = module.inputs
    tensors = [part for part in (*args, *kwargs.values()) if isinstance(part, Tensor) and part.is_floating_point()]
    if len(tensors) != 1:
        raise LayoutError(f"vLLM gives {visit.path} {len(tensors)} tensors: which is the state at {visit.site}?")
    if (width := tensors[0].shape[-1]) != getattr(module._module, "input_size", width):
        raise LayoutError(f"vLLM has split {visit.site} over devices: only {width} numbers of each token are here")
    return tensors


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether logits agree as far as kernels and low precision allow."""
    return torch.allclose(a.float(), b.float(), rtol=0, atol=0.02 * float(b.float().abs().max()))
