"""Bad input to the verbs: strengths, sizes, dtypes, vectors, gates, fits, sweeps, loading, the command line."""

import contextlib
import io

import numpy as np
import pandas as pd
import torch
from bad_cases import Case, World, answers, refusals, same

import steerlab
from steerlab import Activations, MeanDifference, Request, Site, SteeringVector, methods
from steerlab.analysis.layer_selection import select_layers
from steerlab.analysis.steerability import slopes
from steerlab.cli import main
from steerlab.methods.base import Context, Intervention, Steerer
from steerlab.methods.l2s.config import TrainingConfig
from steerlab.testing import tiny_tokenizer

TWO = ["one", "two words"]
NAN, INF = float("nan"), float("inf")


def _alphas() -> list[Case]:
    wrong = {
        "NaN": (NAN, "alpha.*nan"), "inf": (INF, "alpha.*inf"), "-inf": (-INF, "alpha.*inf"),
        "a text": ("1", "alpha.*'1'"), "None": (None, "alpha.*None"), "True": (True, "alpha.*True"),
        "NaN among numbers": ([1.0, NAN], "alpha.*nan"), "too few": ([1.0], "alpha.*2 inputs"),
        "too many": ([1.0, 2.0, 3.0], "alpha.*2 inputs"), "none": ([], "alpha"),
        "texts": (["1", "2"], "alpha.*'1'"), "None among numbers": ([1.0, None], "alpha.*None"),
        "columns": ([[1.0], [2.0]], r"alpha.*\(2, 1\)"), "complex": (1j, "alpha.*1j"),
        "a complex tensor": (torch.tensor([1j, 2j]), "alpha.*j"), "a dict": ({0: 1.0, 1: 2.0}, "alpha.*dict"),
        "bools": ([True, False], "alpha.*True|alpha.*bool"), "a set": ({1.0, 2.0}, "alpha.*set"),
        "more than a float32 holds": (1e39, "alpha.*1e\\+39"),
        "a bool tensor": (torch.tensor([True, False]), "alpha.*True"),
        "a tensor of NaN": (torch.tensor([NAN, 1.0]), "alpha.*nan"),
    }  # fmt: skip
    cases = []
    for name, (x, says) in wrong.items():
        cases.append((f"{name}, generated", lambda w, x=x: w.generate(steer=w.mean, alpha=x), says))
        cases.append((f"{name}, requested", lambda w, x=x: w.generate(steer=[Request(w.mean, x)]), says))
        scored = lambda w, x=x: steerlab.score(w.model, TWO, TWO, steer=w.mean, alpha=x)  # noqa: E731
        cases.append((f"{name}, scored", scored, says))
    swept = {
        "NaN": ([1.0, NAN], "alphas.*nan"), "inf": ([INF], "alphas.*inf"), "a text": ("123", "alphas.*'123'"),
        "texts": (["1"], "alphas.*'1'"), "a number": (1.0, "alphas.*1.0"), "None": (None, "alphas.*None"),
        "True": ([True, 0.5], "alphas.*True"),
        "none": ([], "alphas.*(at least one|empty)"), "twice": ([1, 1.0], "alphas.*twice"),
        "0 and -0": ([0.0, -0.0], "alphas.*twice"), "nested": ([[1.0]], r"alphas.*\[1.0\]"),
        "None in a list": ([None], "alphas.*None"), "complex": ([1j], "alphas.*1j"),
    }  # fmt: skip
    cases += [(f"{name}, swept", lambda w, x=x: w.sweep(alphas=x), says) for name, (x, says) in swept.items()]
    steered = lambda w, a: w.generate(steer=w.mean, alpha=a)  # noqa: E731
    right = [
        ("0", lambda w: (steered(w, 0), w.generate()), lambda r: same(*r) and r[0].steered_tokens == 0),
        ("zeros", lambda w: (steered(w, [0, 0]), w.generate()), lambda r: same(*r)),
        ("-0.0", lambda w: (steered(w, -0.0), w.generate()), lambda r: same(*r)),
        ("an integer", lambda w: (steered(w, 2), steered(w, 2.0)), lambda r: same(*r)),
        ("np.float32", lambda w: (steered(w, np.float32(2)), steered(w, 2.0)), lambda r: same(*r)),
        ("a 0-d tensor", lambda w: (steered(w, torch.tensor(2.0)), steered(w, 2.0)), lambda r: same(*r)),
        ("an array", lambda w: (steered(w, np.array([1, 2])), steered(w, [1.0, 2.0])), lambda r: same(*r)),
        ("a Series", lambda w: (steered(w, pd.Series([1.0, 2.0])), steered(w, [1.0, 2.0])), lambda r: same(*r)),
        ("an array, swept", lambda w: (w.sweep(alphas=np.array([0.0, 1.0])), w.sweep()),
         lambda r: r[0]["value"].equals(r[1]["value"])),
        ("a generator, swept", lambda w: (w.sweep(alphas=(a for a in (0.0, 1.0))), w.sweep()),
         lambda r: r[0]["value"].equals(r[1]["value"])),
    ]  # fmt: skip
    return refusals("alphas", cases) + answers("alphas", right)


