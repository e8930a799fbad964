"""A server and how to talk to it: small questions, patience, and what is counted."""

from __future__ import annotations

import os
import random
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, TypeVar

import httpx
import nnsight

from steerlab._support import progress
from steerlab._support.errors import RemoteError
from steerlab.models._nnsight import errors

T = TypeVar("T")
COMPARED = ("nnsight", "transformers", "torch")
GROWTH = 1.6  # of the pauses: what is waited for too long stays well below what had to be waited for
STARTS = 5  # how often a model may fail to start: the sixth time will not be better


@dataclass
class Traffic:
    """What went over the wire: requests and bytes."""

    requests: int = 0
    retries: int = 0
    sent: int = 0
    received: int = 0
    seconds: float = 0.0


@dataclass
class ServerClient:
    """A server and how to talk to it.

    Attributes:
        host: its address, http:// or https://.
        key: API key, or None.
        retry_timeout: seconds for which a request is repeated after failures that may pass, and a running job may be
            silent.
        model: what users call the model, for messages.
        traffic: what was sent and received so far.
    """

    host: str
    key: str | None = None
    retry_timeout: float = 300.0
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
        except (httpx.LocalProtocolError, UnicodeError):  # nothing of it is told on: it shows the key
            raise RemoteError(
                f"the key for {self.host} can't be sent: there is white space around it, or a letter beyond ASCII in "
                "it. Set the variable that holds it again",
                "key",
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise errors.unreachable(self.host, error) from error
        if answer.status_code != 200:
            raise errors.of_status(answer.status_code, detail_of(answer), self.host, client_versions())
        try:
            return answer.json()
        except ValueError as error:
            raise RemoteError(f"{self.host} is some other server: it does not answer {path} in JSON", "lost") from error

    def with_retries(self, attempt: Callable[[], T]) -> T:
        """Try until it works, with growing pauses, as long as failures may pass and patience lasts.

        Raises:
            RemoteError: the last failure.
        """
        begun, starts = time.monotonic(), 0
        for number in range(sys.maxsize):
            try:
                return attempt()
            except RemoteError as error:
                pause = min(0.25 * GROWTH ** min(number, 20), 15.0) * random.uniform(0.7, 1.3)
                starts += error.kind == "model"
                if not error.retryable or time.monotonic() - begun + pause > self.retry_timeout or starts == STARTS:
                    raise
                self.traffic.retries += 1
                progress.tell(f"{error.kind}, again in {pause:.0f} s")
                progress.note(f"{self.host}: {str(error).partition('. ')[0]}; trying again in {pause:.1f} s")
                time.sleep(pause)
            finally:
                self.traffic.seconds = time.monotonic() - begun
        raise AssertionError("unreachable")

    def check_versions(self) -> None:
        """Compare the packages that decide what a block finds on the other side.

        Raises:
            RemoteError: nnsight or transformers are another minor version there; smaller differences are warned of.
        """
        self.ask("/ping", 10.0)  # whether anybody is there is told at once
        apart = [pair for pair in compared(self.with_retries(self.packages)) if pair.apart]
        if not apart:
            return
        told = ", ".join(map(str, apart))
        if any(pair.serious for pair in apart):
            raise RemoteError(
                f"client and server are apart: {told} ({self.host}). Install the version of the server here, or "
                "load(..., check=False) to try all the same",
                "version",
            )
        warnings.warn(f"{self.host} has other versions: {told}. Results may differ in the last digits", stacklevel=2)

    def packages(self) -> dict[str, object]:
        """The packages on the server and their versions.

        Raises:
            RemoteError: it does not say, so it is no NDIF server.
        """
        return self._part("/env", "packages")

    def deployed(self) -> list[str]:
        """The models that are up, by name."""
        found = self._part("/status", "deployments")
        up = {str(d.get("repo_id", name)) for name, d in found.items() if d.get("deployment_level") in ("HOT", "WARM")}
        return sorted(up)

    def _part(self, path: str, name: str) -> dict[str, Any]:
        said = self.ask(path)
        found = said.get(name) if isinstance(said, dict) else None
        if not isinstance(found, dict):
            raise RemoteError(f"{self.host} is no NDIF server, or an old one: {path} does not tell {name!r}", "lost")
        return found


@dataclass(frozen=True)
class Pair:
    """The versions of a package on both sides.

    Attributes:
        name: of the package.
        here: its version in this process.
        there: on the server; "none" where it is not installed.
    """

    name: str
    here: str
    there: str

    def __str__(self) -> str:
        return f"{self.name} {self.here} here and {self.there} there"

    @property
    def apart(self) -> bool:
        """Whether they are different versions; builds of one version are the same."""
        return plain(self.here) != plain(self.there)

    @property
    def serious(self) -> bool:
        """Whether a block may find something else there than it was written against."""
        return self.name != "torch" and minor(self.here) != minor(self.there)


def own_key() -> str | None:
    """The key for NDIF: NDIF_API_KEY, or the one that `nnsight login` keeps."""
    return os.environ.get("NDIF_API_KEY") or nnsight.CONFIG.API.APIKEY or None


def compared(packages: Mapping[str, object]) -> list[Pair]:
    """The packages that decide what a block finds on the other side, here and among those of a server."""
    return [Pair(name, version(name), str(packages.get(name) or "none")) for name in COMPARED]


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
    said = body.get("detail", body.get("error", body)) if isinstance(body, dict) else body
    return str(said or answer.reason_phrase)


def client_versions() -> str:
    """This side, in short."""
    return ", ".join(f"{name} {version(name)}" for name in COMPARED)
