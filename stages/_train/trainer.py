"""TRL's SFTTrainer with the loss from `loss.py`, an evaluation weighted by tokens, our own progress and checkpoints.

Why not TRL's loss: it also computes entropy and accuracy, and on two CPU cores took three quarters of each step.
"""

import functools
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PrinterCallback, TrainerState
from trl import SFTTrainer

from stages._train.adapter import save_adapter
from stages._train.checkpoints import Checkpoints
from stages._train.distributed import agree, average_gradients, total, world
from stages._train.loss import summed_loss
from stages._train.neftune import Neftune, token_lengths
from stages._train.optimizer import loraplus_optimizer
from stages._train.shares import GENERATORS, Even, NoCheckpoints, generator_states, load_generators
from stages._train.signals import Stop
from stages._train.start import TAKEN, start
from stages._train.stopping import EarlyStopping
from stages._train.watch import Watch
from stages.shared.params import Lora, Train
from stages.shared.paths import read_json, write_json


class Trainer(SFTTrainer):
    """SFTTrainer on rows that are tokenized and packed already (see stages.shared.models.packed_batch)."""

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
