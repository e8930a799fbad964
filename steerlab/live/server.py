"""A local server for one page and one model: loopback only, with a token in its address, answers as they grow."""

from __future__ import annotations

import json
import secrets
import socket
import sys
import threading
import webbrowser
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from steerlab._support.checks import as_whole
from steerlab.errors import RemoteError
from steerlab.live.answers import Answers
from steerlab.models._nnsight.mounted import without_save
from steerlab.plots.page.document import document

HOST = "127.0.0.1"
MAX_BYTES = 2**20  # of a request


class Server:
    """The server of a page; `run` blocks until `stop` is called in another thread, or Ctrl-C.

    Args:
        answers: what the page shows and asks for.
        listening: a socket from `bind`; None: on a free port.

    Attributes:
        address: with the token, without which every request is refused.
    """

    def __init__(self, answers: Answers, listening: socket.socket | None = None) -> None:
        with without_save():  # the event loop imports what it needs; a notebook has one running in its own thread
            loading = threading.Thread(target=anyio.run, args=(anyio.sleep, 0))
            loading.start()
            loading.join()
        self._socket = listening or bind(0)
        token = secrets.token_urlsafe(16)
        self.address = f"http://{HOST}:{self._socket.getsockname()[1]}/?token={token}"
        config = uvicorn.Config(app(answers, token), log_level="warning", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)

    def run(self) -> None:
        """Serve until the end."""
        with self._socket, suppress(KeyboardInterrupt):
            self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """End `run`."""
        self._server.should_exit = True


def run_server(
    make_answers: Callable[[], Answers], port: int, open_browser: bool, on_ready: Callable[[str], object] | None
) -> None:
    """See `steerlab.live.serve`; the port is taken before the answers are made, which may write a map for an hour."""
    listening = bind(port)
    try:
        server = Server(make_answers(), listening)
    except BaseException:
        listening.close()
        raise
    (on_ready or _say)(server.address)
    if open_browser:
        webbrowser.open(server.address)
    server.run()


def app(answers: Answers, token: str) -> Starlette:
    """The page at `/`, and the answers that it asks for at `/answer`, one line of JSON for every event."""
    page = document(answers.page(), server="answer")

    def allowed(request: Request) -> bool:
        return secrets.compare_digest(request.query_params.get("token", "").encode(), token.encode())

    async def show(request: Request) -> Response:
        return HTMLResponse(page, headers=_HEADERS) if allowed(request) else _refusal()

    async def answer(request: Request) -> Response:
        if not allowed(request):
            return _refusal()
        body = await request.body()
        try:
            requested = json.loads(body) if len(body) <= MAX_BYTES else None
        except ValueError:
            requested = None
        if not isinstance(requested, Mapping):
            return PlainTextResponse(f"expected a JSON object of at most {MAX_BYTES} bytes", 400)
        return StreamingResponse(_lines(answers, requested), media_type="application/x-ndjson", headers=_HEADERS)

    routes = [Route("/", show), Route("/answer", answer, methods=["POST"])]
    # another site's page that names this machine in its own domain is refused
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])])


_HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}


async def _lines(answers: Answers, request: Mapping[str, Any]) -> AsyncIterator[str]:
    """The events of an answer; when the page goes away, the model stops after the next token."""
    gone = threading.Event()
    events: Iterator[dict[str, Any]] = answers.answer(request, gone.is_set)
    try:
        async for event in iterate_in_threadpool(events):
            yield json.dumps(event) + "\n"
    finally:
        gone.set()


def _refusal() -> Response:
    return PlainTextResponse("the token in the address is missing or wrong: open the whole address as printed", 403)


def bind(port: int) -> socket.socket:
    """A listening socket on the loopback.

    Raises:
        RemoteError: the port is in use, or needs rights; names it.
    """
    as_whole("port", port, 0, 65535)
    made = socket.socket()
    if sys.platform != "win32":  # there it would let two servers share a port
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((HOST, port))
        made.listen()
    except OSError as error:
        made.close()
        reason = error.strerror or str(error)
        raise RemoteError(
            f"port {port} can't be used ({reason}): end the program that uses it, give another port, or port=0 for a "
            "free one",
            "port",
        ) from error
    return made


def _say(address: str) -> None:
    sys.stderr.write(f"the page is at {address}\nCtrl-C ends it\n")
