"""What servers and vLLM say when something goes wrong, as our errors: what happened, and what to do."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import httpx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import GenerationConfig

import steerlab
from steerlab import RemoteError
from steerlab._support.errors import LayoutError, SteeringError, SteerlabError, is_out_of_memory
from steerlab.models._hooks import HooksEngine
from steerlab.models._nnsight import errors
from steerlab.models._nnsight.errors import cannot_travel, lost, no_model, of_answer, of_status, unreachable
from steerlab.models._nnsight.vllm_errors import KEY, called, check_same, of_block, of_http
from steerlab.models._nnsight.vllm_sampling import DEFAULTS, as_list, sampling, seeds
from steerlab.models.engine import FULL_FORWARD, Inputs, StateSelector
from steerlab.models.interventions import SiteEdits
from steerlab.models.kv_prefix import ForwardState
from steerlab.models.model import Model
from steerlab.models.sites import Site
from steerlab.testing import tiny_hf

HOST, CLIENT = "http://there:5001", "nnsight 0.8.1, transformers 5.20.0, torch 2.11.0"
MODELS = [
    "HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-360M-Instruct", "Qwen/Qwen2.5-7B-Instruct",
    "google/gemma-2-9b-it", "meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.1-8B", "openai-community/gpt2",
]  # fmt: skip
WORDS = st.text("abcdefghijklmno .,'é\n", max_size=40)  # none of the words that mean something
TRACEBACK = "Traceback (most recent call last)"


def nobody_asks() -> Sequence[str]:
    raise AssertionError("which models there are is of no interest")


# --- a request that is turned down


@pytest.mark.parametrize(
    ("status", "detail", "kind", "retryable", "told"),
    [
        (401, "Missing API key", "key", False, "Set NDIF_API_KEY"),
        (401, "unauthorized", "key", False, "Set NDIF_API_KEY"),
        (403, "forbidden", "key", False, "Set NDIF_API_KEY"),
        (400, "The API Key is not valid", "key", False, "Set NDIF_API_KEY"),
        (413, "Request Entity Too Large", "size", False, "smaller batch_size"),
        (429, "Too Many Requests", "busy", True, "may well succeed later"),
        (503, "Service Unavailable", "busy", True, "may well succeed later"),
        (500, "Internal Server Error", "lost", True, "could not take the request"),
        (502, "Bad Gateway", "lost", True, "could not take the request"),
        (400, "Client version 0.8.1 is below 9.0", "version", False, CLIENT),
        (400, "Python Version mismatch", "version", False, CLIENT),
        (400, "malformed", "lost", False, "could not take the request"),
        (500, "dtype conversion failed", "lost", True, "could not take the request"),
        (503, "version 2 of the model is coming up", "busy", True, "may well succeed later"),
        (500, "could not look up the api key: database is down", "lost", True, "could not take the request"),
        (505, "HTTP Version Not Supported", "lost", True, "could not take the request"),
        (400, "conversion of the dtype failed", "lost", False, "could not take the request"),
        (404, "Not Found", "lost", False, "could not take the request"),
    ],
)
def test_a_status_says_what_happened_and_what_to_do(
    status: int, detail: str, kind: str, retryable: bool, told: str
) -> None:
    error = of_status(status, detail, HOST, CLIENT)
    assert (error.kind, error.retryable) == (kind, retryable)
    for part in (f"{HOST} answered {status}: {detail}", told):
        assert part in str(error)


@given(st.integers(400, 599), WORDS)
def test_only_what_is_the_servers_own_trouble_is_asked_for_again(status: int, detail: str) -> None:
    error = of_status(status, detail, HOST, CLIENT)
    assert error.retryable == (status >= 500 or status == 429)
    assert is_out_of_memory(error) == (status == 413)
    assert f"{HOST} answered {status}: {detail}" in str(error)


# --- a job that came back as failed: by the words in `errors._SAID`, a sentence of the server's with them

ANSWERS = {
    "exceeded the execution timeout": ("The job exceeded the execution timeout of 15 s.", "time", False, "batch_size"),
    "repository not found": ("Repository Not Found for url: https://hf.co/x.", "model", False, "Deployed there"),
    "could not deploy": ("Could not deploy x: no GPU is left.", "model", False, "Deployed there"),
    "cant_accommodate": ("x: CANT_ACCOMMODATE", "model", False, "Deployed there"),
    "error starting model": ("Error starting model.\nCUDA error", "model", True, "Deployed there"),
    "error submitting request": ("Error submitting request to the model.", "worker", True, "succeed later"),
    "replica was evicted": ("The replica was evicted. Sorry!", "worker", True, "succeed later"),
    "critical server error": ("Critical server error occurred.", "worker", True, "succeed later"),
    "payload could not be read": ("The payload could not be read: EOFError", "travel", False, "travels="),
    "model architecture on this server": ("The model architecture on this server differs.", "version", False, "ersion"),
    "no module named": ("Error: No module named 'mine'", "travel", False, "travels="),
    "queue": ("The queue is full.", "busy", True, "succeed later"),
}


def test_every_sentence_that_is_known_has_a_row_here() -> None:
    assert list(ANSWERS) == [words for words, *_ in errors._SAID]


@pytest.mark.parametrize("words", ANSWERS)
@pytest.mark.parametrize("case", [str, str.lower, str.upper])
@pytest.mark.parametrize("behind", ["", f"\n{TRACEBACK}:\n  File 'x.py', line 1\nValueError: 3"])
def test_a_sentence_of_the_servers_is_known_in_any_case_and_before_any_traceback(
    words: str, case: Callable[[str], str], behind: str
) -> None:
    said, kind, retryable, told = ANSWERS[words]
    asks = (lambda: MODELS) if kind == "model" else nobody_asks
    error = of_answer(case(said) + behind, HOST, "gpt2", asks)
    assert (error.kind, error.retryable) == (kind, retryable)
    assert HOST in str(error) and told in str(error)


@pytest.mark.parametrize("words", ANSWERS)
@pytest.mark.parametrize("sentence", ["", "Error while running the job.\n"])
def test_the_same_words_in_a_traceback_are_an_error_of_what_was_sent(words: str, sentence: str) -> None:
    behind = f"{TRACEBACK}:\n  File 'mine.py', line 3, in gate  # {words}\nValueError: {words}, or so"
    error = of_answer(sentence + behind, HOST, "gpt2", nobody_asks)
    assert (error.kind, error.retryable) == ("code", False)
    assert str(error).startswith(f"the job failed on {HOST}: ValueError: {words}, or so\n") and behind in str(error)


@pytest.mark.parametrize("last", ["ModuleNotFoundError: No module named 'mine'", "ImportError: No module named mine"])
def test_a_module_that_is_missing_there_can_be_sent_along(last: str) -> None:
    error = of_answer(f"Job failed.\n{TRACEBACK}:\n  import mine\n{last}", HOST, "gpt2", nobody_asks)
    assert (error.kind, error.retryable) == ("travel", False) and last in str(error) and "travels=" in str(error)


def test_a_worker_that_is_still_at_a_job_it_had_ended_is_waited_for() -> None:
    last = "TypeError: 'NoneType' object does not support the context manager protocol"
    error = of_answer(f"{TRACEBACK}:\n  with root.trace()\n{last}\n", HOST, "gpt2", nobody_asks)
    assert (error.kind, error.retryable) == ("worker", True)


@pytest.mark.parametrize("said", ["", " \n\t"])
def test_a_server_that_says_nothing_is_quoted_so(said: str) -> None:
    error = of_answer(said, HOST, "gpt2", nobody_asks)
    assert error.kind == "code" and f"failed on {HOST}: nothing" in str(error)


@pytest.mark.parametrize("last", ["torch.OutOfMemoryError: CUDA out of memory.", "MemoryError: Out of Memory"])
def test_memory_that_runs_out_in_what_was_sent_is_told_so(last: str) -> None:
    error = of_answer(f"{TRACEBACK}:\n  File 'x.py'\n{last}", HOST, "gpt2", nobody_asks)
    assert (error.kind, error.retryable) == ("size", False) and is_out_of_memory(error)
    assert last in str(error) and "smaller batch_size" in str(error)


def test_memory_that_runs_out_there_is_told_like_memory_that_runs_out_here() -> None:
    said = f"Job failed.\n{TRACEBACK}:\n  h @ w\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"
    assert is_out_of_memory(of_answer(said, HOST, "gpt2", nobody_asks))
    assert not is_out_of_memory(of_answer(said.replace("out of memory", "of age"), HOST, "gpt2", nobody_asks))


# --- models that are not there


@given(st.sampled_from(MODELS), st.integers(0, 100), st.permutations(MODELS))
def test_a_name_that_lacks_a_letter_is_guessed(name: str, place: int, there: list[str]) -> None:
    place %= len(name)
    error = no_model(name[:place] + name[place + 1 :], HOST, there, "Repository not found.")
    assert f"Did you mean {name!r}?" in str(error)
    assert f"Deployed there: {name}, " in str(error), "the nearest first"
    assert all(other in str(error) for other in MODELS) and "not found. Did" in str(error)
    assert (error.kind, error.retryable) == ("model", False)


@given(st.integers(0, 20))
def test_names_unlike_any_other_are_not_guessed_and_not_all_are_listed(n: int) -> None:
    there = [f"{k:02}" for k in range(n)]
    error = no_model("qwerty", HOST, there, "could not deploy", retryable=True)
    assert "Did you mean" not in str(error) and error.retryable
    listed = str(error).partition("Deployed there: ")[2].partition(". `")[0]
    assert listed == (", ".join(there[:8]) or "none at the moment")


# --- the way there


@pytest.mark.parametrize(
    ("made", "kind", "retryable", "told"),
    [
        (unreachable(HOST, ConnectionError("refused\nby it")), "unreachable", True, "Check the address"),
        (lost(HOST, ConnectionError("refused\nby it")), "lost", True, "capture_to"),
        (cannot_travel(ConnectionError("refused\nby it"), f"a lock for {HOST}"), "travel", False, "travels="),
    ],
)
def test_what_breaks_on_the_way_is_told_with_its_first_line(
    made: RemoteError, kind: str, retryable: bool, told: str
) -> None:
    assert (made.kind, made.retryable) == (kind, retryable)
    assert HOST in str(made) and "ConnectionError: refused" in str(made) and "by it" not in str(made)
    assert told in str(made)


def test_an_error_without_a_message_is_told_by_its_name() -> None:
    assert "(TimeoutError)" in str(lost(HOST, TimeoutError()))


@given(st.text(), st.text(), st.booleans(), st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_an_error_comes_back_whole_from_another_process(said: str, kind: str, retryable: bool, protocol: int) -> None:
    error = RemoteError(said, kind, retryable=retryable)
    for again in (pickle.loads(pickle.dumps(error, protocol)), copy.deepcopy(error)):
        assert type(again) is RemoteError
        assert (str(again), again.kind, again.retryable) == (said, kind, retryable)


class Narrow(HooksEngine):
    """A server whose requests may have so many rows and no more."""

    supports_forward_state = False
    most = 2

    def capture_states(
        self,
        inputs: Inputs,
        plan: SiteEdits,
        sites: Sequence[Site],
        select: StateSelector,
        forward_state: ForwardState = FULL_FORWARD,
    ) -> Tensor:
        if len(inputs["input_ids"]) > self.most:
            raise of_status(413, "Request Entity Too Large", HOST, CLIENT)
        return super().capture_states(inputs, plan, sites, select, forward_state)


def narrow(model: Model, most: int) -> Model:
    engine = Narrow(model.hf, model.layout)
    engine.most = most
    return Model(model.hf, model.tokenizer, model.layout, id=model.id, backend="narrow", engine=engine)


def test_a_result_that_is_too_large_is_asked_for_in_halves(lm: Callable[..., Model]) -> None:
    prompts = [f"{'word ' * k}and the end" for k in range(7)]
    whole = steerlab.capture(lm(), prompts, progress=False)
    halves = steerlab.capture(narrow(lm(), 2), prompts, progress=False)
    assert halves.index.equals(whole.index)
    torch.testing.assert_close(halves.values, whole.values, rtol=0, atol=1e-5)
    with pytest.raises(steerlab.OutOfMemory, match="one row") as caught:
        steerlab.capture(narrow(lm(), 0), prompts, progress=False)
    assert isinstance(caught.value.__cause__, RemoteError)


# --- vLLM


BLOCKS: list[tuple[BaseException, type[SteerlabError], str | None, str]] = [
    (RuntimeError("SteeringError: no token\n\nIntervention traceback:\n x"), SteeringError, None, "^no token$"),
    (RuntimeError("LayoutError: no: module"), LayoutError, None, "^no: module$"),
    (ValueError("SteeringError: not ours"), RemoteError, "code", "ValueError: SteeringError: not ours"),
    (RuntimeError("KeyError: 'UnknownPersistentId: 3'"), RemoteError, "model", "runs another model"),
    (RuntimeError("x: Module:model.layers.9 is not there"), RemoteError, "model", "runs another model"),
    (type("EngineDeadError", (Exception,), {})("gone"), RemoteError, "worker", "EngineDeadError.*too little memory"),
    (ValueError("is longer than the maximum model length of 64"), RemoteError, "refused", "larger max_model_len"),
    (ZeroDivisionError("by zero"), RemoteError, "code", "there: ZeroDivisionError: by zero"),
]


@pytest.mark.parametrize(("raised", "expected", "kind", "told"), BLOCKS)
def test_what_is_raised_in_vllm_is_told_by_its_type(
    raised: BaseException, expected: type[SteerlabError], kind: str | None, told: str
) -> None:
    error = of_block(raised, "there", "the trace of it")
    assert type(error) is expected and getattr(error, "kind", None) == kind
    assert re.search(told, str(error), re.DOTALL)
    assert ("the trace of it" in str(error)) == (kind == "code"), "where nothing else says what it was"


def test_an_error_of_ours_stays_as_it_is() -> None:
    for error in (SteeringError("x"), RemoteError("x", "busy", retryable=True)):
        assert of_block(error, "there") is error


@pytest.mark.parametrize(
    ("answer", "kind", "retryable", "told"),
    [
        (httpx.Response(401, json={"error": "Unauthorized"}), "key", False, f"answered 401: Unauthorized. Set {KEY} "),
        (httpx.Response(403, text="no entry"), "key", False, f"answered 403: no entry. Set {KEY} "),
        (httpx.Response(404, json={"detail": "Not Found"}), "refused", False, "remote= for NDIF"),
        (httpx.Response(503, json={"detail": "loading"}), "busy", True, "answered 503: loading"),
        (httpx.Response(503, json="loading"), "busy", True, "answered 503: loading"),
        (httpx.Response(503, json=["loading"]), "busy", True, "answered 503: ['loading']"),
        (httpx.Response(503, json=None), "busy", True, "answered 503: Service Unavailable"),
        (httpx.Response(500, text=""), "lost", True, "answered 500: Internal Server Error"),
        (httpx.Response(413, text=" too big\n"), "size", False, "answered 413: too big."),
        (httpx.Response(400, json={"detail": "nnsight version 0.7"}), "version", False, "nnsight-serve"),
    ],
)
def test_what_an_nnsight_serve_answers(answer: httpx.Response, kind: str, retryable: bool, told: str) -> None:
    error = of_http(answer, HOST)
    assert (error.kind, error.retryable) == (kind, retryable) and HOST in str(error) and told in str(error)


@cache
def tiny_hf_config() -> Any:
    return tiny_hf("llama").config


NAMES = st.from_regex(r"[A-Za-z0-9]+([._-][A-Za-z0-9]+)*", fullmatch=True)


@given(NAMES, NAMES, NAMES)
def test_a_model_is_called_the_same_wherever_it_lies(owner: str, name: str, other: str) -> None:
    hub = f"/cache/models--{owner}--{name}/snapshots/0a1b2c"
    old = f"/cache/models--{name}/snapshots/0a1b2c"  # of before ids had owners
    folders = [f"{owner}/{name}", name, f"/data/{name}", f"/data/{name}/", hub, f"{hub}/", old]
    assert {called(place) for place in folders} == {name}
    config = tiny_hf_config()
    for place in folders:
        check_same(config, f"{owner}/{name}", config.to_dict(), place, "there")
        if other != name:
            with pytest.raises(RemoteError, match="runs another model than"):
                check_same(config, f"{owner}/{other}", config.to_dict(), place, "there")


@pytest.mark.parametrize("key", ["model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_a_model_of_another_shape_is_told_by_both_numbers(key: str) -> None:
    here = tiny_hf_config()
    there = here.to_dict() | {key: "other" if key == "model_type" else 77}
    with pytest.raises(RemoteError) as caught:
        check_same(here, "a/tiny", there, "a/tiny", "there")
    assert caught.value.kind == "model" and not caught.value.retryable
    assert f"{key} {there[key]!r} instead of {here.to_dict()[key]!r}" in str(caught.value)
    assert "check=False" in str(caught.value)


def test_a_model_whose_configuration_has_its_own_words_is_compared_in_them() -> None:
    here = tiny_hf("gpt2").config
    check_same(here, "a/tiny", here.to_dict(), "a/tiny", "there")
    with pytest.raises(RemoteError, match="n_embd 77 instead of "):
        check_same(here, "a/tiny", here.to_dict() | {"n_embd": 77}, "a/tiny", "there")
    with pytest.raises(RemoteError, match="model_type 'llama' instead of 'gpt2'"):
        check_same(here, "a/tiny", tiny_hf_config().to_dict(), "a/tiny", "there")


# --- sampling in vLLM as Hugging Face samples

DRAWN: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.floats(0.1, 2),
    "top_k": st.integers(0, 100),
    "top_p": st.floats(0.1, 1),
    "min_p": st.floats(0.1, 1),
    "repetition_penalty": st.floats(0.5, 2),
}
OPTIONS = st.fixed_dictionaries({}, optional=DRAWN)
ENDS = st.lists(st.integers(0, 300), min_size=1, max_size=3)


def config_of(own: dict[str, Any]) -> GenerationConfig:
    config = GenerationConfig()
    for name, value in own.items():
        setattr(config, name, value)
    return config


def test_where_nobody_says_anything_it_is_what_hugging_face_uses() -> None:
    usual = GenerationConfig._get_default_generation_params()
    told = {name: usual[name] for name in DEFAULTS if usual.get(name) is not None}
    assert len(told) > 3 and told == {name: DEFAULTS[name] for name in told}


@given(OPTIONS, OPTIONS)
def test_a_draw_takes_the_callers_settings_then_the_models_then_the_usual(
    own: dict[str, Any], options: dict[str, Any]
) -> None:
    params, copies, _ = sampling({"max_new_tokens": 3, "do_sample": True, **options}, config_of(own))
    assert {name: params[name] for name in DEFAULTS} == {**DEFAULTS, **own, **options} and copies == 1
    assert params["max_tokens"] == 3


@given(OPTIONS, OPTIONS, st.sampled_from([{"do_sample": False}, {"do_sample": None}, {}]))
def test_a_greedy_row_has_temperature_zero_and_nothing_cut_off(
    own: dict[str, Any], options: dict[str, Any], greedy: dict[str, Any]
) -> None:
    params, _, _ = sampling({"max_new_tokens": 3, **greedy, **options}, config_of(own))
    assert {name: params[name] for name in ("temperature", "top_k", "top_p", "min_p")} == {
        "temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0,
    }  # fmt: skip
    assert params["repetition_penalty"] == {**DEFAULTS, **own, **options}["repetition_penalty"], "also of greedy rows"


@given(OPTIONS, OPTIONS, st.booleans(), ENDS)
def test_none_means_the_models_own(own: dict[str, Any], options: dict[str, Any], draws: bool, ends: list[int]) -> None:
    config = config_of(own | {"do_sample": draws, "eos_token_id": ends, "pad_token_id": 5, "max_new_tokens": 4})
    left_out = {name: None for name in (*DRAWN, "do_sample", "eos_token_id", "pad_token_id", "max_new_tokens")}
    assert sampling(left_out | options, config) == sampling(options, config)
    params, _, pad = sampling(left_out, config)
    assert params["stop_token_ids"] == ends and pad == 5 and params["max_tokens"] == 4
    assert bool(params["temperature"]) == draws


@given(st.one_of(st.none(), ENDS), st.sampled_from([list, tuple, torch.tensor]))
def test_ends_are_a_list_whatever_they_come_as(ends: list[int] | None, kind: Callable[[Any], Any]) -> None:
    given_ = None if ends is None else kind(ends)
    assert as_list(given_) == (ends or [])
    params, _, pad = sampling({"max_new_tokens": 3, "eos_token_id": given_}, GenerationConfig(eos_token_id=7))
    assert params["stop_token_ids"] == (ends or [7]) and params["ignore_eos"], "vLLM shall look up none of its own"
    assert pad == params["stop_token_ids"][0]
    if ends:
        assert as_list(ends[0]) == as_list(torch.tensor(ends[0])) == ends[:1]


def test_without_an_end_rows_are_padded_with_something() -> None:
    params, _, pad = sampling({"max_new_tokens": 3, "min_new_tokens": 2}, GenerationConfig())
    assert params["stop_token_ids"] == [] and pad == 0 and "min_tokens" not in params


@given(st.integers(1, 9), st.integers(0, 20))
def test_the_least_number_of_tokens_is_never_above_the_most(most: int, least: int) -> None:
    options = {"max_new_tokens": most, "min_new_tokens": least, "eos_token_id": 3}
    assert sampling(options, GenerationConfig())[0].get("min_tokens", 0) == min(most, least)


UNKNOWN = {
    "num_beams": 4, "no_repeat_ngram_size": 2, "bad_words_ids": [[1]], "stop_strings": ["x"], "banana": 1,
    "length_penalty": 2.0, "typical_p": 0.5, "logits_processor": [], "output_scores": True,
}  # fmt: skip


@given(st.sets(st.sampled_from(sorted(UNKNOWN)), min_size=1), st.booleans())
def test_what_vllm_does_not_have_is_refused_by_name(names: set[str], models_own: bool) -> None:
    unknown = {name: UNKNOWN[name] for name in names}
    config, options = (config_of(unknown), {}) if models_own else (GenerationConfig(), unknown)
    with pytest.raises(SteeringError, match="vLLM can't generate with") as caught:
        sampling({"max_new_tokens": 3, "temperature": 0.5, **options}, config)
    refused = str(caught.value).partition(": leave it out")[0]
    for name, value in UNKNOWN.items():
        assert (f"{name}={value!r}" in refused) == (name in names)
    assert "temperature" not in refused and "max_new_tokens" in str(caught.value), "what it takes is told"


def test_what_changes_nothing_is_let_through() -> None:
    usual = {
        name: value for name, value in GenerationConfig._get_default_generation_params().items()
        if name not in DEFAULTS and value is not None
    }  # fmt: skip
    idle = usual | {"use_cache": False, "return_dict_in_generate": False, "output_scores": False, "banana": False}
    assert len(usual) > 5
    assert sampling({"max_new_tokens": 3, **idle}, GenerationConfig()) == sampling(
        {"max_new_tokens": 3}, GenerationConfig()
    )


def test_settings_that_are_given_as_a_whole_stand_in_for_the_models() -> None:
    model, own = GenerationConfig(eos_token_id=2, do_sample=True, temperature=0.2), GenerationConfig(eos_token_id=9)
    params, _, _ = sampling({"generation_config": own, "max_new_tokens": 3}, model)
    assert params["stop_token_ids"] == [9] and params["temperature"] == 0.0


def test_copies_need_a_draw_and_rows_need_a_length() -> None:
    asked = {"max_new_tokens": 3, "num_return_sequences": 4}
    assert sampling(asked | {"do_sample": True}, GenerationConfig())[1] == 4
    with pytest.raises(SteeringError, match="num_return_sequences=4 without do_sample=True"):
        sampling(asked, GenerationConfig())
    for length in ({}, {"max_new_tokens": None}, {"max_new_tokens": 0}, {"max_length": 30}):
        with pytest.raises(SteeringError, match="give max_new_tokens"):
            sampling(length, GenerationConfig())


def test_seeds_come_from_the_callers_random_state() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first, then = seeds(5), seeds(5)
        torch.manual_seed(3)
        assert seeds(5) == first != then
    assert len(set(first + then)) == 10 and all(0 <= seed < 2**31 for seed in first)
