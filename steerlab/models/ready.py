"""Whether a model can be run now, and gives the numbers that it gave when it was loaded."""

from __future__ import annotations

import torch
from torch import nn

from steerlab._support.checks import check_type
from steerlab.errors import SteerlabError
from steerlab.models.engine import LOCKS
from steerlab.models.forwards import is_compiled
from steerlab.models.model import Model


def check_ready(model: object, inside: bool = False) -> None:
    """Refuse what is no `Model`, and a model in a mode in which its numbers would be others.

    Args:
        model: what was given.
        inside: whether it may be running in this thread.

    Raises:
        SteerlabError: says which mode, and how to leave it.
    """
    found = check_type("the model", model, Model, "a model from steerlab.load", SteerlabError)
    if found.is_remote:
        return
    parts = list(found.hf.modules())
    training = any(part.training for part in parts if not isinstance(part, nn.Identity))
    compiled = any(map(is_compiled, parts))
    rounded = found.device.type != "meta" and torch.is_autocast_enabled(found.device.type)
    tuples = not getattr(found.hf.config, "return_dict", True)
    others, running = LOCKS.get(found.hf) is not found.lock, found.lock._is_owned() and not inside
    modes = {
        "is in training mode, where dropout changes every number: call model.hf.eval()": training,
        "was compiled, and compiled code may skip the hooks that read and steer it: load the model "
        "without compile()": compiled,
        "is run in autocast, which rounds its numbers: leave that block, or load the model in that dtype": rounded,
        "has config.return_dict=False, with which Hugging Face's own forward fails: set it to True": tuples,
        "has other weights in model.hf than it was loaded with: give them to steerlab.load": others,
        "is running in this thread (or `model.lock` is held), and a call inside, as of a stopping criterion, would be "
        "steered as that run is: call it outside; after an interrupt, leave the `with steer(...)` block": running,
    }
    for mode, is_on in modes.items():
        if is_on:
            raise SteerlabError(f"{found.id} {mode}")
