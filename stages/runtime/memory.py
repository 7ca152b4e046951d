"""How much memory a training takes, and what it keeps there to be fast.

What a layer keeps for its backward pass is counted in stages/runtime/activations.py. Nothing here changes a trained
byte: what is not kept is computed again, to the same bits.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stages.core.machine import LOGIT_ROWS, ResolvedMachine
from stages.core.params import Lora, Quantization, Train
from stages.runtime.activations import Shape, adapted_projections, is_dora, is_fused, layer_activations, state_bytes
from stages.runtime.counts import plural

GIBIBYTE = 1 << 30
OVERHEAD = GIBIBYTE  # bytes of the CUDA context and its libraries' workspaces
MOMENT_BYTES = {"adamw": 8, "adamw_8bit": 2 + 8 / 256}  # AdamW's state a weight; 256 codes share a scale
SLACK = 1.1  # blocks of the allocator that are too small for what is asked of it
FIXED_SETTINGS = ("both", "activations", "weights", "low", "offload")  # the values of machine.memory except auto


@dataclass(frozen=True)
class MemoryPlan:
    """What stays in memory, and so is not computed again in each step.

    Args:
        activations: how many layers, counted from the last, keep what their backward pass needs, not only their input.
        weights: how many layers, counted from the last, keep their weights dequantized, in 2 bytes a weight.
        offload: whether the inputs of layers that keep no activations wait in the host's memory.
    """

    activations: int
    weights: int
    offload: bool = False

    def __str__(self) -> str:
        inputs = ", the layers' inputs in the host's memory" if self.offload else ""
        return f"activations of {plural(self.activations, 'layer')}, 16-bit weights of {self.weights}{inputs}"


@dataclass(frozen=True)
class Workload:
    """What a training computes, as far as its memory depends on it. row_length: tokens of the longest row."""

    shape: Shape
    quantization: Quantization
    lora: Lora
    train: Train
    machine: ResolvedMachine
    row_length: int

    @property
    def tokens(self) -> int:
        """Tokens of a full batch, all of them trained."""
        return self.train.batch_size * self.row_length

    @property
    def fused(self) -> bool:
        return is_fused(self.quantization, self.lora, self.machine)

    @property
    def adapted_widths(self) -> list[tuple[int, int]]:
        """(in, out) of the layers with an adapter in one decoder layer."""
        return [self.shape.widths[name] for name in adapted_projections(self.shape, self.lora)]

    def layer_bytes(self) -> int:
        """What one layer keeps for its backward pass, for a full batch."""
        return self.tokens * layer_activations(self.shape, self.quantization, self.lora, self.machine)


@dataclass(frozen=True)
class Estimate:
    """Bytes at the peak of a step.

    Args:
        base: the frozen weights.
        adapter: the trained weights.
        optimizer: AdamW's moments and the gradients.
        activations: those that are kept.
        layer: while one layer's gradients are computed.
        logits: while the loss is computed, with the states around it. It and `layer` take turns.
    """

    base: int
    adapter: int
    optimizer: int
    activations: int
    layer: int
    logits: int

    @property
    def total(self) -> int:
        return self.base + self.adapter + self.optimizer + self.activations + max(self.layer, self.logits)

    def fits(self, budget: int) -> bool:
        """Whether it fits `budget` bytes, with a margin."""
        return self.total * SLACK + OVERHEAD <= budget


def estimate_memory(workload: Workload, plan: MemoryPlan) -> Estimate:
    """The memory of a step on a full batch."""
    trained = workload.shape.layers * workload.lora.r * sum(a + b for a, b in workload.adapted_widths)
    return Estimate(
        base=base_bytes(workload, plan),
        adapter=4 * trained,
        optimizer=trained * MOMENT_BYTES[workload.train.optimizer] + 4 * trained,  # and the gradients in fp32
        activations=kept_bytes(workload, plan),
        layer=working_bytes(workload, plan),
        logits=logits_bytes(workload),
    )


def base_bytes(workload: Workload, plan: MemoryPlan) -> int:
    """The base in this process, with its embeddings."""
    shape, quantization = workload.shape, workload.quantization
    weights = shape.layers * sum(a * b for a, b in shape.widths.values())
    constants = (1 / 64 + 4 / (64 * 256)) if quantization.double_quant else 4 / 64  # bytes a weight
    embeddings = shape.vocabulary * shape.hidden * (1 if shape.tied else 2) + (2 * shape.layers + 1) * shape.hidden
    weight_bytes = {4: 0.5, 8: 1, 16: 2}[quantization.bits]
    held = plan.weights / shape.layers
    packed = weights * (2 * held + weight_bytes * (1 - held))
    if workload.machine.shards > 1:  # two layers are whole while one of them computes
        packed *= 1 / workload.machine.shards + 2 / shape.layers
    return int(packed + (weights * constants * (1 - held) if quantization.bits == 4 else 0)) + 2 * embeddings


def kept_bytes(workload: Workload, plan: MemoryPlan) -> int:
    """The layers' inputs, and the activations of those layers that keep them."""
    shape, lora = workload.shape, workload.lora
    inputs = 2 if plan.offload else shape.layers - plan.activations  # of the layer at work and of its neighbour
    kept = plan.activations * workload.layer_bytes()
    kept += inputs * state_bytes(workload.quantization, lora) * workload.tokens * shape.hidden
    if is_dora(lora) and lora.dropout:  # the base has a product of its own then, over weights in 16 bits
        kept += plan.activations * 2 * sum(a * b for a, b in workload.adapted_widths)
    return kept


