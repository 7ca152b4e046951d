"""Train: models/base, data/tokenized, data/adapters, params `seed`, `quantization`, `lora`, `train` → models/adapter,
metrics/train.json and the curves metrics/train_curve.csv, metrics/validation_curve.csv.

QLoRA (Dettmers et al. 2023, arXiv 2305.14314): the base stays frozen in 4 bits, low-rank adapters on it are trained by
TRL's SFTTrainer. Run it with `dvc repro train`. Stopped, it goes on from its last checkpoint when run again, to the
same bytes (see stages/_train/checkpointing.py). For several GPUs it starts itself once for each (see
stages/runtime/launch.py); rank 0 of these processes writes all results.
"""

import functools
import importlib.metadata
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from stages._train.adapter_init import check_start
from stages._train.adapter_io import check_saved, save_adapter
from stages._train.checkpointing import LIBRARIES, Checkpoints, fingerprint, step_of
from stages._train.distributed import join, leave, rank, refuse_divergence, with_the_others
from stages._train.metrics import curves, losses, sizes, speed
from stages._train.model import pick_memory, prepare_model
from stages._train.preflight import Rows, adapter_parameters, check_rows, check_validation, count_rows, end_token
from stages.core.models import make_deterministic, pick_device
from stages.core.params import Params, load_params
from stages.core.paths import ADAPTER, BASE, METRICS, TOKENIZED, read_json, whole_directory, write_json, write_text
from stages.core.quantization import SAMPLES, VALUES, Values
from stages.runtime.errors import UserError
from stages.runtime.failures import in_words
from stages.runtime.integrity import check_base
from stages.runtime.launch import launch
from stages.runtime.machine_checks import check_disk, check_dtype
from stages.runtime.memory import is_fused
from stages.runtime.memory_table import budget_of, plan
from stages.runtime.runner import Outcome, run_stage
from stages.runtime.signals import Stop, die_with_parent
from stages.runtime.trackers import prepare_trackers

if TYPE_CHECKING:
    from stages._train.data_parallel import NoCheckpoints
    from stages._train.trainer import Trainer


def train(trainer: "Trainer", checkpoint: Path | None, values: Values) -> None:
    """Trains to the end and leaves models/adapter, compared with what was trained. values: the base's."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with in_words(lambda: f"in step {trainer.state.global_step + 1}", trainer.stop.next_run):
        trainer.run(checkpoint)
    refuse_divergence(trainer.model)
    if rank():
        return
    try:
        with whole_directory(ADAPTER) as folder:
            save_adapter(trainer.model, folder, trainer.taken)
            write_json(folder / VALUES, values.hashes)
            save_file(values.samples, folder / SAMPLES, {"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{ADAPTER} could not be written ({error}). Free some space. {trainer.stop.next_run()}, the last"
        ) from None
    check_saved(trainer.model, ADAPTER / "adapter_model.safetensors")


def prepare(params: Params) -> "tuple[Rows, Checkpoints | NoCheckpoints, Path | None]":
    """What rank 0 checks and finds before anything heavy is loaded: rows, checkpoints, the one to go on from."""
    from stages._train.data_parallel import NoCheckpoints, refuse_other_work, share_checkpoint

    parts, found = fingerprint(params), None
    if rank() == 0:
        check_base()
        counts = check_rows(TOKENIZED / "train.arrow")
        check_validation(TOKENIZED / "validation.arrow")
        checkpoints = Checkpoints(parts, params.machine.save_total_limit)
        checkpoints.tidy()
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
    from stages._train.trainer import load_rows, make_trainer
    from stages.runtime.live_curves import LiveCurves

    launch(params)
    join(pick_device(params.machine).type == "cuda")
    check_dtype(params.machine)
    counts, checkpoints, checkpoint = prepare(params)
    stop.saved = step_of(checkpoint) if checkpoint else 0
    manifest = read_json(BASE / "manifest.json")
    make_deterministic(params.seed, params.train.deterministic, warn_only=False)
    keep = pick_memory(params, counts.longest_row)
    with in_words(lambda: "while the base was loaded", stop.next_run):
        model, base_bytes, values = prepare_model(params, manifest, keep)
    again = not is_fused(params) and not keep.activations  # fused layers do it themselves
    trainer = make_trainer(model, load_rows(), params, checkpoints, stop, again, str(keep))
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
    timing = speed(trainer, tokens, trained) | {"attention": model.config._attn_implementation, "memory": str(keep)}
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
