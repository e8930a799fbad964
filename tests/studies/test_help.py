"""Every study and figure starts: its imports work and its `--help` names its options. Whole runs are for the night."""

import runpy
import sys

import pytest
from running import ROOT

SCRIPTS = sorted(p for folder in ("analyses", "figures") for p in (ROOT / folder).glob("[a-z]*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_script_prints_its_help(script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    assert end.value.code == 0 and "--out" in capsys.readouterr().out
