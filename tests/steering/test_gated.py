"""Any detector gates any steerer, row by row, inside one batch."""

from pathlib import Path

import plain
import pytest
import torch
from fitted import ANSWERS, HIDDEN, IDS, LAYER, PROMPTS, STEPS, Fixed, backends, make_lm, make_steerers
from hypothesis import given
from hypothesis import strategies as st

from steerlab import Contrast, Example, MeanDifference, Request, SteeringVector, capture, generate, score, sweep
from steerlab.errors import MismatchError, SteeringError
from steerlab.methods import Prompt
from steerlab.methods.base import Context, Detector, Intervention, RequiredActivation
from steerlab.methods.gated import Gated
from steerlab.methods.probe import LinearProbe
from steerlab.methods.serialization import load_steerer, save
from steerlab.models.sites import Site

ALPHA = 2.5
V = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(5))
MEAN = SteeringVector({LAYER: V})


class DetectIds(Detector):
    """Detects the prompts with the given numbers."""

    required_activations = ()

    def __init__(self, *numbers: str) -> None:
        self.ids, self.threshold_ = [IDS[int(number)] for number in numbers], 0.5

    def fit_activations(self, acts):
        pass

    def score(self, context):
        return torch.tensor([float(example_id in self.ids) for example_id in context.example_ids])


TWO_LAYERS = Fixed(
    Intervention(Site(0), V.expand(3, -1), torch.full((3,), 0.5)), Intervention(Site(2), vector_fn=lambda h: h / 3)
)


@backends
@pytest.mark.parametrize("name", ["mean", "p2s", "l2s", "two layers"])
@pytest.mark.parametrize("ids", [(), ("1",), ("0", "2"), ("0", "1", "2")], ids=len)
def test_detected_rows_are_steered_and_others_unchanged(name: str, backend: str, ids: tuple[str, ...]) -> None:
    model = make_lm("llama", backend)
    steerer = TWO_LAYERS if name == "two layers" else make_steerers("llama")[name]
    steers = (Gated(steerer, DetectIds(*ids)), steerer, ())
    gated, steered, unsteered = (generate(model, PROMPTS, steer=s, alpha=ALPHA, max_new_tokens=STEPS) for s in steers)
    found, on, off = (score(model, PROMPTS, ANSWERS, steer=s, alpha=ALPHA)["logprob"] for s in steers)
    for number in range(len(PROMPTS)):
        detected = str(number) in ids
        assert gated.ids[number] == (steered if detected else unsteered).ids[number]
        assert found[number] == pytest.approx((on if detected else off)[number], abs=1e-5 if detected else 0)


def test_only_tokens_of_detected_rows_are_counted() -> None:
    model = make_lm()
    lengths = [plain.chat_ids(model, p)[1] for p in PROMPTS]
    for ids, expected in ((("2",), lengths[2]), ((), 0)):
        found = generate(model, PROMPTS, steer=Gated(MEAN, DetectIds(*ids)), positions="prompt", max_new_tokens=3)
        assert found.steered_tokens == expected
    found = generate(model, PROMPTS, steer=Gated(MEAN, DetectIds("0")), max_new_tokens=STEPS)
    assert found.steered_tokens == lengths[0] + len(found.ids[0]) - 1
    gated = Gated(MEAN, DetectIds("1"))
    with pytest.raises(SteeringError, match="no token was steered"):
        generate(model, PROMPTS, steer=gated, positions="generated", max_new_tokens=1)


@given(
    st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=6), st.sampled_from([-0.5, 0.0, 0.25]),
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_gates_are_hard_or_soft_and_may_be_inverted(
    scores: list[float], threshold: float, soft: bool, inverted: bool
) -> None:
    class GivenScores(DetectIds):
        def score(self, context):
            return torch.tensor(scores)

    when = "not detected" if inverted else "detected"
    gated = Gated(MEAN, GivenScores(), threshold=None if soft else threshold, when=when, soft=soft)
    gate = gated.gate(Context(tuple(map(str, range(len(scores))))))
    expected = [min(max(s, 0.0), 1.0) for s in scores] if soft else [float(s > threshold) for s in scores]
    assert gate.tolist() == pytest.approx([1 - w for w in expected] if inverted else expected)


