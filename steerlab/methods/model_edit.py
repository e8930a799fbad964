"""A change of a model's weights: a LoRA adapter with what it was made from, put on the model or merged into it."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load as read_tensors
from safetensors.torch import save as tensor_bytes
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from steerlab._support import files
from steerlab._support.checks import as_number
from steerlab._support.extras import require
from steerlab._support.hub import find_folder, first_line
from steerlab.errors import MismatchError, SteeringError
from steerlab.models.changed import check_changeable, check_no_adapter, with_weights
from steerlab.models.fingerprint import describe_origin, same_model
from steerlab.models.layout import blocks
from steerlab.models.model import Model

SCHEMA = 1
ADAPTER, CONFIG, MANIFEST, HISTORY = "adapter_model.safetensors", "adapter_config.json", "manifest.json", "history.csv"
REPAIR = "Save the edit again"


class ModelEdit:
    """A trained change of a model's weights, to be put on that model: `kl_then_steer` makes one.

    The edited model is another model: vectors from before are refused there (`Request(any_model=True)` accepts them),
    and everything else works as on any model. A folder of it can be read by peft too.

    Example:
        >>> edit = kl_then_steer(model, prompts, answers, {"refuse": pairs}, layers=[13])
        >>> edit.save_pretrained("runs/kts")
        >>> edited = ModelEdit.from_pretrained("runs/kts").prepare(model)

    Attributes:
        name: of the method that made it.
        base: the model that it changes, as `Model.info` describes it.
        info: what it was trained on and how.
        history: what was measured in training, a row for each time.
        weights: the adapter's, by name.
        lora: its configuration, as peft writes it.
    """

    def __init__(
        self, name: str, base: Mapping[str, Any], weights: Mapping[str, Tensor], lora: Mapping[str, Any],
        info: Mapping[str, Any], history: pd.DataFrame,
    ) -> None:  # fmt: skip
        self.name, self.base, self.info, self.history = name, dict(base), dict(info), history
        self.weights, self.lora = dict(weights), dict(lora)

    def __repr__(self) -> str:
        return f"ModelEdit({self.name!r} of {describe_origin(self.base)})"

    def prepare(self, model: Model, *, merge: bool = False, any_model: bool = False) -> Model:
        """A copy of the model with the edit.

        Example:
            >>> edited = edit.prepare(model, merge=True)
            >>> edited.hf.save_pretrained("edited"); edited.tokenizer.save_pretrained("edited")     # for any server

        Args:
            model: the model that the edit was made from, with its weights in this process.
            merge: add the adapter to the weights: an ordinary model, which rounds a little differently.
            any_model: accept other weights of the same shape.

        Raises:
            MismatchError: the edit was made from other weights.
            SteeringError: the weights are on a server or quantized.
        """
        if not (any_model or same_model(self.base, here := model.info())):
            raise MismatchError(
                f"this edit was made from {describe_origin(self.base)}; this model is {describe_origin(here)}. "
                "prepare(any_model=True) puts it on other weights of the same shape"
            )
        peft_model = _wrap(model, _peft().LoraConfig(**{k: v for k, v in self.lora.items() if k != "peft_type"}))
        restore_weights(peft_model, self.weights)
        hf = peft_model.merge_and_unload() if merge else peft_model
        edited = with_weights(model, hf, f"{model.id}+{self.name}")
        edited.revision = model.revision
        return edited

    def scaled(self, share: float) -> ModelEdit:
        """The same edit, by this share of its change of the weights: a weaker one stays closer to the model as it is.

        Example:
            >>> edit.scaled(0.7).prepare(model)

        Raises:
            DataError: the share is not a number above 0.
        """
        share = as_number("share", share, 1e-12)
        lora = self.lora | {"lora_alpha": self.lora["lora_alpha"] * share}
        info = self.info | {"share": share * self.info.get("share", 1.0)}
        return ModelEdit(self.name, self.base, self.weights, lora, info, self.history)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the adapter as peft does, with a manifest and the history beside it.

        Raises:
            StorageError: the disk is full, or the folder can't be written to.
        """
        folder = Path(folder)
        with files.storing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        content = tensor_bytes({name: value.contiguous() for name, value in self.weights.items()})
        files.write_atomically(folder / ADAPTER, lambda partial: partial.write_bytes(content))
        files.write_json(folder / CONFIG, self.lora)
        files.write_atomically(folder / HISTORY, lambda partial: self.history.to_csv(partial, index=False))
        manifest = {"schema": SCHEMA, "edit": self.name, "base": self.base, "info": self.info, "lora": self.lora}
        files.write_json(folder / MANIFEST, files.seal(manifest | {"weights": _checksum(content)}))
        return folder

    @classmethod
    def from_pretrained(cls, place: str | Path, **hub: Any) -> ModelEdit:
        """Read an edit from a folder or the hub.

        Raises:
            LoadError: there is no such folder, or it holds no edit.
            MismatchError: a file was changed.
        """
        folder = find_folder(place, **hub)
        manifest = files.read_sealed(folder / MANIFEST, SCHEMA, REPAIR)
        with files.reading(folder / ADAPTER, REPAIR):
            content = (folder / ADAPTER).read_bytes()
            if _checksum(content) != manifest["weights"]:
                raise MismatchError("these are not the weights of the manifest beside them")
            weights = read_tensors(content)
        with files.reading(folder / HISTORY, REPAIR):
            history = pd.read_csv(folder / HISTORY)
        return cls(manifest["edit"], manifest["base"], weights, manifest["lora"], manifest["info"], history)