def _sizes() -> list[Case]:
    counts = {"0": 0, "-1": -1, "2.5": 2.5, "a text": "8", "True": True, "NaN": NAN, "None": None, "a list": [2]}
    verbs = {
        "captured": lambda w, n: w.capture(batch_size=n), "generated": lambda w, n: w.generate(batch_size=n),
        "scored": lambda w, n: steerlab.score(w.model, TWO, TWO, batch_size=n), "next token": lambda w,
        n: steerlab.next_token_logits(w.model, TWO, batch_size=n),
        "perplexity": lambda w, n: steerlab.metrics.perplexity(w.model, TWO, TWO, batch_size=n), "swept": lambda w,
        n: w.sweep(batch_size=n),
        "swept texts": lambda w, n: w.sweep(metric=_lengths, batch_size=n), "steered": lambda w,
        n: w.generate(steer=w.mean, batch_size=n),
    }  # fmt: skip
    cases = [
        (f"batch_size {name}, {verb}", lambda w, n=n, call=call: call(w, n), f"batch_size.*{n}")
        for verb, call in verbs.items() for name,
        n in counts.items() if not (n is None and verb.startswith("swept")) and n != [2]
    ]  # fmt: skip
    for name, n in counts.items():
        says = f"max_new_tokens.*{str(n).strip('[]')}"
        swept = lambda w, n=n: w.sweep(metric=_lengths, generation={"max_new_tokens": n})  # noqa: E731
        cases.append((f"max_new_tokens {name}", lambda w, n=n: w.generate(max_new_tokens=n), says))
        cases.append((f"max_new_tokens {name}, swept", swept, says))
    seeds = {"None": None, "1.5": 1.5, "a text": "0", "True": True, "-1": -1, "huge": 2**70, "NaN": NAN}
    cases += [(f"seed {name}", lambda w, s=s: w.generate(seed=s), f"seed.*{s}") for name, s in seeds.items()]
    cases += [
        ("more new tokens than the context", lambda w: w.generate(max_new_tokens=600), "context of 512"),
        ("memory 0", lambda w: w.sweep(memory=0), "memory.*0"),
        ("memory -1", lambda w: w.sweep(memory=-1), "memory.*-1"),
        ("memory None", lambda w: w.sweep(memory=None), "memory.*None"),
        ("memory of a text", lambda w: w.sweep(memory="1GB"), "memory.*1GB"),
        ("an unknown option", lambda w: w.generate(top_q=0.5), "top_q"),
        ("temperature -1", lambda w: w.generate(do_sample=True, temperature=-1.0), "temperature"),
        ("temperature of a text", lambda w: w.generate(do_sample=True, temperature="hot"), "temperature"),
        ("num_beams 0", lambda w: w.generate(num_beams=0), "num_beams"),
        ("several greedy sequences", lambda w: w.generate(num_return_sequences=2), "num_return_sequences"),
        ("top_p 2", lambda w: w.generate(do_sample=True, top_p=2.0), "top_p"),
        ("input_ids", lambda w: w.generate(input_ids=torch.ones(1, 2).long()), "input_ids"),
        ("attention_mask", lambda w: w.generate(attention_mask=torch.ones(1, 2).long()), "attention_mask"),
        ("a dict asked for", lambda w: w.generate(return_dict_in_generate=True), "return_dict_in_generate"),
        ("generation of a list, swept", lambda w: w.sweep(metric=_lengths, generation=[40]), "generation.*40"),
        ("an unknown option, swept", lambda w: w.sweep(metric=_lengths, generation={"top_q": 1}), "top_q"),
        ("padding", lambda w: w.capture(padding="both"), "padding.*both"),
        ("padding None", lambda w: w.capture(padding=None), "padding.*None"),
        ("reduce", lambda w: w.capture(reduce="max"), "reduce.*max"),
        ("reduce None", lambda w: w.capture(reduce=None), "reduce.*None"),
        ("reduce True", lambda w: w.capture(reduce=True), "reduce.*True"),
        ("dtype of a text", lambda w: w.capture(dtype="float32"), "dtype.*float32"),
        ("dtype None", lambda w: w.capture(dtype=None), "dtype.*None"),
        ("dtype int64", lambda w: w.capture(dtype=torch.int64), "dtype.*int64"),
        ("dtype bool", lambda w: w.capture(dtype=torch.bool), "dtype.*bool"),
        ("dtype complex", lambda w: w.capture(dtype=torch.complex64), "dtype.*complex64"),
        ("dtype float", lambda w: w.capture(dtype=float), "dtype.*float"),
        ("dtype of NumPy", lambda w: w.capture(dtype=np.float32), "dtype.*float32"),
        ("scale", lambda w: w.generate(steer=w.mean, scale="unit"), "scale.*unit"),
        ("scale None", lambda w: w.generate(steer=w.mean, scale=None), "scale.*None"),
        ("scale, swept", lambda w: w.sweep(scale="unit"), "scale.*unit"),
        ("tokens None in a list", lambda w: steerlab.next_token_logits(w.model, TWO, [None]), "tokens"),
        ("no tokens", lambda w: steerlab.next_token_logits(w.model, TWO, []), "tokens"),
        ("a token outside", lambda w: steerlab.next_token_logits(w.model, TWO, [10**6]), "tokens.*1000000"),
        ("a negative token", lambda w: steerlab.next_token_logits(w.model, TWO, [-1]), "tokens.*-1"),
        ("a text for a token", lambda w: steerlab.next_token_logits(w.model, TWO, "yes"), "tokens.*yes"),
        ("True for a token", lambda w: steerlab.next_token_logits(w.model, TWO, [True]), "tokens.*True"),
        ("one token, not in a list", lambda w: steerlab.next_token_logits(w.model, TWO, 5), "tokens.*5"),
        ("max_other without tokens", lambda w: steerlab.next_token_logits(w.model, TWO, max_other=True), "max_other"),
        ("a steerer's class", lambda w: w.generate(steer=MeanDifference), "steer.*MeanDifference"),
        ("a steerer's name", lambda w: w.generate(steer="mean"), "steer.*mean"),
        ("a tensor for a steerer", lambda w: w.generate(steer=torch.ones(32)), "vector.*its layer"),
        ("a number for a steerer", lambda w: w.generate(steer=3), "steer.*3"),
        ("None in a list of steerers", lambda w: w.generate(steer=[None]), "steer.*None"),
        ("a detector for a steerer", lambda w: w.generate(steer=w.probe), "steer.*LinearProbe"),
        ("a dict of steerers", lambda w: w.generate(steer={"mean": w.mean}), "layers.*'mean'"),
        ("an unfitted steerer", lambda w: w.generate(steer=MeanDifference(1)), "not fitted"),
        ("one fitted on another model", lambda w: steerlab.generate(w.other, TWO, steer=w.mean, max_new_tokens=2),
         "fitted on|another model"),
        ("a Request without steerer", lambda w: w.generate(steer=[Request(None)]), "steer.*None"),
    ]  # fmt: skip
    right = [
        ("batch_size of NumPy", lambda w: (w.capture(batch_size=np.int64(1)), w.capture(batch_size=1)),
         lambda r: same(*r)),
        ("a large batch_size", lambda w: (w.capture(batch_size=10**9), w.capture()), lambda r: same(*r)),
        ("max_new_tokens of NumPy", lambda w: (w.generate(max_new_tokens=np.int64(3)), w.generate()),
         lambda r: same(*r)),
        ("an empty list of steerers", lambda w: (w.generate(steer=[]), w.generate()), lambda r: same(*r)),
        ("token ids of NumPy",
         lambda w: (steerlab.next_token_logits(w.model, TWO, np.array([5, 6])),
                    steerlab.next_token_logits(w.model, TWO)[:, [5, 6]]),
         lambda r: bool(torch.equal(*r))),
        ("half precision", lambda w: w.capture(dtype=torch.float16), lambda a: a.values.dtype == torch.float16),
    ]  # fmt: skip
    return refusals("sizes and options", cases) + answers("sizes and options", right)


