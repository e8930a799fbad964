"""What goes wrong between a client and a server, as our errors: what happened, and what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence

from steerlab._support.errors import RemoteError

_AGAIN = "The same call may well succeed later"
# what NDIF says, what it means, and whether the same request may succeed later
_SAID: tuple[tuple[str, str, bool, str], ...] = (
    ("exceeded the execution timeout", "time", False, "Ask for less at once: a smaller batch_size, fewer new tokens"),
    ("repository not found", "model", False, ""),
    ("could not deploy", "model", False, ""),
    ("cant_accommodate", "model", False, ""),
    ("error starting model", "model", True, ""),
    ("error submitting request", "worker", True, ""),
    ("replica was evicted", "worker", True, ""),
    ("critical server error", "worker", True, ""),
    ("payload could not be read", "travel", False, ""),
    ("model architecture on this server", "version", False, ""),
    ("no module named", "travel", False, ""),
    ("queue", "busy", True, ""),
)
_TRAVEL = (
    "What runs on a server is sent as source: it may use steerlab, torch and what the server has installed. Give "
    "load(..., travels=['your_module']) for a package of your own, or compute the vectors here and steer with them"
)


def of_status(status: int, detail: str, host: str, client: str) -> RemoteError:
    """The error for a request that the server turned down, by HTTP status and its own words."""
    said = f"{host} answered {status}: {detail}"
    mine = status < 500  # what the server says of its own trouble is not about this request
    if status in (401, 403) or (mine and "api key" in detail.lower()):
        return RemoteError(
            f"the key was refused. {said}. Set NDIF_API_KEY to a valid key (`nnsight login` keeps one)", "key"
        )
    if mine and re.search(r"\bversion", detail, re.IGNORECASE):
        return RemoteError(
            f"client and server are apart: here is {client}. {said}. Install the versions that `steerlab doctor` shows "
            "for the server",
            "version",
        )
    if status == 413:
        return RemoteError(f"the request is too large. {said}. Give a smaller batch_size", "size")
    if status in (429, 503):
        return RemoteError(f"the server takes no more requests now. {said}. {_AGAIN}", "busy", retryable=True)
    return RemoteError(f"the server could not take the request. {said}", "lost", retryable=status >= 500)


def of_answer(said: str, host: str, model: str, deployed: Callable[[], Sequence[str]]) -> RemoteError:
    """The error for a job that came back as failed, by what the server says of it.

    Args:
        said: its own words: a sentence, or a traceback of what was sent.
        host: its address.
        model: what users call the model.
        deployed: asks which models it has.
    """
    sentence, traceback, _ = said.strip().partition("Traceback (most recent call last)")
    last = said.strip().splitlines()[-1] if said.strip() else "nothing"
    for words, kind, retryable, advice in _SAID:
        if words not in sentence.lower():
            continue
        if kind == "model":
            return no_model(model, host, deployed(), sentence.strip().partition("\n")[0], retryable)
        if kind == "travel":
            return RemoteError(f"{host} could not rebuild what was sent: {last}. {_TRAVEL}", "travel")
        told = advice or (_AGAIN if retryable else "Compare versions with `steerlab doctor`")
        return RemoteError(f"{host} gave up on the job: {said.strip()} {told}", kind, retryable=retryable)
    if re.search(r"out of ?memory", last, re.IGNORECASE):
        return RemoteError(f"{host} has not enough memory for this: {last}. Give a smaller batch_size", "size")
    if traceback and re.search(r"ModuleNotFoundError|No module named", last):
        return RemoteError(f"what was sent needs a module that {host} does not have: {last}. {_TRAVEL}", "travel")
    if "does not support the context manager protocol" in last:  # of nnsight's `trace`, while another trace runs
        return RemoteError(f"{host} is still at a job that it had ended. {_AGAIN}", "worker", retryable=True)
    return RemoteError(f"the job failed on {host}: {last}\n--- the server's own words ---\n{said.strip()}", "code")


def no_model(model: str, host: str, deployed: Sequence[str], reason: str, retryable: bool = False) -> RemoteError:
    """There is no such model on the server: says which are, the most alike first."""
    near = difflib.get_close_matches(model, deployed, n=3, cutoff=0.3)
    rest = [name for name in deployed if name not in near]
    named = ", ".join([*near, *rest][:8]) or "none at the moment"
    guess = f" Did you mean {near[0]!r}?" if near else ""
    return RemoteError(
        f"{host} does not serve {model!r}: {reason.rstrip('.')}.{guess} Deployed there: {named}. "
        "`steerlab doctor` lists them",
        "model", retryable=retryable,
    )  # fmt: skip


def unreachable(host: str, error: BaseException) -> RemoteError:
    """Nothing answers."""
    return RemoteError(
        f"no server answers at {host} ({_reason(error)}). Check the address (remote='http://host:port'), the network, "
        "and whether the server runs: `steerlab doctor` asks it",
        "unreachable", retryable=True,
    )  # fmt: skip


def lost(host: str, error: BaseException) -> RemoteError:
    """The connection broke while a job was under way."""
    return RemoteError(
        f"the connection to {host} broke while a job was under way ({_reason(error)}). {_AGAIN}; with a folder "
        "(capture_to, sweep(folder=...)) it goes on where it was",
        "lost", retryable=True,
    )  # fmt: skip


def silent(host: str, seconds: float) -> RemoteError:
    """A job runs and runs."""
    return RemoteError(
        f"{host} has said nothing for {seconds:.0f} s of a job that it runs. Its worker may hang; if the job is only "
        "long, give load(..., patience=) more seconds, or ask for less at once: a smaller batch_size, fewer new tokens",
        "time",
    )


def cannot_travel(error: BaseException, what: str) -> RemoteError:
    """Something can't be put into a request at all."""
    return RemoteError(f"{what} can't be sent to a server: {_reason(error)}. {_TRAVEL}", "travel")


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}".rstrip(": ")
