"""The code of docs/coming_from.md: steerlab's runs, gives the numbers of steering-vectors, and is never longer; its
commands give what its code gives.
"""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

import steerlab
from steerlab.capturing.store import Store
from steerlab.cli import main
from steerlab.testing import tiny_hf, tiny_tokenizer

PAGE = (Path(__file__).parents[2] / "docs" / "coming_from.md").read_text(encoding="utf-8")
JOBS = {
    job.partition("\n")[0]: re.findall(r"```python (\S+)\n(.+?)```", job, re.DOTALL)
    for job in PAGE.split("\n## ")
    if "```python " in job
}
COMMANDS = {
    job.partition("\n")[0]: re.findall(r"```bash steerlab\n(.+?)```", job, re.DOTALL) for job in PAGE.split("\n## ")
}
TEXTS = [("I love this, my friend.", "I hate this."), ("What a joy", "What a great pain it is")]


def run(code: str, names: dict[str, Any]) -> None:
    exec(compile(code, "coming_from.md", "exec"), names)


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the page begins with, and steerlab's model."""
    monkeypatch.chdir(tmp_path)
    hf, tokenizer = tiny_hf("llama"), tiny_tokenizer()
    hf.generation_config.pad_token_id = tokenizer.pad_token_id
    given = {"hf": hf, "tokenizer": tokenizer, "texts": TEXTS, "prompt": "Hello there", "tensor": torch.ones(32)}
    run(re.findall(r"```python\n(.+?)```", PAGE, re.DOTALL)[0], given)
    return given


@pytest.mark.parametrize("job", JOBS)
def test_steerlabs_code_runs(job: str, names: dict[str, Any]) -> None:
    run("vector = steerlab.MeanDifference(2).fit(model, steerlab.pairs(texts))", names)
    (code,) = [code for tool, code in JOBS[job] if tool == "steerlab"]
    before = set(names)
    run(code, names)
    assert set(names) - before, "it gives something"


def test_pairs_give_the_vector_and_the_texts_of_steering_vectors(names: dict[str, Any]) -> None:
    pytest.importorskip("steering_vectors")
    for _, code in JOBS["From pairs to steered text"]:
        run(code, names)
    torch.testing.assert_close(names["vector"].at(2), names["theirs"].layer_activations[2], rtol=1e-4, atol=1e-4)
    assert torch.equal(names["ids"], names["their_ids"])
    plain = names["hf"].generate(**names["tokenizer"]("Hello there", return_tensors="pt"), max_new_tokens=8)
    assert not torch.equal(names["ids"], plain), "the vector does something"
    for _, code in JOBS["A tensor of your own"][:1]:
        run(code, names)
    assert torch.equal(names["own"].layer_activations[2], names["tensor"])


def test_gguf_file_has_unit_vectors_at_every_layer_but_the_first(names: dict[str, Any]) -> None:
    for tool, code in JOBS["Principal components at all layers, as a GGUF file"]:
        if tool == "steerlab":
            run(code, names)
    tensors = {tensor.name: torch.tensor(tensor.data) for tensor in gguf.GGUFReader("polite.gguf").tensors}
    assert list(tensors) == ["direction.1", "direction.2", "direction.3"]
    for tensor in tensors.values():
        assert float(tensor.norm()) == pytest.approx(1, abs=1e-5)


@pytest.fixture
def shell(names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """`shell(job)`: run the commands of a job; gives what the last of them answers."""
    names["hf"].save_pretrained("tiny")
    names["tokenizer"].save_pretrained("tiny")
    monkeypatch.setenv("STEERLAB_MODEL", "tiny")
    Path("pairs.json").write_text(json.dumps(TEXTS))
    Path("prompts.txt").write_text("Hello there\n")

    def commands(job: str, capsys: pytest.CaptureFixture[str]) -> Any:
        (block,) = COMMANDS[job]
        for line in block.strip().splitlines():
            program, *arguments = shlex.split(line)
            capsys.readouterr()
            assert program == "steerlab" and main([*arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return commands


def test_three_jobs_by_command_line_alone_give_what_the_code_gives(
    shell: Any, names: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    code = {job: next(code for tool, code in JOBS[job] if tool == "steerlab") for job in JOBS}
    run(code["From pairs to steered text"], names)
    texts = {row["alpha"]: row["text"] for row in shell("From pairs to steered text", capsys)["rows"]}
    assert torch.allclose(steerlab.load_steerer("polite").at(2), names["vector"].at(2), atol=1e-5)
    for alpha, text in texts.items():
        options = {"steer": names["vector"], "alpha": alpha, "max_new_tokens": 8}
        assert text == steerlab.generate(names["model"], ["Hello there"], **options)[0]
    assert texts[0] != texts[2]

    shell("Principal components at all layers, as a GGUF file", capsys)
    written = steerlab.methods.from_gguf("polite.gguf")
    run(code["Principal components at all layers, as a GGUF file"], names)
    for layer, vector in steerlab.methods.from_gguf("polite.gguf").directions.items():
        assert torch.allclose(written.at(layer), vector, atol=1e-5)

    shown = shell("Remove a direction", capsys)["rows"][-1]
    names["tensor"] = names["vector"].at(2)
    run(code["Remove a direction"], names)
    assert shown["alpha"] == 1 and shown["text"] == names["answer"][0]

    shell("Read states", capsys)
    run(code["Read states"], names)
    assert torch.allclose(Store.open("states").load().at(2), names["states"], atol=1e-5)


@pytest.mark.parametrize("job", JOBS)
def test_no_job_takes_more_lines_than_in_another_tool(job: str) -> None:
    lines = {
        tool: sum(1 for line in code.splitlines() if line.strip() and not line.startswith(("from ", "import ")))
        for tool, code in JOBS[job]
    }
    assert lines["steerlab"] <= min(lines.values())
