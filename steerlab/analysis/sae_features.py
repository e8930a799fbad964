"""What a sparse autoencoder reads in the states of a model."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from steerlab._support.checks import as_whole
from steerlab.analysis._plain import not_added, plain_states, token_rows
from steerlab.data.inputs import Data
from steerlab.errors import MismatchError
from steerlab.methods import SAE
from steerlab.models.model import Model
from steerlab.models.positions import Positions


def sae_features(
    model: Model,
    data: Data,
    sae: SAE,
    positions: Positions | Sequence[Positions] = "prompt",
    *,
    top: int = 5,
    batch_size: int = 16,
) -> pd.DataFrame:
    """The strongest features of every token.

    Example:
        >>> frame = sae_features(model, prompts, SAE.load("saes/layer15"))
        >>> frame.groupby("feature")["activation"].max().nlargest(10)

    Args:
        model: from `steerlab.load`.
        data: prompts, as in `capture`; of Examples, the plain prompt.
        sae: of this model's states.
        positions: which tokens are read.
        top: features of each token; those of activation 0 are left out.
        batch_size: prompts of a forward.

    Returns:
        A frame with `example_id, position, column, input_token, feature, activation`, strongest first. `.attrs` has
        `explained_variance`, the share of the states' variance that the features keep (of all tokens but the first),
        and `active_features`, the mean number of a state.

    Raises:
        MismatchError: states of another width; or an SAE that explains nothing of them, because it was made for another
            model, another site, or weights that were changed (centered, or with norms folded in); an SAE of "attn_out"
            or "mlp_out" of a model that normalizes or scales them before it adds them.
    """
    as_whole("top", top, 1, sae.n_features)
    if why := not_added(model, [sae.site]):
        raise MismatchError(f"SAEs of this site are trained on what is added to the residual stream, and {why}")
    acts = plain_states(model, data, [sae.site], positions, batch_size)
    states = acts.at(sae.site)
    # the first token's state is many times as long as any other, and often no part of the training
    later = states[(acts.index["column"] > 0).tolist()]
    explained = sae.explained(later) if len(later) > 1 else float("nan")
    if len(later) > 1 and not explained > 0:
        raise MismatchError(
            f"the SAE explains {explained:.2f} of the variance of these states, less than their mean does: it was made "
            f"for another model or site than {sae.site} of {model.id}, or for weights that were changed"
        )
    features = sae.encode(states)
    values, numbers = features.topk(top)
    frame = token_rows(model, acts.index)
    frame = frame.loc[frame.index.repeat(top)].reset_index(drop=True)
    frame = frame.assign(feature=numbers.flatten().numpy(), activation=values.flatten().numpy())
    found = frame[frame["activation"] > 0].reset_index(drop=True)
    found.attrs |= {"explained_variance": explained, "active_features": float((features > 0).sum(-1).float().mean())}
    return found
