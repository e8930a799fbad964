"""The local server by Starlette's test client, the widget's messages, and what both refuse."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

import steerlab
from steerlab import Site, live
from steerlab._support import extras
from steerlab.errors import DataError, LoadError, MismatchError, RemoteError, SteeringError
from steerlab.live import doors
from steerlab.live.answers import Answers, methods_by_layer
from steerlab.live.notebook import PageWidget
from steerlab.live.server import Server, app, bind
from steerlab.methods import Operation, SteeringVector
from steerlab.plots.page.document import asset

PROMPTS = ["Do herons sleep in the reeds?", "Is it cold?"]
TOKEN = "secret"
NEW = 6


@pytest.fixture
def vector(lm) -> SteeringVector:
    draw = torch.Generator().manual_seed(0)
    return SteeringVector({layer: 2 * torch.randn(lm().hidden_size, generator=draw) for layer in (1, 2)})


@pytest.fixture
def answers(lm, vector: SteeringVector) -> Answers:
    return Answers(lm(), {"v": vector}, PROMPTS, alphas=[0.0, 0.5, 1.0], max_new_tokens=NEW)


@pytest.fixture
def client(answers: Answers) -> TestClient:
    return TestClient(app(answers, TOKEN), base_url="http://127.0.0.1")


def ask(client: TestClient, **changes: Any) -> list[dict[str, Any]]:
    request = {"method": "v", "layer": 1, "alpha": 0.5, "prompt": {"text": PROMPTS[1]}} | changes
    response = client.post(f"/answer?token={TOKEN}", json=request)
    assert response.status_code == 200
    return [json.loads(line) for line in response.text.splitlines()]


@pytest.mark.parametrize("backend", ["hooks", "nnsight"])
def test_streamed_answer_ends_with_the_text_of_generate(lm, vector: SteeringVector, backend: str) -> None:
    answers = Answers(lm("llama", backend), {"v": vector}, PROMPTS, max_new_tokens=NEW)
    options: Any = {"max_new_tokens": NEW, "progress": False, "positions": "last+generated"}
    for layer, alpha in ((1, 0.5), (2, -1.0)):
        *parts, last = answers.answer({"method": "v", "layer": layer, "alpha": alpha, "prompt": {"text": PROMPTS[0]}})
        expected = steerlab.generate(answers.model, PROMPTS[:1], steer=vector.part(layer), alpha=alpha, **options)
        assert last["done"]["text"] == expected[0]
        assert last["done"]["norm_ratio"] == pytest.approx(expected.norm_ratio, abs=6e-4)
        assert len(last["done"]["tokens"]) == len(expected.ids[0]) == len(parts)
        assert parts[-1]["text"] == expected[0], "the text grows token by token"


def test_no_steering_and_strength_zero_give_the_unsteered_text(client: TestClient) -> None:
    texts = [ask(client, **change)[-1]["done"]["text"] for change in ({"method": None}, {"alpha": 0}, {})]
    assert texts[0] == texts[1] != texts[2]


def test_prompts_of_the_page_are_named_by_id(client: TestClient, answers: Answers) -> None:
    assert ask(client, prompt={"id": next(iter(answers.examples))})[-1] == ask(client, prompt={"text": PROMPTS[0]})[-1]


@pytest.mark.filterwarnings("ignore:without steering")  # a random model writes no words
def test_map_of_a_live_page_holds_the_texts_that_it_would_answer(lm, vector: SteeringVector, tmp_path) -> None:
    both = Operation(vector, "project_out")  # at two layers at once
    parts = SteeringVector({Site(k, "attn_out"): vector.at(k) for k in (1, 2)})
    options: Any = {"alphas": [1.0], "max_new_tokens": NEW, "sweep_map": True, "folder": tmp_path}
    answers = Answers(lm(), {"v": vector, "both": both, "parts": parts}, PROMPTS, **options)
    page = answers.page()
    assert page["live"] and page["layers"] == [1, 2, "1, 2", "1.attn_out", "2.attn_out"] and len(page["cells"]) == 2 * 5
    assert list((tmp_path / "stages").iterdir()), "a second call goes on from there"
    for text in page["texts"]:
        steered = text["method"] is not None
        request = {
            "method": page["methods"][text["method"]]["name"] if steered else None,
            "layer": page["layers"][text["layer"]] if steered else None,
            "alpha": page["alphas"][text["alpha"]], "prompt": {"id": page["prompts"][text["prompt"]]["id"]},
        }  # fmt: skip
        assert list(answers.answer(request))[-1]["done"]["text"] == text["text"]


def test_page_is_shown_with_its_policy_and_without_being_stored(client: TestClient) -> None:
    response = client.get(f"/?token={TOKEN}")
    assert response.status_code == 200
    assert "connect-src 'self'" in response.text and 'askServer("answer")' in response.text
    assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("token", ["", "?token=", "?token=wrong", "?token=sécret"])
def test_requests_without_the_token_are_refused(client: TestClient, token: str) -> None:
    for response in (client.get(f"/{token}"), client.post(f"/answer{token}", json={})):
        assert response.status_code == 403
        assert "open the whole address as printed" in response.text


def test_requests_that_name_another_host_are_refused(answers: Answers) -> None:
    assert TestClient(app(answers, TOKEN), base_url="http://evil.example").get(f"/?token={TOKEN}").status_code == 400


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"text"', b"\xff", b"{" + b" " * 2**20 + b"}"])
def test_bodies_that_are_no_small_object_are_refused(client: TestClient, body: bytes) -> None:
    response = client.post(f"/answer?token={TOKEN}", content=body)
    assert response.status_code == 400
    assert "expected a JSON object" in response.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "w"}, "the method='w' is unknown; expected one of v"),
        ({"layer": 7}, r"v has the layers \[1, 2\], and not 7"), ({"alpha": "strong"}, "alpha"),
        ({"alpha": float("inf")}, "alpha"), ({"prompt": {"id": "none"}}, "the prompt='none' is unknown"),
        ({"prompt": {"text": " "}}, "empty"), ({"prompt": {"text": 3}}, "expected a text"),
        ({"prompt": "Hi"}, "an object"),
    ],
)  # fmt: skip
def test_wrong_requests_are_answered_with_an_error_that_names_it(answers: Answers, change, message: str) -> None:
    (event,) = answers.answer({"method": "v", "layer": 1, "alpha": 0.5, "prompt": {"text": "Hi"}} | change)
    with pytest.raises(DataError, match=message):
        raise DataError(event["error"])


def test_request_without_a_part_names_it(answers: Answers) -> None:
    (event,) = answers.answer({"method": "v"})
    assert event == {"error": "the request lacks ['layer', 'alpha', 'prompt']"}


def test_answer_that_nobody_waits_for_stops_after_a_token(answers: Answers) -> None:
    answers.max_new_tokens = 64
    *parts, _ = answers.answer({"method": None, "layer": 1, "alpha": 0, "prompt": {"text": "Hi"}}, lambda: True)
    assert len(parts) <= 2


def test_port_in_use_is_a_plain_error() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(RemoteError, match=f"port {port} can't be used .*give another port, or port=0") as refused:
            bind(port)
        assert refused.value.kind == "port"
    with pytest.raises(DataError, match="port"):
        bind(70_000)


def test_serve_says_its_address_and_ends(lm, vector: SteeringVector, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    found: list[Any] = []
    monkeypatch.setattr("webbrowser.open", found.append)
    made: list[Server] = []
    start = Server.__init__

    def noted(self: Server, *args: Any) -> None:
        start(self, *args)
        made.append(self)

    monkeypatch.setattr(Server, "__init__", noted)
    options: Any = {"prompts": PROMPTS, "open_browser": True, "on_ready": found.append, "max_new_tokens": NEW}
    thread = threading.Thread(target=live.serve, args=(lm(), vector), kwargs=options)
    thread.start()
    while len(found) < 2:
        thread.join(0.05)
    assert found[0] == found[1] and found[0].startswith("http://127.0.0.1:")
    assert httpx.get(found[0], timeout=20).status_code == 200
    made[0].stop()
    thread.join(20)
    assert not thread.is_alive()


IN_A_FRESH_PROCESS = """
import threading, httpx, torch
from steerlab.live.answers import Answers
from steerlab.live.server import Server
from steerlab.methods import SteeringVector
from steerlab.testing import tiny_lm

