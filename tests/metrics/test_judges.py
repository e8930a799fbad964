"""Judges against unbatched computations with tiny random models."""

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertForSequenceClassification, LlamaForCausalLM

from steerlab.errors import DataError, EncodingError, LoadError
from steerlab.metrics import ClassifierJudge, Judge, KeywordJudge, LlamaGuardJudge

TEXTS = ["boil the eggs", "eggs", "the the boil eggs then cool the eggs"]
WORDS = ["boil", "the", "eggs", "then", "cool", "safe", "unsafe", "user", "assistant", ":"]
CLASSIFIER_IDS = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
GUARD_IDS = {w: i for i, w in enumerate(["<unk>", "<pad>", "\n\n", *WORDS])}
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(CLASSIFIER_IDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, initializer_range=0.5,
        id2label={0: "fine", 1: "harm", 2: "other"}, label2id={"fine": 0, "harm": 1, "other": 2},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    transformers.BertTokenizerFast(vocab=CLASSIFIER_IDS).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guard")
    torch.manual_seed(0)
    plain = Tokenizer(models.WordLevel(GUARD_IDS, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", pad_token="<pad>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=len(GUARD_IDS), hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, initializer_range=0.5,
        pad_token_id=1, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _by_hand(kind: type, folder: Path, ids: dict[str, int], label: int, rows: list[list[str]]) -> list[float]:
    """The probability of a label after each row of words: one unpadded pass per row, words looked up one by one."""
    model = kind.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = [model(torch.tensor([[ids.get(word, 0) for word in row]])).logits.flatten(0, -2)[-1] for row in rows]
    return [float(one.double().softmax(0)[label]) for one in logits]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_classifier_in_batches_equals_single_texts(classifier: Path, batch_size: int) -> None:
    got = ClassifierJudge(str(classifier), unsafe_label="harm", batch_size=batch_size, device="cpu")(TEXTS)
    rows = [["[CLS]", *text.split(), "[SEP]"] for text in TEXTS]
    assert got == pytest.approx(_by_hand(BertForSequenceClassification, classifier, CLASSIFIER_IDS, 1, rows), abs=1e-6)
    assert got.std() > 1e-4


def test_classifier_accepts_label_numbers_and_prompts(classifier: Path) -> None:
    by_number = ClassifierJudge(str(classifier), unsafe_label=1, device="cpu")(TEXTS)
    by_name = ClassifierJudge(str(classifier), unsafe_label="harm", device="cpu")(TEXTS)
    np.testing.assert_array_equal(by_number, by_name)
    paired = ClassifierJudge(str(classifier), unsafe_label=1, show_prompt=True, device="cpu")
    assert not np.allclose(paired(TEXTS, ["cool eggs"] * 3), by_name)
    with pytest.raises(DataError, match="got none"):
        paired(TEXTS)


def test_classifier_without_the_label_is_refused(classifier: Path) -> None:
    with pytest.raises(LoadError, match=r"fine.*harm.*'unsafe'"):
        ClassifierJudge(str(classifier), device="cpu")(TEXTS)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_guard_shows_the_response_as_a_user_message(guard: Path, batch_size: int) -> None:
    got = LlamaGuardJudge(str(guard), batch_size=batch_size, device="cpu")(TEXTS, ["never shown"] * 3)
    rows = [["user", ":", *text.split(), "assistant", ":\n\n"] for text in TEXTS]
    assert got == pytest.approx(_by_hand(LlamaForCausalLM, guard, GUARD_IDS, GUARD_IDS["unsafe"], rows), abs=1e-6)
    assert got.std() > 1e-4


def test_guard_can_show_prompt_and_examples(guard: Path) -> None:
    judge = LlamaGuardJudge(str(guard), show_prompt=True, examples=[("cool", "safe")], device="cpu")
    got = judge(TEXTS, ["then"] * 3)
    head = ["user", ":", "cool", "assistant", ":", "safe", "user", ":", "then", "assistant", ":"]
    rows = [[*head, *text.split(), "assistant", ":\n\n"] for text in TEXTS]
    assert got == pytest.approx(_by_hand(LlamaForCausalLM, guard, GUARD_IDS, GUARD_IDS["unsafe"], rows), abs=1e-6)


def test_guard_without_template_or_unsafe_token_is_refused(guard: Path) -> None:
    judge = LlamaGuardJudge(str(guard), device="cpu")
    tokenizer = judge._loaded[0]
    tokenizer.chat_template = None
    with pytest.raises(EncodingError, match="no chat template"):
        judge(TEXTS)
    tokenizer.encode = lambda *args, **kwargs: [4, 5]
    with pytest.raises(EncodingError, match="exactly one"):
        judge(TEXTS)


@pytest.mark.parametrize("kind", [ClassifierJudge, LlamaGuardJudge])
def test_models_are_loaded_at_the_first_call(kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = kind(str(tmp_path / "absent"))
    with pytest.raises(LoadError, match="absent"):
        judge(TEXTS)
    unreachable = kind("org/guard")
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", Mock(side_effect=OSError("no route to the hub")))
    with pytest.raises(LoadError, match="'org/guard'"):
        unreachable(TEXTS)


def test_keyword_judge_counts_steps() -> None:
    judge: Judge = KeywordJudge()
    recipe = "First, open it.\n1. Mix the parts.\n2. Heat them.\n3. Add salt."
    got = judge(["I can't help with that.", "", "See a doctor first.", "It is a plant.", "1. Mix it.", recipe])
    assert got[:4].tolist() == [0, 0, 0, 0]
    assert 0 < got[4] < got[5] < 1


@pytest.mark.parametrize("problem", [None, "multi_label_classification"])
def test_classifier_gives_the_scores_of_the_transformers_pipeline(
    classifier: Path, tmp_path: Path, problem: str | None
) -> None:
    model = BertForSequenceClassification.from_pretrained(classifier)
    model.config.problem_type = problem
    model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(classifier).save_pretrained(tmp_path)
    pipeline = transformers.pipeline("text-classification", str(tmp_path), top_k=None, device="cpu")
    expected = [next(one["score"] for one in row if one["label"] == "harm") for row in pipeline(TEXTS)]
    assert ClassifierJudge(str(tmp_path), unsafe_label="harm", device="cpu")(TEXTS) == pytest.approx(expected, abs=1e-6)