def test_probe_above_the_steered_layer_sees_the_unsteered_prompt() -> None:
    model = make_lm()
    examples = [Example(f"number {i}", id=f"x{i}", behavior="refuse" if i % 2 else "answer") for i in range(12)]
    probe = LinearProbe(3).fit(capture(model, examples, layers=[3], progress=False))
    scores = probe.score(Context.of(capture(model, PROMPTS, layers=[3], progress=False)))
    for number, prompt in enumerate(PROMPTS):
        ids, n = plain.chat_ids(model, prompt)
        by_hand = torch.sigmoid(plain.hidden(model, ids)[3][n - 1] @ probe.w_ + probe.b_)
        assert float(scores[number]) == pytest.approx(float(by_hand), abs=1e-4)
    mean, threshold = SteeringVector({0: V}), float(scores.min()) + 1e-6
    steers = (Gated(mean, probe, threshold=threshold), mean, ())
    found, on, off = (score(model, PROMPTS, ANSWERS, steer=s, alpha=ALPHA)["logprob"] for s in steers)
    for number in range(len(PROMPTS)):
        assert found[number] == pytest.approx((on if scores[number] > threshold else off)[number], abs=1e-4)


def test_gate_works_with_norm_scale_sweeps_and_saved_artifacts(tmp_path: Path) -> None:
    model = make_lm()
    examples = [Example(f"number {i}", id=f"x{i}", behavior="refuse" if i % 2 else "answer") for i in range(8)]
    acts = capture(model, examples, layers=[LAYER, 3], progress=False)
    probe = LinearProbe(3).fit(acts).calibrate(acts.select(behavior="answer"), fpr=0.25)
    gated = Gated(MEAN, probe)
    loaded = load_steerer(save(gated, tmp_path / "gated"), model)
    assert isinstance(loaded, Gated) and loaded.name == "gated steeringvector"
    assert loaded.detector.threshold_ == probe.threshold_
    for scale in ("raw", "norm"):
        options = dict(alpha=0.5, scale=scale, max_new_tokens=STEPS)
        assert generate(model, examples, steer=loaded, **options).ids == (
            generate(model, examples, steer=gated, **options).ids
        )
    pairs = [example.replace(contrast=Contrast("No", "Yes")) for example in examples]
    frame = sweep(model, pairs, gated, None, (0.0, 1.0), progress=False)
    values = frame.pivot(index="example_id", columns="alpha", values="value")
    changed = {example_id: bool(c) for example_id, c in ((values[1.0] - values[0.0]).abs() > 1e-6).items()}
    detected = dict(zip((e.id for e in examples), probe.detect(Context.of(acts)).tolist(), strict=True))
    assert changed == detected and 0 < sum(detected.values()) < len(examples)
    assert Gated(make_steerers("llama")["l2s"], probe).required_activations == (RequiredActivation(Site(3)),)
    other = Gated(MeanDifference(LAYER), probe).with_layer(0)
    assert other.site == Site(0) and other.detector is probe


def test_heads_have_the_norm_of_their_own_states_beside_a_probe_of_a_block() -> None:
    model, site = make_lm("llama"), Site(LAYER, "heads")
    probe = LinearProbe(0, positive=["a"], negative=["b"])
    rows = [Example(f"{p} {i}", id=str(i), behavior="ab"[i % 2]) for i, p in enumerate(2 * PROMPTS)]
    probe.fit(capture(model, rows, layers=[0])).threshold_ = -1.0  # all inputs
    v = torch.nn.functional.normalize(torch.randn(model.width(site)), dim=0)
    norm = float(capture(model, PROMPTS[:1], layers=[site], positions="last").values.norm())
    found = score(model, PROMPTS[:1], ANSWERS[:1], steer=Request(Gated(SteeringVector({site: v}), probe), scale="norm"))
    wanted = score(model, PROMPTS[:1], ANSWERS[:1], steer=SteeringVector({site: norm * v}))
    assert found["logprob"].tolist() == pytest.approx(wanted["logprob"].tolist(), abs=1e-4)


def test_invalid_gates_are_refused() -> None:
    with pytest.raises(SteeringError, match="changes the prompt"):
        Gated(Prompt(), DetectIds())
    with pytest.raises(SteeringError, match="leave the threshold out"):
        Gated(MEAN, DetectIds(), threshold=0.1, soft=True)
    with pytest.raises(SteeringError, match="expected 'detected'"):
        Gated(MEAN, DetectIds(), when="sometimes")
    probe, mean = LinearProbe(1), SteeringVector({LAYER: V})
    with pytest.raises(Exception, match=r"no threshold: call calibrate"):
        Gated(mean, probe).gate(Context(("0",)))
    probe.info_ = {"model": "another", "hidden_size": HIDDEN}
    mean.info_ = {"model": "this"}
    with pytest.raises(MismatchError, match=r"'this'.*'another'"):
        Gated(mean, probe)
