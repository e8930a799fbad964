"""An HTTP client for a model server: JSON requests, retries, package versions, and counts of what was transferred."""

from __future__ import annotations

import itertools
import os
import random
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, TypeVar

import httpx
import nnsight
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_exponential

from steerlab._support import progress
from steerlab.errors import RemoteError
from steerlab.models._nnsight import errors

T = TypeVar("T")
COMPARED = ("nnsight", "transformers", "torch")
MAX_STARTS = 5  # attempts of a server to start a model: one that failed five times fails again
_backoff = wait_exponential(multiplier=0.25, exp_base=1.6, max=15)  # the last pause stays below the time waited so far


@dataclass
class Traffic:
    """Requests, retries and bytes of one client."""

    requests: int = 0
    retries: int = 0
    sent: int = 0
    received: int = 0


@dataclass
class ServerClient:
    """A client of one server.

    Attributes:
        host: the server's address, http:// or https://.
        key: API key, or None.
        retry_timeout: seconds for which a request is repeated after failures that may be temporary, and for which a
            running job may send no message.
        model: the user's name of the model, for messages.
        traffic: what was sent and received so far.
    """

    host: str
    key: str | None = None
    retry_timeout: float = 300.0
    model: str = ""
    traffic: Traffic = field(default_factory=Traffic)

    def get_json(self, path: str, timeout: float = 60.0) -> Any:
        """The JSON answer to a GET request.

        Raises:
            RemoteError: no server answers, it rejects the request, or its answer is not JSON.
        """
        headers = {"ndif-api-key": self.key} if self.key else None
        try:
            with httpx.Client(timeout=httpx.Timeout(5.0, read=timeout)) as client:
                response = client.get(f"{self.host}{path}", headers=headers)
        except (httpx.LocalProtocolError, UnicodeError):  # the original error shows the key
            raise RemoteError(
                f"the API key for {self.host} cannot be sent: it contains white space or characters beyond ASCII. Set "
                "its environment variable again",
                "key",
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise errors.unreachable(self.host, error) from error
        if response.status_code != 200:
            raise errors.http_error(response, self.host, client_versions())
        try:
            return response.json()
        except ValueError as error:
            raise RemoteError(f"{self.host} is another kind of server: {path} is not JSON", "connection") from error

    def with_retries(self, attempt: Callable[[], T]) -> T:
        """The result of `attempt`, repeated with growing pauses after retryable failures, up to `retry_timeout`.

        Raises:
            RemoteError: the last failure.
        """
        starts = itertools.count(1)

        def retryable(error: BaseException) -> bool:
            if not isinstance(error, RemoteError) or not error.retryable:
                return False
            return error.kind != "model" or next(starts) < MAX_STARTS

        return Retrying(
            retry=retry_if_exception(retryable),
            wait=lambda state: _backoff(state) * random.uniform(0.7, 1.3),
            stop=stop_before_delay(self.retry_timeout),
            before_sleep=self._report_retry,
            reraise=True,
        )(attempt)

    def _report_retry(self, state: RetryCallState) -> None:
        error, pause = state.outcome.exception() if state.outcome else None, state.upcoming_sleep
        assert isinstance(error, RemoteError)
        self.traffic.retries += 1
        progress.set_status(f"{error.kind}, retrying in {pause:.0f} s")
        progress.log_line(f"{self.host}: {str(error).partition('. ')[0]}; retrying in {pause:.1f} s")

    def check_versions(self) -> None:
        """Compare the packages that traces depend on; warn of small differences.

        Raises:
            RemoteError: the server has another minor version of nnsight or transformers.
        """
        self.get_json("/ping", 10.0)  # without retries: an address that nobody answers fails at once
        different = [pair for pair in compare_versions(self.with_retries(self.packages)) if pair.differs]
        listed = ", ".join(map(str, different))
        if any(pair.incompatible for pair in different):
            raise RemoteError(
                f"client and server have different versions: {listed} ({self.host}). Install the server's here",
                "version",
            )
        if different:
            warnings.warn(
                f"{self.host} has other versions: {listed}. Results may differ in the last digits", stacklevel=2
            )

    def packages(self) -> dict[str, object]:
        """The server's packages and their versions."""
        return self._get_dict("/env", "packages")

    def deployed(self) -> list[str]:
        """The names of the models that the server has in memory."""
        found = self._get_dict("/status", "deployments")
        return sorted(
            {str(d.get("repo_id", name)) for name, d in found.items() if d.get("deployment_level") in ("HOT", "WARM")}
        )

    def _get_dict(self, path: str, key: str) -> dict[str, Any]:
        answer = self.get_json(path)
        found = answer.get(key) if isinstance(answer, dict) else None
        if not isinstance(found, dict):
            raise RemoteError(f"{self.host} is no NDIF server, or an old one: {path} has no {key!r}", "connection")
        return found


@dataclass(frozen=True)
class VersionPair:
    """The versions of one package here and on the server; "none" where it is not installed."""

    name: str
    here: str
    there: str

    def __str__(self) -> str:
        return f"{self.name} {self.here} here and {self.there} there"

    @property
    def differs(self) -> bool:
        """Whether the versions differ; builds of one version (2.11.0+cpu) do not."""
        return public_version(self.here) != public_version(self.there)

    @property
    def incompatible(self) -> bool:
        """Whether a trace written here may not run there: another minor version of nnsight or transformers."""
        return self.name != "torch" and _minor_version(self.here) != _minor_version(self.there)


def ndif_key() -> str | None:
    """The key for NDIF: NDIF_API_KEY, or the one that `nnsight login` stored."""
    return os.environ.get("NDIF_API_KEY") or nnsight.CONFIG.API.APIKEY or None


def compare_versions(packages: Mapping[str, object]) -> list[VersionPair]:
    """The versions of the packages that traces depend on, here and among a server's packages."""
    return [VersionPair(name, version(name), str(packages.get(name) or "none")) for name in COMPARED]


def public_version(number: str) -> str:
    """A version without the suffix of its build."""
    return number.partition("+")[0]


def _minor_version(number: str) -> list[str]:
    return public_version(number).split(".")[:2]


def client_versions() -> str:
    """The versions of this side, for messages."""
    return ", ".join(f"{name} {version(name)}" for name in COMPARED)
