"""The methods of the comparison: how each is fitted, and the settings that validation chooses among."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from _compare_data import Sets

import steerlab
from steerlab import (
    CONFST,
    L2S,
    P2S,
    Activations,
    AdaSteer,
    AlphaSteer,
    Gated,
    LinearProbe,
    MeanDifference,
    Model,
    Request,
    Steerer,
)
from steerlab.methods import Context
from steerlab.metrics import is_refusal

LAYERS = (15, 16, 17)
BAND = (14, 15, 16, 17, 18)  # AdaSteer steers many layers at once
READS = {"rejection_layer": 7, "harmfulness_layer": 13}  # as deep as in the release: .25 and .44 of the blocks
PROBE = 13
BENIGN = ("answer", "defer")
RATIO = 0.6
CAPTURED = sorted({*LAYERS, *BAND, *READS.values(), PROBE})
ALPHAS = (0.4, 0.6, 0.8, 1.0, 1.3)


@dataclass(frozen=True)
class Setting:
    """One way to use a method; `options` are told in the tables."""

    layer: int | tuple[int, ...]
    alpha: float
    positions: str = "all"
    options: Mapping[str, Any] = field(default_factory=dict)

    def label(self) -> dict[str, Any]:
        """Its columns in a frame."""
        layer = self.layer if isinstance(self.layer, int) else f"{self.layer[0]}-{self.layer[-1]}"
        told = ", ".join(f"{k}={v}" for k, v in self.options.items())
        return {"layer": str(layer), "alpha": self.alpha, "positions": self.positions, "options": told}


# ridge and dead zone: looked at on validation gates, where 10, as published, lets a third of the vector through
_PAPER = {"ridge": 1000.0, "dead_zone": 0.0}
_SHUT = {"ridge": 1000.0, "dead_zone": 0.5}
SETTINGS: dict[str, list[Setting]] = {
    "mean": [Setting(k, a) for k in LAYERS for a in ALPHAS],
    "l2s": [Setting(k, a) for k in (15, 16) for a in ALPHAS[:4]],
    "confst": [Setting(k, a) for k in (15, 16) for a in (0.6, 0.8, 1.2, 1.6, 2.0)],
    "gated_mean": [Setting(15, a) for a in ALPHAS],
    "alphasteer": [
        *(Setting(k, a, "all", options) for options in (_PAPER, _SHUT) for k in (16, 17) for a in ALPHAS[1:]),
        *(Setting(16, a, "prompt", _PAPER) for a in (1.0, 2.0)),  # as published
    ],
    "adasteer": [
        *(Setting(16, a) for a in (0.6, 0.8, 1.0, 1.5, 2.0)),
        *(Setting(BAND, a) for a in (0.12, 0.16, 0.2, 0.3, 0.4, 0.5)),
        Setting(BAND, 0.3, "prompt"),  # as published
    ],
}


class Fitted:
    """Every method fitted on the training activations, on demand, and the seconds that its fit took."""

    def __init__(self, model: Model, train: Activations, clean: Context, seed: int) -> None:
        self.model, self.train, self.clean, self.seed = model, train, clean, seed
        self.seconds: dict[str, float] = {}
        self.needs: dict[str, bool] = {}  # which harmful inputs need strong steering, for AdaSteer
        self._made: dict[tuple[str, str], tuple[Steerer, float]] = {}

    def request(self, method: str, setting: Setting, name: str | None = None) -> Request:
        """The method at a setting; its seconds are noted under the method, or another name."""
        key = (method, f"{setting.layer} {dict(setting.options)}")
        if key not in self._made:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                self._made[key] = timed(lambda: FITS[method](self, setting))
            for line in dict.fromkeys(str(w.message) for w in told):
                print(f"{method} at {setting.layer}: {line}")
        steerer, self.seconds[name or method] = self._made[key]
        return Request(steerer, setting.alpha, setting.positions)

    def oracle(self, tested: Activations, setting: Setting) -> Request:
        """P2S of the test inputs' own contrasts; those without one have the zero target."""
        steerer, self.seconds["p2s"] = timed(lambda: P2S(_one(setting), zero_behaviors=["answer"]).fit(tested))
        return Request(steerer, setting.alpha, setting.positions)

    def mean(self, setting: Setting) -> Steerer:
        """The refusal vector: the mean contrast of harmful inputs."""
        return MeanDifference(_one(setting), behaviors=["refuse"]).fit(self.train)

    def l2s(self, setting: Setting) -> Steerer:
        """Learn-to-Steer, harmless instructions with the zero target."""
        return L2S(_one(setting), zero_behaviors=["answer"], seed=self.seed, progress=False).fit(self.train)

    def confst(self, setting: Setting) -> Steerer:
        """The confident refusals among refusing, complying and deferring answers."""
        return CONFST(
            _one(setting), "refuse/positive", label="preference", side=None, position="answer", seed=self.seed
        ).fit(preferences(self.train))

    def gated_mean(self, setting: Setting) -> Steerer:
        """The mean vector behind a linear probe, which mistakes one of fifty clean validation inputs."""
        probe = LinearProbe(PROBE, positive=["refuse"], negative=BENIGN).fit(self.train)
        return Gated(self.mean(setting), probe.calibrate(self.clean, fpr=max(0.02, 1 / len(self.clean.example_ids))))

    def alphasteer(self, setting: Setting) -> Steerer:
        """Null-space gate at the ratio of most published layers, the same target as the mean vector."""
        return AlphaSteer([_one(setting)], benign=BENIGN, ratio=RATIO, **setting.options).fit(self.train)

    def adasteer(self, setting: Setting) -> Steerer:
        """Laws fitted to which inputs need how much.

        SmolLM2 refuses nothing by itself, so there are no rejected prompts: the rejection direction is the mean
        contrast of forced answers. Prompts that it was asked to refuse gave a direction that breaks its text.
        """
        made = adasteer_directions(self.train, setting.layer)
        benign = dict.fromkeys(_example_ids(self.train, BENIGN), True)
        benign |= dict.fromkeys(_example_ids(self.train, ("refuse",)), False)
        needs = self.needs if len(set(self.needs.values())) == 2 else {}
        if not needs:  # the tiny model of a trial run: the harmful need it, the others do not
            needs = {example_id: not flag for example_id, flag in benign.items()}
        return made.calibrate(self.train, rejection=needs, compliance=benign)


