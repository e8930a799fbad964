"""The built site: complete, nothing of other hosts, no broken link, and an answer to ten tasks within two clicks."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from posixpath import normpath
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest
from blocks import ROOT

import steerlab

pytest.importorskip("mkdocs", reason="the extra [docs] is not installed")
ROOMS = [path.parent.name for path in sorted((ROOT / "steerlab").glob("[a-z]*/__init__.py"))]
# rooms whose modules are imported by their own names; of `models`, docs/site/hooks.py lists what users need
BY_MODULE = ("analysis", "models")
# a new user's task, and the pages that are clicked through from the front page to its answer
TASKS = {
    "install it and steer once": ("get_started",), "make a vector of my own pairs of answers": ("howto/contrasts",),
    "which layer and which strength?": ("howto/layer_and_strength",), "steer harmful requests only": ("howto/gate",),
    "my text breaks: how strong is too strong?": ("howto/dose",),
    "what do these words mean?": ("get_started", "concepts"), "is my model supported?": ("models",),
    "what did repeng or steering-vectors call this?": ("coming_from",),
    "which method should I take, and what did it reach?": ("methods", "methods/predicted"),
    "what does `sweep` take?": ("howto/layer_and_strength", "reference/steerlab"),
}  # fmt: skip


class Page(HTMLParser):
    """The ids, links and loaded files of one page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        elif tag == "link" and given.get("rel") != "canonical":
            self.loads.add(given.get("href", ""))
        elif "src" in given:
            self.loads.add(given["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built from nothing in strict mode: a warning is a failure; without a network where that can be had."""
    folder = tmp_path_factory.mktemp("site")
    alone = ["unshare", "--map-root-user", "--net"]
    can_be_alone = shutil.which("unshare") and subprocess.run([*alone, "true"], capture_output=True).returncode == 0
    done = subprocess.run(
        [*(alone if can_be_alone else ()), sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    """Every page by its folder in the site; the front page is "."."""
    return {path.parent.relative_to(site).as_posix(): Page(path) for path in sorted(site.rglob("index.html"))}


def inside(page: str, link: str) -> tuple[str, str] | None:
    """The place in the site that a page's link leads to and its anchor; None for another host."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    return normpath(f"{page}/{unquote(parts.path)}"), unquote(parts.fragment)


def test_links_of_the_site_lead_to_files_and_anchors_that_exist(site: Path, pages: dict[str, Page]) -> None:
    broken = []
    for name, page in pages.items():
        for link in page.links | page.loads:
            target = inside(name, link)
            if target is None or link.startswith("data:"):
                continue
            place, anchor = target
            found = place in pages or (site / place).is_file()
            if not found or (anchor and place in pages and anchor not in pages[place].ids):
                broken.append(f"{name}: {link}")
    assert not broken


def test_nothing_is_loaded_from_another_host(site: Path, pages: dict[str, Page]) -> None:
    loads = {f"{name}: {load}" for name, page in pages.items() for load in page.loads if inside(name, load) is None}
    assert not {load for load in loads if ": data:" not in load}
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not re.search(r"url\(\W?https?:|@import\W+https?:", styles)


def test_relative_links_of_pages_lead_to_files_in_the_repository() -> None:
    """On a host that shows the markdown itself, too."""
    broken = []
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("analyses/results/**/*.md")]:
        for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
            target = path.parent / unquote(urlsplit(link).path)
            made = path.is_relative_to(ROOT / "docs") and link.startswith(("reference/", "../reference/"))
            if not (urlsplit(link).scheme or made or target.exists()):
                broken.append(f"{path.relative_to(ROOT)}: {link}")
    assert not broken


def public_names(module: ModuleType) -> Iterator[str]:
    """What a room offers under its own name: its `__all__`, or else what its modules bring, without those modules."""
    for name in getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]:
        if not isinstance(getattr(module, name), ModuleType):
            yield name


@pytest.mark.parametrize("room", [room for room in ROOMS if room not in BY_MODULE])
def test_every_public_name_of_a_room_is_documented(room: str, pages: dict[str, Page]) -> None:
    module = importlib.import_module(f"steerlab.{room}")
    missing = {name for name in public_names(module) if f"steerlab.{room}.{name}" not in pages[f"reference/{room}"].ids}
    assert not missing - {"annotations"}


def test_every_name_in_the_reference_has_a_text(site: Path) -> None:
    heading = r'<h2 id="([^"]+)" class="doc doc-heading">.*?<div class="doc doc-contents[^"]*">(.*?)</div>'
    for page in (site / "reference").glob("*/index.html"):
        for name, body in re.findall(heading, page.read_text(encoding="utf-8"), re.DOTALL):
            assert len(re.sub(r"<[^>]+>", "", body).strip()) > 8, name


def test_every_name_at_the_top_is_documented(pages: dict[str, Page]) -> None:
    top = pages["reference/steerlab"]
    assert not {name for name in steerlab.__all__ if f"steerlab.{name}" not in top.ids}


def test_every_public_function_of_the_analyses_is_documented(pages: dict[str, Page]) -> None:
    ids = pages["reference/analysis"].ids
    missing = []
    for path in sorted((ROOT / "steerlab" / "analysis").glob("[a-z]*.py")):
        module = importlib.import_module(f"steerlab.analysis.{path.stem}")
        for name, value in vars(module).items():
            if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__ and callable(value):
                missing += [name] if f"{module.__name__}.{name}" not in ids else []
    assert not missing


@pytest.mark.parametrize("task", TASKS)
def test_a_new_users_task_is_answered_within_two_clicks(task: str, pages: dict[str, Page]) -> None:
    clicks = TASKS[task]
    assert len(clicks) <= 2
    for here, there in zip((".", *clicks), clicks, strict=False):
        assert there in {(inside(here, link) or ("", ""))[0] for link in pages[here].links}, f"{here} links {there}"


def test_every_page_is_found_by_the_search(site: Path, pages: dict[str, Page]) -> None:
    found = {
        entry["location"].split("#")[0] for entry in json.loads((site / "search/search_index.json").read_text())["docs"]
    }
    assert {f"{name}/".removeprefix("./") for name in pages} == found


def test_gallery_shows_every_committed_picture_and_its_command() -> None:
    text = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    shown = {(ROOT / "docs" / link).resolve() for link in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)}
    assert shown == {*(ROOT / "docs" / "images").glob("*.png"), *ROOT.glob("analyses/results/**/*.png")}
    for script in re.findall(r"^    (?:.*&& )?python (\S+)", text, re.MULTILINE):
        assert (ROOT / script).is_file()
    for group in text.split("\n!")[1:]:
        assert "\n    python" in group or "make demo" in group or group.count("\n") < 2, group


def test_notebooks_are_pages_with_their_outputs(site: Path) -> None:
    for path in sorted((ROOT / "analyses" / "notebooks").glob("*.ipynb")):
        page = (site / "analyses/notebooks" / path.stem / "index.html").read_text(encoding="utf-8")
        assert "30 layers x 576" in page, "what the first cell has printed"


def test_formulas_are_set_without_a_script(site: Path) -> None:
    page = (site / "methods/predicted/index.html").read_text(encoding="utf-8")
    assert page.count("<math") >= 4 and "\\hat" not in page and "arithmatex" not in page
