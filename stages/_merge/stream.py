"""The merge itself: adds the adapter to the weights of models/base, and writes them to files with the same names."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages._merge.adapter import Adapter
from stages._merge.four_bit import FourBitWeight
from stages._merge.weights import OriginalWeight, StoredTensor, TargetFile, copy_tensor, stored_tensors, write_header
from stages.core.params import Quantization
from stages.core.paths import read_json
from stages.core.quantization import BaseValues, raw_bytes
from stages.runtime.errors import UserError
from stages.runtime.progress import progress

if TYPE_CHECKING:
    import torch

MOST_WORKERS = 8  # each holds a weight in 4 bits and a block of it in fp32; with more, the disk is the limit


@dataclass(frozen=True)
class MergePlan:
    """What is merged onto what.

    Args:
        trained: The 4-bit values of the modules that the adapter was trained on. Empty for a merge onto 16-bit weights.
    """

    base: Path
    adapter: Adapter
    quantization: Quantization
    trained: BaseValues
    device: "torch.device | str"

    def tensors(self) -> dict[str, StoredTensor]:
        """{module: its weight}. Tensors that are no module's weight have their own names as keys.

        Raises:
            UserError: The base has no weight of its own for a module that the adapter, or its training, changed.
        """
        weights = [stored for path in weight_shards(self.base) for stored in stored_tensors(path)]
        tensors = {stored.name.removesuffix(".weight"): stored for stored in weights}
        tied = {"lm_head"} if read_json(self.base / "config.json").get("tie_word_embeddings") else set()
        for name in (*self.adapter, *self.trained.hashes):
            if name not in tensors or name in tied:
                why = "shares its weight with the embeddings" if name in tied else "is not in the base's weights"
                raise UserError(f"the adapter was trained on {name}, which {why}. Set lora.target_modules, train again")
        return tensors


def weight_shards(base: Path) -> list[Path]:
    """The base's safetensors files, sorted."""
    return sorted(base.glob("*.safetensors"))


def merged_blocks(
    plan: MergePlan, name: str, values: "OriginalWeight | FourBitWeight"
) -> "Iterator[tuple[int, torch.Tensor]]":
    """Yields (first row, rows) of a module's weight after the merge, in the dtype of the file.

    The sum is taken in fp32 and rounded once.
    """
    import torch

    from stages._merge.weights import DTYPES

    stored = values.stored
    update = plan.adapter.update(name, stored.shape, plan.device) if name in plan.adapter else None
    for first, rows in values.blocks():
        merged = update.apply(rows.float(), first) if update else rows
        yield first, merged.to(getattr(torch, DTYPES[stored.dtype]))


@dataclass(frozen=True)
class ValueDifference:
    """A module whose 4-bit values are not those of training, by a sample of its values.

    Args:
        share: The share of sampled values that differ.
        largest: The largest distance, as a share of the largest value.
    """

    module: str
    share: float
    largest: float


def value_differences(merged: BaseValues, trained: BaseValues) -> list[ValueDifference]:
    """The modules in `merged` whose 4-bit values are not those of training."""
    import torch

    different = []
    for name, digest in merged.hashes.items():
        if digest != trained.hashes[name]:
            here, there = merged.samples[name].float(), trained.samples[name].float()
            distance = (here - there).abs()
            largest = there.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
            share = (distance > 0).float().mean().item()
            different.append(ValueDifference(name, share, (distance.max() / largest).item()))
    return different


def write_tensor(plan: MergePlan, name: str, stored: StoredTensor, target: TargetFile) -> BaseValues:
    """Writes one tensor into the open file. Returns its 4-bit values, or empty ones where it had none."""
    import torch

    if name not in plan.adapter and name not in plan.trained.hashes:
        copy_tensor(stored, target)
        return BaseValues({}, {})
    four_bit = None
    if name in plan.trained.hashes:
        four_bit = FourBitWeight(stored, plan.device, plan.quantization)
    position = stored.start
    for _, rows in merged_blocks(plan, name, four_bit or OriginalWeight(stored, plan.device)):
        data = raw_bytes(rows)
        target.put(data, position)
        position += len(data)
    if not four_bit:
        return BaseValues({}, {})
    return BaseValues({name: four_bit.digest.hexdigest()}, {name: torch.cat(four_bit.sample)})


@contextmanager
def worker_threads() -> Iterator[ThreadPoolExecutor]:
    """Yields an executor with one thread a core.

    PyTorch runs single-threaded inside each, so they rarely wait for another.
    """
    import torch

    before = torch.get_num_threads()
    executor = ThreadPoolExecutor(min(before, MOST_WORKERS))
    torch.set_num_threads(1)  # new threads inherit it
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def write_merged(plan: MergePlan, folder: Path) -> list[ValueDifference]:
    """Writes the merged weights to `folder`. Returns the modules whose 4-bit values are not those of training."""
    import bitsandbytes  # noqa: F401  (before the threads: one would import it, and the others see it half-loaded)

    tensors = plan.tensors()
    with ExitStack() as stack:
        targets = {}
        for path in weight_shards(plan.base):
            write_header(path, folder / path.name)
            targets[path] = TargetFile(stack.enter_context(open(folder / path.name, "r+b", buffering=0)).fileno())
        executor = stack.enter_context(worker_threads())
        shown = stack.enter_context(progress("merge", len(tensors), " tensors"))

        def write(name: str) -> BaseValues:
            return write_tensor(plan, name, tensors[name], targets[tensors[name].path])

        different = []
        for values in executor.map(write, tensors):
            different += value_differences(values, plan.trained)
            shown.advance()
    return different
