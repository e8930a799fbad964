"""Every operator against plain hooks, row by row, in the prompt and while decoding."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from itertools import product
from typing import Any

import hypothesis
import plain
import pytest
import torch
from comparisons import check_copies, check_hooks, check_padding, edits_of, encoded, states
from fitted import ANSWERS, HIDDEN, IDS, LAYER, PROMPTS, Fixed, make_lm, make_steerers, own_vector, sides
from hypothesis import strategies as st
from nightly import by_day
from torch import Tensor

from steerlab import Contrast, Example, Request, Site, SteeringVector, capture, generate, load_steerer, score, steer
from steerlab.errors import DataError, LayoutError, MismatchError, SteeringError
from steerlab.methods import Add, AlphaSteer, Clamp, Gated, LinearProbe, Operation, Replace, Rotate, Scale
from steerlab.methods.base import Context, Intervention
from steerlab.methods.gradient import GradientField
from steerlab.methods.spherical import Spherical
from steerlab.models.check import self_check
from steerlab.models.layout import find_layout
from steerlab.models.model import Model
from steerlab.testing import FAMILIES, tiny_hf

V = 3 * torch.randn(HIDDEN, generator=torch.Generator().manual_seed(4))
U = V / V.norm()
WHERE = "last+generated"

# name: what is given to `Operation`, and the same by hand for states `(tokens, hidden)`, a strength and a vector
OPERATIONS: dict[str, tuple[Any, Callable[..., Tensor]]] = {
    "add": ("add", lambda h, a, v=V: h + a * v),
    "project_out": ("project_out", lambda h, a, v=V: h - a * torch.outer(h @ v, v) / (v @ v)),
    "clamp": (Clamp(-0.1, 0.05), lambda h, a, v=V: limited(h, a, v / v.norm(), -0.1, 0.05)),
    "cap": (Clamp(high=-0.05), lambda h, a, v=V: limited(h, a, v / v.norm(), None, -0.05)),
    "replace": ("replace", lambda h, a, v=V: (1 - a) * h + a * v),
    "rotate": ("rotate", lambda h, a, v=V: plain.turned(h, v / v.norm(), a)),
    "scale": (Scale(0.25), lambda h, a, v=V: h * (1 + a * (0.25 - 1))),
}
FEW = ("gemma2", "gpt2")  # all others are compared at night
kinds = pytest.mark.parametrize("name", [*OPERATIONS, "head", "fading", "gated", "spherical", "field"])


def limited(h: Tensor, a: float, u: Tensor, low: float | None, high: float | None) -> Tensor:
    """The component along u moved into a range, by a share; a cap below 0 moves every component below it."""
    return h + a * torch.outer((h @ u).clamp(low, high) - h @ u, u)


def operation(name: str, point: str = "block_out", **options: Any) -> Operation:
    site = Site(LAYER, point)
    return Operation(site if name == "scale" else SteeringVector({site: V}), OPERATIONS[name][0], **options)


def by_hand(
    model: Model, change: Callable[[Tensor, float], Tensor], alpha: Callable[[int], float], positions: str,
    number: int, prompt: str, point: str = "block_out",
) -> list[Any]:  # fmt: skip
    """A hook that changes each token by itself; `alpha` gives the strength of the k-th generated token, or of -1."""
    _, n_prompt = plain.chat_ids(model, prompt)

    def changed(h: Tensor) -> Tensor:
        h = h.clone()
        for column in plain.COLUMNS[positions](n_prompt, h.shape[1]):
            if strength := alpha(max(column - n_prompt, -1)):
                h[0, column] = change(h[0, column : column + 1].float(), strength)[0].to(h)
        return h

    return [plain.hooked(model, Site(LAYER, point), changed)]


PLACES = ["nnsight block_in", "nnsight attn_out", "nnsight mlp_out", "hooks block_out"]


@pytest.mark.parametrize(
    ("family", "name", "where"),
    by_day(
        [*product(FAMILIES, OPERATIONS, ["nnsight block_out"]), *product(FEW, OPERATIONS, PLACES)],
        lambda family, name, where: name == "project_out" or (family in FEW and "block_out" in where),
    ),
)
def test_operators_equal_plain_hooks_in_every_family(family: str, name: str, where: str) -> None:
    (backend, point), change = where.split(), OPERATIONS[name][1]
    model = make_lm(family, backend)
    hooks = partial(by_hand, model, change, lambda _: 0.7, WHERE, point=point)
    check_hooks(model, Request(operation(name, point), 0.7, WHERE), hooks)


@sides
@pytest.mark.parametrize("name", OPERATIONS)
def test_operators_leave_padding_out(side: str, name: str) -> None:
    check_padding(make_lm("gpt2"), Request(operation(name), 0.7, "all"), side)


def steerer_called(name: str) -> Any:
    """An operation; one of a head, for a while, or gated by token; a method that brings its own."""
    if name == "head":
        return Operation(SteeringVector({HEADS: V}), "project_out", heads=[1])
    if name == "field":
        return GradientField(LAYER, epochs=2).fit(make_acts_at(LAYER))
    if name == "spherical":
        return Spherical([LAYER], concentration=1.0, threshold=-1.0).fit(make_acts_at(LAYER))
    options = {"fading": {"first": 3, "decay": 0.5}, "gated": {"gate": lambda h: (h[..., 0] > 0).float()}}
    return operation("rotate" if name in options else name, **options.get(name, {}))


@pytest.mark.parametrize("backend", by_day(["nnsight", "hooks"], lambda backend: backend == "nnsight"))
@kinds
def test_strength_zero_and_unsteered_rows_are_bit_identical(name: str, backend: str) -> None:
    model, steerer = make_lm("llama", backend), steerer_called(name)
    batch = encoded(model)
    before = states(model, batch, {})
    none, mixed = (states(model, batch, edits_of(model, batch, Request(steerer, a))) for a in (0.0, [0.0, 0.5, 0.0]))
    assert torch.equal(none, before) and torch.equal(mixed[::2], before[::2]) and not torch.equal(mixed[1], before[1])
    texts, scores = generate(model, PROMPTS, max_new_tokens=4).ids, score(model, PROMPTS, ANSWERS)["logprob"].tolist()
    for alpha, same in ((0.0, slice(3)), ([0.0, 0.5, 0.0], slice(0, 3, 2))):
        how: dict[str, Any] = {"steer": steerer, "alpha": alpha}
        assert generate(model, PROMPTS, max_new_tokens=4, **how).ids[same] == texts[same]
        assert score(model, PROMPTS, ANSWERS, **how)["logprob"].tolist()[same] == scores[same]
    h = torch.randn(3, 4, HIDDEN)
    for one in steerer.interventions(Context(IDS)):
        vector = torch.zeros(HIDDEN) if one.vectors is None else one.vectors[:, None]
        assert torch.equal(one.rule.operator(h, vector, torch.zeros(3, 4, 1)), h), "nor does the operator itself"


@kinds
def test_copies_of_rows_are_changed_as_their_row_alone(name: str) -> None:
    check_copies(make_lm("llama"), Request(steerer_called(name), 0.7, "all"))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_generated_tokens_are_steered_for_a_while_and_less_and_less(family: str) -> None:
    model, steerer = make_lm(family), operation("add", first=3, decay=0.5)
    hooks = partial(by_hand, model, OPERATIONS["add"][1], lambda k: 1.0 if k < 0 else 0.5**k * (k < 3), "all")
    _, cached, _ = check_hooks(model, Request(steerer, 1.0, "all"), hooks)
    expected = sum(
        plain.chat_ids(model, p)[1] + min(3, len(ids) - 1) for p, ids in zip(PROMPTS, cached.ids, strict=True)
    )
    assert cached.steered_tokens == expected


def test_token_norm_adds_in_units_of_each_state() -> None:
    model = make_lm("llama")
    hooks = partial(by_hand, model, lambda h, a: h + a * h.norm() * U, lambda _: 0.5, "all")
    _, cached, _ = check_hooks(model, Request(SteeringVector({LAYER: V}), 0.5, "all", "token_norm"), hooks)
    assert cached.norm_ratio == pytest.approx(0.5, abs=1e-5)


def test_gates_are_of_one_layer_and_model_and_count_what_they_open() -> None:
    model, probe = make_lm("llama"), LinearProbe(3)
    probe.w_, probe.b_, probe.threshold_ = U, 0.0, 0.5
    with pytest.raises(SteeringError, match=r"reads layer 3, and states at 1 are to be decided on"):
        generate(model, PROMPTS, steer=operation("add", gate=probe))
    other, mine = LinearProbe(LAYER), SteeringVector({LAYER: V})
    other.w_, other.b_, other.threshold_, other.info_ = U, 0.0, 0.5, {"model": "a", "weights": "1"}
    mine.info_ = {"model": "b", "weights": "2"}
    with pytest.raises(MismatchError, match="the probe was fitted on"):
        Operation(mine, gate=other).interventions(Context(("a",)))
    with pytest.raises(SteeringError, match=r"a gate gave \(3, .*, 1\) for states"):
        generate(model, PROMPTS, steer=operation("add", gate=lambda h: h[..., :1]))
    with pytest.raises(SteeringError, match="no token was steered"):
        generate(model, PROMPTS, steer=operation("add", gate=lambda h: 0 * h[..., 0]))
    before = generate(model, PROMPTS, steer=operation("cap", gate=lambda h: 1 + 0 * h[..., 0]), max_new_tokens=4)
    after = generate(model, PROMPTS, steer=operation("cap", gate=lambda h: 3 + 0 * h[..., 0]), max_new_tokens=4)
    assert after.ids == before.ids


def test_a_probe_as_gate_opens_for_no_state_that_set_its_threshold() -> None:
    """The probability of such a state is the threshold: computed in another precision it may be above."""
    states = torch.randn(40, 30, HIDDEN, generator=torch.Generator().manual_seed(1))
    for clean in states:
        probe = LinearProbe(LAYER)
        probe.w_, probe.b_ = U, 0.1
        probe.threshold_ = float(torch.sigmoid(clean.double() @ U.double() + 0.1).max())
        (one,) = operation("add", gate=probe).interventions(Context(("a",)))
        assert one.rule.gate(clean).tolist() == [0.0] * 30


def test_rows_that_have_ended_do_not_count_where_a_gate_decides_by_token() -> None:
    model, steerer = make_lm("llama"), operation("add", gate=lambda h: (h[..., 0] > 0).float())
    options: dict[str, Any] = {"steer": steerer, "max_new_tokens": 24, "positions": "generated"}
    options["eos_token_id"] = generate(model, PROMPTS, **options).ids[0][2]
    alone = [generate(model, [prompt], **options) for prompt in PROMPTS]
    found = generate(model, PROMPTS, **options)
    assert found.ids == tuple(one.ids[0] for one in alone)
    assert len({*map(len, found.ids)}) == 3, "they end at other tokens"
    # no row counts more than its own tokens; which of a row's states the gate opened for is not known afterwards
    assert 0 <= found.steered_tokens - sum(one.steered_tokens for one in alone) <= 1


def test_a_class_made_of_an_operator_does_what_it_says() -> None:
    class ByNorm(Add):
        def __call__(self, h: Tensor, vector: Tensor, strength: Tensor) -> Tensor:
            return h + strength * vector * h.norm(dim=-1, keepdim=True)

    model, vector = make_lm("llama"), SteeringVector({LAYER: V})
    found = generate(model, PROMPTS, steer=Operation(vector, ByNorm()), alpha=5.0, max_new_tokens=4)
    assert found.norm_ratio == pytest.approx(5 * float(V.norm()), rel=1e-4), "each state moves by as much of its norm"


def test_direction_of_vectors_that_gate_by_their_length_is_refused() -> None:
    alpha = AlphaSteer.from_gates(LAYER, U[None], V[None])
    Operation(alpha, first=3)
    with pytest.raises(SteeringError, match="alphasteer are short where an input should be left alone, and ProjectOut"):
        Operation(alpha, "project_out")
    with pytest.raises(SteeringError, match="and Replace does not add them"):
        Operation(alpha, "replace")


def test_operators_of_a_method_take_heads_times_and_gates() -> None:
    spherical = Spherical([LAYER]).fit(make_acts_at(LAYER))
    (own,), (timed,) = (one.interventions(Context(("a",))) for one in (spherical, Operation(spherical, first=2)))
    assert timed.rule.operator == own.rule.operator and timed.rule.first == 2
    with pytest.raises(SteeringError, match="spherical brings its own operator, RotateWhereAway: leave operator= out"):
        Operation(spherical, "rotate").interventions(Context(("a",)))


def make_acts_at(layer: int) -> Any:
    pairs = [Example(p, Contrast("No, never.", "Yes, sure"), behavior="b") for p in PROMPTS]
    return capture(make_lm("llama"), pairs, layers=[layer], progress=False)


def test_gate_of_a_probe_decides_token_by_token() -> None:
    model, probe = make_lm("llama"), LinearProbe(LAYER)
    probe.w_, probe.b_, probe.threshold_ = U, 0.0, 0.5

    def change(h: Tensor, alpha: float) -> Tensor:
        return h + alpha * V * float(torch.sigmoid(h[0] @ U) > 0.5)

    hooks = partial(by_hand, model, change, lambda _: 0.5, "all")
    check_hooks(model, Request(operation("add", gate=probe), 0.5, "all"), hooks)


@pytest.mark.parametrize("name", ["project_out", "clamp", "replace", "rotate"])
def test_own_vector_of_each_input_is_the_direction_of_an_operator(name: str) -> None:
    model, l2s, (operator, change) = make_lm("llama"), make_steerers("llama")["l2s"], OPERATIONS[name]
    own = [own_vector(model, l2s, prompt, number) for number, prompt in enumerate(PROMPTS)]

    def hooks(number: int, prompt: str) -> list[Any]:
        return by_hand(model, partial(change, v=own[number]), lambda _: 0.8, "all", number, prompt)

    check_hooks(model, Request(Operation(l2s, operator), 0.8, "all"), hooks)


def test_operators_are_applied_in_the_order_given() -> None:
    model = make_lm("llama")
    ablate, add = operation("project_out"), SteeringVector({LAYER: V})
    requests = [Request(ablate, 1.0, "all"), Request(add, 1.0, "all")]
    for given, change in (
        (requests, lambda h, a: h - torch.outer(h @ U, U) + V),
        (requests[::-1], lambda h, a: h - torch.outer(h @ U, U)),  # nothing of what was added along U is left
    ):
        found = generate(model, PROMPTS, steer=given, max_new_tokens=5)
        for number, prompt in enumerate(PROMPTS):
            with plain.under(by_hand(model, change, lambda _: 1.0, "all", number, prompt)):
                assert found.ids[number] == plain.new_ids(model, prompt, 5)


@pytest.mark.parametrize("family", by_day(FAMILIES, lambda family: family in (*FEW, "llama")))
def test_nothing_along_a_direction_is_left_while_decoding(family: str) -> None:
    model, seen, ablated = make_lm(family), [], operation("project_out")

    def look(h: Tensor) -> Tensor:
        seen.append((h @ U).abs() / h.norm(dim=-1))
        return h

    with plain.hooked(model, Site(LAYER + 1, "block_in"), look):
        with steer(model, ablated, positions="all") as run:
            model.hf.generate(**model.tokenizer("A heron is", return_tensors="pt"), max_new_tokens=5, min_new_tokens=5)
        assert run.steered_tokens > 5 == len(seen)
        rows = ["Is it 7 or 9?", "Is it 8 or 3?"]  # of one length: a pad is no token, and stays as it is
        generate(model, rows, steer=ablated, positions="all", max_new_tokens=5, min_new_tokens=5)
    assert len(seen) >= 10 and max(float(one.max()) for one in seen) < 1e-4


def texts_of(steerer: Any, **options: Any) -> Any:
    return generate(make_lm("llama"), PROMPTS, steer=steerer, **options)


ZERO, NONE = SteeringVector({LAYER: torch.zeros(HIDDEN)}), Fixed(Intervention(Site(LAYER)))
FROM_STATES = Fixed(Intervention(Site(LAYER), vector_fn=torch.zeros_like))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: texts_of(Operation(ZERO, "project_out")), "length zero at 1: .*, and ProjectOut uses one"),
        (lambda: texts_of(Operation(FROM_STATES, "project_out")), "vector of length zero"),
        (lambda: texts_of(Operation(NONE, "replace")), "gives no vector at 1, and Replace uses one"),
        (lambda: texts_of(operation("rotate"), alpha=1.5), "strength 1.5 by Rotate, which takes -1 to 1"),
        (lambda: texts_of(operation("clamp"), alpha=-1.0), "strength -1 by Clamp, which takes 0 to 1"),
        (lambda: texts_of(operation("rotate"), scale="norm"), "does not use the length of a vector"),
        (lambda: texts_of(operation("replace"), scale="token_norm"), "is for Add, not for Replace: use scale='raw'"),
        (lambda: Clamp(2.0, -2.0), "the lower limit is above the upper"), (Clamp, "Clamp has no limit"),
        (lambda: Operation(ZERO, Scale(0.0)), "uses no vector: give the layers"),
        (lambda: Operation({LAYER: V}, Scale(0.0)), r"Scale uses no vector: give the layers, not \{1: "),
        (lambda: Operation(operation("rotate"), first=2), "is an Operation already: give all settings to one"),
        (lambda: Operation({LAYER: V}, "ablate"), "expected one of add, project_out, replace, rotate"),
        *[(lambda name=name: Operation({LAYER: V}, name), r"such as Clamp\(high=2.0\)") for name in ("scale", "clamp")],
    ],
)  # fmt: skip
def test_what_an_operator_cannot_do_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(SteeringError, match=message):
        call()


def test_states_of_any_dtype_are_replaced() -> None:
    h = torch.ones(2, HIDDEN, dtype=torch.float64)
    assert torch.allclose(Replace()(h, V[None], torch.full((2, 1), 0.5)), 0.5 + 0.5 * V.double())


def test_operations_are_saved_gated_and_moved_to_another_layer(tmp_path) -> None:
    made = operation("clamp", first=4, decay=0.5)
    loaded = Operation.from_pretrained(made.save_pretrained(tmp_path) or tmp_path)
    rule, again = (one.interventions(Context(("a",)))[0].rule for one in (made, loaded))
    assert rule == again and torch.equal(loaded.steerer.at(LAYER), V)
    assert (Add(), Rotate()) == (Operation({LAYER: V})._operator, operation("rotate")._operator)
    places = Operation(range(2), Scale(0.5))
    places.save_pretrained(tmp_path / "places")
    assert Operation.from_pretrained(tmp_path / "places").sites == places.sites
    model, probe = make_lm("llama"), LinearProbe(LAYER)
    probe.w_, probe.b_, probe.threshold_ = U, 0.0, 2.0
    guarded = Gated(made, probe)
    before = generate(model, PROMPTS, max_new_tokens=4)
    assert generate(model, PROMPTS, steer=guarded, max_new_tokens=4).ids == before.ids
    assert operation("scale").with_layer(2).sites == (Site(2),)


# --- attention heads -------------------------------------------------------------------------------------------

HEADS = Site(LAYER, "heads")


def projection(model: Model) -> torch.nn.Module:
    """The output projection of the steered layer, by the names that the families give it."""
    (found,) = (
        module
        for name, module in plain.blocks(model.hf, model.layout)[LAYER].named_modules()
        if name in ("self_attn.o_proj", "self_attn.out_proj", "attn.c_proj", "attention.dense")
    )
    return found


def heads_by_hand(
    model: Model, change: Callable[[Tensor, Tensor], Tensor], chosen: list[int]
) -> AbstractContextManager:
    """Every token's results of some heads of 8 numbers each, changed before the output projection."""

    def before(h: Tensor) -> Tensor:
        h = h.clone()
        for head in chosen:
            part = slice(8 * head, 8 * head + 8)
            h[0, :, part] = change(h[0, :, part], V[part])
        return h

    return plain.changing(projection(model), before, of_input=True)


