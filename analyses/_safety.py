"""Shared by the safety study and the demo: contrast sentences, fitting, and running methods on the same inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from _common import estimate, judge_with_perplexity
from _selection import ending
from torch import Tensor

import steerlab
from steerlab import L2S, Activations, Contrast, Example, MeanDifference, Request, SteeringVector
from steerlab.analysis.behavior import safety_values
from steerlab.analysis.study import Study
from steerlab.data import ED_SLICE_PUBLISHED, mm_safety_bench, published_split
from steerlab.data.mm_safety_bench import SCENARIOS
from steerlab.errors import DataError
from steerlab.methods import L2S_PAPER, P2S, Context, Prompt, RandomDirection, Steerer
from steerlab.methods.l2s.data import equalize_norms
from steerlab.models.model import Model

ZERO = ("answer",)  # harmless inputs: the target of L2S is the zero vector
NORM_ORDER = ("refuse", "defer")
BEHAVIORS = (*NORM_ORDER, *ZERO)  # reported by the studies

_SORRY = "I'm sorry, but I can't help with that request."
_SURE = "Sure, here is how you can do that."
_HARM = "I'm sorry, but I can't help with that. It could cause serious harm to other people, and it may be illegal."
_STEPS = "Of course! Here are the steps you need to follow to do it."
_EXPERT = "Please consult a qualified professional, such as a lawyer, a financial advisor or a doctor."
_ADVICE = "Sure, here is my advice on what you should do."
_GENERAL = (
    "I can only give general information. You should consult a professional about your own situation before you act."
)
_SITUATION = "You should consult a professional, who can give you advice about your own situation before you act."
_THINK = "Of course! Here is what I think you should do about it."
_LAWYER = "I recommend that you consult a lawyer or a financial advisor, who can look at your own situation."
_DOCTOR = "I recommend that you consult a doctor, who can look at your own situation."
_CANNOT, _SHOULD, _YES = "I cannot assist with that.", "You should consult a professional.", "Yes, of course."

Pair = tuple[str, str]


def _set(harmful: Pair, expert: Pair, health: Pair | None = None, end_turn: bool = False) -> dict[str, Contrast | None]:
    pairs = {"harmful": harmful, "expert": expert, "health": health or expert}
    return {name: Contrast(plus, minus, end_turn=end_turn) for name, (plus, minus) in pairs.items()} | {"answer": None}


SENTENCES: dict[str, dict[str, Contrast | None]] = {
    "plain": _set((_SORRY, _SURE), (_EXPERT, _ADVICE)),
    "plain_closed": _set((_SORRY, _SURE), (_EXPERT, _ADVICE), end_turn=True),
    "reasoned": _set((_HARM, _STEPS), (_GENERAL, _THINK)),
    "short": _set((_CANNOT, _YES), (_SHOULD, _YES)),
    "domain": _set((_SORRY, _SURE), (_LAWYER, _THINK), (_DOCTOR, _THINK)),
    "mixed": _set((_HARM, _STEPS), (_EXPERT, _ADVICE)),
    "general_closed": _set((_SORRY, _SURE), (_GENERAL, _THINK), end_turn=True),
    "situation_closed": _set((_SORRY, _SURE), (_SITUATION, _THINK), end_turn=True),
    "domain_closed": _set((_SORRY, _SURE), (_LAWYER, _THINK), (_DOCTOR, _THINK), end_turn=True),
}
"""Named sets of wanted and unwanted sentences per class; names with "closed" include the end-of-turn token."""


@dataclass(frozen=True)
class Setting:
    """Layer, strength, positions, contrast sentences, targets and net of one setting."""

    layer: int
    alpha: float
    positions: str
    sentences: str
    targets: str = "raw"  # "equalized": the deferral vectors are rescaled to the refusal vectors' mean norm
    context: int | None = None  # the layer that L2S reads; None: the steered layer
    net: str = "tanh"  # one of NETS; "-" for the mean vector
    inputs: int = 0  # number of validation inputs on which it was chosen
    first: int = 0  # new tokens that are steered; 0: all

    @property
    def label(self) -> str:
        """A short text for figures."""
        where = f"layer {self.layer}, α = {self.alpha:g}, {self.positions}"
        where += f", {self.first} new tokens" if self.first else ""
        read = "" if self.context in (None, self.layer) else f", reads layer {self.context}"
        return (
            f"{where}, “{self.sentences}”, {self.targets}{read}{'' if self.net in ('tanh', '-') else f', {self.net}'}"
        )


NETS: dict[str, tuple[str, bool, int]] = {
    "tanh": ("tanh", False, 100),
    "relu": ("relu", False, 100),
    "relu balanced": ("relu", True, 100),
    "tanh, 10 units": ("tanh", False, 10),
    "relu balanced, 10 units": ("relu", True, 10),
    "tanh balanced, 10 units": ("tanh", True, 10),
}
"""Kinds of steering nets: activation, whether behaviors have equal weight in the loss, and number of hidden units."""


def mean_vector(acts: Activations, layer: int, targets: str) -> Tensor:
    """The mean of all contrast vectors, raw or after equalizing the behaviors' norms."""
    if targets == "raw":
        return MeanDifference(layer).fit(acts).vector_
    ids, z = acts.contrast(layer)
    return equalize_norms(z, acts.labels(ids), list(NORM_ORDER)).mean(0)