def adapt(model: Model, rank: int, scaling: float, seed: int, *, first: int = 0) -> tuple[Any, Model]:
    """A copy of a model with a LoRA adapter on all linear layers of the blocks from `first` on, to be trained alone.

    Returns:
        The PEFT model, and a `Model` around the same weights. Without dropout, so eval mode is right for training too.

    Raises:
        LoadError: peft is not installed. SteeringError: the weights are on a server or quantized.
    """
    config = _peft().LoraConfig(r=rank, lora_alpha=scaling, target_modules=_linear_layers(model, first))
    peft_model = _wrap(model, config, seed)
    trainee = with_weights(model, peft_model, model.id)
    for name, parameter in peft_model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return peft_model, trainee


def adapter_weights(peft_model: Any) -> dict[str, Tensor]:
    """A copy of the adapter's weights by name, on the CPU, named as peft's files name them."""
    found = _peft().get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    return {name: value.detach().cpu().clone() for name, value in found.items()}


def restore_weights(peft_model: Any, weights: Mapping[str, Tensor]) -> None:
    """Put adapter weights in place.

    Raises:
        MismatchError: they are of another shape.
    """
    shapes = [{name: tuple(v.shape) for name, v in some.items()} for some in (adapter_weights(peft_model), weights)]
    if shapes[0] != shapes[1]:
        raise MismatchError("the adapter does not fit this model: its layers have other names or widths")
    _peft().set_peft_model_state_dict(peft_model, dict(weights))


def describe_adapter(peft_model: Any) -> dict[str, Any]:
    """The configuration of the adapter, as JSON takes it."""
    config = peft_model.peft_config["default"].to_dict()
    wanted = ("r", "lora_alpha", "lora_dropout", "bias", "fan_in_fan_out", "peft_type")
    found = {name: getattr(config[name], "value", config[name]) for name in wanted}
    return found | {"target_modules": sorted(config["target_modules"])}


def _peft() -> Any:
    require("an edit of weights", "train", "peft")
    return import_module("peft")


def _linear_layers(model: Model, first: int) -> list[str]:
    """Names of the linear layers inside the blocks from `first` on."""
    inside = {id(module) for block in blocks(model.hf, model.layout)[first:] for module in block.modules()}
    return [
        name
        for name, module in model.hf.named_modules()
        if id(module) in inside and isinstance(module, nn.Linear | Conv1D)
    ]


def _wrap(model: Model, config: Any, seed: int = 0) -> Any:
    """A copy of the model with a new adapter."""
    check_changeable(model)
    check_no_adapter(model)
    if not config.target_modules:
        raise SteeringError(
            f"{model.id} has no linear layers after the first steered block: steer an earlier layer, or blocks='all'"
        )
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not that of a GPU, which would not be set back
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")  # peft sets it to what the layers need
        try:
            return _peft().get_peft_model(copy.deepcopy(model.hf), config)
        except ValueError as error:
            raise MismatchError(f"the adapter does not fit {type(model.hf).__name__}: {first_line(error)}") from error


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
