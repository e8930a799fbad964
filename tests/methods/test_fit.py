"""`fit(model, data)` is `fit` on what `capture` gives, for every method."""

from collections.abc import Callable

import pytest
import torch

import steerlab
from steerlab import L2S, PCA, Contrast, Example, LogisticDirection, MeanDifference, capture
from steerlab.errors import ActivationError
from steerlab.methods import CONFST, P2S, AdaSteer, AlphaSteer, ConditionVector, Gated, LinearProbe, NullSpaceGate
from steerlab.methods.base import FittedMixin
from steerlab.methods.serialization import serialize
from steerlab.testing import tiny_lm

THINGS = ("a lock", "the car", "my tea", "an egg", "one boat", "her cake", "his kite", "this rope")
DATA = [
    Example(
        f"Tell me how to {verb} {thing}", Contrast("No, never.", "Yes, sure"), behavior=label, id=f"{label}{i}",
        extra_prompts={"task": f"{verb} it"},
    )
    for label, verb in (("refuse", "steal"), ("answer", "make"), ("injected", "hide"))
    for i, thing in enumerate(THINGS)
]  # fmt: skip
QUICK = steerlab.methods.TrainingConfig(epochs=2)
METHODS: dict[str, Callable[[], FittedMixin]] = {
    "mean": lambda: MeanDifference(2), "all layers": lambda: PCA("all"), "logistic": lambda: LogisticDirection([1, 2]),
    "p2s": lambda: P2S(2), "random": lambda: steerlab.methods.RandomDirection(2),
    "l2s": lambda: L2S(2, context_layer=1, hidden_units=2, config=QUICK, progress=False),
    "alphasteer": lambda: AlphaSteer([1, 2], harmful=["refuse"], benign=["answer"]),
    "adasteer": lambda: AdaSteer(
        [2], rejection_layer=1, harmfulness_layer=2, complied=["answer"], rejected=["refuse"], benign=["injected"]
    ),
    "confst": lambda: CONFST(2, "answer", folds=2, min_items=2), "span": lambda: CONFST(2, "answer", span=2, folds=2),
    "extra side": lambda: CONFST(2, "answer", side="task", folds=2, min_items=2),
    "probe": lambda: LinearProbe(1, positive=["refuse"]), "condition": lambda: ConditionVector(1, positive=["refuse"]),
    "null space": lambda: NullSpaceGate(1, harmful=["refuse"], benign=["answer"]),
    "tasktracker": lambda: steerlab.methods.TaskTracker([1, 2], positive=["injected"], negative=["answer"]),
    "gated": lambda: Gated(MeanDifference("all"), LinearProbe(1, positive=["refuse"])),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*(leak|items have a probability|AdaSteer)")
@pytest.mark.parametrize("name", METHODS)
def test_fit_to_a_model_and_data_equals_fit_to_all_activations(name: str) -> None:
    model, method = tiny_lm("llama"), METHODS[name]
    positions = ["last-1", "last"] if name == "span" else ["last"]
    acts = capture(model, DATA, layers="all", context=positions, progress=False)
    tensors: list[dict[str, torch.Tensor]] = [{}, {}]
    one, other = (
        serialize(fitted, found, "m")
        for fitted, found in zip((method().fit(acts), method().fit(model, DATA)), tensors, strict=True)
    )
    assert tensors[0] and {k: v.shape for k, v in tensors[0].items()} == {k: v.shape for k, v in tensors[1].items()}
    for key, value in tensors[0].items():
        torch.testing.assert_close(value, tensors[1][key], rtol=1e-3, atol=1e-3)
    assert one["arguments"].keys() == other["arguments"].keys()


def test_fit_takes_texts_tables_and_options_of_capture() -> None:
    model = tiny_lm("llama")
    pairs = steerlab.pairs([("Arr me", "Well, I"), ("Aye, so", "Nay, not")], prompts=["How?", "What?"])
    fitted = MeanDifference(2).fit(model, pairs, positions="first_difference", batch_size=1)
    assert torch.equal(
        fitted.vector_, MeanDifference(2).fit(capture(model, pairs, layers=[2], positions="first_difference")).vector_
    )
    assert fitted.info_["positions"] == ["first_difference"] and fitted.info_["model"] == model.id


def test_fitted_parts_do_not_require_extra_prompts_where_they_are_not_fitted() -> None:
    model, pairs = tiny_lm("llama"), steerlab.pairs([("Arr me", "Well, I")], prompts=["How?"])
    gated = Gated(MeanDifference(2), METHODS["tasktracker"]().fit(model, DATA)).fit(model, pairs)
    assert torch.equal(gated.steerer.vector_, MeanDifference(2).fit(model, pairs).vector_)


def test_fit_says_what_it_takes() -> None:
    model, pairs = tiny_lm("llama"), steerlab.pairs([("Arr me", "Well, I")])
    acts = capture(model, pairs, layers=[2], progress=False)
    for call in (
        lambda: MeanDifference(2).fit(model),
        lambda: MeanDifference(2).fit(acts, pairs),
        lambda: MeanDifference(2).fit(acts, batch_size=2),
    ):
        with pytest.raises(ActivationError, match=r"fit was given .*expected fit\(model, data\), or fit\("):
            call()
