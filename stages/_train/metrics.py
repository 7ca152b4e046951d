"""What the stage reports about a training: curves, losses, sizes, speed. All but the sizes come from its log."""

import csv
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

from stages._train.distributed import trained_parameters, world_size
from stages.core.paths import ADAPTER, CURVE, VALIDATION_CURVE

if TYPE_CHECKING:
    from peft import PeftModel

    from stages._train.trainer import Trainer


def evaluations(history: list[dict]) -> list[tuple[int, float]]:
    """(step, loss in nats a trained token) of each evaluation in the trainer's log."""
    return [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]


def best_evaluation(history: list[dict]) -> int:
    """The index of the first evaluation with the lowest loss. NaN is never the lowest."""
    values = [math.inf if math.isnan(loss) else loss for _, loss in evaluations(history)]
    return values.index(min(values))


def curves(history: list[dict]) -> dict[Path, str]:
    """{file: CSV text} of the trainer's log."""
    training = {"loss": "loss", "learning_rate": "learning_rate", "grad_norm": "grad_norm"}
    return {CURVE: csv_text(history, training), VALIDATION_CURVE: csv_text(history, {"eval_loss": "loss"})}


def csv_text(history: list[dict], columns: dict[str, str]) -> str:
    """The log entries that have the first of the columns. columns: {name in the log: name in the file}."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["step", *columns.values()])
    for entry in history:
        if next(iter(columns)) in entry:
            writer.writerow([entry["step"], *(f"{entry[name]:.6g}" for name in columns)])
    return file.getvalue()


def losses(history: list[dict], keeps_best: bool = False) -> dict[str, float]:
    """The figures of metrics/train.json about losses, in nats a trained token.

    Args:
        history: the trainer's log.
        keeps_best: whether the adapter is that of the best evaluation, not of the last.
    """
    training = [entry["loss"] for entry in history if "loss" in entry]
    validation = evaluations(history)
    step, loss = validation[best_evaluation(history) if keeps_best else -1]
    return {
        "loss_first": training[0],
        "loss_last": training[-1],
        "validation_loss_start": validation[0][1],
        "validation_loss": loss,
        "adapter_step": step,
    }


def sizes(model: "PeftModel", base_bytes: int, parameters: int) -> dict[str, float]:
    """The figures of metrics/train.json about sizes.

    Args:
        model: the base with its adapter.
        base_bytes: of the base as it was loaded.
        parameters: of the base.
    """
    trainable = sum(parameter.numel() for parameter in trained_parameters(model).values())
    return {
        "parameters": parameters,
        "trainable_parameters": trainable,
        "trainable_share": round(trainable / (parameters + trainable), 6),
        "base_bytes_16bit": 2 * parameters,
        "base_bytes_loaded": base_bytes,
        "adapter_bytes": (ADAPTER / "adapter_model.safetensors").stat().st_size,
    }


def speed(trainer: "Trainer", tokens: int, trained_tokens: int) -> dict[str, float | str]:
    """The figures of the timing file, over all runs that the training took.

    Stopped runs count up to their last checkpoint. The median is that of the last run's steps, if it took any.

    Args:
        trainer: after the training.
        tokens: of all its steps.
        trained_tokens: those with a label.
    """
    import torch

    costs, step = trainer.watch.costs(), trainer.watch.typical_step()
    seconds = costs["train_seconds"]
    return {
        "device": torch.cuda.get_device_name() if trainer.args.device.type == "cuda" else "cpu",
        "processes": world_size(),
        "seconds": round(costs["stage_seconds"], 3),
        "runs": costs["runs"],
        "train_seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1),
        "trained_tokens_per_second": round(trained_tokens / seconds, 1),
        **({"median_step_seconds": round(step, 4)} if step else {}),
        "peak_memory_bytes": costs["peak_memory_bytes"],
    }
