"""The validation losses in the trainer's log."""

import csv
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

from stages._train.distributed import world
from stages.core.paths import ADAPTER, CURVE, VALIDATION_CURVE

if TYPE_CHECKING:
    from peft import PeftModel

    from stages._train.trainer import Trainer


def evaluations(history: list[dict]) -> list[tuple[int, float]]:
    """(step, loss in nats a trained token) of each evaluation."""
    return [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]


def best(history: list[dict]) -> int:
    """The first of the evaluations with the lowest loss, as an index. NaN is never the lowest."""
    losses = [math.inf if math.isnan(loss) else loss for _, loss in evaluations(history)]
    return losses.index(min(losses))


# What the stage says about a training: curves, losses, sizes, speed.


def table(rows: list[dict], columns: dict[str, str]) -> str:
    """CSV text of the log entries that have the first of the columns, which are {name in the log: name in the file}."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["step", *columns.values()])
    for row in rows:
        if next(iter(columns)) in row:
            writer.writerow([row["step"], *(f"{row[name]:.6g}" for name in columns)])
    return file.getvalue()


def curves(history: list[dict]) -> dict[Path, str]:
    """{file: CSV text} of the trainer's log."""
    training = {"loss": "loss", "learning_rate": "learning_rate", "grad_norm": "grad_norm"}
    return {CURVE: table(history, training), VALIDATION_CURVE: table(history, {"eval_loss": "loss"})}


def losses(history: list[dict], keeps_best: bool = False) -> dict[str, float]:
    """keeps_best: the adapter is that of the best evaluation, not of the last."""
    training = [entry["loss"] for entry in history if "loss" in entry]
    validation = evaluations(history)
    step, loss = validation[best(history) if keeps_best else -1]
    return {
        "loss_first": training[0],
        "loss_last": training[-1],
        "validation_loss_start": validation[0][1],
        "validation_loss": loss,
        "adapter_step": step,
    }


def sizes(model: "PeftModel", base_bytes: int, parameters: int) -> dict[str, float]:
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "parameters": parameters,
        "trainable_parameters": trainable,
        "trainable_share": round(trainable / (parameters + trainable), 6),
        "base_bytes_16bit": 2 * parameters,
        "base_bytes_loaded": base_bytes,
        "adapter_bytes": (ADAPTER / "adapter_model.safetensors").stat().st_size,
    }


def speed(trainer: "Trainer", tokens: int, trained: int) -> dict[str, float | str]:
    """Of all runs together that the training took, those that were stopped up to their last checkpoint; the median is
    that of the last run's steps, if it took any."""
    import torch

    costs, step = trainer.watch.costs(), trainer.watch.typical_step()
    seconds = costs["train_seconds"]
    return {
        "device": torch.cuda.get_device_name() if trainer.args.device.type == "cuda" else "cpu",
        "processes": world(),
        "seconds": round(costs["stage_seconds"], 3),
        "runs": costs["runs"],
        "train_seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1),
        "trained_tokens_per_second": round(trained / seconds, 1),
        **({"median_step_seconds": round(step, 4)} if step else {}),
        "peak_memory_bytes": costs["peak_memory_bytes"],
    }
