"""Pages made of frames: what they hold, what they refuse, and the contract's check."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from page_data import ALPHAS, LAYERS, METHODS, sweep_frames, text_of

from steerlab import plots
from steerlab.errors import DataError
from steerlab.plots.page import Page, check_contract
from steerlab.plots.page.contract import KEYS, MAX_ALPHAS, MAX_METHODS, MAX_TEXTS
from steerlab.plots.page.document import document


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return plots.page(*sweep_frames()).to_dict()


def test_page_holds_every_text_once_and_the_unsteered_ones_first(data: dict[str, Any]) -> None:
    found = [(t["method"], t["layer"], data["alphas"][t["alpha"]], t["prompt"], t["text"]) for t in data["texts"]]
    assert found[:3] == [(None, None, 0.0, i, text_of("mean", 12, 0.0, i)) for i in range(3)]
    steered = {(METHODS[m], LAYERS[layer], alpha, p): text for m, layer, alpha, p, text in found[3:]}
    assert len(steered) == len(found) - 3 == len(METHODS) * len(LAYERS) * (len(ALPHAS) - 1) * 3
    assert all(text_of(*key) == text for key, text in steered.items())


def test_cells_are_means_over_prompts(data: dict[str, Any]) -> None:
    frame, _ = sweep_frames()
    means = frame.pivot_table(index=["method", "layer", "alpha"], columns="metric", values="value", aggfunc="mean")
    assert len(data["cells"]) == len(means)
    for cell in data["cells"]:
        expected = means.loc[(METHODS[cell["method"]], LAYERS[cell["layer"]], data["alphas"][cell["alpha"]])]
        assert cell["effect"] == pytest.approx(expected["pirate"], rel=6e-3)
        assert cell["side_effect"] == pytest.approx(expected["kl"], rel=6e-3)
        assert cell["broken"] == expected["broken"]
        assert cell["unsafe"] == expected["unsafe"], "of the one prompt that asks for something unsafe"


def test_frames_of_several_positions_are_not_averaged() -> None:
    frame, texts = sweep_frames()
    both = pd.concat([frame.assign(positions="last"), frame.assign(positions="all", value=frame["value"] + 1)])
    with pytest.raises(DataError, match=r"choose one of each of \['positions'\]"):
        plots.page(both, texts)


def test_unsafe_texts_that_are_broken_are_not_fluent_and_do_not_count(data: dict[str, Any]) -> None:
    frame, texts = sweep_frames()
    frame.loc[frame["metric"] == "unsafe", "value"] = 1.0
    found = plots.page(frame, texts).to_dict()
    broken = found["alphas"].index(1.2)
    assert {cell["unsafe"] for cell in found["cells"] if cell["alpha"] == broken} == {0.0}
    assert {text["unsafe"] for text in found["texts"] if text["prompt"] == 1} == {None}


def test_tokens_refer_to_words_and_images_are_inside(data: dict[str, Any]) -> None:
    text = next(t for t in data["texts"] if t["tokens"])
    assert "".join(data["words"][token[0]] for token in text["tokens"]) == text["text"]
    assert [len(prompt["images"]) for prompt in data["prompts"]] == [0, 1, 0]
    assert data["prompts"][1]["images"][0].startswith("data:image/png;base64,")


def test_saved_page_is_one_file_with_the_same_contract(tmp_path: Path, data: dict[str, Any]) -> None:
    html = Page(data).save(tmp_path / "page.html").read_text()
    (inline,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    assert json.loads(inline) == data
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", html), "nothing is fetched"
    assert "connect-src" not in html


@given(st.text(), st.text())
def test_any_text_survives_the_document(title: str, text: str) -> None:
    frame, texts = sweep_frames(alphas=[0.0, 1.0], layers=[1], methods=["mean"], prompts=1)
    title = title.encode("utf-8", "replace").decode()
    text = text.encode("utf-8", "replace").decode()
    made = plots.page(frame, texts.assign(text=text, prompt=text, behavior=text, tokens=None), title=title)
    html = document(made.data)
    (inline,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    assert json.loads(inline)["texts"][1]["text"] == text
    assert html.count("<script") == 2 and html.count("</script") == 2


@given(st.data())
def test_contract_with_any_entry_missing_or_of_another_type_is_refused_by_name(draw: st.DataObject) -> None:
    changed = copy.deepcopy(plots.page(*sweep_frames(prompts=1)).to_dict())
    key = draw.draw(st.sampled_from([key for key in KEYS if key != "version"]))
    if draw.draw(st.booleans()):
        del changed[key]
    else:
        changed[key] = object()
    with pytest.raises(DataError, match=key):
        check_contract(changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=2), "no page of version 1"),
        (lambda d: d.update(more=1), "unknown entry 'more'"),
        (lambda d: d.update(alphas=[0.5, 1.0]), "0 among them"),
        (lambda d: d["alphas"].append(float("nan")), "finite strengths"),
        (lambda d: d["cells"][3].update(layer=9), r"cells\[3\].layer is 9: expected a whole number below 2"),
        (lambda d: d["cells"][0].update(broken=1.5), r"cells\[0\].broken is 1.5: expected a share"),
        (lambda d: d["cells"][0].pop("norm_ratio"), r"cells\[0\] lacks \['norm_ratio'\]"),
        (lambda d: d["texts"][5].update(method=None, layer=True), r"texts\[5\].layer"),
        (lambda d: d["texts"][5].update(text=None), r"texts\[5\].text is None: expected str"),
        (lambda d: d["texts"][-1].update(tokens=[[0, 1.0]]), "expected .word, cosine, norm_ratio, kl, top, unsteered."),
        (lambda d: d["texts"][-1]["tokens"][0].__setitem__(0, 10**6), "words below"),
        (lambda d: d["texts"][-1]["tokens"][0].__setitem__(3, float("inf")), "finite numbers"),
        (lambda d: d["prompts"][0].update(images="x"), r"prompts\[0\].images"),
    ],
)
def test_faults_of_a_contract_are_named(data: dict[str, Any], change: Any, message: str) -> None:
    changed = copy.deepcopy(data)
    change(changed)
    with pytest.raises(DataError, match=message):
        Page(changed)


@pytest.mark.parametrize("column", ["method", "layer", "alpha", "example_id", "metric", "value"])
def test_missing_column_of_the_frame_is_named(column: str) -> None:
    frame, texts = sweep_frames(prompts=1)
    with pytest.raises(DataError, match=rf"page\(frame=\) needs .*lacks \['{column}'\]"):
        plots.page(frame.drop(columns=column), texts)


@pytest.mark.parametrize("column", ["method", "layer", "alpha", "example_id", "prompt", "text"])
def test_missing_column_of_the_texts_is_named(column: str) -> None:
    frame, texts = sweep_frames(prompts=1)
    with pytest.raises(DataError, match=rf"page\(texts=\) needs .*lacks \['{column}'\]"):
        plots.page(frame, texts.drop(columns=column))


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"alphas": np.linspace(0, 1, MAX_ALPHAS + 1).tolist()}, "26 alphas .at most 25.*keep one in 2 of the 26"),
        ({"methods": [f"m{i}" for i in range(MAX_METHODS + 1)]}, "7 methods .at most 6"),
        ({"prompts": 400, "alphas": np.linspace(0, 1, 8).tolist()}, r"texts .at most 5000.*example_id.*isin.kept"),
    ],
)  # fmt: skip
def test_page_with_too_much_says_how_to_thin_it_out(axes: dict[str, Any], message: str) -> None:
    assert MAX_TEXTS == 5000
    with pytest.raises(DataError, match=message):
        plots.page(*sweep_frames(images=False, **axes))


def test_frames_that_do_not_belong_together_are_refused() -> None:
    frame, texts = sweep_frames(prompts=1)
    with pytest.raises(DataError, match="have no unsteered text: add rows with alpha 0"):
        plots.page(frame, texts[texts["alpha"] != 0])
    with pytest.raises(DataError, match=r"the text of \('mean', 12, 0.6, 'egg-0'\) has no row in the frame"):
        plots.page(frame[frame["alpha"] != 0.6], texts)
    with pytest.raises(DataError, match="the frame has no metric 'joy'"):
        plots.page(frame, texts, effect="joy")
    with pytest.raises(DataError, match=r"there are several texts of .*'alpha': 0.3.*: select one model"):
        plots.page(frame, pd.concat([texts, texts]))
    with pytest.raises(DataError, match="measure two"):
        plots.page(frame[frame["metric"] != "kl"], texts)
    one_short = frame.drop(frame.index[(frame["metric"] == "kl") & (frame["alpha"] == 0.3)][0])
    with pytest.raises(DataError, match="some texts of the frame have no value of 'kl'"):
        plots.page(one_short, texts)
    with pytest.raises(DataError, match="a page needs every prompt at every setting"):
        both = sweep_frames(prompts=2, images=False)
        plots.page(*(one[(one["example_id"] != "egg-0") | (one["alpha"] != 0.6)] for one in both))
    with pytest.raises(DataError, match="share those columns with another"):
        plots.page(pd.concat([frame, frame[frame["alpha"] == 0].assign(value=9.0)]), texts)
    one_short = frame.drop(frame.index[(frame["metric"] == "broken") & (frame["alpha"] == 0.3)][0])
    with pytest.raises(DataError, match="some texts of the frame have no value of 'broken'"):
        plots.page(one_short, texts)


def test_effect_and_side_effect_are_chosen_by_name_or_order() -> None:
    frame, texts = sweep_frames(prompts=1)
    found = plots.page(frame, texts, effect="kl", labels={"kl": "distance"}).to_dict()
    assert found["effect"] == {"name": "kl", "label": "distance"}
    assert found["side_effect"] == {"name": "pirate", "label": "pirate"}


def test_layers_may_be_sites_and_methods_may_be_unknown() -> None:
    frame, texts = sweep_frames(prompts=1)
    names = {12: "12.attn_out", 16: 16}
    changed = [one.assign(layer=one["layer"].map(names), method="pirate " + one["method"]) for one in (frame, texts)]
    found = plots.page(*changed).to_dict()
    assert found["layers"] == [16, "12.attn_out"]
    colors = [method["color"] for method in found["methods"]]
    assert len(set(colors)) == 2 and all(re.fullmatch("#[0-9A-F]{6}", color) for color in colors)


def test_frame_without_norm_ratios_has_none() -> None:
    frame, texts = sweep_frames(prompts=1)
    found = plots.page(frame.drop(columns="norm_ratio"), pd.DataFrame(texts)).to_dict()
    assert {cell["norm_ratio"] for cell in found["cells"]} == {None}
