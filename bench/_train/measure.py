"""One contender's training, timed step by step, and what it has learned by its end."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers import TrainerCallback

from stages.core.attention import collate
from stages.core.prompts import IGNORED
from stages.runtime.activations import shape_of
from stages.runtime.runner import peak_memory

WARM = 2  # optimizer steps that are not timed


@dataclass
class Result:
    """Of the timed steps. peak: bytes, allocated on the GPU or resident on the CPU; estimated: the same, as the stage
    counts it. loss: nats a token, held out; losses: in training, one an optimizer step. flop: what training a token of
    a full row takes at least."""

    tokens_per_second: float
    trained_per_second: float
    step_seconds: float
    peak: int
    loss: float
    all_trained: int
    flop: float
    estimated: int | None
    losses: list[float] = field(default_factory=list)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Steps(TrainerCallback):
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_, **__):
        synchronize()
        self.began = time.perf_counter()

    def on_step_end(self, *_, **__):
        synchronize()
        self.seconds.append(time.perf_counter() - self.began)


def counting(collator: Callable, counts: list[tuple[int, int]]) -> Callable:
    """The collator, with (tokens that are no padding, trained tokens) of each batch noted in `counts`."""

    def collated(rows):
        batch = collator(rows)
        counts.append((sum(len(row["input_ids"]) for row in rows), int((batch["labels"] != IGNORED).sum())))
        return batch

    return collated


def held_out(model: torch.nn.Module, some: list[dict]) -> float:
    """Nats a trained token of these conversations, one at a time, so that nobody's packing is in the way."""
    model.eval()
    implementation = model.get_base_model().config._attn_implementation
    device, total, count = model.get_input_embeddings().weight.device, 0.0, 0
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16):
        for each in some:
            batch = collate([each | {"seq_lengths": [len(each["input_ids"])]}], implementation)
            trained = len(batch.pop("places"))
            del batch["targets"]
            batch = {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}
            total += trained * model(**batch, use_cache=False).loss.item()
            count += trained
    return total / count


def flop_per_token(model: torch.nn.Module, length: int) -> float:
    """The forward pass, the gradients of activations, and those of the adapters' weights: 2 for each weight and token,
    without those of the base's weights. Attention: of a row that is one conversation of `length` tokens."""
    shape = shape_of(model.get_base_model().config.to_dict())
    base = shape.layers * sum(a * b for a, b in shape.widths.values()) + shape.vocabulary * shape.hidden
    adapter = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return 4 * base + 6 * adapter + 3 * 2 * shape.layers * shape.queries * length


def product_rate(size: int = 8192, times: int = 10) -> float:
    """FLOP/s of a product of two random bf16 matrices of `size` by `size` on this GPU, the mean of so many."""
    one, other = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        one @ other
    synchronize()
    began = time.perf_counter()
    for _ in range(times):
        one @ other
    synchronize()
    return times * 2 * size**3 / (time.perf_counter() - began)


def run(trainer, held: list[dict], length: int) -> Result:
    """Trains to the end. held: conversations that are not trained; length: tokens of a full row."""
    steps, counts = Steps(), []
    trainer.add_callback(steps)
    trainer.data_collator = counting(trainer.data_collator, counts)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_memory()
    each = trainer.args.gradient_accumulation_steps
    batches = [counts[start : start + each] for start in range(0, len(counts), each)][WARM:]
    tokens, trained = (sum(one[index] for batch in batches for one in batch) for index in (0, 1))
    seconds = sum(steps.seconds[WARM:])
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return Result(
        tokens / seconds,
        trained / seconds,
        seconds / len(batches),
        peak,
        held_out(trainer.model, held),
        sum(trained for _, trained in counts),
        flop_per_token(trainer.model, length),
        getattr(trainer, "estimated", None),
        losses,
    )


def clear() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
