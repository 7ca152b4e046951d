"""What a training shows and costs while it runs, and the checkpoint that it leaves when it is told to stop."""

import math
import statistics
import time

import torch
from transformers import TrainerCallback

from stages._train.distributed import agree, same_start
from stages._train.objective import refuse_rounding
from stages.runtime.errors import UserError
from stages.runtime.progress import Progress
from stages.runtime.runner import peak_memory
from stages.runtime.signals import Stop


class Watch(TrainerCallback):
    """Shows progress, asks for a checkpoint when the process was told to stop, and sums up what the training cost:
    `seconds` in optimizer steps, evaluations left out, those of the stopped runs before this one included."""

    def __init__(self, opened: float, stop: Stop, cuda: bool, memory: str):
        self.opened, self.stop, self.cuda, self.memory = opened, stop, cuda, memory
        self.seconds, self.loss, self.began, self.progress = 0.0, "", 0.0, None
        # Of this run alone. tokens: by the shapes of its batches, which needs no waiting for the GPU.
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
        peak = torch.cuda.max_memory_allocated() if self.cuda else peak_memory()
        return {
            "train_seconds": self.seconds,
            "stage_seconds": self.before["stage_seconds"] + time.monotonic() - self.opened,
            "runs": self.before["runs"] + 1,
            "peak_memory_bytes": max(self.before["peak_memory_bytes"], peak),
            "memory": self.memory,
        }

    def on_train_begin(self, args, state, control, model, optimizer, **_):
        state.save_steps = args.save_steps  # a checkpoint brings its own, and machine.save_steps may have changed
        same_start(model, args.seed)
        refuse_rounding(model, optimizer)
        self.progress = Progress("train", state.max_steps - state.global_step, " steps")
        self.stop.training = True

    def on_step_begin(self, args, state, control, **_):
        self.began = time.monotonic()

    def on_step_end(self, args, state, control, **_):
        if self.cuda:
            torch.cuda.synchronize()  # or the GPU's work is not in the time; the log, which is next, waits for it too
        step = time.monotonic() - self.began
        self.steps.append(step)
        self.seconds, self.passed = self.seconds + step, self.passed + step
        self.progress.advance(loss=self.loss, **{"tokens/s": f"{self.tokens / self.passed:.0f}"})
        self.stop.received = agree(self.stop.received)  # a signal may reach the processes in different steps
        control.should_save = control.should_save or bool(self.stop.received)

    def typical_step(self) -> float | None:
        """The median of this run's optimizer steps, in seconds: in the first ones kernels are compiled."""
        return statistics.median(self.steps) if self.steps else None

    def on_log(self, args, state, control, logs, **_):
        self.loss = f"{logs['loss']:.3f}" if "loss" in logs else self.loss
        wrong = [name for name in ("loss", "grad_norm", "eval_loss") if not math.isfinite(logs.get(name, 0.0))]
        if wrong:  # said before a checkpoint of it is written
            raise UserError(
                f"the training diverged: {wrong[0]} of step {state.global_step} is {logs[wrong[0]]}. Lower "
                "train.learning_rate or raise train.warmup_steps, which starts it afresh; or look for rows that are "
                "broken"
            )

    def on_train_end(self, args, state, control, **_):
        self.stop.training = False
        self.progress.bar.close()
