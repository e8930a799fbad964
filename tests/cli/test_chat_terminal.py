"""`steerlab chat` in a real terminal, driven by tmux: the strength changes in mid-talk, Ctrl-C keeps the talk."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import steerlab

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed: apt-get install tmux")
SECONDS = 60  # until something appears; the machine may be busy


class Terminal:
    """A terminal of 100 columns and 16 lines that runs `steerlab chat`, on a tmux server of its own."""

    def __init__(self, folder: Path, arguments: str) -> None:
        self._tmux = ["tmux", "-S", str(folder / "tmux.socket"), "-f", "/dev/null"]
        shell = f"{sys.executable} -m steerlab.cli chat {arguments}; echo status $?; cat"
        self._call("new-session", "-d", "-x", "100", "-y", "16", "-c", str(folder), shell)

    def _call(self, *arguments: str) -> str:
        return subprocess.run([*self._tmux, *arguments], capture_output=True, text=True, check=True).stdout

    def type(self, line: str) -> None:
        """Type a line and Enter."""
        self._call("send-keys", "-l", line)
        self._call("send-keys", "Enter")

    def press(self, key: str) -> None:
        self._call("send-keys", key)

    def screen(self) -> str:
        """All that was shown."""
        return self._call("capture-pane", "-p", "-S", "-200")

    def wait(self, *words: str, after: str = "") -> str:
        """The screen once it shows all words below the last line with `after`."""
        end = time.time() + SECONDS
        while time.time() < end:
            shown = self.screen().rpartition(after)[2] if after else self.screen()
            if all(word in shown for word in words):
                return shown
            time.sleep(0.05)
        raise AssertionError(f"{words} did not appear in:\n{self.screen()}")

    def close(self) -> None:
        self._call("kill-server")


@pytest.fixture
def terminal(run: Callable[..., Any], work: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    assert run("fit", "pairs.jsonl", "--layers", "2", "--out", "polite")[0] == 0
    root = str(Path(steerlab.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]))
    opened = Terminal(work, "polite --alpha 1 --max-new-tokens 1500")
    yield opened
    opened.close()


@pytest.mark.nightly
def test_strength_changes_in_mid_talk_and_ctrl_c_keeps_the_talk(terminal: Terminal) -> None:
    terminal.wait("polite at layer 2; alpha 1", "/quit", "\n>")
    terminal.type("Hello there")
    terminal.wait("without", "polite, alpha 1", after="> Hello there")
    time.sleep(1)  # the answer is longer than the window by now
    terminal.press("C-c")
    shown = terminal.wait("(stopped; the talk goes on)", "\n>", after="> Hello there")
    assert shown.count("without") == 1, "the answer that grew was replaced by the whole one"
    terminal.type("/tokens 5")
    terminal.wait("at most 5 tokens", after="> /tokens")
    terminal.type("/alpha 2.5")
    terminal.wait("alpha 2.5; each method's own positions", after="> /alpha")
    terminal.type("And then?")
    terminal.wait("without", "polite, alpha 2.5", "\n>", after="> And then?")
    terminal.press("C-c")
    terminal.wait("(/quit or Ctrl-D ends the talk)")
    terminal.type("/quit")
    terminal.wait("status 0")
