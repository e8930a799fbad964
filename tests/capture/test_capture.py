"""`capture` against Hugging Face's hidden states, one row at a time."""

import logging
from math import inf
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from steerlab import Activations, Contrast, Example, Site, capture, errors
from steerlab._support.memory import halve_on_oom
from steerlab.capturing.activations import INDEX_COLUMNS
from steerlab.capturing.rows import TokenSelector
from steerlab.data.inputs import as_examples
from steerlab.errors import ActivationError, DataError, EncodingError, LayoutError, PositionError, is_out_of_memory
from steerlab.models.encoding import EncodedPrompt
from steerlab.models.layout import module_at
from steerlab.models.model import Model
from steerlab.models.positions import Match
from steerlab.testing import FAMILIES, tiny_lm

BACKENDS = ("nnsight", "hooks")
PROMPTS = ["hello there", "how are you today, my very dear friend?", "no", "hello  again", "in the end"]
LAYERS = (0, 2, 3)
PAIRS = [
    Example("Say it.", Contrast("I can't say it.", "Sure, it is this."), id="a", behavior="refuse", split="train"),
    Example("Say it again.", Contrast("No.", "Yes, of course."), id="b", behavior="refuse", system="Be brief."),
    Example(
        "Is it?", Contrast("Ask an expert", "Ask an export", end_turn=True), id="c", behavior="defer", split="test"
    ),
    Example("Leave it.", id="d", behavior="answer"),
    Example("Is it", Contrast("Harmful", "Safe", suffix="safe or harmful?", end_turn=True), id="e", behavior="rate"),
]
NEAR = {"rtol": 1e-5, "atol": 1e-5}


def quiet(model: Model, data: Any, **options: Any) -> Activations:
    return capture(model, data, progress=False, **options)


def reference(model: Model, row: EncodedPrompt) -> Tensor:
    """Every block's output on one unpadded row, `(token, layer, hidden)`, from plain Hugging Face and one hook."""
    deepest: list[Tensor] = []
    norm = module_at(model.hf, str(model.layout.final_norm_path))
    with norm.register_forward_pre_hook(lambda _, args: deepest.append(args[0])), torch.no_grad():
        states = model.hf(input_ids=torch.tensor([row.ids]), output_hidden_states=True, use_cache=False).hidden_states
    return torch.stack([*states[1:-1], deepest[0]], 2)[0]


