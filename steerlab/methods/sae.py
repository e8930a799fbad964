"""Sparse autoencoders: features of a state, which are directions to steer along and readings of what it holds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import relu

from steerlab._support import files
from steerlab._support.checks import as_number, as_seed, as_whole
from steerlab.errors import DataError, MismatchError, SteeringError
from steerlab.methods.vector import SteeringVector
from steerlab.models.sites import Site

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
ARCHITECTURES = ("standard", "jumprelu", "topk")
# what SAELens calls a site; its attention output comes before the sum of heads where it is called hook_z
HOOKS = {"resid_post": "block_out", "resid_pre": "block_in", "mlp_out": "mlp_out", "attn_out": "attn_out"}
_HOOK = re.compile(r"blocks\.(\d+)\.hook_(\w+)")
# settings under which features or states mean something else: only their plain values are read
_PLAIN: dict[str, tuple[Any, ...]] = {
    "normalize_activations": ("none", None), "reshape_activations": ("none", None),
    "apply_finetuning_scaling_factor": (False, None), "rescale_acts_by_decoder_norm": (False, None),
    "finetuning_scaling_factor": (False, None), "activation_fn": ("relu", None), "hook_head_index": (None,),
    "activation_fn_str": ("relu", None),
}  # fmt: skip


@dataclass(frozen=True)
class SAE:
    """A sparse autoencoder of the states at one site, in the file format of SAELens.

    Example:
        >>> sae = SAE.load("saes/blocks.15.hook_resid_post")
        >>> features = sae.encode(states)                             # (..., feature)
        >>> texts = steerlab.generate(model, prompts, steer=sae.direction(1234), alpha=8)

    Args:
        encoder: `(hidden, feature)`.
        encoder_bias: `(feature,)`.
        decoder: `(feature, hidden)`.
        decoder_bias: `(hidden,)`.
        site: whose states it was trained on.
        architecture: "standard" (ReLU), "jumprelu" (with `threshold`) or "topk" (with `k`).
        threshold: `(feature,)`, below which a feature counts as 0.
        k: the features of a state that are kept.
        subtracts_bias: whether the decoder's bias is subtracted from a state before it is encoded.
        info: of the model and data, for provenance.

    Raises:
        DataError: shapes that do not fit, an unknown architecture, or its threshold or k is missing.

    Source: Bricken et al. 2023; TopK: arXiv 2406.04093; JumpReLU: arXiv 2407.14435.
    """

    encoder: Float[Tensor, "hidden feature"]
    encoder_bias: Float[Tensor, " feature"]
    decoder: Float[Tensor, "feature hidden"]
    decoder_bias: Float[Tensor, " hidden"]
    site: Site
    architecture: str = "standard"
    threshold: Float[Tensor, " feature"] | None = None
    k: int | None = None
    subtracts_bias: bool = True
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        hidden, n = self.encoder.shape
        shapes = {"encoder_bias": (n,), "decoder": (n, hidden), "decoder_bias": (hidden,), "threshold": (n,)}
        if self.site.layer < 0:
            raise DataError(f"the site {self.site} of an SAE: count its layer from 0")
        for name, shape in shapes.items():
            given = getattr(self, name)
            if given is not None and given.shape != shape:
                raise DataError(f"{name} has shape {tuple(given.shape)}; with this encoder it is {shape}")
        if self.architecture not in ARCHITECTURES:
            raise DataError(f"architecture={self.architecture!r}; read are {', '.join(ARCHITECTURES)}")
        if (self.architecture == "jumprelu") != (self.threshold is not None):
            raise DataError("a jumprelu SAE has a threshold for each feature, and no other has")
        if (self.architecture == "topk") != (self.k is not None):
            raise DataError("a topk SAE has k, the number of features of a state, and no other has")

    @property
    def n_features(self) -> int:
        """The number of features."""
        return len(self.decoder)

    def encode(self, states: Float[Tensor, "... hidden"]) -> Float[Tensor, "... feature"]:
        """The features of states, none below 0."""
        if states.shape[-1] != len(self.encoder):
            raise MismatchError(f"states of width {states.shape[-1]}, and the SAE reads {len(self.encoder)}")
        given = states.float() - self.decoder_bias if self.subtracts_bias else states.float()
        found = given @ self.encoder + self.encoder_bias
        if self.threshold is not None:
            return relu(found) * (found > self.threshold)
        found = relu(found)
        if self.k is not None:
            kept = found.topk(min(self.k, self.n_features), dim=-1)
            found = torch.zeros_like(found).scatter(-1, kept.indices, kept.values)
        return found

    def decode(self, features: Float[Tensor, "... feature"]) -> Float[Tensor, "... hidden"]:
        """The states that features stand for."""
        return features @ self.decoder + self.decoder_bias

    def explained(self, states: Float[Tensor, "state hidden"]) -> float:
        """The share of the variance of states that their features keep; below 0: worse than the mean state."""
        lost = (self.decode(self.encode(states)) - states.float()).square().sum()
        return float(1 - lost / (states.float() - states.float().mean(0)).square().sum())

    def direction(self, feature: int) -> SteeringVector:
        """The decoder's vector of a feature, to be added, ablated (`Operation`), or compared."""
        as_whole("feature", feature, 0, self.n_features - 1)
        return SteeringVector({self.site: self.decoder[feature].clone()})

    def save(self, folder: str | Path) -> Path:
        """Write the folder that `load`, and SAELens, read.

        Raises:
            SteeringError: a site that has no name there.
        """
        names = {point: name for name, point in HOOKS.items()}
        if self.site.part != "text" or self.site.point not in names:
            raise SteeringError(f"the file format has no name for the site {self.site}")
        folder = Path(folder)
        tensors = {"W_enc": self.encoder, "b_enc": self.encoder_bias, "W_dec": self.decoder, "b_dec": self.decoder_bias}
        tensors |= {} if self.threshold is None else {"threshold": self.threshold}
        config = {
            "architecture": self.architecture, "d_in": len(self.encoder), "d_sae": self.n_features, "dtype": "float32",
            "device": "cpu", "apply_b_dec_to_input": self.subtracts_bias, "normalize_activations": "none",
            "reshape_activations": "none",
            "metadata": {
                "sae_lens_version": "6.0.0",  # without it SAELens takes the file for an older one, and drops the hook
                "hook_name": f"blocks.{self.site.layer}.hook_{names[self.site.point]}", "steerlab": self.info,
            },
        } | ({} if self.k is None else {"k": self.k, "rescale_acts_by_decoder_norm": False})  # fmt: skip
        with files.storing(folder, "what the folder held before is kept"):
            folder.mkdir(parents=True, exist_ok=True)
            ours = {name: tensor.contiguous() for name, tensor in tensors.items()}
            files.write_atomically(folder / WEIGHTS, lambda partial: save_file(ours, partial))
            files.write_json(folder / CONFIG, config)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> SAE:
        """Read a folder that `save` or SAELens wrote.

        Raises:
            LoadError: no such folder, or a damaged file.
            MismatchError: an architecture or a setting that is not read.
        """
        folder = Path(folder)
        hint = f"Give a folder with {CONFIG} and {WEIGHTS}"
        with files.reading(folder / CONFIG, hint):
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        with files.reading(folder / WEIGHTS, hint):
            tensors = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()}
        metadata = config.get("metadata") or {}
        _check_settings(config | metadata)
        name = metadata.get("hook_name", config.get("hook_name"))
        hook = _HOOK.fullmatch(str(name))
        if hook is None or hook[2] not in HOOKS:
            known = ", ".join(f"blocks.3.hook_{point}" for point in HOOKS)
            raise MismatchError(f"the SAE reads {name!r}; what is read is of the kinds {known}")
        if missing := [name for name in ("W_enc", "b_enc", "W_dec", "b_dec") if name not in tensors]:
            raise MismatchError(f"{folder / WEIGHTS} has no {missing}")
        return cls(
            tensors["W_enc"], tensors["b_enc"], tensors["W_dec"], tensors["b_dec"], Site(int(hook[1]), HOOKS[hook[2]]),
            architecture=config["architecture"], threshold=tensors.get("threshold"), k=config.get("k"),
            subtracts_bias=bool(config.get("apply_b_dec_to_input", True)), info=metadata.get("steerlab", metadata),
        )  # fmt: skip


