"""Print the folder of the virtual environment in which these tests run; the first call makes it, in two minutes."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "remote"))
from servers.venvs import VLLM, VLLM_THEN, CannotInstall, environment

if __name__ == "__main__":
    try:
        sys.stdout.write(f"{environment(VLLM, VLLM_THEN)}\n")
    except CannotInstall as error:
        sys.exit(f"no environment with vLLM: {error}")
