"""The vision tower and the projector: the patches of each row, read and written."""

from itertools import product
from pathlib import Path
from typing import Any

import image_models
import plain
import pytest
import torch
from by_hand import block_states, greedy, hooked, processed, taken
from image_models import SQUARE, TALL, TOWERS, encoded, example, rows_of, rows_with_images, tower_engines, towers, vlm
from nightly import by_day
from torch import Tensor
from torch.nn.functional import softshrink

from steerlab import Activations, Contrast, MeanDifference, Request, Site, SteeringVector, capture, generate, score
from steerlab.errors import EncodingError, LayoutError, MismatchError, PositionError, SteeringError
from steerlab.methods import Clamp, Operation, Scale, load_steerer
from steerlab.methods.base import Context, RequiredActivation
from steerlab.methods.serialization import save
from steerlab.models.engine import block_path
from steerlab.models.layout import module_at
from steerlab.models.model import Model
from steerlab.models.patches import PatchSelector, entries_per_row, refuse_padded_images
from steerlab.steering.interventions import build_edits
from steerlab.steering.requests import resolve_interventions
from steerlab.testing import tiny_lm, tiny_vlm

TOWER = (Site(0, part="vision"), Site(1, part="vision"))
PROJECTOR = Site(0, part="projector")


def patches(model: Model, site: Site, row: Any) -> Tensor:
    """Every patch of one row at a site, from a plain forward."""
    found: list[Tensor] = []
    module = module_at(model.hf, block_path(model.site(site), model.layout))
    with torch.no_grad(), hooked([module], lambda _, h: found.append(h) or h):
        model.hf(**taken(model, processed(model, row)), use_cache=False)
    return found[0].reshape(-1, found[0].shape[-1])


def read(model: Model, rows: Any, sites: Any, **options: Any) -> Activations:
    return capture(model, rows, layers=sites, positions="images", progress=False, **options)


# --- where they are --------------------------------------------------------------------------------------------


@towers
def test_vision_tower_and_projector_are_found(family: str) -> None:
    model = vlm(family)
    assert [n > 0 for n in encoded(model, rows_of(family)).units] == [bool(row.images) for row in rows_of(family)]
    assert len(module_at(model.hf, str(model.layout.vision_path))) == 2
    assert model.site(Site(-1, part="vision")) == TOWER[1] and model.width(PROJECTOR) == 32
    row = rows_with_images(family)[0]
    for site in (*TOWER, PROJECTOR):
        assert patches(model, site, row).shape[1] == model.width(site)


def test_site_strings_and_forward_order() -> None:
    sites = [*TOWER, PROJECTOR, Site(0), Site(3, "attn_out"), Site(3)]
    assert " ".join(map(str, sites)) == "vision.0 vision.1 projector.0 0 3.attn_out 3"
    assert sorted(sites[::-1], key=lambda site: site.forward_order) == sites
    for options in ({"part": "audio"}, {"part": "vision", "point": "attn_out"}):
        with pytest.raises(LayoutError, match=r"unknown part 'audio'|only block_out is"):
            Site(0, **options)
    with pytest.raises(LayoutError, match="layer 2 does not exist: the model has 2 blocks in its vision tower"):
        vlm("llava").site(Site(2, part="vision"))
    with pytest.raises(LayoutError, match=r"has no vision part .site vision\.0.: that takes an image-text model"):
        capture(tiny_lm(backend="hooks"), ["Hi"], layers=[TOWER[0]], progress=False)


# --- reading ---------------------------------------------------------------------------------------------------


@tower_engines
@pytest.mark.parametrize("reduce", ["mean", "none"])
def test_capture_reads_the_patches_of_each_row(family: str, backend: str, reduce: Any) -> None:
    """In batches of any size, with any padding: what a plain forward of the row has."""
    model, plain, rows = vlm(family, backend), vlm(family), rows_with_images(family)
    batching: list[dict[str, Any]] = [{"batch_size": 3}, {"batch_size": 2, "padding": "right"}]
    for sites, options in [(TOWER, batching[0]), (TOWER, batching[1]), ((PROJECTOR,), batching[0])]:
        acts = read(model, rows, list(sites), reduce=reduce, **options)
        assert acts.sites == sites and acts.index["example_id"].drop_duplicates().tolist() == [row.id for row in rows]
        for row, site in product(rows, sites):
            found, expected = acts.select(example_id=row.id), patches(plain, site, row)
            assert found.index["n_tokens"].sum() == len(expected)
            if reduce == "none":
                assert found.index["column"].tolist() == list(range(len(expected)))
            expected = expected.mean(0, keepdim=True) if reduce == "mean" else expected
            torch.testing.assert_close(found.at(site), expected, rtol=1e-4, atol=1e-5)
    assert len({len(patches(plain, PROJECTOR, row)) for row in rows}) > 1, "rows of different sizes: the premise"


