"""The house stays small, speaks the field's words, and grows in one place at a time."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import count as house
import pytest
from count import ROOT

DESIGN = (ROOT / "docs" / "design.md").read_text()
# words of an earlier draft that no researcher would guess, as a whole name or as a part of one
RIDDLES = {"told", "asked", "lent", "meets", "met", "whose", "apart", "alike", "elsewhere", "tidy", "far"}
BRITISH = re.compile("behaviour|artefact|colour|neighbour|centre|grey|normalis|generalis|initialis|tokenis|optimis")
# what every method, data set and metric may rely on; all other modules of these folders are one method, set or metric
SHARED = {
    "methods": {"base", "vector"},
    "data": {"example", "inputs", "coco"},  # the words for objects, which hallucination counts
    "metrics": {"answers", "bootstrap"},
}


@pytest.fixture(scope="module")
def counted() -> house.Count:
    return house.count()


def modules(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def identifiers(tree: ast.AST) -> Iterator[str]:
    """Every name that a module defines, reads or passes."""
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "asname"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                yield value


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_code_lines_leave_out_docstrings_comments_and_blanks() -> None:
    text = '''"""Module."""

# why
x = (
    1
)  # here


def f():
    """Doc.

    More.
    """
    return "a"
'''
    assert house.code_lines(text) == {4, 5, 6, 9, 14}


def test_package_and_tests_stay_within_their_limits(counted: house.Count) -> None:
    assert counted.package <= house.MAX_PACKAGE
    assert counted.tests <= house.MAX_TESTS
    assert max(counted.modules.values()) <= house.MAX_MODULE
    assert counted.function_median <= house.MAX_FUNCTION_MEDIAN
    assert counted.function_p90 <= house.MAX_FUNCTION_P90


def test_design_page_states_what_is_counted(counted: house.Count) -> None:
    stated = {what: int(n.replace(",", "")) for what, n in re.findall(r"^\| ([\w ]+) \| ([\d,]+) \|", DESIGN, re.M)}
    assert stated["code lines of the package"] == pytest.approx(counted.package, abs=150)
    assert stated["lines of tests"] == pytest.approx(counted.tests, abs=300)


@pytest.mark.parametrize("folder", ["steerlab", "analyses", "figures", "tests"])
def test_identifiers_use_the_words_of_the_field_in_american_spelling(folder: str) -> None:
    odd = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in modules(folder)
        if path.name != "test_serialization.py"  # it writes the retired names of drafts, which are refused
        for name in identifiers(ast.parse(path.read_text()))
        if RIDDLES & set(re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower().split("_")) or BRITISH.search(name.lower())
    }
    assert not odd


@pytest.mark.parametrize("room", sorted(SHARED))
def test_no_other_room_imports_a_single_method_data_set_or_metric(room: str) -> None:
    """So a new one costs one file and its test: no list of them has to be extended anywhere else."""
    found = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in modules("steerlab")
        if path.relative_to(ROOT / "steerlab").parts[0] not in (room, "__init__.py")
        for module in imports(path)
        if module.startswith(f"steerlab.{room}.") and module.split(".")[2] not in SHARED[room]
    }
    assert not found


def test_families_are_named_in_one_table_only() -> None:
    """So a new family of models costs a row there: no other module of the package decides by a family's name."""
    text = (ROOT / "steerlab" / "models" / "families.py").read_text()
    named = set(re.findall(r'"((?:llava|qwen|gemma|paligemma|idefics|smolvlm)[\w]*)"', text))
    assert named, "the table names families by their model_type"
    others = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in modules("steerlab")
        if path.name != "families.py" and "testing" not in path.parts
        for name in named
        if f'"{name}"' in path.read_text()
    }
    assert not others


def test_count_prints_the_table(counted: house.Count, capsys: pytest.CaptureFixture[str]) -> None:
    house.main()
    assert f"package      {counted.package:>6,} code lines" in capsys.readouterr().out
