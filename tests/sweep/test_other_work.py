"""A folder goes on with the same work only: what else decides the numbers is measured anew, or refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from argparse import Namespace
from dataclasses import dataclass, replace
from datetime import date
from enum import IntEnum
from functools import cache, partial
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from reference import AnyIntervention, questions, vectors
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

import steerlab
from steerlab import Contrast, Example, Request, Site, SteeringVector
from steerlab._support.contents import content_fingerprint
from steerlab.analysis.texts import write_texts
from steerlab.errors import MismatchError, SteeringError
from steerlab.methods.base import Context, Intervention
from steerlab.models.model import Model
from steerlab.testing import tiny_lm

WORD = "zzzz"


def has_word(examples: list[Example], texts: list[str]) -> list[float]:
    return [float(_finds(text)) for text in texts]


def _finds(text: str) -> bool:
    return WORD in text


def has_answer(examples: list[Example], texts: list[str]) -> list[float]:
    return [float(e.meta["answer"] in text) for e, text in zip(examples, texts, strict=True)]


WEIGHTS, NAMED = np.zeros(2), None


class Graded:
    def __init__(self, training: int) -> None:
        self.training = training


class Scale:
    unit = 1.0

    def of(self) -> float:
        return 1.0

    @property
    def shift(self) -> float:
        return 0.0


class Rule(Scale):
    words: tuple[str, ...] = ("no",)

    @staticmethod
    def find(text: str) -> float:
        return float(len(text))

    def __init__(self, least: int = 1) -> None:
        self.least = least


class Kind(IntEnum):
    FIRST, SECOND, THIRD, FOURTH, FIFTH = range(5)

    def points(self) -> int:
        return int(self)


@cache
def cached(text: str) -> int:
    return len(WORD)


@dataclass(slots=True)
class Limit:
    most: int


RULE, BOUND, LIMIT, KIND = Rule(), torch.zeros(1), Limit(3), Kind.FIRST
SCORE = partial(f1_score, average="macro")


class Judge:
    def __call__(self, examples: list[Example], texts: list[str]) -> list[float]:
        found = [self.help(text) * RULE.of() + float(WEIGHTS.sum()) + float(BOUND) for text in texts]
        return [min(one, LIMIT.most, KIND.points(), cached("a"), SCORE([one > 0], [True])) for one in found]

    def help(self, text: str, *, least: int = 1) -> float:
        return float(len(text))


class AtItsPlace(AnyIntervention):
    """A method that says itself where it steers."""

    place = "last+generated"

    def interventions(self, context: Context) -> tuple[Intervention, ...]:
        return tuple(replace(one, positions=self.place) for one in super().interventions(context))


def mask(model: Model, examples: list[Example], column: int) -> Tensor:
    found = torch.zeros(len(examples), max(len(model.encode(e.prompt)) for e in examples), dtype=torch.bool)
    found[:, column] = True
    return found


def test_captured_states_keep_the_labels_and_masks_of_their_call(tmp_path: Path) -> None:
    model, rows = tiny_lm("llama"), [e.replace(contrast=None) for e in questions()]
    steerlab.capture(model, rows, layers=[1], folder=tmp_path / "splits")
    with pytest.raises(MismatchError, match="labels"):
        steerlab.capture(model, [e.replace(split="train") for e in rows], layers=[1], folder=tmp_path / "splits")
    steerlab.capture(model, rows, layers=[1], positions=mask(model, rows, 2), folder=tmp_path / "masks")
    with pytest.raises(MismatchError, match="masks"):
        steerlab.capture(model, rows, layers=[1], positions=mask(model, rows, 3), folder=tmp_path / "masks")


def test_sweep_with_another_mask_is_another_sweep(tmp_path: Path) -> None:
    model, rows = tiny_lm("llama"), questions()
    steerlab.sweep(model, rows, {"v": vectors(model)}, [1], [0.0, 1.0], mask(model, rows, 0), folder=tmp_path)
    with pytest.raises(MismatchError, match="belongs to another"):
        steerlab.sweep(model, rows, {"v": vectors(model)}, [1], [0.0, 1.0], mask(model, rows, 1), folder=tmp_path)


def test_metrics_are_measured_anew_where_what_they_read_has_changed(tmp_path: Path, monkeypatch) -> None:
    model, rows = tiny_lm("llama"), [e.replace(meta={"answer": WORD}) for e in questions()]

    def measured(metric: FunctionType, rows: list[Example]) -> set[float]:
        frame = steerlab.sweep(
            model, rows, {"v": vectors(model)}, [1], [1.0], metric=metric, folder=tmp_path / metric.__name__,
            generation={"max_new_tokens": 3},
        )  # fmt: skip
        return set(frame["value"])

    assert measured(has_answer, rows) == {0.0} == measured(has_word, rows)
    assert measured(has_answer, [e.replace(meta={"answer": ""}) for e in rows]) == {1.0}, "a mended answer"
    monkeypatch.setattr("test_other_work.WORD", "")
    assert measured(has_word, rows) == {1.0}, "a changed constant of a function that the metric calls"
    given = {"folder": tmp_path / "two", "generation": {"max_new_tokens": 3}}
    for metric in ({"one": has_answer, "two": has_word}, {"one": has_word, "two": has_answer}):
        frame = steerlab.sweep(model, rows, {"v": vectors(model)}, [1], [1.0], metric=metric, **given)
        found = frame.groupby("metric")["value"].max()
        assert {metric[name]: value for name, value in found.items()} == {has_answer: 0.0, has_word: 1.0}


@pytest.mark.nightly
def test_contents_are_the_same_in_another_process_and_take_no_time_where_functions_name_one_another() -> None:
    code = (
        "import re, numpy as np\nfrom sklearn.linear_model import LogisticRegression as Model\n"
        "from sklearn.metrics import f1_score\n"
        "from steerlab._support.contents import content_fingerprint\n"
        "for i in range(30): exec(f'def f{i}(): return ' + ','.join(f'f{j}()' for j in range(30)))\n"
        "fitted = Model().fit([[0.0], [1.0]], ['a', 'b'])\n"
        "held = [f0, {f1, 'x', 2}, fitted, f1_score, Model, re.compile('a').search, np.array(['a'], object)]\n"
        "print(content_fingerprint(held))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, timeout=60, check=True,
                       capture_output=True, text=True).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert runs[0] == runs[1] != ""


def test_contents_of_a_function_follow_its_own_helpers_and_long_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    before = content_fingerprint(has_word)
    assert before == content_fingerprint(has_word)
    monkeypatch.setitem(globals(), "WORD", "yyyy")
    assert before != content_fingerprint(has_word)
    long = "x" * 300
    assert content_fingerprint(re.compile(long + "a")) != content_fingerprint(re.compile(long + "b"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        [LogisticRegression().fit([[0.0], [1.0]], [*labels]) for labels in ("ab", "ba")],
        (torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)), (Namespace(least=1), Namespace(least=2)),
        (SteeringVector({1: torch.ones(1)}), SteeringVector({1: torch.zeros(1)})), (range(2), range(3)),
        (date(2026, 1, 1), date(2026, 1, 2)), (tiny_lm("llama"), tiny_lm("llama", seed=1)),
        (Graded(1), Graded(2)),
    ],
)  # fmt: skip
def test_contents_of_a_function_follow_what_it_names(monkeypatch: pytest.MonkeyPatch, one: Any, other: Any) -> None:
    def judge() -> object:
        return NAMED

    def content(value: object) -> str:
        monkeypatch.setitem(globals(), "NAMED", value)
        return content_fingerprint(judge)

    assert content(one) == content(one) != content(other)


def test_contents_of_what_a_function_names_stay_the_same_where_it_is_used_or_watched() -> None:
    near = KNeighborsClassifier(1, algorithm="kd_tree").fit([[0.0], [1.0]], [0, 1])
    net, traced = torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    search = GridSearchCV(LogisticRegression(), {"C": [1.0]}, cv=2)

    def judge() -> object:
        return near, net, traced, search, norm

    before = content_fingerprint(judge)
    near.predict([[0.3]])
    np.random.rand()
    net.train()[0].register_forward_hook(lambda *_: None)
    assert content_fingerprint(judge) == before
    searches = [search.fit([[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 1]) and content_fingerprint(judge) for _ in range(2)]
    assert searches[0] == searches[1] != before


def test_contents_of_a_judge_follow_its_methods_classes_and_what_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    before = content_fingerprint(Judge())
    changes: list[tuple[object, str, object]] = [
        (Judge, "help", lambda self, text: -len(text)), (Judge.help, "__kwdefaults__", {"least": 2}),
        (Scale, "of", lambda self: 2.0), (Scale, "shift", property(lambda self: 1.0)), (Scale, "unit", 2.0),
        (Kind, "points", lambda self: 0), (Rule, "find", staticmethod(lambda text: 0.0)), (Rule, "words", ("yes",)),
        (RULE, "least", 2),
    ]  # fmt: skip
    for owner, name, changed in changes:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, changed)
            assert content_fingerprint(Judge()) != before, (owner, name)
    others: dict[str, object] = {
        "WORD": "y", "WEIGHTS": np.ones(2), "BOUND": torch.ones(1), "RULE": Rule(3), "LIMIT": Limit(4),
        "KIND": Kind.SECOND, "SCORE": partial(f1_score, average="micro"),
    }  # fmt: skip
    for name, value in others.items():
        with monkeypatch.context() as patch:
            patch.setitem(globals(), name, value)
            assert content_fingerprint(Judge()) != before, name
    assert content_fingerprint(Judge()) == before


def test_written_texts_have_the_strength_of_their_row() -> None:
    model = tiny_lm("llama")
    with pytest.raises(SteeringError, match="has a strength of its own"):
        write_texts(model, ["Hello"], Request(vectors(model)[1], 3.0), [0.0, 0.5], max_new_tokens=3)


def test_texts_of_other_defaults_of_generation_are_another_run(tmp_path: Path) -> None:
    model = tiny_lm("llama")

    def run() -> None:
        write_texts(model, questions(), folder=tmp_path / "texts", max_new_tokens=2)

    def sweep() -> None:
        steerlab.sweep(
            model, questions(), {"v": vectors(model)}, [1], [1.0], metric=has_word, folder=tmp_path / "sweep",
            generation={"max_new_tokens": 2},
        )  # fmt: skip

    run(), sweep()
    model.hf.generation_config._original_object_hash = 1  # transformers', which differs from process to process
    run(), sweep()
    model.hf.generation_config.repetition_penalty = 1.5
    for again in (run, sweep):
        with pytest.raises(MismatchError, match="generat"):
            again()


def test_sampled_texts_do_not_repeat_from_batch_to_batch() -> None:
    model, rows = tiny_lm("llama"), [Example("Is it cold?", id=str(i), contrast=Contrast("a", "b")) for i in range(6)]
    options = {"do_sample": True, "max_new_tokens": 8}
    frame = write_texts(model, rows, alphas=[0.0], batch_size=2, **options)
    assert frame["text"].nunique() == 6
    pd.testing.assert_frame_equal(frame, write_texts(model, rows, alphas=[0.0], batch_size=2, **options))
    found: list[str] = []
    steerlab.sweep(
        model, rows, vectors(model)[1], None, [1.0], metric=lambda _, texts: [float(found.extend(texts) or 0)] * 6,
        batch_size=2, generation=options,
    )  # fmt: skip
    assert len(set(found)) == 6


def test_a_method_with_its_own_positions_is_not_swept_over_others(tmp_path: Path) -> None:
    model, own = tiny_lm("llama"), AtItsPlace("gate", Site(1))
    with pytest.raises(SteeringError, match="at positions of its own"):
        steerlab.sweep(model, questions(), {"own": {1: own}}, None, [1.0], ["last+generated", "all"])
    steerlab.sweep(model, questions(), {"own": {1: own}}, None, [1.0], folder=tmp_path)
    own.place = "all"
    with pytest.raises(MismatchError, match="vectors"):
        steerlab.sweep(model, questions(), {"own": {1: own}}, None, [1.0], folder=tmp_path)
