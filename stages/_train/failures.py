"""What PyTorch raises in the middle of a training, in words that say what to do."""

from stages.shared.errors import UserError


def in_words(error: Exception, step: int, next_run: str) -> UserError | None:
    """None for an error that nothing in params.yaml could mend. next_run: where the next run goes on from."""
    import torch

    text = str(error)
    # The latter is what PyTorch says on the CPU.
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
        return UserError(
            f"out of memory in step {step} ({error}). {next_run}. Give it more memory, or set machine.memory: offload, "
            "which keeps the checkpoints; or it needs less with a smaller train.batch_size or tokenize.max_length, "
            "but each of these starts the training afresh"
        )
    if torch.are_deterministic_algorithms_enabled() and "deterministic" in text:
        return UserError(
            f"step {step} needs an operation that gives other bits each time on this device "
            f"({text.partition(', but')[0]}), and train.deterministic is true. Set it to false, which starts the "
            "training afresh; two runs then end with slightly different adapters"
        )
    return None
