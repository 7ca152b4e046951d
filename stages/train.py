"""Train: models/base, data/tokenized, data/adapters, params `seed`, `quantization`, `lora`, `train` → models/adapter,
metrics/train.json and the curves metrics/train_curve.csv, metrics/validation_curve.csv.

QLoRA (Dettmers et al. 2023, arXiv 2305.14314): the base stays frozen in 4 bits, low-rank adapters on it are trained by
TRL's SFTTrainer. Run it with `dvc repro train`. Stopped, it goes on from its last checkpoint when run again, to the
same bytes (see stages/_train/checkpoints.py). For several GPUs it starts itself once for each (see launch.py there); of
these processes rank 0 writes all results.
"""

import functools
import importlib.metadata
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from stages._train.adapter import add_adapter, check_saved, quantized_bytes, save_adapter
from stages._train.checkpoints import Checkpoints, step_of, sync
from stages._train.checks import Rows, adapter_parameters, check_base, check_disk, check_rows, count_rows, end_token
from stages._train.distributed import join, leave, rank, refuse_divergence, with_the_others, world
from stages._train.fingerprint import LIBRARIES, fingerprint
from stages._train.launch import launch
from stages._train.memory import CHOICES, Keep, choose, device_memory, shape_of
from stages._train.plan import budget_of, plan
from stages._train.results import curves, losses, sizes, speed
from stages._train.sharding import shard
from stages._train.signals import Stop, die_with_parent
from stages._train.start import check_start
from stages._train.trackers import prepare_trackers
from stages.shared.errors import UserError
from stages.shared.four_bit import VALUES, value_hashes
from stages.shared.models import load_model, make_deterministic, pick_attention, pick_device
from stages.shared.params import Params, load_params
from stages.shared.paths import (
    ADAPTER,
    BASE,
    METRICS,
    TOKENIZED,
    read_json,
    whole_directory,
    write_json,
    write_text,
)
from stages.shared.stage import Outcome, run_stage

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from trl import SFTConfig

    from stages._train.shares import NoCheckpoints
    from stages._train.trainer import Trainer


def training_arguments(params: Params, recompute: bool) -> "SFTConfig":
    from trl import SFTConfig

    from stages._train.optimizer import OPTIMIZERS

    train, on_cpu = params.train, pick_device(params.machine).type == "cpu"
    arguments = SFTConfig(
        output_dir=".dvc/tmp/trainer",  # nothing is written there: checkpoints have their own place
        num_train_epochs=train.epochs,
        per_device_train_batch_size=train.batch_size,
        per_device_eval_batch_size=train.batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps // world(),
        optim=OPTIMIZERS[train.optimizer],
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.lr_scheduler,
        warmup_steps=train.warmup_steps,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        neftune_noise_alpha=train.neftune_alpha,
        bf16=True,
        seed=params.seed,
        gradient_checkpointing=recompute,
        # Else each batch would wait for all work before it on the GPU.
        accelerator_config={"non_blocking": not on_cpu},
        use_cpu=on_cpu,
        eval_strategy="steps",
        eval_steps=train.eval_steps,
        eval_on_start=True,
        logging_steps=1,
        save_strategy="steps",
        save_steps=params.machine.save_steps,
        report_to=params.machine.report_to,
        disable_tqdm=True,
        remove_unused_columns=False,  # the collator needs seq_lengths
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
    )
    # Of several GPUs the Trainer would use all, and multiply the batch by their number.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def make_trainer(  # noqa: PLR0913, PLR0917 the parts of a training
    model: "PeftModel",
    rows: "dict[str, Dataset]",
    params: Params,
    checkpoints: Checkpoints,
    stop: Stop,
    keep: Keep = CHOICES["activations"],
) -> "Trainer":
    from transformers import AutoTokenizer

    from stages._train.attention import collate
    from stages._train.shares import even
    from stages._train.trainer import Trainer

    return Trainer(
        model=model,
        args=training_arguments(params, recompute=not keep.activations),
        data_collator=functools.partial(collate, attention=model.config._attn_implementation),
        train_dataset=even(rows["train"]),
        eval_dataset=even(rows["validation"]),
        processing_class=AutoTokenizer.from_pretrained(BASE),
        lora=params.lora,
        patience=params.train.early_stopping_patience,
        checkpoints=checkpoints,
        stop=stop,
    )


def prepare_model(params: Params, manifest: dict, memory: str) -> "tuple[PeftModel, int, dict[str, str]]":
    """The base with a fresh adapter, ready to train, the bytes of the base as quantized, and the hashes of its values
    (in rank 0)."""
    from stages._train.attention import register
    from stages._train.lora import fuse

    register()
    model = load_model(BASE, params.machine, params.quantization, packed=True)
    base_bytes = quantized_bytes(model)
    values = value_hashes(model) if rank() == 0 else {}  # now, while the base is whole and in 4 bits
    model = add_adapter(model, params.lora, manifest)
    if params.machine.sharding == "fsdp":
        shard(model)  # a layer's weights are whole only while its own forward runs
    else:
        fuse(model, hold=CHOICES[memory].weights)
    return model, base_bytes, values


