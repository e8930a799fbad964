"""Take the screenshots of docs/howto/page.md, into docs/images: a page of SmolLM2 in a headless Chromium.

python docs/site/screenshots.py
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Page, sync_playwright

import steerlab
from steerlab import L2S, Example, MeanDifference
from steerlab.methods import Steerer

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "docs" / "images"
LAYERS = (12, 16, 20)


def main() -> None:
    """Write the page and take its pictures."""
    chromium = runpy.run_path(str(ROOT / "tests" / "browser" / "chromium.py"))
    if (path := chromium["find_chromium"]()) is None:
        sys.exit(f"no Chromium was found: {chromium['HOW']}")
    with TemporaryDirectory() as folder, sync_playwright() as running:
        file = write_page(Path(folder) / "page.html")
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        address = f"{file.as_uri()}#alpha=0.75&layer=16&prompt=2"
        wide = browser.new_page(viewport={"width": 1100, "height": 800})
        wide.goto(address)
        wide.locator(".card:nth-child(2) .token").nth(3).hover()
        shoot(wide, "page_texts", ".cards")
        shoot(wide, "page_map", ".maps", ".plot")
        narrow = browser.new_page(viewport={"width": 400, "height": 760}, color_scheme="dark")
        narrow.goto(address)
        narrow.screenshot(path=IMAGES / "page_narrow.png")
        browser.close()


def write_page(path: Path) -> Path:
    """A page of one vector and of L2S, at three layers, for one prompt of each behavior."""
    model = steerlab.load("smollm2")
    train = [e for kind in ("refuse", "defer", "answer") for e in some(kind, "train", 60)]
    prompts = [e for kind in ("refuse", "defer", "answer") for e in some(kind, "test", 2)]
    acts = steerlab.capture(model, train, layers=LAYERS)
    methods: dict[str, dict[int, Steerer]] = {
        "mean": {layer: MeanDifference(layer).fit(acts) for layer in LAYERS},
        "l2s": {layer: L2S(layer, net="mlp", zero_behaviors=["answer"]).fit(acts) for layer in LAYERS},
    }
    alphas = [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5]
    page = steerlab.live.page_of(model, prompts, methods, alphas=alphas)
    return page.save(path)


def some(behavior: str, split: str, n: int) -> list[Example]:
    """The first examples of a behavior and split of the built-in data set."""
    return [e for e in steerlab.data.demo_set() if (e.behavior, e.split) == (behavior, split)][:n]


def shoot(page: Page, name: str, *parts: str) -> None:
    """A picture of the part of a page that holds some elements."""
    boxes = [page.locator(part).first.bounding_box() for part in parts]
    found = [box for box in boxes if box is not None]
    left, top = min(b["x"] for b in found), min(b["y"] for b in found)
    right, bottom = max(b["x"] + b["width"] for b in found), max(b["y"] + b["height"] for b in found)
    clip = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    page.screenshot(path=IMAGES / f"{name}.png", full_page=True, clip=clip)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