def _lengths(examples, texts):
    return [len(text) for text in texts]


class _Given(Steerer):
    """A steerer of one's own that gives whatever it was made with."""

    def __init__(self, vectors, gate=None) -> None:
        self.site, self.given, self.gate_ = Site(1), vectors, gate

    def fit_activations(self, acts):
        pass

    def vectors(self, context):
        return self.given

    def interventions(self, context):
        return (Intervention(self.site, self.given, self.gate_),)


def _vectors() -> list[Case]:
    h = torch.arange(32.0)
    wrong = {
        "NaN": (torch.full((32,), NAN), "NaN"), "inf": (torch.full((32,), INF), "infinity"),
        "more than a float32 holds": (torch.full((32,), 1e300, dtype=torch.float64), "infinity"),
        "a row of a batch": (h[None], r"\(1, 32\)"),
        "0-d": (torch.tensor(1.0), r"\(\)"), "nothing": (torch.ones(0), r"\(0,\)"), "a list": (h.tolist(), "list"),
        "an array of texts": (h.numpy().astype(str), "ndarray|array"), "None": (None, "None"),
        "bool": (torch.ones(32, dtype=torch.bool), "bool"),
        "complex": (torch.ones(32, dtype=torch.complex64), "complex64"), "sparse": (h.to_sparse(), "sparse"),
        "without values": (h.to("meta"), "meta"), "a number": (1.0, "1.0|float"),
    }  # fmt: skip
    cases = [(f"{name}, by hand", lambda w, x=x: SteeringVector({1: x}), says) for name, (x, says) in wrong.items()]
    layers = {"half": 1.5, "True": True, "a text": "1", "NaN": NAN, "None": None, "too high": 99}
    cases += [(f"layer {name}", lambda w, k=k: w.generate(steer={k: h}), "layer") for name, k in layers.items()]
    cases += [
        ("a vector without its layer", lambda w: w.generate(steer=h), r"does not say its layer.*\{layer: vector\}"),
        ("fewer rows than layers", lambda w: w.generate(steer=torch.ones(3, 32)), "does not say its layer.*4 rows"),
        ("numbers for a steerer", lambda w: w.generate(steer=[0.1, 0.2]), r"steerer is 0.1.*\{15: tensor\}"),
        ("a list for vectors by layer", lambda w: SteeringVector([h]), r"vectors by layer, such as \{15: tensor\}"),
        ("a vector without layers", lambda w: SteeringVector({}), "at least one layer"),
        ("layers as a word", lambda w: MeanDifference("each"), "layers='each'.*all"),
        ("another width", lambda w: w.generate(steer=SteeringVector({1: torch.ones(31)})), "31.*32|32.*31"),
        ("another width, swept", lambda w: w.sweep(SteeringVector({1: torch.ones(31)})), "31.*32|32.*31"),
        ("P2S of no table", lambda w: methods.P2S.from_table(1, {}), "vectors.*got"),
        ("P2S of different widths", lambda w: methods.P2S.from_table(1, {"a": h, "b": h[:5]}), "width|shape"),
        ("P2S of NaN", lambda w: w.generate(
            [steerlab.Example("a", id="0")], steer=methods.P2S.from_table(1, {"0": h * NAN})
        ), "NaN"),
        ("an operator's class", lambda w: methods.Operation({1: h}, methods.Clamp), r"Clamp.*give it with its numbers"),
        ("heads of a float", lambda w: methods.Operation({1: h}, heads=1.5), "heads: one=1.5"),
        ("heads of a text", lambda w: methods.Operation({1: h}, heads="all"), "heads: one='all'"),
        ("a gate of a number", lambda w: methods.Operation({1: h}, gate=0.5), "gate=0.5.*expected a LinearProbe"),
        ("an operator of a number", lambda w: methods.Operation({1: h}, 3), "operator.*an Operator"),
        ("P2S of a list", lambda w: methods.P2S.from_table(1, [h]), "table.*list"),
        ("P2S of lists", lambda w: methods.P2S.from_table(1, {"a": [1.0]}), "list|tensor"),
        ("P2S of an unknown input", lambda w: w.generate(steer=methods.P2S.from_table(1, {"a": h})), "no vector for"),
        ("own vectors of one row", lambda w: w.generate(steer=_Given(h[None])), r"\(1, 32\)"),
        ("own vectors of another width", lambda w: w.generate(steer=_Given(torch.ones(2, 5))), r"\(2, 5\)"),
        ("own vectors of NaN", lambda w: w.generate(steer=_Given(torch.full((2, 32), NAN))), "NaN"),
        ("own vectors of no rank", lambda w: w.generate(steer=_Given(torch.tensor(1.0))), r"\(\)"),
        ("own vectors of a list", lambda w: w.generate(steer=_Given([[1.0] * 32] * 2)), "list"),
        ("own vectors of an array", lambda w: w.generate(steer=_Given(np.ones((2, 32)))), "ndarray"),
        ("no vectors at all", lambda w: w.generate(steer=_Given(None)), "vector"),
        ("a gate of NaN", lambda w: w.generate(steer=_Given(torch.ones(2, 32), torch.tensor([1.0, NAN]))), "gate.*NaN"),
        ("a gate of too many rows", lambda w: w.generate(steer=_Given(torch.ones(2, 32), torch.ones(3))),
         r"gate.*\(3,\)"),
        ("a gate of one row", lambda w: w.generate(steer=_Given(torch.ones(2, 32), torch.ones(1))), r"gate.*\(1,\)"),
        ("a gate of columns", lambda w: w.generate(steer=_Given(torch.ones(2, 32), torch.ones(2, 1))),
         r"gate.*\(2, 1\)"),
        ("a gate of inf", lambda w: w.generate(steer=_Given(torch.ones(2, 32), torch.tensor([1.0, INF]))),
         "gate.*(NaN|inf)"),
        ("a gate of a list", lambda w: w.generate(steer=_Given(torch.ones(2, 32), [1.0, 1.0])), "gate.*list"),
        ("threshold NaN", lambda w: methods.Gated(w.mean, w.probe, threshold=NAN), "threshold.*nan"),
        ("threshold of a text", lambda w: methods.Gated(w.mean, w.probe, threshold="0.5"), "threshold.*0.5"),
        ("threshold True", lambda w: methods.Gated(w.mean, w.probe, threshold=True), "threshold.*True"),
        ("when", lambda w: methods.Gated(w.mean, w.probe, when="always"), "when.*always"),
        ("soft with a threshold", lambda w: methods.Gated(w.mean, w.probe, soft=True, threshold=0.5), "soft"),
        ("a gated prompt", lambda w: methods.Gated(methods.Prompt(), w.probe), "prompt"),
        ("gate and steerer swapped", lambda w: methods.Gated(w.probe, w.mean), "steerer.*LinearProbe"),
        ("no detector", lambda w: methods.Gated(w.mean, None), "detector.*None"),
        ("no threshold", lambda w: w.generate(steer=methods.Gated(w.mean, methods.LinearProbe(1).fit(w.acts))),
         "threshold"),
        ("fpr NaN", lambda w: w.probe.calibrate(w.acts, fpr=NAN), "fpr.*nan"),
        ("fpr 1", lambda w: w.probe.calibrate(w.acts, fpr=1.0), "fpr.*1"),
        ("fpr of a text", lambda w: w.probe.calibrate(w.acts, fpr="low"), "fpr.*low"),
        ("fpr too small", lambda w: w.probe.calibrate(w.acts, fpr=1e-6), "1e-06|1e-6"),
        ("calibrated on a list", lambda w: w.probe.calibrate([1.0]), "Activations.*list|list.*Activations"),
        ("scores of NaN", lambda w: methods.base.threshold_at(torch.tensor([1.0, NAN]), 0.0), "NaN"),
    ]  # fmt: skip
    steered = lambda w, v: w.generate(steer=SteeringVector({1: v}))  # noqa: E731
    right = [
        ("integers", lambda w: (steered(w, h.long()), steered(w, h)), lambda r: same(*r)),
        ("float64", lambda w: (steered(w, h.double()), steered(w, h)), lambda r: same(*r)),
        ("bfloat16", lambda w: (steered(w, h.bfloat16()), steered(w, h)), lambda r: same(*r)),
        ("requires_grad", lambda w: (steered(w, h.clone().requires_grad_()), steered(w, h)), lambda r: same(*r)),
        ("a view", lambda w: (steered(w, torch.stack([h, h], 1)[:, 0]), steered(w, h)), lambda r: same(*r)),
        ("an array", lambda w: (w.generate(steer={1: h.numpy()}), steered(w, h)), lambda r: same(*r)),
        ("a layer out of a frame", lambda w: MeanDifference(np.int64(1)).fit(w.acts).layers, lambda r: type(r) is int),
        ("a row for each layer", lambda w: (w.generate(steer=torch.stack([h * 0, h, h * 0, h * 0])), steered(w, h)),
         lambda r: same(*r)),
        ("changed afterwards", lambda w: _changed_afterwards(w, h.clone()), lambda r: same(*r)),
        ("zeros", lambda w: (steered(w, torch.zeros(32)), w.generate()),
         lambda r: same(*r) and r[0].steered_tokens == 0),
        ("own integers",
         lambda w: (w.generate(steer=_Given(torch.ones(2, 32).long())), w.generate(steer=_Given(torch.ones(2, 32)))),
         lambda r: same(*r)),
        ("own vectors that require grad",
         lambda w: (w.generate(steer=_Given(torch.ones(2, 32).requires_grad_())),
                    w.generate(steer=_Given(torch.ones(2, 32)))),
         lambda r: same(*r)),
        ("closed gates", lambda w: (w.generate(steer=_Given(torch.ones(2, 32), torch.zeros(2))), w.generate()),
         lambda r: same(*r)),
    ]  # fmt: skip
    return refusals("vectors and gates", cases) + answers("vectors and gates", right)


