"""States of plain prompts, as the readings of this package take them; what modules add to the stream."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from steerlab.capturing import Activations, capture
from steerlab.data.example import Example
from steerlab.data.inputs import Data, as_examples
from steerlab.errors import LayoutError
from steerlab.models.model import Model
from steerlab.models.positions import Positions
from steerlab.models.sites import Site


def plain_examples(data: Data) -> list[Example]:
    """The examples without their answers and extra prompts."""
    return [example.replace(contrast=None, extra_prompts={}) for example in as_examples(data)]


def plain_states(
    model: Model, data: Data, sites: Iterable[Site], positions: Positions | Sequence[Positions], batch_size: int = 16
) -> Activations:
    """The states of plain prompts at some sites, a row for each token."""
    acts = capture(
        model, plain_examples(data), layers=list(sites), positions=positions, context=None, reduce="none",
        batch_size=batch_size, progress=False,
    )  # fmt: skip
    assert isinstance(acts, Activations)  # not a store: no folder was given
    return acts


def not_added(model: Model, sites: Iterable[Site]) -> str | None:
    """Why what attention or MLP modules return there is not what they add to the residual stream; None where it is.

    Some families normalize or scale it before they add it (Gemma 2, OLMo 2, Granite), others return it with the stream
    in it (BLOOM, MPT).
    """
    points, modules = ("block_in", "attn_out", "mlp_out", "block_out"), ("attn_out", "mlp_out")
    layers = sorted({site.layer for site in sites if site.part == "text" and site.point in modules})
    if not layers:
        return None
    try:
        places = [Site(layer, point) for layer in layers for point in points]
        acts = plain_states(model, ["The sky is blue today."], places, "prompt")
    except LayoutError as error:
        return f"what the blocks of {model.id} add to the residual stream can't be told: {error}"
    for layer in layers:
        start, attention, mlp, end = (acts.at(Site(layer, point)).float() for point in points)
        gap = ((start + attention + mlp - end).norm(dim=-1) / (end - start).norm(dim=-1)).median()
        if gap > 0.1:
            return (
                f"what attention and MLP return in block {layer} of {model.id} is not what they add to the residual "
                f"stream: the sum misses what the block adds by {gap:.2f} of it, since the model normalizes or scales "
                "it before, or returns the stream with it"
            )
    return None


def token_rows(model: Model, index: pd.DataFrame) -> pd.DataFrame:
    """Where the states of an index stand: `example_id, position, column, input_token`."""
    words = [str(model.tokenizer.decode([i])) for i in index["token"]]
    return index[["example_id", "position", "column"]].assign(input_token=words)
