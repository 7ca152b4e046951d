"""How far a merged model is from the trained one: loss, Kullback-Leibler divergence, and the most likely token.

Only one model is in memory at a time. A file keeps the trained model's last hidden states, and its head stays in
memory. For a width of 4,096 and 32,768 tokens, the log-probabilities themselves would be eight times as large.
"""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from stages._merge.stream import MergePlan, merged_blocks
from stages._merge.weights import OriginalWeight
from stages.core.machine import ResolvedMachine
from stages.core.models import load_model
from stages.core.params import Quantization
from stages.core.prompts import IGNORED
from stages.core.quantization import BaseValues, base_values
from stages.core.statistics import ratio_interval
from stages.runtime.progress import progress

if TYPE_CHECKING:
    import numpy
    import torch
    from transformers import PreTrainedModel

COMPARED_AT_ONCE = 512  # positions whose logits are in memory at a time


def count_targets(rows: list[dict]) -> int:
    """How many tokens of the rows are trained."""
    return sum(label != IGNORED for row in rows for label in row["labels"][1:])


def conversations_of_targets(row: dict) -> "numpy.ndarray":
    """For each trained token of a packed row, the number of its conversation in the row."""
    import numpy

    conversations = numpy.repeat(numpy.arange(len(row["seq_lengths"])), row["seq_lengths"])
    return conversations[1:][numpy.array(row["labels"][1:]) != IGNORED]


def count_conversations(rows: list[dict]) -> int:
    """How many conversations the packed rows hold."""
    return sum(len(row["seq_lengths"]) for row in rows)


def reference_bytes(rows: list[dict], width: int) -> int:
    """Bytes of the hidden states at the trained positions, in fp32. width: of a hidden state."""
    return 4 * width * count_targets(rows)


def trained_positions(model: "PreTrainedModel", row: dict) -> "tuple[torch.Tensor, torch.Tensor]":
    """Runs the model on one row.

    Returns:
        (the last hidden states from which trained tokens are predicted, of shape (positions, width); those tokens)
    """
    import torch

    from stages.core.attention import collate, trained_states

    batch = collate([row], model.config._attn_implementation)
    batch = {
        name: tensor.to(model.device) if isinstance(tensor, torch.Tensor) else tensor for name, tensor in batch.items()
    }
    return trained_states(model, batch), batch["targets"]


class Reference:
    """The trained model's hidden states on `rows`.

    The model is the base in 4 bits with the adapter in fp32. It runs as in training, under bf16 autocast. The file for
    the states has no name, so nothing of it is left however the process ends.

    Args:
        wanted: Whether to keep the base's 4-bit values as `values`, which is empty otherwise.
    """

    def __init__(  # noqa: PLR0913, PLR0917 what it was trained from
        self,
        base: Path,
        adapter: Path,
        rows: list[dict],
        machine: ResolvedMachine,
        quantization: Quantization,
        wanted: bool = False,
    ):
        import numpy
        import torch
        from peft import PeftModel

        from stages.core.attention import register_varlen
        from stages.core.fused.layer import fuse

        register_varlen()
        model = load_model(base, machine, quantization, packed=True)
        self.values = base_values(model) if wanted else BaseValues({}, {})
        model = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=True).eval()
        if machine.sharding == "none":
            fuse(model)
        model = model.get_base_model()
        self.rows, self.head, self.device = rows, model.lm_head, model.device
        with tempfile.TemporaryFile(dir=adapter.parent) as file:
            shape = (count_targets(rows), model.config.hidden_size)
            # Reserves the space now: a full disk would later end the process by SIGBUS, without a message.
            os.posix_fallocate(file.fileno(), 0, reference_bytes(rows, model.config.hidden_size))
            self.states = torch.from_numpy(numpy.memmap(file, dtype="float32", shape=shape))
        done = 0
        with (
            progress("parity: as trained", count_conversations(rows), " conversations") as shown,
            torch.no_grad(),
            self.autocast(),
        ):
            for row in rows:
                states, _ = trained_positions(model, row)
                self.states[done : done + len(states)] = states.float().cpu()
                done += len(states)
                shown.advance(len(row["seq_lengths"]))

    def autocast(self) -> "torch.autocast":
        import torch

        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def log_probabilities(self, first: int, last: int) -> "torch.Tensor":
        """Log-probabilities at trained positions `first` to `last` of all rows. Shape (positions, vocabulary)."""
        with self.autocast():
            return self.head(self.states[first:last].to(self.device)).float().log_softmax(-1)


def compare(reference: Reference, model: "PreTrainedModel") -> dict[str, float]:
    """Compares a model with the reference: means over the trained tokens.

    Returns:
        Both losses in nats and their difference, the KL divergence in nats, the share of equal most likely tokens, and
        the numbers of tokens and of rows before packing. `judged` says whether there are enough rows for an interval of
        the difference, which `loss_gap_lo` and `loss_gap_hi` then have.
    """
    import numpy as np
    import torch

    gaps, counts = [], []
    sums = dict.fromkeys(("loss_trained", "loss_merged", "kl", "top1_agreement"), 0.0)
    done = 0
    with progress("parity: merged", count_conversations(reference.rows), " conversations") as shown, torch.no_grad():
        for row in reference.rows:
            states, targets = trained_positions(model, row)
            gap = torch.empty(len(states), dtype=torch.float64)
            first = done
            for part, target in zip(
                states.split(COMPARED_AT_ONCE), targets[:, None].split(COMPARED_AT_ONCE), strict=True
            ):
                merged = model.lm_head(part).float().log_softmax(-1)
                trained = reference.log_probabilities(done, done + len(part))
                of_trained, of_merged = trained.gather(1, target), merged.gather(1, target)
                gap[done - first : done - first + len(part)] = (of_trained - of_merged)[:, 0].cpu()
                sums["loss_trained"] -= of_trained.sum().item()
                sums["loss_merged"] -= of_merged.sum().item()
                sums["kl"] += (trained.exp() * (trained - merged)).sum().item()
                sums["top1_agreement"] += (trained.argmax(-1) == merged.argmax(-1)).sum().item()
                done += len(part)
            conversations = conversations_of_targets(row)
            gaps += np.bincount(conversations, weights=gap.numpy()).tolist()
            counts += np.bincount(conversations).tolist()
            shown.advance(len(row["seq_lengths"]))
    means = {name: value / done for name, value in sums.items()}
    measured = [(gap, count) for gap, count in zip(gaps, counts, strict=True) if count]
    interval = ratio_interval(*np.array(measured).T)
    ends = {"loss_gap_lo": interval[0], "loss_gap_hi": interval[1]} if interval else {}
    sizes = {"tokens": done, "rows": len(measured), "judged": interval is not None}
    return means | {"loss_gap": means["loss_merged"] - means["loss_trained"]} | ends | sizes


def merge_in_memory(model: "PreTrainedModel", plan: MergePlan) -> None:
    """Gives the 16-bit model the weights that a merge onto the 16-bit base would write."""
    tensors = plan.tensors()
    for name in plan.adapter:
        weight = model.get_submodule(name).weight.data
        for first, rows in merged_blocks(plan, name, OriginalWeight(tensors[name], plan.device)):
            weight[first : first + len(rows)] = rows
