"""vLLM behind an `nnsight-serve`, in a process without steerlab, and its failures."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import KEY
from server import Server, free_port
from steerers import ANSWERS, PROMPTS, examples, fitted_l2s, steerers
from test_vllm_engine import ALPHA, SITES, STEPS, WIDTH, near_to

import steerlab
from steerlab import capture, generate, score
from steerlab.errors import RemoteError
from steerlab.models.model import Model

pytestmark = pytest.mark.vllm
NAME = "NNSIGHT_SERVE_API_KEY"


@pytest.fixture(scope="module")
def served(server: Server, folders: Callable[[str], Path]) -> Iterator[Model]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(NAME, KEY)
        yield steerlab.load(folders("tiny"), serve=server.host, retry_timeout=5.0)


def test_captured_states_match_hooks(served: Model, near) -> None:
    options: dict[str, Any] = dict(layers=SITES, positions="prompt", progress=False)
    assert near_to(capture(served, PROMPTS, **options).values, capture(near(), PROMPTS, **options).values)
    options = dict(layers="all", context=["last"], progress=False, batch_size=30)
    ours, theirs = capture(served, examples(20), **options), capture(near(), examples(20), **options)
    assert list(ours.index["example_id"]) == list(theirs.index["example_id"])
    assert near_to(ours.values, theirs.values)


@pytest.mark.parametrize("kind", ["mean", "per row", "gates"])
def test_steered_texts_and_scores_match_hooks(served: Model, near, kind: str) -> None:
    options: dict[str, Any] = dict(steer=steerers(WIDTH)[kind], alpha=ALPHA)
    ours, theirs = (generate(model, PROMPTS, max_new_tokens=STEPS, **options) for model in (served, near()))
    assert ours.ids == theirs.ids and ours.steered_tokens == theirs.steered_tokens
    assert near_to(*(score(model, PROMPTS, ANSWERS, **options)["logprob"] for model in (served, near())))


def test_64_concurrent_rows_keep_their_vectors(served: Model, near) -> None:
    prompts = [example.prompt for example in examples(64)]
    l2s = fitted_l2s(near(), 16)
    options: dict[str, Any] = dict(steer=l2s, alpha=3.0, max_new_tokens=STEPS, batch_size=64)
    assert generate(served, prompts, **options).ids == generate(near(), prompts, **options).ids


def test_requests_and_bytes_are_counted(served: Model) -> None:
    traffic = served.engine.client.traffic  # type: ignore[attr-defined]
    before = traffic.requests, traffic.sent, traffic.received
    capture(served, PROMPTS, layers=[1], progress=False)
    assert traffic.requests == before[0] + len(PROMPTS)
    assert traffic.sent > before[1] and traffic.received > before[2] + len(PROMPTS) * WIDTH * 4


def test_a_verb_runs_in_the_background(served: Model) -> None:
    job = generate(served, PROMPTS, max_new_tokens=STEPS, blocking=False)
    assert job.result(60).ids == generate(served, PROMPTS, max_new_tokens=STEPS).ids


def test_a_wrong_key_is_rejected(server: Server, folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "guess")
    with pytest.raises(RemoteError, match=NAME) as caught:
        steerlab.load(folders("tiny"), serve=server.host)
    assert caught.value.kind == "key" and not caught.value.retryable


def test_a_missing_server_fails_at_once(with_vllm: None, folders) -> None:
    begun = time.monotonic()
    with pytest.raises(RemoteError, match="no server answers") as caught:
        steerlab.load(folders("tiny"), serve=f"http://127.0.0.1:{free_port()}")
    assert caught.value.kind == "unreachable" and caught.value.retryable
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize(("name", "part"), [("other", "with the name '.*tiny'"), ("deeper", "it has no '.*layers.4'")])
def test_a_server_of_another_model_is_refused(server: Server, folders, monkeypatch, name: str, part: str) -> None:
    monkeypatch.setenv(NAME, KEY)
    with pytest.raises(RemoteError, match=part) as caught:
        steerlab.load(folders(name), serve=server.host)
    assert caught.value.kind == "model"


def test_a_dead_engine_is_an_error(served: Model, server: Server) -> None:
    """Last in this file: the server is of no use afterwards."""
    assert generate(served, PROMPTS[:1], max_new_tokens=2).ids
    server.kill_engine()
    with pytest.raises(RemoteError) as caught:
        generate(served, PROMPTS, max_new_tokens=STEPS)
    assert caught.value.kind in ("worker", "connection", "unreachable", "busy")
