"""nnsight's worker for vLLM's CPU backend; nnsight itself brings only the one for GPUs.

vLLM imports this module in its worker process, by the name `CPU_WORKER`.
"""

from __future__ import annotations

from nnsight.modeling.vllm.model_runners.GPUModelRunner import NNsightGPUModelRunner
from nnsight.modeling.vllm.workers.GPUWorker import NNsightGPUWorker
from vllm.v1.worker.cpu_model_runner import CPUModelRunner, _set_torch_accelerator_to_noop
from vllm.v1.worker.cpu_worker import CPUWorker

CPU_WORKER = f"{__name__}.NnsightCpuWorker"


class NnsightCpuRunner(NNsightGPUModelRunner, CPUModelRunner):
    """vLLM's CPU runner, interleaved with interventions: it is a GPU runner with other kernels, so the code holds."""


class NnsightCpuWorker(CPUWorker):
    """A vLLM CPU worker whose runner interleaves interventions."""

    def init_device(self) -> None:
        """Bring the device up, then swap the runner's class, as nnsight's own worker does.

        Raises:
            NotImplementedError: vLLM chose another runner, which would run uninstrumented without a word.
        """
        super().init_device()
        if type(self.model_runner) is not CPUModelRunner:
            raise NotImplementedError(f"expected vLLM's CPUModelRunner, found {type(self.model_runner).__name__}")
        self.model_runner.__class__ = NnsightCpuRunner

    collect_nnsight = NNsightGPUWorker.collect_nnsight
    nnsight_request_count = NNsightGPUWorker.nnsight_request_count
    nnsight_register = NNsightGPUWorker.nnsight_register
    nnsight_clear_registered = NNsightGPUWorker.nnsight_clear_registered


def without_accelerator() -> None:
    """Let this process do without an accelerator: vLLM asks torch to synchronize one, which its CPU runner switches
    off in the worker alone.
    """
    _set_torch_accelerator_to_noop()
