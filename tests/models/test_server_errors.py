"""Failures of servers and of vLLM as steerlab's errors; requests, options and answers of vLLM."""

import copy
import pickle
import re
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import GenerationConfig

import steerlab
from steerlab.errors import LayoutError, RemoteError, SteeringError, SteerlabError, is_out_of_memory
from steerlab.models._hooks import HooksEngine
from steerlab.models._nnsight import errors
from steerlab.models._nnsight.errors import SERVE_KEY, basename, check_same_model, http_error, job_error, not_deployed
from steerlab.models._nnsight.vllm_requests import DEFAULTS, draw_seeds, sampling_params, token_ids
from steerlab.models.model import Model
from steerlab.testing import tiny_hf

HOST, CLIENT = "http://server:5001", "nnsight 0.8.1, transformers 5.20.0, torch 2.11.0"
MODELS = [
    "HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-360M-Instruct", "Qwen/Qwen2.5-7B-Instruct",
    "google/gemma-2-9b-it", "meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.1-8B", "openai-community/gpt2",
]  # fmt: skip
WORDS = st.text("abcdefghijklmno .,'é\n", max_size=40)  # none of the words with a meaning
TRACEBACK = "Traceback (most recent call last)"


def not_called() -> Sequence[str]:
    raise AssertionError("the deployed models are not needed")


# --- rejected requests


@pytest.mark.parametrize(
    ("server", "status", "body", "kind", "retryable", "part"),
    [
        ("ndif", 401, {"detail": "Missing API key"}, "key", False, "401: Missing API key. Set NDIF_API_KEY"),
        ("ndif", 403, {"error": "forbidden"}, "key", False, "403: forbidden. Set NDIF_API_KEY"),
        ("ndif", 400, {"detail": "The API Key is not valid"}, "key", False, "Set NDIF_API_KEY"),
        ("ndif", 413, "Request Entity Too Large", "size", False, "smaller batch_size"),
        ("ndif", 429, "Too Many Requests", "busy", True, "may succeed later"),
        ("ndif", 503, "version 2 of the model is coming up", "busy", True, "may succeed later"),
        ("ndif", 503, None, "busy", True, "503: Service Unavailable"),
        ("ndif", 500, "dtype conversion failed", "connection", True, "could not process"),
        ("ndif", 500, "could not look up the api key: database is down", "connection", True, "could not process"),
        ("ndif", 505, "HTTP Version Not Supported", "connection", True, "could not process"),
        ("ndif", 400, {"detail": "Client version 0.8.1 is below 9.0"}, "version", False, CLIENT),
        ("ndif", 400, {"detail": "Python Version mismatch"}, "version", False, CLIENT),
        ("ndif", 400, ["no", "object"], "connection", False, "400: ['no', 'object']"),
        ("ndif", 400, "conversion of the dtype failed", "connection", False, "could not process"),
        ("ndif", 404, "Not Found", "connection", False, "could not process"),
        ("serve", 401, {"error": "Unauthorized"}, "key", False, f"401: Unauthorized. Set {SERVE_KEY} "),
        ("serve", 403, "no entry", "key", False, f"answered 403: no entry. Set {SERVE_KEY} "),
        ("serve", 404, {"detail": "Not Found"}, "unsupported", False, "remote= for NDIF"),
        ("serve", 503, {"detail": "loading"}, "busy", True, "answered 503: loading"),
        ("serve", 400, {"detail": "nnsight version 0.7"}, "version", False, "nnsight-serve"),
    ],
)
def test_http_error_kind_and_fix(server: str, status: int, body: Any, kind: str, retryable: bool, part: str) -> None:
    response = httpx.Response(status, json=body)
    error = http_error(response, HOST, CLIENT) if server == "ndif" else errors.serve_error(response, HOST)
    assert (error.kind, error.retryable) == (kind, retryable)
    assert f"{HOST} answered {status}: " in str(error) and part in str(error)


@given(st.integers(400, 599), WORDS)
def test_http_errors_of_the_server_itself_are_retryable(status: int, detail: str) -> None:
    error = http_error(httpx.Response(status, text=detail), HOST, CLIENT)
    assert error.retryable == (status >= 500 or status == 429)
    assert is_out_of_memory(error) == (status == 413)
    assert f"{HOST} answered {status}: {detail.strip().rstrip('.')}" in str(error)


# --- failed jobs: for each known part of a message, a message of the server with it

