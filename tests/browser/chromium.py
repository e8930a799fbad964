"""Find a Chromium, or install Debian's: `python tests/browser/chromium.py --install`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

WIDE, NARROW = (1440, 900), (400, 850)  # pixels of a window
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HOW = "apt-get install chromium (as root), or set STEERLAB_CHROMIUM to the path of a Chromium or Chrome"


def find_chromium() -> str | None:
    """The path of the browser that the tests drive."""
    return os.environ.get("STEERLAB_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def main() -> int:
    """Print where it is; install it where that is allowed, else say how."""
    if find_chromium() is None and "--install" in sys.argv and shutil.which("apt-get") and os.geteuid() == 0:
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update", "-qq"], ["install", "-y", "-qq", "chromium"]):
            if subprocess.run(["apt-get", *command], env=environment).returncode:
                break
    found = find_chromium()
    print(found or f"no Chromium was found: {HOW}")
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
