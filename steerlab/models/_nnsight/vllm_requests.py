"""From a padded batch and Hugging Face's options to vLLM's requests, one per row, and from their answers back."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import GenerationConfig

from steerlab.errors import LayoutError, RemoteError, SteeringError
from steerlab.models._nnsight.traces import Visit, make_visits
from steerlab.models._nnsight.vllm_traces import Answer, RowRequest
from steerlab.models.engine import Inputs, StateSelector, identity
from steerlab.models.interventions import Edit, ImageEdit, SiteEdits
from steerlab.models.layout import Layout
from steerlab.models.sites import Site

# Hugging Face's values where neither the caller nor the model sets any
DEFAULTS = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
_SUPPORTED = {
    *DEFAULTS, "max_new_tokens", "min_new_tokens", "num_return_sequences", "do_sample", "eos_token_id", "pad_token_id",
}  # fmt: skip
_IGNORED = {
    "bos_token_id", "max_length", "use_cache", "cache_implementation", "transformers_version", "_from_model_config",
}  # fmt: skip


@runtime_checkable
class PerRowSelector(Protocol):
    """A selection that can be made from one row at a time, as that of `capture`."""

    def row(self, number: int, start: int) -> tuple[StateSelector, Tensor]:
        """The selection from one row by itself, and the places of its results among those of all rows."""


def vllm_visits(
    root: Any, layout: Layout, edits: SiteEdits, sites: Sequence[Site], select: StateSelector
) -> list[Visit]:
    """The visits of one forward at the paths of vLLM's modules.

    A block's input is the output of the block before it; only the first block has an input of its own.

    Raises:
        LayoutError: vLLM has no such module.
    """
    visits = make_visits(layout, edits, sites, select)
    for i, visit in enumerate(visits):
        site = visit.site
        if site.part != "text":
            raise LayoutError(f"{site} is in the {site.part}: vLLM gives access to the text only")
        if site.point == "block_in" and site.layer > 0:
            visits[i] = replace(visit, path=f"{layout.blocks_path}.{site.layer - 1}", is_input=False)
        check_path(root, visits[i].path, site)
    return visits


def check_path(root: Any, path: str, what: object) -> str:
    """A path of Hugging Face's model, if vLLM's model has it too."""
    try:
        root.get(path)
        return path
    except AttributeError as error:
        raise LayoutError(
            f"vLLM's {type(root._module).__name__} has no {path!r} for {what}. vLLM supports block_out and block_in of "
            "every layer of models whose blocks have Hugging Face's names; for other sites load the model without "
            "engine= and serve="
        ) from error


def make_requests(
    inputs: Inputs, visits: Sequence[Visit], run: Callable[..., None], embedding: str, params: dict[str, Any]
) -> list[RowRequest]:
    """One request for every row of a padded batch.

    Args:
        inputs: the batch.
        visits: the sites to edit and read, for the whole batch.
        run: what each request computes.
        embedding: path of the module that receives the token ids.
        params: vLLM's sampling parameters.

    Raises:
        LayoutError: inputs other than tokens, or padding inside a row.
    """
    if extra := set(inputs) - {"input_ids", "attention_mask", "position_ids"}:
        raise LayoutError(f"vLLM takes token ids only, not {', '.join(sorted(extra))}")
    requests = []
    for number, (ids, mask) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"], strict=True)):
        start, length = int(mask.argmax()), int(mask.sum())
        if not bool(mask[start : start + length].all()):
            raise LayoutError(f"row {number} has padding between its tokens")
        row_visits, row_edits, places = [], list[tuple[int, Edit]](), itertools.count()
        for visit in visits:
            numbered = [(next(places), _row_edit(edit, number, start, start + length)) for edit in visit.edits]
            kept = [(place, edit) for place, edit in numbered if not edit.is_noop]
            if kept or visit.select:
                select = visit.select and _select_row(visit.select, number, start)
                row_visits.append(replace(visit, edits=[edit for _, edit in kept], select=select))
            row_edits += kept
        tokens = ids[start : start + length].tolist()
        requests.append(RowRequest(number, tokens, start, row_visits, row_edits, run, embedding, params))
    return requests


def _row_edit(edit: Edit | ImageEdit, number: int, start: int, end: int) -> Edit:
    assert isinstance(edit, Edit)  # `vllm_visits` refuses sites outside the text
    return edit.row(number, start, end)


def _select_row(select: StateSelector, number: int, start: int) -> StateSelector:
    return select.row(number, start)[0] if isinstance(select, PerRowSelector) else identity


def check_answers(answers: Sequence[Answer], rows: Sequence[RowRequest]) -> None:
    """Compare the row number and the tokens of every answer with those of its request.

    Raises:
        RemoteError: an answer belongs to another request.
    """
    if len(answers) != len(rows):
        raise RemoteError(f"{len(rows)} requests were sent to vLLM and {len(answers)} answers came back", "execution")
    for row, answer in zip(rows, answers, strict=True):
        ids, number = answer.get("ids", []), answer.get("number")
        if number != row.number or ids != row.ids or "stats" not in answer:
            n_same = sum(a == b for a, b in zip(ids, row.ids, strict=False))
            raise RemoteError(
                f"the answer to row {row.number} is that of row {number}, with {len(ids)} tokens of which {n_same} are "
                f"the row's own {len(row.ids)}: requests were mixed up or cut short, and no number of this call can be "
                "trusted",
                "execution",
            )


def copy_stats(visits: Sequence[Visit], answers: Sequence[Answer], rows: Sequence[RowRequest]) -> None:
    """Set the statistics of the batch's edits, one entry for every request; columns are those of the batch."""
    for place, edit in enumerate(edit for visit in visits for edit in visit.edits):
        totals = [answer["stats"].get(place, (0, 0.0)) for answer in answers]
        edit.stats.writes, edit.stats.ratio = (torch.tensor(column) for column in zip(*totals, strict=True))
        edit.stats.columns = None
        for answer, row in zip(answers, rows, strict=True):
            if (columns := answer["columns"].get(place)) is not None:
                edit.stats.add_columns(columns.cpu(), row.offset)


