"""KL-then-steer on a tiny model: the six checks of the specification, and what users try first."""

from __future__ import annotations

import copy
from fnmatch import fnmatch
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

import steerlab
from steerlab import Contrast, Example, MeanDifference, Site
from steerlab._support.hub import _OURS
from steerlab.capturing.rows import encode_answer
from steerlab.errors import DataError, LoadError, MismatchError, SteeringError
from steerlab.methods import KTS_RELEASED, KTSConfig, ModelEdit, Spherical, kl_then_steer, released_layers
from steerlab.methods.kts.behavior_vectors import BehaviorVectors, edits_for
from steerlab.methods.kts.objective import PairedForwards, counted_tokens, kl_divergence
from steerlab.methods.kts.train import _Trainer
from steerlab.methods.model_edit import adapt, adapter_weights
from steerlab.models.engine import LOCKS
from steerlab.models.model import Model
from steerlab.testing import FAMILIES, tiny_lm

WORDS = ("red", "blue", "green", "small", "large", "round", "square", "cat", "dog", "house", "tree", "river", "stone")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")  # the concept's prompts


def texts(n: int, seed: int, words: tuple[str, ...] = WORDS) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(words, 6)) for _ in range(n)]


def contrasts(n: int = 20) -> list[Example]:
    made = enumerate(texts(n, 1, NUMBERS))
    return [Example(text, id=f"c{i}", behavior="refuse", contrast=Contrast(" no no no", " yes")) for i, text in made]


def two_behaviors() -> dict[str, list[Example]]:
    other = [e.replace(id=f"o{e.id}", contrast=Contrast(" yes", " no no no")) for e in contrasts()]
    return {"refuse": contrasts(), "comply": other}


def train(model: Model, behaviors: dict[str, list[Example]] | None = None, **options: Any) -> ModelEdit:
    config = {"steps": 100, "measure_every": 20, "coefficients": (0.0, 1.0), "learning_rate": 1e-3} | options.pop(
        "config", {}
    )
    settings: dict[str, Any] = {"layers": [1], "config": KTSConfig(**config), "progress": False} | options
    return kl_then_steer(
        model, texts(30, 2), [" " + t for t in texts(30, 3)], behaviors or {"refuse": contrasts()}, **settings
    )


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_lm("llama", backend="hooks")


@pytest.fixture(scope="module")
def edit(model: Model) -> ModelEdit:
    return train(model)


def test_kl_of_asymmetric_pair_depends_on_the_order() -> None:
    p, q = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0]])
    expected = [(a.softmax(-1) * (a.log_softmax(-1) - b.log_softmax(-1))).sum(-1) for a, b in ((q, p), (p, q))]
    torch.testing.assert_close(kl_divergence(q, p), expected[0])
    torch.testing.assert_close(kl_divergence(q, p, "reference"), expected[1])
    assert abs(float(expected[0] - expected[1])) > 0.01


def test_without_steering_the_loss_is_zero_and_no_weight_moves(model: Model) -> None:
    found = train(model, config={"steered_share": 0.0, "steps": 3, "measure_every": 3, "patience": None})
    assert found.history["kl_unsteered"].max() < 1e-9
    fresh, _ = adapt(model, 16, 32.0, 0, first=2)  # the blocks after the steered one
    assert all(torch.equal(value, found.weights[name]) for name, value in adapter_weights(fresh).items())


def test_steered_kl_halves_while_unsteered_model_and_effect_are_kept(edit: ModelEdit) -> None:
    first, best = edit.history.iloc[0], edit.history.set_index("step").loc[edit.info["best_step"]]
    assert best["kl_steered"] <= 0.5 * first["kl_steered"]
    assert best["kl_unsteered"] < 0.01
    assert first["effect_kept"] == pytest.approx(1, abs=1e-4)
    assert best["effect_kept"] >= 0.7


def test_adapters_disabled_are_bit_identical_to_the_model(model: Model) -> None:
    tuned, trainee = adapt(model, 4, 8.0, 0)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.1 * parameter.requires_grad)
    batch = trainee.batch([trainee.encode(t) for t in texts(3, 5)], "right")
    passes, counted = PairedForwards(trainee, tuned), counted_tokens(batch, "text")
    with torch.no_grad():
        plain = model.hf(**model.inputs(batch)).logits[counted]
        assert torch.equal(passes.logits(batch, {}, counted, original=True), plain)
        assert not torch.allclose(passes.logits(batch, {}, counted), plain, atol=1e-3)


