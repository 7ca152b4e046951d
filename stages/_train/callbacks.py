"""Callbacks of the trainer that shape the trained bytes, or decide when a training stops.

Their order in the trainer is EarlyStopping, TrainingGuard, stages.runtime.watch.Watch, SaveWhenStopped.
"""

import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from stages._train.distributed import all_reduce_max, broadcast_start, trained_parameters
from stages._train.metrics import best_evaluation, evaluations
from stages.runtime.errors import UserError
from stages.runtime.signals import Stop

BEST = "best.safetensors"  # in a checkpoint


class EarlyStopping(TrainerCallback):
    """Ends the training after `patience` evaluations without a better loss. The best adapter is kept.

    The evaluation before the first step counts too: a training that only does harm keeps the adapter it began with.
    Everything but the best weights is in the trainer's log, which a checkpoint has anyway.
    """

    def __init__(self, patience: int):
        self.patience, self.weights = patience, {}

    def is_spent(self, history: list[dict]) -> bool:
        """Whether the log has `patience` evaluations after the best one."""
        return len(evaluations(history)) - 1 - best_evaluation(history) >= self.patience

    def on_evaluate(self, args, state, control, model, **_):
        if best_evaluation(state.log_history) == len(evaluations(state.log_history)) - 1:
            self.weights = {name: p.detach().to("cpu", copy=True) for name, p in trained_parameters(model).items()}
        if self.is_spent(state.log_history):
            control.should_training_stop = control.should_save = True

    def save(self, folder: Path) -> None:
        save_file(self.weights, folder / BEST, {"format": "pt"})

    def load(self, folder: Path) -> None:
        self.weights = load_file(folder / BEST)

    def restore(self, model: torch.nn.Module) -> None:
        """Replaces the last adapter by the best one."""
        for name, parameter in trained_parameters(model).items():
            parameter.data.copy_(self.weights[name])


class TrainingGuard(TrainerCallback):
    """Gives all processes the same start, and stops a training that would round or that diverged."""

    def on_train_begin(self, args, state, control, model, optimizer, **_):
        state.save_steps = args.save_steps  # a checkpoint brings its own, and machine.save_steps may have changed
        broadcast_start(model, args.seed)
        check_fp32(model, optimizer)

    def on_log(self, args, state, control, logs, **_):
        infinite = [name for name in ("loss", "grad_norm", "eval_loss") if not math.isfinite(logs.get(name, 0.0))]
        if infinite:  # raised before a checkpoint of it is written
            raise UserError(
                f"the training diverged: {infinite[0]} of step {state.global_step} is {logs[infinite[0]]}. Lower "
                "train.learning_rate or raise train.warmup_steps, which starts the training afresh. Or look for "
                "broken rows"
            )


class SaveWhenStopped(TrainerCallback):
    """Saves a checkpoint after the step in which any of the processes received a signal to end."""

    def __init__(self, stop: Stop):
        self.stop = stop

    def on_step_end(self, args, state, control, **_):
        self.stop.received = all_reduce_max(self.stop.received)  # a signal may reach processes in different steps
        control.should_save = control.should_save or bool(self.stop.received)


def check_fp32(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Checks that adapters and AdamW's moments are fp32. In bf16 rounding would lose small updates.

    Moments in 8 bits (uint8) are fine: they are codes, and bitsandbytes gives every 256 of them a scale.

    Raises:
        RuntimeError: names tensors of another dtype. It is a bug: no value of params.yaml leads here.
    """
    trained = trained_parameters(model)
    rounded = [name for name, parameter in trained.items() if parameter.dtype != torch.float32]
    for parameter in trained.values():
        state = optimizer.state.get(parameter, {})
        dtypes = {name: value.dtype for name, value in state.items() if torch.is_tensor(value)}
        rounded += [name for name, dtype in dtypes.items() if dtype not in (torch.float32, torch.uint8)]
    if rounded or not trained:
        raise RuntimeError(f"not trained in fp32: {', '.join(rounded[:3]) or 'there is nothing to train'}")
