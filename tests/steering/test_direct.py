"""Inside `with steer(...)`, what is run on `model.hf` itself is steered as steerlab's verbs are, and only that."""

import threading
import warnings
from functools import cache, partial
from itertools import product
from typing import Any

import pytest
import torch
from fitted import CONTEXT_LAYER, HIDDEN, LAYER, PROMPTS, STEPS, backends, make_lm, make_steerers
from nightly import by_day
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, MambaConfig, PreTrainedTokenizerFast, RwkvConfig, pipeline

import steerlab
from steerlab import Contrast, Example, Site, SteeringVector, generate, steer
from steerlab.errors import LayoutError, PositionError, SteeringError
from steerlab.methods import CONFST, AdaSteer, AlphaSteer, Gated, LinearProbe, Operation, Prompt, RandomDirection
from steerlab.methods.base import Steerer
from steerlab.models.model import Model
from steerlab.models.positions import Match, resolve
from steerlab.steering.direct import _as_row
from steerlab.testing import FAMILIES, VLM_FAMILIES, tiny_lm, tiny_tokenizer, tiny_vlm
from steerlab.testing.text import seeded

GREEDY = {"max_new_tokens": STEPS, "do_sample": False, "pad_token_id": 0}
KINDS = ("mean", "l2s", "random", "gates", "gated", "confst", "adasteer", "two sites")
BEHAVIORS = ("complied", "rejected", "answer")


@cache
def steerer_of(family: str, kind: str) -> Any:
    """A fitted steerer of a kind for a family."""
    draw = torch.Generator().manual_seed(2)
    w, r = torch.randn(2, HIDDEN, generator=draw) / HIDDEN, torch.randn(2, HIDDEN, generator=draw)
    if kind == "gates":
        return AlphaSteer.from_gates((0, 2), w, r)
    if kind == "two sites":
        return [
            SteeringVector({Site(LAYER, point): 2 * v}) for point, v in zip(("block_in", "mlp_out"), r, strict=True)
        ]
    if kind in make_steerers(family):
        return make_steerers(family)[kind]
    rows = [Example(f"{p} {b} {i}", id=f"{b}{i}", behavior=b) for b in BEHAVIORS for i, p in enumerate(2 * PROMPTS)]
    acts = steerlab.capture(make_lm(family, "hooks"), rows, layers=[LAYER, CONTEXT_LAYER], progress=False)
    if kind == "confst":
        return CONFST(LAYER, "answer", folds=2, min_items=1, threshold=0.0).fit(acts)
    if kind == "adasteer":
        with warnings.catch_warnings():  # random states: harmfulness may have no part along rejection
            warnings.simplefilter("ignore")
            return AdaSteer([LAYER, CONTEXT_LAYER], rejection_layer=LAYER, harmfulness_layer=CONTEXT_LAYER).fit(acts)
    probe = LinearProbe(CONTEXT_LAYER, positive=["complied"]).fit(acts)
    return Gated(make_steerers(family)["mean"], probe, soft=True)


def inputs_of(model: Model, prompts: Any = PROMPTS, side: str = "left") -> dict[str, Tensor]:
    """The arguments of Hugging Face's own `generate`."""
    rows = [model.encode(p.prompt, images=p.images) if isinstance(p, Example) else model.encode(p) for p in prompts]
    return model.inputs(model.batch(rows, side), positions=False)


def by_hand(model: Model, prompts: Any = PROMPTS, **options: Any) -> list[tuple[int, ...]]:
    """New ids of Hugging Face's own `generate`, up to the end of turn."""
    inputs = inputs_of(model, prompts)
    ids = model.hf.generate(**inputs, **GREEDY | options)
    return [tuple(row[inputs["input_ids"].shape[1] :].tolist()) for row in ids]