@pytest.mark.parametrize(
    ("family", "name"), by_day(product(FAMILIES, OPERATIONS), lambda *case: case[1] == "project_out" or "gpt2" in case)
)
def test_chosen_heads_equal_plain_hooks_in_every_family(family: str, name: str) -> None:
    model, change = make_lm(family), OPERATIONS[name][1]
    request = Request(operation(name, "heads", heads=[1, 3]), 0.7, "all")
    check_hooks(model, request, lambda *_: [heads_by_hand(model, lambda h, v: change(h, 0.7, v), [1, 3])])


def test_a_direction_without_length_at_a_chosen_head_and_a_scorer_of_all_heads_are_refused() -> None:
    model, v = make_lm("llama"), V.clone()
    v[8:16] = 0.0
    steerer = SteeringVector({HEADS: v})
    with pytest.raises(SteeringError, match=r"length zero at 1.heads, heads \[0, 1\]: it has no direction"):
        generate(model, PROMPTS, steer=Operation(steerer, "project_out", heads=[0, 1]), max_new_tokens=1)
    generate(model, PROMPTS, steer=Operation(steerer, "project_out", heads=[0, 2]), max_new_tokens=1)
    rows = [Example(p, Contrast("No, never.", "Yes, sure"), behavior="b") for p in PROMPTS]
    field = GradientField(HEADS, epochs=1).fit(capture(model, rows, layers=[HEADS]))
    with pytest.raises(SteeringError, match="scores all heads as one state: leave heads= out"):
        generate(model, PROMPTS, steer=Operation(field, heads=[1]), max_new_tokens=1)