def l2s(layer: int, targets: str, seed: int, context: int | None = None, net: str = "tanh") -> L2S:
    """L2S with the paper's loss; harmless inputs have the zero target."""
    activation, balanced, hidden_units = NETS[net]
    config = replace(L2S_PAPER, equalize_norms=False if targets == "raw" else NORM_ORDER, class_balanced=balanced)
    return L2S(
        layer,
        context_layer=context,
        zero_behaviors=ZERO,
        config=config,
        activation=activation,
        hidden_units=hidden_units,
        seed=seed,
        progress=False,
    )


def steerers(
    train: Mapping[str, Activations], test: Mapping[str, Activations], settings: Mapping[str, Setting], seed: int
) -> dict[str, Request | None]:
    """Every method with its setting, fitted to training activations; P2S, an oracle, is fitted to test activations.

    Args:
        train, test: activations by name of the sentence set.
        settings: the settings of "mean" and "l2s"; the other methods use the setting of L2S.
    """
    s, m = settings["l2s"], settings["mean"]
    fitted: dict[str, tuple[Steerer, Setting]] = {
        "prompt": (Prompt(), s),
        "random": (RandomDirection(s.layer, seed=seed).fit(train[s.sentences]), s),
        "mean": (SteeringVector({m.layer: mean_vector(train[m.sentences], m.layer, m.targets)}), m),
        "l2s": (l2s(s.layer, s.targets, seed, s.context, s.net).fit(train[s.sentences]), s),
        "p2s": (P2S(s.layer, zero_behaviors=ZERO).fit(test[s.sentences]), s),
    }
    found: dict[str, Request | None] = {"none": None}
    return found | {k: Request(ending(method, at.first), at.alpha, at.positions) for k, (method, at) in fitted.items()}


def run_methods(
    study: Study, model: Model, examples: Sequence[Example], methods: Mapping[str, Request | None], *,
    max_new_tokens: int, batch_size: int,
) -> pd.DataFrame:  # fmt: skip
    """Answers of every method to the same inputs with their measures; one stage per method, one per perplexity."""
    frames = []
    plain: list[str] | None = None
    for name, request in methods.items():

        def answer(request: Request | None = request, name: str = name) -> pd.DataFrame:
            steering = () if request is None else request
            found = steerlab.generate(
                model, examples, steer=steering, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=True
            )
            print(f"{name}: {found.steered_tokens} token states steered, mean ‖αv‖/‖h‖ {found.norm_ratio:.2f}")
            ratio = found.norm_ratio if request is not None else 0.0
            return pd.DataFrame({"example_id": found.example_ids, "text": found.texts, "norm_ratio": ratio})

        texts = study.stage(f"answers-{name}", answer)
        plain = plain if plain is not None else texts["text"].astype(str).tolist()
        found = texts["text"].astype(str).tolist()
        judged = judge_with_perplexity(study, name, model, examples, found, plain, batch_size=batch_size)
        layer = "" if request is None or name == "prompt" else request.steerer.site.layer
        alpha = 0.0 if request is None else request.alpha
        where = "" if request is None else request.positions
        frames.append(
            judged.assign(method=name, layer=layer, alpha=alpha, positions=where, norm_ratio=texts["norm_ratio"])
        )
    return pd.concat(frames, ignore_index=True)


def check_behaviors(part: str, behaviors: Iterable[str]) -> None:
    """Raise if a part of the data lacks a behavior, since its numbers would be missing silently.

    Raises:
        DataError: a behavior has no input; the counts of all are named.
    """
    counts = Counter(behaviors)
    empty = [name for name in BEHAVIORS if not counts[name]]
    if empty:
        raise DataError(
            f"the {part} have no input of the behaviors {empty}: there are {dict(counts)}, and each of {BEHAVIORS} "
            "needs at least one. Check the data folder, the split and --limit"
        )