def _changed_afterwards(w: World, vector: torch.Tensor):
    steerer = SteeringVector({1: vector})
    before = w.generate(steer=steerer)
    vector.zero_()
    return before, w.generate(steer=steerer)


def _fits() -> list[Case]:
    def one_class(w):
        return w.acts.select(behavior="refuse")

    def one_row(w):
        return w.acts.rows([i == 0 for i in range(len(w.acts))])

    def broken(w, value):
        values = w.acts.values.clone()
        values[0, 0, 0] = value
        return Activations(values, w.acts.index, w.acts.sites, w.acts.info)

    def config(**fields):
        return lambda w: TrainingConfig(**fields)

    cases = [
        ("a layer that was not captured", lambda w: MeanDifference(3).fit(w.acts), "site 3 was not captured"),
        ("layer 1.5", lambda w: MeanDifference(1.5).fit(w.acts), "1.5"),
        ("layer of a text", lambda w: MeanDifference("1").fit(w.acts), "'?1'?"),
        ("layer None", lambda w: MeanDifference(None).fit(w.acts), "None"),
        ("no contrasts", lambda w: MeanDifference(1).fit(w.acts.select(side="prompt")), "side"),
        ("one side", lambda w: MeanDifference(1).fit(w.acts.select(side="positive")), "side|one side"),
        ("one row", lambda w: MeanDifference(1).fit(one_row(w)), "side"),
        ("an unknown behavior", lambda w: MeanDifference(1, behaviors=["defer"]).fit(w.acts), "defer"),
        ("an unknown position", lambda w: MeanDifference(1, position="first").fit(w.acts), "first"),
        ("NaN", lambda w: broken(w, NAN), "NaN"), ("inf", lambda w: broken(w, INF), "infinity"),
        ("None for activations", lambda w: MeanDifference(1).fit(None), "given None.*Activations"),
        ("a tensor for activations", lambda w: MeanDifference(1).fit(torch.ones(4, 32)), "given tensor.*Activations"),
        ("Examples for activations", lambda w: methods.LinearProbe(1).fit(w.examples), "list.*Activations"),
        ("a Store's folder for activations", lambda w: steerlab.L2S(1).fit("acts/"),
         "acts/.*Activations"),
        ("None for a random direction", lambda w: methods.RandomDirection(1).fit(None), "given None.*Activations"),
        ("None for P2S", lambda w: methods.P2S(1).fit(None), "given None.*Activations"),
        ("one class, probe", lambda w: methods.LinearProbe(1).fit(one_class(w)), "0 inputs have another behavior"),
        ("no such class, probe", lambda w: methods.LinearProbe(1, positive=["defer"]).fit(w.acts),
         "no input has behavior .defer."),
        ("both classes the same, probe",
         lambda w: methods.LinearProbe(1, positive=["refuse"], negative=["refuse"]).fit(w.acts),
         "both positive and negative"),
        ("an unknown label, probe", lambda w: methods.LinearProbe(1, label="topic").fit(w.acts), "topic"),
        ("C 0, probe", lambda w: methods.LinearProbe(1, C=0.0).fit(w.acts), "C=0"),
        ("C NaN, probe", lambda w: methods.LinearProbe(1, C=NAN).fit(w.acts), "C=nan"),
        ("C of a text, probe", lambda w: methods.LinearProbe(1, C="1").fit(w.acts), "C='?1"),
        ("C inf, probe", lambda w: methods.LinearProbe(1, C=INF).fit(w.acts), "C=inf"),
        ("one class, condition", lambda w: methods.ConditionVector(1).fit(one_class(w)),
         "0 inputs have another behavior"),
        ("direction, condition", lambda w: methods.ConditionVector(1, direction="lda").fit(w.acts), "direction.*lda"),
        ("one class, AlphaSteer", lambda w: methods.AlphaSteer(1).fit(one_class(w)), "inputs|answer"),
        ("one class, CONFST", lambda w: methods.CONFST(1, "refuse").fit(one_class(w)), "classes|refuse"),
        ("folds, CONFST", lambda w: methods.CONFST(1, "refuse", folds=1).fit(w.acts), "folds=1"),
        ("an unknown target, CONFST", lambda w: methods.CONFST(1, "defer", folds=2).fit(w.acts), "defer"),
        ("threshold of a text, CONFST", lambda w: methods.CONFST(1, "refuse", threshold="0.5").fit(w.acts),
         "threshold.*0.5"),
        ("span 1.5, CONFST", lambda w: methods.CONFST(1, "refuse", span=1.5).fit(w.acts), "span.*1.5"),
        ("no layers, AlphaSteer", lambda w: methods.AlphaSteer([]).fit(w.acts), "layers.*at least one"),
        ("a layer twice, AlphaSteer", lambda w: methods.AlphaSteer([1, 1]).fit(w.acts), "once"),
        ("ridge -1, AlphaSteer", lambda w: methods.AlphaSteer(1, ridge=-1.0).fit(w.acts), "ridge"),
        ("gates, AlphaSteer", lambda w: methods.AlphaSteer(1, gates="open").fit(w.acts), "gates|open"),
        ("ratio 2, AlphaSteer", lambda w: methods.AlphaSteer(1, ratio=2.0).fit(w.acts), "ratio"),
        ("layers None, AlphaSteer", lambda w: methods.AlphaSteer(None).fit(w.acts), "layers.*None"),
        ("no class, AdaSteer", lambda w: methods.AdaSteer(1, rejection_layer=1, harmfulness_layer=1).fit(w.acts),
         "complied"),
        ("seed of a text, random", lambda w: methods.RandomDirection(1, seed="x").fit(w.acts), "seed.*x"),
        ("one example, L2S", lambda w: steerlab.L2S(1, progress=False).fit(w.acts.select(example_id="e1")),
         "2 examples, not 1"),
        ("hidden_units 0, L2S", lambda w: steerlab.L2S(1, hidden_units=0, progress=False).fit(w.acts),
         "hidden_units=0"),
        ("hidden_units 2.5, L2S", lambda w: steerlab.L2S(1, hidden_units=2.5, progress=False).fit(w.acts),
         "hidden_units=2.5"),
        ("an unknown config, L2S", lambda w: steerlab.L2S(1, config="best", progress=False).fit(w.acts),
         "config 'best'"),
        ("config of a dict, L2S", lambda w: steerlab.L2S(1, config={}, progress=False).fit(w.acts), r"config \{\}"),
        ("activation, L2S", lambda w: steerlab.L2S(1, activation="gelu", progress=False).fit(w.acts), "gelu"),
        ("validation 1, L2S", lambda w: steerlab.L2S(1, validation=1.0, progress=False).fit(w.acts), "validation=1"),
        ("validation NaN, L2S", lambda w: steerlab.L2S(1, validation=NAN, progress=False).fit(w.acts),
         "validation=nan"),
        ("seed None, L2S", lambda w: steerlab.L2S(1, seed=None, progress=False).fit(w.acts), "seed.*None"),
        ("max_norm NaN, L2S", lambda w: steerlab.L2S(1, max_norm=NAN, progress=False).fit(w.acts), "max_norm.*nan"),
        ("an unknown zero behavior, L2S",
         lambda w: steerlab.L2S(1, zero_behaviors=["defer"], progress=False).fit(w.acts), "defer"),
        ("an unknown context layer, L2S", lambda w: steerlab.L2S(1, context_layer=3, progress=False).fit(w.acts),
         "site 3"),
        ("epochs 0", config(epochs=0), "epochs=0"), ("epochs 2.5", config(epochs=2.5), "epochs=2.5"),
        ("epochs of a text", config(epochs="10"), "epochs='?10"),
        ("learning_rate NaN", config(learning_rate=NAN), "learning_rate=nan"),
        ("learning_rate 0", config(learning_rate=0.0), "learning_rate=0"),
        ("batch_size 0", config(batch_size=0), "batch_size=0"),
        ("batch_size True", config(batch_size=True), "batch_size=True"),
        ("weight_decay -1", config(weight_decay=-1.0), "weight_decay=-1"),
        ("warmup NaN", config(warmup=NAN), "warmup=nan"),
        ("cosine_weight NaN", config(cosine_weight=NAN), "cosine_weight=nan"), ("loss", config(loss="l2"), "loss.*l2"),
        ("schedule None", config(schedule=None), "schedule.*None"),
        ("min_steps -1", config(min_steps=-1), "min_steps=-1"),
        ("plateau_factor 0", config(plateau_factor=0.0), "plateau_factor=0"),
        ("a state of another width, probe",
         lambda w: w.probe.score(Context(("a",), _narrow(w))),
         "width 5"),
    ]  # fmt: skip
    right = [
        ("one name, not in a list",
         lambda w: [MeanDifference(1, behaviors=names).fit(w.acts) for names in ("refuse", ["refuse"])],
         lambda r: bool(torch.equal(r[0].vector_, r[1].vector_))),
        ("rows in another order", lambda w: (w.mean.vector_, MeanDifference(1).fit(_reversed(w.acts)).vector_),
         lambda r: bool(torch.equal(*r))),
        ("layer of NumPy", lambda w: (w.mean.vector_, MeanDifference(np.int64(1)).fit(w.acts).vector_),
         lambda r: bool(torch.equal(*r))),
        ("from the top", lambda w: (w.mean.vector_, MeanDifference(-3).fit(w.acts).vector_),
         lambda r: bool(torch.equal(*r))),
    ]  # fmt: skip
    return refusals("fits", cases) + answers("fits", right)


