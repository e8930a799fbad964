"""Attribution patching: every cell of `patch` estimated from the gradient of the metric in the corrupted run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steerlab.analysis._patching.run import Cell, LastMetric, PatchRun
from steerlab.errors import DataError
from steerlab.models._hooks import HooksEngine
from steerlab.models.engine import choose_columns, forward_inputs
from steerlab.models.sites import Site


def attributed_values(run: PatchRun, cells: Sequence[Cell]) -> list[float]:
    """The metric of the corrupted run plus (clean state - corrupted state) · gradient, for each cell."""
    states, gradients = _states_and_gradients(run)
    found = []
    for cell in cells:
        change = run.state(cell) - states[cell.site][cell.column]
        gradient = gradients[cell.site][cell.column]
        if cell.head is not None:
            width = run.head_width(cell.site)
            change, gradient = (t[cell.head * width : (cell.head + 1) * width] for t in (change, gradient))
        found.append(run.base + float(change @ gradient))
    return found


def _states_and_gradients(run: PatchRun) -> tuple[dict[Site, Tensor], dict[Site, Tensor]]:
    """The corrupted run's states at every site, and the gradients of the metric there, `(column, width)`, float32."""
    model, found = run.model, {}

    def keep(site: Site, h: Tensor) -> None:
        found[site] = h

    def differentiable(_module: object, _args: object, embedded: Tensor) -> Tensor:
        return embedded.requires_grad_()  # the weights themselves may be frozen

    engine = HooksEngine(model.hf, model.layout)
    with torch.inference_mode(False), torch.enable_grad(), model.lock, engine.hooked({}, set(run.states), keep):
        inputs = model.inputs(model.batch([run.corrupted]))
        with model.hf.get_input_embeddings().register_forward_hook(differentiable):
            given = forward_inputs(model.hf, inputs)
            logits = choose_columns(model.hf(**given).logits, 1, "logits_to_keep" in given)
        value = LastMetric(run.metric)(logits)
        if not value.requires_grad:
            raise DataError("the metric cuts the gradient, which method='attribution' needs: keep it in torch")
        gradients = torch.autograd.grad(value.sum(), [found[site] for site in run.states])
    ours = {site: found[site].detach()[0].float().cpu() for site in run.states}
    return ours, {site: g[0].float().cpu() for site, g in zip(run.states, gradients, strict=True)}