@hypothesis.given(seed=st.integers(0, 2**16), width=st.sampled_from([32, 576, 4096]), share=st.floats(-1, 1))
def test_rotation_keeps_norms_to_a_hundred_thousandth(seed: int, width: int, share: float) -> None:
    h, v = torch.randn(2, 3, 5, width, generator=torch.Generator().manual_seed(seed)) * 40
    new = Rotate()(h, v[:, :1], torch.tensor([share]))
    torch.testing.assert_close(new.norm(dim=-1), h.norm(dim=-1), rtol=1e-5, atol=0.0)


def test_vectors_of_chosen_heads_are_scaled_by_what_is_written() -> None:
    model, louder = make_lm("llama"), V.clone()
    louder[:8] *= 100  # head 0, which is not written
    one, other = (
        generate(model, PROMPTS, steer=Operation(SteeringVector({HEADS: v}), heads=[1]), scale="norm", max_new_tokens=3)
        for v in (V, louder)
    )
    assert one.norm_ratio == pytest.approx(other.norm_ratio, rel=1e-5) and one.norm_ratio > 0.1


def test_added_heads_fade_and_are_gated_by_token() -> None:
    model, steerer = make_lm("llama"), SteeringVector({HEADS: V})
    plain_add = generate(model, PROMPTS, steer=Operation(steerer, heads=[1]), max_new_tokens=4)
    for options in ({"decay": 1.0 - 1e-9}, {"gate": lambda h: torch.ones(h.shape[:2])}):
        found = generate(model, PROMPTS, steer=Operation(steerer, heads=1, **options), max_new_tokens=4)
        assert found.ids == plain_add.ids
    check_hooks(model, Request(Operation(steerer, heads=1, decay=0.5), 1.0, "all"), partial(fading_head, model))