MESSAGES = {
    "exceeded the execution timeout": ("Job exceeded the execution timeout of 9 s.", "timeout", False, "batch_size"),
    "repository not found": ("Repository Not Found for url: https://hf.co/x.", "model", False, "Deployed there"),
    "could not deploy": ("Could not deploy x: no GPU is left.", "model", False, "Deployed there"),
    "cant_accommodate": ("x: CANT_ACCOMMODATE", "model", False, "Deployed there"),
    "error starting model": ("Error starting model.\nCUDA error", "model", True, "Deployed there"),
    "error submitting request": ("Error submitting request to the model.", "worker", True, "succeed later"),
    "replica was evicted": ("The replica was evicted. Sorry!", "worker", True, "succeed later"),
    "critical server error": ("Critical server error occurred.", "worker", True, "succeed later"),
    "payload could not be read": ("The payload could not be read: EOFError", "serialization", False, "ship_packages="),
    "model architecture on this server": ("The model architecture on this server differs.", "version", False, "doctor"),
    "no module named": ("Error: No module named 'mine'", "serialization", False, "ship_packages="),
    "queue": ("The queue is full.", "busy", True, "succeed later"),
}


@pytest.mark.parametrize("part", [part for part, *_ in errors._NDIF_MESSAGES])
@pytest.mark.parametrize("case", [str, str.lower, str.upper])
@pytest.mark.parametrize("behind", ["", f"\n{TRACEBACK}:\n  File 'x.py', line 1\nValueError: 3"])
def test_known_messages_before_a_traceback_decide(part: str, case: Callable[[str], str], behind: str) -> None:
    message, kind, retryable, fix = MESSAGES[part]
    error = job_error(case(message) + behind, HOST, "gpt2", (lambda: MODELS) if kind == "model" else not_called)
    assert (error.kind, error.retryable) == (kind, retryable)
    assert HOST in str(error) and fix in str(error)


@pytest.mark.parametrize("part", MESSAGES)
@pytest.mark.parametrize("sentence", ["", "Error while running the job.\n"])
def test_known_messages_inside_a_traceback_are_errors_of_the_request(part: str, sentence: str) -> None:
    behind = f"{TRACEBACK}:\n  File 'mine.py', line 3, in gate  # {part}\nValueError: {part}, or so"
    error = job_error(sentence + behind, HOST, "gpt2", not_called)
    assert (error.kind, error.retryable) == ("execution", False)
    assert str(error).startswith(f"the job failed on {HOST}: ValueError: {part}, or so\n") and behind in str(error)


@pytest.mark.parametrize(
    ("last", "kind", "retryable", "part"),
    [
        ("ModuleNotFoundError: No module named 'mine'", "serialization", False, "ship_packages="),
        ("ImportError: No module named mine", "serialization", False, "ship_packages="),
        ("TypeError: 'NoneType' object does not support the context manager protocol", "worker", True, "later"),
        ("torch.OutOfMemoryError: CUDA out of memory.", "size", False, "smaller batch_size"),
        ("MemoryError: Out of Memory", "size", False, "smaller batch_size"),
        ("torch.OutOfMemoryError: out of age.", "execution", False, "failed on"),
    ],
)
def test_the_last_line_of_a_traceback_decides_the_kind(last: str, kind: str, retryable: bool, part: str) -> None:
    error = job_error(f"Job failed.\n{TRACEBACK}:\n  with root.trace()\n{last}\n", HOST, "gpt2", not_called)
    assert (error.kind, error.retryable) == (kind, retryable) and is_out_of_memory(error) == (kind == "size")
    assert (kind == "worker" or last.rstrip(".") in str(error)) and part in str(error)


@pytest.mark.parametrize("message", ["", " \n\t"])
def test_an_empty_message_is_reported(message: str) -> None:
    error = job_error(message, HOST, "gpt2", not_called)
    assert error.kind == "execution" and f"failed on {HOST}: no message" in str(error)


@given(st.sampled_from(MODELS), st.integers(0, 100), st.permutations(MODELS))
def test_a_name_that_lacks_a_letter_is_guessed(name: str, place: int, deployed: list[str]) -> None:
    place %= len(name)
    error = not_deployed(name[:place] + name[place + 1 :], HOST, deployed, "Repository not found.")
    assert f"Did you mean {name!r}?" in str(error)
    assert f"Deployed there: {name}, " in str(error), "the most similar first"
    assert all(other in str(error) for other in MODELS) and "not found. Did" in str(error)
    assert (error.kind, error.retryable) == ("model", False)