def working_bytes(workload: Workload, plan: MemoryPlan) -> int:
    """While a layer's gradients are computed.

    That is: its activations if no layer kept any; in its MLP, four of the tensors between its products; the gradients
    around it; and a dequantized weight.
    """
    shape = workload.shape
    working = 0 if plan.activations else workload.layer_bytes()
    working += workload.tokens * 2 * (4 * shape.intermediate + shape.hidden)
    working += 0 if plan.weights == shape.layers else 2 * max(a * b for a, b in shape.widths.values())
    if is_dora(workload.lora):  # PEFT sends a unit matrix through the adapter, for the length of each row of weights
        working += max(6 * a * a + 16 * a * b for a, b in workload.adapted_widths)
    return working


def logits_bytes(workload: Workload) -> int:
    """While the loss is computed."""
    shape, tokens = workload.shape, workload.tokens
    ends = tokens * shape.hidden * (4 + 2 + 2 + 2)  # the last norm's input, its output, the gradients of both
    # Logits, the same in fp32, a temporary, probabilities. A plan may be made for a GPU elsewhere.
    return ends + min(LOGIT_ROWS["cuda"], tokens) * shape.vocabulary * (2 + 4 + 4 + 2)


def machine_memory() -> int:
    """Bytes that this machine, or its control group, gives to a process."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return total if text == "max" else min(total, int(text))


def device_memory(machine: ResolvedMachine) -> int:
    """All bytes of the device, whoever uses them now: the plan must not depend on a moment."""
    if not machine.on_cuda:
        return machine_memory()
    import torch

    return torch.cuda.get_device_properties(0).total_memory


def fixed_plan(setting: str, workload: Workload) -> MemoryPlan:
    """What a value of machine.memory other than auto keeps."""
    layers, fused = workload.shape.layers, workload.fused
    return MemoryPlan(
        activations=layers if setting in ("both", "activations") else 0,
        weights=layers if setting in ("both", "weights") and fused else 0,
        offload=setting == "offload" and fused,
    )


def choose_plan(setting: str, workload: Workload, budget: int, can_offload: bool = True) -> MemoryPlan:
    """What machine.memory says. For `auto`: as much as fits, or the least where even that doesn't fit.

    Activations come first. For a 7B on an H100, a gigabyte of them saves four times as much time as a gigabyte of
    weights. Weights save one dequantization a use, however many tokens there are.

    Args:
        setting: machine.memory.
        workload: what is trained.
        budget: bytes.
        can_offload: whether the host has memory other than that of the device, as with a GPU.
    """
    if setting != "auto":
        return fixed_plan(setting, workload)

    def fits(plan: MemoryPlan) -> bool:
        return estimate_memory(workload, plan).fits(budget)

    layers, fused = workload.shape.layers, workload.fused
    steps = range(layers, -1, -1) if fused else (layers, 0)
    activations = next((number for number in steps if fits(MemoryPlan(number, 0))), 0)
    if activations < layers or not fused:
        return MemoryPlan(activations, 0, offload=can_offload and fused and not fits(MemoryPlan(activations, 0)))
    return MemoryPlan(layers, next(number for number in steps if fits(MemoryPlan(layers, number))))


def pick_plan(setting: str, workload: Workload, smallest: Callable[[int], int]) -> MemoryPlan:
    """What machine.memory says for this device, the same in all processes. Prints it.

    Args:
        setting: machine.memory.
        workload: what is trained.
        smallest: returns the smallest of the processes' numbers.
    """
    machine, budget = workload.machine, device_memory(workload.machine)
    plan = choose_plan(setting, workload, budget, can_offload=machine.on_cuda)
    if machine.sharding == "fsdp":  # a layer is gathered equally often in every process, whatever its memory
        plan = MemoryPlan(smallest(plan.activations), 0)
    print(
        f"train: machine.memory {setting} keeps {plan}; the rest is computed again "
        "(python -m stages.train --plan says why)",
        flush=True,
    )
    estimate = estimate_memory(workload, plan)
    if machine.on_cuda and not estimate.fits(budget):  # no error: it is an estimate
        print(
            f"train: that needs about {(estimate.total * SLACK + OVERHEAD) / GIBIBYTE:.1f} GiB of the GPU's "
            f"{budget / GIBIBYTE:.1f}. If it runs out of memory, lower train.batch_size or tokenize.max_length",
            flush=True,
        )
    return plan
