"""TRL's SFTTrainer with the stage's own loss, evaluation, progress and checkpoints.

The loss is that of objective.py. TRL's own also computes entropy and accuracy, which took three quarters of each step
on two CPU cores. The evaluation is weighted by tokens.
"""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from transformers import PrinterCallback, TrainerState
from trl import SFTTrainer

from stages._train.adapter_init import SUBTRACTED, initialize_adapter
from stages._train.adapter_io import save_adapter
from stages._train.arguments import training_arguments
from stages._train.callbacks import EarlyStopping, SaveWhenStopped, TrainingGuard
from stages._train.checkpointing import Checkpoints
from stages._train.data_parallel import (
    GENERATORS,
    EvenBatchSampler,
    NoCheckpoints,
    add_padding_row,
    generator_states,
    load_generators,
)
from stages._train.distributed import all_reduce_max, all_reduce_sum, average_gradients, world_size
from stages._train.model import PreparedModel
from stages._train.objective import Neftune, loraplus_optimizer, summed_loss, token_lengths
from stages.core.machine import ResolvedMachine
from stages.core.params import Lora, Params, Train
from stages.core.paths import BASE, TOKENIZED, read_json, write_json
from stages.runtime.signals import Stop
from stages.runtime.watch import Watch

if TYPE_CHECKING:
    from datasets import Dataset


