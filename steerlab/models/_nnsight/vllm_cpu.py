"""A worker of nnsight for vLLM's CPU backend: nnsight has one for GPUs only.

A module of its own, because vLLM imports it by name in its worker process, also on a server without steerlab.
"""

from __future__ import annotations

from nnsight.modeling.vllm.model_runners.GPUModelRunner import NNsightGPUModelRunner
from nnsight.modeling.vllm.workers.GPUWorker import NNsightGPUWorker
from vllm.v1.worker.cpu_model_runner import CPUModelRunner, _set_torch_accelerator_to_noop
from vllm.v1.worker.cpu_worker import CPUWorker

CPU_WORKER = f"{__name__}.NnsightCpuWorker"


class NnsightCpuRunner(NNsightGPUModelRunner, CPUModelRunner):
    """vLLM's CPU runner with nnsight's interventions: it is a GPU runner with other kernels."""


class NnsightCpuWorker(CPUWorker):
    """A vLLM CPU worker whose runner runs nnsight's interventions."""

    def init_device(self) -> None:
        """Start the device, then replace the runner's class, as nnsight's GPU worker does.

        Raises:
            NotImplementedError: vLLM uses another runner, which would ignore all interventions without an error.
        """
        super().init_device()
        if type(self.model_runner) is not CPUModelRunner:
            raise NotImplementedError(f"expected vLLM's CPUModelRunner, found {type(self.model_runner).__name__}")
        self.model_runner.__class__ = NnsightCpuRunner

    collect_nnsight = NNsightGPUWorker.collect_nnsight
    nnsight_request_count = NNsightGPUWorker.nnsight_request_count
    nnsight_register = NNsightGPUWorker.nnsight_register
    nnsight_clear_registered = NNsightGPUWorker.nnsight_clear_registered


def disable_accelerator() -> None:
    """Make torch's accelerator calls do nothing in this process, as vLLM's CPU runner does in its worker only."""
    _set_torch_accelerator_to_noop()
