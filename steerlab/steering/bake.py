"""A steering vector as part of an ordinary checkpoint: the bias of the layers that write into the residual stream."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from steerlab._support.checks import as_number
from steerlab.data.example import Example
from steerlab.errors import SteeringError
from steerlab.methods import Steerer, added_vectors, as_steerer
from steerlab.methods.vector import Vectors
from steerlab.models.changed import check_changeable, check_no_adapter, with_weights
from steerlab.models.kv_prefix import local_windows
from steerlab.models.layout import blocks, module_at
from steerlab.models.model import Model
from steerlab.models.ready import check_ready
from steerlab.models.reference import probe_rows
from steerlab.steering.interventions import BatchedSetting, build_edits
from steerlab.steering.requests import Request, resolve_interventions

TOLERANCE = 1e-5  # of the norm of a token's logits, in float32
AS_LLAMA = ("qwen2", "mistral")  # the same computation, in a class that has no place for a bias


def bake(model: Model, vector: Steerer | Vectors, *, alpha: float = 1.0) -> Model:
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
    check_changeable(model)
    check_no_adapter(model)
    strength, steerer = as_number("alpha", alpha, error=SteeringError), as_steerer(vector, model.n_layers)
    added_vectors(steerer)  # refuses what is not added, or depends on the input
    example = Example("-", id="baked")
    settings = resolve_interventions(model, [Request(steerer, strength, "all")], [example], 1)  # refuses other models
    added: dict[int, Tensor] = {}
    for one in (one for setting in settings for one in setting.interventions):
        site = model.site(one.site)
        if site.part != "text" or site.point not in ("block_out", "mlp_out") or model.layout.mlp_name is None:
            raise SteeringError(f"the site {site} has no bias of its own: give vectors at 'block_out' or 'mlp_out'")
        assert one.vectors is not None
        added[site.layer] = added.get(site.layer, torch.zeros(model.hidden_size)) + strength * one.vectors[0].cpu()
    hf = _with_biases(model, set(added))
    with torch.no_grad():
        for layer, value in added.items():
            bias = _last_linear(hf, model, layer).bias
            bias.add_(value.to(bias))
    baked = with_weights(model, hf, f"{model.id}+{steerer.name}")
    _compare(model, baked, settings)
    return baked


def _last_linear(hf: nn.Module, model: Model, layer: int) -> Any:
    """The last linear layer of a block's MLP that is as wide as the residual stream.

    Raises:
        SteeringError: there is none.
    """
    mlp = module_at(blocks(hf, model.layout)[layer], str(model.layout.mlp_name))
    linear = [m for m in mlp.modules() if isinstance(m, nn.Linear | Conv1D)]
    wide = [m for m in linear if m.weight.shape[0 if isinstance(m, nn.Linear) else 1] == model.hidden_size]
    if not wide:
        raise SteeringError(f"the MLP of block {layer} of {type(hf).__name__} does not end in a linear layer")
    return wide[-1]


def _with_biases(model: Model, layers: set[int]) -> Any:
    """A copy of the model with a bias at these layers; all new biases are 0.

    Raises:
        SteeringError: its class has no place for one.
    """
    hf: Any = model.hf
    if all(_last_linear(hf, model, layer).bias is not None for layer in layers):
        return copy.deepcopy(hf)
    config, name = copy.deepcopy(hf.config), type(hf).__name__
    if hasattr(config, "mlp_bias"):
        config.mlp_bias, kind = True, type(hf)
    elif config.model_type in AS_LLAMA and not model.vision:
        if local_windows(config):
            raise SteeringError(f"{name} attends to a window of tokens, which Llama, the class with a bias, does not")
        known = LlamaConfig().to_dict().keys() - {"model_type", "architectures"}
        given = {name: value for name, value in config.to_dict().items() if name in known}
        config, kind = LlamaConfig(**given | {"attention_bias": True, "mlp_bias": True}), LlamaForCausalLM
    else:
        raise SteeringError(f"{name} has no bias in its MLP, so a checkpoint of it can't hold the vector")
    with torch.random.fork_rng(devices=[]), torch.device(hf.device):
        found = kind._from_config(config, dtype=hf.dtype).eval()
    missing, unexpected = found.load_state_dict(hf.state_dict(), strict=False)
    if wrong := [*(one for one in missing if not one.endswith(".bias")), *unexpected]:
        raise SteeringError(f"{name} can't be written as {kind.__name__}: {wrong[0]} is in one of them alone")
    state = found.state_dict()
    for one in missing:
        state[one].zero_()
    found.generation_config = copy.deepcopy(hf.generation_config)
    return found


def _compare(model: Model, baked: Model, settings: Sequence[BatchedSetting]) -> None:
    """Refuse a copy whose logits are not those of the steered model on three rows, beyond rounding.

    In half precision rounding hides much, so there the difference must also be small beside what the steering does.
    """
    for row in probe_rows(model, (13, 17, 90)):
        batch = model.batch([row])
        inputs, every = model.inputs(batch), torch.arange(batch.width)
        plain, steered = (
            model.engine.logits(inputs, edits, every).float()
            for edits in ({}, build_edits(model, settings, batch, [0]))
        )
        found = baked.engine.logits(inputs, {}, every).float()
        off, moved = (float(((one - steered).norm(dim=-1) / steered.norm(dim=-1)).max()) for one in (found, plain))
        limit = TOLERANCE if model.dtype == torch.float32 else min(0.05, 0.2 * moved)
        if not off <= limit:
            raise SteeringError(
                f"the logits of the baked {type(baked.hf).__name__} are {off:.2g} of their norm off those of the "
                f"steered model (at most {limit:.2g}): its blocks do not add the MLP's output as it is"
            )
