"""How requests get to vLLM and their answers back: to an engine beside this process, or to an `nnsight-serve`."""

from __future__ import annotations

import importlib.util
import io
import os
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, Protocol, runtime_checkable

import httpx
import nnsight
import torch
from nnsight.intervention.serialization import dumps, loads
from nnsight.schema.request import RequestModel
from nnsight.tracing.backend import Backend

from steerlab._support.errors import LoadError
from steerlab.models._nnsight import errors
from steerlab.models._nnsight.client import ServerClient, Traffic
from steerlab.models._nnsight.vllm_errors import no_engine, no_vllm, of_block, of_http
from steerlab.models._nnsight.vllm_traces import Answer, Row, carry_out

AT_ONCE = 64  # requests under way to a server; more wait here instead of there


@runtime_checkable
class VllmClient(Protocol):
    """A way to vLLM.

    Attributes:
        root: nnsight's model; its modules are vLLM's.
        where: what messages call it.
        traffic: what was sent and received so far.
    """

    root: Any
    where: str
    traffic: Traffic

    def up(self) -> None:
        """Ask whether anybody is there."""
        ...

    def ask(self, rows: Sequence[Row]) -> list[Answer]:
        """The answers to some requests, in their order; vLLM runs as many at a time as it has room for."""
        ...


class LocalVllm:
    """vLLM on this machine, in processes of its own.

    Args:
        place: hub id or folder.
        options: for vLLM.

    Raises:
        LoadError: vLLM is not installed, or its engine does not come up.
    """

    def __init__(self, place: str, options: dict[str, Any]) -> None:
        self.where, self.traffic = "vLLM", Traffic()
        self.root = _built(place, options | {"disable_log_stats": True}, dispatch=True)
        engine = self.root.vllm_entrypoint
        engine.generate = partial(engine.generate, use_tqdm=False)  # our own bars tell how it goes

    def up(self) -> None:
        """See `VllmClient.up`: it came up with this object."""

    def ask(self, rows: Sequence[Row]) -> list[Answer]:
        """See `VllmClient.ask`."""
        begun = time.monotonic()
        try:
            answers = _traced(self.root, rows)
        except Exception as error:  # whatever vLLM raises: said in our words
            raise of_block(error, self.where) from error
        self.traffic.requests += len(rows)
        self.traffic.seconds = time.monotonic() - begun
        return answers

    def close(self) -> None:
        """End vLLM's processes now; else they end with this one."""
        self.root.vllm_entrypoint.llm_engine.engine_core.shutdown()


class ServedVllm:
    """vLLM behind an `nnsight-serve`; a row is an HTTP request of its own, many are under way at once.

    Args:
        place: hub id or folder, of which only the configuration is read.
        host: the server's address.
        key: API key, or None.
        retry_timeout: seconds for which requests are repeated after failures that may pass.
        ship_packages: names of packages of the user's own whose code goes along.
        options: for vLLM's reading of the configuration.

    Raises:
        LoadError: vLLM is not installed here: the blocks are written against its modules.
    """

    def __init__(
        self,
        place: str,
        host: str,
        key: str | None,
        retry_timeout: float,
        ship_packages: Sequence[str],
        options: dict[str, Any],
    ) -> None:
        for package in ("steerlab", *ship_packages):
            nnsight.register(package)  # the server need not have it
        self._line = ServerClient(host, key, retry_timeout)
        self.where, self.traffic = host, self._line.traffic
        self.root = _built(place, options)

    def up(self) -> None:
        """See `VllmClient.up`.

        Raises:
            RemoteError: nobody is, or the engine there is not up yet.
        """
        self._line.ask("/health", 10.0)

    def ask(self, rows: Sequence[Row]) -> list[Answer]:
        """See `VllmClient.ask`."""
        begun = time.monotonic()
        blobs = [_packed(self.root, row) for row in rows]  # one after the other: traces are not for several threads
        with (
            httpx.Client(timeout=httpx.Timeout(10.0, read=600.0), limits=httpx.Limits(max_connections=AT_ONCE)) as http,
            ThreadPoolExecutor(AT_ONCE) as pool,
        ):  # a request only reads the model, so one that failed on the way can be sent again
            heard = [copy_context() for _ in blobs]  # bars and jobs hear of what the pool's threads wait for
            asked = [partial(self._once, http, blob) for blob in blobs]
            found = list(pool.map(lambda own, once: own.run(self._line.with_retries, once), heard, asked))
        self.traffic.requests += len(rows)
        self.traffic.sent += sum(map(len, blobs))
        self.traffic.received += sum(size for _, size in found)
        self.traffic.seconds = time.monotonic() - begun
        return [answer for answer, _ in found]

    def _once(self, http: httpx.Client, blob: bytes) -> tuple[Answer, int]:
        headers = {"Content-Type": "application/octet-stream", "nnsight-compress": "False"}
        headers |= {"ndif-api-key": self._line.key} if self._line.key else {}
        try:
            answer = http.post(f"{self.where}/v1/nnsight/generate", content=blob, headers=headers)
        except httpx.ConnectError as error:
            raise errors.unreachable(self.where, error) from error
        except httpx.HTTPError as error:
            raise errors.lost(self.where, error) from error
        if answer.status_code != 200:
            raise of_http(answer, self.where)
        found = torch.load(io.BytesIO(answer.content), map_location="cpu", weights_only=False)
        if (wrong := found["error"]) is not None:
            raise of_block(RuntimeError(f"{wrong['type_name']}: {wrong['message']}"), self.where, wrong["traceback"])
        return found["saves"].get("answer", {}), len(answer.content)


