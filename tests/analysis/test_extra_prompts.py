"""Extra prompts are read by the methods that require them, and by nothing else."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch

from steerlab import Example
from steerlab.analysis.accessibility import accessibility
from steerlab.analysis.logit_lens import logit_lens
from steerlab.analysis.patching import patch
from steerlab.analysis.patchscope import patchscope
from steerlab.analysis.sae_features import sae_features
from steerlab.methods import ConceptDictionary
from steerlab.methods.sae import SAE
from steerlab.metrics import topic_gain
from steerlab.models.model import Model
from steerlab.models.sites import Site

TEXTS = ["if we go home", "if me go home", "sun and rain", "rain and sun", "we rain", "me sun", "go", "rain"]


def _sae(hidden: int) -> SAE:
    eye = torch.eye(hidden)
    return SAE(torch.cat([eye, -eye], 1), torch.zeros(2 * hidden), torch.cat([eye, -eye]), torch.zeros(hidden), Site(1))


READINGS: dict[str, Callable[[Model, list[Example]], Any]] = {
    "logit lens": lambda m, rows: logit_lens(m, rows, positions="last"),
    "patching": lambda m, rows: patch(m, rows[:1], rows[1:2], metric=lambda logits: logits[:, 7]),
    "attribution": lambda m, rows: patch(m, rows[:1], rows[1:2], metric=lambda x: x[:, 7], method="attribution"),
    "patchscope": lambda m, rows: patchscope(m, rows[:2], [1], max_new_tokens=2),
    "SAE": lambda m, rows: sae_features(m, rows, _sae(m.hidden_size)),
    "accessibility": lambda m, rows: accessibility(m, rows, ["a", "b"] * 4, [1]),
    "topic": lambda m, rows: pd.Series(topic_gain(m, rows, list("abcdefgh"), progress=False)),
    "concepts": lambda m, rows: pd.DataFrame(ConceptDictionary(1, 2).fit(m, rows).concepts_.numpy()),
}


@pytest.mark.parametrize("reading", READINGS)
def test_extra_prompts_change_no_reading_of_plain_prompts(lm: Callable[..., Model], reading: str) -> None:
    rows = [Example(text, id=str(i)) for i, text in enumerate(TEXTS)]
    extra = [row.replace(extra_prompts={"task": f"do the sum of {row.id} now please"}) for row in rows]
    plain, found = (READINGS[reading](lm("llama"), some) for some in (rows, extra))
    compare = pd.testing.assert_series_equal if isinstance(plain, pd.Series) else pd.testing.assert_frame_equal
    compare(found, plain, atol=1e-4)
    if reading == "patching":
        assert found["restored"].iloc[-1] == pytest.approx(1.0, abs=1e-3), "the end of the last block decides alone"
