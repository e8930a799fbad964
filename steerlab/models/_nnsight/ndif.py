"""The engine for a model on an NDIF server: the traces of `traces.py`, sent as source and run there.

One engine call is one request: a session that holds the trace. Back come the selected values and the statistics of the
edits, nothing else. A request only reads the model, so a request that failed on its way can be sent again.
"""

from __future__ import annotations

import copy
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import httpx
import nnsight
import torch
import websocket
from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from steerlab._support import progress
from steerlab.errors import LayoutError, RemoteError, SteeringError
from steerlab.models._nnsight import errors, traces
from steerlab.models._nnsight.client import ServerClient, client_versions
from steerlab.models._nnsight.traces import BlockEnvoy, make_visits, stack_sites
from steerlab.models.engine import FULL_FORWARD, Inputs, LogitsReducer, StateSelector, forward_inputs, identity
from steerlab.models.interventions import SiteEdits
from steerlab.models.kv_prefix import ForwardState, Prefix
from steerlab.models.layout import Layout, blocks
from steerlab.models.sites import Site
from steerlab.models.versions import forward_options, forward_parameters

CONNECTION_ERRORS = (websocket.WebSocketException, OSError, EOFError)
POLL = 1.0  # seconds to wait for one message
SILENCE = 20.0  # seconds without a message after which the server is asked whether it is up