def agree(found: list[tuple[int, ...]], wanted: Any) -> bool:
    """Whether ids are the same, but for padding after an early end."""
    return all(one[: len(w)] == w and not any(one[len(w) :]) for one, w in zip(found, wanted, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_generate_of_hugging_face_gives_the_ids_of_steerlab_generate(family: str, kind: str) -> None:
    model, steerer = make_lm(family, "nnsight"), steerer_of(family, kind)
    if kind == "two sites" and "mlp_out" not in model.layout.points:
        pytest.skip("the blocks of this family have no MLP module")
    alpha = 3.0
    wanted = generate(model, PROMPTS, steer=steerer, alpha=alpha, max_new_tokens=STEPS)
    with steer(model, steerer, alpha=alpha) as run:
        assert agree(by_hand(model), wanted.ids)
        assert run.steered_tokens == wanted.steered_tokens
        assert run.norm_ratio == pytest.approx(wanted.norm_ratio, rel=1e-4)


@pytest.mark.parametrize(
    "config", [MambaConfig(state_size=4), RwkvConfig(attention_hidden_size=32)], ids=lambda one: one.model_type
)
def test_models_with_a_cache_that_counts_no_columns_are_steered_too(config: MambaConfig | RwkvConfig) -> None:
    config.update({"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 3, "bos_token_id": 1, "eos_token_id": 2})
    with seeded(0):
        model = steerlab.load(AutoModelForCausalLM.from_config(config).eval(), tokenizer=tiny_tokenizer())
    vector = SteeringVector({1: 9 * torch.randn(32, generator=torch.Generator().manual_seed(0))})
    wanted = generate(model, PROMPTS[:1], steer=vector, max_new_tokens=STEPS)
    assert wanted.ids != generate(model, PROMPTS[:1], max_new_tokens=STEPS).ids
    assert model.row_format.use_cache == (config.model_type == "mamba"), "RWKV's cache is wrong in a batch"
    with steer(model, vector) as run:
        assert agree(by_hand(model, PROMPTS[:1]), wanted.ids) and run.steered_tokens == wanted.steered_tokens


@pytest.mark.parametrize(
    ("family", "kind"),
    by_day(product(VLM_FAMILIES, ("mean", "l2s")), lambda family, kind: kind == "mean" or family == "llava"),
)
def test_image_text_models_are_steered_as_well(family: str, kind: str) -> None:
    model = tiny_vlm(family)
    marks = "<image>" if model.tokenizer.chat_template is None else ""
    images = [Image.new("RGB", size, color) for size, color in (((40, 24), "red"), ((24, 24), "blue"))]
    rows = [Example(f"{marks}What is {i}?", id=str(i), images=(image,)) for i, image in enumerate(images)]
    steerer: Steerer = SteeringVector({1: 4 * torch.randn(32, generator=torch.Generator().manual_seed(0))})
    if kind == "l2s":
        pairs = [row.replace(contrast=Contrast("No, never.", "Yes, sure")) for row in rows]
        steerer = steerlab.L2S(1, hidden_units=3, progress=False).fit(steerlab.capture(model, pairs, layers=[1]))
    wanted = generate(model, rows, steer=steerer, alpha=5.0, max_new_tokens=STEPS)
    with steer(model, steerer, alpha=5.0) as run:
        assert agree(by_hand(model, rows), wanted.ids) and run.steered_tokens == wanted.steered_tokens


@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}, {"use_cache": False}]
)
@pytest.mark.parametrize("kind", ["mean", "l2s", "gates"])
def test_beams_and_decoding_without_a_cache(options: dict[str, Any], kind: str) -> None:
    model, steerer = make_lm("llama", "hooks"), steerer_of("llama", kind)
    wanted = generate(model, PROMPTS, steer=steerer, alpha=3.0, max_new_tokens=STEPS, **options)
    with steer(model, steerer, alpha=3.0):
        assert agree(by_hand(model, **options), wanted.ids)


@backends
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", ["all", "last", "prompt[1]", 2, -2, slice(1, 4), Match("e")])
@pytest.mark.parametrize("kind", ["mean", "l2s"])
def test_forward_of_padded_rows_equals_each_row_alone(backend: str, side: str, positions: Any, kind: str) -> None:
    model, steerer = make_lm("llama", backend), steerer_of("llama", kind)
    inputs = inputs_of(model, side=side)
    with steer(model, steerer, alpha=3.0, positions=positions), torch.no_grad():
        logits = model.hf(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    for number, (prompt, real) in enumerate(zip(PROMPTS, inputs["attention_mask"].bool(), strict=True)):
        alone = steerlab.next_token_logits(model, [prompt], steer=steerer, alpha=3.0, positions=positions)
        assert torch.allclose(logits[number][real][-1], alone[0], atol=1e-4), prompt


def test_prompt_and_steps_run_by_hand_with_a_cache() -> None:
    model, steerer = make_lm("llama", "hooks"), steerer_of("llama", "l2s")
    wanted = generate(model, PROMPTS[:1], steer=steerer, alpha=3.0, positions="last+generated", max_new_tokens=4)
    ids = [inputs_of(model, PROMPTS[:1])["input_ids"], inputs_of(model, PROMPTS[1:2])["input_ids"]]
    found: list[list[int]] = [[], []]
    with steer(model, steerer, alpha=3.0, positions="last+generated"), torch.no_grad():
        outputs = [model.hf(one, use_cache=True) for one in ids]
        for _ in range(4):  # two conversations in turn: each goes on with its own vector
            tokens = [output.logits[:, -1:].argmax(-1) for output in outputs]
            for new, token in zip(found, tokens, strict=True):
                new.append(int(token))
            pairs = zip(tokens, outputs, strict=True)
            outputs = [model.hf(token, past_key_values=out.past_key_values, use_cache=True) for token, out in pairs]
    assert agree([tuple(found[0])], wanted.ids)
    with torch.no_grad():
        unsteered = model.hf(ids[0], use_cache=True)
    with (
        pytest.raises(SteeringError, match="a cache that this block did not fill: run the prompt in it"),
        steer(model, steerer),
    ):
        model.hf(ids[0][:, -1:], past_key_values=unsteered.past_key_values)


def test_nested_blocks_add_up_and_count_for_all() -> None:
    model = make_lm("llama", "hooks")
    first, second = steerer_of("llama", "mean"), SteeringVector({LAYER: 5 * torch.ones(HIDDEN)})
    wanted = generate(model, PROMPTS, steer=[first, second], alpha=2.0, max_new_tokens=STEPS)
    with steer(model, first, alpha=2.0) as outer, steer(model, second, alpha=2.0) as inner:
        assert agree(by_hand(model), wanted.ids)
        assert outer.steered_tokens == inner.steered_tokens == wanted.steered_tokens


@backends
def test_the_model_is_as_before_after_the_block_and_after_an_exception(backend: str) -> None:
    model, steerer = tiny_lm("llama", backend=backend), steerer_of("llama", "l2s")
    model.hf.generate = partial(type(model.hf).generate, model.hf)  # as some libraries do
    generate(model, PROMPTS[:1], max_new_tokens=1)
    hooks = [(m, dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.hf.modules()]
    inputs, own = inputs_of(model), dict(vars(model.hf))
    with torch.no_grad():
        before = model.hf(**inputs).logits
    with steer(model, steerer):
        by_hand(model)
    with pytest.raises(LayoutError), steer(model, {99: torch.ones(HIDDEN)}):
        pass
    with pytest.raises(ZeroDivisionError), steer(model, steerer):
        1 / 0  # noqa: B018
    with pytest.raises(IndexError), steer(model, steerer):
        model.hf(torch.tensor([[10**6, 3]]))
    assert [(m, dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.hf.modules()] == hooks
    assert vars(model.hf).get("generate") is own["generate"] and vars(model.hf).keys() == own.keys()
    assert not model.lock._is_owned()  # type: ignore[attr-defined]
    with torch.no_grad():
        assert torch.equal(model.hf(**inputs).logits, before)


def test_an_interrupted_forward_leaves_the_model_free_for_other_threads() -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    model, steerer, ids = make_lm("llama", "hooks"), steerer_of("llama", "mean"), torch.arange(5, 10)[None]
    with model.hf.lm_head.register_forward_hook(interrupt), pytest.raises(KeyboardInterrupt), steer(model, steerer):
        model.hf(ids)
    assert not model.lock._is_owned()  # type: ignore[attr-defined]
    with pytest.raises(SteeringError, match="padding"), steer(model, steerer):
        model.hf(ids, attention_mask=torch.tensor([[1, 0, 1, 1, 1]]))
    assert not model.lock._is_owned()  # type: ignore[attr-defined]


def test_another_thread_is_not_steered_or_steered_by_its_own_block() -> None:
    model = make_lm("llama", "hooks")
    vectors = [SteeringVector({LAYER: c * torch.ones(HIDDEN)}) for c in (4.0, -4.0)]
    wanted = [generate(model, PROMPTS, steer=steerer, max_new_tokens=STEPS).ids for steerer in ((), *vectors)]
    assert len(set(wanted)) == 3
    found: list[bool] = []
    inside = threading.Barrier(3)

    def work(number: int) -> None:
        if number == 0:
            inside.wait()
            found.extend(agree(by_hand(model), wanted[0]) for _ in range(6))
            return
        with steer(model, vectors[number - 1]):
            inside.wait()
            found.extend(agree(by_hand(model), wanted[number]) for _ in range(6))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 18


def test_a_pipeline_and_a_trainer_evaluation_are_steered(tmp_path: Any) -> None:
    from transformers import Trainer, TrainingArguments

    model, steerer = make_lm("llama", "hooks"), steerer_of("llama", "mean")
    chat = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    wanted = list(generate(model, PROMPTS, steer=steerer, alpha=3.0, max_new_tokens=STEPS))
    pipe = pipeline("text-generation", model=model.hf, tokenizer=model.tokenizer)
    with steer(model, steerer, alpha=3.0):
        texts = [pipe(one, return_full_text=False, **GREEDY)[0]["generated_text"].rstrip() for one in chat]
    assert texts == wanted
    rows = [{"input_ids": row, "labels": row} for row in inputs_of(model, PROMPTS[:1])["input_ids"]]
    settings = TrainingArguments(tmp_path, report_to=[], use_cpu=True, disable_tqdm=True, per_device_eval_batch_size=1)
    trainer = Trainer(model.hf, settings, eval_dataset=rows)  # type: ignore[arg-type]
    plain = trainer.evaluate()["eval_loss"]
    with steer(model, steerer, alpha=3.0) as run:
        assert abs(trainer.evaluate()["eval_loss"] - plain) > 1e-3 and run.steered_tokens == len(rows[0]["input_ids"])
    assert trainer.evaluate()["eval_loss"] == plain


def test_a_trace_of_nnsight_in_the_block_is_steered() -> None:
    model, steerer = make_lm("llama", "nnsight"), steerer_of("llama", "mean")
    ids = inputs_of(model, PROMPTS[:1])["input_ids"]
    wanted = steerlab.next_token_logits(model, PROMPTS[:1], steer=steerer, alpha=3.0)
    with steer(model, steerer, alpha=3.0), model.nnsight.trace(ids):
        logits = model.nnsight.output.logits.save()
    assert torch.allclose(logits[0, -1], wanted[0], atol=1e-4)
    with pytest.raises(steerlab.errors.SteerlabError, match="is run by HooksEngine"):
        _ = make_lm("llama", "hooks").nnsight


@pytest.mark.parametrize(
    ("steerer", "message"),
    [
        (lambda: Prompt(), "prompt can't steer what is run on model.hf: it changes the prompt's text"),
        (lambda: RandomDirection(1, per_example=True), "its vectors belong to examples, by id"),
        (lambda: Operation(RandomDirection(1, per_example=True), first=2), "its vectors belong to examples, by id"),
        (lambda: steerer_of("llama", "p2s"), "its vectors belong to examples, by id; use run.generate"),
    ],
)
def test_what_needs_more_than_token_ids_is_refused(steerer: Any, message: str) -> None:
    model = make_lm("llama", "hooks")
    with pytest.raises(SteeringError, match=message), steer(model, steerer()):
        by_hand(model)
    vector, mask = SteeringVector({1: torch.ones(HIDDEN)}), torch.eye(7, dtype=torch.bool)
    with pytest.raises(SteeringError, match="'user' is not known"), steer(model, vector, positions="user+generated"):
        by_hand(model)
    with pytest.raises(PositionError, match="7 rows"), steer(model, vector, positions=mask):
        by_hand(model)


@pytest.mark.parametrize(("text", "word"), [("say ünï 愛 now", "愛"), ("this is how we do it", "how we")])
def test_words_are_found_where_a_token_alone_loses_its_space_or_is_a_part_of_a_letter(text: str, word: str) -> None:
    model = tiny_lm("llama", backend="hooks")
    if text.isascii():  # as the tokenizers of Llama 2 decode
        words = Tokenizer(models.WordLevel({f"▁{one}": i for i, one in enumerate(text.split())}))
        words.pre_tokenizer = pre_tokenizers.Metaspace()
        words.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        model.tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    row = _as_row(model, "row", ids, with_text=True)
    assert row.text == text
    assert model.tokenizer.decode([ids[i] for i in resolve(Match(word), row)]).strip() == word


def test_calls_of_unknown_tokens_are_refused() -> None:
    model, steerer = make_lm("llama", "hooks"), steerer_of("llama", "mean")
    ids, gap = torch.arange(5, 10)[None], torch.tensor([[1, 0, 1, 1, 1]])
    for message, call in (
        ("row 0 has no tokens, or padding between its tokens", lambda: model.hf(ids, attention_mask=gap)),
        ("attention mask is not one of rows and tokens", lambda: model.hf(ids, attention_mask=gap[None, None])),
        ("`generate` of a steered model needs token ids", lambda: model.hf.generate(max_new_tokens=2)),
        (
            "first forward of `generate` is not one of the 5",
            lambda: model.hf.generate(ids, prefill_chunk_size=2, **GREEDY),
        ),
        ("does guidance_scale= run another", lambda: model.hf.generate(ids, guidance_scale=2.0, **GREEDY)),
    ):
        with pytest.raises(SteeringError, match=message), steer(model, steerer):
            call()


def test_a_part_of_the_model_in_the_block_is_refused() -> None:
    model, steerer = make_lm("llama", "hooks"), steerer_of("llama", "mean")
    ids = torch.arange(5, 10)[None]
    for call in (lambda: model.hf.model(ids), lambda: model.hf.forward(ids)):
        with pytest.raises(SteeringError, match="a part of the model was called"), steer(model, steerer):
            call()


def test_a_block_in_which_nothing_is_steered_raises() -> None:
    model, steerer = make_lm("llama", "hooks"), steerer_of("llama", "mean")
    with pytest.raises(SteeringError, match="nothing was run in this `with steer"), steer(model, steerer):
        pass
    with pytest.raises(SteeringError, match="no token was steered"), steer(model, steerer, positions="generated"):
        model.hf(torch.arange(5, 10)[None])
    with steer(model, steerer, alpha=0.0):
        pass
    with steer(model, SteeringVector({LAYER: torch.zeros(HIDDEN)})) as run:
        model.hf(torch.arange(5, 10)[None])
    assert run.steered_tokens == 0
    with steer(model, steerer) as run:
        found = generate(model, PROMPTS, max_new_tokens=2)
    assert run.steered_tokens == found.steered_tokens > 0, "verbs in the block count"