def test_counted_tokens_leave_out_padding_or_the_prompt(model: Model) -> None:
    rows = [model.encode("red cat", answer=" blue dog house"), model.encode("red cat small large", answer=" dog")]
    batch = model.batch(rows, "right")
    assert counted_tokens(batch, "padded").all()
    assert counted_tokens(batch, "text").sum(1).tolist() == [len(row) for row in rows]
    answers = counted_tokens(batch, "answer")
    assert answers.sum(1).tolist() == [len(row.kind("answer")) for row in rows]
    assert [int(row.nonzero()[0]) for row in answers] == [row.n_prompt - 1 for row in rows]


def test_padding_changes_the_loss_only_where_it_is_counted(model: Model) -> None:
    tuned, trainee = adapt(model, 4, 8.0, 0)
    passes = PairedForwards(trainee, tuned)
    rows = [trainee.encode("red"), trainee.encode("red cat small large house tree river")]

    def divergence(batch: Any, kind: str) -> torch.Tensor:
        edits = edits_for(batch, {trainee.site(0): torch.full((trainee.hidden_size,), 0.5)}, 1.0, trainee.device)
        return passes.divergence(batch, edits, kind, "model", passes.reference(batch, kind)).detach()

    means = {kind: float(divergence(trainee.batch(rows, "right"), kind).mean()) for kind in ("text", "padded")}
    alone = torch.cat([divergence(trainee.batch([row], "right"), "text") for row in rows])
    assert means["text"] == pytest.approx(float(alone.mean()), rel=1e-4)
    assert means["padded"] != pytest.approx(means["text"], rel=1e-2)


@pytest.mark.nightly
def test_interrupted_training_goes_on_to_the_same_weights(model: Model, tmp_path: Any, monkeypatch: Any) -> None:
    config = {"steps": 8, "measure_every": 4, "patience": None, "accumulate": 2}
    whole = train(model, two_behaviors(), config=config, layers=[0, 2])
    from steerlab.methods.kts import train as module

    original, calls = module._Trainer.step, []

    def interrupted(self: Any, number: int) -> float:
        calls.append(number)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return original(self, number)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module._Trainer, "step", interrupted)
        train(model, two_behaviors(), config=config, layers=[0, 2], folder=tmp_path)
    resumed = train(model, two_behaviors(), config=config, layers=[0, 2], folder=tmp_path)
    assert all(torch.equal(value, resumed.weights[name]) for name, value in whole.weights.items())
    columns = ["step", "kl_steered", "kl_unsteered", "effect_kept"]
    assert whole.history[columns].equals(resumed.history[columns])
    with pytest.raises(MismatchError, match="another training, with other seed"):
        train(model, two_behaviors(), config=config, layers=[0, 2], folder=tmp_path, seed=1)


def test_weights_that_undo_one_of_two_behaviors_are_never_chosen(model: Model, monkeypatch: Any) -> None:
    kept = {"refuse": 1.6, "comply": -0.1}
    monkeypatch.setattr(_Trainer, "_effect", lambda _, name, original=False: 1.0 if original else kept[name])
    found = train(model, two_behaviors(), config={"steps": 4, "measure_every": 2})
    assert found.info["best_step"] == 0 and (found.history["effect_kept"] == -0.1).all()


def test_rising_kl_stops_training_and_keeps_the_best_weights(model: Model) -> None:
    with pytest.warns(UserWarning, match="has not fallen below .* training stopped"):
        found = train(model, config={"steps": 40, "measure_every": 2, "patience": 2, "learning_rate": 3.0})
    assert len(found.history) < 21
    sums = found.history["kl_steered"] + found.history["kl_unsteered"]
    assert found.info["best_step"] == found.history["step"][sums.idxmin()]


def test_benign_texts_of_the_concept_are_counted_in_a_warning(model: Model) -> None:
    with pytest.warns(UserWarning, match="2 of 6 benign texts"):
        kl_then_steer(
            model, [*texts(4, 2), str(contrasts()[0].prompt), Example("cat", behavior="refuse")], [" tree"] * 6,
            {"refuse": contrasts()}, layers=[0], config=KTSConfig(steps=1), progress=False,
        )  # fmt: skip


