"""Train: models/base, data/tokenized, params `seed`, `quantization`, `lora`, `train` → models/adapter,
metrics/train.json and the curves metrics/train_curve.csv, metrics/validation_curve.csv.

QLoRA (Dettmers et al. 2023, arXiv 2305.14314): the base stays frozen in 4 bits, low-rank adapters on it are trained by
TRL's SFTTrainer. Run it with `dvc repro train`.
"""

import csv
import importlib.metadata
import io
from pathlib import Path
from typing import TYPE_CHECKING

from stages._train.adapter import add_adapter, quantized_bytes, save_adapter
from stages.shared.four_bit import VALUES, value_hashes
from stages.shared.models import load_model, make_deterministic, packed_batch, pick_device
from stages.shared.params import Params
from stages.shared.paths import (
    ADAPTER,
    BASE,
    CURVE,
    METRICS,
    TOKENIZED,
    VALIDATION_CURVE,
    read_json,
    whole_directory,
    write_json,
    write_text,
)
from stages.shared.prompts import IGNORED
from stages.shared.stage import Outcome, peak_memory, run_stage

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from trl import SFTConfig

    from stages._train.trainer import Trainer

LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes")


def training_arguments(params: Params) -> "SFTConfig":
    from trl import SFTConfig

    train = params.train
    return SFTConfig(
        output_dir=".dvc/tmp/trainer",  # nothing is written there: save_strategy is no
        num_train_epochs=train.epochs,
        per_device_train_batch_size=train.batch_size,
        per_device_eval_batch_size=train.batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.lr_scheduler,
        warmup_steps=train.warmup_steps,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        optim="adamw_torch",
        bf16=True,
        seed=params.seed,
        gradient_checkpointing=params.machine.gradient_checkpointing,
        use_cpu=pick_device(params.machine).type == "cpu",
        eval_strategy="steps",
        eval_steps=train.eval_steps,
        eval_on_start=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,  # the collator needs seq_lengths
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
    )


def make_trainer(model: "PeftModel", rows: "dict[str, Dataset]", params: Params) -> "Trainer":
    from transformers import AutoTokenizer

    from stages._train.trainer import Trainer

    return Trainer(
        model=model,
        args=training_arguments(params),
        data_collator=packed_batch,
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        processing_class=AutoTokenizer.from_pretrained(BASE),
    )


def load_rows() -> "dict[str, Dataset]":
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    return {split: Dataset.from_file(str(TOKENIZED / f"{split}.arrow")) for split in ("train", "validation")}


def table(rows: list[dict], columns: dict[str, str]) -> str:
    """CSV text of the log entries that have the first of the columns, which are {name in the log: name in the file}."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["step", *columns.values()])
    for row in rows:
        if next(iter(columns)) in row:
            writer.writerow([row["step"], *(f"{row[name]:.6g}" for name in columns)])
    return file.getvalue()


def count_tokens(dataset: "Dataset") -> tuple[int, int]:
    """(all, trained) tokens of one epoch."""
    tokens = sum(map(len, dataset["input_ids"]))
    return tokens, sum(label != IGNORED for labels in dataset["labels"] for label in labels)


def curves(history: list[dict]) -> dict[Path, str]:
    """{file: CSV text} of the trainer's log."""
    training = {"loss": "loss", "learning_rate": "learning_rate", "grad_norm": "grad_norm"}
    return {CURVE: table(history, training), VALIDATION_CURVE: table(history, {"eval_loss": "loss"})}


def losses(history: list[dict]) -> dict[str, float]:
    training = [entry["loss"] for entry in history if "loss" in entry]
    validation = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    return {
        "loss_first": training[0],
        "loss_last": training[-1],
        "validation_loss_start": validation[0],
        "validation_loss": validation[-1],
    }


def sizes(model: "PeftModel", base_bytes: int, parameters: int) -> dict[str, float]:
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "parameters": parameters,
        "trainable_parameters": trainable,
        "trainable_share": round(trainable / (parameters + trainable), 6),
        "base_bytes_16bit": 2 * parameters,
        "base_bytes_4bit": base_bytes,
        "adapter_bytes": (ADAPTER / "adapter_model.safetensors").stat().st_size,
    }


def speed(trainer: "Trainer", tokens: int, trained: int) -> dict[str, float | str]:
    import torch

    seconds, cuda = trainer.watch.seconds, trainer.args.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "train_seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1),
        "trained_tokens_per_second": round(trained / seconds, 1),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if cuda else peak_memory(),
    }


def main(params: Params) -> Outcome:
    manifest = read_json(BASE / "manifest.json")
    make_deterministic(params.seed, params.train.deterministic)
    model = load_model(BASE, params.machine, params.quantization)
    base_bytes = quantized_bytes(model)
    model = add_adapter(model, params.lora, manifest)
    rows = load_rows()
    trainer = make_trainer(model, rows, params)
    trainer.train()
    with whole_directory(ADAPTER) as folder:
        save_adapter(model, folder)
        write_json(folder / VALUES, value_hashes(model.get_base_model()))
    for path, text in curves(trainer.state.log_history).items():
        write_text(path, text)
    tokens, trained = (round(count * trainer.state.epoch) for count in count_tokens(rows["train"]))
    metrics = {
        **losses(trainer.state.log_history),
        **sizes(model, base_bytes, manifest["parameters"]),
        "steps": trainer.state.global_step,
        "tokens": tokens,
        "trained_tokens": trained,
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }
    write_json(METRICS / "train.json", metrics)
    timing = speed(trainer, tokens, trained)
    return Outcome(
        f"{metrics['steps']} steps, validation loss {metrics['validation_loss_start']:.3f} → "
        f"{metrics['validation_loss']:.3f}, {timing['tokens_per_second']:.0f} tokens/s, adapter in {ADAPTER}",
        timing,
    )


if __name__ == "__main__":
    run_stage("train", main)
