"""Early stopping: the training ends after so many evaluations without a better loss, and the best adapter is kept.

All it needs to know but the best weights stands in the trainer's log, which a checkpoint has anyway. The evaluation
before the first step counts as one: a training that only does harm keeps the adapter it began with.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from stages._train.metrics import best, evaluations

BEST = "best.safetensors"  # of a checkpoint


class EarlyStopping(TrainerCallback):
    def __init__(self, patience: int):
        self.patience, self.weights = patience, {}

    def spent(self, history: list[dict]) -> bool:
        return len(evaluations(history)) - 1 - best(history) >= self.patience

    def on_evaluate(self, args, state, control, model, **_):
        if best(state.log_history) == len(evaluations(state.log_history)) - 1:
            self.weights = {name: p.detach().to("cpu", copy=True) for name, p in trained(model)}
        if self.spent(state.log_history):
            control.should_training_stop = control.should_save = True

    def save(self, folder: Path) -> None:
        save_file(self.weights, folder / BEST, {"format": "pt"})

    def load(self, folder: Path) -> None:
        self.weights = load_file(folder / BEST)

    def restore(self, model: torch.nn.Module) -> None:
        """Puts the best adapter in place of the last."""
        for name, p in trained(model):
            p.data.copy_(self.weights[name])


def trained(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]
