"""A real NDIF server on this machine: Redis, an object store, Ray, the controller, a dispatcher and the API."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

HERE = Path(__file__).resolve().parent
# outside 10002-19999, which Ray hands to its workers; in a network namespace of our own nobody else has them
REDIS, S3, GCS, CLIENT, DASHBOARD, API = range(7101, 7107)
RESOURCES = '{"head": 10, "cuda_memory_bytes": 8000000000, "cpu_memory_bytes": 8000000000}'


def keep() -> tuple[subprocess.Popen[bytes], list[str]]:
    """A process namespace that ends with this process, and the command that runs something in it."""
    command = shlex.split("setpriv --pdeathsig KILL unshare -p -f --mount-proc --kill-child sleep 86400")
    keeper = subprocess.Popen(command)
    children = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children")
    while not (first := children.read_text().split()):
        if keeper.poll() is not None:
            raise RuntimeError(f"no process namespace: {command} ended with {keeper.returncode}")
        time.sleep(0.02)
    return keeper, ["nsenter", "-t", first[0], "-p", "-m"]


class Ndif:
    """Brings a server up and down; in between, breaks it.

    Args:
        venv: a virtual environment with NDIF in it.
        folder: for logs and state; made anew.
        sandboxed: whether every request's block runs in a process of its own.
        options: NDIF's own environment variables.
    """

    host = f"http://127.0.0.1:{API}"

    def __init__(self, venv: Path, folder: Path, sandboxed: bool = False, **options: str) -> None:
        self.venv, self.folder, self.sandboxed, self.options = venv, folder, sandboxed, options
        self.parts: dict[str, subprocess.Popen[bytes]] = {}
        self.keeper: subprocess.Popen[bytes] | None = None

    @property
    def env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k in ("HOME", "LANG", "TMPDIR", "OMP_WAIT_POLICY")}
        actor = "SandboxActor" if self.sandboxed else "InProcessActor"
        return kept | {
            "PATH": f"{self.venv}/bin:{os.environ['PATH']}", "PYTHONPATH": str(HERE / "there"),
            "NDIF_REDIS_URL": f"redis://127.0.0.1:{REDIS}", "NDIF_OBJECT_STORE_URL": f"http://127.0.0.1:{S3}",
            "NDIF_RAY_ADDRESS": f"ray://127.0.0.1:{CLIENT}", "NDIF_API_URL": self.host, "NDIF_API_PORT": str(API),
            "NDIF_DEFAULT_MODEL_ACTOR_CLASS": f"ndif_on_cpu.{actor}",
            "NDIF_CONTROLLER_IMPORT_PATH": "ndif_on_cpu.Controller",
            "NDIF_DEFAULT_DTYPE": "float32", "NDIF_DEFAULT_PADDING_BIAS": "0",
            "NDIF_MINIMUM_DEPLOYMENT_TIME_SECONDS": "0", "NDIF_STATUS_TTL_S": "1", "NDIF_SANDBOX_POOL_SIZE": "2",
            "NDIF_CONTROLLER_SYNC_INTERVAL_S": "2", "HF_HUB_OFFLINE": "1",
            "RAY_USAGE_STATS_ENABLED": "0", "GRPC_ENABLE_FORK_SUPPORT": "0", "OMP_NUM_THREADS": "2",
            "GUNICORN_CMD_ARGS": f"--bind=127.0.0.1:{API} --graceful-timeout=1",
        } | self.options  # fmt: skip

    def start(self) -> Self:
        """Everything, from Redis to the API; a server that answers."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in ("logs", "redis", "ray"):
            (self.folder / name).mkdir(parents=True)
        self.keeper, self._inside = keep()
        self._run(
            "redis", "redis-server", "--bind", "127.0.0.1", "--port", str(REDIS), "--save", "", "--dir",
            str(self.folder / "redis"),
        )  # fmt: skip
        self._run("s3", "moto_server", "-H", "127.0.0.1", "-p", str(S3))
        self._run(
            "ray", "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={GCS}",
            f"--ray-client-server-port={CLIENT}", "--num-cpus=16", "--num-gpus=1", f"--resources={RESOURCES}",
            "--object-store-memory=200000000", "--include-dashboard=true", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={DASHBOARD}", f"--temp-dir={self.folder / 'ray'}", "--disable-usage-stats",
        )  # fmt: skip
        self._port(CLIENT)
        self._port(DASHBOARD)
        with (self.folder / "logs/controller.log").open("wb") as log:
            subprocess.run(
                [*self._inside, f"{self.venv}/bin/python", "-m", "ndif.services.ray.deployments.controller.controller"],
                env=self.env | {"RAY_ADDRESS": f"127.0.0.1:{GCS}"}, stdout=log, stderr=log, check=True, timeout=120,
            )  # fmt: skip
        return self.start_api()

    def start_api(self) -> Self:
        """The API with its dispatcher, and wait until it has reached Ray."""
        self._run("api", "gunicorn", "--config", "python:ndif.services.api.gunicorn_conf", "ndif.services.api.app:app")
        self._until(self._connected, 120, "the API never reached Ray")
        return self

    @contextmanager
    def restarted(self, **options: str) -> Iterator[None]:
        """The API anew under other settings, and afterwards under those from before."""
        before = self.options
        self.options = before | options
        try:
            self.kill_api()
            self.start_api()
            yield
        finally:
            self.options = before
            self.kill_api()
            self.start_api()

    def kill_api(self) -> None:
        """End the API and its dispatcher at once, as a crash would."""
        part = self.parts.pop("api", None)
        if part is None:
            return
        os.killpg(part.pid, signal.SIGKILL)
        part.wait()

    def workers(self) -> list[int]:
        """Process ids of the model actors (not their sandboxes)."""
        found = []
        for folder in Path("/proc").iterdir():
            try:
                title = (folder / "cmdline").read_bytes().split(b"\0")[0]
            except (OSError, ValueError):
                continue
            if folder.name.isdigit() and (b"InProcessActor" in title or b"SandboxActor" in title):
                found.append(int(folder.name))
        return found

    def kill_worker(self) -> bool:
        """End the process that holds the model; whether there was one."""
        found = self.workers()
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        return bool(found)

    def stop(self) -> None:
        """End everything at once: it all lives in one process namespace."""
        if self.keeper is not None:
            self.keeper.kill()
            self.keeper.wait()
        for part in self.parts.values():
            part.kill()
            part.wait()
        self.parts.clear()

    def tail(self) -> str:
        """The ends of all logs, for a failure's message."""
        logs = sorted((self.folder / "logs").glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in logs)

    def _run(self, name: str, *command: str) -> None:
        with (self.folder / f"logs/{name}.log").open("ab") as log:
            self.parts[name] = subprocess.Popen(
                [*self._inside, *command], env=self.env, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True, cwd=self.folder,
            )  # fmt: skip

    def _connected(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.host}/connected", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _port(self, port: int) -> None:
        def opened() -> bool:
            with socket.socket() as probe:
                probe.settimeout(1)
                return probe.connect_ex(("127.0.0.1", port)) == 0

        self._until(opened, 90, f"port {port} never opened")

    def _until(self, done: Callable[[], bool], seconds: float, otherwise: str) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if done():
                return
            if any(part.poll() is not None for part in self.parts.values()):
                break
            time.sleep(0.2)
        raise RuntimeError(f"{otherwise}\n{self.tail()}")
