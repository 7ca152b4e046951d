"""Train: models/base, data/tokenized, data/adapters, params `seed`, `quantization`, `lora`, `train` → models/adapter,
metrics/train.json and the curves metrics/train_curve.csv, metrics/validation_curve.csv.

QLoRA (Dettmers et al. 2023, arXiv 2305.14314): the base stays frozen in 4 bits, and TRL's SFTTrainer trains low-rank
adapters on it. A training that was stopped continues from its last checkpoint when it is run again, and ends with the
same bytes (see stages/_train/checkpointing.py). For several GPUs it starts itself once for each (see
stages/runtime/launch.py). Rank 0 of these processes writes all results.

    dvc repro train
    python -m stages.train --plan       # how much memory it will take here; trains nothing
    python -m stages.train --plan 24    # on a GPU with 24 GiB
"""

from stages.runtime.command import explained
from stages.runtime.stage_options import stage_options

import functools
import importlib.metadata
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from stages._train.adapter_init import check_initial_adapter
from stages._train.adapter_io import check_saved, save_adapter
from stages._train.checkpointing import Checkpoints, step_of
from stages._train.distributed import (
    all_reduce_min,
    check_same_adapter,
    ended_with_others,
    join_processes,
    leave_processes,
    rank,
)
from stages._train.fingerprint import LIBRARIES, training_fingerprint
from stages._train.metrics import curves, losses, sizes, speed
from stages._train.model import PreparedModel, prepare_model
from stages._train.preflight import (
    Rows,
    adapter_parameters,
    check_rows,
    check_validation,
    count_rows,
    count_steps,
    end_token,
)
from stages.core.machine import ResolvedMachine, resolve_machine
from stages.core.models import make_deterministic
from stages.core.params import Params, load_params
from stages.core.paths import ADAPTER, BASE, METRICS, TOKENIZED, read_json, whole_directory, write_json, write_text
from stages.core.quantization import VALUE_HASHES, VALUE_SAMPLES, BaseValues
from stages.runtime.activations import shape_of
from stages.runtime.counts import plural
from stages.runtime.errors import UserError
from stages.runtime.failures import explained_failures
from stages.runtime.integrity import check_base
from stages.runtime.launch import launch
from stages.runtime.machine_checks import check_bfloat16, check_disk
from stages.runtime.memory import Workload, pick_plan
from stages.runtime.memory_table import plan_table
from stages.runtime.runner import Outcome, run_stage
from stages.runtime.signals import Stop, die_with_parent
from stages.runtime.small_data import warn_of_few_steps
from stages.runtime.trackers import prepare_trackers

if TYPE_CHECKING:
    from stages._train.data_parallel import NoCheckpoints
    from stages._train.trainer import Trainer


