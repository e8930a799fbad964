"""The compared methods: how each is fitted, and the settings that are tried on validation inputs."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from _compare_data import Sets
from _refusal_prompts import own_contrasts

import steerlab
from steerlab import L2S, Activations, Example, MeanDifference, Request, SteeringVector
from steerlab.analysis.steerability import slopes
from steerlab.methods import (
    CONFST,
    P2S,
    SSAE,
    W2S,
    AdaSteer,
    AlphaSteer,
    Context,
    Gated,
    GradientField,
    KTSConfig,
    LinearProbe,
    Spherical,
    Steerer,
    kl_then_steer,
)
from steerlab.metrics import correlations, is_refusal
from steerlab.models.model import Model

ADASTEER_LAYERS = (14, 15, 16, 17, 18)  # AdaSteer steers several layers at once
READS = {"rejection_layer": 7, "harmfulness_layer": 13}  # as deep as in the release: .25 and .44 of the blocks
PROBE = 13
BENIGN = ("answer", "defer")
RATIO = 0.6
CAPTURED = sorted({*ADASTEER_LAYERS, *READS.values(), PROBE})
# where the mean vector at layer 16 refuses the most in fluent text, on validation inputs, and the last that is as good
KTS_ANSWERS, KTS_STRONGEST = 0.6, 0.8  # strengths of the answers that are kept, and in training
CONCEPTS = 4  # of the sparse shift autoencoder: contrasts are of two kinds, in several wordings
ALPHAS = (0.4, 0.6, 0.8, 1.0, 1.3)


@dataclass(frozen=True)
class Setting:
    """Layer, strength, positions and options of a method; the tables list the options."""

    layer: int | tuple[int, ...]
    alpha: float
    positions: str = "all"
    options: Mapping[str, Any] = field(default_factory=dict)

    def label(self) -> dict[str, Any]:
        """Values of the columns that describe the setting in a data frame."""
        layer = self.layer if isinstance(self.layer, int) else f"{self.layer[0]}-{self.layer[-1]}"
        options = ", ".join(f"{k}={v}" for k, v in self.options.items())
        return {"layer": str(layer), "alpha": self.alpha, "positions": self.positions, "options": options}


# ridge and dead zone were chosen on gates of validation inputs: with ridge 10, as published, the gates
# let a third of the vector through
_PAPER = {"ridge": 1000.0, "dead_zone": 0.0}
_DEAD_ZONE = {"ridge": 1000.0, "dead_zone": 0.5}
# ten for each method: a method that may try more settings would win by that alone
SETTINGS: dict[str, list[Setting]] = {
    **{name: [Setting(k, a) for k in (15, 16) for a in ALPHAS] for name in ("mean", "l2s", "gated_mean", "w2s")},
    "confst": [Setting(k, a) for k in (15, 16) for a in (0.6, 0.8, 1.2, 1.6, 2.0)],
    "alphasteer": [
        *(Setting(16, a, "all", _DEAD_ZONE) for a in ALPHAS[1:]),
        *(Setting(17, a, "all", _DEAD_ZONE) for a in ALPHAS[-2:]),
        *(Setting(16, a, "all", _PAPER) for a in ALPHAS[-2:]),
        *(Setting(16, a, "prompt", _PAPER) for a in (1.0, 2.0)),  # as published
    ],
    "adasteer": [
        *(Setting(16, a) for a in (0.8, 1.0, 1.5, 2.0)),
        *(Setting(ADASTEER_LAYERS, a) for a in (0.12, 0.16, 0.2, 0.3, 0.4)),
        Setting(ADASTEER_LAYERS, 0.3, "prompt"),  # as published
    ],
    "field": [Setting(k, a) for k in (15, 16) for a in (5.0, 10.0, 15.0, 20.0, 30.0)],
    "spherical": [Setting(k, a) for k in (15, 16) for a in (0.03, 0.06, 0.09, 0.12, 0.15)],
    "ssae": [Setting(15, a, "all", {"level": level}) for level in (0.3, 0.5) for a in ALPHAS],  # .58 unbounded
    "kts": [Setting(16, a) for a in (0.4, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.5)],  # one layer: one training
}


class Fitted:
    """Methods fitted to the training activations when they are needed, with the seconds of each fit."""

    def __init__(
        self, model: Model, train: Activations, sets: Sets, clean: Context, seed: int, folder: str | Path
    ) -> None:
        self.model, self.train, self.sets, self.clean, self.seed = model, train, sets, clean, seed
        self.contrasted, self.folder = contrasted_inputs(sets), Path(folder)
        self.edited: dict[str, Model] = {}  # methods that change the model's weights
        self.seconds: dict[str, float] = {}
        self.needs: dict[str, bool] = {}  # which harmful inputs need strong steering, for AdaSteer
        self._made: dict[tuple[str, str], tuple[Steerer, float]] = {}

    def request(self, method: str, setting: Setting, name: str | None = None) -> Request:
        """The request of a method at a setting; records its fitting time under `name` or the method."""
        key = (method, f"{setting.layer} {dict(setting.options)}")
        if key not in self._made:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self._made[key] = timed(lambda: FITS[method](self, setting))
            for line in dict.fromkeys(str(w.message) for w in caught):
                print(f"{method} at {setting.layer}: {line}")
        steerer, self.seconds[name or method] = self._made[key]
        return Request(steerer, setting.alpha, setting.positions)

    def model_of(self, method: str) -> Model:
        """The model that a method steers, once it was fitted."""
        return self.edited.get(method, self.model)

    def oracle(self, tested: Activations, setting: Setting) -> Request:
        """P2S: the contrast vectors of the test inputs, zero for inputs without a contrast."""
        steerer, self.seconds["p2s"] = timed(lambda: P2S(_single_layer(setting), zero_behaviors=["answer"]).fit(tested))
        return Request(steerer, setting.alpha, setting.positions)

    def mean(self, setting: Setting) -> Steerer:
        """The mean contrast vector of the harmful inputs."""
        return MeanDifference(_single_layer(setting), behaviors=["refuse"]).fit(self.train)

    def l2s(self, setting: Setting) -> Steerer:
        """Learn-to-Steer; harmless instructions have the zero target."""
        options: dict[str, Any] = {"net": "mlp", "zero_behaviors": ["answer"], "seed": self.seed, "progress": False}
        return L2S(_single_layer(setting), **options).fit(self.train)

    def confst(self, setting: Setting) -> Steerer:
        """CONFST: the vector of confident refusals among refusing, complying and deferring answers."""
        return CONFST(
            _single_layer(setting), "refuse/positive", label="preference", side=None, position="answer", seed=self.seed
        ).fit(preferences(self.train))

    def gated_mean(self, setting: Setting) -> Steerer:
        """The mean vector gated by a linear probe with a false-positive rate of 1 in 50 on clean validation inputs."""
        probe = LinearProbe(PROBE, positive=["refuse"], negative=BENIGN).fit(self.train)
        return Gated(self.mean(setting), probe.calibrate(self.clean, fpr=max(0.02, 1 / len(self.clean.example_ids))))

    def alphasteer(self, setting: Setting) -> Steerer:
        """AlphaSteer with the null-space ratio of most published layers and the same target as the mean vector."""
        return AlphaSteer([_single_layer(setting)], benign=BENIGN, ratio=RATIO, **setting.options).fit(self.train)

    def field(self, setting: Setting) -> Steerer:
        """The normalized gradient of a scorer of refusing and complying answers."""
        rows = self.train.select(behavior="refuse")
        return GradientField(_single_layer(setting), normalize=True, seed=self.seed).fit(rows)

    def spherical(self, setting: Setting) -> Steerer:
        """Rotation towards the mean contrast, where states point away from it."""
        return Spherical(_single_layer(setting), behaviors=["refuse"]).fit(self.train)

    def w2s(self, setting: Setting) -> Steerer:
        """The mean vector at one of several layers, predicted from the slopes of some harmful inputs."""
        means = {k: MeanDifference(k, behaviors=["refuse"]).fit(self.train) for k in ADASTEER_LAYERS}
        frame = steerlab.sweep(
            self.model, self.contrasted, {"mean": means}, ADASTEER_LAYERS, (-1.0, 1.0), setting.positions,
            progress=False,
        )  # fmt: skip
        rows = self.train.select(example_id=[e.id for e in self.contrasted])
        return W2S(list(means.values()), _single_layer(setting)).fit(rows, slopes=slopes(frame))

    def ssae(self, setting: Setting) -> Steerer:
        """The concept of a sparse shift autoencoder whose code is correlated most with refusals among the contrasts."""
        layer = _single_layer(setting)
        ssae = SSAE(layer, CONCEPTS, setting.options["level"], seed=self.seed).fit(self.train)
        ids, z = self.train.contrast(layer)
        refuses = torch.tensor([label == "refuse" for label in self.train.labels(ids)])
        (along,) = correlations(refuses[:, None].float(), ssae.encode(z.float()))
        concept = int(torch.where(ssae.usage_ > 0, along.abs(), -1.0).argmax())
        return SteeringVector({layer: along[concept].sign().float() * ssae.direction(concept).at(layer)})

    def kts(self, setting: Setting) -> Steerer:
        """The mean vector of a model trained by KL-then-steer, as in `kts.py`: with its own answers kept."""
        layer, prompts = _single_layer(setting), [e.replace(contrast=None) for e in self.contrasted]
        benign = [e.replace(contrast=None) for e in self.sets.train if e.behavior == "answer"][: 3 * len(prompts)]
        mean = MeanDifference(layer, behaviors=["refuse"]).fit(self.train)

        def answers(rows: Sequence[Example], alpha: float = 0.0) -> list[str]:
            steer = Request(mean, alpha, "all") if alpha else ()
            return list(
                steerlab.generate(self.model, rows, steer=steer, max_new_tokens=32, batch_size=32, progress=False).texts
            )

        own = own_contrasts(prompts, answers(prompts, KTS_ANSWERS), answers(prompts))
        config = KTSConfig(steps=120, batch_size=4, coefficients=(0.0, KTS_STRONGEST), measure_every=40)
        edit = kl_then_steer(
            self.model, benign, answers(benign), {"refuse": self.contrasted}, layers=[layer], keep={"refuse": own},
            config=config, folder=self.folder / "kts", validation=0.1, seed=self.seed,
        )  # fmt: skip
        self.edited["kts"] = edit.prepare(self.model, merge=True)
        harmful = [e for e in self.sets.train if e.behavior == "refuse"]
        return MeanDifference(layer, behaviors=["refuse"]).fit(self.edited["kts"], harmful)

    def adasteer(self, setting: Setting) -> Steerer:
        """AdaSteer with schedules calibrated on which inputs need strong steering.

        SmolLM2 refuses nothing by itself, so there are no rejected prompts: the rejection direction is the mean
        contrast of forced answers. A direction from prompts with an instruction to refuse breaks the text.
        """
        steerer = adasteer_directions(self.train, setting.layer)
        benign = dict.fromkeys(_example_ids(self.train, BENIGN), True)
        benign |= dict.fromkeys(_example_ids(self.train, ("refuse",)), False)
        needs = self.needs if len(set(self.needs.values())) == 2 else {}
        if not needs:  # a tiny random model: use the harmful inputs as those that need strong steering
            needs = {example_id: not flag for example_id, flag in benign.items()}
        return steerer.calibrate(self.train, rejection=needs, compliance=benign)


FITS: dict[str, Callable[[Fitted, Setting], Steerer]] = {
    "mean": Fitted.mean, "l2s": Fitted.l2s, "confst": Fitted.confst, "gated_mean": Fitted.gated_mean,
    "alphasteer": Fitted.alphasteer, "adasteer": Fitted.adasteer,
    "field": Fitted.field, "spherical": Fitted.spherical, "w2s": Fitted.w2s, "ssae": Fitted.ssae, "kts": Fitted.kts,
}  # fmt: skip


def timed(fit: Callable[[], Steerer]) -> tuple[Steerer, float]:
    """The fitted steerer and the seconds of the fit."""
    start = time.perf_counter()
    return fit(), time.perf_counter() - start


def adasteer_directions(train: Activations, layers: int | tuple[int, ...]) -> AdaSteer:
    """AdaSteer around the mean contrast and the class means, before its schedules are calibrated."""
    n, hidden = int(train.info["layers"]), train.hidden_size
    arrays = {name: torch.zeros(n, hidden) for name in ("refusal", "benign", "start")}
    prompts = train.select(side="prompt", position="last")
    harmful, benign = prompts.select(behavior="refuse"), prompts.select(behavior=list(BENIGN))
    for layer in train.layers:
        arrays["start"][layer] = harmful.at(layer).double().mean(0).float()
        arrays["benign"][layer] = benign.at(layer).double().mean(0).float() - arrays["start"][layer]
        ids, z = train.contrast(layer)
        is_refusal_label = torch.tensor([label == "refuse" for label in train.labels(ids)])
        arrays["refusal"][layer] = z[is_refusal_label].double().mean(0).float()
    steered_layers = layers if isinstance(layers, int) else list(layers)
    return AdaSteer.from_directions(arrays["refusal"], arrays["benign"], arrays["start"], steered_layers, **READS)


def preferences(acts: Activations) -> Activations:
    """Answers alone, labeled by behavior and side: the histories of CONFST."""
    answers = acts.select(side=["positive", "negative"])
    named = answers.index["behavior"] + "/" + answers.index["side"]
    # complying with a harmful request and advising without deferring are one preference: to help
    index = answers.index.assign(preference=named.where(answers.index["side"] == "positive", "help"))
    return Activations(answers.values, index, answers.sites, answers.info)


def contrasted_inputs(sets: Sets) -> list[Example]:
    """The harmful training inputs on which answers are measured."""
    return [e for e in sets.train if e.behavior == "refuse"][:60]


def measure_compliance(model: Model, train: Activations, sets: Sets, layer: int, batch_size: int) -> pd.DataFrame:
    """Which harmful inputs are not refused at each strength; AdaSteer's calibration labels derive from it."""
    harmful_inputs = contrasted_inputs(sets)
    vector = MeanDifference(layer, behaviors=["refuse"]).fit(train)
    found: dict[str, Any] = {"example_id": [e.id for e in harmful_inputs]}
    for alpha in ALPHAS:
        texts = steerlab.generate(
            model, harmful_inputs, steer=vector, alpha=alpha, positions="all", max_new_tokens=32, batch_size=batch_size
        )
        found[str(alpha)] = [float(not is_refusal(text)) for text in texts]
    return pd.DataFrame(found)


def inputs_needing_strength(needs: pd.DataFrame) -> dict[str, bool]:
    """For each input, whether it complies at the strength where the share that complies is closest to one half."""
    shares = needs.drop(columns="example_id").mean()
    chosen = (shares - 0.5).abs().idxmin()
    return {example_id: bool(flag) for example_id, flag in zip(needs["example_id"], needs[chosen], strict=True)}


def iterate_settings(methods: Sequence[str], most: int | None = None) -> Iterator[tuple[str, Setting]]:
    """Pairs of method and setting to try, at most `most` settings per method; a prompt has none."""
    for method in methods:
        for setting in SETTINGS.get(method, [])[:most]:
            yield method, setting


def _single_layer(setting: Setting) -> int:
    assert isinstance(setting.layer, int)
    return setting.layer


def _example_ids(acts: Activations, behaviors: Sequence[str]) -> list[str]:
    rows = acts.index[(acts.index["side"] == "prompt") & acts.index["behavior"].isin(list(behaviors))]
    return list(dict.fromkeys(rows["example_id"]))
