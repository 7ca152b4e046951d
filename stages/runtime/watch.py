"""What a training shows and costs while it runs, and whether a signal may wait for its next checkpoint."""

import statistics
import time

import torch
from transformers import TrainerCallback

from stages.runtime.progress import Progress
from stages.runtime.runner import peak_memory
from stages.runtime.signals import Stop


class Watch(TrainerCallback):
    """Shows progress and adds up what the training costs.

    `seconds` is the time in optimizer steps, without evaluations. It includes that of stopped runs before this one.

    Args:
        opened: when the stage began (time.monotonic()).
        stop: told when the training begins and ends.
        cuda: whether it runs on a GPU.
        memory: what stays in memory, for the checkpoints' record.
    """

    def __init__(self, opened: float, stop: Stop, cuda: bool, memory: str):
        self.opened, self.stop, self.cuda, self.memory = opened, stop, cuda, memory
        self.seconds, self.began, self.progress = 0.0, 0.0, None
        # Of this run only. tokens: counted by the shapes of its batches, which needs no waiting for the GPU.
        self.tokens, self.passed, self.steps = 0, 0.0, []
        self.before = {"stage_seconds": 0.0, "runs": 0, "peak_memory_bytes": 0}

    def resume(self, before: dict[str, float | str]) -> None:
        """before: costs() of the run that wrote the checkpoint."""
        self.before, self.seconds = before, before["train_seconds"]
        if before["memory"] != self.memory:
            print(
                f"train: until this checkpoint it kept {before['memory']}; now {self.memory}. The bits are the same",
                flush=True,
            )

    def costs(self) -> dict[str, float | str]:
        """Seconds, peak memory in bytes, and runs, of this run and the stopped ones before it."""
        peak = torch.cuda.max_memory_allocated() if self.cuda else peak_memory()
        return {
            "train_seconds": self.seconds,
            "stage_seconds": self.before["stage_seconds"] + time.monotonic() - self.opened,
            "runs": self.before["runs"] + 1,
            "peak_memory_bytes": max(self.before["peak_memory_bytes"], peak),
            "memory": self.memory,
        }

    def typical_step(self) -> float | None:
        """The median of this run's optimizer steps, in seconds: in the first ones kernels are compiled."""
        return statistics.median(self.steps) if self.steps else None

    def on_train_begin(self, args, state, control, **_):
        self.progress = Progress("train", state.max_steps - state.global_step, " steps")
        self.stop.training = True

    def on_step_begin(self, args, state, control, **_):
        self.began = time.monotonic()

    def on_step_end(self, args, state, control, **_):
        if self.cuda:
            torch.cuda.synchronize()  # without this the GPU's work is not in the time; the log, next, waits too
        step = time.monotonic() - self.began
        self.steps.append(step)
        self.seconds, self.passed = self.seconds + step, self.passed + step

    def on_log(self, args, state, control, logs, **_):
        """Comes right after each step, with its loss, and after each evaluation, without one."""
        if "loss" in logs:
            rate = self.tokens / self.passed
            self.progress.advance(loss=f"{logs['loss']:.3f}", **{"tokens/s": f"{rate:.0f}"})

    def on_train_end(self, args, state, control, **_):
        self.stop.training = False
        self.progress.bar.close()
