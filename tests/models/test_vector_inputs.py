"""Models that read vectors, against plain Hugging Face and plain hooks: the splice, the encoder, and every verb."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plain
import pytest
import torch
from PIL import Image

import steerlab
from steerlab import Contrast, Example, MeanDifference, Request, Site
from steerlab._support.images import VectorInput, open_image
from steerlab.analysis.patching import patch
from steerlab.errors import DataError, EncodingError, LayoutError, SteeringError
from steerlab.models.model import Model
from steerlab.models.vectors import DRIVING_KINDS, ObjectKind, VectorEncoder, with_vectors
from steerlab.models.vectors.model import pack
from steerlab.testing import tiny_lm, tiny_vlm

KINDS = [ObjectKind("road", 3, 2, ordered=True), ObjectKind("cars", 6, 4)]
ENCODER = {"width": 16, "latents": 4, "depth": 2, "heads": 2, "queries": 5}
DECODERS = ("llama", "gpt2", "qwen2", "gemma2")


class Street(VectorInput):
    """A made-up scene; three of six cars are there."""

    def __init__(self, seed: int, **changes: np.ndarray) -> None:
        rng = np.random.default_rng(seed)
        found = {"road": rng.normal(size=(3, 2)), "cars": rng.normal(size=(6, 4)), "me": rng.normal(size=5)}
        found["cars"][:, 0] = [1, 1, 0, 1, 0, 0]
        self._tensors = {name: value.astype(np.float32) for name, value in (found | changes).items()}

    @property
    def tensors(self) -> Mapping[str, Any]:
        return self._tensors


def vector_lm(decoder: str = "llama", backend: str = "hooks") -> Model:
    model = with_vectors(tiny_lm(decoder, backend=backend), KINDS, ("me", 5), **ENCODER)
    with torch.no_grad():
        model.hf.projector.weight.mul_(10)  # so that a scene matters
    return model


@pytest.fixture(scope="module")
def model() -> Model:
    return vector_lm()


def street_examples(n: int = 4) -> list[Example]:
    prompts = ("What is it?", "Tell me about the cars on the road", "Go", "Is a car near?")
    return [Example(prompts[i % 4], id=f"s{i}", images=(Street(i),)) for i in range(n)]


def plain_logits(model: Model, example: Example) -> torch.Tensor:
    row = model.encode(example.prompt, images=example.images)
    vectors = pack(example.images[0].tensors, model.hf.config.sizes)[None]
    with torch.no_grad():
        return model.hf(input_ids=torch.tensor([row.ids]), vectors=vectors).logits[0]


def test_parameter_counts_are_the_published_ones() -> None:
    assert sum(p.numel() for p in VectorEncoder(DRIVING_KINDS, 31).parameters()) == 8_000_768
    assert sum(p.numel() for p in torch.nn.Linear(256, 4096).parameters()) == 1_052_672


def test_splice_takes_the_place_of_marks_alone_and_leaves_all_other_embeddings(model: Model) -> None:
    row = model.encode("What is it?", images=[Street(0)])
    ids, vectors = torch.tensor([row.ids]), pack(Street(0).tensors, model.hf.config.sizes)[None]
    marked = ids == model.vision.token_id
    with torch.no_grad():
        spliced = model.hf.splice(ids, vectors)
        assert torch.equal(spliced[~marked], model.hf.get_input_embeddings()(ids[~marked]))
        scene = model.hf.config.sizes
        tensors = {k: torch.as_tensor(v)[None] for k, v in Street(0).tensors.items()}
        wanted = model.hf.projector(model.hf.encoder({k: tensors[k] for k in list(scene)[:-1]}, tensors["me"])[0])
    torch.testing.assert_close(spliced[marked], wanted[0], atol=1e-6, rtol=1e-5)
    assert row.kind("image") == marked[0].nonzero().flatten().tolist() and marked.sum() == 5


def test_order_of_objects_and_unused_slots_do_not_matter_to_the_logits_but_the_road_does(model: Model) -> None:
    example = street_examples()[1]
    cars, road = (example.images[0].tensors[name].copy() for name in ("cars", "road"))
    logits = plain_logits(model, example)
    garbage = cars.copy()
    garbage[[2, 4, 5], 1:] = 99.0
    for same in ({"cars": cars[[5, 1, 3, 0, 4, 2]]}, {"cars": garbage}):
        torch.testing.assert_close(
            plain_logits(model, example.replace(images=(Street(1, **same),))), logits, atol=2e-4, rtol=1e-3
        )
    changed = cars.copy()
    changed[0, 2] += 1
    for other in ({"road": road[::-1].copy()}, {"cars": changed}):
        assert (plain_logits(model, example.replace(images=(Street(1, **other),))) - logits).abs().max() > 1e-3


def test_constant_embeddings_make_the_logits_independent_of_the_scene(model: Model) -> None:
    constant = copy.deepcopy(model.hf)
    with torch.no_grad():
        constant.projector.weight.zero_()
        row = model.encode("What is it?", images=[Street(0)])
        found = [
            constant(input_ids=torch.tensor([row.ids]), vectors=pack(Street(i).tensors, constant.config.sizes)[None])
            for i in range(3)
        ]
    assert all(torch.equal(found[0].logits, one.logits) for one in found)
    assert (plain_logits(model, street_examples()[0]) - plain_logits(model, street_examples(5)[4])).abs().max() > 1e-3


@pytest.mark.parametrize("backend", ["hooks", "nnsight"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_captured_states_of_a_padded_batch_are_those_of_each_row_alone(decoder: str, backend: str) -> None:
    model, examples = vector_lm(decoder, backend), street_examples()
    for position in ("vectors", "last"):
        acts = steerlab.capture(
            model, examples, layers=[1], positions=position, context=None, reduce="none", progress=False
        )
        for example in examples:
            row = model.encode(example.prompt, images=example.images)
            kept: list[torch.Tensor] = []
            with plain.hooked(model, 1, lambda h, kept=kept: kept.append(h) or h):
                plain_logits(model, example)
            columns = row.kind("image") if position == "vectors" else [len(row) - 1]
            torch.testing.assert_close(
                acts.select(example_id=[example.id]).at(1), kept[0][0, columns], atol=1e-4, rtol=1e-3
            )


@pytest.mark.parametrize("decoder", DECODERS)
def test_steering_the_vectors_moves_their_columns_alone_and_decodes_the_same_without_a_cache(decoder: str) -> None:
    model, examples = vector_lm(decoder), street_examples()
    vector = torch.linspace(-1, 1, model.hidden_size)
    found = steerlab.next_token_logits(model, examples, steer=Request({1: vector}, 2.0, "vectors"), progress=False)
    for example, logits in zip(examples, found, strict=True):
        marked = model.encode(example.prompt, images=example.images).kind("image")
        with plain.hooked(model, 1, plain.adding(2.0 * vector, marked)):
            wanted = plain_logits(model, example)[-1]
        torch.testing.assert_close(logits, wanted, atol=2e-4, rtol=1e-3)
    request = Request({1: vector}, 2.0, "vectors+generated")
    options: dict[str, Any] = {"steer": request, "max_new_tokens": 5, "progress": False}
    texts = steerlab.generate(model, examples, **options).texts
    assert steerlab.generate(model, examples, **options, use_cache=False).texts == texts
    assert steerlab.generate(model, examples, **options, batch_size=1).texts == texts


def test_beams_repeat_the_scene_with_their_row(model: Model) -> None:
    together = steerlab.generate(model, street_examples(), max_new_tokens=4, num_beams=3, progress=False).texts
    alone = [
        steerlab.generate(model, [e], max_new_tokens=4, num_beams=3, progress=False).texts[0] for e in street_examples()
    ]
    assert list(together) == alone


def test_objects_latents_and_queries_are_read_and_steered_in_the_encoder(model: Model) -> None:
    examples = street_examples()
    for site, n in ((0, 9), (1, 4), (3, 4), (4, 5)):
        acts = steerlab.capture(
            model, examples, layers=[Site(site, part="vision")], positions="images", reduce="none", progress=False
        )
        assert acts.values.shape == (n * len(examples), 1, 16)
    tensors = {k: torch.as_tensor(v)[None] for k, v in examples[2].images[0].tensors.items()}
    objects = model.hf.encoder.blocks[0]({k: tensors[k] for k in ("road", "cars")})
    acts = steerlab.capture(
        model, examples, layers=[Site(0, part="vision")], positions="images", reduce="none", progress=False
    )
    torch.testing.assert_close(acts.select(example_id=["s2"]).values[:, 0], objects[0].detach(), atol=1e-6, rtol=1e-5)
    vector = {Site(2, part="vision"): torch.linspace(-1, 1, 16)}  # a norm would take a constant away
    unmoved = steerlab.next_token_logits(model, examples, progress=False)
    moved = steerlab.next_token_logits(model, examples, steer=Request(vector, 3.0, "vectors"), progress=False)
    assert (moved - unmoved).abs().max() > 1e-3


def test_contrasts_on_the_span_are_learned_swept_and_patched(model: Model) -> None:
    pairs = [e.replace(contrast=Contrast(" yes", " no"), behavior="near") for e in street_examples(6)]
    near = [e.replace(images=(Street(i, cars=np.zeros((6, 4))),), contrast=None) for i, e in enumerate(pairs)]
    acts = [steerlab.capture(model, rows, layers=[0], positions="vectors", context=None, progress=False) for rows in (
        [e.replace(contrast=None) for e in pairs], near)]  # fmt: skip
    vector = steerlab.SteeringVector({0: (acts[0].at(0) - acts[1].at(0)).mean(0)})
    options: dict[str, Any] = {"alphas": [0.0, 1.0], "positions": ["vectors"], "progress": False}
    together = steerlab.sweep(model, pairs, vector, **options).set_index(["example_id", "alpha"])["value"]
    for example in pairs:
        alone = steerlab.sweep(model, [example], vector, **options).set_index(["example_id", "alpha"])["value"]
        pd.testing.assert_series_equal(together.loc[[example.id]].sort_index(), alone.sort_index(), atol=1e-4)
    assert (together.xs(1.0, level=1) - together.xs(0.0, level=1)).abs().min() > 1e-5
    assert MeanDifference(1, position="answer").fit(model, pairs).norm > 0


def test_saved_model_is_loaded_from_its_folder_with_its_processor(model: Model, tmp_path: Path) -> None:
    model.hf.save_pretrained(tmp_path)
    model.vision.processor.save_pretrained(tmp_path)
    again = steerlab.load(tmp_path)
    for example in street_examples(2):
        torch.testing.assert_close(plain_logits(again, example), plain_logits(model, example), atol=1e-4, rtol=1e-3)
    assert again.vision is not None
    assert [*again.vision.processor.shapes.items()] == [*model.hf.config.sizes.items()]
    found = [steerlab.next_token_logits(one, street_examples(), progress=False) for one in (model, again)]
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-3)


def test_gradients_reach_every_part_of_the_encoder_through_one_splice() -> None:
    hf, row = vector_lm().hf.requires_grad_(True), vector_lm().encode("What is it?", images=[Street(0)])
    vectors = pack(Street(0).tensors, hf.config.sizes)[None]
    hf(input_ids=torch.tensor([row.ids]), vectors=vectors).logits[0, -1].log_softmax(-1)[7].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in hf.encoder.parameters())


def test_rollout_gives_unused_objects_nothing(model: Model) -> None:
    tensors = {k: torch.as_tensor(v)[None] for k, v in Street(0).tensors.items()}
    with torch.no_grad():
        _, rollout = model.hf.encoder({k: tensors[k] for k in ("road", "cars")}, tensors["me"])
    assert rollout.shape == (1, 9) and (rollout[0, [5, 7, 8]] == 0).all() and (rollout[0, [0, 1, 2, 3, 4, 6]] > 0).all()
    torch.testing.assert_close(rollout.sum(), torch.tensor(2.0 * 2 * 4))  # blocks x heads x latents


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_prompts_without_a_scene_give_the_decoders_own_logits(family: str, dtype: torch.dtype) -> None:
    decoder = tiny_lm(family, backend="hooks")
    decoder = steerlab.load(decoder.hf.to(dtype), tokenizer=decoder.tokenizer, backend="hooks")
    model = with_vectors(decoder, KINDS, ("me", 5), **ENCODER)
    assert model.dtype == dtype and model.hf.encoder.queries.dtype == torch.float32
    assert model.hf.language_model.config._attn_implementation == decoder.hf.config._attn_implementation
    ids = torch.tensor([decoder.encode("Tell me about the river").ids])
    with torch.no_grad():
        assert torch.equal(model.hf(input_ids=ids).logits[..., :260], decoder.hf(input_ids=ids).logits[..., :260])
    assert len(steerlab.generate(model, street_examples(), max_new_tokens=3, progress=False).texts) == 4


def test_rows_with_none_one_and_two_scenes_share_a_batch(model: Model) -> None:
    two = Example("Compare them", id="two", images=(Street(1), Street(2)))
    examples = [Example("Only words", id="none"), *street_examples(1), two]
    together = steerlab.next_token_logits(model, examples, progress=False)
    alone = torch.cat([steerlab.next_token_logits(model, [e], progress=False) for e in examples])
    torch.testing.assert_close(together, alone, atol=2e-4, rtol=1e-3)
    swapped = examples[2].replace(images=(Street(2), Street(1)))
    assert (steerlab.next_token_logits(model, [swapped], progress=False) - alone[2]).abs().max() > 1e-3
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": True, "num_return_sequences": 2, "progress": False}
    torch.manual_seed(0)
    assert len(steerlab.generate(model, examples[1:2], **options).texts) == 2


def test_scene_without_objects_is_finite_and_generated_marks_are_suppressed() -> None:
    encoder = VectorEncoder([ObjectKind("cars", 6, 4)], 5, **ENCODER)
    queries, rollout = encoder({"cars": torch.zeros(2, 6, 4)}, torch.randn(2, 5))
    assert queries.isfinite().all() and (rollout == 0).all()
    model = vector_lm()
    assert model.vision.token_id in model.hf.generation_config.suppress_tokens


@pytest.mark.nightly
def test_saved_model_is_loaded_in_a_fresh_process(model: Model, tmp_path: Path) -> None:
    model.hf.save_pretrained(tmp_path)
    model.vision.processor.save_pretrained(tmp_path)
    code = f"import steerlab; print(steerlab.load({str(tmp_path)!r}).vision.processor.n_embeddings)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "5"


def test_labels_of_marked_tokens_do_not_count(model: Model) -> None:
    ids = torch.tensor([model.encode("What is it?", images=[Street(0)]).ids])
    vectors = pack(Street(0).tensors, model.hf.config.sizes)[None]
    with torch.no_grad():
        found = model.hf(input_ids=ids, vectors=vectors, labels=ids)
    wanted = ids[0, 1:].masked_fill(ids[0, 1:] == model.vision.token_id, -100)
    torch.testing.assert_close(found.loss, torch.nn.functional.cross_entropy(found.logits[0, :-1], wanted))


def test_seed_decides_all_new_weights_and_leaves_the_callers_numbers() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = vector_lm()
    assert torch.rand(1) == expected
    torch.rand(7)
    assert first.info()["weights"] == vector_lm().info()["weights"]


def test_wrong_inputs_are_named(model: Model) -> None:
    scene = Street(0)
    with pytest.raises(EncodingError, match="no scene of object vectors"):
        steerlab.generate(model, [Example("What?", images=(Image.new("RGB", (8, 8)),))], max_new_tokens=1)
    with pytest.raises(EncodingError, match=r"'cars' has shape \(7, 4\), and the model reads \(6, 4\)"):
        model.encode("What?", images=[Street(0, cars=np.zeros((7, 4)))])
    with pytest.raises(EncodingError, match=r"0 image tokens .* but 1 images"):
        model.encode("no place", images=[scene], chat=False)
    with pytest.raises(EncodingError, match="reads text only"):
        tiny_lm("llama", backend="hooks").encode("What?", images=[scene])
    with pytest.raises(SteeringError, match="reads images or vectors already"):
        with_vectors(model, KINDS, ("me", 5))
    with pytest.raises(DataError, match="has no pixels"):
        open_image(scene)
    with pytest.raises(EncodingError, match="is a scene of object vectors"):
        tiny_vlm("llava", backend="hooks").encode("What?", images=[scene])
    decoder = tiny_lm("llama", backend="hooks")
    for options, words in (
        ({"depht": 2}, "unknown options"), ({"width": 15, "heads": 2}, "not divisible"),
        ({"token": decoder.tokenizer.eos_token}, "choose another"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=words):
            with_vectors(decoder, KINDS, ("me", 5), **options)
    with pytest.raises(DataError, match="names of their own"):
        with_vectors(decoder, [KINDS[0], KINDS[0]], ("me", 5), width=16, heads=2)


def test_patching_two_scenes_with_one_prompt_restores_nothing_before_the_span_and_all_at_the_end(model: Model) -> None:
    clean, corrupted = ([Example("Is a car near?", id=str(i), images=(Street(i),))] for i in (1, 2))
    frame = patch(model, clean, corrupted, ("y", "n"), layers=[0, model.n_layers - 1], positions="prompt")
    columns = model.encode("Is a car near?", images=[Street(1)]).kind("image")
    before, last = frame[frame["column"] < columns[0]], frame[frame["column"] == frame["column"].max()]
    assert len(before) and before["restored"].abs().max() < 1e-3
    assert last.set_index("layer")["restored"].iloc[-1] == pytest.approx(1, abs=1e-3)
    assert frame[frame["column"].isin(columns) & (frame["layer"] == 0)]["restored"].abs().max() > 1e-3


def test_sites_with_different_numbers_of_states_are_captured_by_their_means_or_one_by_one(model: Model) -> None:
    sites = [Site(0, part="vision"), Site(1, part="vision")]
    options: dict[str, Any] = {"positions": "vectors", "progress": False}
    both = steerlab.capture(model, street_examples(), layers=sites, **options)
    for site in sites:
        alone = steerlab.capture(model, street_examples(), layers=[site], **options)
        torch.testing.assert_close(both.at(site), alone.at(site))
    with pytest.raises(LayoutError, match="the sites have 9 and 4 states for the same image: capture each by itself"):
        steerlab.capture(model, street_examples(), layers=sites, reduce="none", **options)
