"""The two live doors of the page, whose packages are imported when one is opened: a notebook and a local server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from steerlab._support.extras import require
from steerlab.analysis.sweep import Methods
from steerlab.data.inputs import Data
from steerlab.live.answers import PROMPTS, STRENGTHS, Answers
from steerlab.models.model import Model
from steerlab.models.positions import Positions


def widget(
    model: Model, steerers: Methods, *, prompts: Data = PROMPTS, alphas: Sequence[float] = STRENGTHS,
    positions: Positions = "last+generated", max_new_tokens: int = 48, sweep_map: bool = False,
    folder: str | Path | None = None,
) -> Any:  # fmt: skip
    """The page in a notebook, live on a loaded model: texts are made when you move the slider or type a prompt.

    Example:
        >>> steerlab.live.widget(model, {"pirate": vector}, prompts=["Who are you?"])

    Args:
        model: from `steerlab.load`, in this process.
        steerers: fitted: a Steerer, vectors by layer, several in a list or by name, or `{name: {layer: Steerer}}`; {}
            for the model as it is.
        prompts: what the picker offers.
        alphas: the strengths of the slider; 0 is added.
        positions: where the vectors are added.
        max_new_tokens: length of a text.
        sweep_map: write the texts of all prompts, layers and strengths first: the page then has the map and the
            frontier of `page_of`.
        folder: where the texts of the map are kept; a second call goes on from there.

    Returns:
        An `anywidget.AnyWidget`; the last line of a cell shows it.

    Raises:
        MismatchError: a vector was fitted on another model. LoadError: `steerlab[page]` is not installed.
    """
    notebook = _door("notebook", "anywidget")
    return notebook.PageWidget(Answers(model, steerers, prompts, alphas, positions, max_new_tokens, sweep_map, folder))


def serve(
    model: Model, steerers: Methods, *, prompts: Data = PROMPTS, alphas: Sequence[float] = STRENGTHS,
    positions: Positions = "last+generated", max_new_tokens: int = 48, sweep_map: bool = False,
    folder: str | Path | None = None, port: int = 0, open_browser: bool = False,
    on_ready: Callable[[str], object] | None = None,
) -> None:  # fmt: skip
    """Serve the page to this machine until Ctrl-C; answers are shown while the model writes them.

    The server listens on the loopback alone, and answers only requests that have the token of its address.

    Example:
        >>> steerlab.live.serve(model, {"pirate": vector}, open_browser=True)

    Args:
        model, steerers, prompts, alphas, positions, max_new_tokens, sweep_map, folder: as in
            `widget`.
        port: 0 takes a free one.
        open_browser: open the page in the default browser.
        on_ready: called with the address; None: it is written to the standard error.

    Raises:
        RemoteError: the port is in use. MismatchError: a vector was fitted on another model. LoadError:
            `steerlab[page]` is not installed.
    """
    server = _door("server", "starlette", "uvicorn")
    answers = partial(Answers, model, steerers, prompts, alphas, positions, max_new_tokens, sweep_map, folder)
    server.run_server(answers, port, open_browser, on_ready)


def _door(name: str, *packages: str) -> Any:
    require("a live page", "page", *packages)
    return import_module(f"steerlab.live.{name}")
