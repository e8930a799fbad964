"""Both engines against Hugging Face and plain torch hooks, and against each other."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import plain
import pytest
import torch
from torch import Tensor, nn

from steerlab.errors import LayoutError
from steerlab.models.check import self_check
from steerlab.models.encoding import Batch
from steerlab.models.engine import Inputs
from steerlab.models.interventions import Edit, SiteEdits
from steerlab.models.layout import Layout, blocks, find_layout, module_at
from steerlab.models.model import Model
from steerlab.models.sites import Site
from steerlab.testing import FAMILIES, tiny_hf, tiny_lm, tiny_tokenizer

backends = pytest.mark.parametrize("backend", ["nnsight", "hooks"])
families = pytest.mark.parametrize("family", FAMILIES)
PROMPTS = ("hello there", "how are you today, my friend?", "no")
LM = Callable[[str, str], Model]


def inputs_of(model: Model, prompts: Sequence[str] = PROMPTS) -> Inputs:
    return model.inputs(model.batch([model.encode(prompt) for prompt in prompts]))


def edits_of(inputs: Inputs, *sites: Site) -> SiteEdits:
    """At each site: another random vector per row, on some of its prompt's columns and on every new one."""
    draw = torch.Generator().manual_seed(1)
    mask = inputs["attention_mask"].bool() & (torch.arange(inputs["input_ids"].shape[1]) % 3 > 0)
    return {site: [Edit(3 * torch.randn(len(mask), 32, generator=draw), mask, True)] for site in sites}


def no_hooks(hf: nn.Module) -> bool:
    """Whether steerlab and nnsight left no hook; transformers leaves some where hidden states were requested."""
    hooks = [h for m in hf.modules() for d in (m._forward_hooks, m._forward_pre_hooks) for h in d.values()]
    return not any(str(getattr(hook, "__module__", "")).startswith(("steerlab", "nnsight")) for hook in hooks)


@backends
@families
def test_output_of_block_k_is_hidden_states_k_plus_one(lm: LM, family: str, backend: str) -> None:
    model, oracle = lm(family, backend), tiny_hf(family)
    inputs = inputs_of(model)
    found = model.engine.capture_states(inputs, {}, [Site(k) for k in range(4)], lambda h: h)
    with torch.no_grad():
        expected = oracle(**inputs, output_hidden_states=True, use_cache=False).hidden_states
        normed = module_at(oracle, str(model.layout.final_norm_path))(found[:, 3])
    for k in range(3):
        assert torch.equal(found[:, k], expected[k + 1]), f"block {k}"
    assert torch.equal(normed, expected[4])
    self_check(model)


@backends
@families
def test_state_at_each_point_is_that_of_a_plain_hook(lm: LM, family: str, backend: str) -> None:
    model, oracle = lm(family, backend), tiny_hf(family)
    inputs = inputs_of(model)
    sites = [Site(2, "mlp_out"), Site(1, "attn_out"), Site(2), Site(1, "block_in"), Site(2, "attn_out"), Site(0)]
    found = model.engine.capture_states(inputs, {}, sites, lambda h: h.reshape(3, -1, 32))
    seen: list[Tensor] = []
    other = Model(oracle, model.tokenizer, find_layout(oracle), id=family)
    for i, site in enumerate(sites):
        with torch.no_grad(), plain.hooked(other, site, lambda h: seen.append(h) or h):
            oracle(**inputs, use_cache=False)
        assert torch.equal(found[:, i], seen.pop().reshape(3, -1, 32)) and not seen, str(site)


@families
def test_engines_agree_bit_for_bit_under_edits(lm: LM, family: str) -> None:
    nnsight, hooks = lm(family, "nnsight"), lm(family, "hooks")
    inputs = inputs_of(nnsight)
    steered = (Site(2), Site(1, "attn_out"))
    points = [Site(k, point) for k in range(4) for point in ("block_in", "attn_out", "block_out")]

    def both(run: Callable[[Model, SiteEdits], Tensor]) -> tuple[Tensor, Tensor]:
        return run(nnsight, edits_of(inputs, *steered)), run(hooks, edits_of(inputs, *steered))

    a, b = both(lambda m, edits: m.engine.capture_states(inputs, edits, points, lambda h: h))
    assert torch.equal(a, b)
    changed = (a != hooks.engine.capture_states(inputs, {}, points, lambda h: h)).flatten(2).any(2).any(0)
    assert not changed[: points.index(Site(1, "attn_out"))].any() and changed[points.index(Site(1, "attn_out")) :].all()
    a, b = both(lambda m, edits: m.engine.logits(inputs, edits, 3))
    assert a.shape == (3, 3, len(nnsight.tokenizer)) and torch.equal(a, b)
    assert not torch.equal(a, hooks.engine.logits(inputs, {}, 3))
    a, b = both(lambda m, edits: m.engine.generate(inputs, edits, max_new_tokens=5))
    assert torch.equal(a, b) and torch.equal(a[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])


