"""The merge itself: every weight of models/base, with what the adapter does to it, into a folder of the same files."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages._merge.adapter import Adapter
from stages._merge.four_bit import FourBit
from stages._merge.weights import Original, Stored, Target, copy, start_file, stored_tensors
from stages.core.params import Quantization
from stages.core.paths import read_json
from stages.core.quantization import Values, raw_bytes
from stages.runtime.errors import UserError
from stages.runtime.progress import progress

if TYPE_CHECKING:
    import torch

MOST_WORKERS = 8  # each holds a weight in 4 bits and a block of it in fp32; by then the disk is the limit


@dataclass(frozen=True)
class Plan:
    """What is merged onto what.

    trained: the values of those modules that the adapter was trained on in 4 bits; of none for a merge onto the 16-bit
    weights.
    """

    base: Path
    adapter: Adapter
    quantization: Quantization
    trained: Values
    device: "torch.device | str"

    def tensors(self) -> dict[str, Stored]:
        """{module: its weight}, and the other tensors under their own names.

        Raises:
            UserError: the base has no weight for something that the adapter, or its training, changed.
        """
        found = [stored for path in shards(self.base) for stored in stored_tensors(path)]
        tensors = {stored.name.removesuffix(".weight"): stored for stored in found}
        tied = {"lm_head"} if read_json(self.base / "config.json").get("tie_word_embeddings") else set()
        for name in (*self.adapter, *self.trained.hashes):
            if name not in tensors or name in tied:
                why = "shares its weight with the embeddings" if name in tied else "is not in the base's weights"
                raise UserError(f"the adapter was trained on {name}, which {why}. Set lora.target_modules, train again")
        return tensors


def shards(base: Path) -> list[Path]:
    return sorted(base.glob("*.safetensors"))


def merged_blocks(plan: Plan, name: str, values: "Original | FourBit") -> "Iterator[tuple[int, torch.Tensor]]":
    """(first row, rows) of a module's weight after the merge, in the dtype of the file.

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
class Difference:
    """A module whose 4-bit values are not those of training. Of a sample of its values: the share of other ones, and
    the largest distance, as a share of the largest value."""

    module: str
    share: float
    largest: float


def differences(found: Values, trained: Values) -> list[Difference]:
    """Of the modules in `found`."""
    import torch

    different = []
    for name, digest in found.hashes.items():
        if digest != trained.hashes[name]:
            here, there = found.samples[name].float(), trained.samples[name].float()
            distance = (here - there).abs()
            largest = there.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
            share = (distance > 0).float().mean().item()
            different.append(Difference(name, share, (distance.max() / largest).item()))
    return different


def write_tensor(plan: Plan, name: str, stored: Stored, target: Target) -> Values:
    """Writes one tensor into the open file, and returns its values in 4 bits, if it had such."""
    import torch

    if name not in plan.adapter and name not in plan.trained.hashes:
        copy(stored, target)
        return Values({}, {})
    four_bit = None
    if name in plan.trained.hashes:
        four_bit = FourBit(stored, plan.device, plan.quantization)
    position = stored.start
    for _, rows in merged_blocks(plan, name, four_bit or Original(stored, plan.device)):
        data = raw_bytes(rows)
        target.put(data, position)
        position += len(data)
    if not four_bit:
        return Values({}, {})
    return Values({name: four_bit.digest.hexdigest()}, {name: torch.cat(four_bit.sample)})


@contextmanager
def workers() -> Iterator[ThreadPoolExecutor]:
    """A thread a core, each with its own tensors and no threads inside: they wait for one another less that way."""
    import torch

    before = torch.get_num_threads()
    executor = ThreadPoolExecutor(min(before, MOST_WORKERS))
    torch.set_num_threads(1)  # which a new thread takes over
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def write_merged(plan: Plan, folder: Path) -> list[Difference]:
    """Writes the weights to `folder`, and returns the modules whose 4-bit values are not those of training."""
    import bitsandbytes  # noqa: F401  (before the threads do: to the others it would be there with half its kernels)

    tensors = plan.tensors()
    with ExitStack() as stack:
        targets = {}
        for path in shards(plan.base):
            start_file(path, folder / path.name)
            targets[path] = Target(stack.enter_context(open(folder / path.name, "r+b", buffering=0)).fileno())
        executor = stack.enter_context(workers())
        shown = stack.enter_context(progress("merge", len(tensors), " tensors"))

        def write(name: str) -> Values:
            return write_tensor(plan, name, tensors[name], targets[tensors[name].path])

        different = []
        for found in executor.map(write, tensors):
            different += differences(found, plan.trained)
            shown.advance()
    return different
