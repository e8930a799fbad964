"""`page_of` and `token_effects`: texts equal `generate`, tokens equal plain hooks, bad input is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import plain
import pytest
import torch
from nightly import by_day
from torch import Tensor

import steerlab
from steerlab import Example, live
from steerlab.analysis.token_effects import token_effects
from steerlab.errors import DataError, EncodingError
from steerlab.methods import Operation, SteeringVector
from steerlab.models.model import Model
from steerlab.plots.page import check_contract

PROMPTS = ["Do herons sleep in the reeds by night?", "Is it cold?", "Why do the fish of the north sleep?"]
ALPHAS = (0.0, 0.5, 1.5)
NEW = 7
# random models write no words
pytestmark = pytest.mark.filterwarnings("ignore:without steering .* of the texts count as fluent:UserWarning")


def vectors(model: Model, seed: int = 0) -> dict[int, SteeringVector]:
    draw = torch.Generator().manual_seed(seed)
    return {k: SteeringVector({k: 2 * torch.randn(model.hidden_size, generator=draw)}) for k in (0, 2)}


def by_hooks(model: Model, ids: Sequence[int], n_prompt: int, layer: int, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities and block outputs of one row alone, with `shift` added from the last prompt token on."""
    kept: list[Tensor] = []

    def add(h: Tensor) -> Tensor:
        kept.append(h[0].clone())
        return plain.adding(shift, range(n_prompt - 1, len(ids)))(h)

    with plain.hooked(model, layer, add):
        return plain.logits(model, ids).log_softmax(-1), kept[0]


@pytest.mark.parametrize("family", by_day(("llama", "gpt2", "gemma2"), lambda family: family == "llama"))
@pytest.mark.parametrize("backend", ["hooks", "nnsight"])
def test_texts_of_the_page_are_those_of_generate(lm: Callable[..., Model], family: str, backend: str) -> None:
    model = lm(family, backend)
    methods = {"a": vectors(model), "b": vectors(model, 1)}
    page = live.page_of(model, PROMPTS, methods, alphas=ALPHAS, max_new_tokens=NEW, progress=False).to_dict()
    texts = {(t["method"], t["layer"], t["alpha"], t["prompt"]): t["text"] for t in page["texts"]}
    options: Any = {"max_new_tokens": NEW, "progress": False}
    assert [texts[None, None, 0, i] for i in range(3)] == list(steerlab.generate(model, PROMPTS, **options))
    for (m, name), (k, layer), (a, alpha) in product(enumerate(methods), enumerate((0, 2)), enumerate(ALPHAS)):
        if alpha:
            steer = methods[name][layer]
            found = steerlab.generate(model, PROMPTS, steer=steer, alpha=alpha, positions="last+generated", **options)
            assert [texts[m, k, a, i] for i in range(3)] == list(found)
    assert len(texts) == 3 + 2 * 2 * 2 * 3


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("layer", [0, 2])
def test_token_effects_equal_plain_hooks_on_each_row_alone(lm: Callable[..., Model], family: str, layer: int) -> None:
    model, alpha = lm(family), 1.5
    steerer = vectors(model)[layer]
    vector = steerer.vector_
    options: Any = {"steer": steerer, "alpha": alpha, "positions": "last+generated"}
    texts = steerlab.generate(model, PROMPTS, max_new_tokens=NEW, progress=False, **options)
    found = token_effects(model, PROMPTS, texts.ids, **options)
    for prompt, ids, records in zip(PROMPTS, texts.ids, found, strict=True):
        row = model.encode(prompt)
        whole, n = [*row.ids, *ids], len(row)
        before, h = by_hooks(model, whole, n, layer, torch.zeros(model.hidden_size))
        after, _ = by_hooks(model, whole, n, layer, alpha * vector)
        assert len(records) == len(ids)
        for i, (record, token) in enumerate(zip(records, ids, strict=True)):
            at = n - 1 + i  # the state that predicts the token
            kl = float((after[at].exp() * (after[at] - before[at])).sum())
            assert record["cosine"] == pytest.approx(float(torch.cosine_similarity(h[at], vector, dim=0)), abs=1e-4)
            assert record["norm_ratio"] == pytest.approx(float(alpha * vector.norm() / h[at].norm()), rel=1e-3)
            assert record["kl"] == pytest.approx(kl, abs=1e-4, rel=1e-3)
            assert record["logprob"] == pytest.approx(float(before[at, token]), abs=1e-4)
            for name, logprobs in (("top", after), ("unsteered", before)):
                shares = [share for _, share in record[name]]
                assert shares == pytest.approx(logprobs[at].exp().topk(3).values.tolist(), abs=1e-5)
        text = model.tokenizer.decode(list(ids))
        if "�" not in text:  # no token ends inside a character
            assert "".join(record["token"] for record in records) == text


