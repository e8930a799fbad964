"""Activation patching against plain hooks, one forward a cell."""

from pathlib import Path
from typing import Any

import pandas as pd
import plain
import pytest
import torch
from PIL import Image
from torch import Tensor

from steerlab import Example, Site, load, steer
from steerlab.analysis._patching.run import PatchRun
from steerlab.analysis.patching import patch
from steerlab.errors import DataError, LayoutError, PositionError
from steerlab.models.engine import site_path
from steerlab.models.layout import module_at
from steerlab.models.model import Model
from steerlab.models.sites import INPUTS
from steerlab.testing import FAMILIES, tiny_lm, tiny_vlm

CLEAN, CORRUPTED = "if we go", "if me go"
POINTS = ("block_in", "heads", "attn_out", "mlp_out", "block_out")


def raw_lm(family: str, **options: Any) -> Model:
    """A tiny model whose prompts are read as they are, without a template."""
    model = tiny_lm(family)
    return Model(model.hf, model.tokenizer, model.layout, id=model.id, chat=False, **options)


def first_logits(logits: Tensor) -> Tensor:
    return logits[:, 7] - logits[:, 11]


@torch.no_grad()
def run(model: Model, ids: tuple[int, ...], site: Site, put: tuple[int, slice, Tensor] | None = None) -> Any:
    """The state at a site and the metric, of one whole row without a cache, with a state put into a column of it."""
    seen: list[Tensor] = []

    def change(h: Tensor) -> Tensor:
        h = h.clone()
        if put is not None:
            column, part, state = put
            h.view(len(ids), -1)[column, part] = state
        seen.append(h.detach().view(len(ids), -1))
        return h

    with plain.changing(module_at(model.hf, site_path(site, model.layout)), change, site.point in INPUTS):
        logits = model.hf(input_ids=torch.tensor([ids]), use_cache=False).logits
    return seen[0], float(first_logits(logits[:, -1])[0])


def check(model: Model, frame: Any, alignment: dict[int, int] | None = None, heads: bool = False) -> None:
    """Every cell of a frame by hand."""
    clean, corrupted = (model.encode(text).ids for text in (CLEAN, CORRUPTED))
    for cell in frame.itertuples():
        site = Site(cell.layer) if isinstance(cell.layer, int) else Site(*parsed(cell.layer))
        states, goal = run(model, clean, site)
        width = states.shape[1] // 4
        part = slice(cell.head * width, (cell.head + 1) * width) if heads else slice(None)
        source = cell.column if alignment is None else alignment[cell.column]
        _, expected = run(model, corrupted, site, (cell.column, part, states[source, part]))
        _, base = run(model, corrupted, site)
        scale = abs(goal - base)
        assert cell.value == pytest.approx(expected, abs=1e-4 * scale + 1e-6), (cell.layer, cell.column)
        assert cell.restored == pytest.approx((expected - base) / (goal - base), abs=2e-3)
        assert (cell.token, cell.clean_token) == tuple(
            model.tokenizer.decode([i]) for i in (corrupted[cell.column], clean[source])
        )


def parsed(label: str) -> tuple[int, str]:
    layer, point = label.split(".")
    return int(layer), point


@pytest.mark.parametrize("family", FAMILIES)
def test_every_cell_equals_one_forward_with_a_hook(family: str) -> None:
    model = raw_lm(family)
    frame = patch(model, [CLEAN], [CORRUPTED], metric=first_logits)
    n = len(model.encode(CORRUPTED))
    assert len(frame) == n * model.n_layers
    assert set(frame.loc[frame["restored"].abs() < 1e-12, "column"]) >= {0, 1, 2, 3}, "before the first difference"
    check(model, frame)
    last = frame[(frame["layer"] == model.n_layers - 1) & (frame["column"] == n - 1)]
    assert last["restored"].item() == pytest.approx(1, abs=1e-4), "the last state decides what is said"


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_every_point_and_each_head(family: str, point: str) -> None:
    model = raw_lm(family)
    sites = [Site(k, point) for k in range(model.n_layers)]
    check(model, patch(model, [CLEAN], [CORRUPTED], metric=first_logits, layers=sites, positions=["last", "prompt[3]"]))
    if point == "heads":
        frame = patch(model, [CLEAN], [CORRUPTED], metric=first_logits, layers=sites, positions="last", heads=[0, 3])
        assert frame["head"].tolist() == [0, 3] * model.n_layers
        check(model, frame, heads=True)


@pytest.mark.parametrize("rows", [pytest.param(1, marks=pytest.mark.nightly), 4])
def test_halved_batches_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    model, values = raw_lm("llama"), PatchRun.values
    wanted = patch(model, [CLEAN], [CORRUPTED], metric=first_logits)

    def small(run: PatchRun, row: Any, n: int, *rest: Any) -> Any:
        if n > rows:
            raise torch.OutOfMemoryError(f"CUDA out of memory: {n} rows")
        return values(run, row, n, *rest)

    monkeypatch.setattr(PatchRun, "values", small)
    pd.testing.assert_frame_equal(patch(model, [CLEAN], [CORRUPTED], metric=first_logits), wanted, rtol=1e-4, atol=1e-5)


