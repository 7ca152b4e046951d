"""The curves while a training runs."""

import time

from transformers import TrainerCallback

from stages._train.metrics import curves
from stages.core.paths import write_text

EVERY = 5.0  # seconds between two writes


class LiveCurves(TrainerCallback):
    """Writes the curves' files again every few seconds, for `dvc plots show` and whoever reads them. They are whole at
    any time, and not yet the stage's result: DVC takes outs of stages that ended well only."""

    def __init__(self) -> None:
        self.written, self.failed = time.monotonic(), False

    def on_log(self, args, state, control, **_):
        if state.is_world_process_zero and time.monotonic() - self.written >= EVERY:
            try:
                for path, text in curves(state.log_history).items():
                    write_text(path, text)
            except OSError as error:  # hours of training are worth more than a look at them
                if not self.failed:
                    print(f"train: the curves cannot be shown ({error}); the training goes on", flush=True)
                self.failed = True
            self.written = time.monotonic()