def pick_memory(params: Params, longest_row: int) -> str:
    varlen = pick_attention(params.machine, packed=True) == "varlen"
    cuda = pick_device(params.machine).type == "cuda"
    memory = choose(shape_of(read_json(BASE / "config.json")), params, longest_row, varlen, device_memory(cuda))
    keep = CHOICES[memory]
    print(
        f"train: machine.memory {memory}: base weights {'in 16 bits' if keep.weights else 'dequantized for each use'}, "
        f"activations {'kept' if keep.activations else 'computed again'} (python -m stages.train --plan says why)",
        flush=True,
    )
    return memory


def load_rows() -> "dict[str, Dataset]":
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    return {split: Dataset.from_file(str(TOKENIZED / f"{split}.arrow")) for split in ("train", "validation")}


def train(trainer: "Trainer", checkpoint: Path | None, values: dict[str, str]) -> None:
    """Trains to the end and leaves models/adapter, compared with what was trained. values: hashes of the base's."""
    import torch
    from safetensors import SafetensorError

    try:
        trainer.run(checkpoint)
    except (RuntimeError, MemoryError) as error:
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and "can't allocate memory" not in str(error):  # what PyTorch says on the CPU
            raise
        raise UserError(
            f"out of memory in step {trainer.state.global_step + 1} ({error}). {trainer.stop.next_run()}. Give it more "
            "memory, or set machine.memory: low, which keeps the checkpoints; or it needs less with a smaller "
            "train.batch_size or tokenize.max_length, but each of these starts the training afresh"
        ) from None
    refuse_divergence(trainer.model)
    if rank():
        return
    try:
        with whole_directory(ADAPTER) as folder:
            save_adapter(trainer.model, folder, trainer.taken)
            write_json(folder / VALUES, values)
            for path in (*folder.iterdir(), folder):
                sync(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{ADAPTER} could not be written ({error}). Free some space. {trainer.stop.next_run()}, the last"
        ) from None
    check_saved(trainer.model, ADAPTER / "adapter_model.safetensors")


def prepare(params: Params) -> "tuple[Rows, Checkpoints | NoCheckpoints, Path | None]":
    """What rank 0 checks and finds before anything heavy is loaded: rows, checkpoints, the one to go on from."""
    from stages._train.shares import NoCheckpoints, refuse_other_work, share_checkpoint

    parts, found = fingerprint(params), None
    if rank() == 0:
        counts = check_rows(TOKENIZED / "train.arrow")
        checkpoints = Checkpoints(parts, params.machine.save_total_limit)
        checkpoints.tidy()
        check_base()
        prepare_trackers(params.machine, checkpoints.folder.name)
        check_start(params.lora)
        kept = 1 + (params.lora.init in ("pissa", "olora")) + (params.train.early_stopping_patience is not None)
        check_disk(adapter_parameters(params.lora), checkpoints, kept)
        found = checkpoints.newest()
    else:
        counts, checkpoints = count_rows(TOKENIZED / "train.arrow", end_token()), NoCheckpoints()
    refuse_other_work(parts)
    return counts, checkpoints, share_checkpoint(found)


@with_the_others()
def main(stop: Stop, params: Params) -> Outcome:
    from stages._train.live import LiveCurves

    launch(params)
    join(pick_device(params.machine).type == "cuda")
    counts, checkpoints, checkpoint = prepare(params)
    stop.saved = step_of(checkpoint) if checkpoint else 0
    manifest = read_json(BASE / "manifest.json")
    make_deterministic(params.seed, params.train.deterministic, warn_only=False)
    memory = pick_memory(params, counts.longest_row)
    model, base_bytes, values = prepare_model(params, manifest, memory)
    trainer = make_trainer(model, load_rows(), params, checkpoints, stop, CHOICES[memory])
    trainer.add_callback(LiveCurves())
    train(trainer, checkpoint, values)
    if rank():
        checkpoints.remove()
        leave()
    for path, text in curves(trainer.state.log_history).items():
        write_text(path, text)
    tokens, trained = (round(count * trainer.state.epoch) for count in (counts.tokens, counts.trained))
    metrics = {
        **losses(trainer.state.log_history, keeps_best=params.train.early_stopping_patience is not None),
        **sizes(model, base_bytes, manifest["parameters"]),
        "steps": trainer.state.global_step,
        "tokens": tokens,
        "trained_tokens": trained,
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }
    write_json(METRICS / "train.json", metrics)
    timing = speed(trainer, tokens, trained) | {"attention": model.config._attn_implementation, "memory": memory}
    return Outcome(
        f"{metrics['steps']} steps, validation loss {metrics['validation_loss_start']:.3f} → "
        f"{metrics['validation_loss']:.3f}, {timing['tokens_per_second']:.0f} tokens/s, adapter in {ADAPTER}",
        timing,
        checkpoints.remove,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--plan"]:
        try:
            sys.exit(print(plan(load_params(), budget_of(sys.argv[2:]))))
        except UserError as error:
            sys.exit(f"train: {error}")
    stop = Stop()
    stop.install()
    die_with_parent()
    run_stage("train", functools.partial(main, stop))