def test_sites_of_several_points_and_without_shortcuts() -> None:
    sites = [Site(2, "mlp_out"), Site(2), Site(1, "attn_out"), Site(0, "block_in")]
    for model in (raw_lm("llama"), raw_lm("llama", prefix_caching=False), raw_lm("llama", backend="hooks")):
        check(model, patch(model, [CLEAN], [CORRUPTED], metric=first_logits, layers=sites))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.filterwarnings("ignore:patch puts in:UserWarning")  # Gemma 2 normalizes it afterwards
@pytest.mark.parametrize("point", ["block_out", "attn_out", "heads"])
def test_attribution_equals_a_small_step_towards_the_clean_state(family: str, point: str) -> None:
    model = raw_lm(family)
    sites, heads = [Site(0, point), Site(2, point)], [1] if point == "heads" else None
    frame = patch(
        model, [CLEAN], [CORRUPTED], metric=first_logits, layers=sites, heads=heads, method="attribution",
    )  # fmt: skip
    clean, corrupted = (model.encode(text).ids for text in (CLEAN, CORRUPTED))
    step = 0.01  # in both directions: norms are computed in float32, where smaller steps are lost
    for cell in frame.itertuples():
        site = Site(cell.layer) if isinstance(cell.layer, int) else Site(*parsed(cell.layer))
        (states, _), (own, base) = run(model, clean, site), run(model, corrupted, site)
        width = states.shape[1] // 4
        part = slice(width, 2 * width) if heads else slice(None)
        change = step * (states[cell.column, part] - own[cell.column, part])
        above, below = (
            run(model, corrupted, site, (cell.column, part, own[cell.column, part] + sign * change))[1]
            for sign in (1, -1)
        )
        slope = (above - below) / (2 * step)
        assert cell.value == pytest.approx(base + slope, abs=2e-3 * abs(cell.clean - base) + 5e-4)
        assert cell.corrupted == pytest.approx(base, rel=1e-5)
    assert all(p.grad is None for p in model.hf.parameters()) and not frame["restored"].eq(0).all()


def test_prompts_of_other_lengths_need_an_alignment() -> None:
    model = raw_lm("llama")
    longer = "so " + CLEAN
    with pytest.raises(DataError, match=r"clean prompt has 12 tokens and the corrupted one 9: say which belong"):
        patch(model, [longer], [CORRUPTED], metric=first_logits)
    clean, corrupted = model.encode(longer).ids, model.encode(CORRUPTED).ids
    for alignment, source in (("end", 7), ("start", 4), ({4: 6}, 6)):
        frame = patch(model, [longer], [CORRUPTED], metric=first_logits, layers=[1], alignment=alignment)
        cell = frame[frame["column"] == 4].iloc[0]
        states, _ = run(model, clean, Site(1))
        assert cell["value"] == pytest.approx(
            run(model, corrupted, Site(1), (4, slice(None), states[source]))[1], rel=1e-4
        )
        assert len(frame) == (1 if isinstance(alignment, dict) else 9)
        assert cell["clean_token"] == model.tokenizer.decode([clean[source]])
    with pytest.raises(DataError, match=r"the alignment pairs \[\(9, 0\)\]; the corrupted prompt has 9 tokens"):
        patch(model, [longer], [CORRUPTED], metric=first_logits, alignment={9: 0})
    with pytest.raises(DataError, match="leaves out every token of these positions"):
        patch(model, [longer], [CORRUPTED], metric=first_logits, positions="last", alignment={4: 6})


def test_answers_are_a_logit_difference_for_each_pair_of_prompts() -> None:
    model = raw_lm("llama")
    words = [model.tokenizer.decode([i]) for i in (7, 11)]
    ours, theirs = [CLEAN, CORRUPTED], [CORRUPTED, CLEAN]
    one = patch(model, ours, theirs, (words[0], words[1]), layers=[1, 2])
    pairs = patch(model, ours, theirs, [(words[0], words[1]), (words[1], words[0])], layers=[1, 2])
    half = len(one) // 2
    assert one["example_id"].nunique() == 2 and one["value"][:half].tolist() == pairs["value"][:half].tolist()
    assert one["value"][half:].tolist() == pytest.approx((-pairs["value"][half:]).tolist())
    check(model, patch(model, ours[:1], theirs[:1], (words[0], words[1]), layers=[1]))


