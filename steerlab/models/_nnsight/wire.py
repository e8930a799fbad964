"""How a traced block gets to a server and its values back: one request, retried where that is safe.

Every request of ours only reads the model, so repeating one can't do anything twice. A job whose connection broke is
simply sent again, with growing pauses, until `patience` seconds have gone by since it was first sent.
"""

from __future__ import annotations

import json
import random
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import httpx
import websocket
from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status

from steerlab._support import progress
from steerlab._support.errors import RemoteError
from steerlab.models._nnsight import failures

LOST = (websocket.WebSocketException, OSError, EOFError)
COMPARED = ("nnsight", "transformers", "torch")
LISTEN = 1.0  # seconds between looks at whether the server still lives
SILENCE = 20.0  # seconds without a word after which it is asked


@dataclass
class Traffic:
    """What went over the wire: requests and bytes."""

    requests: int = 0
    retries: int = 0
    sent: int = 0
    received: int = 0
    seconds: float = 0.0


@dataclass
class Line:
    """A server and how to talk to it.

    Attributes:
        host: its address, http:// or https://.
        key: API key, or None.
        patience: seconds for which a request is repeated after failures that may pass.
        model: what users call the model, for messages.
        traffic: what was sent and received so far.
    """

    host: str
    key: str | None = None
    patience: float = 300.0
    model: str = ""
    traffic: Traffic = field(default_factory=Traffic)

    def ask(self, path: str, seconds: float = 60.0) -> Any:
        """A small question over HTTP, answered in JSON.

        Raises:
            RemoteError: nobody answers, or not with an answer.
        """
        headers = {"ndif-api-key": self.key} if self.key else None
        try:
            with httpx.Client(timeout=httpx.Timeout(5.0, read=seconds)) as client:
                answer = client.get(f"{self.host}{path}", headers=headers)
        except httpx.HTTPError as error:
            raise failures.unreachable(self.host, error) from error
        if answer.status_code != 200:
            raise failures.of_status(answer.status_code, detail_of(answer), self.host, client_versions())
        return answer.json()

    def check_versions(self) -> None:
        """Compare the packages that decide what a block finds on the other side.

        Raises:
            RemoteError: nnsight or transformers are another minor version there; smaller differences are warned of.
        """
        there = self.ask("/env")["packages"]
        apart = {
            name: (version(name), str(there.get(name)))
            for name in COMPARED
            if plain(version(name)) != plain(str(there.get(name)))
        }
        if not apart:
            return
        told = ", ".join(f"{name} {here} here and {far} there" for name, (here, far) in apart.items())
        serious = [n for n, (here, far) in apart.items() if n != "torch" and minor(here) != minor(far)]
        if serious:
            raise RemoteError(
                f"client and server are apart: {told} ({self.host}). Install the version of the server here, or "
                "load(..., check=False) to try all the same",
                "version",
            )
        warnings.warn(f"{self.host} has other versions: {told}. Results may differ in the last digits", stacklevel=2)

    def deployed(self) -> list[str]:
        """The models that are up, by name."""
        found = self.ask("/status").get("deployments", {})
        up = {str(d.get("repo_id", name)) for name, d in found.items() if d.get("deployment_level") in ("HOT", "WARM")}
        return sorted(up)