def published_counts(path: str | Path) -> dict[str, int]:
    """Counts of the published split. It is defined by ids, and a removed record keeps its id.

    `scored` are the test ids of the twelve scenarios with a wanted behavior, `harmful` and `expert` those to refuse
    and to defer on. `expert_published` is the denominator of the paper: its slice starts one harmful row early.
    """
    wanted = [scenario.behavior for scenario in SCENARIOS for _ in range(scenario.n_ids)]
    train, test = published_split(len(wanted))
    behaviors = Counter(wanted[index] for index in test)
    found = {
        "ids": len(wanted), "removed": len(wanted) - len(mm_safety_bench(path, include_unscored=True)),
        "train": len(train), "test": len(test), "scored": behaviors["refuse"] + behaviors["defer"],
        "harmful": behaviors["refuse"], "expert": behaviors["defer"], "expert_published": ED_SLICE_PUBLISHED,
    }  # fmt: skip
    return {f"counts.{name}": number for name, number in found.items()}


def summarize(judged: pd.DataFrame, seed: int) -> dict[str, dict[str, float]]:
    """Measures of every method with bootstrap intervals; perplexity is a median.

    Raises:
        DataError: a behavior has no input.
    """
    found = {}
    for method, frame in judged.groupby("method", sort=False):
        check_behaviors(f"answers of {method}", frame["behavior"])
        for name, values in safety_values(frame).items():
            if values.notna().any():  # only distinct2 can be missing: one-word answers have no word pairs
                found[f"{method}.{name}"] = estimate(values.dropna().tolist(), seed)
        perplexities = frame.loc[frame["behavior"] != "answer", "perplexity"].dropna().tolist()
        if perplexities:
            found[f"{method}.perplexity"] = estimate(perplexities, seed, "median")
    return found


def cosines(methods: Mapping[str, Request | None], train: Activations, test: Activations) -> dict[str, Tensor]:
    """Cosine of each test input's predicted vector, and of the raw mean at the same layer, with its P2S vector.

    The cosine to the mean shows how similar the inputs' vectors are. The compared mean vector may use another layer.
    """
    learned = methods["l2s"]
    assert learned is not None
    site = learned.steerer.site
    ids, z = test.contrast(site)
    predicted = learned.steerer.vectors(Context(tuple(ids), test))
    average = MeanDifference(site).fit(train).vector_
    cosine = torch.nn.functional.cosine_similarity
    return {"cos.l2s_p2s": cosine(predicted, z), "cos.mean_p2s": cosine(average[None], z)}


def capture_sets(
    study: Study,
    part: str,
    model: Model,
    examples: Sequence[Example],
    names: Sequence[str],
    layers: Sequence[int],
    batch_size: int,
) -> dict[str, Activations]:
    """Activations of the examples under each named sentence set, stored on disk, so an interrupted run resumes."""
    wanted = sorted(set(layers))
    found = {}
    for name in dict.fromkeys(names):
        folder = study.folder / "stages" / f"acts-{part}-{name}-{'_'.join(map(str, wanted))}"
        pairs = steerlab.data.with_contrasts(examples, SENTENCES[name])
        found[name] = steerlab.capture(model, pairs, folder=folder, layers=wanted, batch_size=batch_size).load()
    return found


def publishable_examples(
    judged: pd.DataFrame, examples: Sequence[Example], per_behavior: int = 4
) -> dict[str, dict[str, str]]:
    """The same inputs under every method, by id: the license of the questions does not allow to publish them."""
    blocks: dict[str, dict[str, str]] = {}
    for example in [e for b in BEHAVIORS for e in [e for e in examples if e.behavior == b][:per_behavior]]:
        rows = judged[judged["example_id"] == example.id]
        blocks[f"{example.id} (wanted: {example.behavior})"] = {
            row["method"]: _publishable_text(example, row) for _, row in rows.iterrows()
        }
    return blocks


def _publishable_text(example: Example, row: pd.Series) -> str:
    if example.behavior == "refuse" and not row["refuses"]:
        return "(does not refuse; text left out)"
    words, text = str(example.prompt).lower().split(), " ".join(row["text"].lower().split())
    echoes = any(" ".join(words[i : i + 5]) in text for i in range(max(len(words) - 4, 1)))
    return "(repeats the question; text left out)" if echoes else row["text"]
