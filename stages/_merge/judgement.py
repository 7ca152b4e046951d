"""Whether the merged model is the one that was trained, as far as the compared rows can tell."""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from stages._merge.stream import MergePlan
from stages.core.machine import ResolvedMachine
from stages.core.models import free, load_model
from stages.core.params import Merge
from stages.core.paths import BASE, write_json
from stages.runtime.counts import plural
from stages.runtime.errors import UserError

if TYPE_CHECKING:
    from stages._merge.parity import Reference

# Where a failed merge leaves its figures. DVC knows nothing of it.
MEASURED = Path(os.environ.get("DVC_ROOT", "."), "logs/merge-parity.json")


def compare_both(
    plan: MergePlan, reference: "Reference", folder: Path, merge: Merge, machine: ResolvedMachine
) -> tuple[dict, dict]:
    """Compares the merged model in `folder`, and the merge onto the 16-bit weights, with the trained model.

    Returns:
        (parity of the merged model, parity of the other merge), both as compare() gives them.

    Raises:
        UserError: The merged model is not the trained one.
    """
    from stages._merge.parity import compare, merge_in_memory

    free()
    parity = compare(reference, load_model(folder, machine))
    check_divergence(parity, merge)
    free()
    if merge.base == "original":
        return parity, parity
    naive = load_model(BASE, machine)
    merge_in_memory(naive, plan)
    return parity, compare(reference, naive)


def check_divergence(parity: dict, merge: Merge) -> None:
    """Checks the merged model's KL divergence from the trained one against merge.max_kl.

    The divergence decides, not the loss: two losses may agree by luck, and few rows say little about their difference.
    A KL divergence is never negative, so its mean cannot cancel out.

    Raises:
        UserError: It is above its bound, or not a number. What was measured is in MEASURED.
    """
    if parity["kl"] <= merge.max_kl:  # NaN is not
        return
    write_json(MEASURED, {name: value if math.isfinite(value) else str(value) for name, value in parity.items()})
    raise UserError(
        f"the merged model's predictions are {parity['kl']:.5f} nats a token (KL) from the trained one's, more than "
        f"merge.max_kl ({merge.max_kl}). The adapter is kept, and {MEASURED} has what was measured. With merge.base: "
        "dequantized the divergence should be near 0. A merge onto the original weights is not the model that was "
        "trained, so it needs a larger bound"
    )


def judge_loss_gap(parity: dict, merge: Merge) -> str:
    """What a user should know about the loss gap, or an empty text.

    A gap is too large only where its interval leaves out merge.max_loss_gap: a few rows can differ by chance.
    """
    tokens = f"{plural(parity['tokens'], 'token')} of {plural(parity['rows'], 'conversation')}"
    if not parity["judged"]:
        return f"measured on {tokens}: too few to judge the loss, KL {parity['kl']:.5f} is within merge.max_kl"
    low, high = parity["loss_gap_lo"], parity["loss_gap_hi"]
    if low > merge.max_loss_gap or high < -merge.max_loss_gap:
        return (
            f"the merged model's loss on {tokens} is {parity['loss_gap']:+.5f} nats a token from the trained one's "
            f"(95 % interval {low:+.5f} to {high:+.5f}), more than merge.max_loss_gap ({merge.max_loss_gap}). KL "
            f"{parity['kl']:.5f} is within merge.max_kl, so the stage continues. Look at the report before you use it"
        )
    return ""