def test_token_effects_do_not_depend_on_what_is_measured_together(lm: Callable[..., Model]) -> None:
    model = lm()
    methods = {"a": vectors(model), "b": vectors(model, 1)}
    options: Any = {"max_new_tokens": NEW, "progress": False, "alphas": ALPHAS}
    whole = live.page_of(model, PROMPTS, methods, **options).to_dict()
    alone = live.page_of(model, PROMPTS[1:2], {"b": methods["b"]}, **options).to_dict()

    def numbers(page: dict[str, Any], method: int, prompt: int) -> list[Any]:
        chosen = [t for t in page["texts"] if t["method"] == method and t["prompt"] == prompt]
        return [[token[1:4] for token in text["tokens"]] for text in chosen]

    for one, other in zip(numbers(whole, 1, 1), numbers(alone, 0, 0), strict=True):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(other), atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize("positions", ["all", "generated", "last"])
def test_other_positions_change_other_tokens(lm: Callable[..., Model], positions: str) -> None:
    model, steerer = lm(), vectors(lm())[2]
    texts = steerlab.generate(model, PROMPTS, steer=(), max_new_tokens=NEW, progress=False)
    for records in token_effects(model, PROMPTS, texts.ids, steer=steerer, positions=positions):
        moved = [record["norm_ratio"] > 0 for record in records]
        expected = {"all": [True] * len(moved), "generated": [False] + [True] * (len(moved) - 1)}
        assert moved == expected.get(positions, [True] + [False] * (len(moved) - 1))


def test_operators_without_a_vector_of_their_own_have_the_direction_of_the_change(lm: Callable[..., Model]) -> None:
    model = lm()
    removed = Operation(vectors(model)[2], "project_out")
    texts = steerlab.generate(model, PROMPTS, steer=(), max_new_tokens=NEW, progress=False)
    records = token_effects(model, PROMPTS, texts.ids, steer=removed, positions="last+generated")[0]
    assert all(record["norm_ratio"] == pytest.approx(abs(record["cosine"]), abs=1e-3) for record in records)


def test_strength_zero_changes_nothing(lm: Callable[..., Model]) -> None:
    model = lm()
    texts = steerlab.generate(model, PROMPTS, steer=(), max_new_tokens=NEW, progress=False)
    for records in token_effects(model, PROMPTS, texts.ids, steer=vectors(model)[2], alpha=0.0):
        assert all(record["kl"] < 1e-9 and record["cosine"] is None for record in records)
        assert all(record["top"] == record["unsteered"] for record in records)


def test_contrasts_are_measured_by_the_propensity_and_others_by_changed_words(lm: Callable[..., Model]) -> None:
    model = lm()
    given: Any = {"alphas": ALPHAS, "max_new_tokens": NEW, "progress": False}
    pairs = steerlab.pairs([("Yes, it is.", "No, it is not.")] * 3, prompts=PROMPTS)
    found = live.page_of(model, pairs, {"a": vectors(model)}, **given).to_dict()
    assert found["effect"]["name"] == "propensity"
    frame = steerlab.sweep(model, pairs, {"a": vectors(model)}, alphas=ALPHAS, progress=False)
    means = frame.groupby(["layer", "alpha"])["value"].mean()
    for cell in found["cells"]:
        expected = means[found["layers"][cell["layer"]], found["alphas"][cell["alpha"]]]
        assert cell["effect"] == pytest.approx(expected, rel=1e-2, abs=1e-4)
    plain = live.page_of(model, PROMPTS, {"a": vectors(model)}, **given).to_dict()
    assert plain["effect"]["name"] == "changed"
    assert all(cell["effect"] == 0 for cell in plain["cells"] if cell["alpha"] == 0)
    assert check_contract(plain)


