"""Clients that send requests to vLLM: an engine on this machine, or an `nnsight-serve`."""

from __future__ import annotations

import importlib.util
import io
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any

import httpx
import nnsight
import torch
from nnsight.intervention.serialization import dumps, loads
from nnsight.schema.request import RequestModel
from nnsight.tracing.backend import Backend

from steerlab.errors import LoadError
from steerlab.models._nnsight import errors
from steerlab.models._nnsight.client import ServerClient, Traffic
from steerlab.models._nnsight.vllm_traces import Answer, RowRequest, run_request

CONCURRENT_REQUESTS = 64  # more wait here instead of in the server


class LocalVllm:
    """vLLM in processes of its own on this machine.

    Args:
        name: hub id or folder of the model.
        options: for vLLM.

    Attributes:
        root: nnsight's model, whose modules are vLLM's.
        name: of the engine, for messages.
        traffic: the requests so far.

    Raises:
        LoadError: vLLM is not installed, or cannot load the model.
    """

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self.name, self.traffic = "vLLM", Traffic()
        self.root = _load(name, options | {"disable_log_stats": True}, dispatch=True)
        engine = self.root.vllm_entrypoint
        engine.generate = partial(engine.generate, use_tqdm=False)  # steerlab has progress bars of its own

    def check_running(self) -> None:
        """Nothing to check: the engine runs as long as this object."""

    def run(self, rows: Sequence[RowRequest]) -> list[Answer]:
        """The answers to some requests, in order; vLLM runs as many at a time as fit in its memory."""
        self.traffic.requests += len(rows)
        try:
            return _trace(self.root, rows)
        except Exception as error:  # vLLM raises errors of many types
            raise errors.vllm_error(error, self.name) from error

    def close(self) -> None:
        """End vLLM's processes now instead of with this one."""
        self.root.vllm_entrypoint.llm_engine.engine_core.shutdown()


class ServedVllm:
    """vLLM behind an `nnsight-serve`: each row is an HTTP request.

    Args:
        name: hub id or folder of the model, of which only the configuration is read.
        host: the server's address.
        key: API key, or None.
        retry_timeout: seconds for which a request is repeated after retryable failures.
        ship_packages: the user's own packages whose source is sent along.
        options: for vLLM's reading of the configuration.

    Attributes:
        root: nnsight's model, whose modules are vLLM's.
        name: of the engine, for messages.
        traffic: what was sent and received so far.

    Raises:
        LoadError: vLLM is not installed here: requests refer to its modules.
    """

    def __init__(
        self, name: str, host: str, key: str | None, retry_timeout: float, ship_packages: Sequence[str],
        options: dict[str, Any],
    ) -> None:  # fmt: skip
        for package in ("steerlab", *ship_packages):
            nnsight.register(package)  # the server need not have it
        self._client = ServerClient(host, key, retry_timeout)
        self.name, self.traffic = host, self._client.traffic
        self.root = _load(name, options)

    def check_running(self) -> None:
        """Refuse a server that does not answer.

        Raises:
            RemoteError: no server answers, or it is still loading its model.
        """
        self._client.get_json("/health", 10.0)

    def run(self, rows: Sequence[RowRequest]) -> list[Answer]:
        """See `LocalVllm.run`."""
        self.traffic.requests += len(rows)
        blobs = [_serialize(self.root, row) for row in rows]  # not in the threads: nnsight traces in one thread only
        limits = httpx.Limits(max_connections=CONCURRENT_REQUESTS)
        with (
            httpx.Client(timeout=httpx.Timeout(10.0, read=600.0), limits=limits) as http,
            ThreadPoolExecutor(CONCURRENT_REQUESTS) as pool,
        ):
            # each in a copy of this context, so that its progress messages reach the caller's bars and jobs
            attempts = [partial(self._attempt, http, blob) for blob in blobs]
            contexts = [copy_context() for _ in blobs]
            found = list(pool.map(lambda c, attempt: c.run(self._client.with_retries, attempt), contexts, attempts))
        self.traffic.sent += sum(map(len, blobs))
        self.traffic.received += sum(size for _, size in found)
        return [answer for answer, _ in found]

    def _attempt(self, http: httpx.Client, blob: bytes) -> tuple[Answer, int]:
        headers = {"Content-Type": "application/octet-stream", "nnsight-compress": "False"}
        headers |= {"ndif-api-key": self._client.key} if self._client.key else {}
        try:
            response = http.post(f"{self.name}/v1/nnsight/generate", content=blob, headers=headers)
        except httpx.ConnectError as error:
            raise errors.unreachable(self.name, error) from error
        except httpx.HTTPError as error:
            raise errors.connection_lost(self.name, error) from error
        if response.status_code != 200:
            raise errors.serve_error(response, self.name)
        result = torch.load(io.BytesIO(response.content), map_location="cpu", weights_only=True)
        if (failed := result["error"]) is not None:
            original = RuntimeError(f"{failed['type_name']}: {failed['message']}")
            raise errors.vllm_error(original, self.name, failed["traceback"])
        return result["saves"].get("answer", {}), len(response.content)


