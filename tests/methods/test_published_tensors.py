"""The published nets and activations, read with our code."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from synthetic_acts import activations, normal, shuffled

from steerlab.methods import L2S, MeanDifference

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
    contexts = normal(7, hidden_size)
    predicted = fitted.predict(contexts)
    assert predicted.shape == (7, hidden_size) and bool(torch.isfinite(predicted).all())
    weights = {key: value.astype(np.float64) for key, value in load_file(path).items()}
    inner = np.tanh(contexts.double().numpy() @ weights["encoder.weight"].T + weights["encoder.bias"])
    by_hand = inner @ weights["decoder.weight"].T
    np.testing.assert_allclose(predicted.numpy(), by_hand, atol=1e-4 * np.abs(by_hand).max())


def test_the_mean_of_real_activations_is_the_authors_vector_in_every_layer(qwen):
    values = torch.cat([qwen["class_a"], qwen["class_b"]], 1).transpose(0, 1).contiguous()
    columns = {"example_id": [f"p{i}" for i in range(14)] * 2, "side": ["positive"] * 14 + ["negative"] * 14}
    acts = activations(values, range(28), {}, position="answer", **columns)
    mixed = shuffled(acts)
    for layer in range(28):
        vector = MeanDifference(layer).fit(acts).vector_
        assert torch.cosine_similarity(vector, qwen["mean_diff"][layer], dim=0) > 0.99999
        assert torch.equal(MeanDifference(layer).fit(mixed).vector_, vector)
