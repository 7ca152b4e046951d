"""The arguments of TRL's trainer, mapped key by key from params.yaml."""

from trl import SFTConfig

from stages.core.machine import ResolvedMachine
from stages.core.params import Params

OPTIMIZERS = {"adamw": "adamw_torch", "adamw_8bit": "adamw_8bit"}  # the latter is bitsandbytes' own, unpaged
# transformers' own `constant` has no warm-up, and ignores one without a message.
SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def training_arguments(params: Params, machine: ResolvedMachine, recompute: bool) -> SFTConfig:
    """TRL's arguments, key by key.

    Args:
        params: the values of params.yaml.
        machine: where it is trained.
        recompute: whether the Trainer computes layers' activations again.
    """
    train = params.train
    arguments = SFTConfig(
        output_dir=".dvc/tmp/trainer",  # nothing is written there: checkpoints have their own place
        num_train_epochs=train.epochs,
        per_device_train_batch_size=train.batch_size,
        per_device_eval_batch_size=train.batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps // machine.processes,
        optim=OPTIMIZERS[train.optimizer],
        learning_rate=train.learning_rate,
        lr_scheduler_type=SCHEDULES[train.lr_scheduler],
        warmup_steps=train.warmup_steps,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        bf16=True,
        seed=params.seed,
        gradient_checkpointing=recompute,
        # LLM.int8 keeps its inputs where autograd's hooks don't see them. Only a forward pass without gradients, as in
        # reentrant checkpointing, drops them.
        gradient_checkpointing_kwargs={"use_reentrant": params.quantization.bits == 8},
        # Otherwise each batch would wait for all work before it on the GPU.
        accelerator_config={"non_blocking": machine.on_cuda},
        use_cpu=not machine.on_cuda,
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
    # The Trainer would use all GPUs, and multiply the batch by their number.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