@towers
def test_projector_output_is_the_features_at_the_image_tokens(family: str) -> None:
    """In the order of the tokens, but for Qwen2.5-VL, which sorts them by windows until after its projector.

    LLaVA-NeXT cuts what only pads off its tiles and ends every line with another vector.
    """
    model, rows = vlm(family), rows_with_images(family)
    patch, token = (read(model, rows, [site], reduce="none") for site in (PROJECTOR, Site(0, "block_in")))
    for row in rows:
        given, taken_in = patch.select(example_id=row.id).values[:, 0], token.select(example_id=row.id).values[:, 0]
        if family == "llava_next":
            given = torch.cat([given, model.hf.model.image_newline[None]])
            assert all((given == one).all(-1).any() for one in taken_in) and len(taken_in) > 9
        elif family == "qwen2_5_vl":
            assert sorted(given.tolist()) == sorted(taken_in.tolist())
        else:
            assert torch.equal(given, taken_in)


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_vl"])
def test_tile_of_zeros_counts_as_a_tile(family: str) -> None:
    """A processor that doesn't normalize leaves black at zero, as padding is."""
    model = tiny_vlm(family, backend="hooks")
    model.vision.processor.image_processor.do_normalize = False
    half = TALL.copy()
    half.paste("black", (0, 0, half.width, half.height * 2 // 3))
    rows = [example(family, "Hi", (image,), str(i)) for i, image in enumerate((half, SQUARE, TALL))]
    tiles = model.vision.expand((half,)).tensors["pixel_values"]
    if family == "llava_next":
        assert not tiles.flatten(2).any(-1).all() and tiles.flatten(2).any(-1).any(), "the premise"
    acts = read(model, rows, [TOWER[0]], reduce="none")
    for row in rows:
        torch.testing.assert_close(acts.select(example_id=row.id).at(TOWER[0]), patches(model, TOWER[0], row))


def test_contrast_is_read_once_and_store_keeps_the_part(tmp_path: Path) -> None:
    model = vlm("llava_next")
    rows = [row.replace(contrast=Contrast("Yes", "No")) for row in rows_with_images("llava_next")]
    acts = read(model, rows, TOWER, reduce="none")
    assert set(acts.index["side"]) == {"prompt"} and set(acts.index["position"]) == {"images"}
    assert set(acts.index["n_tokens"]) == {1}, "each row is one patch"
    means = read(model, rows, TOWER).index
    assert set(means["column"]) == set(means["token"]) == {-1}, "a mean is of no single patch"
    assert torch.equal(acts.values, read(model, [r.replace(contrast=None) for r in rows], TOWER, reduce="none").values)
    options: dict[str, Any] = {"layers": list(TOWER), "reduce": "none", "batch_size": 2, "progress": False}
    store = capture(model, rows, folder=tmp_path, **options)
    loaded = capture(model, rows, folder=tmp_path, **options).load(layers=[TOWER[1]])
    assert store.sites == TOWER and torch.equal(loaded.at(TOWER[1]), acts.at(TOWER[1]))
    assert loaded.index.equals(acts.index)
    for info in (acts.info, loaded.info):
        assert (info["positions"], info["context"]) == (["images"], [])
    assert acts.layers == loaded.layers == (), "no decoder layer was read"


@pytest.mark.parametrize("family", ["llava_next", "qwen2_vl"])
@pytest.mark.parametrize("where", ["in the model", "in what reads it"])
def test_out_of_memory_halves_the_batch(
    family: str, where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every row keeps its count of patches, also if memory runs out after they were counted."""
    model, rows = tiny_vlm(family, backend="hooks"), rows_with_images(family)
    expected = read(model, rows, TOWER, reduce="none")
    pick = PatchSelector.__call__

    def picky(self: PatchSelector, h: Tensor) -> Tensor:
        found = pick(self, h)
        return torch.empty(2**50) if where != "in the model" and len(self.units) > 1 else found

    def greedy_block(_: Any, args: Any) -> None:
        if where == "in the model" and len(args[0]) > encoded(model, rows[:1]).units[0]:  # the largest row alone fits
            raise torch.OutOfMemoryError("CUDA out of memory")

    module_at(model.hf, block_path(TOWER[0], model.layout)).register_forward_pre_hook(greedy_block)
    monkeypatch.setattr(PatchSelector, "__call__", picky)
    found = read(model, rows, TOWER, reduce="none")
    torch.testing.assert_close(found.values, expected.values, rtol=1e-4, atol=1e-5)
    assert found.index.equals(expected.index) and "out of memory at a batch of 3 rows" in caplog.text


@pytest.mark.parametrize("family", ["llava_next", "qwen2_vl"])
def test_half_precision_is_captured_and_steered(family: str) -> None:
    """In bfloat16 the sum is formed in float32 and cast once."""
    model, rows = tiny_vlm(family, backend="hooks"), rows_with_images(family)
    model.hf.to(torch.bfloat16)
    exact = read(vlm(family), rows, TOWER[:1]).values
    found = read(model, rows, TOWER[:1])
    assert found.values.dtype == torch.float32
    assert ((found.values - exact).norm(dim=-1) / exact.norm(dim=-1)).max() < 0.05
    batch = encoded(model, rows)
    for site in (TOWER[0], PROJECTOR):
        before, _ = under(model, rows, batch, site, 0.0)
        after, _ = under(model, rows, batch, site, 1.0)
        assert after.dtype == torch.bfloat16
        assert torch.equal(after, before + steerer_at(model, site).vector_.to(torch.bfloat16))
    assert generate(model, rows, steer=steerer_at(model, TOWER[0]), max_new_tokens=2).steered_tokens > 0


@pytest.mark.parametrize(
    ("layers", "positions", "error", "message"),
    [
        ([TOWER[0], Site(1)], "images", LayoutError, "sites in the text and the vision"),
        ([TOWER[0], PROJECTOR], "images", LayoutError, "sites in the projector and the vision"),
        ([TOWER[0]], "last", PositionError, "belong to images, not to tokens"),
        ([TOWER[0]], ["images", "text"], PositionError, "the only position there is 'images'"),
        ([TOWER[0]], None, PositionError, "'2' has no image"),
    ],
)
def test_capture_refuses_sites_and_positions(layers: Any, positions: Any, error: Any, message: str) -> None:
    model = vlm("llava")
    with pytest.raises(error, match=message):
        capture(model, rows_of("llava"), layers=layers, positions=positions, progress=False)


def test_tower_of_a_model_that_pads_its_images_is_refused() -> None:
    """Gemma 4's images have one number of patches each, many of them of no image."""
    model, rows = vlm("gemma4"), rows_with_images("gemma4")
    assert model.width(TOWER[0]) == 32, "of the states, not of the heads"
    with pytest.raises(
        LayoutError, match="padded to one size, so the vision tower and the projector have states of patches"
    ):
        read(model, rows, TOWER[:1])
    with pytest.raises(LayoutError, match="padded to one size"):
        generate(model, rows, steer=steerer_at(model, TOWER[0]), max_new_tokens=1)


def test_padding_of_images_is_seen_in_every_form() -> None:
    tile, empty = torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    half = torch.tensor([1.0, 1, 0, 0]).expand(1, 1, 4, 4)
    refuse_padded_images({"pixel_attention_mask": torch.cat([tile, empty], 1), "pixel_mask": tile[0]})
    marks = {
        "pixel_attention_mask": torch.cat([tile, half], 1), "pixel_mask": half[0], "image_attention_mask": half[0, 0],
    }  # fmt: skip
    marks["image_position_ids"] = torch.tensor([[[0, 0], [-1, -1]]])
    for name, mask in (*marks.items(), ("pixel_mask", half[0].mT)):  # filled up at the right, or below
        with pytest.raises(LayoutError, match=r"or give images of one size \(batch_size=1\)"):
            refuse_padded_images({name: mask})


def test_entries_per_row_are_whole_or_refused() -> None:
    for units, n, entries in (([4, 0, 8], 3, [1, 0, 2]), ([1, 2], 3, [1, 2]), ([1, 2], 6, [2, 4])):
        assert entries_per_row(units, n) == entries
    for units, n in (([1, 2], 4), ([1, 2], 1), ([0, 0], 3), ([1, 2], 2)):
        with pytest.raises(LayoutError, match="can't be matched to images"):
            entries_per_row(units, n)


# --- writing ---------------------------------------------------------------------------------------------------


def steerer_at(model: Model, site: Site) -> MeanDifference:
    width = model.width(site)
    assert width is not None
    return SteeringVector({site: 2.0 * torch.randn(width, generator=torch.Generator().manual_seed(7))})


def under(model: Model, rows: Any, batch: Any, site: Site, alpha: Any) -> tuple[Tensor, Tensor]:
    """The whole state at a site, and that of every decoder block, under steering there."""
    requests = [Request(steerer_at(model, site), alpha)]
    edits = build_edits(model, resolve_interventions(model, requests, rows, 16), batch, range(3))
    inputs = model.inputs(batch)
    here = model.engine.capture_states(inputs, edits, [site], lambda h: h.reshape(-1, h.shape[-1]))[:, 0]
    return here, block_states(model, inputs, edits)


@tower_engines
@pytest.mark.parametrize("site", [TOWER[0], PROJECTOR], ids=str)
def test_vector_is_added_to_the_patches_of_its_row(family: str, backend: str, site: Site) -> None:
    model, rows = vlm(family, backend), rows_with_images(family)
    batch, alpha = encoded(model, rows), [1.5, 0.0, -1.0]
    before, text = under(model, rows, batch, site, 0.0)
    after, steered = under(model, rows, batch, site, alpha)
    counts = [len(patches(vlm(family), site, row)) for row in rows]
    factors = torch.tensor(alpha).repeat_interleave(torch.tensor(counts))[:, None]
    assert torch.equal(after, before + factors * steerer_at(model, site).vector_)
    assert torch.equal(steered[1], text[1]), "the row in between has alpha 0"
    images = batch.columns([row.kind("image") for row in batch.rows])
    for row in (0, 2):
        assert (steered - text)[row, -1, images[row]].abs().amax(-1).gt(1e-4).any(), "the text sees it"


OPERATORS: dict[str, tuple[Any, Any]] = {
    "project_out": ("project_out", lambda h, v: h - 0.6 * (h @ v / v.norm() ** 2)[..., None] * v),
    "replace": ("replace", lambda h, v: 0.4 * h + 0.6 * v),
    "rotate": ("rotate", lambda h, v: plain.turned(h, v / v.norm(), 0.6)),
    "scale": (Scale(0.5), lambda h, v: 0.7 * h),
    "clamp": (Clamp(-0.1, 0.1), lambda h, v: h - 0.6 * softshrink(h @ v / v.norm(), 0.1)[..., None] * v / v.norm()),
}


@pytest.mark.parametrize(
    ("family", "name"),
    by_day(product(TOWERS, OPERATORS), lambda family, name: name == "project_out" or family == "llava"),
)
@pytest.mark.parametrize("site", [TOWER[0], PROJECTOR, Site(1)], ids=str)
def test_operators_change_images_and_text_as_plain_hooks_do(family: str, site: Site, name: str) -> None:
    model, rows, (operator, change) = vlm(family, "nnsight"), rows_with_images(family), OPERATORS[name]
    vector = steerer_at(model, site).vector_
    steerer = Operation(site if name == "scale" else SteeringVector({site: vector}), operator)
    found = generate(model, rows, steer=steerer, alpha=0.6, max_new_tokens=3)
    plain = vlm(family)
    with hooked([module_at(plain.hf, block_path(site, plain.layout))], lambda _, h: change(h, vector)):
        assert found.ids == tuple(greedy(plain, row, torch.zeros(32), lambda n, now: [], 3) for row in rows)
    batch, requests = encoded(model, rows), [Request(steerer, [0.6, 0.0, 0.6])]  # the row in between is left as it is
    edits = build_edits(model, resolve_interventions(model, requests, rows, 16), batch, range(3))
    real, text = batch.attention_mask.bool(), site.part == "text"
    whole = (
        model.engine.capture_states(
            model.inputs(batch), given, [site], lambda h: h[real] if text else h.flatten(0, -2)
        )[:, 0] for given in (edits, {})
    )  # fmt: skip
    counts = real.sum(1).tolist() if text else [len(patches(plain, site, row)) for row in rows]
    ours, before = (h.split(counts) for h in whole)
    assert torch.equal(ours[1], before[1])
    for number in (0, 2):
        off = (ours[number] - change(before[number], vector)).norm(dim=-1) / before[number].norm(dim=-1)
        assert float(off.max()) < 1e-5, "of the norm of each state"


@tower_engines
@pytest.mark.parametrize("site", [TOWER[0], PROJECTOR], ids=str)
def test_generation_with_steered_vision_matches_recomputation(family: str, backend: str, site: Site) -> None:
    model, plain, rows = vlm(family, backend), vlm(family), rows_with_images(family)
    steerer = steerer_at(model, site)
    found = generate(model, rows, steer=steerer, positions="images", max_new_tokens=4)
    with hooked([module_at(plain.hf, block_path(site, plain.layout))], lambda _, h: h + steerer.vector_):
        expected = tuple(greedy(plain, row, torch.zeros(32), lambda n, now: [], 4) for row in rows)
    assert found.ids == expected
    assert found.steered_tokens == sum(len(patches(plain, site, row)) for row in rows) and found.norm_ratio > 0
    assert found.ids != generate(model, rows, max_new_tokens=4).ids
    assert generate(model, rows, steer=steerer, max_new_tokens=4, use_cache=False).ids == expected
    copied = generate(model, rows, steer=steerer, max_new_tokens=4, do_sample=True, top_k=1, num_return_sequences=2)
    assert copied.ids == tuple(ids for ids in expected for _ in range(2))


@pytest.mark.parametrize("backend", ["nnsight", "hooks"])
def test_vector_in_the_tower_equals_a_bias_of_its_block(backend: str) -> None:
    """LLaVA's projector reads states that Hugging Face collects by hooks: the vector must be in them."""
    model, site, rows = vlm("llava", backend), TOWER[0], rows_with_images("llava")
    steerer, answers = steerer_at(model, site), ["one", "two", "three"]
    steered = score(model, rows, answers, steer=steerer)["logprob"]
    ids = generate(model, rows, steer=steerer, max_new_tokens=4).ids
    bias = module_at(model.hf, f"{block_path(site, model.layout)}.mlp.fc2").bias
    kept = bias.clone()
    try:
        bias += steerer.vector_
        biased = score(model, rows, answers)["logprob"]
        assert ids == generate(model, rows, max_new_tokens=4).ids
    finally:
        bias.copy_(kept)
    assert steered.tolist() == pytest.approx(biased.tolist(), abs=1e-3)
    assert steered.tolist() != pytest.approx(score(model, rows, answers)["logprob"].tolist(), abs=0.1)


@pytest.mark.parametrize("feature_layer", [-1, -2, 1, [-2], [0]], ids=str)
@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_steering_an_unused_vision_block_is_refused(family: str, feature_layer: Any) -> None:
    """Refused exactly where a vector would reach no word: the released models read the last block but one."""
    model, rows = tiny_vlm(family, backend="hooks"), rows_with_images(family)[:1]
    model.hf.config.vision_feature_layer = feature_layer
    given = taken(model, processed(model, rows[0]))
    for site in TOWER:
        module = module_at(model.hf, block_path(site, model.layout))
        with torch.no_grad():
            plain = model.hf(**given).logits
            with hooked([module], lambda _, h: h + 1):
                reached = not torch.equal(model.hf(**given).logits, plain)
        options: dict[str, Any] = {"steer": steerer_at(model, site), "max_new_tokens": 1}
        if reached:
            assert generate(model, rows, **options).steered_tokens > 0
        else:
            with pytest.raises(SteeringError, match=rf"at vision\.{site.layer} would have no effect"):
                generate(model, rows, **options)
        assert read(model, rows, [site]).values.isfinite().all(), "reading is allowed"


@pytest.mark.parametrize("backend", ["nnsight", "hooks"])
def test_tower_projector_and_text_steered_together(backend: str) -> None:
    model, rows = vlm("qwen2_5_vl", backend), rows_with_images("qwen2_5_vl")
    plain, steerers = vlm("qwen2_5_vl"), [steerer_at(model, site) for site in (TOWER[0], PROJECTOR, Site(1))]
    found = generate(model, rows, steer=steerers, alpha=0.3, max_new_tokens=4)
    vectors = [0.3 * steerer.vector_ for steerer in steerers]
    modules = [module_at(plain.hf, block_path(site, plain.layout)) for site in (TOWER[0], PROJECTOR)]
    with hooked(modules, lambda i, h: h + vectors[i]):
        expected = tuple(greedy(plain, row, vectors[2], lambda n, now: list(range(now)), 4) for row in rows)
    assert found.ids == expected


class Scaled(SteeringVector):
    """A vector scaled by the norms of some activations of each row."""

    required_activations: tuple[RequiredActivation, ...] = ()

    def vectors(self, context: Context) -> Tensor:
        norms = [context.get_states(activation).norm(dim=-1) for activation in self.required_activations]
        return sum(norms)[:, None] * self.vector_


@pytest.mark.parametrize("backend", ["nnsight", "hooks"])
def test_steerers_that_read_images_and_text_in_one_run(backend: str) -> None:
    """Sites of different widths, and one steerer that reads both."""
    model, rows, text = vlm("llava", backend), rows_with_images("llava"), RequiredActivation(Site(0), "last")
    vision = RequiredActivation(TOWER[1], "images")
    norms = {
        vision: read(model, rows, [TOWER[1]]).values[:, 0].norm(dim=-1),
        text: capture(model, rows, layers=[0], positions="last", progress=False).values[:, 0].norm(dim=-1),
    }
    steerers, expected = [steerer_at(model, TOWER[0])], [steerer_at(model, TOWER[0]).vector_[None]]
    for site, activations in ((TOWER[0], (vision,)), (Site(1), (text,)), (Site(1), (vision, text))):
        steerer = Scaled({site: steerer_at(model, site).vector_ * 1e-2})
        steerer.required_activations = activations
        steerers.append(steerer)
        expected.append(sum(norms[one] for one in activations)[:, None] * steerer.vector_)
    prepared = resolve_interventions(model, [Request(one) for one in steerers], rows, 2)
    for setting, wanted in zip(prepared, expected, strict=True):
        torch.testing.assert_close(setting.interventions[0].vectors, wanted.expand(3, -1), rtol=1e-4, atol=1e-5)
    both = generate(model, rows, steer=[Request(one, 0.5) for one in steerers], max_new_tokens=2)
    assert both.steered_tokens > 0


def test_steerer_fitted_in_the_tower_is_saved_and_checks_its_width(tmp_path: Path) -> None:
    model, rows = vlm("llava"), rows_with_images("llava")
    acts = read(model, [*rows, rows[0].replace(id="again", images=(image_models.OTHER,))], [TOWER[0]])
    steerer = SteeringVector({TOWER[0]: acts.at(TOWER[0])[0] - acts.at(TOWER[0])[1]})
    steerer.info_ = {"hidden_size": acts.hidden_size, "model": model.id}
    expected = generate(model, rows, steer=steerer, max_new_tokens=3).ids
    save(steerer, tmp_path / "kept")
    again = load_steerer(tmp_path / "kept", model)
    assert again.site == TOWER[0] and generate(model, rows, steer=again, max_new_tokens=3).ids == expected
    save(SteeringVector({Site(7, part="vision"): torch.ones(24)}), tmp_path / "high")
    high = load_steerer(tmp_path / "high", model)  # the text has no layer 7, but that is not what it says
    with pytest.raises(LayoutError, match="layer 7 does not exist: the model has 2 blocks in its vision tower"):
        generate(model, rows, steer=high, max_new_tokens=1)


def test_steering_of_images_that_is_refused() -> None:
    model, rows = vlm("llava"), rows_with_images("llava")
    tower = steerer_at(model, TOWER[0])
    wide = SteeringVector({TOWER[0]: torch.ones(32)})
    for options, error, message in (
        ({"positions": "last"}, PositionError, "position last means nothing at site vision.0"),
        ({"positions": "last+generated"}, PositionError, "use 'images'"),
        ({"scale": "norm"}, SteeringError, "at vision.0 use 'raw' or 'token_norm'"),
        ({"steer": wide}, MismatchError, "hidden_size 32; this model has 24 at vision.0"),
    ):
        with pytest.raises(error, match=message):
            generate(model, rows, **{"steer": tower, "max_new_tokens": 2, **options})
    with pytest.raises(PositionError, match=r"the inputs \['2'\] have no image"):
        generate(model, rows_of("llava"), steer=tower, max_new_tokens=2)
    with pytest.raises(EncodingError, match="reads text only"):
        generate(tiny_lm(backend="hooks"), rows, steer=tower, max_new_tokens=2)
