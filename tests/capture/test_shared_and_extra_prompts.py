"""States after shared prompts and of extra prompts agree with Hugging Face's; one copy to the host per batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

import steerlab
from steerlab.capturing.capture import capture
from steerlab.capturing.rows import as_sites, plan_rows
from steerlab.capturing.shared import share_prompts
from steerlab.data.example import Contrast, Example
from steerlab.data.injections import injection_examples
from steerlab.data.inputs import as_examples
from steerlab.errors import DataError
from steerlab.methods.base import Context
from steerlab.methods.tasktracker.detector import TaskTracker
from steerlab.methods.tasktracker.triplet import TripletProbe
from steerlab.methods.tasktracker.triplet_train import TripletConfig
from steerlab.models.encoding import EncodedPrompt
from steerlab.models.model import Model
from steerlab.models.sites import Site
from steerlab.testing import FAMILIES

SYSTEM = "You weigh every word before you say it, and you say it once only."
QUESTIONS = {
    "Is it so?": Contrast(" (A)", " (B)"),
    "Why is it, and for whom?": Contrast("Of course.", "No"),
    "Go.": Contrast("yes", "not now"),
}
NEAR = {"atol": 2e-5, "rtol": 1e-4}
PAIRS = [
    Example(text, id=f"p{i}", behavior="ask", contrast=pair, system=SYSTEM)
    for i, (text, pair) in enumerate(QUESTIONS.items())
]


@torch.no_grad()
def hidden_states(model: Model, row: EncodedPrompt) -> Tensor:
    """Hugging Face's `(state, token, hidden)` of one unpadded row; the last state is normalized."""
    ids = torch.tensor([row.ids])
    return torch.cat(model.hf(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states).float()


@pytest.mark.parametrize("backend", ["nnsight", "hooks"])
@pytest.mark.parametrize("family", FAMILIES)
def test_shared_prompt_states_match_hugging_faces_whole_rows(lm, family, backend):
    model = lm(family, backend)
    rows = plan_rows(model, PAIRS, ["answer", -1], ["last"], "mean")
    assert share_prompts(model, rows, as_sites("all", model)) is not None
    acts = capture(model, PAIRS, positions=["answer", -1], progress=False)
    for pair in PAIRS:
        for side in ("positive", "negative"):
            row = model.encode(pair.prompt, answer=getattr(pair.contrast, side), system=pair.system)
            states = hidden_states(model, row)[1:-1]
            answer = acts.select(example_id=pair.id, side=side, position="answer").values[0, :-1]
            torch.testing.assert_close(answer, states[:, row.n_prompt :].mean(1), **NEAR)
            if side == "positive":
                last = acts.select(example_id=pair.id, side="prompt").values[0, :-1]
                torch.testing.assert_close(last, states[:, row.n_prompt - 1], **NEAR)


@pytest.mark.parametrize(
    ("examples", "position", "layers", "shared"),
    [
        (PAIRS, "answer", [3], True),
        (PAIRS, "answer", [0], False),  # so shallow a capture gains nothing
        (PAIRS, "user", "all", False),  # in the prompt
        (PAIRS, "all", "all", False),
        (PAIRS, -6, "all", False),
        (as_examples(["hello there", "how are you today, my very dear friend?"]), "last", "all", False),
    ],
)
def test_only_equal_prompts_of_deep_answer_states_are_shared(model, examples, position, layers, shared):
    rows = plan_rows(model, examples, [position], [], "mean")
    assert (share_prompts(model, rows, as_sites(layers, model)) is not None) == shared


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_prompts_are_shared_while_that_costs_a_share_of_whole_rows(model, monkeypatch, depth):
    rows = plan_rows(model, PAIRS, ["answer"], [], "mean")
    one = share_prompts(model, rows, as_sites([3], model))
    assert one is not None
    prompts, cut = one.prompts, one.cut
    columns = model.prefill_cost(one.batch.input_ids[prompts, :cut], one.batch.attention_mask[prompts, :cut])
    cost = columns * model.n_layers + len(rows) * (one.batch.width - cut) * depth  # blocks run for one token
    share = cost / (len(rows) * max(len(row.prompt) for row in rows) * depth)
    for more, shared in ((1e-9, True), (-1e-9, False)):
        monkeypatch.setattr("steerlab.capturing.shared.MAX_COST", share * (1 + more))
        assert (share_prompts(model, rows, as_sites([depth - 1], model)) is not None) == shared


class HostCopies(TorchFunctionMode):
    """Records every tensor as wide as the residual stream that is copied to the host."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.seen = width, list[tuple[str, int]]()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, given = getattr(func, "__name__", ""), [*args[1:], *(kwargs or {}).values()]
        # on the CPU, where these tests run, `x.to(y.device)` says nothing of the host: only its name does
        to_cpu = name == "to" and any(isinstance(value, str) and value == "cpu" for value in given)
        to_host = to_cpu or name in ("cpu", "item", "tolist", "numpy")
        if to_host and args[0].ndim and args[0].shape[-1] == self.width:
            self.seen.append((name, args[0].nbytes))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("backend", ["nnsight", "hooks"])
def test_one_copy_per_batch_of_exactly_the_returned_bytes(lm, backend):
    model = lm("llama", backend)
    prompts = [f"prompt number {i} " + "and on " * i for i in range(7)]
    with HostCopies(model.hidden_size) as copies:
        acts = steerlab.capture(model, prompts, layers="all", positions=["last", "user"], batch_size=3, progress=False)
    assert [name for name, _ in copies.seen] == ["cpu"] * 3
    assert sum(size for _, size in copies.seen) == acts.values.nbytes == acts.info["bytes_copied"]
    assert acts.values.shape == (14, model.n_layers, model.hidden_size) and acts.values.dtype == torch.float32


TEXTS = {"a": [f"It rains for day {i}. Nobody is out." + " It goes on." * (i % 4) for i in range(8)]}
ROWS = injection_examples(
    TEXTS, ["Name a metal.", "Who is he?"], tasks={"qa": ["Sum up:", "What is it?"]}, template="[{content}] go"
)


def last_states(model: Model, texts: Sequence[str]) -> Tensor:
    """Hugging Face's `(prompt, state, hidden)` at the last token of each prompt, run alone and unpadded."""
    return torch.stack([hidden_states(model, model.encode(text))[:, -1] for text in texts])


@pytest.fixture
def full(model):
    """The states of ROWS: of task and text."""
    return last_states(model, [row.prompt for row in ROWS])


@pytest.fixture
def primary(model):
    """The states of ROWS: of the task alone."""
    return last_states(model, [row.extra_prompts["task"] for row in ROWS])


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize(
    ("family", "backend"), [("llama", "hooks"), ("llama", "nnsight"), ("gemma2", "hooks"), ("gpt2", "hooks")]
)
def test_extra_prompt_states_match_hugging_face(lm, family, backend, padding):
    model = lm(family, backend)
    acts = capture(model, ROWS, layers=[0, 2], padding=padding, batch_size=5, progress=False)
    assert sorted(acts.index["side"]) == ["prompt"] * 8 + ["task"] * 8
    texts = {"prompt": [row.prompt for row in ROWS], "task": [row.extra_prompts["task"] for row in ROWS]}
    for side, prompts in texts.items():
        mine = acts.select(side=side)
        assert mine.index[["example_id", "behavior"]].values.tolist() == [[row.id, row.behavior] for row in ROWS]
        torch.testing.assert_close(mine.values, last_states(model, prompts)[:, [1, 3]], **NEAR)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_tasktracker_scores_match_plain_hidden_states(model, full, primary, padding):
    probe = TaskTracker([0, 2]).fit(capture(model, ROWS, layers=[0, 2], progress=False))
    context = Context.of(capture(model, ROWS, layers=[0, 2], padding=padding, batch_size=3, progress=False))
    deltas = (full - primary)[:, [1, 3]]
    torch.testing.assert_close(probe.delta(context), deltas, atol=4e-5, rtol=1e-4)
    expected = (deltas.double() * probe.coef_).sum(-1) + probe.intercept_
    torch.testing.assert_close(probe.score(context), expected.mean(1).float(), atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(probe.probabilities(context), expected.sigmoid().float(), atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_triplet_scores_match_plain_hidden_states(model, full, primary, padding):
    acts = capture(model, ROWS, layers=[0, 2], padding=padding, progress=False)
    probe = TripletProbe([0, 2], config=TripletConfig(epochs=1), progress=False).fit(acts)
    expected = (probe.embed(full[:, [1, 3]]) - probe.embed(primary[:, [1, 3]])).norm(dim=1)
    torch.testing.assert_close(probe.score(Context.of(acts)), expected, atol=1e-3, rtol=1e-3)


@pytest.fixture
def numbered(model, tmp_path):
    """Probes numbered 1 and n - 1, as another library stores them."""
    generator = torch.Generator().manual_seed(0)
    stored = {n: torch.randn(model.hidden_size, generator=generator) for n in (1, model.n_layers - 1)}
    tensors = {f"layer{n}.coef": w for n, w in stored.items()}
    save_file(tensors | {f"layer{n}.intercept": torch.zeros(1) for n in stored}, tmp_path / "p.safetensors")
    return model, tmp_path / "p.safetensors", stored


@pytest.mark.parametrize(("convention", "k"), [("block", 2), ("hidden_states", 1)])
def test_published_layer_numbers_follow_the_convention(numbered, full, primary, convention, k):
    model, path, stored = numbered
    probe = TaskTracker.from_published(path, model.n_layers, layers=[1], convention=convention)
    acts = capture(model, ROWS, layers=[read.site for read in probe.required_activations], progress=False)
    expected = (full - primary) @ stored[1]
    torch.testing.assert_close(probe.score(Context.of(acts)), expected[:, k], atol=1e-3, rtol=1e-3)
    assert not torch.allclose(probe.score(Context.of(acts)), expected[:, 3 - k], atol=1e-2)


def test_final_norm_is_applied_for_the_last_layer(numbered, full, primary):
    model, path, stored = numbered
    norm, top = model.hf.model.norm, model.n_layers - 1
    assert TaskTracker.from_published(path, model.n_layers).sites == (Site(1),)
    final_norm = (norm.weight, norm.variance_epsilon)
    probe = TaskTracker.from_published(path, model.n_layers, layers=[top], final_norm=final_norm)
    acts = capture(model, ROWS, layers=top, progress=False)
    expected = (full - primary)[:, model.n_layers] @ stored[top]
    torch.testing.assert_close(probe.score(Context.of(acts)), expected, atol=1e-3, rtol=1e-3)


def test_extra_prompts_are_selected_by_name(model):
    two = [Example("one two", id="x", extra_prompts={"task": "one", "other": "two"})]
    for names, sides in {None: ("task", "other"), ("task",): ("task",), (): ()}.items():
        acts = capture(model, two, layers=0, extra_prompts=names, progress=False)
        assert set(acts.index["side"]) == {"prompt", *sides}
    with pytest.raises(DataError, match=r"'x' has no extra prompt 'primary', it has \['other', 'task'\]"):
        capture(model, two, layers=0, extra_prompts=["primary"], progress=False)
    with pytest.raises(DataError, match="rename"):
        Example("one", id="x", extra_prompts={"prompt": "two"})


def test_extra_prompts_of_contrasts_are_captured_at_the_context(model):
    pair = Example("one two", id="x", contrast=Contrast("yes", "no"), extra_prompts={"task": "one"})
    acts = capture(model, [pair], layers=1, positions="answer", context="last", progress=False)
    assert sorted(acts.index["side"]) == ["negative", "positive", "prompt", "task"]
    torch.testing.assert_close(acts.select(side="task").at(1), last_states(model, ["one"])[:, 2], **NEAR)
    alone = capture(model, [pair], layers=1, context=None, progress=False)
    assert sorted(alone.index["side"]) == ["negative", "positive"]