class _Keep(Backend):
    """Takes a trace's bytes and runs nothing."""

    blob = b""

    def __call__(self, tracer: Any) -> None:
        self.blob = RequestModel.serialize(tracer, compress=False)


def _packed(root: Any, row: Row) -> bytes:
    kept = _Keep()
    try:
        blob = dumps(partial(carry_out, row=row))
        with root.trace(row.ids, **row.params, backend=kept):
            answer = nnsight.save({})
            loads(blob)(root, answer=answer)
    except (TypeError, AttributeError, ValueError, OSError, RecursionError) as error:
        raise errors.cannot_travel(error, "what this method computes inside the model") from error
    return kept.blob


def _traced(root: Any, rows: Sequence[Row]) -> list[Answer]:
    answer: Any = None
    with root.trace() as tracer:
        for row in rows:
            with tracer.invoke(row.ids, **row.params):
                answer = nnsight.save({})
                carry_out(root, row, answer)
    return [answer] if isinstance(answer, dict) else list(answer or ())


def options_of(given: dict[str, Any], dtype: torch.dtype, revision: str | None) -> dict[str, Any]:
    """What `load` was given, in vLLM's words.

    Example:
        >>> options_of({"max_model_len": 512, "token": "hf_..."}, torch.float32, None)
        {'max_model_len': 512, 'hf_token': 'hf_...', 'dtype': 'float32'}

    Raises:
        LoadError: an option that transformers has and vLLM has not.
    """
    if "subfolder" in given:
        raise LoadError("vLLM reads no subfolder of a model: give the folder itself, or leave engine= and serve= out")
    known = {"token": "hf_token", "cache_dir": "download_dir"}
    named = {known.get(name, name): value for name, value in given.items() if name != "local_files_only"}
    named |= {"dtype": str(dtype).removeprefix("torch.")} | ({"revision": revision} if revision else {})
    return named


def _built(place: str, options: dict[str, Any], dispatch: bool = False) -> Any:
    """nnsight's model for vLLM, with a CPU worker where vLLM was built for CPUs."""
    if importlib.util.find_spec("vllm") is None:
        raise no_vllm()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from nnsight.modeling.vllm import VLLM
            from vllm.platforms import current_platform

            if current_platform.is_cpu():
                from steerlab.models._nnsight.vllm_cpu import CPU_WORKER, without_accelerator

                VLLM._WORKER_CLS = CPU_WORKER
                without_accelerator()
            return VLLM(place, dispatch=dispatch, **options)
    except ImportError as error:
        raise no_vllm(error) from error
    except Exception as error:  # vLLM refuses options and models with many kinds of errors
        raise no_engine(place, error) from error
