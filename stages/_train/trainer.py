"""TRL's SFTTrainer with the loss from `loss.py`, an evaluation weighted by tokens, our own progress and checkpoints.

Why not TRL's loss: it also computes entropy and accuracy, and on two CPU cores took three quarters of each step.
"""

import time
from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer
from transformers import PrinterCallback, TrainerCallback, TrainerState
from trl import SFTTrainer

from stages._train.adapter import save_adapter
from stages._train.checkpoints import Checkpoints
from stages._train.loss import LinearCrossEntropy
from stages._train.signals import Stop
from stages.shared.paths import read_json, write_json
from stages.shared.progress import Progress
from stages.shared.stage import peak_memory


class Watch(TrainerCallback):
    """Shows progress, asks for a checkpoint when the process was told to stop, and sums up what the training cost:
    `seconds` in optimizer steps, evaluations left out, those of the stopped runs before this one included."""

    def __init__(self, opened: float, stop: Stop, cuda: bool):
        self.opened, self.stop, self.cuda = opened, stop, cuda
        self.seconds, self.loss, self.began, self.progress = 0.0, "", 0.0, None
        self.before = {"stage_seconds": 0.0, "runs": 0, "peak_memory_bytes": 0}

    def costs(self) -> dict[str, float]:
        peak = torch.cuda.max_memory_allocated() if self.cuda else peak_memory()
        return {
            "train_seconds": self.seconds,
            "stage_seconds": self.before["stage_seconds"] + time.monotonic() - self.opened,
            "runs": self.before["runs"] + 1,
            "peak_memory_bytes": max(self.before["peak_memory_bytes"], peak),
        }

    def on_train_begin(self, args, state, control, model, optimizer, **_):
        state.save_steps = args.save_steps  # a checkpoint brings its own, and machine.save_steps may have changed
        refuse_rounding(model, optimizer)
        self.progress = Progress("train", state.max_steps - state.global_step, " steps")
        self.stop.training = True

    def on_step_begin(self, args, state, control, **_):
        self.began = time.monotonic()

    def on_step_end(self, args, state, control, **_):
        self.seconds += time.monotonic() - self.began
        self.progress.advance(loss=self.loss)
        control.should_save = control.should_save or bool(self.stop.received)

    def on_log(self, args, state, control, logs, **_):
        self.loss = f"{logs['loss']:.3f}" if "loss" in logs else self.loss

    def on_train_end(self, args, state, control, **_):
        self.stop.training = False
        self.progress.bar.close()


def refuse_rounding(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Adapters and AdamW's moments must be fp32: in bf16 small updates are lost."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rounded = [name for name, p in trained.items() if p.dtype != torch.float32]
    for p in trained.values():
        kept = optimizer.state.get(p, {})
        rounded += [name for name, value in kept.items() if torch.is_tensor(value) and value.dtype != torch.float32]
    if rounded or not trained:
        raise RuntimeError(f"not trained in fp32: {', '.join(rounded[:3]) or 'there is nothing to train'}")


class Trainer(SFTTrainer):
    """SFTTrainer on rows that are tokenized and packed already (see stages.shared.models.packed_batch)."""

    def __init__(self, *arguments, checkpoints: Checkpoints, stop: Stop, **options):
        super().__init__(*arguments, **options)
        self.remove_callback(PrinterCallback)
        self.checkpoints, self.stop = checkpoints, stop
        self.watch = Watch(checkpoints.opened, stop, self.args.device.type == "cuda")
        self.add_callback(self.watch)
        # Adapters that keep PEFT's forward would run in fp32 without autocast, which costs time at every operation.
        self.autocast = any(isinstance(m, LoraLayer) and "forward" not in vars(m) for m in self.model.modules())
        # SFTTrainer casts adapters on a quantized base to bf16, where small updates are lost to rounding.
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.float32)

    def run(self, checkpoint: Path | None) -> None:
        """Trains to the end, from the checkpoint on where there is one."""
        if checkpoint is None:
            self.train()
            return
        self.watch.before = read_json(checkpoint / "costs.json")
        self.watch.seconds = self.watch.before["train_seconds"]
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step < state.max_steps:
            self.args.eval_on_start = False  # the checkpoint's log has it
            self.train(resume_from_checkpoint=str(checkpoint))
        else:  # train() would take one step more where the last epoch is a part of one
            self._load_from_checkpoint(str(checkpoint))
            self.state = state

    def _save_checkpoint(self, model, trial) -> None:
        """The Trainer's own, without tokenizer, model card and pickled arguments."""
        step = self.state.global_step
        self.checkpoints.save(step, self.write_checkpoint)
        self.stop.saved = step
        if self.stop.received:
            self.stop.leave()

    def write_checkpoint(self, folder: Path) -> None:
        save_adapter(self.model, folder)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_rng_state(str(folder))
        self.state.save_to_json(str(folder / "trainer_state.json"))
        write_json(folder / "costs.json", self.watch.costs())

    def summed_loss(self, model, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
        """The sum of the cross-entropies of the trained tokens, in nats, and their number."""
        backbone = self.accelerator.unwrap_model(model).get_base_model()
        bounds = {name: inputs[name] for name in ("cu_seq_lens_q", "max_length_q") if name in inputs}
        # accelerate's autocast is in the forward of the whole model, which is not called here.
        with torch.autocast(inputs["input_ids"].device.type, dtype=torch.bfloat16, enabled=self.autocast):
            # With a cache, transformers would let packed conversations see each other.
            states = backbone.model(
                input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], use_cache=False, **bounds
            ).last_hidden_state
        places, targets = inputs["places"], inputs["targets"]
        loss = LinearCrossEntropy.apply(states.flatten(0, 1)[places], backbone.lm_head.weight, targets)
        return loss, len(places)

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
