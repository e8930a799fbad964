"""The page as an anywidget: the module of the page in a notebook, its questions answered by the kernel."""

from __future__ import annotations

import threading
from typing import Any

import anywidget
import traitlets

from steerlab.live.answers import Answers
from steerlab.plots.page.document import asset


class PageWidget(anywidget.AnyWidget):
    """A page in a notebook.

    Args:
        answers: of a loaded model.
    """

    _esm = asset("page.js")
    _css = asset("page.css")
    page = traitlets.Dict().tag(sync=True)
    live = traitlets.Bool(False).tag(sync=True)

    def __init__(self, answers: Answers) -> None:
        super().__init__(page=answers.page(), live=True)
        self.answers = answers
        self._called_off: dict[str, threading.Event] = {}
        self.on_msg(self._on_message)

    def _on_message(self, _: Any, message: Any, buffers: Any) -> None:
        """Answer a request in a thread of its own, so that the kernel stays free; `{"cancel": id}` calls one off."""
        if "cancel" in message:
            if event := self._called_off.get(message["cancel"]):
                event.set()
            return
        called_off = self._called_off[message["id"]] = threading.Event()
        threading.Thread(target=self._answer, args=(message, called_off), daemon=True).start()

    def _answer(self, message: Any, called_off: threading.Event) -> None:
        for event in self.answers.answer(message["request"], called_off.is_set):
            self.send({"id": message["id"], "event": event})
        self.send({"id": message["id"], "event": None})
        del self._called_off[message["id"]]
