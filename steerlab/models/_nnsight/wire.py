"""How a traced block gets to a server and its values back: one request, retried where that is safe.

Every request of ours only reads the model, so repeating one can't do anything twice. A job whose connection broke is
simply sent again, with growing pauses, until `retry_timeout` seconds have gone by since it was first sent.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from typing import Any

import httpx
import websocket
from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status

from steerlab._support import progress
from steerlab._support.errors import RemoteError
from steerlab.models._nnsight import errors
from steerlab.models._nnsight.client import ServerClient, client_versions, detail_of

LOST = (websocket.WebSocketException, OSError, EOFError)
LISTEN = 1.0  # seconds between looks at whether the server still lives
SILENCE = 20.0  # seconds without a word after which it is asked


class NdifBackend(RemoteBackend):
    """Sends one traced block; nnsight's own back end with our retries, messages and counts."""

    def __init__(self, client: ServerClient, model_key: str, env: dict[str, Any]) -> None:
        super().__init__(model_key, host=client.host, api_key=client.key, env=env)
        self.client = client
        self.compress = False  # the bulk is floats, which hardly shrink: that would only cost time on both sides
        self.display.enabled = False  # our bars say how it goes

    def request(self, request: RequestModel, tracer: Any) -> Any:
        """Send, wait and fetch; again where the failure may pass."""
        blob = self._packed(tracer)
        return self.client.with_retries(lambda: self._once(request, blob))

    def _packed(self, tracer: Any) -> bytes:
        try:
            return bytes(self._serialize(tracer))
        except (TypeError, AttributeError, ValueError, OSError, RecursionError) as error:
            raise errors.cannot_travel(error, "what this method computes inside the model") from error

    def _once(self, request: RequestModel, blob: bytes) -> Any:
        self.client.traffic.requests += 1
        header = {"ndif-api-key": self.api_key} if self.api_key else None
        try:
            connection = websocket.create_connection(f"{self.ws_host}/subscribe", header=header, timeout=10.0)
        except LOST as error:
            raise errors.unreachable(self.host, error) from error
        try:
            request.session_id = json.loads(connection.recv())["session_id"]
            self._sent(request, blob)
            return self._answer(connection)
        except LOST as error:
            raise errors.lost(self.host, error) from error
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
            raise errors.lost(self.host, error) from error
        if answer.status_code != 200:
            raise errors.of_status(answer.status_code, detail_of(answer), self.host, client_versions())
        self.client.traffic.sent += len(blob)

    def _answer(self, connection: websocket.WebSocket) -> Any:
        connection.settimeout(LISTEN)
        heard = asked = time.monotonic()
        running = False
        while True:
            try:
                message = connection.recv()
            except websocket.WebSocketTimeoutException:
                now = time.monotonic()
                if running and now - heard > self.client.retry_timeout:  # a worker can hang where no time limit reaches
                    raise errors.silent(self.host, self.client.retry_timeout) from None
                if now - asked > SILENCE:
                    self.client.ask("/connected", 10.0)  # raises if the server is gone
                    asked = now
                continue
            heard = asked = time.monotonic()
            response = self.parse(message)
            running = running or response.status == Status.RUNNING
            self._report(response)
            if response.status == Status.ERROR:
                raise self._failed(response.description)
            if response.status == Status.COMPLETED:
                return self._fetched(response)

    def _fetched(self, response: ResponseModel) -> Any:
        try:
            return self.download_result(response.data)
        except httpx.HTTPError as error:
            raise errors.lost(self.host, error) from error

    def finalize(self, content: bytes) -> Any:
        """The values, from the bytes of a result."""
        self.client.traffic.received += len(content)
        return super().finalize(content)

    def _report(self, response: ResponseModel) -> None:
        if response.status == Status.LOG:
            progress.note(f"{self.host}: {response.description}")
        else:
            progress.tell(f"{response.status.value.lower()} {response.description}".strip())

    def _failed(self, said: str) -> RemoteError:
        return errors.of_answer(said, self.host, self.client.model, self._deployed)

    def _deployed(self) -> list[str]:
        try:
            return self.client.deployed()
        except RemoteError:  # what was asked for is told all the same
            return []