def _check_settings(config: dict[str, Any]) -> None:
    if config.get("architecture") not in ARCHITECTURES:
        raise MismatchError(
            f"an SAE of the architecture {config.get('architecture')!r}; read are {', '.join(ARCHITECTURES)}"
        )
    changed = config.get("model_from_pretrained_kwargs") or {}
    if any(changed.values()):
        raise MismatchError(f"the SAE was trained on weights that were changed ({changed}): its states are others")
    if other := [f"{name}={config[name]!r}" for name, known in _PLAIN.items() if config.get(name) not in known]:
        raise MismatchError(f"the SAE has {', '.join(other)}, which steerlab does not compute")


def train_sae(
    states: Float[Tensor, "state hidden"],
    site: int | Site,
    n_features: int,
    k: int,
    *,
    epochs: int = 20,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> SAE:
    """Train a TopK sparse autoencoder on states, with Adam on the squared error.

    Example:
        >>> acts = steerlab.capture(model, texts, layers=[15], positions="prompt", reduce="none")
        >>> sae = train_sae(acts.at(15), 15, n_features=2304, k=16)

    Args:
        states: many times as many as features.
        site: where they were captured.
        n_features, k: features in all, and of one state.
        epochs, batch_size, learning_rate, seed: of the training; decoder rows have norm 1 after each step.

    Raises:
        DataError: fewer states than `k`, states that are not finite, or a number out of range.

    Source: arXiv 2406.04093, section 2.3; without its auxiliary loss, so that some features may never be active.
    """
    as_whole("n_features", n_features, 1)
    as_whole("k", k, 1, n_features)
    as_number("learning_rate", learning_rate, 0.0)
    as_whole("epochs", epochs)
    as_whole("batch_size", batch_size)
    if not bool(states.isfinite().all()):
        raise DataError("a state is NaN or infinite: an SAE of it would be too")
    if len(states) <= k or not bool((states != states[:1]).any()):
        raise DataError(f"{len(states)} states, of which an SAE with k={k} can learn nothing: give many different ones")
    generator = torch.Generator().manual_seed(as_seed(seed))
    mean = states.float().mean(0)
    size = (states.float() - mean).norm(dim=-1).mean()  # states of norm about 1 suit one learning rate
    data = (states.float() - mean) / size
    decoder = torch.randn(n_features, data.shape[1], generator=generator)
    decoder /= decoder.norm(dim=-1, keepdim=True)
    encoder, bias, shift = decoder.T.clone(), torch.zeros(n_features), torch.zeros_like(mean)
    parameters = [t.requires_grad_() for t in (encoder, bias, decoder, shift)]
    adam = torch.optim.Adam(parameters, lr=learning_rate)
    with torch.enable_grad():
        for batch in _batches(data, epochs, batch_size, generator):
            sae = SAE(encoder, bias, decoder, shift, Site.of(site), "topk", k=k)
            loss = (sae.decode(sae.encode(batch)) - batch).square().sum(-1).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            with torch.no_grad():
                decoder /= decoder.norm(dim=-1, keepdim=True)
    encoder, bias, decoder, shift = (t.detach() for t in parameters)
    # in the units of the states: features are activations along decoder rows of norm 1
    return SAE(encoder, bias * size, decoder, mean + shift * size, Site.of(site), "topk", k=k)


def _batches(data: Tensor, epochs: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(epochs):
        yield from data[torch.randperm(len(data), generator=generator)].split(size)
