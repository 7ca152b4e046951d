"""What PyTorch raises in the middle of a training, explained with what to do."""

import contextlib
from collections.abc import Callable, Iterator

from stages.runtime.errors import UserError

# What PyTorch says on the CPU, and what CUDA and cuBLAS say.
OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED")


@contextlib.contextmanager
def explained_failures(when: Callable[[], str], next_run: Callable[[], str]) -> Iterator[None]:
    """Explains the errors inside the block that params.yaml can mend.

    Args:
        when: returns when it happened, such as "in step 3".
        next_run: returns a sentence that says where the next run continues.

    Raises:
        UserError: memory ran out, or an operation cannot be deterministic.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if explained := explain_failure(error, when(), next_run()):
            raise explained from None
        raise


def explain_failure(error: Exception, when: str, next_run: str) -> UserError | None:
    """None for an error that nothing in params.yaml can mend."""
    import torch

    text = str(error)
    if isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY):
        return UserError(
            f"out of memory {when} ({error}). {next_run}. Give it more memory, or find a machine.memory that needs "
            "less with `python -m stages.train --plan`: changing that keeps the checkpoints. A smaller "
            "train.batch_size or tokenize.max_length needs less too, but starts the training afresh"
        )
    if torch.are_deterministic_algorithms_enabled() and "deterministic" in text:
        return UserError(
            f"an operation {when} gives other bits each time on this device ({text.partition(', but')[0]}), and "
            "train.deterministic is true. Set it to false. That starts the training afresh, and two runs then end with "
            "slightly different adapters"
        )
    return None
