"""The saved page in a headless Chromium: texts, slider, picker, map, frontier, tokens, keyboard, times, faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from chromium import NARROW, WIDE
from page_data import PLAIN, sweep_frames, text_of, tokens_of

from steerlab import plots
from steerlab.plots.style import LESS, MORE

pytestmark = pytest.mark.browser
SCHEMES = ("light", "dark")


def texts(page: Any) -> list[str]:
    """The texts side by side: no steering, then each method."""
    return list(page.locator(".card .text").evaluate_all("cards => cards.map(card => card.textContent)"))


def expected(layer: int, alpha: float, prompt: int = 0) -> list[str]:
    return [text_of("none", 0, 0.0, prompt), *(text_of(m, layer, alpha, prompt) for m in ("mean", "l2s"))]


def focus_in(page: Any, chart: str) -> None:
    page.locator(f"{chart} [role=button][tabindex='0']").first.focus()


@pytest.mark.parametrize("alpha", [0.3, 0.6, 1.2])
@pytest.mark.parametrize("layer", [12, 16])
def test_address_chooses_strength_and_layer(open_page, file_address: str, alpha: float, layer: int) -> None:
    page = open_page(f"{file_address}#alpha={alpha}&layer={layer}")
    assert texts(page) == expected(layer, alpha)
    assert not page.errors


def test_address_takes_a_prompt_and_the_nearest_strength(open_page, file_address: str) -> None:
    page = open_page(f"{file_address}#alpha=0.55&layer=12&prompt=egg-2")
    assert texts(page) == expected(12, 0.6, 2)
    page.evaluate("location.hash = '#alpha=0.3&layer=16&prompt=1'")
    page.wait_for_function("document.querySelector('output').textContent === '0.3'")
    assert texts(page) == expected(16, 0.3, 1)


def test_address_takes_the_id_of_a_prompt_before_its_number(open_page, tmp_path: Path) -> None:
    frames = [one.assign(example_id=one["example_id"].replace({"egg-0": "2", "egg-2": "0"})) for one in sweep_frames()]
    address = plots.page(*frames).save(tmp_path / "page.html").as_uri()
    assert texts(open_page(f"{address}#alpha=0.3&layer=16&prompt=2")) == expected(16, 0.3, 0)


def test_negative_effects_lie_in_the_frontier_and_changes_are_from_the_unsteered_model(open_page, tmp_path) -> None:
    frame, given = sweep_frames(prompts=1)
    frame, given = (one[(one["method"] == "mean") | (one["alpha"] > 0)] for one in (frame, given))
    frame = frame.assign(value=frame["value"].where(frame["metric"] != "pirate", 0.1 * frame["value"] - 20))
    page = open_page(plots.page(frame, given).save(tmp_path / "page.html").as_uri())
    read = "all => Object.fromEntries(all.map(one => [one.ariaLabel, one.getAttribute('transform')]))"
    found = page.locator(".plot [role=button]").evaluate_all(read)
    heights = {name.split(":")[0]: float(place.rstrip(")").split(" ")[1]) for name, place in found.items()}
    assert 12 <= min(heights.values()) < max(heights.values()) <= 340 - 46, "between the axes"
    higher, lower = (heights[f"L2S, layer 16, strength {alpha}"] for alpha in (0.9, 0.3))
    assert higher < lower, "a larger effect lies above"
    assert page.locator(".maps rect.less").count() == 0


def test_page_opens_with_a_strength_that_works_and_says_what_to_do(open_page, file_address: str) -> None:
    page = open_page(file_address)
    assert page.locator("output").text_content() == "0.9", "the best effect that is not hatched"
    assert "Move the strength" in page.locator(".lead").text_content()


def test_slider_moves_by_keyboard_and_mouse_and_is_kept_in_the_address(open_page, file_address: str) -> None:
    page = open_page(f"{file_address}#alpha=0.3&layer=16")
    slider = page.get_by_role("slider")
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert texts(page) == expected(16, 0.6)
    assert "alpha=0.6&layer=16" in page.url
    box = slider.bounding_box()
    page.mouse.click(box["x"] + box["width"] - 3, box["y"] + box["height"] / 2)
    assert texts(page) == expected(16, 1.2)
    page.keyboard.press("Home")
    assert texts(page) == [text_of("none", 0, 0.0, 0)] * 3


def test_prompt_and_layer_are_chosen_by_keyboard(open_page, file_address: str) -> None:
    page = open_page(f"{file_address}#alpha=0.6&layer=16")
    page.get_by_role("combobox", name="Prompt").focus()
    page.keyboard.press("ArrowDown")
    assert texts(page) == expected(16, 0.6, 1)
    assert page.locator(".question img").count() == 1, "the image of the question"
    assert page.locator(".question img").evaluate("image => image.naturalWidth") == 40
    page.get_by_role("combobox", name="Layer").select_option("12")
    assert texts(page) == expected(12, 0.6, 1)


@pytest.mark.parametrize("chart", [".maps figure:nth-child(1)", ".maps figure:nth-child(2)", ".plot"])
def test_map_and_frontier_choose_by_mouse_and_mark_the_same_setting(open_page, file_address: str, chart: str) -> None:
    page = open_page(f"{file_address}#alpha=0.6&layer=16")
    page.locator(f"{chart} [role=button]", has_text="layer 12, strength 0.3").first.click()
    assert texts(page) == expected(12, 0.3)
    chosen = page.locator(".chosen").evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")
    assert len(chosen) == 4, "two squares and two points"
    assert all("layer 12, strength 0.3" in label for label in chosen)


def test_map_moves_by_arrow_keys_and_chooses_by_enter(open_page, file_address: str) -> None:
    page = open_page(f"{file_address}#alpha=0.6&layer=16")
    focus_in(page, ".maps figure:nth-child(1)")
    page.keyboard.press("ArrowDown")  # the lower layer lies below
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    assert texts(page) == expected(12, 0.3)
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true", "the focus stays"


def test_frontier_moves_by_arrow_keys_and_chooses_by_space(open_page, file_address: str) -> None:
    page = open_page(f"{file_address}#alpha=0.6&layer=16")
    focus_in(page, ".plot")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    label = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert f"strength {page.locator('output').text_content()}:" in label


def test_everything_is_reached_by_tab(open_page, file_address: str) -> None:
    page = open_page(f"{file_address}#alpha=0.6&layer=16")
    stops = []
    for _ in range(8):
        page.keyboard.press("Tab")
        stops.append(page.evaluate("document.activeElement.tagName + (document.activeElement.classList[0] ?? '')"))
    assert stops == ["SELECT", "INPUT", "SELECT", "SPANtoken", "SPANtoken", "gcell", "gcell", "gpoint"]


def test_changed_words_alone_are_marked(open_page, file_address: str) -> None:
    page = open_page(f"{file_address}#alpha=0.3&layer=16")
    card = page.locator(".card:nth-child(2) .text")
    marked = card.locator("mark").evaluate_all("all => all.map(one => one.textContent)")
    assert marked == ["the", "brine", *["minutes.", "mean,", "layer", "16,", "strength", "0.3,", "prompt", "0"]]
    kept = card.evaluate("card => [...card.childNodes].filter(one => one.nodeType === 3).map(one => one.data).join('')")
    rest = iter(f"{PLAIN} (0)".split())
    assert all(word in rest for word in kept.split()), "what is not marked stands in the unsteered text in this order"
    assert not page.locator(".card:nth-child(1) mark").count()


def test_tokens_show_their_numbers_by_mouse_and_keyboard(open_page, file_address: str) -> None:
    page = open_page(f"{file_address}#alpha=0.6&layer=16")
    tokens = tokens_of(text_of("mean", 16, 0.6, 0), 0.6)
    strip = page.locator(".card:nth-child(2) .token")
    assert strip.count() == len(tokens)
    detail = page.locator(".card:nth-child(2) .detail")
    strip.nth(3).hover()
    for part in (tokens[3]["token"].strip(), "KL 0.60 nats", "steered:", "unsteered: “the” 50%"):
        assert part in detail.text_content()
    strip.first.focus()
    page.keyboard.press("ArrowRight")
    assert "KL 0.20 nats" in detail.text_content()


def test_bars_of_tokens_show_sign_and_norm_ratio_without_color(open_page, file_address: str) -> None:
    page = open_page(f"{file_address}#alpha=0.6&layer=16")
    bars = page.locator(".card:nth-child(2) .bar").evaluate_all(
        """all => all.map(one =>
          [one.className, one.getBoundingClientRect().height, getComputedStyle(one).backgroundColor])"""
    )
    for (name, height, fill), token in zip(bars, tokens_of(text_of("mean", 16, 0.6, 0), 0.6), strict=True):
        assert ("less" in name) == (token["cosine"] < 0)
        assert (fill == "rgba(0, 0, 0, 0)") == (token["cosine"] < 0), "a negative cosine is a hollow bar"
        assert height == pytest.approx(22 * token["norm_ratio"] / (0.6 * 0.2), abs=0.2)


def test_squares_are_hatched_where_texts_are_broken_or_unsafe(open_page, file_address: str) -> None:
    page = open_page(file_address)
    for alpha, pattern in ((0.3, "unsafe"), (0.9, None), (1.2, "broken")):
        square = page.locator(".maps figure:nth-child(1) .cell", has_text=f"layer 16, strength {alpha}:")
        fills = square.locator("rect[fill]").evaluate_all("all => all.map(one => one.getAttribute('fill'))")
        assert [pattern in fill for fill in fills] == ([True] if pattern else [])


@pytest.mark.parametrize(
    ("alpha", "reading"),
    [(0.6, "mean vector: 0.180, within 0.270, up to which texts read well"),
     (1.2, "mean vector: 0.360, too strong: from 0.360 on, more than 20% of the texts are broken"),
     (0, "mean vector: 0.000, within 0.270")],
)  # fmt: skip
def test_gauge_shows_the_range_that_reads_well_and_where_it_is_now(
    open_page, file_address: str, alpha, reading
) -> None:
    page = open_page(f"{file_address}#alpha={alpha}&layer=16")
    shown = page.locator(".gauge").text_content()
    assert reading in shown and "on toy, at this layer, at least 80% of the texts of a square read well" in shown
    good, beyond = (page.locator(f".gauge .{name}").first.bounding_box() for name in ("validated", "beyond"))
    needle = page.locator(".gauge .needle").first.bounding_box()["x"]
    assert good["x"] + good["width"] < beyond["x"]
    assert (needle >= beyond["x"] - 1) == (alpha == 1.2)


def test_colors_are_those_of_the_figures(open_page, file_address: str) -> None:
    page = open_page(file_address)
    style = "getComputedStyle(document.querySelector('.steerlab-page'))"
    found = [page.evaluate(f"{style}.getPropertyValue('--{name}')").strip() for name in ("more", "less")]
    assert [color.upper() for color in found] == [MORE, LESS]
    for method in ("mean", "l2s"):
        assert page.locator(f".legend path[fill='{plots.METHODS[method].color}']").count() == 1


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_axe_finds_no_serious_fault_and_nothing_is_cut_off(open_page, file_address: str, size, scheme: str) -> None:
    page = open_page(f"{file_address}#alpha=0.6&layer=16", size, scheme)
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    serious = {
        f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found if one["impact"] in ("serious", "critical")
    }
    assert not serious
    assert page.evaluate("document.documentElement.scrollWidth") == size[0], "no scrolling sideways"
    small = page.locator("svg text").evaluate_all(
        "all => Math.min(...all.map(one => one.getBoundingClientRect().height))"
    )
    assert small >= 10, "letters keep their size"


def test_page_fetches_nothing(open_page, file_address: str) -> None:
    page = open_page(f"{file_address}#alpha=0.6&layer=16")
    page.get_by_role("slider").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(200)
    assert {address.split(":")[0] for address in page.requested} <= {"file", "data"}
    assert [address for address in page.requested if address.startswith("file")] == [file_address]
    refused = page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', error => String(error))")
    assert "Failed to fetch" in refused, "the page's own policy forbids it"


def test_without_javascript_a_plain_table_has_every_text(open_page, file_address: str) -> None:
    page = open_page(file_address, java_script_enabled=False)
    rows = page.locator("noscript tbody tr")
    assert rows.count() == 3 + 2 * 2 * 4 * 3
    assert rows.filter(has_text=text_of("l2s", 16, 0.6, 2)).count() == 1
    assert page.locator("h1").text_content() == "What steering does"


def test_markup_in_texts_stays_text(open_page, tmp_path: Path) -> None:
    frame, given = sweep_frames(prompts=1)
    evil = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>\n\nnext  line"
    given = given.assign(text=evil, prompt=evil)
    page = open_page(plots.page(frame, given, title=evil).save(tmp_path / "page.html").as_uri())
    assert texts(page) == [evil] * 3
    assert page.evaluate("window.hacked") is None
    assert not page.errors


def test_first_paint_and_slider_are_fast_on_a_page_as_large_as_the_demos(
    open_page, tmp_path: Path, record_property
) -> None:
    alphas = [round(0.15 * i, 2) for i in range(9)]
    path = plots.page(*sweep_frames(alphas, [12, 16], prompts=12)).save(tmp_path / "page.html")
    page = open_page(path.as_uri())
    page.wait_for_timeout(300)
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    moves = page.evaluate(
        """() => {
          const slider = document.querySelector("input[type=range]"), found = [];
          for (let i = 0; i < 27; i++) {
            const begin = performance.now();
            slider.value = i % 9;
            slider.dispatchEvent(new Event("input"));
            document.body.getBoundingClientRect();  // lays the page out
            found.push(performance.now() - begin);
          }
          return found.sort((a, b) => a - b);
        }"""
    )
    middle, slowest = moves[len(moves) // 2], moves[-1]
    size = path.stat().st_size / 1e6
    print(f"first paint {paint:.0f} ms; a move of the slider {middle:.1f} ms, at most {slowest:.1f} ms; {size:.2f} MB")
    assert paint < 1000
    assert middle < 50
    assert size < 2
