"""The code of README.md runs and gives what the page says."""

import json
import re
import shlex
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from blocks import ROOT, blocks

import steerlab
from steerlab import Example
from steerlab.cli import main
from steerlab.errors import LoadError
from steerlab.models.smollm2 import smollm2_folder
from steerlab.testing import tiny_hf, tiny_lm, tiny_tokenizer

README = (ROOT / "README.md").read_text(encoding="utf-8")
OWN_PAIRS, WITH_BLOCK, OPERATORS, READING, BUILT_IN = blocks(ROOT / "README.md")
TABLE = dict(re.findall(r"^\| ([^|]+\?) \| (.+) \|$", README, re.MULTILINE))


def few_examples(n: int = 8) -> list[Example]:
    """The first `n` examples of every behavior and split of the built-in data set."""
    examples = steerlab.data.demo_set()
    groups = dict.fromkeys((e.behavior, e.split) for e in examples)
    return [e for group in groups for e in [e for e in examples if (e.behavior, e.split) == group][:n]]


@pytest.mark.nightly
def test_own_pairs_give_the_texts_in_the_table(smollm2_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        smollm2_folder()
    except LoadError as error:
        pytest.skip(f"the weights of SmolLM2 are not installed: {error}")
    names: dict[str, Any] = {}
    OWN_PAIRS.run(names)
    texts = [row.split(" | ") for row in TABLE.values()]
    assert list(TABLE) == names["prompts"]
    assert list(names["before"]) == [before for before, _ in texts]
    assert list(names["after"]) == [after for _, after in texts]
    assert capsys.readouterr().out.splitlines() == [*names["before"], *names["after"]]
    WITH_BLOCK.run(names)
    assert capsys.readouterr().out.strip() == names["after"][0]
    OPERATORS.run(names)
    assert len({names["before"][0], names["capped"][0], names["removed"][0]}) > 1
    assert 0 < names["found"].alpha < 2 and 0.4 < names["found"].kl <= 0.5
    READING.run(names)
    assert names["lens"]["rank"].iloc[-1] == 1, "Paris is the next word in the end"
    restored = names["cells"].pivot(index="layer", columns="column", values="restored")
    assert restored.loc[0].idxmax() == 3 and restored.loc[29].idxmax() == 4, "first at the country, then at the end"


def test_commands_of_the_shell_block_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```bash\n(.+?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", StringIO("Hello\n"))
    monkeypatch.setenv("STEERLAB_MODEL", "tiny")
    tiny_hf("llama", n_layers=21).save_pretrained("tiny")
    tiny_tokenizer().save_pretrained("tiny")
    rows = [
        {"prompt": "Hi", "positive": "Arr", "negative": "Hello"},
        {"prompt": "Who?", "positive": "I", "negative": "A"},
    ]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = []
    for line in block.strip().splitlines():
        program, name, *arguments = shlex.split(line, comments=True)
        few = {"sweep": ["--limit", "2"], "chat": ["--max-new-tokens", "4"]}
        assert program == "steerlab" and main([name, *arguments, *few.get(name, [])]) == 0
        done.append(name)
    assert done == ["fit", "generate", "sweep", "chat"]


def test_built_in_data_set_is_swept_and_steered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = few_examples()
    monkeypatch.setattr(steerlab.data, "demo_set", lambda: examples)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"steerlab": steerlab, "model": tiny_lm("llama", n_layers=17)}
    BUILT_IN.run(names)
    assert len(names["texts"]) == 4 and names["texts"].steered_tokens > 0
    assert set(names["frame"]["split"]) == {"validation", "test"}
    assert "n=16" in capsys.readouterr().out  # test examples
    assert (tmp_path / "results" / "sweep" / "stages").is_dir()
