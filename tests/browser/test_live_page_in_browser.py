"""The served page and the widget's module in a headless Chromium, with a tiny model behind them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import steerlab
from steerlab.live.answers import Answers
from steerlab.live.server import Server
from steerlab.methods import SteeringVector
from steerlab.plots.page.document import asset

pytestmark = pytest.mark.browser
PROMPTS = ["Do herons sleep in the reeds?", "Is it cold?"]
NEW = 8


@pytest.fixture(scope="module")
def answers() -> Answers:
    model = steerlab.testing.tiny_lm("llama", backend="hooks")
    draw = torch.Generator().manual_seed(0)
    one, two = (2 * torch.randn(model.hidden_size, generator=draw) for _ in range(2))
    methods = {"mean": SteeringVector({1: one, 2: two}), "l2s": SteeringVector({1: two, 2: one})}
    return Answers(model, methods, PROMPTS, alphas=[0.0, 0.6, 1.2], max_new_tokens=NEW)


@pytest.fixture(scope="module")
def address(answers: Answers) -> Iterator[str]:
    with serving(answers) as found:
        yield found


@contextmanager
def serving(answers: Answers) -> Iterator[str]:
    server = Server(answers)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    yield server.address
    server.stop()
    thread.join(10)
    assert not thread.is_alive()


def of_generate(answers: Answers, layer: int, alpha: float, prompt: str) -> list[str]:
    """What `steerlab.generate` gives without steering and for each method."""
    found = [steerlab.generate(answers.model, [prompt], max_new_tokens=NEW, progress=False)[0]]
    for by_layer in answers.methods.values():
        options = {"steer": by_layer[layer], "alpha": alpha, "positions": "last+generated"}
        found.append(steerlab.generate(answers.model, [prompt], max_new_tokens=NEW, progress=False, **options)[0])
    return found


def wait_for_texts(page, wanted: list[str]) -> None:
    read = "[...document.querySelectorAll('.card .text')].map(one => one.textContent)"
    page.wait_for_function(f"wanted => JSON.stringify({read}) === JSON.stringify(wanted)", arg=wanted, timeout=20_000)


def test_served_page_shows_what_generate_gives(open_page, answers: Answers, address: str) -> None:
    page = open_page(f"{address}#alpha=0.6&layer=2")
    wait_for_texts(page, of_generate(answers, 2, 0.6, PROMPTS[0]))
    page.get_by_role("slider").focus()
    page.keyboard.press("ArrowRight")
    wait_for_texts(page, of_generate(answers, 2, 1.2, PROMPTS[0]))
    page.get_by_role("combobox", name="Layer").select_option("1")
    wait_for_texts(page, of_generate(answers, 1, 1.2, PROMPTS[0]))
    assert page.locator(".card:nth-child(2) .token").count() == NEW
    assert not page.errors
    origin = address.split("?")[0]
    leave = [requested for requested in page.requested if not requested.startswith((origin, "data:"))]
    assert not leave, "no request leaves the page's own server"


def test_own_prompt_is_answered(open_page, answers: Answers, address: str) -> None:
    page = open_page(f"{address}#alpha=0.6&layer=2")
    page.get_by_label("Your own prompt").fill("Why do fish sleep?")
    page.get_by_role("button", name="Answer").click()
    wait_for_texts(page, of_generate(answers, 2, 0.6, "Why do fish sleep?"))
    page.get_by_role("slider").focus()
    page.keyboard.press("Home")
    assert page.locator(".gauge .reading").all_text_contents() == ["mean vector: 0.000", "L2S: 0.000"]
    page.get_by_label("Your own prompt").fill("Is it late?")
    page.get_by_role("button", name="Answer").click()
    wait_for_texts(page, of_generate(answers, 2, 0.0, "Is it late?"))


@pytest.mark.filterwarnings("ignore:without steering")  # a random model writes no words
def test_served_map_and_frontier_choose_texts_that_generate_gives(open_page, answers: Answers) -> None:
    mapped = Answers(
        answers.model, answers.methods, PROMPTS, alphas=[0.0, 0.6, 1.2], max_new_tokens=NEW, sweep_map=True
    )
    with serving(mapped) as address:
        page = open_page(f"{address}#alpha=0.6&layer=2")
        wait_for_texts(page, of_generate(answers, 2, 0.6, PROMPTS[0]))
        page.locator(".maps [role=button]", has_text="layer 1, strength 1.2").first.click()
        wait_for_texts(page, of_generate(answers, 1, 1.2, PROMPTS[0]))
        page.keyboard.press("ArrowUp")  # the higher layer lies above
        page.keyboard.press("Enter")
        wait_for_texts(page, of_generate(answers, 2, 1.2, PROMPTS[0]))
        page.locator(".plot [role=button]", has_text="layer 1, strength 0.6").first.focus()
        page.keyboard.press("Space")
        wait_for_texts(page, of_generate(answers, 1, 0.6, PROMPTS[0]))
        assert not any("/answer" in one for one in page.requested), "the page holds these texts"
        page.get_by_label("Your own prompt").fill("Why do fish sleep?")
        page.get_by_role("button", name="Answer").click()
        wait_for_texts(page, of_generate(answers, 1, 0.6, "Why do fish sleep?"))
        assert not page.errors


def test_served_model_without_vectors_answers_by_itself(open_page, answers: Answers) -> None:
    with serving(Answers(answers.model, {}, PROMPTS, max_new_tokens=NEW)) as address:
        page = open_page(address)
        wait_for_texts(page, of_generate(answers, 1, 0.6, PROMPTS[0])[:1])
        assert page.get_by_role("slider").count() == 0 and not page.errors


def test_page_without_the_token_is_refused(open_page, address: str) -> None:
    assert "token in the address is missing or wrong" in open_page(address.split("?")[0]).locator("body").text_content()


WIDGET = """async ([source, data, canned]) => {
  const module = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  const listeners = new Set(), sent = [];
  const model = {
    get: (name) => ({ page: data, live: true })[name],
    on: (_, listener) => listeners.add(listener), off: (_, listener) => listeners.delete(listener),
    send: (message) => {
      sent.push(message);
      if (!message.request) return;
      const { method, layer, alpha } = message.request, text = `${method} ${layer} ${alpha}`;
      const done = { text, broken: false, unsafe: null, norm_ratio: 0.2, tokens: [], words: [] };
      const send = (event) => listeners.forEach((listener) => listener({ id: message.id, event }));
      [{ text: "half" }, { done }, null].forEach(send);
    },
  };
  const end = module.default.render({ model, el: document.body });
  window.sent = sent;
  window.end = end;
}"""


def test_widget_module_asks_the_kernel_and_shows_its_answers(open_page, answers: Answers) -> None:
    page = open_page("about:blank")
    page.evaluate(WIDGET, [asset("page.js"), answers.page(), None])
    wait_for_texts(page, ["null 1 0", "mean 1 1.2", "l2s 1 1.2"])
    assert [message["request"]["method"] for message in page.evaluate("sent")] == [None, "mean", "l2s"]
    views = {str(message["id"]).split("-")[0] for message in page.evaluate("sent")}
    assert len(views) == 1 and len(views.pop()) > 6, "ids that another view of the widget does not use"
    open_to_shortcuts = "input, select, textarea, button, [tabindex]"
    marked = page.locator(open_to_shortcuts).evaluate_all(
        "all => all.map(one => one.hasAttribute('data-lm-suppress-shortcuts'))"
    )
    assert marked and all(marked), "else JupyterLab takes their arrow keys for its cells"
    page.get_by_role("slider").focus()
    page.keyboard.press("ArrowLeft")
    wait_for_texts(page, ["null 1 0", "mean 1 0.6", "l2s 1 0.6"])
    page.evaluate("end()")
    assert page.locator("body *").count() == 0
    assert not page.errors


def test_saved_page_of_a_model_shows_what_generate_gives(open_page, tmp_path) -> None:
    model = steerlab.testing.tiny_lm("llama", backend="hooks", n_layers=18)
    draw = torch.Generator().manual_seed(0)
    vector = SteeringVector({layer: 2 * torch.randn(model.hidden_size, generator=draw) for layer in (8, 16)})
    options = {"alphas": [0.0, 0.3, 0.6], "max_new_tokens": NEW, "progress": False}
    with pytest.warns(UserWarning, match="count as fluent"):  # a random model writes no words
        made = steerlab.live.page_of(model, PROMPTS, {"v": vector}, layers=[8, 16], **options)
    page = open_page(made.save(tmp_path / "page.html").as_uri() + "#alpha=0.6&layer=16")
    given = {"max_new_tokens": NEW, "progress": False}
    steered = steerlab.generate(
        model, PROMPTS[:1], steer=vector.part(16), alpha=0.6, positions="last+generated", **given
    )[0]
    plain = steerlab.generate(model, PROMPTS[:1], **given)[0]
    assert steered != plain
    wait_for_texts(page, [plain, steered])
