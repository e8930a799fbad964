"""Checkpoints of a training: the adapter, the optimizer's moments, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file

from steerlab._support import files
from steerlab.errors import MismatchError
from steerlab.methods.model_edit import adapter_weights, restore_weights
from steerlab.models.fingerprint import differences

if TYPE_CHECKING:
    from steerlab.methods.kts.train import _Trainer

SCHEMA = 1
REPAIR = "Delete this folder and train anew"


class Checkpoint:
    """The newest state of one training in a folder; without a folder nothing is kept.

    Args:
        folder: it belongs to one training.
        identity: what decides the weights.
    """

    def __init__(self, folder: str | Path | None, identity: Mapping[str, Any]) -> None:
        self._folder = None if folder is None else Path(folder)
        self._identity = dict(identity)

    def write(self, trainer: _Trainer, step: int) -> None:
        """Keep the state before a step."""
        if self._folder is None:
            return
        with files.storing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"now.{name}": value for name, value in adapter_weights(trainer.peft_model).items()}
        tensors |= {f"best.{name}": value for name, value in trainer.best.items()}
        for i, moments in trainer.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{name}": value for name, value in moments.items()}
        name = f"step-{step}.safetensors"
        files.write_atomically(self._folder / name, lambda partial: save_file(tensors, partial))
        state = {"schema": SCHEMA, "identity": self._identity, "step": step, "records": trainer.records}
        files.write_json(
            self._folder / "training.json", files.seal(state | {"best_step": trainer.best_step, "tensors": name})
        )
        for old in self._folder.glob("step-*.safetensors"):
            if old.name != name:
                old.unlink()

    def restore(self, trainer: _Trainer) -> int:
        """Put the trainer into the newest state, and return the step that comes next.

        Raises:
            MismatchError: the folder belongs to another training.
        """
        path = None if self._folder is None else self._folder / "training.json"
        if path is None or not path.exists():
            return 0
        state = files.read_sealed(path, SCHEMA, REPAIR)
        if found := differences(state["identity"], self._identity):
            raise MismatchError(f"{path} is of another training, with other {', '.join(found)}: choose another folder")
        with files.reading(path.parent / state["tensors"], REPAIR):
            tensors = load_file(path.parent / state["tensors"])
        restore_weights(trainer.peft_model, _named("now.", tensors))
        trainer.best = _named("best.", tensors)
        trainer.best_step, trainer.records = state["best_step"], state["records"]
        moments: dict[int, dict[str, Any]] = {}
        for name, value in _named("adam.", tensors).items():
            number, moment = name.split(".")
            moments.setdefault(int(number), {})[moment] = value
        trainer.optimizer.load_state_dict(trainer.optimizer.state_dict() | {"state": moments})
        return int(state["step"])


def _named(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
