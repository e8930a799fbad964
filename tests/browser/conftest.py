"""A headless Chromium, and pages opened in it; every address that a page asks for is noted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import HOW, WIDE, find_chromium
from page_data import sweep_frames
from playwright import sync_api

from steerlab import plots


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    path = find_chromium()
    if path is None:
        pytest.skip(f"no Chromium was found: {HOW}")
    with sync_api.sync_playwright() as running:
        started = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """`open_page(address, size=WIDE, scheme="light", **options)`: the page, with its errors and requests."""
    opened = []

    def go(address: str, size: tuple[int, int] = WIDE, scheme: str = "light", **options: Any) -> Any:
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, **options)
        opened.append(context)
        page = context.new_page()
        page.errors, page.requested = [], []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda note: page.errors.append(note.text) if note.type in ("error", "warning") else None)
        page.on("request", lambda request: page.requested.append(request.url))
        page.goto(address)
        return page

    yield go
    for context in opened:
        context.close()


@pytest.fixture(scope="session")
def file_address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved page of two methods, two layers, five strengths and three prompts."""
    labels = {"pirate": "share of pirate answers", "kl": "KL to the unsteered model, nats per token"}
    page = plots.page(*sweep_frames(), labels=labels)
    return Path(page.save(tmp_path_factory.mktemp("page") / "page.html")).as_uri()
