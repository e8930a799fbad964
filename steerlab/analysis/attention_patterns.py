"""Attention patterns: which tokens each head looks at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pandas as pd
import torch
from torch import Tensor

from steerlab._support.checks import show
from steerlab.analysis._plain import plain_examples
from steerlab.capturing.rows import Layers, as_sites
from steerlab.data.inputs import Data
from steerlab.errors import LayoutError, SteerlabError
from steerlab.models.encoding import EncodedPrompt
from steerlab.models.model import Model
from steerlab.models.ready import check_ready
from steerlab.models.versions import forward_options
from steerlab.steering.batches import encode_examples

TOLERANCE = 1e-3  # of the largest logit, or what rounding costs in the model's dtype


def attention_patterns(
    model: Model, data: Data, layers: Layers = "all", heads: Sequence[int] | None = None
) -> pd.DataFrame:
    """The attention weights of each head, from every token of a prompt to every token that it sees.

    Fast implementations of attention do not give their weights. The model is run with "eager" attention, and its
    logits are compared with those of the implementation that it was loaded with.

    Example:
        >>> frame = attention_patterns(model, ["The cat sat. The cat"], layers=[5], heads=[3])
        >>> frame[frame["query"] == frame["query"].max()].nlargest(3, "weight")

    Args:
        model: from `steerlab.load`, in this process.
        data: prompts, each run alone; of Examples, the plain prompt.
        layers: "all" or layers.
        heads: their numbers; None: all.

    Returns:
        A frame with `example_id, layer, head, query, key, query_token, key_token, weight`; query and key are tokens of
        the row, from 0. The weights of a query add up to 1, unless the model lets a head attend to nothing.

    Raises:
        LayoutError: no such head, or a layer without attention.
        SteerlabError: the model gives no weights, or other logits with eager attention; a model on a server.
    """
    check_ready(model)
    if model.is_remote:
        raise SteerlabError(f"attention patterns are read in this process only, and {model.id} is on a server")
    sites = as_sites(layers, model)
    if any(site.part != "text" or site.point != "block_out" for site in sites):
        raise LayoutError(f"layers={show(layers)}: attention belongs to whole blocks: give their numbers")
    frames = []
    for row in encode_examples(model, plain_examples(data)):
        found = _weights(model, row)
        for layer in (site.layer for site in sites):
            weights = found[layer]
            if weights is None:
                raise LayoutError(f"block {layer} of {model.id} gives no attention weights")
            frames.append(_rows(model, row, layer, weights[0].float().cpu(), heads))
    return pd.concat(frames, ignore_index=True)


def _weights(model: Model, row: EncodedPrompt) -> Sequence[Tensor | None]:
    """The weights of every block, `(1, head, query, key)`."""
    inputs = model.inputs(model.batch([row]))
    options = forward_options(model.hf, use_cache=False)
    with model.lock, torch.no_grad():
        own = model.hf(**inputs, **options).logits
        with _eager(model):
            out = model.hf(**inputs, **options, output_attentions=True)
    found = getattr(out, "attentions", None)
    if not found or len(found) != model.n_layers:
        raise SteerlabError(
            f"{type(model.hf).__name__} gives the weights of {len(found or ())} of its {model.n_layers} blocks, and "
            "does not say of which"
        )
    difference = float((out.logits - own).abs().max() / own.abs().max())
    if not difference <= max(TOLERANCE, 16 * torch.finfo(model.dtype).eps):
        raise SteerlabError(
            f"with eager attention the logits of {model.id} differ by {difference:.2g} of the largest: these would be "
            "the weights of another computation"
        )
    return tuple(found)


@contextmanager
def _eager(model: Model) -> Iterator[None]:
    """Attention in plain torch, which has the weights at hand; afterwards the implementation is as before."""
    config = model.hf.config
    before = {"": config._attn_implementation}
    before |= {name: getattr(config, name)._attn_implementation for name in config.sub_configs if hasattr(config, name)}
    try:
        model.hf.set_attn_implementation("eager")
    except (ValueError, NotImplementedError) as error:
        raise SteerlabError(f"{type(model.hf).__name__} has no eager attention: {error}") from error
    try:
        yield
    finally:
        model.hf.set_attn_implementation(before)


def _rows(model: Model, row: EncodedPrompt, layer: int, weights: Tensor, heads: Sequence[int] | None) -> pd.DataFrame:
    n_heads, n, _ = weights.shape
    chosen = list(range(n_heads)) if heads is None else list(heads)
    if not chosen or any(head not in range(n_heads) for head in chosen):
        raise LayoutError(f"heads={show(heads)}: block {layer} has heads from 0 to {n_heads - 1}")
    words = [str(model.tokenizer.decode([i])) for i in row.ids]
    index = pd.MultiIndex.from_product([chosen, range(n), range(n)], names=["head", "query", "key"])
    frame = pd.DataFrame({"weight": weights[chosen].flatten().numpy()}, index=index).reset_index()
    frame = frame[(frame["key"] <= frame["query"]) | (frame["weight"] > 0)]  # some models look ahead within images
    for name in ("query", "key"):
        frame[f"{name}_token"] = [words[i] for i in frame[name]]
    frame = frame.assign(example_id=row.example_id, layer=layer)
    return frame[["example_id", "layer", "head", "query", "key", "query_token", "key_token", "weight"]]
