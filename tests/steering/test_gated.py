"""Any detector gates any steerer, row by row, inside one batch."""

from __future__ import annotations

from pathlib import Path

import plain
import pytest
import torch
from fitted import HIDDEN, LAYER, PROMPTS, make_lm, make_steerers
from hypothesis import given
from hypothesis import strategies as st

from steerlab import (
    Example,
    MeanDifference,
    MismatchError,
    Prompt,
    SteeringError,
    capture,
    generate,
    score,
    steer,
    sweep,
)
from steerlab.methods.base import Context, Detector, Intervention, RequiredActivation, Steerer
from steerlab.methods.gated import Gated
from steerlab.methods.probe import LinearProbe
from steerlab.methods.serialization import load_steerer, save
from steerlab.models.sites import Site

STEPS, ALPHA = 6, 2.5
BOTH = (st.booleans(), st.booleans())
ANSWERS = ("the reeds", "no", "fish by night")
V = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(5))


class Told(Detector):
    """Detects the inputs whose ids it was told."""

    required_activations = ()

    def __init__(self, *ids: str) -> None:
        self.ids, self.threshold_ = ids, 0.5

    def fit(self, acts):
        return self

    def score(self, context):
        return torch.tensor([float(example_id in self.ids) for example_id in context.example_ids])


class Several(Steerer):
    """Two layers and a vector in flight, one of them with a gate of its own."""

    sites = (Site(0), Site(2))

    def fit(self, acts):
        return self

    def vectors(self, context):
        raise NotImplementedError

    def interventions(self, context):
        n = len(context.example_ids)
        return (
            Intervention(Site(0), V.expand(n, -1), torch.full((n,), 0.5)),
            Intervention(Site(2), vector_fn=lambda h: h / 3),
        )


def inner(name: str) -> Steerer:
    return Several() if name == "several" else make_steerers("llama")[name]


@pytest.mark.parametrize("backend", ["nnsight", "hooks"])
@pytest.mark.parametrize("name", ["mean", "p2s", "l2s", "several"])
@pytest.mark.parametrize("ids", [(), ("1",), ("0", "2"), ("0", "1", "2")], ids=len)
def test_detected_rows_are_steered_and_the_others_left_alone(name: str, backend: str, ids: tuple[str, ...]) -> None:
    model, method = make_lm("llama", backend), inner(name)
    gated = Gated(method, Told(*ids))
    options = dict(alpha=ALPHA, max_new_tokens=STEPS)
    found = generate(model, PROMPTS, steer=gated, **options)
    steered, plain_ = (generate(model, PROMPTS, steer=s, **options) for s in (method, ()))
    told = score(model, PROMPTS, ANSWERS, steer=gated, alpha=ALPHA)["logprob"]
    on, off = (score(model, PROMPTS, ANSWERS, steer=s, alpha=ALPHA)["logprob"] for s in (method, ()))
    for number in range(len(PROMPTS)):
        detected = str(number) in ids
        assert found.ids[number] == (steered if detected else plain_).ids[number]
        assert told[number] == pytest.approx((on if detected else off)[number], abs=1e-5 if detected else 0)


def test_only_states_of_detected_rows_are_counted_and_none_detected_is_no_error() -> None:
    model = make_lm()
    mean = MeanDifference.from_tensor(LAYER, V)
    lengths = [plain.chat_ids(model, p)[1] for p in PROMPTS]
    with steer(model, Gated(mean, Told("2")), positions="prompt") as run:
        run.generate(PROMPTS, max_new_tokens=3)
    assert run.steered_tokens == lengths[2]
    with steer(model, Gated(mean, Told())) as run:
        run.generate(PROMPTS, max_new_tokens=3)
    assert run.steered_tokens == 0
    everywhere = generate(model, PROMPTS, steer=Gated(mean, Told("0")), max_new_tokens=STEPS)
    assert everywhere.steered_tokens == lengths[0] + len(everywhere.ids[0]) - 1


def test_detected_rows_that_no_position_reaches_are_still_an_error() -> None:
    with pytest.raises(SteeringError, match="no token was steered"):
        generate(
            make_lm(), PROMPTS, steer=Gated(MeanDifference.from_tensor(LAYER, V), Told("1")), positions="generated",
            max_new_tokens=1,
        )  # fmt: skip


