"""A model and the records that it is evaluated on."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from stages._evaluate.generation import generate
from stages._evaluate.generation_cache import GenerationCache, generation_fingerprint
from stages._evaluate.predictions import Prediction, with_test_outcomes
from stages.core.params import Evaluate, Params
from stages.core.prompts import Encoder
from stages.core.records import Record
from stages.core.workers import count_workers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TokenIds = list[list[int]]
PromptIds = dict[int, list[int]]  # by the positions of their records
# Makes predictions of the generated tokens.
PredictionReader = Callable[[list[Record], TokenIds, Encoder], list[Prediction]]


@dataclass(frozen=True)
class Answers:
    """The answers of one generation.

    Args:
        rate: Tokens generated a second.
        cache: The finished batches, which a later run may use if this one is stopped.
    """

    predictions: list[Prediction]
    rate: float
    cache: GenerationCache


@dataclass(frozen=True)
class ModelRun:
    """A loaded model, the folder of its weights, and the records to evaluate it on."""

    model: "PreTrainedModel"
    weights: Path
    records: list[Record]
    encoder: Encoder
    params: Params

    @cached_property
    def settings(self) -> Evaluate:
        return self.params.evaluate

    @cached_property
    def context(self) -> int:
        return self.model.config.max_position_embeddings

    def answer(self, prompts: PromptIds, read: PredictionReader) -> Answers:
        """Generates an answer to each prompt, and runs the tests that records bring.

        read: makes predictions of the tokens.
        """
        texts = list(prompts.values())
        cache = GenerationCache(generation_fingerprint(self.weights, self.model, texts, self.settings))
        started = time.monotonic()
        outputs = generate(self.model, texts, self.encoder.eos, self.settings, cache)
        rate = (sum(map(len, outputs)) - cache.tokens) / (time.monotonic() - started)
        records = [self.records[place] for place in prompts]
        predictions = read(records, outputs, self.encoder)
        if self.settings.run_tests:
            predictions = with_test_outcomes(predictions, records, self.settings, count_workers(self.params.machine))
        return Answers(predictions, rate, cache)