def fading_head(model: Model, number: int, prompt: str) -> list[Any]:
    """A hook that adds to one head, half as much at each generated token."""
    _, n_prompt = plain.chat_ids(model, prompt)

    def add(h: Tensor, v: Tensor) -> Tensor:
        return h + 0.5 ** (torch.arange(len(h)) - n_prompt).clamp_min(0)[:, None] * v

    return [heads_by_hand(model, add, [1])]


def test_heads_of_negative_layers_and_of_wide_attention_are_steered_and_saved(tmp_path) -> None:
    model = make_lm("llama")
    last = generate(model, PROMPTS, steer=SteeringVector({Site(3, "heads"): V}), max_new_tokens=3)
    assert generate(model, PROMPTS, steer=SteeringVector({Site(-1, "heads"): V}), max_new_tokens=3).ids == last.ids
    hf = tiny_hf("qwen3", head_dim=16)
    wide = Model(hf, model.tokenizer, find_layout(hf), id="wide")
    self_check(wide)
    assert wide.width(HEADS) == 64 != wide.hidden_size
    SteeringVector({HEADS: torch.ones(64), Site(2, "heads"): torch.ones(64)}).save_pretrained(tmp_path)
    assert generate(wide, PROMPTS, steer=load_steerer(tmp_path, wide), max_new_tokens=2).steered_tokens > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_self_check_keeps_heads_and_captures_what_the_projection_is_given(family: str) -> None:
    model, seen = make_lm(family), []
    self_check(model)
    assert "heads" in model.layout.points
    acts = capture(model, PROMPTS, layers=[HEADS], positions=["last"], progress=False)
    with projection(model).register_forward_pre_hook(lambda _, args: seen.append(args[0][0, -1])):
        for prompt in PROMPTS:
            plain.logits(model, plain.chat_ids(model, prompt)[0])
    torch.testing.assert_close(acts.at(HEADS), torch.stack(seen), rtol=1e-4, atol=1e-5)