class Wire(RemoteBackend):
    """Sends one traced block; nnsight's own back end with our retries, messages and counts."""

    def __init__(self, line: Line, model_key: str, env: dict[str, Any]) -> None:
        super().__init__(model_key, host=line.host, api_key=line.key, env=env)
        self.line = line
        self.compress = False  # the bulk is floats, which hardly shrink: that would only cost time on both sides
        self.display.enabled = False  # our bars say how it goes

    def request(self, request: RequestModel, tracer: Any) -> Any:
        """Send, wait and fetch; again where the failure may pass."""
        blob, begun = self._packed(tracer), time.monotonic()
        for attempt in range(sys.maxsize):
            try:
                self.line.traffic.requests += 1
                return self._once(request, blob)
            except RemoteError as error:
                pause = min(0.25 * 2**attempt, 15.0) * random.uniform(0.7, 1.3)
                left = self.line.patience - (time.monotonic() - begun)
                if not error.passing or left < pause:
                    raise
                self.line.traffic.retries += 1
                progress.tell(f"{error.kind}, again in {pause:.0f} s")
                progress.note(f"{self.host}: {str(error).partition('. ')[0]}; trying again in {pause:.1f} s")
                time.sleep(pause)
            finally:
                self.line.traffic.seconds = time.monotonic() - begun
        raise AssertionError("unreachable")

    def _packed(self, tracer: Any) -> bytes:
        try:
            return bytes(self._serialize(tracer))
        except (TypeError, AttributeError, ValueError, OSError, RecursionError) as error:
            raise failures.cannot_travel(error, "what this method computes inside the model") from error

    def _once(self, request: RequestModel, blob: bytes) -> Any:
        header = {"ndif-api-key": self.api_key} if self.api_key else None
        try:
            connection = websocket.create_connection(f"{self.ws_host}/subscribe", header=header, timeout=10.0)
        except LOST as error:
            raise failures.unreachable(self.host, error) from error
        try:
            request.session_id = json.loads(connection.recv())["session_id"]
            self._sent(request, blob)
            return self._answer(connection)
        except LOST as error:
            raise failures.lost(self.host, error) from error
        finally:
            connection.close()

    def _sent(self, request: RequestModel, blob: bytes) -> None:
        headers = {"nnsight-version": version("nnsight"), "python-version": sys.version}
        headers |= {"ndif-timestamp": repr(time.time())} | ({"ndif-api-key": self.api_key} if self.api_key else {})
        files = {"blob": ("request", blob, "application/octet-stream")}
        try:
            with httpx.Client(timeout=httpx.Timeout(10.0, read=120.0)) as client:
                answer = client.post(
                    f"{self.host}/request", data={"data": request.metadata()}, files=files, headers=headers
                )
        except httpx.HTTPError as error:
            raise failures.lost(self.host, error) from error
        if answer.status_code != 200:
            raise failures.of_status(answer.status_code, detail_of(answer), self.host, client_versions())
        self.line.traffic.sent += len(blob)

    def _answer(self, connection: websocket.WebSocket) -> Any:
        connection.settimeout(LISTEN)
        heard = time.monotonic()
        while True:
            try:
                message = connection.recv()
            except websocket.WebSocketTimeoutException:
                if time.monotonic() - heard > SILENCE:
                    self.line.ask("/connected", 10.0)  # raises if the server is gone
                    heard = time.monotonic()
                continue
            heard = time.monotonic()
            response = self.parse(message)
            self._report(response)
            if response.status == Status.ERROR:
                raise self._failed(response.description)
            if response.status == Status.COMPLETED:
                return self._fetched(response)

    def _fetched(self, response: ResponseModel) -> Any:
        try:
            return self.download_result(response.data)
        except httpx.HTTPError as error:
            raise failures.lost(self.host, error) from error

    def finalize(self, content: bytes) -> Any:
        """The values, from the bytes of a result."""
        self.line.traffic.received += len(content)
        return super().finalize(content)

    def _report(self, response: ResponseModel) -> None:
        if response.status == Status.LOG:
            progress.note(f"{self.host}: {response.description}")
        else:
            progress.tell(f"{response.status.value.lower()} {response.description}".strip())

    def _failed(self, said: str) -> RemoteError:
        try:
            deployed: Sequence[str] = self.line.deployed() if "Traceback" not in said else ()
        except RemoteError:
            deployed = ()
        return failures.of_answer(said, self.host, self.line.model, deployed)


def plain(number: str) -> str:
    """A version without the suffix of a build."""
    return number.partition("+")[0]


def minor(number: str) -> tuple[str, ...]:
    """The first two parts of a version."""
    return tuple(plain(number).split(".")[:2])


def detail_of(answer: httpx.Response) -> str:
    """The server's own words for what it turned down."""
    try:
        body = answer.json()
    except ValueError:
        return answer.text.strip() or answer.reason_phrase
    return str(body.get("detail", body)) if isinstance(body, dict) else str(body)


def client_versions() -> str:
    """This side, in short."""
    return ", ".join(f"{name} {version(name)}" for name in COMPARED)
