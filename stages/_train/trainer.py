"""TRL's SFTTrainer with the loss from `loss.py`, an evaluation weighted by tokens, our own progress and checkpoints.

Why not TRL's loss: it also computes entropy and accuracy, and on two CPU cores took three quarters of each step.
"""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from transformers import PrinterCallback, TrainerState
from trl import SFTTrainer

from stages._train.adapter_init import TAKEN, start
from stages._train.adapter_io import save_adapter
from stages._train.callbacks import EarlyStopping
from stages._train.checkpointing import Checkpoints
from stages._train.data_parallel import GENERATORS, Even, NoCheckpoints, generator_states, load_generators
from stages._train.distributed import agree, average_gradients, total, world
from stages._train.objective import Neftune, loraplus_optimizer, summed_loss, token_lengths
from stages.core.models import pick_device
from stages.core.params import Lora, Params, Train
from stages.core.paths import BASE, TOKENIZED, read_json, write_json
from stages.runtime.signals import Stop
from stages.runtime.watch import Watch

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from trl import SFTConfig


class Trainer(SFTTrainer):
    """SFTTrainer on rows that are tokenized and packed already (see stages.core.models.packed_batch)."""

    def __init__(
        self,
        *arguments,
        lora: Lora,
        train: Train,
        checkpoints: Checkpoints | NoCheckpoints,
        stop: Stop,
        memory: str,
        **options,
    ):
        self.lora, self.taken = lora, {}
        super().__init__(*arguments, **options)
        # The loss goes round the model's own forward, which is all that DistributedDataParallel knows.
        self.accelerator.prepare_model = functools.partial(self.accelerator.prepare_model, evaluation_mode=True)
        self.remove_callback(PrinterCallback)
        self.checkpoints, self.stop = checkpoints, stop
        self.early = EarlyStopping(train.early_stopping_patience) if train.early_stopping_patience else None
        if self.early:
            self.add_callback(self.early)
        self.noise = None
        if train.neftune_alpha:
            self.noise = Neftune(train.neftune_alpha, self.model.get_input_embeddings())
        self.watch = Watch(checkpoints.opened, stop, self.args.device.type == "cuda", memory)
        self.add_callback(self.watch)
        # Adapters that keep PEFT's forward would run in fp32 without autocast, which costs time at every operation.
        self.autocast = any("forward" not in vars(layer) for layer in self.model.get_base_model().model.layers)
        # SFTTrainer casts adapters on a quantized base to bf16, where small updates are lost to rounding.
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.float32)

    def run(self, checkpoint: Path | None) -> None:
        """Trains to the end, from the checkpoint on where there is one, and leaves the adapter that is to be kept."""
        self.taken = start(self.model, self.lora, checkpoint)
        if checkpoint is None:
            self.train()
        else:
            self.resume(checkpoint)
        if self.early:
            self.early.restore(self.model)

    def resume(self, checkpoint: Path) -> None:
        self.watch.resume(read_json(checkpoint / "costs.json"))
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if self.early:
            self.early.load(checkpoint)
        if state.global_step < state.max_steps and not (self.early and self.early.spent(state.log_history)):
            self.args.eval_on_start = False  # the checkpoint's log has it
            self.train(resume_from_checkpoint=str(checkpoint))
        else:  # train() would take one step more where the last epoch is a part of one
            self._load_from_checkpoint(str(checkpoint))
            self.state = state

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.lora.plus_ratio is not None:
            kind = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = loraplus_optimizer(self.model, self.args, kind, self.lora.plus_ratio)
        return super().create_optimizer(model)

    def _save_checkpoint(self, model, trial) -> None:
        """The Trainer's own, without tokenizer, model card and pickled arguments."""
        step = self.state.global_step
        self.generators = generator_states() if world() > 1 else None
        self.checkpoints.save(step, self.write_checkpoint)
        self.stop.received = agree(self.stop.received)  # which also waits until the checkpoint is written
        self.stop.saved = step
        if self.stop.received:
            self.stop.leave()

    def write_checkpoint(self, folder: Path) -> None:
        save_adapter(self.model, folder)
        if self.taken:
            save_file(self.taken, folder / TAKEN, {"format": "pt"})
        if self.early:
            self.early.save(folder)
        self._save_optimizer_and_scheduler(str(folder))
        if self.generators:
            torch.save(self.generators, folder / GENERATORS)
        else:
            self._save_rng_state(str(folder))
        self.state.save_to_json(str(folder / "trainer_state.json"))
        write_json(folder / "costs.json", self.watch.costs())

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None and world() > 1:
            load_generators(Path(checkpoint))
        else:
            super()._load_rng_state(checkpoint)

    def _get_train_sampler(self, train_dataset=None):
        if world() == 1:
            return super()._get_train_sampler(train_dataset)
        self.order = Even(len(self.train_dataset), self.args.per_device_train_batch_size, self.args.seed)
        return self.order

    def _run_epoch(self, *arguments, epoch: int, **options) -> None:
        # Resumed, accelerate's data loader sets the epoch of one wrapper too few: the order would be that of epoch 0.
        if world() > 1:
            self.order.set_epoch(epoch)
        super()._run_epoch(*arguments, epoch=epoch, **options)

    def _get_eval_sampler(self, eval_dataset):
        if world() == 1:
            return super()._get_eval_sampler(eval_dataset)
        return Even(len(eval_dataset), self.args.per_device_eval_batch_size, None)

    def training_step(self, model, inputs, *arguments, **options) -> torch.Tensor:
        self.watch.tokens += inputs["input_ids"].numel() * world()
        if self.noise:
            self.noise.lengths = token_lengths(inputs["position_ids"]).to(self.args.device)
        loss = super().training_step(model, inputs, *arguments, **options)
        if self.accelerator.sync_gradients:  # set by the Trainer in the last batch of an optimizer step
            average_gradients(self.model)
        return loss

    def summed_loss(self, model, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
        """The sum of the cross-entropies of the trained tokens, in nats, and their number."""
        return summed_loss(self.accelerator.unwrap_model(model).get_base_model(), inputs, self.autocast)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, count = self.summed_loss(model, inputs)
        if num_items_in_batch is None:
            return loss / max(count, 1)
        # The number is that of all processes, whose gradients are averaged.
        return loss / num_items_in_batch * self.accelerator.num_processes

    def evaluate(self, *_, **__) -> dict[str, float]:
        """Logs eval_loss: nats a trained token over the whole validation split."""
        self.model.eval()
        summed, count = 0.0, 0
        # A data loader draws a seed when it starts; dropout must not notice that there was an evaluation.
        # Of several GPUs only this process's: to ask the others for theirs would start them.
        device = self.args.device
        forked = torch.random.fork_rng([device] if device.type == "cuda" else [])
        with forked, torch.no_grad(), self.compute_loss_context_manager():
            for inputs in self.get_eval_dataloader():
                loss, trained = self.summed_loss(self.model, self._prepare_inputs(inputs))
                summed, count = summed + loss.item(), count + trained
        self.model.train()
        summed, count = total(summed, count)
        metrics = {"eval_loss": summed / count}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


# The trainer, put together from params: TRL's arguments key by key, the rows, the collator.


# transformers' own `constant` has no warm-up, and says nothing when it is given one.
SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def training_arguments(params: Params, recompute: bool) -> "SFTConfig":
    from trl import SFTConfig

    from stages._train.objective import OPTIMIZERS

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

    from stages._train.data_parallel import even
    from stages.core.attention import collate

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