def answers(pair: Example) -> dict[str, str]:
    assert pair.contrast is not None
    return {"positive": pair.contrast.positive, "negative": pair.contrast.negative}


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize(
    ("family", "backend"), [*((f, "hooks") for f in FAMILIES), ("llama", "nnsight"), ("opt", "nnsight")]
)
def test_states_match_hugging_face_in_the_order_of_the_data(lm, family, backend, padding):
    model, plain = lm(family, backend), lm(family, "hooks")
    acts = quiet(model, PROMPTS, layers=LAYERS, positions=["last", "user"], padding=padding, batch_size=2)
    for i, prompt in enumerate(PROMPTS):
        row = plain.encode(prompt)
        expected = reference(plain, row)[:, list(LAYERS)]
        torch.testing.assert_close(acts.values[2 * i], expected[-1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(acts.values[2 * i + 1], expected[row.kind("user")].mean(0), rtol=1e-4, atol=1e-4)
    assert acts.index["example_id"].tolist() == [e.id for e in as_examples(PROMPTS) for _ in range(2)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_single_row_equals_hugging_face_exactly(lm, backend):
    plain = lm("llama", "hooks")
    for prompt in PROMPTS:
        acts = quiet(lm("llama", backend), [prompt], positions="all", reduce="none")
        assert torch.equal(acts.values, reference(plain, plain.encode(prompt)))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompts=st.lists(st.text("ab .", min_size=1, max_size=20).filter(str.strip), min_size=1, max_size=5),
    batch_size=st.integers(1, 5),
    padding=st.sampled_from(["left", "right"]),
)
def test_batched_states_equal_single_rows(lm, prompts, batch_size, padding):
    model = lm("gpt2", "hooks")
    batched = quiet(model, prompts, positions=["last", "prompt"], batch_size=batch_size, padding=padding)
    alone = [quiet(model, [prompt], positions=["last", "prompt"]).values for prompt in prompts]
    torch.testing.assert_close(batched.values, torch.cat(alone), **NEAR)


def test_mean_equals_numpys_over_the_same_tokens(model):
    mean = quiet(model, PAIRS, positions=["answer", "last+generated"])
    each = quiet(model, PAIRS, positions=["answer", "last+generated"], reduce="none")
    for i, label in mean.index.iterrows():
        rows = each.select(**label[["example_id", "side", "position"]]).values.numpy()
        assert len(rows) == label["n_tokens"]
        np.testing.assert_allclose(mean.values[int(i)].numpy(), rows.mean(0), rtol=1e-5, atol=1e-6)
        single = label["n_tokens"] == 1
        assert (label["column"] >= 0) == single and (label["token"] >= 0) == single


def test_mask_selects_tokens_of_each_example(model):
    mask = torch.zeros(len(PROMPTS), 12, dtype=torch.bool)
    for i in range(len(PROMPTS)):
        mask[i, i : i + 2] = True
    acts = quiet(model, PROMPTS, positions=mask, batch_size=2)
    for i, prompt in enumerate(PROMPTS):
        expected = reference(model, model.encode(prompt))[i : i + 2].mean(0)
        torch.testing.assert_close(acts.values[i], expected, rtol=1e-4, atol=1e-4)


def test_reduce_none_gives_one_row_per_token_with_id_and_column(model):
    acts = quiet(model, PAIRS[:2], positions="all", context=None, reduce="none", batch_size=3)
    assert (acts.index["n_tokens"] == 1).all()
    for example in PAIRS[:2]:
        for side, answer in answers(example).items():
            row = model.encode(example.prompt, answer=answer, system=example.system)
            part = acts.select(example_id=example.id, side=side).index
            assert part["token"].tolist() == list(row.ids)
            assert part["column"].tolist() == list(range(len(row)))


def test_index_columns_and_order(model):
    acts = quiet(model, PAIRS, positions="answer", batch_size=2)
    assert tuple(acts.index.columns) == INDEX_COLUMNS and list(acts.index.index) == list(range(len(acts)))
    assert list(dict.fromkeys(acts.index["example_id"])) == ["a", "b", "c", "d", "e"]
    for example in PAIRS:
        part = acts.select(example_id=example.id).index
        assert set(part["behavior"]) == {example.behavior} and set(part["split"]) == {example.split}
        assert sorted(part["side"]) == (["negative", "positive", "prompt"] if example.contrast else ["prompt"])
        assert set(part.loc[part["side"] == "prompt", "position"]) == {"last"}
    acts = quiet(model, PAIRS, positions="answer", context=None, batch_size=1)
    assert set(acts.index["side"]) == {"positive", "negative"} and "d" not in set(acts.index["example_id"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("token", [-1, -2, "last_user", "answer"])
def test_contrast_equals_the_difference_of_separate_captures_exactly(lm, backend, token):
    """Each answer has a capture of its own, against a filler that is not looked at."""
    model, filler = lm("llama", backend), "..."
    for pair in PAIRS[:3]:
        plus, minus = answers(pair).values()
        one, two = (
            quiet(model, [pair.replace(contrast=Contrast(text, filler))], positions=token, context=None, batch_size=1)
            for text in (plus, minus)
        )
        difference = one.select(side="positive").values - two.select(side="positive").values
        for texts, expected in (((plus, minus), difference), ((minus, plus), -difference)):
            acts = quiet(model, [pair.replace(contrast=Contrast(*texts))], positions=token, context=None, batch_size=1)
            for layer in range(model.n_layers):
                assert torch.equal(acts.contrast(layer)[1], expected[:, layer])
                assert acts.values.dtype == torch.float32
        assert bool(difference.any()) == (token != "last_user"), "before the answer both sides are the same"


@pytest.mark.parametrize("family", FAMILIES)
def test_states_before_the_first_difference_are_equal_in_both_sides(lm, family):
    model = lm(family, "hooks")
    pair = PAIRS[2]
    acts = quiet(model, [pair], positions="all", context=None, reduce="none")
    plus, minus = (acts.select(side=side) for side in ("positive", "negative"))
    tokens = zip(plus.index["token"], minus.index["token"], strict=False)
    first = next(i for i, (a, b) in enumerate(tokens) if a != b)
    assert first > len(model.encode(pair.prompt)), "the sides share words: the premise"
    torch.testing.assert_close(plus.values[:first], minus.values[:first], **NEAR)
    assert (plus.values[first] != minus.values[first]).any(-1).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_context_does_not_depend_on_the_contrast(lm, family):
    model = lm(family, "hooks")
    context = ["last", "user", Match("it"), 2, -1, slice(1, 4), slice(None), "prompt", "all"]
    with_pairs = quiet(model, PAIRS, context=context).select(side="prompt")
    plain = quiet(model, [e.replace(contrast=None) for e in PAIRS], positions=context)
    torch.testing.assert_close(with_pairs.values, plain.values, **NEAR)
    order = ["example_id", "position"]
    first, second = (acts.index.sort_values(order, ignore_index=True) for acts in (with_pairs, plain))
    assert first.equals(second)


def test_suffix_is_in_both_sides_and_not_in_the_context(model):
    pair = PAIRS[4]
    acts = quiet(model, [pair], positions="all", context="prompt", reduce="none")
    assert acts.select(side="prompt").index["token"].tolist() == list(model.encode(pair.prompt).ids)
    for side, answer in answers(pair).items():
        row = model.encode("Is it safe or harmful?", answer=answer, end_turn=True)
        assert acts.select(side=side).index["token"].tolist() == list(row.ids)
    plain = quiet(model, ["Is it"], positions="all", reduce="none")
    assert torch.equal(acts.select(side="prompt").values, plain.values)


def count_rows(model: Model, monkeypatch: pytest.MonkeyPatch, limit: float = inf) -> list[int]:
    """The number of rows of each `engine.capture_states`; above the limit memory runs out."""
    rows: list[int] = []
    capture_states = model.engine.capture_states

    def counting(inputs: Any, *args: Any) -> Tensor:
        rows.append(len(inputs["input_ids"]))
        if rows[-1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return capture_states(inputs, *args)

    monkeypatch.setattr(model.engine, "capture_states", counting)
    return rows


def test_context_needs_no_forward_without_a_suffix(model, monkeypatch):
    quiet(model, PAIRS)  # tries the shortcuts, which takes forwards of its own
    rows = count_rows(model, monkeypatch)
    quiet(model, PAIRS)
    assert sum(rows) == 2 * 3 + 1 + 3  # three pairs, one plain prompt, one pair with a suffix


def test_prompts_that_are_encoded_already_are_not_encoded_again(model, monkeypatch):
    expected = quiet(model, PROMPTS, positions=["last", "user"])
    encoded = {e.id: model.encode(e.prompt) for e in as_examples(PROMPTS)}
    monkeypatch.setattr(Model, "encode", lambda *_, **__: pytest.fail("encoded again"))
    assert torch.equal(quiet(model, PROMPTS, positions=["last", "user"], encoded=encoded).values, expected.values)


def test_one_forward_per_batch_and_only_selected_states_are_copied(model, monkeypatch):
    rows = count_rows(model, monkeypatch)
    acts = quiet(model, PROMPTS, batch_size=2)
    assert rows == [2, 2, 1]
    assert acts.info["bytes_copied"] == acts.values.nbytes == 5 * 4 * 32 * 4
    half = quiet(model, PROMPTS, dtype=torch.bfloat16)
    assert half.values.dtype == torch.bfloat16 and half.info["bytes_copied"] == 5 * 4 * 32 * 2


def test_out_of_memory_halves_the_batch(model, monkeypatch, caplog):
    before = quiet(model, PROMPTS, positions=["last", "user"])
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        rows = count_rows(model, patched, limit=2)
        after = quiet(model, PROMPTS, positions=["last", "user"])
    torch.testing.assert_close(after.values, before.values, **NEAR)
    assert after.index.equals(before.index)
    assert "out of memory at a batch of 5 rows: going on with 2 and 3" in caplog.text
    assert max(rows) == 5 and sum(n for n in rows if n <= 2) == 5
    count_rows(model, monkeypatch, limit=0)
    with pytest.raises(errors.OutOfMemory, match=r"one row of \d+ tokens does not fit in the memory of cpu"):
        quiet(model, PROMPTS)


def test_out_of_memory_of_other_devices_is_recognized() -> None:
    apple = RuntimeError("MPS backend out of memory (MPS allocated: 8.96 GB, max allowed: 9.07 GB).")
    assert is_out_of_memory(apple) and is_out_of_memory(MemoryError())

    def run(items: list[int]) -> int:
        if len(items) > 1:
            raise MemoryError
        return items[0]

    assert halve_on_oom(run, [1, 2, 3]) == [1, 2, 3]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("where", ["model", "selector"])
def test_out_of_memory_is_recognized_anywhere_in_a_forward(monkeypatch, caplog, backend, where):
    model = tiny_lm(backend=backend)
    before = quiet(model, PROMPTS)
    select = TokenSelector.__call__

    def limited(self: TokenSelector, h: Tensor) -> Tensor:
        return torch.empty(2**50) if len(h) > 2 else select(self, h)

    if where == "model":
        block = module_at(model.hf, f"{model.layout.blocks_path}.1")
        block.register_forward_pre_hook(lambda _, args: torch.empty(2**50) if len(args[0]) > 2 else None)
    else:
        monkeypatch.setattr(TokenSelector, "__call__", limited)
    torch.testing.assert_close(quiet(model, PROMPTS).values, before.values, **NEAR)
    assert "out of memory at a batch of 5 rows: going on with 2 and 3" in caplog.text


def test_other_errors_are_not_taken_for_out_of_memory(model, monkeypatch):
    monkeypatch.setattr(model.engine, "capture_states", lambda *_: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        quiet(model, PROMPTS)


@pytest.mark.parametrize(
    ("layers", "sites"),
    [
        ("all", [Site(0), Site(1), Site(2), Site(3)]), (2, [Site(2)]), (np.int64(2), [Site(2)]),
        ([np.int64(2)], [Site(2)]), (-1, [Site(3)]), ([3, 0, -1], [Site(0), Site(3)]),
        ([Site(1, "attn_out"), 1], [Site(1, "attn_out"), Site(1)]), (range(2), [Site(0), Site(1)]),
    ],
)  # fmt: skip
def test_layers_are_block_numbers(model, layers, sites):
    acts = quiet(model, PROMPTS, layers=layers)
    assert sorted(acts.sites) == sorted(sites) and len(acts.sites) == len(sites)
    everything = quiet(model, PROMPTS, layers=[Site(k, p) for k in range(4) for p in ("attn_out", "block_out")])
    for site in sites:
        # not exactly: shallow captures run whole rows, deeper ones share what the prompts begin with
        torch.testing.assert_close(acts.at(site), everything.at(site), **NEAR)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": 4}, LayoutError, "layer 4 does not exist: the model has 4 decoder blocks"),
        ({"layers": [0, -5]}, LayoutError, "layer -5 does not exist"),
        ({"layers": []}, LayoutError, "layers is empty"),
        ({"data": []}, DataError, "data set is empty"),
        ({"data": [PAIRS[0], PAIRS[0]]}, DataError, "the id 'a' occurs twice"),
        ({"data": "hello there"}, DataError, "one string"),
        ({"data": [""]}, EncodingError, r"the prompt '0:\w{8}' is empty"),
        ({"data": ["a b c " * 200]}, EncodingError, r"'0:\w{8}' has .* tokens; the model's context holds 512"),
        ({"positions": "answer"}, PositionError, "position answer matches no token of the row .'0:\w{8}'."),
        ({"positions": "lst"}, PositionError, "unknown position 'lst'"),
        ({"data": PAIRS, "positions": 500}, PositionError, "position 500 is outside a row of .* tokens .'a'."),
        ({"data": PAIRS[3:4], "positions": torch.ones(1, 3)}, PositionError, "must be a bool tensor"),
    ],
)
def test_bad_requests_raise_before_any_forward(model, monkeypatch, options, error, message):
    rows = count_rows(model, monkeypatch)
    with pytest.raises(error, match=message):
        quiet(model, **{"data": PROMPTS, **options})
    assert rows == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_error_names_the_example(backend):
    model = tiny_lm(backend=backend)
    torch.nn.Module.get_parameter(model.hf, "model.layers.2.mlp.down_proj.weight").fill_(float("nan"))
    with pytest.raises(
        ActivationError, match=r"1 of 1 rows hold NaN or infinity, first at .*, first example 'mine' .prompt, last."
    ):
        quiet(model, [Example("hello", id="mine")])
    assert torch.isfinite(quiet(model, [Example("hello", id="mine")], layers=[0, 1]).values).all()


def test_a_contrast_is_read_at_its_own_position_if_none_is_given(lm) -> None:
    pairs = [Example("Is it?", id="a", contrast=Contrast("It is (A)", "It is (B)", position="first_difference"))]
    answers = capture(lm(), pairs, layers=[1], progress=False).select(side=["positive", "negative"])
    assert answers.index["position"].tolist() == ["first_difference"] * 2 and not (answers.index["token"] < 0).any()


def test_a_mean_over_tokens_has_no_column_and_no_token(lm) -> None:
    acts = capture(lm(), ["Is it so?"], layers=[1], positions=["user", "last"], progress=False)
    index = acts.index.set_index("position")
    assert index.loc["user", ["column", "token"]].tolist() == [-1, -1] and index.loc["user", "n_tokens"] > 1
    assert index.loc["last", "n_tokens"] == 1 and index.loc["last", "column"] == len(lm().encode("Is it so?")) - 1


def test_what_is_no_capture_is_refused_before_the_first_forward(lm) -> None:
    options = {"layers": [1], "progress": False}
    with pytest.raises(PositionError, match="positions is empty"):
        capture(lm(), ["hi"], positions=[], **options)
    extra = [Example("hi", id="a", extra_prompts={"task": "do it"})]
    with pytest.raises(DataError, match=r"extra_prompts.*a list of names, or None for all"):
        capture(lm(), extra, extra_prompts="task", **options)
    training = tiny_lm()
    training.hf.train()
    with pytest.raises(errors.SteerlabError, match="is in training mode"):
        capture(training, ["hi"], **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_hook_of_the_users_own_shows_at_the_input_of_the_next_block(backend: str) -> None:
    model, sites = tiny_lm("llama", backend=backend), [Site(1), Site(2, "block_in")]
    before = quiet(model, PROMPTS, layers=sites)
    handle = model.hf.model.layers[1].register_forward_hook(lambda _module, _args, h: h + 5)
    after = quiet(model, PROMPTS, layers=sites)
    handle.remove()
    assert torch.equal(after.at(sites[0]), before.at(sites[0])), "what the block computes"
    torch.testing.assert_close(after.at(sites[1]), before.at(sites[1]) + 5, **NEAR)