def doubled(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    first, *others = forward(*args, **kwargs)
    return (2 * first, *others)


def test_attention_that_is_no_projection_of_its_heads_has_no_heads() -> None:
    hf = tiny_hf("llama")
    attention = hf.model.layers[1].self_attn
    attention.forward = partial(doubled, attention.forward)
    model = Model(hf, make_lm().tokenizer, find_layout(hf), id="doubled")
    self_check(model)
    assert model.layout.points == ("block_in", "attn_out", "mlp_out", "block_out")
    with pytest.raises(LayoutError, match="no module for 'heads' that gives one state per token"):
        capture(model, PROMPTS, layers=[HEADS])


def test_heads_out_of_range_and_at_other_sites_are_refused() -> None:
    model, vector = make_lm("llama"), SteeringVector({HEADS: V})
    with pytest.raises(SteeringError, match=r"heads=\[4\]: tiny-llama has 4 heads in a layer, 0 to 3"):
        generate(model, PROMPTS, steer=Operation(vector, heads=[4]))
    with pytest.raises(SteeringError, match=r"heads=\[1\] at 1: heads are chosen at Site\(1, 'heads'\)"):
        generate(model, PROMPTS, steer=Operation({LAYER: V}, heads=[1]))
    with pytest.raises(DataError, match="heads: one=-1"):
        Operation(vector, heads=[-1])
    with pytest.raises(SteeringError, match="at least one head, each once"):
        Operation(vector, heads=[1, 1])
    with pytest.raises(LayoutError, match="in the heads and the text"):
        capture(model, PROMPTS, layers=[HEADS, LAYER])