def join_reduced(reduced: Sequence[Any]) -> Any:
    """Reductions of single rows as that of their batch: tensors, or dicts of tensors."""
    if isinstance(reduced[0], dict):
        return {name: torch.cat([row[name] for row in reduced]) for name in reduced[0]}
    return torch.cat(list(reduced))


def join_states(states: Sequence[Tensor], rows: Sequence[RowRequest], select: StateSelector, width: int) -> Tensor:
    """`select` of every visit, `(row, visit, hidden)`, from what each row selected, or from whole rows padded again."""
    if isinstance(select, PerRowSelector):
        places = torch.cat([select.row(row.number, row.offset)[1] for row in rows])
        return torch.cat(list(states))[places.argsort()]
    padded = states[0].new_zeros(len(rows), states[0].shape[1], width, states[0].shape[-1])
    for i, (row, found) in enumerate(zip(rows, states, strict=True)):
        padded[i, :, row.offset : row.offset + len(row.ids)] = found[0]
    return torch.stack([select(h) for h in padded.unbind(1)], 1)


def sampling_params(options: dict[str, Any], config: GenerationConfig) -> tuple[dict[str, Any], int, int]:
    """vLLM's sampling parameters, the number of texts per row, and the id to pad with.

    Example:
        >>> sampling_params({"max_new_tokens": 8, "do_sample": True, "top_k": 0}, GenerationConfig(eos_token_id=2))

    Args:
        options: of `generate`; None stands for the model's value.
        config: the model's generation settings.

    Raises:
        SteeringError: an option that vLLM does not have, or no `max_new_tokens`.
    """
    config = options.get("generation_config") or config
    given = {name: value for name, value in config.to_diff_dict().items() if value is not None}
    given |= {name: value for name, value in options.items() if value is not None and name != "generation_config"}
    _refuse_unsupported(given)
    if not given.get("max_new_tokens"):
        raise SteeringError("vLLM needs a limit on the length of a text: give max_new_tokens")
    do_sample, copies = bool(given.get("do_sample")), given.get("num_return_sequences", 1)
    if copies > 1 and not do_sample:
        raise SteeringError(f"num_return_sequences={copies} without do_sample=True would give the same text each time")
    params = {name: given.get(name, default) for name, default in DEFAULTS.items()}
    if not do_sample:
        params |= {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    eos = token_ids(given.get("eos_token_id"))
    # the stop tokens are those of the caller or the model, not those that vLLM would look up itself
    params |= {"max_tokens": given["max_new_tokens"], "stop_token_ids": eos, "ignore_eos": True, "detokenize": False}
    if eos and given.get("min_new_tokens"):
        params["min_tokens"] = min(given["min_new_tokens"], given["max_new_tokens"])
    return params, copies, int(given.get("pad_token_id", eos[0] if eos else 0))


def _refuse_unsupported(given: dict[str, Any]) -> None:
    """Refuse options that vLLM lacks, unless their value has no effect."""
    usual = GenerationConfig._get_default_generation_params()
    known = _SUPPORTED | _IGNORED
    if bad := sorted(n for n, v in given.items() if n not in known and v is not False and v != usual.get(n)):
        listed = ", ".join(f"{name}={given[name]!r}" for name in bad)
        raise SteeringError(
            f"vLLM does not support {listed}: leave it out, or load the model without engine= and serve=. "
            f"Supported: {', '.join(sorted(_SUPPORTED))}"
        )


def token_ids(ids: Any) -> list[int]:
    """Token ids as a list, from none, one, several or a tensor."""
    return [] if ids is None else [int(i) for i in torch.as_tensor(ids).flatten().tolist()]


def draw_seeds(n: int) -> list[int]:
    """A seed for each request, from torch's random state: the same state gives the same texts."""
    return [int(seed) for seed in torch.randint(2**31, (n,)).tolist()]
