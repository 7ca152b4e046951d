"""What PyTorch raises in the middle of a training, in words that say what to do."""

import contextlib
from collections.abc import Callable, Iterator

from stages.runtime.errors import UserError

# What PyTorch says on the CPU, and what CUDA and cuBLAS do.
OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED")


@contextlib.contextmanager
def in_words(when: Callable[[], str], next_run: Callable[[], str]) -> Iterator[None]:
    """when: such as "in step 3". next_run: where the next run goes on from."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if known := told(error, when(), next_run()):
            raise known from None
        raise


def told(error: Exception, when: str, next_run: str) -> UserError | None:
    """None for an error that nothing in params.yaml could mend."""
    import torch

    text = str(error)
    if isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY):
        return UserError(
            f"out of memory {when} ({error}). {next_run}. Give it more memory; or see with `python -m stages.train "
            "--plan` whether another machine.memory needs less, which keeps the checkpoints. A smaller "
            "train.batch_size or tokenize.max_length needs less too, but starts the training afresh"
        )
    if torch.are_deterministic_algorithms_enabled() and "deterministic" in text:
        return UserError(
            f"an operation {when} gives other bits each time on this device ({text.partition(', but')[0]}), and "
            "train.deterministic is true. Set it to false, which starts the training afresh; two runs then end with "
            "slightly different adapters"
        )
    return None
