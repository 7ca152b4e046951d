"""Where the time of one optimizer step goes: the GPU's by kind of work, and how long it had none."""

import re
import time

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from bench._train.measure import WARM, synchronize

# The first that matches a kernel's name; what matches none is "other".
KINDS = {
    "matrix products": r"gemm|cutlass|nvjet|xmma|sm90|cublas",
    "attention": r"flash|fmha|attention",
    "dequantizing": r"dequant|kDequant|Dequant",
    "norms, rotary, SwiGLU (compiled)": r"^triton_",
    "copies and casts": r"copy|memcpy|Memcpy|Memset|memset",
    "elementwise": r"elementwise|vectorized|unrolled",
    "reductions": r"reduce|softmax|logsumexp",
    "optimizer": r"multi_tensor|foreach",
}


def kind_of(kernel: str) -> str:
    return next((kind for kind, names in KINDS.items() if re.search(names, kernel, re.IGNORECASE)), "other")


class OneStep(TrainerCallback):
    """Profiles the step after the warm ones."""

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == WARM:
            synchronize()
            self.began = time.perf_counter()
            self.profile = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
            self.profile.start()

    def on_step_end(self, args, state, control, **_):
        if state.global_step == WARM + 1:
            synchronize()
            self.seconds = time.perf_counter() - self.began
            self.profile.stop()


def breakdown(step: OneStep) -> str:
    """A table in milliseconds, with the names of the largest kernels of the kind `other`."""
    sums, others = dict.fromkeys([*KINDS, "other"], 0.0), {}
    for event in step.profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            milliseconds = event.device_time_total / 1000
            kind = kind_of(event.name)
            sums[kind] += milliseconds
            if kind == "other":
                others[event.name] = others.get(event.name, 0.0) + milliseconds
    busy = sum(sums.values())
    lines = [f"{'step, under the profiler':34}{step.seconds * 1000:>9.1f} ms", f"{'GPU at work':34}{busy:>9.1f} ms"]
    lines += [f"  {kind:32}{value:>9.1f} ms" for kind, value in sums.items() if value]
    largest = sorted(others.items(), key=lambda pair: -pair[1])[:5]
    return "\n".join([*lines, *(f"    {name[:80]} {value:.1f} ms" for name, value in largest)])
