"""What the site holds beside the pages of docs/: results, notebooks, a reference page per room, formulas as MathML.

Run by mkdocs (`mkdocs.yml`); nothing here imports steerlab: the names are read from its source.
"""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Iterator
from pathlib import Path

from griffe import Attribute, Docstring, Extension, Object
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[2]
# what lies outside docs/ and has the same path in the site
OUTSIDE = (
    "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "analyses/results/**/*.md", "analyses/results/**/*.png",
    "steerlab/models/scenes_vlm/*.md", "steerlab/models/driving_lm/*.md",
)  # fmt: skip
ROOMS = ["errors", *(path.parent.name for path in sorted(ROOT.glob("steerlab/[a-z]*/__init__.py")))]
NOTEBOOKS = sorted(ROOT.glob("analyses/notebooks/*.ipynb"))
# what users need of a room whose other names are for the other rooms
MODELS = (
    "loading.load", "model.Model", "sites.Site", "positions.positions_table", "positions.describe_positions",
    "encoding.EncodedPrompt", "encoding.Span", "interventions.Edit", "operators.EditRule", "row_format.RowFormat",
    "shortcuts.Shortcuts", "job.Job", "vectors.with_vectors", "vectors.ObjectKind", "vectors.VectorEncoder",
)  # fmt: skip
EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.+?)\\[)\]]</\1>', re.DOTALL)


def public_names(path: Path) -> Iterator[str]:
    """The names that a room's `__init__` imports, or that a module defines, without those that begin with "_"."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        found: list[str] = []
        if isinstance(node, ast.ImportFrom) and path.name.startswith("__init__"):
            found = [alias.asname or alias.name for alias in node.names]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found = [node.name]
        yield from (name for name in found if not name.startswith("_"))


def reference() -> dict[str, str]:
    """The page of each room, by its name: every public name, documented where users import it from."""
    package = ROOT / "steerlab"
    rooms = {"errors": [f"errors.{name}" for name in public_names(package / "errors.py")]}
    for init in sorted(package.glob("[a-z]*/__init__.py")):
        names = list(public_names(init))
        modules = sorted(init.parent.glob("[a-z]*.py")) if not names else []  # imported by their own names
        names += [f"{module.stem}.{name}" for module in modules for name in public_names(module)]
        rooms[init.parent.name] = [f"{init.parent.name}.{name}" for name in names]
    rooms["models"] = [f"models.{name}" for name in MODELS]
    pages = {room: f"# steerlab.{room}\n\n" + "".join(map(_directive, names)) for room, names in rooms.items()}
    return {"steerlab": _top_page(package), **pages}


def _top_page(package: Path) -> str:
    """The names that `steerlab` itself offers, each with its first sentence and a link to its documentation."""
    rows = []
    stub = ast.parse((package / "__init__.pyi").read_text(encoding="utf-8"))
    for node in [node for node in stub.body if isinstance(node, ast.ImportFrom)]:
        for name in [alias.name for alias in node.names]:
            origin, sentence = _definition(package, f"{node.module}.{name}" if node.module else name)
            link = f"[`{name}`]({origin}.md)" if origin in ROOMS else f"[`{name}`][{origin}]"
            rows.append(f"| [](){{#steerlab.{name}}}{link} | {sentence} |")
    title = (
        "# steerlab\n\nThe names at the top, `steerlab.load` and so on; each room has a page with all of its own.\n\n"
    )
    return f"{title}| name | |\n|---|---|\n" + "\n".join(rows) + "\n"


def _definition(package: Path, name: str) -> tuple[str, str]:
    """Where a name is defined, following imports (a module's own name for a module), and its first sentence."""
    *modules, last = name.split(".")
    path = package.joinpath(*modules)
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body if modules else ():
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == last and ast.get_docstring(node):
            return f"steerlab.{name}", (ast.get_docstring(node) or "").partition("\n")[0]
        if isinstance(node, ast.ImportFrom) and node.module and last in [alias.name for alias in node.names]:
            return _definition(package, f"{node.module.removeprefix('steerlab.')}.{last}")
    module = package / last
    file = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
    return last, (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def _directive(name: str) -> str:
    """The line that documents a name; of a function that has its module's name, as the module's member."""
    module = ROOT / "steerlab" / name.replace(".", "/")
    if module.is_dir() or module.with_suffix(".py").exists():
        return f"[](){{#steerlab.{name}}}\n\n::: steerlab.{name}.{name.split('.')[-1]}\n\n"
    return f"::: steerlab.{name}\n\n"


class Docstrings(Extension):
    """Examples are code, and the comment beside a constant or a field, or above it, is its documentation."""

    def on_object(self, *, obj: Object, **_: object) -> None:
        """Give the section of an example the name under which griffe knows it."""
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub("Examples:", obj.docstring.value)

    def on_attribute(self, *, attr: Attribute, **_: object) -> None:
        """Take the comment of an attribute that has no docstring."""
        if attr.docstring or attr.lineno is None or not isinstance(attr.filepath, Path):
            return
        lines = attr.filepath.read_text(encoding="utf-8").splitlines()
        first, last = attr.lineno - 1, (attr.endlineno or attr.lineno) - 1
        comments = [lines[last].partition("  # ")[2].removeprefix("fmt: skip")]
        while first and lines[first - 1].startswith("#"):
            first -= 1
            comments.insert(0, lines[first].lstrip("#: "))
        if text := " ".join(filter(None, comments)):
            attr.docstring = Docstring(text[0].upper() + text[1:], parent=attr)


def notebook(path: Path) -> Iterator[tuple[str, str | bytes]]:
    """The page of a notebook as it was committed, and its pictures: paths in the site and contents."""
    text, resources = MarkdownExporter().from_filename(str(path))
    for name, data in resources["outputs"].items():
        text = text.replace(f"({name})", f"({path.stem}_{name})")
        yield f"analyses/notebooks/{path.stem}_{name}", data
    yield f"analyses/notebooks/{path.stem}.md", text.replace('<table border="1" class="dataframe">', "<table>")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the two sections of the navigation whose pages are made here."""
    made = {
        "Notebooks": [f"analyses/notebooks/{path.stem}.md" for path in NOTEBOOKS],
        "Reference": [f"reference/{room}.md" for room in reference()],
    }
    config.nav = [
        {**section, **{title: made[title] for title in section if title in made}} for section in config.nav or ()
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside docs/, the notebooks and the reference."""
    for path in sorted(path for pattern in OUTSIDE for path in ROOT.glob(pattern)):
        uri = path.relative_to(ROOT).as_posix()
        files.append(File(uri, str(ROOT), config.site_dir, config.use_directory_urls))
    made = [made for path in NOTEBOOKS for made in notebook(path)]
    made += [(f"reference/{room}.md", text) for room, text in reference().items()]
    for uri, content in made:
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Links that lead out of docs/ in the repository lead to the same file in the site; notebooks are pages there."""
    up = "../" * page.file.src_uri.count("/")
    inside = not page.file.src_uri.startswith(("analyses/", "steerlab/", "C", "S"))
    markdown = markdown.replace(f"]({up}../", f"]({up}") if inside else markdown
    markdown = re.sub(r"^```(python|bash) (\S+)$", r'```\1 title="\2"', markdown, flags=re.MULTILINE)
    return markdown.replace(".ipynb)", ".md)")


def on_page_content(content: str, **_: object) -> str:
    """Formulas are set when the site is built: no script has to be loaded for them."""
    display = {"span": "inline", "div": "block"}
    return FORMULA.sub(lambda m: convert(html.unescape(m[2]), display=display[m[1]]), content)
