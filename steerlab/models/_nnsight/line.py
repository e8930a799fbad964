"""A server and how to talk to it: small questions, patience, and what is counted."""

from __future__ import annotations

import random
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, TypeVar

import httpx

from steerlab._support import progress
from steerlab._support.errors import RemoteError
from steerlab.models._nnsight import failures

T = TypeVar("T")
COMPARED = ("nnsight", "transformers", "torch")
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

    def patiently(self, attempt: Callable[[], T]) -> T:
        """Try until it works, with growing pauses, as long as failures may pass and patience lasts.

        Raises:
            RemoteError: the last failure.
        """
        begun, starts = time.monotonic(), 0
        for number in range(sys.maxsize):
            try:
                return attempt()
            except RemoteError as error:
                pause = min(0.25 * 2**number, 15.0) * random.uniform(0.7, 1.3)
                starts += error.kind == "model"
                if not error.passing or time.monotonic() - begun + pause > self.patience or starts == STARTS:
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
        there = self.patiently(lambda: self.ask("/env"))["packages"]
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
