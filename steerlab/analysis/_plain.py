"""States of plain prompts, as the readings of this room take them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from steerlab.capturing import Activations, capture
from steerlab.data.example import Example
from steerlab.data.inputs import Data, as_examples
from steerlab.models.model import Model
from steerlab.models.positions import Positions
from steerlab.models.sites import Site


def plain_examples(data: Data) -> list[Example]:
    """The examples without their answers."""
    return [example.replace(contrast=None) for example in as_examples(data)]


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


def token_rows(model: Model, index: pd.DataFrame) -> pd.DataFrame:
    """Where the states of an index stand: `example_id, position, column, input_token`."""
    words = [str(model.tokenizer.decode([i])) for i in index["token"]]
    return index[["example_id", "position", "column"]].assign(input_token=words)