@given(st.integers(0, 20))
def test_at_most_eight_models_are_listed_and_none_is_guessed_without_similarity(n: int) -> None:
    deployed = [f"{k:02}" for k in range(n)]
    error = not_deployed("qwerty", HOST, deployed, "could not deploy", retryable=True)
    assert "Did you mean" not in str(error) and error.retryable
    listed = str(error).partition("Deployed there: ")[2].partition(". `")[0]
    assert listed == (", ".join(deployed[:8]) or "none at the moment")


# --- connections


@pytest.mark.parametrize(
    ("error", "kind", "retryable", "part"),
    [
        (errors.unreachable(HOST, ConnectionError("refused\nby it")), "unreachable", True, "Check the address"),
        (errors.connection_lost(HOST, ConnectionError("refused\nby it")), "connection", True, "capture(folder="),
        (errors.not_serializable(ConnectionError("refused\nby it")), "serialization", False, "ship_packages="),
    ],
)
def test_errors_of_a_connection_quote_the_first_line(error: RemoteError, kind: str, retryable: bool, part: str) -> None:
    assert (error.kind, error.retryable) == (kind, retryable)
    assert "ConnectionError: refused" in str(error) and "by it" not in str(error) and part in str(error)
    assert "(TimeoutError)" in str(errors.connection_lost(HOST, TimeoutError())), "an error without a message"


