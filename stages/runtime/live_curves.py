"""The curves while a training runs."""

import time
from collections.abc import Callable
from pathlib import Path

from transformers import TrainerCallback

from stages.core.paths import write_text

WRITE_SECONDS = 5.0  # between two writes


class LiveCurves(TrainerCallback):
    """Writes the curves' files again every few seconds, for `dvc plots show` and other readers.

    The files are whole at any time. They become the stage's result only when it ends well: DVC takes no others.

    Args:
        curves: makes {file: CSV text} from the trainer's log.
    """

    def __init__(self, curves: Callable[[list[dict]], dict[Path, str]]) -> None:
        self.curves = curves
        self.written, self.failed = time.monotonic(), False

    def on_log(self, args, state, control, **_):
        if state.is_world_process_zero and time.monotonic() - self.written >= WRITE_SECONDS:
            try:
                for path, text in self.curves(state.log_history).items():
                    write_text(path, text)
            except OSError as error:  # hours of training are worth more than a look at them
                if not self.failed:
                    print(f"train: the curves cannot be shown ({error}); the training continues", flush=True)
                self.failed = True
            self.written = time.monotonic()