def _narrow(w: World) -> Activations:
    labels = w.acts.index.iloc[:1].assign(side="prompt", position="last", example_id="a")
    return Activations(torch.ones(1, 1, 5), labels, (Site(1),))


def _reversed(acts: Activations) -> Activations:
    return Activations(acts.values.flip(0), acts.index[::-1].reset_index(drop=True), acts.sites, acts.info)


def _sweeps() -> list[Case]:
    cases = [
        ("an unknown metric", lambda w: w.sweep(metric="fluency"), "metric 'fluency'"),
        ("no metric", lambda w: w.sweep(metric=[]), "metric"),
        ("metric None", lambda w: w.sweep(metric=None), "metric.*None"),
        ("a metric of a number", lambda w: w.sweep(metric=3), "metric.*3"),
        ("a number in a list of metrics", lambda w: w.sweep(metric=[3]), "metric.*3"),
        ("a metric twice", lambda w: w.sweep(metric=["propensity", "propensity"]), "propensity"),
        ("a dict of numbers", lambda w: w.sweep(metric={"a": 3}), "metric.*3"),
        ("a metric that gives NaN", lambda w: w.sweep(metric=lambda e, t: [NAN] * len(t)), "gave nan"),
        ("a metric that gives too few", lambda w: w.sweep(metric=lambda e, t: [1.0]), "1 values for 2"),
        ("a metric that gives None", lambda w: w.sweep(metric=lambda e, t: None), "metric.*(None|1 values)|gave"),
        ("a metric that gives texts", lambda w: w.sweep(metric=lambda e, t: t), "metric|gave"),
        ("a sweep of no steerer", lambda w: w.sweep([]), "no method"),
        ("of no steerer in a dict", lambda w: w.sweep({}), "no method"),
        ("of a name", lambda w: w.sweep("mean"), "steerer.*mean|method.*mean"),
        ("of a class", lambda w: w.sweep(MeanDifference), "steerer.*MeanDifference|method.*MeanDifference"),
        ("of a detector", lambda w: w.sweep(w.probe), "LinearProbe"),
        ("of None in a list", lambda w: w.sweep([None]), "None"),
        ("of tensors in a dict", lambda w: w.sweep({"v": torch.ones(32)}), "vector.*its layer"),
        ("of two of one name", lambda w: w.sweep([w.mean, w.mean]), "different name"),
        ("of an unfitted one", lambda w: w.sweep(MeanDifference(1)), "not fitted"),
        ("layers of a fitted one", lambda w: w.sweep(layers=[0]), "fitted at layer 1"),
        ("layers that were not given", lambda w: w.sweep({"mean": {1: w.mean}}, layers=[0, 1]), "missing"),
        ("train None at layers", lambda w: w.sweep(MeanDifference(0), layers="all"), "train"),
        ("train of a text", lambda w: w.sweep(MeanDifference(0), layers=[1], train="acts/"),
         "train|one string|one text"),
        ("train of a DataFrame", lambda w: w.sweep(MeanDifference(0), layers=[1], train=w.acts.index), "DataFrame"),
        ("train without the layer", lambda w: w.sweep(MeanDifference(0), layers=[3], train=w.acts), "site 3"),
        ("no training examples", lambda w: w.sweep(MeanDifference(0), layers=[1], train=[]), "empty"),
        ("train of a number", lambda w: w.sweep(MeanDifference(0), layers=[1], train=3), "data are 3"),
        ("no positions", lambda w: w.sweep(positions=[]), "position"),
        ("positions None", lambda w: w.sweep(positions=None), "position.*None"),
        ("a position twice", lambda w: w.sweep(positions=["last", "last"]), "more than once|twice"),
        ("an unknown position", lambda w: w.sweep(positions="first"), "position 'first'"),
        ("a float position", lambda w: w.sweep(positions=1.5), "position.*1.5"),
        ("True for a position", lambda w: w.sweep(positions=True), "position.*True"),
        ("generated alone", lambda w: w.sweep(positions="generated"), "generated|steered"),
        ("a position that no prompt has", lambda w: w.sweep(positions="prompt[400]"), r"prompt\[400\]"),
        ("an input twice", lambda w: w.sweep(data=[w.examples[0], w.examples[0]]), "twice"),
        ("no input", lambda w: w.sweep(data=[]), "empty"),
        ("one without contrast", lambda w: w.sweep(data=[w.examples[0], steerlab.Example("Hi", id="x")]), "contrast"),
        ("answers of which one begins the other",
         lambda w: w.sweep(data=[steerlab.Example("Hi", id="x", contrast=steerlab.Contrast("a", "ab"))]),
         "never differ|begins"),
        ("first token of answers that share it",
         lambda w: w.sweep(data=[steerlab.Example("Hi", id="x", contrast=steerlab.Contrast("ab", "ac"))],
                           metric="first_token_accuracy"),
         "same token"),
        ("selected from nothing", lambda w: select_layers(pd.DataFrame()), "select_layers"),
        ("selected without validation rows", lambda w: select_layers(w.sweep()), "validation"),
        ("slopes of one alpha", lambda w: slopes(w.sweep(alphas=[1.0])), "two|alpha"),
        ("slopes of nothing", lambda w: slopes(pd.DataFrame()), "slopes"),
        ("slopes of None", lambda w: slopes(None), "slopes.*None|frame.*None"),
        ("slopes of an unknown metric", lambda w: slopes(w.sweep(), "fluency"), "fluency"),
    ]  # fmt: skip

    def fitted(w, train):
        return w.sweep([MeanDifference(0), methods.RandomDirection(0)], layers=[1], train=train, alphas=[1.0])

    right = [
        ("a tuple of metrics", lambda w: w.sweep(metric=("propensity", "accuracy")), lambda f: len(f) == 8),
        ("one alpha", lambda w: w.sweep(alphas=[0.0]), lambda f: len(f) == 2),
        ("train of a generator", lambda w: (fitted(w, (e for e in w.examples[2:6])), fitted(w, w.examples[2:6])),
         lambda r: r[0]["value"].equals(r[1]["value"])),
        ("data of a generator", lambda w: (w.sweep(data=(e for e in w.examples[:2])), w.sweep()),
         lambda r: r[0]["value"].equals(r[1]["value"])),
    ]  # fmt: skip
    return refusals("sweeps", cases) + answers("sweeps", right)