def test_own_measures_are_used_and_checked(lm: Callable[..., Model]) -> None:
    model = lm()
    given: Any = {"alphas": ALPHAS, "max_new_tokens": NEW, "progress": False}

    def unsafe(examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
        return [1.0 if "cold" in str(e.prompt) else math.nan for e in examples]

    length = {"characters": lambda examples, texts: [len(text) for text in texts]}
    found = live.page_of(
        model, PROMPTS, {"a": vectors(model)}, effect=length, unsafe={"cold": unsafe}, **given
    ).to_dict()
    assert found["unsafe"]["label"] == "cold"
    for cell in found["cells"]:
        chosen = [t for t in found["texts"] if (t["method"], t["layer"], t["alpha"]) == tuple(cell.values())[:3]]
        if cell["alpha"]:
            assert cell["effect"] == pytest.approx(sum(len(t["text"]) for t in chosen) / 3, rel=6e-3)
            assert [t["unsafe"] is None for t in sorted(chosen, key=lambda t: t["prompt"])] == [True, False, True]
    with pytest.raises(DataError, match="the measure 'bad' gave 1 numbers for 18 texts"):
        live.page_of(model, PROMPTS, {"a": vectors(model)}, effect={"bad": lambda e, t: [0.0]}, **given)
    with pytest.raises(DataError, match="18 of them not finite"):
        live.page_of(model, PROMPTS, {"a": vectors(model)}, effect={"bad": lambda e, t: [math.nan] * len(t)}, **given)


def test_too_large_a_page_is_refused_before_any_forward(lm: Callable[..., Model]) -> None:
    model = lm()
    with pytest.raises(DataError, match=r"30 alphas .at most 25.*keep one in 2 of the 30"):
        live.page_of(model, PROMPTS, {"a": vectors(model)}, alphas=[i / 10 for i in range(30)])


def test_texts_that_are_missing_or_too_long_are_refused(lm: Callable[..., Model]) -> None:
    with pytest.raises(DataError, match="3 prompts but 1 texts"):
        token_effects(lm(), PROMPTS, [[1, 2]], steer=vectors(lm())[2])
    room = (lm().context_length or 0) - len(lm().encode(PROMPTS[0])) - 1
    long_prompt = "of herons " * (room // 8)
    assert len(token_effects(lm(), [PROMPTS[0], long_prompt], [[1] * room, [1]], steer=vectors(lm())[2])[0]) == room
    with pytest.raises(EncodingError, match="exceeds the model's context"):
        token_effects(lm(), PROMPTS[:1], [[1] * (lm().context_length or 0)], steer=vectors(lm())[2])


def test_page_of_an_image_model_shows_images_with_their_questions() -> None:
    from _image_questions import image_questions

    model = steerlab.load("scenes-vlm", backend="hooks")
    rows = image_questions("test", 3, 0).of_type("color")[:2]
    vector = SteeringVector({2: torch.randn(model.hidden_size, generator=torch.Generator().manual_seed(0))})
    page = live.page_of(model, rows, {"mean": vector}, alphas=[0.0, 1.0], max_new_tokens=4, progress=False).to_dict()
    assert [len(prompt["images"]) for prompt in page["prompts"]] == [1, 1]
    found = steerlab.generate(
        model, rows, steer=vector, alpha=1.0, positions="last+generated", max_new_tokens=4, progress=False
    )
    assert [text["text"] for text in page["texts"] if text["method"] == 0] == list(found)
    assert all(token[1] is not None for text in page["texts"] for token in text["tokens"])


@pytest.mark.nightly
def test_page_of_smollm2_has_the_texts_of_generate(smollm2_cache) -> None:
    model = steerlab.load("smollm2")
    draw = torch.Generator().manual_seed(0)
    vector = SteeringVector({16: 20 * torch.randn(model.hidden_size, generator=draw)})
    page = live.page_of(
        model, PROMPTS, {"v": vector}, alphas=[0.0, 0.5, 1.0], max_new_tokens=16, progress=False
    ).to_dict()
    for a, alpha in enumerate((0.5, 1.0), 1):
        found = steerlab.generate(
            model, PROMPTS, steer=vector, alpha=alpha, positions="last+generated", max_new_tokens=16, progress=False
        )
        assert [t["text"] for t in page["texts"] if t["method"] == 0 and t["alpha"] == a] == list(found)
