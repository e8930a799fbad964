"""Start, break and stop an `nnsight-serve` on loopback."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Self

LAUNCHER = Path(__file__).resolve().parent / "serve_on_cpu.py"
START_TIMEOUT = 180.0


class Server:
    """A server with one model, started without PYTHONPATH so that it does not have steerlab.

    Args:
        model: a folder.
        log: a file for what it says.
        key: the key it asks for.
        options: vLLM's own.
    """

    def __init__(self, model: Path, log: Path, key: str, *options: str) -> None:
        self.port, self.log = free_port(), log
        self.host = f"http://127.0.0.1:{self.port}"
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
        command = [sys.executable, str(LAUNCHER), str(model), "--port", str(self.port), "--api-key", key, *options]
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command, env=env, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True,
                cwd=log.parent,
            )  # fmt: skip

    def wait(self) -> Self:
        """Until it answers."""
        end = time.monotonic() + START_TIMEOUT
        while time.monotonic() < end and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.host}/health", timeout=5):
                    return self
            except OSError as error:
                if getattr(error, "code", 503) != 503:  # 503: it is coming up
                    break
                time.sleep(0.3)
        raise RuntimeError(f"nnsight-serve did not come up:\n{self.log.read_text(errors='replace')[-3000:]}")

    def kill_engine(self) -> None:
        """End vLLM's engine at once, as too little memory would; the HTTP server stays."""
        for pid in descendants(self.process.pid):
            os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """End the server and all its processes."""
        below = descendants(self.process.pid)
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pid in below:
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, signal.SIGKILL)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that they did."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *descendants(child)]
    return found