def _loads() -> list[Case]:
    def changed(file, content):
        """A copy of the saved model with one file changed, or removed."""

        def load(w):
            folder = w.file("config.json", (w.saved / "config.json").read_bytes()).parent
            for other in w.saved.iterdir():
                (folder / other.name).write_bytes(other.read_bytes())
            (folder / file).unlink() if content is None else (folder / file).write_bytes(content)
            return steerlab.load(folder, check=False)

        return load

    def load(**options):
        return lambda w: steerlab.load(w.saved, check=False, **options)

    cases = [
        ("None", lambda w: steerlab.load(None), "None"), ("a number", lambda w: steerlab.load(3), "int|3"),
        ("nothing", lambda w: steerlab.load(""), "''|name"), ("bytes", lambda w: steerlab.load(b"smollm2"), "bytes"),
        ("a list", lambda w: steerlab.load(["smollm2"]), "list"),
        ("a torch module", lambda w: steerlab.load(torch.nn.Linear(2, 2), tokenizer=tiny_tokenizer()), "blocks|Linear"),
        ("a steerlab model", lambda w: steerlab.load(w.model), "Model"),
        ("a tokenizer", lambda w: steerlab.load(tiny_tokenizer()), "Fast|Tokenizer"),
        ("no such folder", lambda w: steerlab.load("./nowhere"), "nowhere"),
        ("no such gguf file", lambda w: steerlab.load("nowhere.gguf"), "nowhere.gguf"),
        ("an empty folder", lambda w: steerlab.load(w.file("x.txt", "").parent), "config.json"),
        ("a file", lambda w: steerlab.load(str(w.file("model.bin", "x"))), "model.bin"),
        ("a broken gguf file", lambda w: steerlab.load(w.file("m.gguf", "not gguf")), "could not be read|gguf"),
        ("a broken config", changed("config.json", b"{"), "config|JSON"),
        ("an empty config", changed("config.json", b""), "config|JSON"),
        ("a config of a list", changed("config.json", b"[]"), "could not be read|config"),
        ("an unknown architecture", changed("config.json", b'{"model_type": "nosuch"}'), "nosuch"),
        ("a config without type", changed("config.json", b"{}"), "could not be read|model_type"),
        ("no weights", changed("model.safetensors", None), "weights|could not be read|model.safetensors"),
        ("empty weights", changed("model.safetensors", b""), "could not be read"),
        ("broken weights", changed("model.safetensors", b"x" * 100), "could not be read"),
        ("no tokenizer", changed("tokenizer.json", None), "tokenizer"),
        ("a broken tokenizer", changed("tokenizer.json", b"{"), "tokenizer"),
        ("an unknown device", load(device="gpu9"), "device.*gpu9|gpu9.*device"),
        ("device of a number", load(device=2.5), "device.*2.5"),
        ("a device that is not there", load(device="cuda:9"), "cuda|device"),
        ("an unknown dtype", load(dtype="float33"), "dtype.*float33|float33.*dtype"),
        ("dtype int64", load(dtype=torch.int64), "dtype.*int64"), ("dtype of a number", load(dtype=32), "dtype.*32"),
        ("an unknown task", load(task="vision"), "task 'vision'"),
        ("an unknown backend", load(backend="jax"), "backend 'jax'"),
        ("backend None", load(backend=None), "backend None|backend.*None"),
        ("blocks that are not there", load(blocks="model.nowhere"), "model.nowhere"),
        ("blocks of a number", load(blocks=3), "3"), ("chat of a text", load(chat="yes"), "chat.*yes"),
        ("revision of a folder", load(revision="main"), "revision"),
        ("device and device_map", load(device="cpu", device_map="auto"), "device_map"),
        ("a tokenizer of a number", load(tokenizer=3), "tokenizer.*3"),
        ("no such tokenizer", load(tokenizer="./nowhere"), "nowhere"),
        ("images of a text model", load(task="image-text"), "text-only"),
        ("a processor of a text model", load(processor="./nowhere"), "processor|text-only"),
        ("an option nobody takes", load(nosuch_option=1), "nosuch_option"),
        ("prefix_caching of a text", load(prefix_caching="no"), "prefix_caching.*no"),
        ("check of a text", lambda w: steerlab.load(w.saved, check="no"), "check.*no"),
        ("chat without a template",
         lambda w: steerlab.load(w.plain.hf, tokenizer=w.plain.tokenizer, chat=True, check=False).encode("Hi"),
         "chat template"),
        ("an object without a tokenizer", lambda w: steerlab.load(w.model.hf), "tokenizer"),
        ("a tokenizer without any special token", lambda w: steerlab.load(w.plain.hf, tokenizer=_bare(), check=False),
         "pad"),
        ("a tokenizer of a larger vocabulary",
         lambda w: steerlab.load(w.plain.hf, tokenizer=_larger(), check=False).encode("extra7"), "vocabulary"),
        ("two servers", lambda w: steerlab.load("smollm2", remote="ndif", engine="vllm"), "remote|engine"),
        ("an unknown engine", lambda w: steerlab.load("smollm2", engine="tgi"), "tgi"),
        ("an address without http", lambda w: steerlab.load(w.saved, serve="localhost"), "localhost"),
        ("an object for a server", lambda w: steerlab.load(w.model.hf, remote="http://127.0.0.1:9"), "object|name"),
        ("tensor_parallel_size 0", lambda w: steerlab.load(w.saved, engine="vllm", tensor_parallel_size=0),
         "tensor_parallel_size|vLLM"),
        ("tensor_parallel_size without vLLM", load(tensor_parallel_size=2), "tensor_parallel_size"),
    ]  # fmt: skip
    right = [
        ("a folder", lambda w: steerlab.load(w.saved), lambda m: m.n_layers == 4),
        ("a folder of a text", lambda w: steerlab.load(str(w.saved), dtype="bfloat16"),
         lambda m: m.dtype == torch.bfloat16),
        ("a pathlib folder with a slash", lambda w: steerlab.load(f"{w.saved}/"), lambda m: m.id == "saved"),
        ("chat=False", lambda w: steerlab.load(w.saved, chat=False, check=False).encode("Hi"),
         lambda r: r.text == "Hi"),
    ]  # fmt: skip
    return refusals("loading", cases) + answers("loading", right)


