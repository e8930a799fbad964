"""From a padded batch to one request per row, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from steerlab._support.errors import LayoutError, RemoteError
from steerlab.models._nnsight.vllm_traces import Answer, Row, Stop
from steerlab.models.engine import Inputs, StateSelector, block_path, point_path
from steerlab.models.interventions import Edit, SiteEdits
from steerlab.models.layout import Layout
from steerlab.models.sites import POINTS, Site


@runtime_checkable
class ByRow(Protocol):
    """A selection that can be made row by row: capture's is one."""

    def row(self, number: int, start: int) -> tuple[StateSelector, Tensor]:
        """The selection from one row by itself, and where its results go among all."""
        ...


@dataclass(frozen=True)
class Place:
    """Where a site is met in vLLM's modules."""

    path: str
    is_input: bool
    site: Site


def places(root: Any, layout: Layout, plan: SiteEdits, sites: Sequence[Site]) -> list[Place]:
    """Every site of a run, in the order in which a forward passes them.

    What goes into a block is what came out of the one before; only the first block has an input of its own.

    Raises:
        LayoutError: vLLM's modules have no such place, which names those that they have.
    """
    found = []
    for site in sorted(set(plan) | set(sites), key=_passed):
        if site.part != "text":
            raise LayoutError(f"{site} is in the {site.part}: with vLLM only the text can be looked into")
        before = site.point == "block_in" and site.layer > 0
        at = replace(site, layer=site.layer - 1, point="block_out") if before else site
        name = point_path(at, layout)
        path = f"{block_path(at, layout)}.{name}" if name else block_path(at, layout)
        found.append(Place(checked(root, path, site), at.point == "block_in", site))
    return found


def _passed(site: Site) -> tuple[int, int]:
    if site.point == "block_in" and site.layer > 0:
        return site.layer - 1, len(POINTS)
    return site.layer, POINTS.index(site.point)


def checked(root: Any, path: str, what: object) -> str:
    """A path that is known from Hugging Face's model, if vLLM's has it too."""
    try:
        root.get(path)
        return path
    except AttributeError as error:
        raise LayoutError(
            f"vLLM's {type(root._module).__name__} has no {path!r}, where {what} would be: block_out and block_in of "
            "every layer can be read and written where its blocks have Hugging Face's names; load the model here, "
            "without engine= and serve=, for everything"
        ) from error


def rows_of(
    inputs: Inputs, found: Sequence[Place], plan: SiteEdits, sites: Sequence[Site], select: StateSelector,
    do: Callable[..., None], embedding: str,
) -> list[Row]:  # fmt: skip
    """One request for every row of the batch.

    Args:
        inputs: the padded batch.
        found: where the sites are met.
        plan: what to write.
        sites: what to read.
        select: what of it; made row by row where that can be done.
        do: what every request carries out.
        embedding: path of the module that is given the token ids.

    Raises:
        LayoutError: inputs besides tokens, or a row whose tokens are not next to each other.
    """
    extra = set(inputs) - {"input_ids", "attention_mask", "position_ids"}
    if extra:
        raise LayoutError(f"with vLLM a row is its tokens; {', '.join(sorted(extra))} can't be given")
    rows = []
    for number, (ids, mask) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"], strict=True)):
        start, length = int(mask.argmax()), int(mask.sum())
        if not bool(mask[start : start + length].all()):
            raise LayoutError(f"the tokens of row {number} are not next to each other")
        edits = _edits(plan, number, start, start + length)
        own = select.row(number, start)[0] if isinstance(select, ByRow) else _whole
        stops = [
            Stop(place.path, place.is_input, written, own if place.site in sites else None, str(place.site))
            for place in found
            if (written := [edit for _, at, edit in edits if at == place.site]) or place.site in sites
        ]
        tokens = ids[start : start + length].tolist()
        rows.append(Row(number, tokens, start, stops, [(i, edit) for i, _, edit in edits], do, embedding))
    return rows


def _edits(plan: SiteEdits, number: int, start: int, stop: int) -> list[tuple[int, Site, Edit]]:
    """What is written to one row: place in the plan, site, and the row's own edit; those that never write left out."""
    found, place = [], -1
    for site, edits in plan.items():
        for edit in edits:
            place += 1
            assert isinstance(edit, Edit)
            own = edit.row(number, start, stop)
            if not own.is_noop:
                found.append((place, site, own))
    return found


def _whole(h: Tensor) -> Tensor:
    return h


def check_answers(answers: Sequence[Answer], rows: Sequence[Row]) -> None:
    """Every answer must be of its own request, with the tokens that were sent.

    Raises:
        RemoteError: one is not.
    """
    if len(answers) != len(rows):
        raise RemoteError(f"{len(rows)} requests were sent to vLLM and {len(answers)} answers came back", "code")
    for row, answer in zip(rows, answers, strict=True):
        ids, number = answer.get("ids", []), answer.get("number")
        if number != row.number or ids != row.ids or "stats" not in answer:
            raise RemoteError(
                f"row {row.number} came back as row {number}, with {len(ids)} tokens of which "
                f"{sum(a == b for a, b in zip(ids, row.ids, strict=False))} are its own {len(row.ids)}: requests were "
                "mixed up or cut short on the way, and no number of this call can be trusted",
                "code",
            )


def tell(plan: SiteEdits, answers: Sequence[Answer]) -> None:
    """Put what was written into the plan's own tallies, a row of each for every request."""
    for place, edit in enumerate(edit for edits in plan.values() for edit in edits):
        told = [{p: (n, ratio) for p, n, ratio in answer["stats"]}.get(place, (0, 0.0)) for answer in answers]
        edit.stats.writes = torch.tensor([n for n, _ in told])
        edit.stats.ratio = torch.tensor([ratio for _, ratio in told])


def joined(found: Sequence[Any]) -> Any:
    """What was told of the rows, each by itself, as of a batch: tensors, or tensors by name."""
    if isinstance(found[0], dict):
        return {name: torch.cat([one[name] for one in found]) for name in found[0]}
    return torch.cat(list(found))


def put_back(found: Sequence[Tensor], rows: Sequence[Row], select: StateSelector, width: int) -> Tensor:
    """`select` of every site, `(row, site, hidden)`: from what was selected, or from whole rows, padded again."""
    if isinstance(select, ByRow):
        groups = torch.cat([select.row(row.number, row.offset)[1] for row in rows])
        return torch.cat(list(found))[groups.argsort()]
    padded = found[0].new_zeros(len(rows), found[0].shape[1], width, found[0].shape[-1])
    for i, (row, states) in enumerate(zip(rows, found, strict=True)):
        padded[i, :, row.offset : row.offset + len(row.ids)] = states[0]
    return torch.stack([select(h) for h in padded.unbind(1)], 1)
