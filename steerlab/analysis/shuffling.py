"""The control for vectors of one's own: contrasts that change places within a behavior, and what the answers lose."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from steerlab._support.checks import as_number, as_seed
from steerlab.analysis.input_dependence import class_means
from steerlab.analysis.sweep import sweep
from steerlab.capturing.activations import Activations
from steerlab.data.inputs import Data
from steerlab.errors import DataError
from steerlab.methods import P2S, Steerer
from steerlab.models.model import Model
from steerlab.models.positions import Positions
from steerlab.models.sites import Site

ROW_COLUMNS = ("side", "position", "column", "token", "n_tokens")


def shuffle_contrasts(acts: Activations, *, label: str = "behavior", seed: int = 0) -> Activations:
    """The same activations, with each input given the contrast of another input of its behavior and split.

    What a method reaches that is fitted to them, it reaches without knowing more of an input than its behavior.

    Example:
        >>> control = L2S(13).fit(shuffle_contrasts(acts))
        >>> other = P2S(13).fit(shuffle_contrasts(acts))              # another input's own vector

    Args:
        acts: activations with contrasts; their `info` will say that they are shuffled.
        label: the index column within whose values contrasts change places.
        seed: of the order; no input keeps its own contrast.

    Raises:
        DataError: a behavior with one contrast only, in a split.
    """
    paired = acts.index["side"].isin(["positive", "negative"])
    ids = sorted(set(acts.index.loc[paired, "example_id"]))
    names = [*zip(acts.labels(ids, label), acts.labels(ids, "split"), strict=True)]
    generator, receiver = np.random.default_rng(as_seed(seed)), dict[str, str]()
    for name in sorted(set(names)):
        members = generator.permutation([i for i, own in zip(ids, names, strict=True) if own == name])
        if len(members) < 2:
            raise DataError(
                f"{label} {name[0]!r} has one contrast only in split {name[1]!r}, which can't change places: give more"
            )
        receiver |= dict(zip(members.tolist(), np.roll(members, 1).tolist(), strict=True))
    # a moved row keeps what says where it was read; all else is that of the example that it now belongs to
    examples = (
        acts.index.drop_duplicates("example_id").set_index("example_id", drop=False).drop(columns=list(ROW_COLUMNS))
    )
    moved = acts.index.copy()
    moved.loc[paired, list(examples)] = examples.loc[moved.loc[paired, "example_id"].map(receiver)].to_numpy()
    info = {**acts.info, "contrasts": f"shuffled within {label}, seed {seed}"}
    return Activations(acts.values, moved, acts.sites, info)


def shuffle_effects(
    model: Model, data: Data, acts: Activations, layer: int | Site, *, alpha: float = 1.0,
    positions: Positions = "all", position: str | None = None, seed: int = 0, batch_size: int = 16,
) -> pd.DataFrame:  # fmt: skip
    """What the model's answers owe to an input having its own vector, and not another's of its behavior.

    Example:
        >>> frame = shuffle_effects(model, examples, acts, 13)
        >>> (frame["own"] - frame["other"]).mean()                    # nats

    Args:
        model, data: the inputs, with their contrasts.
        acts: their contrasts at `layer`.
        layer, alpha, positions: where and how strongly each input is steered; alpha is not 0.
        position: which captured contrast rows are used.
        seed: which other input's vector each gets.
        batch_size: as in `sweep`.

    Returns:
        One row per input: `example_id`, `behavior`, and the log-probability of the wanted minus the unwanted answer, in
        nats, without steering (`none`), with the input's own vector (`own`), with that of another input of its behavior
        (`other`), and with the mean of the behavior's other inputs (`mean`).
    """
    if not as_number("alpha", alpha):
        raise DataError("alpha=0 steers nothing: give a strength")
    own = P2S(layer, position=position).fit(acts)
    ids, groups = list(own.ids_), pd.factorize(np.array(acts.labels(list(own.ids_))))[0]
    members = torch.bincount(torch.from_numpy(groups))[groups][:, None]
    means = class_means(own.table_.double(), torch.from_numpy(groups))
    others = ((members * means - own.table_) / (members - 1)).float()  # without the input's own vector
    steerers: dict[str, Steerer] = {
        "own": own, "other": P2S(layer, position=position).fit(shuffle_contrasts(acts, seed=seed)),
        "mean": P2S.from_table(layer, dict(zip(ids, others, strict=True))),
    }  # fmt: skip
    frame = sweep(
        model, data, steerers, None, [0.0, alpha], [positions], "logprob_difference", batch_size=batch_size,
        progress=False,
    )  # fmt: skip
    steered = frame[frame["alpha"] != 0].pivot(index=["example_id", "behavior"], columns="method", values="value")
    none = frame[frame["alpha"] == 0].drop_duplicates("example_id").set_index(["example_id", "behavior"])["value"]
    return steered.assign(none=none)[["none", *steerers]].reset_index().rename_axis(columns=None)