def _bare():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = tokenizer.unk_token = None
    return tokenizer


def _larger():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"extra{i}" for i in range(50)])
    return tokenizer


def _command_line() -> list[Case]:
    def shell(*arguments):
        """Exit status and everything printed."""

        def call(w):
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    status = main([str(w.saved) if part == "MODEL" else part for part in arguments])
                except SystemExit as stop:  # argparse
                    status = stop.code
            return status, out.getvalue() + err.getvalue()

        return call

    def fails(says):
        return lambda r: r[0] in (1, 2) and all(word in r[1] for word in says.split("|"))

    return answers("command line", [
        ("nothing", shell(), fails("command")), ("an unknown command", shell("steer"), fails("steer")),
        ("no such model", shell("doctor", "./nowhere"), fails("nowhere")),
        ("an unknown option", shell("doctor", "MODEL", "--fast"), fails("--fast")),
        ("a revision of a folder", shell("doctor", "MODEL", "--revision", "main"), fails("revision")),
        ("an empty prompt", shell("positions", "", "--model", "MODEL"), fails("steerlab:|empty")),
        ("a blank prompt", shell("positions", " ", "--model", "MODEL"), fails("empty")),
        ("an unknown position", shell("positions", "Hi", "--position", "first", "--model", "MODEL"),
         fails("position 'first'")),
        ("an empty position", shell("positions", "Hi", "--position", "", "--model", "MODEL"), fails("position ''")),
        ("a prompt that is too long", shell("positions", "a b " * 400, "--model", "MODEL"), fails("context")),
        ("a lone surrogate", shell("positions", "\udc80", "--model", "MODEL"), fails("steerlab:")),
        ("no prompt", shell("positions"), fails("PROMPT")),
        ("an address that is none", shell("doctor", "--remote", "nowhere"),
         lambda r: r[0] in (1, 2) and "nowhere" in r[1]),
        ("a model", shell("doctor", "MODEL"), lambda r: r[0] == 0 and "blocks" in r[1]),
        ("positions", shell("positions", "Hi", "--position", "last", "--model", "MODEL"),
         lambda r: r[0] == 0 and "last" in r[1]),
    ])  # fmt: skip


CASES = [*_alphas(), *_sizes(), *_vectors(), *_fits(), *_sweeps(), *_loads(), *_command_line()]