model = tiny_lm("llama")  # by nnsight, which gives every object a method `save`
server = Server(Answers(model, SteeringVector({1: torch.ones(model.hidden_size)}), max_new_tokens=3))
threading.Thread(target=server.run, daemon=True).start()
request = {"method": None, "layer": 1, "alpha": 0, "prompt": {"text": "Hi"}}
answer = httpx.post(server.address.replace("/?", "/answer?"), json=request, timeout=60)
assert '{"done"' in answer.text and hasattr(object, "save"), answer.text
server.stop()
"""


@pytest.mark.nightly
def test_server_runs_beside_nnsight_in_a_process_that_has_imported_nothing_else() -> None:
    done = subprocess.run([sys.executable, "-c", IN_A_FRESH_PROCESS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_vector_of_another_model_is_refused_before_anything_is_shown(lm, vector: SteeringVector) -> None:
    model = lm("gpt2")
    other = steerlab.MeanDifference(1).fit(lm(), steerlab.pairs([("Yes.", "No."), ("Up.", "Down.")]))
    wide = SteeringVector({1: torch.randn(7)})
    for door in (live.widget, live.serve):
        with pytest.raises(MismatchError, match="fitted on a model called"):
            door(model, {"other": other}, prompts=PROMPTS)
        with pytest.raises((MismatchError, SteeringError), match="7"):
            door(model, {"wide": wide}, prompts=PROMPTS)


def test_methods_are_named_and_split_by_layer(lm, vector: SteeringVector) -> None:
    found = methods_by_layer(
        lm(), {"both": vector, "one": {2: vector.part(2)}, "raw": {1: torch.ones(lm().hidden_size)}}
    )
    assert {name: list(by_layer) for name, by_layer in found.items()} == {"both": [1, 2], "one": [2], "raw": [1]}
    assert list(methods_by_layer(lm(), vector)) == [vector.name]
    assert methods_by_layer(lm(), {}) == {}
    with pytest.raises(SteeringError, match="a different name"):
        methods_by_layer(lm(), [vector, vector])


def test_missing_packages_are_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "starlette" else name)
    with pytest.raises(LoadError, match=r'a live page needs starlette: pip install "steerlab\[page\]"'):
        doors._door("server", "starlette", "uvicorn")


def test_widget_shows_the_live_page_and_answers_messages(lm, vector: SteeringVector, monkeypatch) -> None:
    made = live.widget(lm(), {"v": vector}, prompts=PROMPTS, alphas=[0.5], max_new_tokens=NEW)
    assert isinstance(made, PageWidget) and made.live
    assert made.page["alphas"] == [0.0, 0.5] and made.page["layers"] == [1, 2]
    assert made._esm == asset("page.js")
    sent: list[Any] = []
    done = threading.Event()
    monkeypatch.setattr(made, "send", lambda message: (sent.append(message), message["event"] is None and done.set()))
    request = {"method": "v", "layer": 1, "alpha": 0.5, "prompt": {"text": PROMPTS[1]}}
    made._handle_custom_msg({"id": 3, "request": request}, [])
    assert done.wait(30)
    assert {message["id"] for message in sent} == {3}
    options: Any = {"positions": "last+generated", "max_new_tokens": NEW, "progress": False}
    text = steerlab.generate(lm(), PROMPTS[1:], steer=vector.part(1), alpha=0.5, **options)[0]
    assert sent[-2]["event"]["done"]["text"] == text
    made._handle_custom_msg({"cancel": 3}, [])  # too late, and harmless
    made.close()
