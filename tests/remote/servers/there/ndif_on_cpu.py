"""What NDIF is told to use in place of its CUDA-only parts; none of its files is changed.

Its model actor asserts that every tensor is on a GPU and synchronizes CUDA after each request: four methods. Its
controller asks nnsight for an argument that 0.8.1 no longer takes.
"""

import gc
import inspect

import ray
from ndif.services.ray.deployments.controller.controller import _ControllerActor
from ndif.services.ray.deployments.modeling.base import BaseModelDeployment
from ndif.services.ray.sandbox.model import SandboxHost
from nnsight.modeling.huggingface import HuggingFaceModel
from nnsight.modeling.mixins.remotable import Remotable


class OnCPU(BaseModelDeployment):
    """A model in this process, on the CPU."""

    CACHEABLE = False  # there is no GPU to park weights away from

    def load_from_disk(self):
        given = {"dispatch": True, "dtype": self.dtype_name, "device": "cpu", **self.kwargs}
        model = HuggingFaceModel.from_model_key(self.model_key, **given)
        model._module.requires_grad_(False)
        return model

    async def to_cache(self):
        raise RuntimeError("a model on the CPU has nowhere to be parked")

    def from_cache(self, gpu_mem_bytes_by_id):
        raise RuntimeError("a model on the CPU has nowhere to be parked")

    def cleanup(self):
        self.kill_switch.clear()
        self.kill_reason = self.execution_ident = None
        self.model.interleaver.cancel()
        gc.collect()


class Sandboxed(SandboxHost, OnCPU):
    """The same, every request's block in a process of its own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.open_pool()

    def interrupt(self):
        # NDIF's own also kills the thread that waits for this process; where the thread is through by then, its pool
        # loses it unseen, and the next request is never run
        if self.execution_sandbox is not None:
            self.execution_sandbox.stop()

    def execute(self, request):
        return self.run_in_runner(request, None)


@ray.remote(num_cpus=1, max_restarts=-1)
class InProcessActor(OnCPU):
    """Ray's actor of `OnCPU`."""


@ray.remote(num_cpus=1, max_restarts=-1)
class SandboxActor(Sandboxed):
    """Ray's actor of `Sandboxed`."""


def _forgive_argument() -> None:
    for name in ("describe_checkpoint", "max_tp_size"):
        function = getattr(Remotable, name).__func__
        if "trust_remote_code" in inspect.signature(function).parameters:
            continue

        def forgiving(cls, *args, _function=function, trust_remote_code=None, **kwargs):
            return _function(cls, *args, **kwargs)

        setattr(Remotable, name, classmethod(forgiving))


@ray.remote(num_cpus=1, num_gpus=0, max_restarts=-1, resources={"head": 1})
class Controller(_ControllerActor):
    """NDIF's controller, with an nnsight that takes one argument less."""

    def __init__(self, *args, **kwargs):
        _forgive_argument()
        super().__init__(*args, **kwargs)
