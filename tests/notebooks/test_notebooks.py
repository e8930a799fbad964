"""The notebooks run from top to bottom, and their committed outputs come from SmolLM2 and are clean."""

import re
import sys
from pathlib import Path

import nbformat
import pytest
from nightly import by_day
from saved import tiny_folder

FOLDER = Path(__file__).parents[2] / "analyses" / "notebooks"
sys.path.insert(0, str(FOLDER))
from execute import NOTEBOOKS, execute, noise

NAMES = [
    "01_first_steps", "02_choosing_a_layer", "03_is_my_behavior_steerable", "04_l2s_from_data_to_figure",
    "05_what_does_layer_12_know", "06_where_does_the_answer_come_from",
    "07_which_concept_changed", "08_what_did_training_change",
]  # fmt: skip
# places of one machine, progress bars, color codes, objects that are told by their address
GARBAGE = re.compile(
    r"/work|/home|/root|/tmp|/Users|site-packages|\d+%\|| \d+it/s|it/s\]|\x1b|Warning\b| at 0x[0-9a-f]+"
)
each = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of four layers, as a folder."""
    return tiny_folder(tmp_path_factory.mktemp("tiny-llama"))


def committed(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def outputs_of(notebook: nbformat.NotebookNode) -> dict[str, list[nbformat.NotebookNode]]:
    """The outputs of every code cell, by the cell's id."""
    return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def output_kinds(outputs: list[nbformat.NotebookNode]) -> set[str]:
    """What kinds of things a cell shows: text, a table, an image. A progress bar that has gone leaves an empty text."""
    return {kind for output in outputs for kind, shown in output.get("data", {"stream": True}).items() if shown}


def text_of(outputs: list[nbformat.NotebookNode]) -> str:
    """All that a cell shows but its images."""
    data = [value for output in outputs for kind, value in output.get("data", {}).items() if kind != "image/png"]
    return "\n".join([*data, *(output.text for output in outputs if output.output_type == "stream")])


def test_every_notebook_is_listed() -> None:
    assert [path.stem for path in NOTEBOOKS] == NAMES


@pytest.mark.parametrize("name", by_day(NAMES, lambda name: name[:2] == "06"))
def test_notebook_runs_on_another_model_with_same_kinds_of_output(name: str, tiny: Path, tmp_path: Path) -> None:
    before = outputs_of(committed(name))
    notebook = execute(committed(name), str(tiny), tmp_path)
    after = outputs_of(notebook)
    assert not noise(notebook)
    kinds = [{cell: output_kinds(outputs) for cell, outputs in cells.items()} for cells in (before, after)]
    assert kinds[0] == kinds[1]
    first = text_of(next(iter(after.values())))
    assert tiny.name in first and "smollm2" not in first, "the outputs are new ones"
    assert not list(tmp_path.iterdir()), "no files are left behind"


@each
def test_committed_outputs_are_from_smollm2_and_clean(name: str) -> None:
    notebook = committed(name)
    nbformat.validate(notebook)
    assert notebook.metadata.steerlab.model == "smollm2"
    assert text_of(next(iter(outputs_of(notebook).values()))).startswith("Model('smollm2', 30 layers x 576")
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "run from top to bottom, in one go"
    for cell, outputs in outputs_of(notebook).items():
        assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs), cell
        found = GARBAGE.search(text_of(outputs))
        assert found is None, f"{cell} shows {found}"
    assert all(not cell.metadata for cell in notebook.cells), "times of execution would change with every run"
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 250_000  # bytes


@each
def test_notebook_begins_and_ends_with_text(name: str) -> None:
    cells = committed(name).cells
    assert cells[0].source.startswith("# ") and cells[-1].cell_type == "markdown"
    assert len({cell.id for cell in cells}) == len(cells)
    assert "TODO" not in "".join(cell.source for cell in cells)
