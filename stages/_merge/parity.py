"""How far a merged model is from the one that was trained: loss, Kullback-Leibler divergence, and the top token.

One model is in memory at a time. Of the trained one its last hidden states are kept in a file, and its head: of width
4,096 and 32,768 tokens, the log-probabilities themselves would take eight times that.
"""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from stages._merge.stream import MergePlan, merged_blocks
from stages._merge.weights import OriginalWeight
from stages.core.models import load_model
from stages.core.params import Machine, Quantization
from stages.core.prompts import IGNORED
from stages.core.quantization import Values, values_of
from stages.runtime.progress import progress

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

CHUNK = 512  # positions whose logits exist at one time


def count_targets(rows: list[dict]) -> int:
    return sum(label != IGNORED for row in rows for label in row["labels"][1:])


def reference_bytes(rows: list[dict], width: int) -> int:
    """Of the hidden states at the trained positions, in fp32."""
    return 4 * width * count_targets(rows)


def trained_positions(model: "PreTrainedModel", row: dict) -> "tuple[torch.Tensor, torch.Tensor]":
    """The last hidden states (positions, width) from which trained tokens are predicted, and those tokens."""
    import torch

    from stages.core.attention import collate, trained_states

    batch = collate([row], model.config._attn_implementation)
    batch = {
        name: tensor.to(model.device) if isinstance(tensor, torch.Tensor) else tensor for name, tensor in batch.items()
    }
    return trained_states(model, batch), batch["targets"]


class Reference:
    """The model as it was trained, on `rows`: the base in 4 bits, the adapter in fp32, training's own passes under bf16
    autocast. `values`: the base's in 4 bits, if they were `wanted`.

    The file for its hidden states has no name, so nothing is left of it however the process ends.
    """

    def __init__(  # noqa: PLR0913, PLR0917 what it was trained from
        self,
        base: Path,
        adapter: Path,
        rows: list[dict],
        machine: Machine,
        quantization: Quantization,
        wanted: bool = False,
    ):
        import numpy
        import torch
        from peft import PeftModel

        from stages.core.attention import register
        from stages.core.fused.layer import fuse

        register()
        model = load_model(base, machine, quantization, packed=True)
        self.values = values_of(model) if wanted else Values({}, {})
        model = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=True).eval()
        if machine.sharding == "none":
            fuse(model)
        model = model.get_base_model()
        self.rows, self.head, self.device = rows, model.lm_head, model.device
        with tempfile.TemporaryFile(dir=adapter.parent) as file:
            shape = (count_targets(rows), model.config.hidden_size)
            # A mapped file whose room runs out later would end the process by SIGBUS, without a word.
            os.posix_fallocate(file.fileno(), 0, reference_bytes(rows, model.config.hidden_size))
            self.states = torch.from_numpy(numpy.memmap(file, dtype="float32", shape=shape))
        done = 0
        with progress("parity: as trained", len(rows), " rows") as shown, torch.no_grad(), self.autocast():
            for row in rows:
                states, _ = trained_positions(model, row)
                self.states[done : done + len(states)] = states.float().cpu()
                done += len(states)
                shown.advance()

    def autocast(self) -> "torch.autocast":
        import torch

        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def log_probabilities(self, first: int, last: int) -> "torch.Tensor":
        """At these of the trained positions of all rows. Shape (positions, vocabulary)."""
        with self.autocast():
            return self.head(self.states[first:last].to(self.device)).float().log_softmax(-1)


def compare(reference: Reference, model: "PreTrainedModel") -> dict[str, float]:
    """Means over the trained tokens: both losses in nats and their difference, the KL divergence, the share of equal
    most likely tokens."""
    import torch

    sums = dict.fromkeys(("loss_trained", "loss_merged", "kl", "top1_agreement"), 0.0)
    done = 0
    with progress("parity: merged", len(reference.rows), " rows") as shown, torch.no_grad():
        for row in reference.rows:
            states, targets = trained_positions(model, row)
            for part, target in zip(states.split(CHUNK), targets[:, None].split(CHUNK), strict=True):
                merged = model.lm_head(part).float().log_softmax(-1)
                trained = reference.log_probabilities(done, done + len(part))
                sums["loss_trained"] -= trained.gather(1, target).sum().item()
                sums["loss_merged"] -= merged.gather(1, target).sum().item()
                sums["kl"] += (trained.exp() * (trained - merged)).sum().item()
                sums["top1_agreement"] += (trained.argmax(-1) == merged.argmax(-1)).sum().item()
                done += len(part)
            shown.advance()
    means = {name: value / done for name, value in sums.items()}
    return means | {"loss_gap": means["loss_merged"] - means["loss_trained"], "tokens": done}


def merge_in_memory(model: "PreTrainedModel", plan: MergePlan) -> None:
    """Gives the 16-bit model the weights that a merge onto the 16-bit base would write."""
    tensors = plan.tensors()
    for name in plan.adapter:
        weight = model.get_submodule(name).weight.data
        for first, rows in merged_blocks(plan, name, OriginalWeight(tensors[name], plan.device)):
            weight[first : first + len(rows)] = rows
