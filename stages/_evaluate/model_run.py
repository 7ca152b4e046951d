"""A model, and the records that it is asked about."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from stages._evaluate.generation import generate
from stages._evaluate.generation_cache import Kept, fingerprint
from stages._evaluate.predictions import Prediction, with_outcomes
from stages.core.params import Evaluate, Params
from stages.core.prompts import Encoder
from stages.core.records import Record
from stages.core.workers import count_workers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Tokens = list[list[int]]
Prompts = dict[int, list[int]]  # by the places of their records
Reader = Callable[[list[Record], Tokens, Encoder], list[Prediction]]  # makes predictions of what is generated


@dataclass(frozen=True)
class Answers:
    """rate: tokens generated a second. kept: what a run that is stopped from here on may use again."""

    predictions: list[Prediction]
    rate: float
    kept: Kept


@dataclass(frozen=True)
class Subject:
    model: "PreTrainedModel"
    weights: Path
    records: list[Record]
    encoder: Encoder
    everything: Params

    @cached_property
    def params(self) -> Evaluate:
        return self.everything.evaluate

    @cached_property
    def context(self) -> int:
        return self.model.config.max_position_embeddings

    def answer(self, prompts: Prompts, read: Reader) -> Answers:
        texts = list(prompts.values())
        kept = Kept(fingerprint(self.weights, self.model, texts, self.params))
        started = time.monotonic()
        outputs = generate(self.model, texts, self.encoder.eos, self.params, kept)
        rate = (sum(map(len, outputs)) - kept.tokens) / (time.monotonic() - started)
        records = [self.records[place] for place in prompts]
        predictions = read(records, outputs, self.encoder)
        if self.params.run_tests:
            predictions = with_outcomes(predictions, records, self.params, count_workers(self.everything.machine))
        return Answers(predictions, rate, kept)
