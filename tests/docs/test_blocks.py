"""The code on the pages runs: every block of a page in its order, on tiny random models, or it says why not."""

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from blocks import PAGES, ROOT, blocks
from nightly import by_day

import steerlab
from steerlab.cli.app import group
from steerlab.models.model import Model
from steerlab.testing import tiny_lm

# pages whose blocks have tests of their own, beside this file and in tests/methods/test_adding_a_method.py
WITH_OWN_TESTS = {"README.md", "docs/coming_from.md", "docs/adding_a_method.md"}
LONGEST = {  # they train or compare, for many seconds also on tiny models
    "docs/howto/compare.md", "docs/howto/l2s.md", "docs/howto/layer_and_strength.md", "docs/howto/train_and_bake.md",
    "docs/methods/concept_dictionaries.md", "docs/methods/predicted.md", "docs/methods/w2s.md",
}  # fmt: skip
# what a tokenizer of letters and texts of a random model can't give
TINY = {'" Paris"': '"a"', '" Rome"': '"b"', '{"fluent": 0.5}': '{"fluent": 0.0}'}
RUN = {
    name: found
    for page in PAGES
    if (name := str(page.relative_to(ROOT))) not in WITH_OWN_TESTS
    and (found := [block for block in blocks(page) if not block.reason])
}


def _smaller(load: Any, real: bool) -> Any:
    """`load`, but with a tiny random model of as many layers in the place of SmolLM2."""

    def load_smaller(name: Any, **options: Any) -> Model:
        if name != "smollm2" or real:
            return load(name, **options)
        model = tiny_lm("llama", n_layers=30)
        model.chat = options.get("chat", model.chat)
        return model

    return load_smaller


def _run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, real: bool) -> dict[str, Any]:
    """The names that the blocks of a page leave behind."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(steerlab, "load", _smaller(steerlab.load, real))
    names: dict[str, Any] = {}
    for block in RUN[name]:
        for word, letter in () if real else TINY.items():
            block = replace(block, code=block.code.replace(word, letter))
        block.run(names)
    return names


# methods find little in random states, and say so
@pytest.mark.filterwarnings(
    *(f"ignore:{start}:UserWarning" for start in ("the probe of", "level=", "ratio=", "without steering"))
)
@pytest.mark.parametrize("name", by_day(RUN, lambda name: name not in LONGEST))
def test_blocks_of_page_run_on_tiny_models(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "steerlab" in _run(name, tmp_path, monkeypatch, real=False)


@pytest.mark.nightly
@pytest.mark.parametrize("name", RUN)
def test_blocks_of_page_run_on_smollm2(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smollm2_cache: Path
) -> None:
    assert "steerlab" in _run(name, tmp_path, monkeypatch, real=True)


def commands(page: Path) -> list[str]:
    """The command lines of a page: lines of its bash blocks and code in its tables, what stands before `|` or `#`."""
    text = page.read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```bash\n(.+?)```", text, re.DOTALL) for line in block.splitlines()]
    lines += re.findall(r"\| `(steerlab [^`]+)` \|", text)
    return [found[0] for line in lines if (found := re.search(r"steerlab [a-z]+ [^#|>]+", line))]


@pytest.mark.parametrize("name", ["README.md", "docs/howto/command_line.md", "docs/howto/page.md"])
def test_command_lines_of_a_page_have_the_options_that_they_give(name: str) -> None:
    for line in commands(ROOT / name):
        command, *arguments = shlex.split(line)[1:]
        assert group.commands[command].make_context(command, arguments), line


def test_page_of_the_command_line_has_an_example_of_every_command() -> None:
    assert {shlex.split(line)[1] for line in commands(ROOT / "docs/howto/command_line.md")} == set(group.commands)


def test_every_block_that_is_not_run_says_why() -> None:
    unsaid = [
        f"{block.page.name}:{block.line}"
        for page in PAGES
        for block in blocks(page)
        if block.tool not in ("", "steerlab") and page.name != "coming_from.md" and not block.reason
    ]
    assert not unsaid, "the code of other tools stands in coming_from.md, which says why it is not run"
