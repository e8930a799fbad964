"""What steerlab leaves behind in a notebook: no bars, and figures that fit a page."""

import base64
import io
import sys
from pathlib import Path

import nbformat
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "analyses" / "notebooks"))
from execute import execute

BAR = """
import time
from steerlab._support.progress import bar
with bar(4, "capture", "row", shown=True) as outer:
    for _ in range({steps}):
        with bar(2, "inner", "row", shown=True) as inner:
            inner.update(2)
        time.sleep(0.4)
        outer.update()
"""
LOAD = """
import steerlab
steerlab.load("scenes-vlm").n_layers
"""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[list[nbformat.NotebookNode]]:
    """What each cell leaves in the file of a notebook."""
    pytest.importorskip("ipywidgets", reason="without it, tqdm draws its bars as text")
    cells = [nbformat.v4.new_code_cell(source) for source in (BAR.format(steps=4), BAR.format(steps=3), LOAD)]
    notebook = execute(nbformat.v4.new_notebook(cells=cells), "no model", tmp_path_factory.mktemp("notebook"))
    return [cell.outputs for cell in notebook.cells]


@pytest.mark.nightly
def test_bar_that_is_full_leaves_nothing_in_the_file(outputs: list[list[nbformat.NotebookNode]]) -> None:
    assert [dict(output.data) for output in outputs[0]] == [{"text/plain": ""}]


@pytest.mark.nightly
def test_bar_that_was_stopped_shows_its_state(outputs: list[list[nbformat.NotebookNode]]) -> None:
    (output,) = outputs[1]
    assert "3/4" in output.data["text/plain"] and "inner" not in output.data["text/plain"]


@pytest.mark.nightly
def test_loading_a_small_model_shows_no_bar_of_transformers(outputs: list[list[nbformat.NotebookNode]]) -> None:
    assert [output.output_type for output in outputs[2]] == ["execute_result"]


def test_bar_of_a_terminal_is_removed_when_it_is_full(capsys: pytest.CaptureFixture[str]) -> None:
    from steerlab._support.progress import bar

    with bar(2, "capture", "row", shown=True) as shown:
        shown.delay = 0
        shown.update(2)
        shown.refresh()
    written = capsys.readouterr().err
    assert "capture: 100%" in written and written.endswith("\r") and not written.rpartition("\r")[2].strip()


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "analyses" / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_committed_figures_have_the_size_of_a_notebook(path: Path) -> None:
    """At most 1,200 pixels wide and 1,000 high, so that a figure is seen as a whole."""
    cells = nbformat.read(path, as_version=4).cells
    for data in [output.data for cell in cells for output in cell.get("outputs", []) if "data" in output]:
        if "image/png" in data:
            size = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).size
            assert 300 <= size[0] <= 1200 and size[1] <= 1000, size
