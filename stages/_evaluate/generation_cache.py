"""Keeps the answers of a stopped generation, so that the next run continues after them.

There is one file a batch, because an answer's bits depend on its padding. A kept batch has the bits that a new
generation would have.
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

from stages.core.code_hash import stage_hashes
from stages.core.params import Evaluate
from stages.core.paths import write_text
from stages.runtime.runner import file_state

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ABANDONED_AFTER = 7 * 24 * 3600  # seconds; an older generation is not continued


def cache_root() -> Path:
    """The folder of all caches, which Git ignores. `--temp` and queue runs use that of the original repository too."""
    return Path(os.environ.get("DVC_ROOT", "."), ".dvc", "tmp", "generated")


def generation_fingerprint(weights: Path, model: "PreTrainedModel", prompts: list[list[int]], params: Evaluate) -> str:
    """A hash of everything that shapes the answers."""
    inputs = {
        "weights": [[path.name, *file_state(path)] for path in sorted(weights.iterdir()) if path.is_file()],
        "model": [str(model.device.type), str(model.dtype), model.config._attn_implementation],
        "prompts": prompts,
        "params": [params.max_new_tokens, params.batch_size],
        "code": stage_hashes("evaluate"),
        "versions": [importlib.metadata.version(name) for name in ("torch", "transformers")],
    }
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


class GenerationCache:
    """The batches of one generation by their numbers. Each is a list of answers in token ids.

    Another process may make the same batches at the same time, and remove them when it has finished.
    """

    def __init__(self, digest: str):
        self.folder = cache_root() / digest
        self.tokens = 0  # in the answers from earlier runs

    def __getitem__(self, number: int) -> list[list[int]] | None:
        try:
            answers = json.loads((self.folder / f"{number:06}.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        self.tokens += sum(map(len, answers))
        return answers

    def __setitem__(self, number: int, answers: list[list[int]]) -> None:
        own = self.folder / f"{number:06}.{os.getpid()}"
        with contextlib.suppress(FileNotFoundError, FileExistsError):  # just removed; at worst it is generated again
            write_text(own, json.dumps(answers))
            own.rename(own.with_suffix(".json"))

    def remove(self) -> None:
        """Removes these batches, and those of generations that nobody continued within ABANDONED_AFTER."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for folder in self.folder.parent.glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - folder.stat().st_mtime > ABANDONED_AFTER:
                    shutil.rmtree(folder, ignore_errors=True)