class Trainer(SFTTrainer):
    """SFTTrainer on rows that are tokenized and packed already (see stages.core.models.packed_batch).

    Args:
        *arguments: of SFTTrainer.
        lora: the section of params.yaml.
        train: the section of params.yaml.
        checkpoints: where they go.
        stop: says whether a signal came, and is told which step was saved.
        memory: what stays in memory, for the checkpoints' record.
        **options: of SFTTrainer.
    """

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
        self.lora, self.subtracted = lora, {}
        super().__init__(*arguments, **options)
        # The loss does not go through the model's own forward, and DistributedDataParallel knows only that.
        self.accelerator.prepare_model = functools.partial(self.accelerator.prepare_model, evaluation_mode=True)
        self.checkpoints, self.stop = checkpoints, stop
        self.noise = None
        if train.neftune_alpha:
            self.noise = Neftune(train.neftune_alpha, self.model.get_input_embeddings())
        self.early = EarlyStopping(train.early_stopping_patience) if train.early_stopping_patience else None
        self.watch = Watch(checkpoints.opened, stop, self.args.device.type == "cuda", memory)
        self.remove_callback(PrinterCallback)
        for callback in (self.early, TrainingGuard(), self.watch, SaveWhenStopped(stop)):
            if callback:
                self.add_callback(callback)
        # Adapters with PEFT's own forward would run in fp32 without autocast. Autocast costs time at every operation.
        self.autocast = any("forward" not in vars(layer) for layer in self.model.get_base_model().model.layers)
        # SFTTrainer casts adapters on a quantized base to bf16, where small updates are lost to rounding.
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.float32)

    def run(self, checkpoint: Path | None) -> None:
        """Trains to the end, and leaves the adapter that will be kept. checkpoint: where it continues from."""
        self.subtracted = initialize_adapter(self.model, self.lora, checkpoint)
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
        if state.global_step < state.max_steps and not (self.early and self.early.is_spent(state.log_history)):
            self.args.eval_on_start = False  # the checkpoint's log has it
            self.train(resume_from_checkpoint=str(checkpoint))
        else:  # train() would take one step more where the last epoch is not a whole one
            self._load_from_checkpoint(str(checkpoint))
            self.state = state

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.lora.plus_ratio is not None:
            optimizer = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = loraplus_optimizer(self.model, self.args, optimizer, self.lora.plus_ratio)
        return super().create_optimizer(model)

    def _save_checkpoint(self, model, trial) -> None:
        """The Trainer's own, without tokenizer, model card and pickled arguments."""
        step = self.state.global_step
        self.generators = generator_states() if world_size() > 1 else None
        self.checkpoints.save(step, self.write_checkpoint)
        self.stop.received = all_reduce_max(self.stop.received)  # also waits until the checkpoint is written
        self.stop.saved = step
        if self.stop.received:
            self.stop.leave()

    def write_checkpoint(self, folder: Path) -> None:
        save_adapter(self.model, folder)
        if self.subtracted:
            save_file(self.subtracted, folder / SUBTRACTED, {"format": "pt"})
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
        if checkpoint is not None and world_size() > 1:
            load_generators(Path(checkpoint))
        else:
            super()._load_rng_state(checkpoint)

    def _get_train_sampler(self, train_dataset=None):
        if world_size() == 1:
            return super()._get_train_sampler(train_dataset)
        batch_size = self.args.per_device_train_batch_size
        self.order = EvenBatchSampler(len(self.train_dataset), batch_size, self.args.seed)
        return self.order

    def _run_epoch(self, *arguments, epoch: int, **options) -> None:
        # Resumed, accelerate's data loader sets the epoch of one wrapper too few. The order would be that of epoch 0.
        if world_size() > 1:
            self.order.set_epoch(epoch)
        super()._run_epoch(*arguments, epoch=epoch, **options)

    def _get_eval_sampler(self, eval_dataset):
        if world_size() == 1:
            return super()._get_eval_sampler(eval_dataset)
        return EvenBatchSampler(len(eval_dataset), self.args.per_device_eval_batch_size, None)

    def training_step(self, model, inputs, *arguments, **options) -> torch.Tensor:
        self.watch.tokens += inputs["input_ids"].numel() * world_size()
        if self.noise:
            self.noise.lengths = token_lengths(inputs["position_ids"]).to(self.args.device)
        loss = super().training_step(model, inputs, *arguments, **options)
        if self.accelerator.sync_gradients:  # the Trainer sets it in the last batch of an optimizer step
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
        loss_sum, count = 0.0, 0
        # A data loader draws a seed when it starts. Dropout must not notice that there was an evaluation.
        # Only this process's GPU: to ask the others for their state would start them.
        device = self.args.device
        forked = torch.random.fork_rng([device] if device.type == "cuda" else [])
        with forked, torch.no_grad(), self.compute_loss_context_manager():
            for inputs in self.get_eval_dataloader():
                loss, trained = self.summed_loss(self.model, self._prepare_inputs(inputs))
                loss_sum, count = loss_sum + loss.item(), count + trained
        self.model.train()
        loss_sum, count = all_reduce_sum(loss_sum, count)
        metrics = {"eval_loss": loss_sum / count}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def make_trainer(  # noqa: PLR0913, PLR0917 the parts of a training
    prepared: PreparedModel,
    rows: "dict[str, Dataset]",
    params: Params,
    machine: ResolvedMachine,
    checkpoints: Checkpoints | NoCheckpoints,
    stop: Stop,
) -> Trainer:
    """Puts the trainer together.

    Args:
        prepared: the model.
        rows: of load_rows().
        params: the values of params.yaml.
        machine: where it is trained.
        checkpoints: where they go.
        stop: see Trainer.
    """
    from transformers import AutoTokenizer

    from stages.core.attention import collate

    return Trainer(
        model=prepared.model,
        args=training_arguments(params, machine, prepared.recompute),
        data_collator=functools.partial(collate, attention=machine.packed_attention),
        train_dataset=add_padding_row(rows["train"]),
        eval_dataset=add_padding_row(rows["validation"]),
        processing_class=AutoTokenizer.from_pretrained(BASE),
        lora=params.lora,
        train=params.train,
        checkpoints=checkpoints,
        stop=stop,
        memory=str(prepared.plan),
    )


def load_rows() -> "dict[str, Dataset]":
    """{split: rows} of data/tokenized, mapped from the files."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    return {split: Dataset.from_file(str(TOKENIZED / f"{split}.arrow")) for split in ("train", "validation")}