def test_vectors_from_before_the_edit_are_refused_unless_accepted(model: Model, edit: ModelEdit) -> None:
    edited, vector = edit.prepare(model), MeanDifference(1).fit(model, contrasts())
    assert edited.id == f"{model.id}+kts" and edited.info()["weights"] != model.info()["weights"]
    with pytest.raises(MismatchError, match="was fitted on a model called"):
        steerlab.generate(edited, texts(2, 4), steer=vector, max_new_tokens=2)
    accepted = steerlab.Request(vector, 1.0, any_model=True)
    assert len(steerlab.generate(edited, texts(2, 4), steer=accepted, max_new_tokens=2).texts) == 2
    again = MeanDifference(1).fit(edited, contrasts())
    assert len(steerlab.generate(edited, texts(2, 4), steer=again, max_new_tokens=2).texts) == 2


def test_saved_edit_is_the_same_here_and_for_peft(model: Model, edit: ModelEdit, tmp_path: Any) -> None:
    edit.save_pretrained(tmp_path)
    read = ModelEdit.from_pretrained(tmp_path)
    assert read.history.equals(edit.history) and read.info["best_step"] == edit.info["best_step"]
    batch = model.batch([model.encode(t) for t in texts(3, 5)], "right")
    with torch.no_grad():
        wanted = edit.prepare(model).hf(**model.inputs(batch)).logits
        assert torch.equal(read.prepare(model).hf(**model.inputs(batch)).logits, wanted)
        theirs = PeftModel.from_pretrained(copy.deepcopy(model.hf), tmp_path)
        assert torch.equal(theirs(**model.inputs(batch)).logits, wanted)
        merged = read.prepare(model, merge=True)
        torch.testing.assert_close(merged.hf(**model.inputs(batch)).logits, wanted, atol=1e-5, rtol=1e-4)
    assert type(merged.hf) is type(model.hf)
    merged.hf.save_pretrained(tmp_path / "merged")
    merged.tokenizer.save_pretrained(tmp_path / "merged")
    assert steerlab.load(tmp_path / "merged").info()["weights"] == merged.info()["weights"]


def test_scaled_edit_changes_the_weights_by_its_share(model: Model, edit: ModelEdit, tmp_path: Any) -> None:
    half = edit.scaled(0.8).scaled(0.625)
    half.save_pretrained(tmp_path)
    assert all(any(fnmatch(one.name, given) for given in _OURS) for one in tmp_path.iterdir()), "from the hub"
    read = ModelEdit.from_pretrained(tmp_path)
    before, whole, some = (m.hf.state_dict() for m in (model, *(e.prepare(model, merge=True) for e in (edit, read))))
    for name, value in before.items():
        torch.testing.assert_close(some[name], (value + whole[name]) / 2, atol=1e-6, rtol=1e-5)
    assert any((whole[name] - value).abs().max() > 1e-3 for name, value in before.items())
    assert half.info["share"] == read.info["share"] == 0.5 and "share" not in edit.info
    for share in (0, -1, float("nan")):
        with pytest.raises(DataError, match="share"):
            edit.scaled(share)


def test_edit_of_other_weights_or_changed_files_is_refused(model: Model, edit: ModelEdit, tmp_path: Any) -> None:
    other = tiny_lm("llama", backend="hooks", seed=1)
    with pytest.raises(MismatchError, match="this edit was made from"):
        edit.prepare(other)
    assert edit.prepare(other, any_model=True).n_layers == other.n_layers
    with pytest.raises(MismatchError, match="does not fit"):
        edit.prepare(tiny_lm("gpt2", backend="hooks"), any_model=True)
    changed = ModelEdit(edit.name, edit.base, {k: v + 1 for k, v in edit.weights.items()}, edit.lora, {}, edit.history)
    edit.save_pretrained(tmp_path)
    manifest = (tmp_path / "manifest.json").read_bytes()
    changed.save_pretrained(tmp_path)
    (tmp_path / "manifest.json").write_bytes(manifest)
    with pytest.raises(MismatchError, match="not the weights of the manifest"):
        ModelEdit.from_pretrained(tmp_path)
    with pytest.raises(LoadError):
        ModelEdit.from_pretrained(tmp_path / "nothing")


