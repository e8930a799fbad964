"""Twenty architectures of transformers a day, and every family that was once wrong: each is right, or refused.

`make zoo` tries all of them, in all cases; here a seed draws a few cases for each. ZOO_SEED names another day.
"""

import os
import random
import time

import pytest
from build import architectures, build
from check import check
from nightly import by_day

import steerlab
from steerlab.testing import tiny_tokenizer

SEED = int(os.environ.get("ZOO_SEED", time.gmtime().tm_yday))
ONCE_WRONG = {
    "keys or values change after the cache": "deepseek_v2 deepseek_v3 kimi_k25 glm4_moe_lite minicpm3 jetmoe diffllama"
    " longcat_flash youtu",
    "columns counted by the model": "qwen2_vl qwen2_5_vl qwen3_vl qwen3_vl_moe glm4v glm46v glm_ocr paddleocr_vl mpt"
    " roformer gpt_neo",
    "position ids dropped on a growing prefix": "exaone4_5 hyperclovax_vision_v2",
    "state that is no key or value": "zaya recurrent_gemma xlstm",
    "positions that begin elsewhere": "roberta camembert xlm-roberta xmod data2vec-text kosmos-2.5",
    "padding that is not neutral": "mbart marian pegasus blenderbot bigbird_pegasus git",
    "not causal": "bert+encoder roberta+encoder paligemma",
    "logits_to_keep swallowed": "minicpmv4_6 minicpm_ocr whisper qwen2_5_omni_thinker qwen3_omni_moe_thinker",
    "flattened outputs": "opt llama4 llama4_text",
    "a cache of another name": "mamba mamba2 falcon_mamba",
}
_WRONG = {model_type for names in ONCE_WRONG.values() for model_type in names.split()}
_ALL = architectures()
_NAMED = [n for n in _ALL if n.partition("/")[0] + "+encoder" * n.endswith("+encoder") in _WRONG]
_TODAY = random.Random(SEED).sample([n for n in _ALL if n not in _NAMED], 20)
# other ones each day; all at night
_QUICK = {*random.Random(SEED).sample(_NAMED, 4), *_TODAY[:2]}


@pytest.mark.parametrize(
    "name", by_day([*_NAMED, *_TODAY], lambda name: name in _QUICK), ids=lambda name: f"{name}-{SEED}"
)
def test_architecture_is_right_or_refused(name: str) -> None:
    verdict = check(name, SEED)
    assert verdict.kind in ("right", "refused", "can't run", "unbuildable"), verdict
    assert verdict.kind in ("right", "can't run", "unbuildable") or verdict.reason, "a refusal says why"


def test_a_wrong_cache_shows_in_half_precision_too() -> None:
    hf = build("moshi/MoshiForCausalLM").bfloat16()
    assert not steerlab.load(hf, tokenizer=tiny_tokenizer(), backend="hooks").row_format.use_cache