FITS: dict[str, Callable[[Fitted, Setting], Steerer]] = {
    "mean": Fitted.mean, "l2s": Fitted.l2s, "confst": Fitted.confst, "gated_mean": Fitted.gated_mean,
    "alphasteer": Fitted.alphasteer, "adasteer": Fitted.adasteer,
}  # fmt: skip


def timed(fit: Callable[[], Steerer]) -> tuple[Steerer, float]:
    """What is fitted, and the seconds that took."""
    begun = time.perf_counter()
    return fit(), time.perf_counter() - begun


def adasteer_directions(train: Activations, layers: int | tuple[int, ...]) -> AdaSteer:
    """AdaSteer around the mean contrast and the class means, without laws."""
    n, hidden = int(train.info["layers"]), train.hidden_size
    arrays = {name: torch.zeros(n, hidden) for name in ("refusal", "benign", "start")}
    prompts = train.select(side="prompt", position="last")
    harmful, benign = prompts.select(behavior="refuse"), prompts.select(behavior=list(BENIGN))
    for layer in train.layers:
        arrays["start"][layer] = harmful.at(layer).double().mean(0).float()
        arrays["benign"][layer] = benign.at(layer).double().mean(0).float() - arrays["start"][layer]
        ids, z = train.contrast(layer)
        mine = torch.tensor([label == "refuse" for label in train.labels(ids)])
        arrays["refusal"][layer] = z[mine].double().mean(0).float()
    given = layers if isinstance(layers, int) else list(layers)
    return AdaSteer.from_directions(arrays["refusal"], arrays["benign"], arrays["start"], given, **READS)


def preferences(acts: Activations) -> Activations:
    """Answers alone, labeled by behavior and side: what CONFST calls a history."""
    answers = acts.select(side=["positive", "negative"])
    named = answers.index["behavior"] + "/" + answers.index["side"]
    # what complies with a harmful request and what advises without deferring are one preference: to help
    index = answers.index.assign(preference=named.where(answers.index["side"] == "positive", "help"))
    return Activations(answers.values, index, answers.sites, answers.info)


def needs_strength(model: Model, train: Activations, sets: Sets, layer: int, batch_size: int) -> pd.DataFrame:
    """Which harmful inputs comply at each of some strengths: AdaSteer's calibration labels come of it."""
    asked = [e for e in sets.train if e.behavior == "refuse"][:60]
    vector = MeanDifference(layer, behaviors=["refuse"]).fit(train)
    found = {"example_id": [e.id for e in asked]}
    for alpha in ALPHAS:
        texts = steerlab.generate(
            model, asked, steer=vector, alpha=alpha, positions="all", max_new_tokens=32, batch_size=batch_size
        )
        found[str(alpha)] = [float(not is_refusal(text)) for text in texts]
    return pd.DataFrame(found)


def strong_ones(needs: pd.DataFrame) -> dict[str, bool]:
    """Inputs that still comply at the strength at which nearest to half of them do."""
    shares = needs.drop(columns="example_id").mean()
    chosen = (shares - 0.5).abs().idxmin()
    return {example_id: bool(flag) for example_id, flag in zip(needs["example_id"], needs[chosen], strict=True)}


def settings_of(methods: Sequence[str], most: int | None = None) -> Iterator[tuple[str, Setting]]:
    """Every method and setting to try, at most so many of each method."""
    for method in methods:
        for setting in SETTINGS[method][:most]:
            yield method, setting


def _one(setting: Setting) -> int:
    assert isinstance(setting.layer, int)
    return setting.layer


def _example_ids(acts: Activations, behaviors: Sequence[str]) -> list[str]:
    rows = acts.index[(acts.index["side"] == "prompt") & acts.index["behavior"].isin(list(behaviors))]
    return list(dict.fromkeys(rows["example_id"]))
