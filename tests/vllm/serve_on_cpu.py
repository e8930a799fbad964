"""`nnsight-serve` for vLLM's CPU backend: the same arguments, with a worker class that nnsight does not have.

    python tests/vllm/serve_on_cpu.py MODEL [--port PORT] [--api-key KEY] [vLLM's own options ...]

steerlab need not be installed on the server, so the module of the worker class is copied by itself.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

WORKER = Path(__file__).resolve().parents[2] / "steerlab/models/_nnsight/vllm_cpu.py"


def main() -> None:
    """Serve until the process is ended."""
    folder = tempfile.mkdtemp(prefix="nnsight-serve-")
    shutil.copy(WORKER, Path(folder) / "worker_on_cpu.py")
    sys.path.insert(0, folder)
    os.environ["PYTHONPATH"] = folder  # for vLLM's own processes
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

    import anyio._backends._asyncio  # noqa: F401  before nnsight: newer ones refuse the `save` that it puts on all objects
    import worker_on_cpu
    from nnsight.modeling.vllm import VLLM
    from nnsight.modeling.vllm.serve import cli

    VLLM._WORKER_CLS = worker_on_cpu.CPU_WORKER
    worker_on_cpu.disable_accelerator()
    cli.main()


if __name__ == "__main__":
    main()