def test_images_of_the_same_tokens_are_patched() -> None:
    model = tiny_vlm("llava")
    images = [Image.new("RGB", (28, 28), color) for color in ("red", "blue")]
    red, blue = (Example("What is it?", images=(image,)) for image in images)
    frame = patch(model, [red], [blue], metric=first_logits, layers=[1], positions=["images", "last"])
    rows = [model.encode("What is it?", images=[image]) for image in images]
    inputs = [model.inputs(model.batch([row])) for row in rows]
    seen: list[Tensor] = []
    with torch.no_grad():
        with plain.hooked(model, 1, lambda h: seen.append(h) or h):
            model.hf(**inputs[0])
        for cell in frame.itertuples():
            at = torch.tensor([cell.column])
            with plain.hooked(model, 1, lambda h, at=at: h.index_copy(1, at, seen[0][:, at])):
                expected = float(first_logits(model.hf(**inputs[1]).logits[:, -1]))
            assert cell.value == pytest.approx(expected, abs=1e-4)
    assert frame["restored"].abs().max() > 1e-3


def test_patch_inside_a_steering_block_is_unsteered() -> None:
    model = raw_lm("llama")
    before = patch(model, [CLEAN], [CORRUPTED], metric=first_logits, layers=[1])
    with steer(model, {2: torch.ones(32)}) as open_run:
        inside = patch(model, [CLEAN], [CORRUPTED], metric=first_logits, layers=[1])
        assert open_run.steered_tokens == 0
        open_run.generate(["Hi"], max_new_tokens=1)
    assert inside["value"].tolist() == before["value"].tolist()


def test_a_metric_sees_one_row_so_that_cells_cannot_mix() -> None:
    model = raw_lm("llama")
    mixing = patch(model, [CLEAN], [CORRUPTED], metric=lambda x: first_logits(x).mean().expand(len(x)), layers=[0, 2])
    check(model, mixing)
    twice = patch(
        model, [CLEAN], [CORRUPTED], metric=first_logits, layers=[Site(1, "heads")], heads=[0, 0, 2],
        positions=["last", "last"],
    )  # fmt: skip
    assert twice["head"].tolist() == [0, 2]
    check(model, twice, heads=True)


def test_patch_refuses_what_it_cannot_do() -> None:
    model = raw_lm("llama")
    with pytest.raises(DataError, match="the metric gave nan for finite logits"):
        patch(model, [CLEAN], [CORRUPTED], metric=lambda x: x[:, 7] * torch.nan)
    for positions in ([], "last+generated"):
        with pytest.raises(PositionError, match="patch writes to tokens of the prompt"):
            patch(model, [CLEAN], [CORRUPTED], metric=first_logits, positions=positions)
    with pytest.raises(DataError, match="give the two answers"):
        patch(model, [CLEAN], [CORRUPTED])
    with pytest.raises(DataError, match=r"'two words' \(str\) is \d+ tokens of this model"):
        patch(model, [CLEAN], [CORRUPTED], ("a", "two words"))
    with pytest.raises(DataError, match="2 clean prompts and 1 corrupted ones"):
        patch(model, [CLEAN, "Hi"], [CORRUPTED], metric=first_logits)
    with pytest.raises(DataError, match=r"the metric is .* on the clean prompt and .*: nothing to restore"):
        patch(model, [CLEAN], [CLEAN], metric=first_logits)
    with pytest.raises(DataError, match=r"the metric gave \(\) for logits \(1, \d+\)"):
        patch(model, [CLEAN], [CORRUPTED], metric=lambda logits: logits[0, 7])
    with pytest.raises(DataError, match="the metric cuts the gradient"):
        patch(model, [CLEAN], [CORRUPTED], metric=lambda x: x[:, 7].detach(), method="attribution")
    with pytest.raises(LayoutError, match=r"heads=\[4\].*numbers from 0 to 3"):
        patch(model, [CLEAN], [CORRUPTED], metric=first_logits, layers=[Site(1, "heads")], heads=[4])
    with pytest.raises(LayoutError, match=r"and the sites where they are"):
        patch(model, [CLEAN], [CORRUPTED], metric=first_logits, layers=[1], heads=[0])
    with pytest.raises(PositionError, match=r"prompt\[99\]"):
        patch(model, [CLEAN], [CORRUPTED], metric=first_logits, positions="prompt[99]")


@pytest.mark.nightly
def test_a_copied_word_is_found_where_it_stands_and_where_it_is_said(smollm2_cache: Path) -> None:
    model = load("smollm2", chat=False)
    text = "The code word is {}. Remember it: the code word is"
    frame = patch(model, [text.format("red")], [text.format("blue")], (" red", " blue"))
    assert frame["clean"].iloc[0] > 1 and frame["corrupted"].iloc[0] < -1, "the model copies the word"
    restored = frame.pivot(index="layer", columns="column", values="restored")
    word = frame.loc[frame["clean_token"] != frame["token"], "column"].unique()
    assert len(word) == 1 and restored.loc[0].idxmax() == word[0] and restored.loc[0, word[0]] > 0.9
    assert restored.loc[29].idxmax() == restored.columns[-1] and restored.loc[29].max() == pytest.approx(1, abs=1e-3)
    carries = restored.idxmax(axis=1)
    assert set(carries) == {word[0], restored.columns[-1]}, "first at the word, then at the last token, nowhere between"
    assert (carries.diff().fillna(0) != 0).sum() == 1