@pytest.mark.parametrize("family", FAMILIES)
def test_edited_model_of_each_family_is_read_and_steered_as_any_model(family: str) -> None:
    model, rows = tiny_lm(family, backend="hooks"), contrasts(6)
    layer = 1 if family == "mixtral" else 0
    if family in ("qwen2", "gemma3"):  # random models, which a vector may move the wrong way
        rows = [e.replace(contrast=Contrast(e.contrast.negative, e.contrast.positive)) for e in rows if e.contrast]
    config = KTSConfig(steps=2, measure_every=2, rank=2, batch_size=4, coefficients=(0.0, 0.2))
    found = kl_then_steer(
        model, texts(8, 2), [" " + t for t in texts(8, 3)], {"refuse": rows}, layers=[layer], config=config,
        progress=False,
    )  # fmt: skip
    edited = found.prepare(model)
    acts = steerlab.capture(edited, texts(2, 7), layers=[1], positions="last", progress=False)
    row = edited.encode(texts(2, 7)[0])
    with torch.no_grad():
        wanted = edited.hf(torch.tensor([row.ids]), output_hidden_states=True).hidden_states
    assert torch.isfinite(acts.at(1)).all() and found.history["kl_steered"].iloc[0] > 0
    if edited.n_layers > 2:
        torch.testing.assert_close(acts.at(1)[0], wanted[2][0, -1], atol=1e-4, rtol=1e-3)
    vector = MeanDifference(0).fit(edited, contrasts(6))
    assert steerlab.generate(edited, texts(2, 7), steer=vector, max_new_tokens=2).steered_tokens > 0


