"""Blocks and calls that run into one another: each number is that of its own call, or there is an error."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fitted import Fixed
from transformers import DynamicCache, StoppingCriteria

import steerlab
from steerlab import Site, SteeringVector, steer, sweep
from steerlab.errors import SteeringError, SteerlabError
from steerlab.methods import Operation
from steerlab.methods.base import Intervention
from steerlab.models.model import Model
from steerlab.steering.batches import OPEN_RUNS
from steerlab.testing import tiny_hf, tiny_lm, tiny_tokenizer

PROMPTS = ["How do I bake bread?", "Why is the sky blue, really?"]


def vector(layer: int, seed: int = 0) -> SteeringVector:
    return SteeringVector({layer: 3 * torch.randn(32, generator=torch.Generator().manual_seed(seed))})


def ids_of(model: Model, **options: Any) -> Any:
    return steerlab.generate(model, PROMPTS, max_new_tokens=6, progress=False, **options).ids


def test_blocks_left_out_of_order_are_refused_and_nothing_stays_steered(lm) -> None:
    model = lm()

    def stream(steerer: SteeringVector, n: int) -> Iterator[Any]:
        with steer(model, steerer):
            for _ in range(n):
                yield ids_of(model)

    plain, first, second = ids_of(model), stream(vector(2), 1), stream(vector(2, 1), 2)
    next(first), next(second)
    with pytest.raises(SteeringError, match="left before one that was opened later"):
        next(first)
    assert next(second) == ids_of(model, steer=vector(2, 1)) and not list(second)
    assert ids_of(model) == plain and not OPEN_RUNS.get()


def test_two_models_around_the_same_weights_are_not_steered_at_once() -> None:
    hf = tiny_hf()
    one, other = (steerlab.load(hf, tokenizer=tiny_tokenizer(), chat=chat) for chat in (True, False))
    with pytest.raises(SteeringError, match="another `Model` with the same weights"), steer(one, vector(1)):  # noqa: SIM117
        with steer(other, vector(2)):
            pass


@pytest.mark.parametrize("backend", ["nnsight", "hooks"])
def test_a_sweep_of_texts_is_the_same_inside_a_block(backend: str) -> None:
    model, seen = tiny_lm("llama", backend=backend), []

    def length(examples: Any, texts: list[str]) -> list[float]:
        seen.extend(texts)
        return [float(len(text)) for text in texts]

    given: dict[str, Any] = {"metric": length, "generation": {"max_new_tokens": 8}, "progress": False}
    sweep(model, PROMPTS, {"v": vector(2)}, [2], [0, 1], "last+generated", **given)
    with steer(model, vector(1, 5)) as run:
        run.generate(["x"], max_new_tokens=1, progress=False)
        sweep(model, PROMPTS, {"v": vector(2)}, [2], [0, 1], "last+generated", **given)
    assert seen[:4] == seen[4:]


@pytest.mark.parametrize("backend", ["nnsight", "hooks"])
@pytest.mark.parametrize("directly", [False, True])
def test_a_call_inside_a_generation_is_refused(backend: str, directly: bool) -> None:
    model = tiny_lm("llama", backend=backend)

    class Judge(StoppingCriteria):
        def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            steerlab.next_token_logits(model, PROMPTS, steer=(), progress=False)
            return torch.zeros(len(ids), dtype=torch.bool)

    with pytest.raises(SteerlabError, match="a call inside"):
        if directly:
            with steer(model, vector(1)):
                model.hf.generate(
                    **model.tokenizer("Hi", return_tensors="pt"), max_new_tokens=3, stopping_criteria=[Judge()]
                )
        else:
            ids_of(model, steer=vector(1), stopping_criteria=[Judge()])
    assert not model.lock._is_owned() and ids_of(model) == ids_of(tiny_lm("llama", backend=backend))


def test_other_weights_in_a_loaded_model_are_refused() -> None:
    model = steerlab.load(tiny_hf(), tokenizer=tiny_tokenizer())
    steerlab.capture(model, PROMPTS, layers=1, progress=False)
    model.hf = tiny_hf("llama", n_layers=3)
    for verb in (ids_of, lambda m: steerlab.capture(m, PROMPTS, layers=1, progress=False)):
        with pytest.raises(SteerlabError, match="other weights in"):
            verb(model)


def test_a_used_cache_is_refused_where_tokens_would_be_missed(lm) -> None:
    model = lm()
    with pytest.raises(SteeringError, match="past_key_values can't be given"):
        ids_of(model, past_key_values=DynamicCache())
    turns = [model.tokenizer(text, return_tensors="pt").input_ids for text in PROMPTS]
    with steer(model, vector(1)) as run, torch.no_grad():
        cache = model.hf(turns[0], use_cache=True).past_key_values
        model.hf(turns[1], past_key_values=cache)
        assert run.steered_tokens == sum(turn.shape[1] for turn in turns)
    cases = [(vector(1), "last"), (Operation(vector(1), first=2), "all"), (Operation(vector(1), decay=0.5), "all")]
    cases += [(Fixed(Intervention(Site(1), torch.ones(1, 32), positions="last")), "all")]
    for steerer, positions in cases:
        with steer(model, steerer, positions=positions), torch.no_grad():
            cache = model.hf(turns[0], use_cache=True).past_key_values
            with pytest.raises(SteeringError, match="it matters which are the prompt"):
                model.hf(turns[1], past_key_values=cache)
            model.hf(turns[1][:, :1], past_key_values=cache)


@pytest.mark.parametrize("options", [{"first": 1}, {"decay": 0.5}])
def test_new_tokens_are_counted_from_the_width_where_rows_are_padded_on_the_right(options: dict[str, Any]) -> None:
    model = tiny_lm("llama", backend="hooks")
    rows = [model.tokenizer(text, return_tensors="pt").input_ids[0] for text in ("A long prompt of many letters", "Hi")]

    def decoded(rows: list[torch.Tensor]) -> torch.Tensor:
        width = max(map(len, rows))
        ids, mask = (torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in given])
                     for given in (rows, [torch.ones_like(row) for row in rows]))  # fmt: skip
        with torch.no_grad(), steer(model, Operation(vector(2), **options), positions="generated"):
            cache = model.hf(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).past_key_values
            for step in range(2):
                mask = torch.cat([mask, torch.ones(len(rows), 1, dtype=torch.long)], 1)
                at = mask.sum(1, keepdim=True) - 1
                given = {"attention_mask": mask, "position_ids": at, "past_key_values": cache}
                logits = model.hf(torch.full((len(rows), 1), 80 + step), **given).logits[:, -1]
        return logits

    assert torch.allclose(decoded(rows), torch.cat([decoded([row]) for row in rows]), atol=1e-5)
