"""`python -m stages.train --plan [GIB]`: what the training will take of memory, before anything is loaded."""

from stages.core.models import pick_attention, pick_device
from stages.core.params import Params
from stages.core.paths import BASE, read_json
from stages.runtime.errors import UserError
from stages.runtime.memory import (
    GIB,
    OVERHEAD,
    PINNED,
    Estimate,
    Shape,
    choose,
    device_memory,
    estimate,
    pinned,
    shape_of,
)

PARTS = ("base", "adapter", "optimizer", "activations", "layer", "logits")


def line(name: str, parts: Estimate, verdict: str) -> str:
    figures = "".join(f"{getattr(parts, part) / GIB:>12.2f}" for part in (*PARTS, "total"))
    return f"{name:<12}{figures}   {verdict}"


def advice(shape: Shape, everything: Params, length: int, varlen: bool, budget: int) -> str:
    """Where no setting fits: the largest batch that would."""
    for rows in range(everything.train.batch_size - 1, 0, -1):
        smaller = everything.model_copy(update={"train": everything.train.model_copy(update={"batch_size": rows})})
        if estimate(shape, smaller, pinned("offload", shape, smaller), length, varlen).fits(budget):
            return f"None of them fits. train.batch_size: {rows} is the largest that does, with machine.memory: auto"
    return "None of them fits, with no train.batch_size. Lower tokenize.max_length, or take a smaller base"


def plan(everything: Params, budget: int | None = None) -> str:
    """A table in GiB of the values of machine.memory. budget: bytes; without it the memory of this device.

    Raises:
        UserError: there is no models/base/config.json.
    """
    if not (BASE / "config.json").exists():
        raise UserError(f"{BASE / 'config.json'} is missing. Run `dvc repro download_model` first")
    length = everything.tokenize.max_length  # a training looks at its rows; these may not be there yet
    shape = shape_of(read_json(BASE / "config.json"))
    cuda = pick_device(everything.machine).type == "cuda"
    varlen = pick_attention(everything.machine, packed=True) == "varlen"
    gpu = cuda or budget is not None  # whoever names a budget asks about a GPU elsewhere
    where = "a budget" if budget is not None else "this GPU" if cuda else "this machine's memory"
    budget = device_memory(cuda) if budget is None else budget
    lines = [
        f"{everything.train.batch_size} rows of {length} tokens in a forward pass, "
        f"lora.r {everything.lora.r}, {'varlen' if varlen else 'sdpa or eager'} attention; GiB",
        f"{'memory':<12}" + "".join(f"{part:>12}" for part in (*PARTS, "total")),
    ]
    automatic = everything.model_copy(update={"machine": everything.machine.model_copy(update={"memory": "auto"})})
    choices = {"auto": choose(shape, automatic, length, varlen, budget, gpu)}
    for name, keep in (choices | {name: pinned(name, shape, everything) for name in PINNED}).items():
        parts = estimate(shape, everything, keep, length, varlen)
        verdict = "fits" if parts.fits(budget) else "does not fit"
        taken = " ← taken" if name == everything.machine.memory else ""
        lines.append(line(name, parts, f"{verdict}: {keep}{taken}"))
    if not any("   fits: " in row for row in lines):
        lines.append(advice(shape, everything, length, varlen, budget))
    lines.append(
        "Of layer (what one needs while its gradients are computed) and logits the larger one counts: they take turns\n"
        f"Beside {where} of {budget / GIB:.1f} GiB, with {OVERHEAD / GIB:.0f} GiB and a tenth left for CUDA and the "
        "allocator. In every row the trained bytes are the same",
    )
    return "\n".join(lines)


def budget_of(arguments: list[str]) -> int | None:
    """Bytes, from the arguments after --plan."""
    if not arguments:
        return None
    try:
        (text,) = arguments
        return int(float(text) * GIB)
    except ValueError:
        raise UserError(f"--plan takes a number of GiB or nothing (it was given {' '.join(arguments)})") from None
