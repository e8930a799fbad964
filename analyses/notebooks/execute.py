"""Run the notebooks of this folder from top to bottom and write their outputs back into them.

    python analyses/notebooks/execute.py [--model smollm2] [NOTEBOOK ...]

What differs from run to run without meaning anything (times, versions, the kernel's name) is left out, so that a
change of the outputs is a change of the results. A notebook that writes to stderr is not saved.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent
NOTEBOOKS = tuple(sorted(FOLDER.glob("*.ipynb")))
SETTINGS = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # transformers draws one while it loads weights
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm's, where ipywidgets is not installed
}


def main() -> None:
    """Execute the notebooks named, or all of them."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("notebooks", nargs="*", type=Path, default=NOTEBOOKS)
    arguments.add_argument("--model", default="smollm2", help="whatever steerlab.load takes")
    args = arguments.parse_args()
    for path in args.notebooks:
        begun = time.time()
        notebook = execute(nbformat.read(path, as_version=4), args.model, FOLDER)
        said = noise(notebook)
        if said:
            raise SystemExit(f"{path.name} wrote to stderr and is not saved:\n{said}")
        nbformat.write(notebook, path)
        print(f"{path.name}: {time.time() - begun:.0f} s, {path.stat().st_size / 1000:.0f} kB")


def execute(notebook: NotebookNode, model: str, cwd: Path) -> NotebookNode:
    """Run a notebook's cells in a kernel of this very interpreter.

    Args:
        notebook: changed in place.
        model: what its first cell loads.
        cwd: the kernel's working folder.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised; its traceback is in the message.
    """
    # no folders to search: "python3" is then ipykernel's own entry, which starts sys.executable
    kernel = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    quiet = ["--IPKernelApp.log_level=ERROR"]  # a warning that its sockets are not encrypted
    client = NotebookClient(
        notebook, km=kernel, timeout=600, record_timing=False, coalesce_streams=True, extra_arguments=quiet
    )
    client.execute(cleanup_kc=True, cwd=str(cwd), env={**os.environ, **SETTINGS, "STEERLAB_NOTEBOOK_MODEL": model})
    notebook.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
        steerlab={"model": model},
    )
    for cell in notebook.cells:
        cell.metadata = NotebookNode()
    return notebook


def noise(notebook: NotebookNode) -> str:
    """Everything that cells wrote to stderr: warnings, progress bars."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.get("name") == "stderr")


if __name__ == "__main__":
    main()
