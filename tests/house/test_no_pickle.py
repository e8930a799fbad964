"""The package opens no file in a format that can run code."""

import ast
from collections.abc import Iterator

import pytest
from count import ROOT

MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
CALLS = {"read_pickle", "read_hdf", "unsafe_load", "load_pickle"}


def unsafe_readers(text: str) -> Iterator[str]:
    """Imports and calls that could read a pickle."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (name for name in names if name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {one.arg: ast.unparse(one.value) for one in node.keywords}
            unsafe = called == "torch.load" and given.get("weights_only") != "True"
            if unsafe or called.rpartition(".")[2] in CALLS or given.get("allow_pickle", "False") != "False":
                yield called


def test_no_module_of_the_package_can_read_a_pickle() -> None:
    paths = sorted((ROOT / "steerlab").rglob("*.py"))
    assert not {f"{path.relative_to(ROOT)}: {name}" for path in paths for name in unsafe_readers(path.read_text())}


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from joblib import load", "torch.load(path)", "torch.load(p, weights_only=False)",
        "np.load(path, allow_pickle=True)", "pd.read_pickle(path)", "x = torch.load(p, weights_only=w)",
    ],
)  # fmt: skip
def test_unsafe_readers_are_found(text: str) -> None:
    assert list(unsafe_readers(text))
    safe = "np.load(path)\ntorch.load(path, weights_only=True)\njson.load(file)\nload_file(path)"
    assert not list(unsafe_readers(safe))
