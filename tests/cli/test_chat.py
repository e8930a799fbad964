"""A talk: both answers are those of `generate`, each goes on from its own, and slash commands change the steering."""

import json
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
import torch

import steerlab
from steerlab import SteeringVector
from steerlab.cli.talk import Talk
from steerlab.cli.talking import change, stoppable
from steerlab.errors import PositionError, SteeringError
from steerlab.models.model import Model
from steerlab.testing import tiny_lm

FEW = 8


def vector(layer: int = 2, seed: int = 0) -> SteeringVector:
    return SteeringVector({layer: 3 * torch.randn(32, generator=torch.Generator().manual_seed(seed))})


@pytest.fixture
def talk(lm: Callable[..., Model]) -> Talk:
    return Talk(lm("llama", "nnsight"), {"v": vector()}, 2.0, FEW)


def test_answers_are_those_of_generate_and_each_conversation_keeps_its_own(talk: Talk) -> None:
    histories: list[list[dict[str, str]]] = [[], []]
    for prompt in ("Hello there", "And then?"):
        answers = list(talk.answer(prompt).values())
        for history, alpha, text in zip(histories, (0.0, 2.0), answers, strict=True):
            history.append({"role": "user", "content": prompt})
            (wanted,) = steerlab.generate(talk.model, [history], steer=vector(), alpha=alpha, max_new_tokens=FEW)
            assert text == wanted
            history.append({"role": "assistant", "content": text})
    assert histories[0][1] != histories[1][1], "the vector does something"


@pytest.mark.parametrize("sides", [("left", "right"), ()])
def test_texts_grow_by_row_also_where_rows_are_not_padded(sides: tuple[str, ...]) -> None:
    model = tiny_lm("llama")
    model.row_format = replace(model.row_format, neutral_sides=sides)
    talk = Talk(model, {"v": vector()}, 2.0, FEW)
    talk.answer("Hello")
    shown: list[dict[str, str]] = []
    final = talk.answer("How are you today, my friend?", lambda texts: shown.append(texts))
    assert shown[-1] == final and len(shown) >= FEW
    for name, text in final.items():
        assert any(0 < len(texts[name]) < len(text) for texts in shown)
        assert all(text.startswith(texts[name].rstrip("\ufffd")) for texts in shown)


def test_a_stopped_answer_stays_in_the_talk(talk: Talk) -> None:
    whole = talk.answer("Hello there")
    talk.reset()
    steps = []

    def stop(texts: dict[str, str]) -> None:
        steps.append(texts)
        if len(steps) == 3:
            talk.stop()

    stopped = talk.answer("Hello there", stop)
    assert talk.was_stopped and len(steps) == 3
    assert all(whole[name].startswith(text) and len(text) < len(whole[name]) for name, text in stopped.items())
    assert talk.turns[0]["texts"] == list(stopped.values())
    talk.answer("And then?")
    assert not talk.was_stopped and len(talk.turns) == 2


def test_stopping_before_a_steered_token_is_no_error(talk: Talk) -> None:
    talk.set_positions("generated")
    assert set(talk.answer("Hello there", lambda texts: talk.stop())) == {"without", "v, alpha 2"}
    assert len(talk.turns) == 1


def test_ctrl_c_stops_an_answer_and_outside_one_interrupts(talk: Talk) -> None:
    before = signal.getsignal(signal.SIGINT)
    with stoppable(talk):
        talk.answer("Hello there", lambda texts: signal.raise_signal(signal.SIGINT))
        assert talk.was_stopped
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_slash_commands_change_strength_layer_positions_and_limit(talk: Talk) -> None:
    plain = talk.answer("Hello there")["without"]
    assert change(talk, "/alpha 0") == "v at layer 2; alpha 0; each method's own positions; at most 8 tokens"
    change(talk, "/reset")
    assert talk.answer("Hello there")["v, alpha 0"] == plain
    change(talk, "/reset")
    change(talk, "/alpha -1.5")
    change(talk, "/layer 1")
    change(talk, "/positions last+generated")
    assert "layer 1; alpha -1.5; positions last+generated; at most 4 tokens" in change(talk, "/tokens 4")
    moved = SteeringVector({1: vector().at(2)})
    wanted = steerlab.generate(
        talk.model, ["Hello there"], steer=moved, alpha=-1.5, positions="last+generated", max_new_tokens=4
    )
    assert talk.answer("Hello there")["v, alpha -1.5"] == wanted[0]
    assert "each method's own positions" in change(talk, "/positions")
    assert "/quit" in change(talk, "/help")


def test_layer_takes_the_vector_fitted_there(lm: Callable[..., Model]) -> None:
    several = SteeringVector({1: vector(1, 1).at(1), 2: vector().at(2)})
    talk = Talk(lm("llama"), {"v": several})
    change(talk, "/layer 1")
    assert torch.equal(talk.steerers["v"].vectors(steerlab.methods.Context(("a",)))[0], several.at(1))
    with pytest.raises(SteeringError, match="no vector at layer 3"):
        change(talk, "/layer 3")
    talk = Talk(lm("llama"), {"l2s": steerlab.L2S(2)})
    with pytest.raises(SteeringError, match="knows its own layer only"):
        change(talk, "/layer 1")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/aplha 1", "did you mean /alpha?"), ("/", "there is no /"), ("/alpha", "expected numbers"),
        ("/alpha 1,2", "expected one value"), ("/tokens 0", "at least 1"), ("/layer 99", "does not exist"),
        ("/positions nowhere", "unknown position"),
    ],
)  # fmt: skip
def test_wrong_slash_commands_say_what_is_possible_and_change_nothing(talk: Talk, line: str, words: str) -> None:
    before = talk.describe()
    with pytest.raises((SteeringError, PositionError, steerlab.errors.LayoutError), match=words):
        change(talk, line)
    assert talk.describe() == before


def test_a_talk_that_is_too_long_goes_on_after_reset(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("fit", "pairs.jsonl", "--layers", "2", "--out", "polite")[0] == 0
    monkeypatch.setattr("sys.stdin", StringIO(f"{'long ' * 2000}\n/reset\nHello\n"))
    status, out, error = run("chat", "polite", "--max-new-tokens", "4", "--json")
    assert status == 1 and "the model's context" in error and "/reset forgets the talk" in error
    assert [turn["prompt"] for turn in json.loads(out)["turns"]] == ["Hello"]


def test_chat_reads_lines_from_a_pipe(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("fit", "pairs.jsonl", "--layers", "2", "--out", "polite")[0] == 0
    lines = "Hello there\n/alpha 3\n/aplha\nAnd then?\n"
    monkeypatch.setattr("sys.stdin", StringIO(lines))
    status, out, error = run("chat", "polite", "--max-new-tokens", "4", "--layer", "1", "--json")
    turns = json.loads(out)["turns"]
    assert status == 1 and [turn["alpha"] for turn in turns] == [1, 3] and "did you mean /alpha?" in error
    assert [(turn["layers"], turn["positions"]) for turn in turns] == [({"polite": "1"}, None)] * 2
    monkeypatch.setattr("sys.stdin", StringIO(lines + "/quit\nnever\n"))
    status, out, _ = run("chat", "polite", "--max-new-tokens", "4", "--layer", "1")
    assert status == 1 and re.findall(r"(?m)^  (polite.*?)  ", out) == ["polite, alpha 1", "polite, alpha 3"]
    assert f"> Hello there\n  without              {' '.join(turns[0]['texts'][0].split())}\n" in out