def train(trainer: "Trainer", checkpoint: Path | None, values: BaseValues) -> None:
    """Trains to the end and writes models/adapter, which is then compared with what was trained.

    Args:
        trainer: ready to train.
        checkpoint: where it continues from.
        values: of the base, which merging compares with its own.

    Raises:
        UserError: memory ran out, the disk is full, or hardware is failing.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with explained_failures(lambda: f"in step {trainer.state.global_step + 1}", trainer.stop.next_run):
        trainer.run(checkpoint)
    check_same_adapter(trainer.model)
    if rank():
        return
    try:
        with whole_directory(ADAPTER) as folder:
            save_adapter(trainer.model, folder, trainer.subtracted)
            write_json(folder / VALUE_HASHES, values.hashes)
            save_file(values.samples, folder / VALUE_SAMPLES, {"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{ADAPTER} could not be written ({error}). Free some space. {trainer.stop.next_run()}, the last"
        ) from None
    check_saved(trainer.model, ADAPTER / "adapter_model.safetensors")


def prepare(params: Params, machine: ResolvedMachine) -> "tuple[Rows, Checkpoints | NoCheckpoints, Path | None]":
    """Checks what can be checked before anything heavy is loaded. Most of it is done by rank 0.

    Returns:
        The counts of the rows, the place for checkpoints, and the checkpoint to continue from.
    """
    from stages._train.data_parallel import NoCheckpoints, check_same_training, share_checkpoint

    parts, checkpoint = training_fingerprint(params, machine), None
    if rank() == 0:
        check_base()
        counts = check_rows(TOKENIZED / "train.arrow")
        check_validation(TOKENIZED / "validation.arrow")
        checkpoints = Checkpoints(parts, params.machine.save_total_limit)
        checkpoints.tidy()
        prepare_trackers(params.machine, checkpoints.folder.name)
        check_initial_adapter(params.lora)
        adapters = 1 + (params.lora.init in ("pissa", "olora")) + (params.train.early_stopping_patience is not None)
        check_disk(adapter_parameters(params.lora), checkpoints.folder, checkpoints.limit, adapters)
        checkpoint = checkpoints.newest()
        if checkpoint is None:  # a training that continues has said it
            warn_of_few_steps(count_steps(counts.rows, params.train), params.train)
    else:
        counts, checkpoints = count_rows(TOKENIZED / "train.arrow", end_token()), NoCheckpoints()
    check_same_training(parts)
    return counts, checkpoints, share_checkpoint(checkpoint)


def write_results(trainer: "Trainer", prepared: PreparedModel, counts: Rows, early_stopping: bool) -> tuple[dict, dict]:
    """Writes the metrics and the curves. Returns the metrics and the figures of the timing file."""
    history = trainer.state.log_history
    for path, text in curves(history).items():
        write_text(path, text)
    tokens, trained_tokens = (round(count * trainer.state.epoch) for count in (counts.tokens, counts.trained))
    parameters = read_json(BASE / "manifest.json")["parameters"]
    metrics = {
        **losses(history, keeps_best=early_stopping),
        **sizes(prepared.model, prepared.base_bytes, parameters),
        "steps": trainer.state.global_step,
        "tokens": tokens,
        "trained_tokens": trained_tokens,
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }
    write_json(METRICS / "train.json", metrics)
    attention = prepared.model.config._attn_implementation
    return metrics, speed(trainer, tokens, trained_tokens) | {"attention": attention, "memory": str(prepared.plan)}


@ended_with_others()
def main(stop: Stop, params: Params) -> Outcome:
    batches = params.train.gradient_accumulation_steps
    machine = resolve_machine(params.machine, batches)
    launch(params.machine, machine, batches)
    from stages._train.trainer import load_rows, make_trainer
    from stages.runtime.live_curves import LiveCurves

    join_processes(machine.on_cuda)
    check_bfloat16(machine)
    counts, checkpoints, checkpoint = prepare(params, machine)
    stop.saved = step_of(checkpoint) if checkpoint else 0
    make_deterministic(params.seed, params.train.deterministic, warn_only=False)
    shape = shape_of(read_json(BASE / "config.json"))
    workload = Workload(shape, params.quantization, params.lora, params.train, machine, counts.longest_row)
    plan = pick_plan(params.machine.memory, workload, all_reduce_min)
    manifest = read_json(BASE / "manifest.json")
    with explained_failures(lambda: "while the base was loaded", stop.next_run):
        prepared = prepare_model(params.quantization, params.lora, machine, manifest, plan)
    trainer = make_trainer(prepared, load_rows(), params, machine, checkpoints, stop)
    trainer.add_callback(LiveCurves(curves))
    train(trainer, checkpoint, prepared.values)
    if rank():
        checkpoints.remove()
        leave_processes()
    metrics, timing = write_results(trainer, prepared, counts, params.train.early_stopping_patience is not None)
    return Outcome(
        f"{plural(metrics['steps'], 'step')}, validation loss {metrics['validation_loss_start']:.3f} → "
        f"{metrics['validation_loss']:.3f}, {timing['tokens_per_second']:.0f} tokens/s, adapter in {ADAPTER}",
        timing,
        checkpoints.remove,
    )


if __name__ == "__main__":
    options = stage_options("train", __doc__)
    if options.plan is not None:
        with explained("train"):
            print(plan_table(load_params(), options.plan or None))
        sys.exit()
    stop = Stop()
    stop.install()
    die_with_parent()
    run_stage("train", functools.partial(main, stop))
