"""The published nets and activations, read with our code."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file
from synthetic_acts import shuffled

from steerlab.capture.activations import Activations
from steerlab.methods import L2S, MeanDifference
from steerlab.models.sites import Site

pytestmark = pytest.mark.data
NETS = {
    "l2s_llava15_7b_mmsb_K100": (4096, 15, 30),
    "l2s_llava15_7b_l14_pope": (4096, 14, 14),
    "l2s_qwen2vl_l14_mmsb": (3584, 14, 14),
}


@pytest.mark.parametrize("name", NETS)
def test_a_shipped_net_predicts_what_its_weights_say(name, tensors):
    hidden_size, layer, context_layer = NETS[name]
    path = tensors / f"{name}.safetensors"
    fitted = L2S.from_published(path, layer, context_layer)
    contexts = torch.randn(7, hidden_size, generator=torch.Generator().manual_seed(0))
    predicted = fitted.predict(contexts)
    assert predicted.shape == (7, hidden_size) and bool(torch.isfinite(predicted).all())
    weights = {key: value.astype(np.float64) for key, value in load_numpy(path).items()}
    inner = np.tanh(contexts.double().numpy() @ weights["encoder.weight"].T + weights["encoder.bias"])
    by_hand = inner @ weights["decoder.weight"].T
    np.testing.assert_allclose(predicted.numpy(), by_hand, atol=1e-4 * np.abs(by_hand).max())


def test_the_mean_of_real_activations_is_the_authors_vector_in_every_layer(tensors):

    data = {k: v.float() for k, v in load_file(tensors / "adasteer_qwen25_7b_RD_activations.safetensors").items()}
    rows = [(side, f"p{i}") for side in ("positive", "negative") for i in range(14)]
    index = pd.DataFrame(rows, columns=["side", "example_id"]).assign(
        position="answer", behavior="", split="", column=-1, token=-1, n_tokens=1
    )
    values = torch.cat([data["class_a"], data["class_b"]], 1).transpose(0, 1)
    acts = Activations(values.contiguous(), index, tuple(map(Site, range(28))))
    mixed = shuffled(acts)
    for layer in range(28):
        vector = MeanDifference(layer).fit(acts).vector_
        assert torch.cosine_similarity(vector, data["mean_diff"][layer], dim=0) > 0.99999
        assert torch.equal(MeanDifference(layer).fit(mixed).vector_, vector)