VllmClient = LocalVllm | ServedVllm


class _Serialize(Backend):
    """Keeps the bytes of a trace instead of running it."""

    blob = b""

    def __call__(self, tracer: Any) -> None:
        self.blob = RequestModel.serialize(tracer, compress=False)


def _serialize(root: Any, row: RowRequest) -> bytes:
    backend = _Serialize()
    try:
        blob = dumps(partial(run_request, row=row))
        with root.trace(row.ids, **row.params, backend=backend):
            answer = nnsight.save({})
            loads(blob)(root, answer=answer)
    except (TypeError, AttributeError, ValueError, OSError, RecursionError) as error:
        raise errors.not_serializable(error) from error
    return backend.blob


def _trace(root: Any, rows: Sequence[RowRequest]) -> list[Answer]:
    answer: Any = None
    with root.trace() as tracer:
        for row in rows:
            with tracer.invoke(row.ids, **row.params):
                answer = nnsight.save({})
                run_request(root, row, answer)
    return [answer] if isinstance(answer, dict) else list(answer or ())


def vllm_options(given: dict[str, Any], dtype: torch.dtype, revision: str | None) -> dict[str, Any]:
    """Options of `load` under vLLM's names.

    Example:
        >>> vllm_options({"max_model_len": 512, "token": "hf_..."}, torch.float32, None)
        {'max_model_len': 512, 'hf_token': 'hf_...', 'dtype': 'float32'}

    Raises:
        LoadError: an option that transformers has and vLLM has not.
    """
    if "subfolder" in given:
        raise LoadError("vLLM cannot read a subfolder of a model: give the folder, or leave engine= and serve= out")
    names = {"token": "hf_token", "cache_dir": "download_dir"}
    renamed = {names.get(name, name): value for name, value in given.items() if name != "local_files_only"}
    renamed |= {"dtype": str(dtype).removeprefix("torch.")} | ({"revision": revision} if revision else {})
    return renamed


def _load(name: str, options: dict[str, Any], dispatch: bool = False) -> Any:
    """nnsight's model for vLLM, with a CPU worker where vLLM was built for CPUs."""
    if importlib.util.find_spec("vllm") is None:
        raise errors.vllm_missing()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from nnsight.modeling.vllm import VLLM
            from vllm.platforms import current_platform

            if current_platform.is_cpu():
                from steerlab.models._nnsight import vllm_cpu

                VLLM._WORKER_CLS = vllm_cpu.CPU_WORKER
                vllm_cpu.disable_accelerator()
            return VLLM(name, dispatch=dispatch, **options)
    except ImportError as error:
        raise errors.vllm_missing(error) from error
    except Exception as error:  # vLLM refuses options and models with errors of many types
        raise errors.vllm_load_error(name, error) from error
