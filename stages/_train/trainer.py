"""TRL's SFTTrainer with the loss from `loss.py`, an evaluation weighted by tokens, and our own progress.

Why not TRL's loss: it also computes entropy and accuracy, and on two CPU cores took three quarters of each step.
"""

import time

import torch
from transformers import PrinterCallback, TrainerCallback
from trl import SFTTrainer

from stages._train.loss import LinearCrossEntropy
from stages.shared.progress import Progress
from stages.shared.prompts import IGNORED


class Watch(TrainerCallback):
    """Shows progress, and sums up the seconds spent in optimizer steps, evaluations left out."""

    def __init__(self):
        self.seconds, self.loss, self.began, self.progress = 0.0, "", 0.0, None

    def on_train_begin(self, args, state, control, **_):
        self.progress = Progress("train", state.max_steps, " steps")

    def on_step_begin(self, args, state, control, **_):
        self.began = time.monotonic()

    def on_step_end(self, args, state, control, **_):
        self.seconds += time.monotonic() - self.began
        self.progress.advance(loss=self.loss)

    def on_log(self, args, state, control, logs, **_):
        self.loss = f"{logs['loss']:.3f}" if "loss" in logs else self.loss

    def on_train_end(self, args, state, control, **_):
        self.progress.bar.close()


class Trainer(SFTTrainer):
    """SFTTrainer on rows that are tokenized and packed already (see stages.shared.models.packed_batch)."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.remove_callback(PrinterCallback)
        self.watch = Watch()
        self.add_callback(self.watch)
        # SFTTrainer casts adapters on a quantized base to bf16, where small updates are lost to rounding.
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.float32)

    def summed_loss(self, model, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
        """The sum of the cross-entropies of the trained tokens, in nats, and their number."""
        backbone = self.accelerator.unwrap_model(model).get_base_model()
        # accelerate's autocast is in the forward of the whole model, which is not called here. On CUDA the adapters
        # would run in fp32, without tensor cores: a fifth more time for a 7B on an H100. The CPU stays with fp32.
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=inputs["input_ids"].is_cuda):
            # With a cache, transformers would let packed conversations see each other.
            states = backbone.model(
                input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], use_cache=False
            ).last_hidden_state
        targets = inputs["labels"][:, 1:]
        trained = targets != IGNORED
        loss = LinearCrossEntropy.apply(states[:, :-1][trained], backbone.lm_head.weight, targets[trained])
        return loss, int(trained.sum())

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, count = self.summed_loss(model, inputs)
        if num_items_in_batch is None:
            return loss / max(count, 1)
        # The number is that of all processes, whose gradients are averaged.
        return loss / num_items_in_batch * self.accelerator.num_processes

    def evaluate(self, *_, **__) -> dict[str, float]:
        """Logs eval_loss: nats a trained token over the whole validation split."""
        self.model.eval()
        total, count = 0.0, 0
        # A data loader draws a seed when it starts; dropout must not notice that there was an evaluation.
        with torch.random.fork_rng(), torch.no_grad(), self.compute_loss_context_manager():
            for inputs in self.get_eval_dataloader():
                loss, trained = self.summed_loss(self.model, self._prepare_inputs(inputs))
                total, count = total + loss.item(), count + trained
        self.model.train()
        metrics = {"eval_loss": total / count}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
