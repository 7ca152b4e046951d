"""`python -m stages.train --plan [GIB]`: how much memory the training will take, before anything is loaded."""

from collections.abc import Iterator

from stages.core.machine import resolve_machine
from stages.core.params import Params
from stages.runtime.base_shape import named_base
from stages.runtime.counts import plural
from stages.runtime.memory import (
    FIXED_SETTINGS,
    GIBIBYTE,
    OVERHEAD,
    Estimate,
    MemoryPlan,
    Workload,
    choose_plan,
    device_memory,
    estimate_memory,
    fixed_plan,
)

NO_GPU = (
    "This machine has no GPU, so the plan is compared with all of its RAM, which other programs use too. For a GPU "
    "give its GiB: python -m stages.train --plan 24"
)
TABLE_COLUMNS = ("base", "adapter", "optimizer", "activations", "layer", "logits", "total")


def plan_table(params: Params, budget: int | None = None) -> str:
    """A table in GiB of the values of machine.memory.

    Args:
        params: the values of params.yaml.
        budget: bytes. None: the memory of this machine's device.

    Raises:
        UserError: the sizes of the base that params.yaml names are not known (see named_base()).
    """
    base = named_base(params.model)
    machine = resolve_machine(params.machine, params.train.gradient_accumulation_steps)
    # A training looks at its longest row. The rows may not be there yet.
    length = params.tokenize.max_length
    workload = Workload(base.shape, params.quantization, params.lora, params.train, machine, length)
    on_gpu = machine.on_cuda or budget is not None  # who names a budget asks about a GPU elsewhere
    source = "a GPU" if budget is not None else "this GPU" if machine.on_cuda else "this machine's RAM"
    budget = device_memory(machine) if budget is None else budget
    packed = machine.packed_attention == "varlen"
    attention = "attention without padding" if packed else "sdpa or eager attention"
    plans = {"auto": choose_plan("auto", workload, budget, on_gpu)}
    plans |= {setting: fixed_plan(setting, workload) for setting in FIXED_SETTINGS}
    lines = [
        *([] if on_gpu else [NO_GPU]),
        base.origin,
        f"{plural(params.train.batch_size, 'row')} of {plural(length, 'token')} in a forward pass, "
        f"lora.r {params.lora.r}, {attention}; GiB",
        f"{'memory':<12}" + "".join(f"{column:>12}" for column in TABLE_COLUMNS),
        *table_lines(workload, plans, params.machine.memory, budget, on_gpu),
        "Only the larger one of layer (while its gradients are computed) and logits counts, since they take turns\n"
        f"Compared with {source} of {budget / GIBIBYTE:.1f} GiB, less {OVERHEAD / GIBIBYTE:.0f} GiB and a tenth for "
        "libraries and the allocator. The trained bytes are the same in every row",
    ]
    return "\n".join(lines)


def table_lines(
    workload: Workload, plans: dict[str, MemoryPlan], current: str, budget: int, on_gpu: bool
) -> Iterator[str]:
    """A line for each of the plans, by value of machine.memory, and advice where none fits.

    Args:
        workload: what is trained.
        plans: by value of machine.memory.
        current: that value now.
        budget: bytes.
        on_gpu: whether they are a GPU's. Other memory is not all for the training, so nothing is promised.
    """
    estimates = {setting: estimate_memory(workload, plan) for setting, plan in plans.items()}
    for setting, estimate in estimates.items():
        verdict = ("fits" if on_gpu else "less than the RAM") if estimate.fits(budget) else "does not fit"
        mark = " ← taken" if setting == current else ""
        yield table_line(setting, estimate, f"{verdict}: {plans[setting]}{mark}")
    if not any(estimate.fits(budget) for estimate in estimates.values()):
        yield batch_advice(workload, budget)


def table_line(setting: str, estimate: Estimate, verdict: str) -> str:
    figures = "".join(f"{getattr(estimate, column) / GIBIBYTE:>12.2f}" for column in TABLE_COLUMNS)
    return f"{setting:<12}{figures}   {verdict}"


def batch_advice(workload: Workload, budget: int) -> str:
    """Names the largest batch that would fit."""
    for rows in range(workload.train.batch_size - 1, 0, -1):
        train = workload.train.model_copy(update={"batch_size": rows})
        smaller = Workload(**vars(workload) | {"train": train})
        if estimate_memory(smaller, fixed_plan("offload", smaller)).fits(budget):
            return f"None of them fits. train.batch_size: {rows} is the largest that does, with machine.memory: auto"
    return "None of them fits, with no train.batch_size. Lower tokenize.max_length, or take a smaller base"