def test_bad_settings_and_inputs_say_what_to_give(model: Model) -> None:
    for bad, match in (
        ({"first": "steered"}, "reference"), ({"tokens": "all"}, "padded"), ({"steered_share": 1.2}, "steered_share"),
        ({"coefficients": (1.0, -1.0)}, "smallest"), ({"steps": 0}, "steps"),
        ({"coefficients": (1.0,)}, "smallest"), ({"learning_rate": 0.0}, "learning_rate"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=match):
            KTSConfig(**bad)
    with pytest.raises((DataError, TypeError), match=r"smallest|Actual value: 1\.0"):  # the latter at night
        KTSConfig(coefficients=1.0)  # type: ignore[arg-type]
    given: dict[str, Any] = {"layers": [0], "progress": False}
    with pytest.raises(DataError, match="2 benign prompts, and 1 answers"):
        kl_then_steer(model, ["cat", "dog"], ["tree"], {"refuse": contrasts()}, **given)
    with pytest.raises(DataError, match="no behaviors"):
        kl_then_steer(model, ["cat", "dog"], [" tree"] * 2, {}, **given)
    with pytest.raises(DataError, match="'refuse' has 0 examples with a contrast"):
        kl_then_steer(model, ["cat", "dog"], [" tree"] * 2, {"refuse": ["cat"]}, **given)
    quantized = copy.copy(model)
    quantized.hf = copy.deepcopy(model.hf)
    quantized.hf.is_quantized = True
    quantized.lock = LOCKS.setdefault(quantized.hf, quantized.lock)
    with pytest.raises(SteeringError, match="quantized"):
        kl_then_steer(quantized, ["cat", "dog"], [" tree"] * 2, {"refuse": contrasts()}, **given)


def test_only_added_vectors_of_text_layers_with_an_effect_are_trained(model: Model) -> None:
    given: dict[str, Any] = {"progress": False, "config": KTSConfig(steps=1)}
    benign, answers = texts(8, 2), [" " + t for t in texts(8, 3)]
    with pytest.raises(SteeringError, match="something else than to add"):
        kl_then_steer(model, benign, answers, {"refuse": contrasts()}, layers=[1], estimator=Spherical, **given)
    with pytest.raises(SteeringError, match="steer an earlier layer"):
        kl_then_steer(model, benign, answers, {"refuse": contrasts()}, layers=[model.n_layers - 1], **given)
    instructed = [e.replace(contrast=Contrast("Say no.", "", instructions=True)) for e in contrasts()]
    with pytest.raises(DataError, match="contrasts without answers"):
        kl_then_steer(model, benign, answers, {"refuse": instructed}, layers=[1], **given)
    reverse = KTSConfig(steps=1, coefficients=(-1.0, 0.0))
    found = kl_then_steer(model, benign, answers, {"refuse": contrasts()}, layers=[1], progress=False, config=reverse)
    assert found.history["effect_kept"].iloc[0] == pytest.approx(1, abs=1e-4)  # away from the wanted answers


def test_model_with_an_adapter_is_merged_before_it_is_trained_again(model: Model, edit: ModelEdit) -> None:
    with pytest.raises(SteeringError, match="merge it first"):
        train(edit.prepare(model), config={"steps": 1})
    assert train(edit.prepare(model, merge=True), config={"steps": 1}).base["weights"] != edit.base["weights"]


def test_answers_are_those_that_capture_reads(model: Model) -> None:
    example = contrasts()[0].replace(contrast=Contrast(" no", " yes", suffix="Well?", end_turn=True))
    rows = [encode_answer(model, example, side) for side in ("positive", "negative")]
    acts = steerlab.capture(model, [example], layers=[0], positions="answer", context=None, progress=False)
    assert acts.index["n_tokens"].tolist() == [len(row) - row.n_prompt for row in rows]
    assert "Well?" in rows[0].text and rows[0].text.endswith("no<|im_end|>\n")


def test_strength_of_a_range_is_its_positive_end() -> None:
    assert KTSConfig().strength == 1.5 and KTSConfig(coefficients=(-2.0, 1.0)).strength == -2.0


def test_released_settings_are_those_of_the_code() -> None:
    assert released_layers(32) == list(range(3, 22)) and released_layers(12) == [0, 1]
    config = KTSConfig(**KTS_RELEASED)
    assert (config.rank, config.scaling, config.steered_share, config.keep_weight) == (128, 256.0, 0.125, 0.0)
    assert (config.first, config.tokens, config.blocks) == ("model", "padded", "all")


def test_effect_of_steering_does_not_depend_on_the_batches(model: Model) -> None:
    pairs = [Contrast(" no" * (n % 7 + 1), " yes" * (7 - n % 7)) for n in range(21)]
    rows = [Example(text, contrast=pair) for text, pair in zip(texts(21, 4), pairs, strict=True)]
    vectors = BehaviorVectors({"refuse": rows}, [Site(1)], MeanDifference)
    found = []
    for size in (1, 2, 3, 5):
        trainer = _Trainer(model, vectors, KTSConfig(batch_size=size, coefficients=(0.0, 1.0)), [], [], seed=0)
        found.append(trainer._effects["refuse"])
    assert np.ptp(found) < 1e-5 < abs(found[0])


class FittedToContrasts:
    """An estimator whose vectors come from the written contrasts, whatever it is given."""

    def __init__(self, sites: Any) -> None:
        self.sites = sites

    def fit(self, model: Model, _: Any) -> MeanDifference:
        return MeanDifference(self.sites).fit(model, contrasts())


def test_kept_answers_are_trained_on_while_vectors_come_from_the_contrasts(model: Model) -> None:
    own = [e.replace(contrast=Contrast(" no one", f" {e.prompt[:4]}")) for e in contrasts()]
    options: dict[str, Any] = {"layers": [1], "config": KTSConfig(steps=4, measure_every=2, coefficients=(0.0, 1.0))}
    data = (model, texts(12, 2), [" " + t for t in texts(12, 3)])
    kept = kl_then_steer(*data, {"refuse": contrasts()}, keep={"refuse": own}, progress=False, **options)
    other = kl_then_steer(*data, {"refuse": own}, estimator=FittedToContrasts, progress=False, **options)
    plain = kl_then_steer(*data, {"refuse": contrasts()}, progress=False, **options)
    assert kept.history.equals(other.history) and not kept.history.equals(plain.history)
    assert kept.info["behaviors"] != plain.info["behaviors"]
    with pytest.raises(DataError, match=r"keep has contrasts for \['defer'\], and the behaviors are \['refuse'\]"):
        kl_then_steer(*data, {"refuse": contrasts()}, keep={"defer": own}, progress=False, **options)
