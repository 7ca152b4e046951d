"""Checks of the rows and the adapter before the model is loaded: what goes wrong should not show after hours."""

import math
from dataclasses import dataclass
from pathlib import Path

from stages.core.params import Lora, Train
from stages.core.paths import BASE, read_json
from stages.core.prompts import IGNORED
from stages.runtime.counts import plural
from stages.runtime.errors import UserError


@dataclass(frozen=True)
class Rows:
    """Counts of a file of data/tokenized.

    Args:
        rows: packed rows.
        tokens: in all of them.
        trained: tokens with a label.
        endless: rows that train no end-of-sequence token.
        longest_conversation: its tokens.
        longest_row: its tokens.
    """

    rows: int
    tokens: int
    trained: int
    endless: int
    longest_conversation: int
    longest_row: int


def count_rows(path: Path, end: int) -> Rows:
    """Counts a file of data/tokenized, in the memory of one of its batches.

    Args:
        path: the file.
        end: the id of the end-of-sequence token.
    """
    import pyarrow
    from pyarrow import compute

    rows = tokens = trained = ended = longest_conversation = longest_row = 0
    with pyarrow.memory_map(str(path)) as source, pyarrow.ipc.open_stream(source) as batches:
        for batch in batches:
            labels = batch["labels"].flatten()
            rows, tokens = rows + batch.num_rows, tokens + len(labels)
            trained += compute.sum(compute.not_equal(labels, IGNORED)).as_py() or 0
            owners = compute.list_parent_indices(batch["labels"]).filter(compute.equal(labels, end))
            ended += compute.count_distinct(owners).as_py()
            conversation = compute.max(batch["seq_lengths"].flatten()).as_py() or 0
            row = compute.max(compute.list_value_length(batch["labels"])).as_py() or 0
            longest_conversation, longest_row = max(longest_conversation, conversation), max(longest_row, row)
    return Rows(rows, tokens, trained, rows - ended, longest_conversation, longest_row)


def end_token() -> int:
    """The id of the end-of-sequence token in models/base.

    Raises:
        UserError: there is none.
    """
    from tokenizers import Tokenizer

    end = Tokenizer.from_file(str(BASE / "tokenizer.json")).token_to_id("</s>")
    if end is None:
        raise UserError(f"{BASE / 'tokenizer.json'} has no token </s>. Use a model with Mistral's vocabulary")
    return end


def check_rows(path: Path) -> Rows:
    """Counts the rows to train. Prints a warning if conversations are longer than the base's sliding window.

    Raises:
        UserError: rows train no end-of-sequence token.
    """
    counts = count_rows(path, end_token())
    if counts.endless:
        raise UserError(
            f"{counts.endless} of {plural(counts.rows, 'row')} of {path} have no </s> among their labels, so "
            "answers would not learn to end. Write the rows again: dvc repro --force tokenize"
        )
    window = read_json(BASE / "config.json").get("sliding_window")
    if window and counts.longest_conversation > window:
        print(
            f"train: the longest conversation has {counts.longest_conversation} tokens, but each layer of this base "
            f"looks back {window} (sliding_window in {BASE / 'config.json'}). Training continues, as the model is "
            f"meant to be used; tokenize.max_length: {window} avoids it",
            flush=True,
        )
    return counts


def check_validation(path: Path) -> None:
    """Checks that there is something to compute a validation loss on.

    Raises:
        UserError: no token of the file has a label.
    """
    if not count_rows(path, end_token()).trained:
        raise UserError(
            f"no row of {path} has a token that is trained, so there is no validation loss. Give it more rows (raise "
            "clean.validation_fraction), or write them again: dvc repro --force tokenize"
        )


def count_steps(rows: int, train: Train) -> int:
    """The optimizer steps of the whole training, as transformers' Trainer counts them. Processes share a step's rows.

    Args:
        rows: packed rows.
        train: the section of params.yaml.
    """
    return math.ceil(train.epochs * math.ceil(rows / (train.batch_size * train.gradient_accumulation_steps)))


def linear_layers() -> dict[str, tuple[int, int]]:
    """{module of models/base: (in_features, out_features)} of the layers that an adapter can be on: no head."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(BASE, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        backbone = AutoModelForCausalLM.from_config(config).model
    modules = backbone.named_modules()
    return {name: (m.in_features, m.out_features) for name, m in modules if isinstance(m, torch.nn.Linear)}


def adapted_layers(lora: Lora) -> dict[str, tuple[int, int]]:
    """The linear_layers() that get an adapter.

    Raises:
        UserError: names each of lora.target_modules that is no linear layer of the base; or lora.r is too large for
            lora.init.
    """
    layers = linear_layers()

    def matches(name: str, target: str) -> bool:  # PEFT's rule for lists
        return f".{name}".endswith(f".{target}")

    if lora.target_modules == "all-linear":
        chosen = layers
    else:
        absent = [target for target in lora.target_modules if not any(matches(name, target) for name in layers)]
        if absent:
            known = sorted({name.rpartition(".")[2] for name in layers})
            raise UserError(
                f"lora.target_modules: {', '.join(absent)} not among the base's linear layers, which are "
                f"{', '.join(known)}. Correct the names, or set it to all-linear"
            )
        chosen = {name: layers[name] for name in layers if any(matches(name, target) for target in lora.target_modules)}
    smallest = min(min(shape) for shape in chosen.values())
    if lora.init != "default" and lora.r > smallest:
        raise UserError(
            f"lora.r is {lora.r}, but with lora.init: {lora.init} it can be {smallest} at most, the smallest width of "
            "the layers that are adapted"
        )
    return chosen


def adapter_parameters(lora: Lora) -> int:
    """How many parameters the adapter will have. DoRA has one magnitude for each output."""
    layers = adapted_layers(lora).values()
    return sum(lora.r * (width + height) + (height if lora.variant == "dora" else 0) for width, height in layers)
