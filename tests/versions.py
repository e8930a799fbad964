"""Run the core suites with another release of transformers: `python tests/versions.py 5.15.0 5.24.0`.

Each release has an environment of its own that sees this one's packages, so only what differs is installed.
"""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORE = (
    *("tests/models/test_engines.py", "tests/models/test_kv_prefix.py", "tests/models/test_shortcuts.py"),
    "tests/models/test_interventions.py",
)


def environment(release: str) -> Path:
    """The Python of an environment with this release of transformers; made at the first call."""
    cache = Path(os.environ.get("STEERLAB_CACHE", Path.home() / ".cache" / "steerlab"))
    folder = cache / "versions" / f"transformers-{release}"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True, clear=True)
    own = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"])
    # after the environment's own packages: what is installed there comes first. Written at every call: another checkout
    # may have made the environment, and its packages are not this one's
    Path(own.decode().strip(), "base.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    if not (folder / "ready").exists():
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"transformers=={release}"]
        subprocess.check_call(install)
        (folder / "ready").touch()
    return python


def main(releases: list[str]) -> int:
    """Run the core suites with each release; the exit status of the first that fails."""
    for release in releases:
        print(f"transformers {release}", flush=True)
        command = [environment(release), "-m", "pytest", "-n", "2", "--dist", "worksteal", *CORE]
        done = subprocess.run([*command, "-m", "not nightly"], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
