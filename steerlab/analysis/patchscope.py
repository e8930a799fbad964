"""Patchscope: a state put into another prompt, whose continuation says in words what the state holds."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch

from steerlab._support.checks import as_whole, show
from steerlab.analysis._plain import plain_states, token_rows
from steerlab.capturing.rows import Layers, as_sites
from steerlab.data.inputs import Data
from steerlab.errors import DataError, LayoutError
from steerlab.models.encoding import EncodedPrompt
from steerlab.models.interventions import Edit
from steerlab.models.job import background
from steerlab.models.model import Model
from steerlab.models.operators import EditRule, Replace
from steerlab.models.positions import Positions
from steerlab.models.sites import Site
from steerlab.steering.generate import decode, new_ids

IDENTITY = "cat -> cat\n1135 -> 1135\nhello -> hello\n?"  # repeats what stands in the place of its last token


@background
def patchscope(
    model: Model,
    data: Data,
    layers: Layers = "all",
    positions: Positions | Sequence[Positions] = "last",
    *,
    prompt: str = IDENTITY,
    placeholder: str = "?",
    into: int | Site | None = None,
    max_new_tokens: int = 8,
    batch_size: int = 16,
    blocking: bool = True,  # handled by `background`
) -> pd.DataFrame:
    """Let a model say what its states hold: each is put in the place of a token of another prompt, which it continues.

    Example:
        >>> frame = patchscope(model, ["Diana, princess of Wales"], layers=[4, 8, 12])
        >>> frame[["layer", "text"]]

    Args:
        model: from `steerlab.load`.
        data: prompts whose states are read; of Examples, the plain prompt.
        layers: "all", or layers or Sites of the residual stream.
        positions: which tokens' states are read, as in `capture`.
        prompt: the text that is continued, without a chat template. By default the model is shown words that are
            repeated, so that it repeats what it finds in the place of the last token.
        placeholder: the last token of the prompt that overlaps this text is the place.
        into: the layer where the states are put; None: where they come from.
        max_new_tokens: of each continuation.
        batch_size: continuations of a forward.
        blocking: as in `capture`.

    Returns:
        A frame with `example_id, position, column, input_token, layer, text`.

    Raises:
        DataError: the placeholder is not in the prompt.
        LayoutError: a site outside the text, or into one of another kind.

    Source: Ghandeharioun et al., arXiv 2401.06102.
    """
    as_whole("max_new_tokens", max_new_tokens)
    sites, target = as_sites(layers, model), None if into is None else model.site(into)
    for site in (*sites, *([target] if target else ())):
        if site.part != "text" or site.point not in ("block_in", "block_out"):
            raise LayoutError(f"patchscope reads and writes the residual stream of the text, and {site} is not there")
    row = model.encode(prompt, chat=False)
    places = row.overlapping(placeholder)
    if not places:
        raise DataError(f"the placeholder {show(placeholder)} is not in the prompt {show(prompt)}")
    acts = plain_states(model, data, sites, positions, batch_size)
    read, frames = token_rows(model, acts.index).reset_index(names="row"), []
    for number, site in enumerate(sites):
        states, texts = acts.at(site), list[str]()
        for start in range(0, len(states), batch_size):
            some = states[start : start + batch_size]
            texts += _continuations(model, row, places[-1], target or site, some, max_new_tokens)
        frames.append(read.assign(layer=site.label, text=texts, order=number))
    found = pd.concat(frames, ignore_index=True).sort_values(["row", "order"], ignore_index=True)
    return found.drop(columns=["row", "order"])


def _continuations(
    model: Model, row: EncodedPrompt, column: int, site: Site, states: torch.Tensor, max_new_tokens: int
) -> list[str]:
    """What the model says after the prompt with each of the states in the place of one token."""
    batch = model.batch([row] * len(states))
    place = torch.zeros(batch.input_ids.shape, dtype=torch.bool)
    place[:, column] = True
    edits = {site: [Edit(states.float(), place, False, rule=EditRule(Replace()))]}
    with model.lock:
        new = new_ids(model, model.inputs(batch, positions=False), edits, {"max_new_tokens": max_new_tokens})
    return decode(model, new)
