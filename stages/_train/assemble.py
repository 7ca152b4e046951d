"""The trainer, put together from params: TRL's arguments key by key, the rows, the collator."""

import functools
from typing import TYPE_CHECKING

from stages._train.checkpoints import Checkpoints
from stages._train.distributed import world
from stages._train.signals import Stop
from stages.shared.models import pick_device
from stages.shared.params import Params
from stages.shared.paths import BASE, TOKENIZED

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from trl import SFTConfig

    from stages._train.trainer import Trainer

# transformers' own `constant` has no warm-up, and says nothing when it is given one.
SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


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
        lr_scheduler_type=SCHEDULES[train.lr_scheduler],
        warmup_steps=train.warmup_steps,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        bf16=True,
        seed=params.seed,
        gradient_checkpointing=recompute,
        # Of LLM.int8 the inputs lie beside what autograd knows, so only a forward pass without gradients drops them.
        gradient_checkpointing_kwargs={"use_reentrant": params.quantization.bits == 8},
        # Else each batch would wait for all work before it on the GPU.
        accelerator_config={"non_blocking": not on_cpu},
        use_cpu=on_cpu,
        eval_strategy="steps",
        eval_steps=train.eval_steps,
        eval_on_start=True,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would write 0 where the loss is no number
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
    recompute: bool = False,
    memory: str = "",
) -> "Trainer":
    """memory: what is kept, for the checkpoints' record."""
    from transformers import AutoTokenizer

    from stages._train.shares import even
    from stages._train.trainer import Trainer
    from stages.shared.attention import collate

    return Trainer(
        model=model,
        args=training_arguments(params, recompute=recompute),
        data_collator=functools.partial(collate, attention=model.config._attn_implementation),
        train_dataset=even(rows["train"]),
        eval_dataset=even(rows["validation"]),
        processing_class=AutoTokenizer.from_pretrained(BASE),
        lora=params.lora,
        train=params.train,
        checkpoints=checkpoints,
        stop=stop,
        memory=memory,
    )


def load_rows() -> "dict[str, Dataset]":
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    return {split: Dataset.from_file(str(TOKENIZED / f"{split}.arrow")) for split in ("train", "validation")}
