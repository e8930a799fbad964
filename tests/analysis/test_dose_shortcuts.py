"""The dose measured with shortcuts is that of whole rows, in families with every kind of cache and position."""

import pytest
import torch

from steerlab import Contrast, Example, SteeringVector, capture, load
from steerlab.analysis.calibration import measure_dose
from steerlab.methods import GradientField, Operation
from steerlab.models.sites import Site
from steerlab.testing import tiny_lm

PROMPTS = ("Tell me of the Nile.", "Hi", "What does a heron eat, and where does it sleep at night?", "Oh no, not now")
FAMILIES = ("llama", "gpt2", "gpt_neox", "gemma2", "opt", "mixtral", "phi3", "qwen2")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("positions", ["all", "last+generated"])
def test_dose_is_that_of_whole_rows(family: str, positions: str) -> None:
    short = tiny_lm(family)
    whole = load(short.hf, tokenizer=short.tokenizer, backend="hooks", prefix_caching=False)
    v = torch.randn(short.hidden_size, generator=torch.Generator().manual_seed(0))
    pairs = [Example(p, Contrast("No, never.", "Yes, sure"), behavior="b") for p in PROMPTS]
    field = GradientField(1, epochs=2, hidden_units=8).fit(capture(whole, pairs, layers=[1]))
    steerers = (
        SteeringVector({2: v, 3: v}), field, Operation(SteeringVector({2: v}), "project_out", first=2),
        SteeringVector({Site(1, "attn_out"): v}), SteeringVector({0: v}),
    )  # fmt: skip
    for steerer in steerers:
        options = {"positions": positions, "max_new_tokens": 5, "batch_size": 3}
        found, wanted = (measure_dose(model, PROMPTS, steerer, **options) for model in (short, whole))
        assert found.kl == pytest.approx(wanted.kl, rel=2e-3, abs=1e-7)
        assert found.norm_ratio == pytest.approx(wanted.norm_ratio, rel=1e-4)
    assert short.supports_prefix_cache and not whole.supports_prefix_cache
