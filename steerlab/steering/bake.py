"""A steering vector as part of an ordinary checkpoint: the bias of the layers that write into the residual stream."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from steerlab._support.checks import as_number, check_type
from steerlab.errors import SteeringError
from steerlab.methods.vector import SteeringVector, Vectors, as_steerer
from steerlab.models._hooks import HooksEngine
from steerlab.models.engine import forward_inputs
from steerlab.models.interventions import Edit
from steerlab.models.layout import blocks, module_at
from steerlab.models.loading import load
from steerlab.models.model import Model, check_ready
from steerlab.models.reference import probe_rows
from steerlab.models.sites import Site

TOLERANCE = 1e-5  # of the norm of a token's logits, in float32
AS_LLAMA = ("qwen2", "mistral")  # the same computation, in a class that has no place for a bias


def bake(model: Model, vector: SteeringVector | Vectors, *, alpha: float = 1.0) -> Model:
    """A copy of a model that adds `alpha` times a vector to every token by itself, so that any server can run it.

    The vector becomes the bias of the last linear layer of each block's MLP. Families without such a bias are written
    as the same computation in a class that has one (Qwen2 as Llama). Before it is returned, the copy's logits are
    compared with those of the steered model.

    Example:
        >>> baked = bake(model, refusal, alpha=0.8)
        >>> baked.hf.save_pretrained("polite"); baked.tokenizer.save_pretrained("polite")

    Args:
        model: from `steerlab.load`, with its weights in this process.
        vector: a vector for each layer, the same for every input; sites "block_out" and "mlp_out".
        alpha: the strength.

    Raises:
        SteeringError: what depends on the input, a site without such a bias, a model without a place for it, or logits
            that are not those of the steered model.
    """
    check_ready(model)
    expected = "a vector that is the same for every input"
    steerer: SteeringVector = check_type(
        "what is baked", as_steerer(vector, model.n_layers), SteeringVector, expected, SteeringError
    )
    if model.is_remote or getattr(model.hf, "is_quantized", False):
        raise SteeringError(f"{model.id} is on a server or quantized: load it in float32 or bfloat16 in this process")
    added = {
        model.site(site): as_number("alpha", alpha, error=SteeringError) * steerer.at(site) for site in steerer.sites
    }
    for site in added:
        if site.part != "text" or site.point not in ("block_out", "mlp_out") or model.layout.mlp_name is None:
            raise SteeringError(f"the site {site} has no bias of its own: give vectors at 'block_out' or 'mlp_out'")
    hf = _with_biases(copy.deepcopy(model.hf), model, {site.layer for site in added})
    for site, value in added.items():
        bias = _last_linear(hf, model, site.layer).bias
        with torch.no_grad():
            bias.add_(value.to(bias))
    processor = model.vision.processor if model.vision else None
    baked = load(
        hf, tokenizer=model.tokenizer, processor=processor, chat=model.chat, blocks=model.layout.blocks_path,
        backend=model.backend, task=None if processor else "text",
    )  # fmt: skip
    baked.id = f"{model.id}+{steerer.name}"
    _compare(model, baked, added)
    return baked


def _last_linear(hf: nn.Module, model: Model, layer: int) -> Any:
    """The last linear layer of a block's MLP that is as wide as the residual stream.

    Raises:
        SteeringError: there is none.
    """
    mlp = module_at(blocks(hf, model.layout)[layer], str(model.layout.mlp_name))
    linear = [m for m in mlp.modules() if isinstance(m, nn.Linear | Conv1D)]
    wide = [m for m in linear if model.hidden_size in (m.weight.shape[0 if isinstance(m, nn.Linear) else 1],)]
    if not wide:
        raise SteeringError(f"the MLP of block {layer} of {type(hf).__name__} does not end in a linear layer")
    return wide[-1]


def _with_biases(hf: Any, model: Model, layers: set[int]) -> Any:
    """The model with a bias at these layers; all new biases are 0.

    Raises:
        SteeringError: its class has no place for one.
    """
    if all(_last_linear(hf, model, layer).bias is not None for layer in layers):
        return hf
    config = copy.deepcopy(hf.config)
    if hasattr(config, "mlp_bias"):
        config.mlp_bias, kind = True, type(hf)
    elif config.model_type in AS_LLAMA and not model.vision:
        known = LlamaConfig().to_dict().keys() - {"model_type", "architectures"}
        given = {name: value for name, value in config.to_dict().items() if name in known}
        config, kind = LlamaConfig(**given | {"attention_bias": True, "mlp_bias": True}), LlamaForCausalLM
    else:
        raise SteeringError(f"{type(hf).__name__} has no bias in its MLP, so a checkpoint of it can't hold the vector")
    with torch.device(hf.device):
        found = kind(config).to(hf.dtype).eval()
    missing, unexpected = found.load_state_dict(hf.state_dict(), strict=False)
    wrong = [name for name in missing if not name.endswith(".bias")] + list(unexpected)
    if wrong:
        raise SteeringError(f"{type(hf).__name__} can't be written as {kind.__name__}: {wrong[0]} has no place there")
    state = found.state_dict()
    for name in missing:
        state[name].zero_()
    return found


def _compare(model: Model, baked: Model, added: dict[Site, Tensor]) -> None:
    """Refuse a copy whose logits are not those of the steered model on three rows, beyond rounding."""
    engine = HooksEngine(model.hf, model.layout)
    for row in probe_rows(model, (13, 17, 9)):
        batch = model.batch([row])
        edits = {
            site: [Edit(value[None].to(model.device), batch.attention_mask.bool().to(model.device), False)]
            for site, value in added.items()
        }
        given = forward_inputs(model.hf, model.inputs(batch), torch.arange(batch.width))
        with torch.no_grad():
            with engine.hooked(edits):
                wanted = model.hf(**given).logits.float()
            found = baked.hf(**given).logits.float()
        limit = TOLERANCE if model.dtype == torch.float32 else 100 * float(torch.finfo(model.dtype).eps)
        off = float(((found - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max())
        if not off <= limit:
            raise SteeringError(
                f"the logits of the baked {type(baked.hf).__name__} are {off:.2g} of their norm off those of the "
                f"steered model (at most {limit:g}): its blocks do not add the MLP's output as it is"
            )