class NdifEngine:
    """Runs traces on an NDIF server; the model in this process is a skeleton without weights.

    Args:
        hf: the skeleton, on the meta device.
        tokenizer: its tokenizer.
        layout: the paths of its blocks.
        client: the client of the server.
        repo_id: the server's name of the model: a hub id, or a folder that it can read.
        revision: of the weights on the hub.
        ship_packages: the user's own packages whose source is sent along.
        options: for nnsight's reading of the configuration, e.g. `trust_remote_code`.
    """

    supports_forward_state = False

    def __init__(
        self, hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, layout: Layout, client: ServerClient,
        repo_id: str, revision: str | None = None, ship_packages: Sequence[str] = (),
        options: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        for package in ("steerlab", *ship_packages):
            nnsight.register(package)  # installed packages are not sent otherwise
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._root = nnsight.TransformersModel(  # with a skeleton of its own: it would move one that it is given
                repo_id, revision=revision, task="text-generation", tokenizer=copy.deepcopy(tokenizer),
                envoys={type(blocks(hf, layout)[0]): BlockEnvoy}, config=hf.config, **(options or {}),
            )  # fmt: skip
        self._layout, self._hf, self.client = layout, hf, client
        self._takes_position_ids = "position_ids" in forward_parameters(hf)
        self.in_process: bool | None = None  # whether requests run in the model's process; known after `check`
        key = json.dumps({"repo_id": repo_id, "revision": revision, "task": "text-generation"})
        self._model_key = f"nnsight.modeling.transformers.TransformersModel:{key}"

    def capture_states(
        self, inputs: Inputs, edits: SiteEdits, sites: Sequence[Site], select: StateSelector,
        forward_state: ForwardState = FULL_FORWARD,
    ) -> Tensor:  # fmt: skip
        """See `Engine.capture_states`: `select` runs on the server."""
        visits = make_visits(self._layout, edits, sites, select)
        errors.check_supported(edits, self.client.host, forward_state)
        end = inputs["attention_mask"].shape[-1]
        given = forward_inputs(self._hf, inputs)
        return stack_sites(self._run(edits, traces.capture_states, given, visits, end), visits, sites)

    def generate(self, inputs: Inputs, edits: SiteEdits, **options: Any) -> Tensor:
        """See `Engine.generate`."""
        visits, do_sample = make_visits(self._layout, edits), options.get("do_sample")
        if do_sample and self.in_process is False:
            warnings.warn(
                f"{self.client.host} runs requests in a process of their own, where sampling cannot be seeded: the "
                "texts are not reproducible. Use do_sample=False for reproducible texts",
                stacklevel=5,
            )
        rng_state = torch.get_rng_state() if do_sample else None
        ids, steps, rng_state = self._run(edits, traces.generate, inputs, visits, options, rng_state)
        if do_sample:
            torch.set_rng_state(rng_state)
        n_new = ids.shape[1] - inputs["input_ids"].shape[1]
        if visits and steps < n_new:
            raise SteeringError(
                f"the server generated {n_new} tokens but only {steps} steps were steered; the blocks at "
                f"{self._layout.blocks_path!r} are not run in order"
            )
        return torch.as_tensor(ids)

    def logits(
        self, inputs: Inputs, edits: SiteEdits, keep: int | Tensor, forward_state: ForwardState = FULL_FORWARD,
        reduce: LogitsReducer = identity,
    ) -> Any:  # fmt: skip
        """See `Engine.logits`: `reduce` runs on the server."""
        errors.check_supported(edits, self.client.host, forward_state)
        visits, end = make_visits(self._layout, edits), inputs["attention_mask"].shape[-1]
        return self._run(edits, traces.logits, forward_inputs(self._hf, inputs, keep), visits, keep, end, reduce)

    def prefill(self, inputs: Inputs, share_beginning: bool = True, joined: bool = False) -> Prefix:
        """Refused: keys and values stay on the server."""
        raise RemoteError("keys and values of a prompt cannot be kept between requests", "unsupported")

    def check(self, ids: Tensor) -> None:
        """Compare the blocks' states with the model's `hidden_states` on the server, except those of the last block,
        which come after the final norm.

        Raises:
            LayoutError: a block's state differs.
            RemoteError: the server or the connection fails.
        """
        sites = [Site(k) for k in range(len(blocks(self._hf, self._layout)) - 1)]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        inputs |= forward_options(self._hf, use_cache=False)
        visits = make_visits(self._layout, {}, sites)
        differences, self.in_process = self._run({}, traces.residual_errors, inputs, visits)
        for k, difference in enumerate(differences):
            if not difference <= 1e-5:
                raise LayoutError(
                    f"block {k} at {self._layout.blocks_path!r} does not output the residual stream: it differs from "
                    f"hidden_states[{k + 1}] by {difference:.3g}. Give load(..., blocks='dotted.path')"
                )

    def _run(self, edits: SiteEdits, trace: Callable[..., Any], inputs: Inputs, *arguments: Any) -> Any:
        """The result of one function of `traces.py` on the server; copies the statistics of the edits back."""
        errors.check_supported(edits, self.client.host)
        flat = [edit for at_site in edits.values() for edit in at_site]
        pending, sites = traces.unresolved(edits)
        whole = forward_inputs(self._hf, self._with_position_ids(inputs))
        before = (whole, make_visits(self._layout, {}, sites), pending)
        backend = NdifBackend(self.client, self._model_key)
        found, stats = _session(self._root, backend, trace, (inputs, *arguments), flat, before)
        for edit, (writes, ratio, columns) in zip(flat, stats, strict=True):
            edit.stats.writes, edit.stats.ratio, edit.stats.columns = writes, ratio, columns
        return found

    def _with_position_ids(self, inputs: Inputs) -> Inputs:
        """Inputs of a plain forward: `generate` counts positions itself, so its inputs may lack them."""
        if not self._takes_position_ids or "position_ids" in inputs:
            return inputs
        return inputs | {"position_ids": (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)}


def _session(
    root: Any, backend: NdifBackend, trace: Callable[..., Any], arguments: Any, edits: Sequence[Any], before: Any
) -> Any:
    resolve_vectors = traces.resolve_vectors
    with root.session(backend=backend):
        if before[2]:
            resolve_vectors(root, *before)
        found = trace(root, *arguments)
        answer = nnsight.save([found, [(e.stats.writes, e.stats.ratio, e.stats.columns) for e in edits]])
    return answer


class NdifBackend(RemoteBackend):
    """Sends one trace and waits for its result: nnsight's backend with retries, error messages and counts."""

    def __init__(self, client: ServerClient, model_key: str) -> None:
        super().__init__(model_key, host=client.host, api_key=client.key)
        self.client = client
        self.compress = False  # floats hardly shrink: compression would only take time on both sides
        self.display.enabled = False  # steerlab's progress bars show the status

    def request(self, request: RequestModel, tracer: Any) -> Any:
        """Send the request and wait for its result; repeated after retryable failures."""
        try:
            blob = bytes(self._serialize(tracer))
        except (TypeError, AttributeError, ValueError, OSError, RecursionError) as error:
            raise errors.not_serializable(error) from error
        return self.client.with_retries(lambda: self._attempt(request, blob))

    def _attempt(self, request: RequestModel, blob: bytes) -> Any:
        self.client.traffic.requests += 1
        header = {"ndif-api-key": self.api_key} if self.api_key else {}
        try:
            connection = websocket.create_connection(f"{self.ws_host}/subscribe", header=header, timeout=10.0)
        except CONNECTION_ERRORS as error:
            raise errors.unreachable(self.host, error) from error
        try:
            request.session_id = json.loads(connection.recv())["session_id"]
            self._upload(request, blob, header)
            return self._wait(connection)
        except (*CONNECTION_ERRORS, httpx.HTTPError) as error:
            raise errors.connection_lost(self.host, error) from error
        finally:
            connection.close()

    def _upload(self, request: RequestModel, blob: bytes, header: dict[str, str]) -> None:
        headers = {"nnsight-version": version("nnsight"), "python-version": sys.version}
        headers |= {"ndif-timestamp": repr(time.time())} | header
        files = {"blob": ("request", blob, "application/octet-stream")}
        with httpx.Client(timeout=httpx.Timeout(10.0, read=120.0)) as client:
            response = client.post(
                f"{self.host}/request", data={"data": request.metadata()}, files=files, headers=headers
            )
        if response.status_code != 200:
            raise errors.http_error(response, self.host, client_versions())
        self.client.traffic.sent += len(blob)

    def _wait(self, connection: websocket.WebSocket) -> Any:
        connection.settimeout(POLL)
        last_message = last_check = time.monotonic()
        running = False
        while True:
            try:
                message = connection.recv()
            except websocket.WebSocketTimeoutException:
                now = time.monotonic()
                if running and now - last_message > self.client.retry_timeout:  # a worker may hang beyond its limit
                    raise errors.no_progress(self.host, self.client.retry_timeout) from None
                if now - last_check > SILENCE:
                    self.client.get_json("/connected", 10.0)  # raises if the server is gone
                    last_check = now
                continue
            last_message = last_check = time.monotonic()
            response = self.parse(message)
            running = running or response.status == Status.RUNNING
            self._report(response)
            if response.status == Status.ERROR:
                raise errors.job_error(response.description, self.host, self.client.model, self._deployed)
            if response.status == Status.COMPLETED:
                return self.download_result(response.data)

    def finalize(self, content: bytes) -> Any:
        """The saved values, from the bytes of a result."""
        self.client.traffic.received += len(content)
        return super().finalize(content)

    def _report(self, response: ResponseModel) -> None:
        if response.status == Status.LOG:
            progress.log_line(f"{self.host}: {response.description}")
        else:
            progress.set_status(f"{response.status.value.lower()} {response.description}".strip())

    def _deployed(self) -> list[str]:
        try:
            return self.client.deployed()
        except RemoteError:  # the job's own error matters more
            return []
