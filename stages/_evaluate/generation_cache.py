"""Answers of a generation that was stopped, so that the next one goes on behind them.

One file a batch, since an answer's bits depend on what it was padded to: what is kept is what would be made again.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from stages._evaluate import generation
from stages.core import decoding, models
from stages.core.code_hash import module_hash
from stages.core.params import Evaluate
from stages.core.paths import write_text
from stages.runtime.runner import file_state

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CODE = (generation, decoding, models)
ABANDONED_AFTER = 7 * 24 * 3600  # seconds after which nobody comes back for them


def cache_root() -> Path:
    """Beside the checkpoints: in the original repository in `--temp` and queue runs too, and ignored by Git."""
    return Path(os.environ.get("DVC_ROOT", "."), ".dvc", "tmp", "generated")


def generation_fingerprint(weights: Path, model: "PreTrainedModel", prompts: list[list[int]], params: Evaluate) -> str:
    """All that shapes the answers."""
    inputs = {
        "weights": [[path.name, *file_state(path)] for path in sorted(weights.iterdir()) if path.is_file()],
        "model": [str(model.device.type), str(model.dtype), model.config._attn_implementation],
        "prompts": prompts,
        "params": [params.max_new_tokens, params.batch_size],
        "code": [module_hash(Path(module.__file__)) for module in CODE],
        "versions": [importlib.metadata.version(name) for name in ("torch", "transformers")],
    }
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


class GenerationCache:
    """The batches of one generation, by their numbers, each a list of answers in token ids.

    Another process may make the same ones at the same time, and forget them when it is through with them.
    """

    def __init__(self, digest: str):
        self.folder = cache_root() / digest
        self.tokens = 0  # in the answers that were there already

    def __getitem__(self, number: int) -> list[list[int]] | None:
        try:
            answers = json.loads((self.folder / f"{number:06}.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        self.tokens += sum(map(len, answers))
        return answers

    def __setitem__(self, number: int, answers: list[list[int]]) -> None:
        own = self.folder / f"{number:06}.{os.getpid()}"
        with contextlib.suppress(FileNotFoundError, FileExistsError):  # just forgotten: at worst it is made again
            write_text(own, json.dumps(answers))
            own.rename(own.with_suffix(".json"))

    def remove(self) -> None:
        """These, and what no run has come back for."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for folder in self.folder.parent.glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - folder.stat().st_mtime > ABANDONED_AFTER:
                    shutil.rmtree(folder, ignore_errors=True)