@given(
    st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=6),
    st.sampled_from([-0.5, 0.0, 0.25]),
    st.booleans(),
    st.booleans(),
)
def test_gates_are_hard_or_soft_and_may_be_turned_round(
    scores: list[float], at: float, soft: bool, turned: bool
) -> None:
    class Given(Told):
        def score(self, context):
            return torch.tensor(scores)

    when = "not detected" if turned else "detected"
    gated = Gated(MeanDifference.from_tensor(1, V), Given(), threshold=None if soft else at, when=when, soft=soft)
    gate = gated.gate(Context(tuple(map(str, range(len(scores))))))
    wanted = [min(max(s, 0.0), 1.0) for s in scores] if soft else [float(s > at) for s in scores]
    assert gate.tolist() == pytest.approx([1 - w for w in wanted] if turned else wanted)


def test_a_real_probe_reads_the_unsteered_prompt_while_the_steerer_writes_below_it() -> None:
    model = make_lm()
    rows = [Example(f"x{i}", f"number {i}", "refuse" if i % 2 else "answer") for i in range(12)]
    acts = capture(model, rows, layers=[3], progress=False)
    probe = LinearProbe(3).fit(acts)
    context = Context.of(capture(model, PROMPTS, layers=[3], progress=False))
    scores = probe.score(context)
    low = float(scores.sort().values[0])
    for number, prompt in enumerate(PROMPTS):
        ids, n = plain.chat_ids(model, prompt)
        by_hand = torch.sigmoid(plain.hidden(model, ids)[3][n - 1] @ probe.w_ + probe.b_)
        assert float(scores[number]) == pytest.approx(float(by_hand), abs=1e-4)
    mean = MeanDifference.from_tensor(0, V)
    found = score(model, PROMPTS, ANSWERS, steer=Gated(mean, probe, threshold=low + 1e-6), alpha=ALPHA)["logprob"]
    on, off = (score(model, PROMPTS, ANSWERS, steer=s, alpha=ALPHA)["logprob"] for s in (mean, ()))
    for number in range(len(PROMPTS)):
        assert found[number] == pytest.approx((on if scores[number] > low + 1e-6 else off)[number], abs=1e-4)


def test_the_gate_travels_through_norm_scale_sweeps_and_the_disk(tmp_path: Path) -> None:
    model = make_lm()
    rows = [
        Example(f"x{i}", f"number {i}", "refuse" if i % 2 else "answer", contrast=None) for i in range(8)
    ]  # fmt: skip
    acts = capture(model, rows, layers=[LAYER, 3], progress=False)
    probe = LinearProbe(3).fit(acts).calibrate(acts.select(behavior="answer"), fpr=0.25)
    gated = Gated(MeanDifference.from_tensor(LAYER, V), probe)
    again = load_steerer(save(gated, tmp_path / "gated"), model)
    assert (
        isinstance(again, Gated)
        and again.detector.threshold_ == probe.threshold_
        and again.name == "gated meandifference"
    )
    for scale in ("raw", "norm"):
        options = dict(alpha=0.5, scale=scale, max_new_tokens=STEPS)
        assert generate(model, rows, steer=again, **options).ids == generate(model, rows, steer=gated, **options).ids
    from steerlab import Contrast

    asked = [e.replace(contrast=Contrast("No", "Yes")) for e in rows]
    frame = sweep(model, gated, asked, None, (0.0, 1.0), progress=False).pivot(
        index="example_id", columns="alpha", values="value"
    )
    moved = (frame[1.0] - frame[0.0]).abs() > 1e-6
    detected = dict(zip((e.id for e in rows), probe.detect(Context.of(acts)).tolist(), strict=True))
    assert {example_id: bool(m) for example_id, m in moved.items()} == detected
    assert 0 < sum(detected.values()) < len(rows)
    other = gated.with_layer(0)
    assert other.site == Site(0) and other.detector is probe


def test_bad_gates_are_refused() -> None:
    mean = MeanDifference.from_tensor(LAYER, V)
    with pytest.raises(SteeringError, match="asks another prompt"):
        Gated(Prompt(), Told())
    with pytest.raises(SteeringError, match="leave the threshold out"):
        Gated(mean, Told(), threshold=0.1, soft=True)
    with pytest.raises(SteeringError, match="expected 'detected'"):
        Gated(mean, Told(), when="sometimes")
    probe = LinearProbe(1)
    with pytest.raises(Exception, match=r"no threshold: call calibrate"):
        Gated(mean, probe).gate(Context(("0",)))
    probe.info_ = {"model": "another", "hidden_size": HIDDEN}
    mean.info_ = {"model": "this"}
    with pytest.raises(MismatchError, match=r"'this'.*'another'"):
        Gated(mean, probe)


def test_reads_of_both_parts_are_asked_once() -> None:
    l2s = make_steerers("llama")["l2s"]
    probe = LinearProbe(3)
    assert Gated(l2s, probe).required_activations == (RequiredActivation(Site(3)),)