@given(st.text(), st.text(), st.booleans(), st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_a_remote_error_can_be_pickled(message: str, kind: str, retryable: bool, protocol: int) -> None:
    error = RemoteError(message, kind, retryable=retryable)
    for again in (pickle.loads(pickle.dumps(error, protocol)), copy.deepcopy(error)):
        assert type(again) is RemoteError
        assert (str(again), again.kind, again.retryable) == (message, kind, retryable)


class LimitedEngine(HooksEngine):
    """A server that accepts so many rows in a request."""

    supports_forward_state = False
    limit = 2

    def capture_states(self, inputs: Any, *args: Any) -> Tensor:
        if len(inputs["input_ids"]) > self.limit:
            raise http_error(httpx.Response(413, text="Request Entity Too Large"), HOST, CLIENT)
        return super().capture_states(inputs, *args)


def test_a_request_that_is_too_large_is_halved(lm: Callable[..., Model]) -> None:
    model, prompts = lm(), [f"{'word ' * k}and the end" for k in range(7)]
    engine = LimitedEngine(model.hf, model.layout)
    limited = Model(model.hf, model.tokenizer, model.layout, id=model.id, backend="limited", engine=engine)
    whole, halves = (steerlab.capture(m, prompts, progress=False) for m in (model, limited))
    assert halves.index.equals(whole.index)
    torch.testing.assert_close(halves.values, whole.values, rtol=0, atol=1e-5)
    engine.limit = 0
    with pytest.raises(steerlab.errors.OutOfMemory, match="one row") as caught:
        steerlab.capture(limited, prompts, progress=False)
    assert isinstance(caught.value.__cause__, RemoteError)


# --- vLLM

VLLM_ERRORS: list[tuple[BaseException, type[SteerlabError], str | None, str]] = [
    (RuntimeError("SteeringError: no token\n\nIntervention traceback:\n x"), SteeringError, None, "^no token$"),
    (RuntimeError("LayoutError: no: module"), LayoutError, None, "^no: module$"),
    (ValueError("SteeringError: not ours"), RemoteError, "execution", "ValueError: SteeringError: not ours"),
    (RuntimeError("KeyError: 'UnknownPersistentId: 3'"), RemoteError, "model", "runs another model"),
    (RuntimeError("x: Module:model.layers.9 is not there"), RemoteError, "model", "runs another model"),
    (type("EngineDeadError", (Exception,), {})("gone"), RemoteError, "worker", "EngineDeadError.*too little memory"),
    (ValueError("is longer than the maximum model length of 64"), RemoteError, "unsupported", "larger max_model_len"),
    (ZeroDivisionError("by zero"), RemoteError, "execution", "there: ZeroDivisionError: by zero"),
]


@pytest.mark.parametrize(("raised", "expected", "kind", "part"), VLLM_ERRORS)
def test_errors_raised_in_vllm(raised: BaseException, expected: type, kind: str | None, part: str) -> None:
    error = errors.vllm_error(raised, "there", "the traceback")
    assert type(error) is expected and getattr(error, "kind", None) == kind
    assert re.search(part, str(error), re.DOTALL)
    assert ("the traceback" in str(error)) == (kind == "execution"), "only where nothing else explains it"
    for own in (SteeringError("x"), RemoteError("x", "busy", retryable=True)):
        assert errors.vllm_error(own, "there") is own


LLAMA = tiny_hf("llama").config
NAMES = st.from_regex(r"[A-Za-z0-9]+([._-][A-Za-z0-9]+)*", fullmatch=True)


@given(NAMES, NAMES, NAMES)
def test_a_model_has_one_name_in_every_folder(owner: str, name: str, other: str) -> None:
    cached = f"/cache/models--{owner}--{name}/snapshots/0a1b2c"
    without_owner = f"/cache/models--{name}/snapshots/0a1b2c"
    places = [f"{owner}/{name}", name, f"/data/{name}", f"/data/{name}/", cached, f"{cached}/", without_owner]
    assert {basename(place) for place in places} == {name}
    for place in places:
        check_same_model(LLAMA, f"{owner}/{name}", LLAMA.to_dict(), place, "there")
        if other != name:
            with pytest.raises(RemoteError, match="runs another model than"):
                check_same_model(LLAMA, f"{owner}/{other}", LLAMA.to_dict(), place, "there")


@pytest.mark.parametrize("key", ["model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_a_model_of_another_shape_is_refused(key: str) -> None:
    there = LLAMA.to_dict() | {key: "other" if key == "model_type" else 77}
    with pytest.raises(RemoteError) as caught:
        check_same_model(LLAMA, "a/tiny", there, "a/tiny", "there")
    assert caught.value.kind == "model" and not caught.value.retryable
    assert f"{key} {there[key]!r} instead of {LLAMA.to_dict()[key]!r}" in str(caught.value)
    assert "check=False" not in str(caught.value), "no decoding was compared on the server"


def test_configurations_with_names_of_their_own_are_compared() -> None:
    here = tiny_hf("gpt2").config
    check_same_model(here, "a/tiny", here.to_dict(), "a/tiny", "there")
    with pytest.raises(RemoteError, match="n_embd 77 instead of "):
        check_same_model(here, "a/tiny", here.to_dict() | {"n_embd": 77}, "a/tiny", "there")
    with pytest.raises(RemoteError, match="model_type 'llama' instead of 'gpt2'"):
        check_same_model(here, "a/tiny", LLAMA.to_dict(), "a/tiny", "there")


# --- sampling in vLLM as in Hugging Face

Options = dict[str, Any]
DRAWN: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.floats(0.1, 2), "top_k": st.integers(0, 100), "top_p": st.floats(0.1, 1),
    "min_p": st.floats(0.1, 1), "repetition_penalty": st.floats(0.5, 2),
}  # fmt: skip
OPTIONS = st.fixed_dictionaries({}, optional=DRAWN)
EOS = st.lists(st.integers(0, 300), min_size=1, max_size=3)


def config_with(values: dict[str, Any]) -> GenerationConfig:
    config = GenerationConfig()
    for name, value in values.items():
        setattr(config, name, value)
    return config


def test_the_defaults_are_hugging_faces() -> None:
    usual = GenerationConfig._get_default_generation_params()
    set_there = {name: usual[name] for name in DEFAULTS if usual.get(name) is not None}
    assert len(set_there) > 3 and set_there == {name: DEFAULTS[name] for name in set_there}


@given(OPTIONS, OPTIONS, st.sampled_from([True, False, None]))
def test_the_callers_options_precede_the_models(of_model: Options, options: Options, do_sample: bool | None) -> None:
    params, copies, _ = sampling_params({"max_new_tokens": 3, "do_sample": do_sample, **options}, config_with(of_model))
    expected = {**DEFAULTS, **of_model, **options}
    if not do_sample:  # the repetition penalty also applies to greedy decoding
        expected |= {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    assert {name: params[name] for name in DEFAULTS} == expected
    assert copies == 1 and params["max_tokens"] == 3


@given(OPTIONS, OPTIONS, st.booleans(), EOS)
def test_none_means_the_models_value(of_model: Options, options: Options, do_sample: bool, eos: list[int]) -> None:
    values = of_model | {"do_sample": do_sample, "eos_token_id": eos, "pad_token_id": 5, "max_new_tokens": 4}
    none = dict.fromkeys((*DRAWN, "do_sample", "eos_token_id", "pad_token_id", "max_new_tokens"))
    assert sampling_params(none | options, config_with(values)) == sampling_params(options, config_with(values))
    params, _, pad = sampling_params(none, config_with(values))
    assert params["stop_token_ids"] == eos and pad == 5 and params["max_tokens"] == 4
    assert bool(params["temperature"]) == do_sample


@given(st.none() | EOS, st.sampled_from([list, tuple, torch.tensor]))
def test_eos_ids_become_a_list(eos: list[int] | None, kind: Callable[[Any], Any]) -> None:
    given_ = None if eos is None else kind(eos)
    assert token_ids(given_) == (eos or [])
    params, _, pad = sampling_params({"max_new_tokens": 3, "eos_token_id": given_}, GenerationConfig(eos_token_id=7))
    assert params["stop_token_ids"] == (eos or [7]) and params["ignore_eos"], "vLLM must not add its own"
    assert pad == params["stop_token_ids"][0]
    if eos:
        assert token_ids(eos[0]) == token_ids(torch.tensor(eos[0])) == eos[:1]


@given(st.integers(1, 9), st.integers(0, 20), st.booleans())
def test_min_tokens_is_at_most_max_tokens_and_needs_an_eos(most: int, least: int, eos: bool) -> None:
    options = {"max_new_tokens": most, "min_new_tokens": least} | ({"eos_token_id": 3} if eos else {})
    params, _, pad = sampling_params(options, GenerationConfig())
    assert params.get("min_tokens", 0) == (min(most, least) if eos else 0)
    assert (params["stop_token_ids"], pad) == (([3], 3) if eos else ([], 0))


UNSUPPORTED = {
    "num_beams": 4, "no_repeat_ngram_size": 2, "bad_words_ids": [[1]], "stop_strings": ["x"], "banana": 1,
    "length_penalty": 2.0, "typical_p": 0.5, "logits_processor": [], "output_scores": True,
}  # fmt: skip


@given(st.sets(st.sampled_from(sorted(UNSUPPORTED)), min_size=1), st.booleans())
def test_unsupported_options_are_refused_by_name(names: set[str], of_model: bool) -> None:
    bad = {name: UNSUPPORTED[name] for name in names}
    config, options = (config_with(bad), {}) if of_model else (GenerationConfig(), bad)
    with pytest.raises(SteeringError, match="vLLM does not support") as caught:
        sampling_params({"max_new_tokens": 3, "temperature": 0.5, **options}, config)
    refused = str(caught.value).partition(": leave it out")[0]
    for name, value in UNSUPPORTED.items():
        assert (f"{name}={value!r}" in refused) == (name in names)
    assert "temperature" not in refused and "max_new_tokens" in str(caught.value)


def test_options_without_effect_are_accepted() -> None:
    usual = GenerationConfig._get_default_generation_params()
    unused = {name: value for name, value in usual.items() if name not in DEFAULTS and value is not None}
    assert len(unused) > 5
    unused |= {"use_cache": False, "return_dict_in_generate": False, "output_scores": False, "banana": False}
    plain = {"max_new_tokens": 3}
    assert sampling_params(plain | unused, GenerationConfig()) == sampling_params(plain, GenerationConfig())


def test_a_generation_config_replaces_the_models() -> None:
    of_model = GenerationConfig(eos_token_id=2, do_sample=True, temperature=0.2)
    options = {"generation_config": GenerationConfig(eos_token_id=9), "max_new_tokens": 3}
    params, _, _ = sampling_params(options, of_model)
    assert params["stop_token_ids"] == [9] and params["temperature"] == 0.0


def test_copies_need_sampling_and_rows_need_a_length() -> None:
    options = {"max_new_tokens": 3, "num_return_sequences": 4}
    assert sampling_params(options | {"do_sample": True}, GenerationConfig())[1] == 4
    with pytest.raises(SteeringError, match="num_return_sequences=4 without do_sample=True"):
        sampling_params(options, GenerationConfig())
    for length in ({}, {"max_new_tokens": None}, {"max_new_tokens": 0}, {"max_length": 30}):
        with pytest.raises(SteeringError, match="give max_new_tokens"):
            sampling_params(length, GenerationConfig())


def test_seeds_come_from_the_callers_random_state() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first, then = draw_seeds(5), draw_seeds(5)
        torch.manual_seed(3)
        assert draw_seeds(5) == first != then
    assert len(set(first + then)) == 10 and all(0 <= seed < 2**31 for seed in first)