@backends
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_capture_stops_after_the_deepest_site(lm: LM, family: str, backend: str) -> None:
    model = lm(family, backend)
    calls: list[int] = []
    with ExitStack() as stack:
        for k, block in enumerate(blocks(model.hf, model.layout)):
            stack.callback(block.register_forward_pre_hook(lambda *_, k=k: calls.append(k)).remove)
        model.engine.capture_states(inputs_of(model), {}, [Site(1), Site(0)], lambda h: h)
    assert calls == [0, 1]


@backends
@families
def test_model_is_bit_identical_after_an_exception(family: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_lm(family, backend=backend)
    inputs = inputs_of(model)
    with torch.no_grad():
        before = model.hf(**inputs).logits
    weights = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    edits = edits_of(inputs, Site(1), Site(2))
    model.engine.capture_states(inputs, edits, [Site(1)], lambda h: h)
    model.engine.generate(inputs, edits, max_new_tokens=2)
    with pytest.raises(AttributeError):
        model.engine.capture_states(inputs, {}, [Site(0)], lambda h: h.no_such_method())
    monkeypatch.setattr(Edit, "delta", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.engine.generate(inputs, edits, max_new_tokens=2)
    with pytest.raises(ZeroDivisionError):
        model.engine.logits(inputs, edits, 1)
    assert no_hooks(model.hf) and not model.hf.training
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.hf.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model.hf(**inputs).logits, before)
    assert torch.equal(model.engine.logits(inputs, {}, before.shape[1]), before)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(
    "prompts", [PROMPTS, ("hello", "there", "where"), ("hello there",)], ids=["padded", "even", "one"]
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_generation_is_the_same_without_cache(lm: LM, family: str, prompts: tuple[str, ...], use_cache: bool) -> None:
    """Where no row is padded, `generate` hands the model no attention mask."""
    nnsight, hooks = lm(family, "nnsight"), lm(family, "hooks")
    inputs = inputs_of(nnsight, prompts)
    options: dict[str, Any] = {"max_new_tokens": 6, "use_cache": use_cache}
    ids = nnsight.engine.generate(inputs, edits_of(inputs, Site(1), Site(3)), **options)
    again = edits_of(inputs, Site(1), Site(3))
    assert torch.equal(ids, hooks.engine.generate(inputs, again, **options))
    width = inputs["input_ids"].shape[1]
    steps = ids.shape[1] - width
    prompt_writes = int(again[Site(1)][0].prompt.sum())
    if use_cache:
        assert again[Site(1)][0].stats.totals()[0] == prompt_writes + len(prompts) * (steps - 1)
    # teacher-forced in one forward, every new token is the most likely one
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(ids[:, width:])], 1)
    full = hooks.inputs(Batch(ids, mask, (mask.cumsum(1) - 1).clamp(min=0), (), ()))
    best = hooks.engine.logits(full, edits_of(inputs, Site(1), Site(3)), steps + 1)[:, :-1].argmax(-1)
    for row, new in enumerate(ids[:, width:]):
        ended = (new == nnsight.tokenizer.eos_token_id).nonzero().flatten().tolist()
        stop = ended[0] + 1 if ended else steps
        assert torch.equal(best[row, :stop], new[:stop])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_samples_beams_and_early_ends_agree_between_engines(lm: LM, family: str) -> None:
    nnsight, hooks = lm(family, "nnsight"), lm(family, "hooks")
    inputs = inputs_of(nnsight)
    for options in ({"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}):
        results = []
        for model in (nnsight, hooks):
            torch.manual_seed(0)
            results.append(model.engine.generate(inputs, edits_of(inputs, Site(1)), max_new_tokens=4, **options))
        assert torch.equal(*results)
    width = inputs["input_ids"].shape[1]
    free = hooks.engine.generate(inputs, edits_of(inputs, Site(1)), max_new_tokens=8)
    first = free[:, width : width + 2].flatten().unique().tolist()
    for model in (nnsight, hooks):
        ids = model.engine.generate(inputs, edits_of(inputs, Site(1)), max_new_tokens=8, eos_token_id=first)
        assert torch.equal(ids, free[:, : ids.shape[1]]) or ids.shape[1] <= width + 2


WRONG = {
    "too few": (lambda found: found[:2], "the model reports 5 hidden states"),
    "inside the blocks": (lambda found: [block.mlp for block in found], "modules at 'other' .* number 0 is"),
    "another order": (lambda found: [found[i] for i in (0, 2, 1, 3)], "(blocks|modules) at 'other'"),
    "never called": (lambda found: [nn.Identity() for _ in found], "blocks at 'other'"),
}


@backends
@pytest.mark.parametrize("case", WRONG)
def test_self_check_names_a_wrong_layout(case: str, backend: str) -> None:
    pick, message = WRONG[case]
    hf = tiny_hf("llama")
    hf.other = nn.ModuleList(pick(list(hf.model.layers)))
    model = Model(hf, tiny_tokenizer(), Layout("other", "model.norm", "lm_head", None, None), id="x", backend=backend)
    with pytest.raises(LayoutError, match=message):
        self_check(model)
    with pytest.raises(LayoutError, match="no module for 'attn_out'"):
        model.engine.capture_states(inputs_of(model), {}, [Site(0, "attn_out")], lambda h: h)
    assert no_hooks(model.hf)
