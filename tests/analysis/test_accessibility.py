"""Whether the right token can be read off a layer, against ranks by hand and tokens that are planted."""

import pytest
import torch
from scipy.stats import binomtest

from steerlab import Example
from steerlab.analysis.accessibility import accessibility
from steerlab.analysis.logit_lens import logit_lens
from steerlab.errors import DataError
from steerlab.testing import tiny_lm

PROMPTS = [f"{a} {b}" for a in "abcdefgh" for b in "xyz"]


def test_shares_and_median_ranks_equal_the_lens() -> None:
    model = tiny_lm("llama")
    words = [model.tokenizer.decode([i]) for i in (40, 41)]
    answers = [words[i % 2] for i in range(len(PROMPTS))]
    frame = accessibility(model, PROMPTS, answers, [1, 3], probe=False)
    for number, layer in enumerate((1, 3)):
        ranks = []
        for prompt, answer in zip(PROMPTS, answers, strict=True):
            ranks.append(int(logit_lens(model, [prompt], [layer], tokens=[answer])["rank"].item()))
        row = frame.iloc[number]
        share = sum(rank == 1 for rank in ranks) / len(ranks)
        interval = binomtest(sum(rank == 1 for rank in ranks), len(ranks)).proportion_ci(method="wilson")
        assert (row["layer"], row["accessible"], row["n"]) == (layer, share, len(PROMPTS))
        assert row["median_rank"] == torch.tensor(ranks).double().quantile(0.5)
        assert (row["low"], row["high"]) == (interval.low, interval.high)
        assert row["majority"] == 0.5


def test_a_token_that_the_model_says_is_accessible_at_its_end_and_a_probe_finds_what_is_in_the_state() -> None:
    model = tiny_lm("llama")
    said = [logit_lens(model, [p], [3], top=1)["token"].item() for p in PROMPTS]
    frame = accessibility(model, PROMPTS, said, [3], probe=False)
    assert frame["accessible"].item() == 1 and frame.attrs["verdict"] == "steerable"
    words = [model.tokenizer.decode([i]) for i in (40, 41)]
    hidden = [words[prompt.endswith("z")] for prompt in PROMPTS]  # the last token decides, and the model says neither
    frame = accessibility(model, PROMPTS, hidden, [0, 3])
    assert frame["accessible"].max() < 0.05 and frame.attrs["verdict"] == "not steerable"
    assert frame["probe"].min() > 0.9 > frame["majority"].max()
    assert frame["surplus"].tolist() == pytest.approx((frame["probe"] - frame["accessible"]).tolist())
    again = accessibility(model, PROMPTS, hidden, [0, 3])
    assert again["probe"].tolist() == frame["probe"].tolist(), "the same seed gives the same folds"


def test_answers_that_cannot_be_measured_are_refused() -> None:
    model = tiny_lm("llama")
    word = model.tokenizer.decode([40])
    with pytest.raises(DataError, match="24 prompts but 1 answers"):
        accessibility(model, PROMPTS, [word])
    with pytest.raises(DataError, match="tokens of this model"):
        accessibility(model, PROMPTS[:2], ["two words", "two words"], probe=False)
    with pytest.raises(DataError, match="a probe has to see each of several answers at least twice"):
        accessibility(model, PROMPTS[:2], [word, model.tokenizer.decode([41])])
    again = [Example([{"role": "user", "content": prompt}], behavior="b") for prompt in PROMPTS[:2]]
    with pytest.raises(DataError, match="a prompt is given twice"):
        accessibility(model, [*PROMPTS[:2], *again], [word, model.tokenizer.decode([41])] * 2)
    with pytest.raises(DataError, match="names several tokens of a prompt"):
        accessibility(model, PROMPTS[:2], [word, word], position="prompt", probe=False)
