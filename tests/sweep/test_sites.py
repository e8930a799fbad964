"""Every site, and rows with pictures: each cell is a plain hook's, or what the same steerer does alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from one_run_per_setting import Odd, alone, at, check
from PIL import Image
from swept import columns, questions, tokens
from torch import Tensor

from steerlab import Contrast, Example, MeanDifference, Model, Site, SteeringError, sweep
from steerlab.models.layout import blocks, module_at
from steerlab.testing import tiny_vlm

ALPHAS = (0.0, -1.0, 2.0)
POSITIONS = ("all", "last+generated")
backends = pytest.mark.parametrize("backend", ["hooks", "nnsight"])


@contextmanager
def writing(model: Model, site: Site, delta: Tensor, where: Sequence[int]) -> Iterator[None]:
    """A plain hook on the module that holds the site."""

    def changed(h: Tensor) -> Tensor:
        h = h.clone()
        h[:, list(where)] += delta.to(h)
        return h

    def after(_: Any, args: Any, out: Any) -> Any:
        return (changed(out[0]), *out[1:]) if isinstance(out, tuple) else changed(out)

    block, names = blocks(model.hf, model.layout)[site.layer], model.layout
    if site.point == "block_in":
        handle = block.register_forward_pre_hook(lambda _, args: (changed(args[0]), *args[1:]))
    else:
        handle = module_at(
            block, str(names.mlp_name if site.point == "mlp_out" else names.attention_name)
        ).register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def propensity(model: Model, site: Site, example: Example, alpha: float, positions: str) -> float:
    assert example.contrast is not None
    (ids, n), (other, _) = (tokens(model, example, a) for a in (example.contrast.positive, example.contrast.negative))
    first_difference = next(i for i in range(n, len(ids)) if ids[i] != other[i])
    with writing(model, site, alpha * at(site).vector_, columns(positions, n, len(ids))):
        logits = model.hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0, first_difference - 1]
    return float(logits[ids[first_difference]] - logits[other[first_difference]])


@backends
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("point", ["mlp_out", "attn_out", "block_in"])
def test_other_points_of_a_block_equal_a_plain_hook_there(lm, family: str, backend: str, point: str) -> None:
    model = lm(family, backend)
    sites = [Site(layer, point) for layer in range(model.n_layers)]
    given: Any = {"v": {site: at(site) for site in sites}}
    frame = sweep(model, given, questions(), sites, ALPHAS, list(POSITIONS), batch_size=20, progress=False)
    assert set(frame["layer"]) == {str(site) for site in sites}
    for site in sites:
        check(
            frame[frame["layer"] == str(site)], {"v": site},
            lambda s, alpha, where: [propensity(lm(family), s, e, alpha, where) for e in questions()],
        )  # fmt: skip


def pictured() -> list[Example]:
    """Rows with pictures of different sizes, one of them with two."""
    draw = torch.Generator().manual_seed(0)
    sizes = [(30, 50), (24, 24), (70, 30)]
    made = [Image.fromarray(torch.randint(0, 255, (*s, 3), generator=draw).byte().numpy()) for s in sizes]
    shown = [(made[0],), (made[1],), (made[2], made[0])]
    pair = Contrast("(A)", "(B)")
    return [Example(f"p{i}", "What is it?" * (i + 1), contrast=pair, images=s) for i, s in enumerate(shown)]


@backends
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_rows_with_pictures_equal_steer(family: str, backend: str, batch_size: int | None) -> None:
    model, rows = tiny_vlm(family, backend=backend), pictured()
    tower = Site(0, part="projector")
    methods: dict[str, Any] = {"text": at(1), "projector": at(tower), "flight": Odd("flight", Site(0))}
    given: Any = {name: {one.site: one} for name, one in methods.items() if name != "projector"}
    asked: dict[str, Any] = {"metric": "logprob_difference", "batch_size": batch_size, "progress": False}
    text = sweep(model, given, rows, None, ALPHAS, ["all", "images", "last+generated"], **asked)
    seen = sweep(model, {"projector": {tower: at(tower)}}, rows, None, ALPHAS, "images", **asked)
    for frame, names in ((text, ["text", "flight"]), (seen, ["projector"])):
        mine = {name: methods[name] for name in names}
        check(frame, mine, lambda one, alpha, where: alone(model, one, rows, alpha, where), abs=1e-3)


def test_gates_weigh_pictures_too() -> None:
    model, rows, site = tiny_vlm("llava"), pictured(), Site(0, part="projector")
    gated = Odd("gate", site)
    asked: Any = {"metric": "logprob_difference", "progress": False}
    frame = sweep(model, {"gated": {site: gated}}, rows, None, (0.0, 2.0), "images", **asked)
    check(frame, {"gated": gated}, lambda one, alpha, where: alone(model, one, rows, alpha, where), abs=1e-3)


def test_a_block_of_the_tower_that_nothing_looks_at_is_refused() -> None:
    model = tiny_vlm("llava")
    site = model.site(Site(-1, part="vision"))
    high = MeanDifference.from_tensor(site, torch.ones(model.width(site) or 1))
    with pytest.raises(SteeringError, match="would reach nothing"):
        sweep(model, {"v": {site: high}}, pictured(), None, (1.0,), "images", progress=False)
