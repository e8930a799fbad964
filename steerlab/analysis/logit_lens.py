"""The logit lens: what a model would say next if it stopped at a layer."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.checks import as_texts, as_whole
from steerlab.analysis._plain import not_added, plain_states, token_rows
from steerlab.capturing.rows import Layers, as_sites
from steerlab.data.inputs import Data
from steerlab.errors import LayoutError, SteerlabError
from steerlab.models.encoding import single_token
from steerlab.models.interventions import Edit
from steerlab.models.kv_prefix import ForwardState
from steerlab.models.model import Model
from steerlab.models.operators import EditRule, Replace
from steerlab.models.positions import Positions
from steerlab.models.reference import as_row
from steerlab.models.sites import Site

STATES = 64  # whose logits are computed at once


def logit_lens(
    model: Model,
    data: Data,
    layers: Layers = "all",
    positions: Positions | Sequence[Positions] = "last",
    *,
    tokens: Sequence[str] | None = None,
    top: int = 5,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Read states as words: the model's own end (final norm, head and what follows it) applied to states of any layer.

    The states are put in the place of the last block's output and the model computes its logits from them, so that
    scaled or capped logits are as the model makes them.

    Example:
        >>> frame = logit_lens(model, ["The capital of France is"], tokens=[" Paris"])
        >>> frame[["layer", "rank", "probability"]]

    Args:
        model: from `steerlab.load`, in this process.
        data: prompts, as in `capture`; of Examples, the plain prompt is read.
        layers: "all", layers or Sites; at "attn_out", say, it reads what the attention alone would say.
        positions: which tokens' states are read; each token gets rows of its own.
        tokens: texts of single tokens (often with a space in front), whose ranks are wanted; None: the `top` tokens.
        top: how many of the most probable tokens.
        batch_size: prompts of a forward.

    Returns:
        A frame with `example_id, position, column, input_token, layer, token, token_id, rank, probability, kl`: the
        column counts the tokens of the row from 0, the input token stands there, rank 1 is the most probable next
        token, and kl is KL(end, layer) in nats between the model's own prediction and that of the layer.

    Raises:
        LayoutError: a model without a final norm, whose head cannot read states in the middle; a site of images or
            heads; "attn_out" or "mlp_out" where it is not what is added to the residual stream (Gemma 2, BLOOM).
        SteerlabError: a model on a server.
        DataError: a text that is not one token.

    Source: nostalgebraist, interpreting GPT: the logit lens, 2020.
    """
    as_whole("top", top, 1, model.hf.config.get_text_config().vocab_size)
    chosen = None if tokens is None else [single_token(model.tokenizer, token) for token in as_texts("tokens", tokens)]
    if model.layout.final_norm_path is None:
        raise LayoutError(f"{model.id} has no final norm that steerlab finds: its head can't read states of the middle")
    if model.is_remote:
        raise SteerlabError(f"the lens reads every layer by a run of its own: load {model.id} in this process")
    sites, end = as_sites(layers, model), Site(model.n_layers - 1)
    other = next((site for site in sites if site.part != "text" or site.point == "heads"), None)
    if other is not None:
        raise LayoutError(f"the lens reads states of the text's residual stream, and {other} has none")
    if changed := not_added(model, sites):
        raise LayoutError(f"the lens reads what is added to the residual stream, and {changed}")
    acts = plain_states(model, data, [*sites, end], positions, batch_size)
    frames = []
    for start in range(0, len(acts), STATES):
        rows = slice(start, start + STATES)
        final = end_logprobs(model, acts.at(end)[rows])
        for number, site in enumerate(sites):
            logprobs = final if site == end else end_logprobs(model, acts.at(site)[rows])
            frames.append(_rows(model, acts.index.iloc[rows], number, site, logprobs, final, chosen, top))
    found = pd.concat(frames, ignore_index=True)
    order = ["row", "layer_order", "place"]
    return found.sort_values(order, ignore_index=True).drop(columns=order)


def _rows(
    model: Model, index: pd.DataFrame, number: int, site: Site, logprobs: Tensor, final: Tensor,
    chosen: list[int] | None, top: int,
) -> pd.DataFrame:  # fmt: skip
    """A row for each wanted token of each state."""
    # equal ones, which bfloat16 often makes, have the order in which `argmax` takes them: one token has rank 1
    token_ids = torch.arange(logprobs.shape[-1])
    ordered = logprobs.double() - 1e-13 * token_ids  # by less than two different numbers of float32 differ
    ids = ordered.topk(top).indices if chosen is None else torch.tensor(chosen).expand(len(logprobs), -1)
    own = logprobs.gather(-1, ids)
    before = token_ids < ids[:, :, None]
    others, wanted = logprobs[:, None, :], own[:, :, None]
    ranks = ((others > wanted) | (others == wanted) & before).sum(-1) + 1
    kl = (final.exp() * (final - logprobs)).sum(-1)
    n = ids.shape[1]
    kept = token_rows(model, index).reset_index(names="row")
    kept = kept.loc[kept.index.repeat(n)].reset_index(drop=True)
    words = [str(model.tokenizer.decode([i])) for i in ids.flatten().tolist()]
    return kept.assign(
        layer=site.label, token=words, token_id=ids.flatten().numpy(), rank=ranks.flatten().numpy(),
        probability=own.exp().flatten().numpy(), kl=kl.repeat_interleave(n).numpy(),
        layer_order=number, place=[*range(n)] * len(ids),
    )  # fmt: skip


def end_logprobs(model: Model, states: Float[Tensor, "state hidden"]) -> Float[Tensor, "state vocabulary"]:
    """Log-probabilities of the next token, computed by the model's end from states in the place of the last block's."""
    n, end, state = len(states), model.n_layers - 1, states.to(model.device, model.dtype)
    with model.lock:  # not a call of the user's: an open `with steer(...)` does not steer it
        if model.supports_layer_restart:
            given = model.inputs(model.batch([as_row([0] * n)]))  # which tokens they are makes no difference
            start = ForwardState(layer=end, state=state[None])
            logits = model.engine.logits(given, {}, torch.arange(n, device=model.device), start)[0]
        else:  # a row of one token for each state
            edit = Edit(state.float(), torch.ones(n, 1, dtype=torch.bool), False, rule=EditRule(Replace()))
            given = model.inputs(model.batch([as_row([0])] * n))
            logits = model.engine.logits(given, {Site(end): [edit]}, 1)[:, 0]
    return logits.float().log_softmax(-1).cpu()
