"""What can be known to go wrong before the model is loaded, so that it does not show after hours."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from stages._train.checkpoints import Checkpoints
from stages.shared.errors import UserError
from stages.shared.models import pick_device
from stages.shared.params import Lora, Machine
from stages.shared.paths import ADAPTER, BASE, read_json
from stages.shared.prompts import IGNORED

MIB = 1 << 20
MARGIN = 16 * MIB  # of a checkpoint: states of generators, the log, file systems' blocks


def check_dtype(machine: Machine) -> None:
    """Raises UserError on a GPU that has float16 alone, whose gradients vanish below 6e-8 unless the loss is scaled."""
    import torch

    # PyTorch counts a GPU that only imitates bfloat16 as one that has it.
    if pick_device(machine).type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(
            f"{torch.cuda.get_device_name()} does not compute in bfloat16, in which the training runs; float16 is not "
            "offered. Use a GPU of compute capability 8.0 or more (since Ampere: A10, A100, L4, RTX 30), or set "
            "machine.device: cpu"
        )


@dataclass(frozen=True)
class Rows:
    """Counts of a file of data/tokenized; `endless` rows train no end-of-sequence token."""

    rows: int
    tokens: int
    trained: int
    endless: int
    longest_conversation: int
    longest_row: int


def count_rows(path: Path, end: int) -> Rows:
    """Reads the mapped file batch by batch, in as much memory as one takes. end: the end-of-sequence token's id."""
    import pyarrow
    from pyarrow import compute

    rows = tokens = trained = ended = longest = row = 0
    with pyarrow.memory_map(str(path)) as source, pyarrow.ipc.open_stream(source) as batches:
        for batch in batches:
            labels = batch["labels"].flatten()
            rows, tokens = rows + batch.num_rows, tokens + len(labels)
            trained += compute.sum(compute.not_equal(labels, IGNORED)).as_py() or 0
            owners = compute.list_parent_indices(batch["labels"]).filter(compute.equal(labels, end))
            ended += compute.count_distinct(owners).as_py()
            longest = max(longest, compute.max(batch["seq_lengths"].flatten()).as_py() or 0)
            row = max(row, compute.max(compute.list_value_length(batch["labels"])).as_py() or 0)
    return Rows(rows, tokens, trained, rows - ended, longest, row)


def end_token() -> int:
    from tokenizers import Tokenizer

    end = Tokenizer.from_file(str(BASE / "tokenizer.json")).token_to_id("</s>")
    if end is None:
        raise UserError(f"{BASE / 'tokenizer.json'} has no token </s>. Use a model with Mistral's vocabulary")
    return end


def check_rows(path: Path) -> Rows:
    found = count_rows(path, end_token())
    if found.endless:
        raise UserError(
            f"{found.endless} of {found.rows} rows of {path} have no </s> among their labels, so answers would not "
            "learn to end. Write the rows again: dvc repro --force tokenize"
        )
    window = read_json(BASE / "config.json").get("sliding_window")
    if window and found.longest_conversation > window:
        print(
            f"train: the longest conversation has {found.longest_conversation} tokens, but each layer of this base "
            f"looks back {window} (sliding_window in {BASE / 'config.json'}). Training goes on as the model is meant; "
            f"tokenize.max_length: {window} avoids it",
            flush=True,
        )
    return found


def check_validation(path: Path) -> None:
    """Raises UserError where the loss that is looked at would be a mean over nothing."""
    if not count_rows(path, end_token()).trained:
        raise UserError(
            f"no row of {path} has a token that is trained, so there is no validation loss. Give it more rows (raise "
            "clean.validation_fraction), or write them again: dvc repro --force tokenize"
        )


def linear_layers() -> dict[str, tuple[int, int]]:
    """{module of the base: (in_features, out_features)} of what an adapter can sit on: no embedding, no head."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(BASE, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        backbone = AutoModelForCausalLM.from_config(config).model
    modules = backbone.named_modules()
    return {name: (m.in_features, m.out_features) for name, m in modules if isinstance(m, torch.nn.Linear)}


def adapted_layers(lora: Lora) -> dict[str, tuple[int, int]]:
    """Those of linear_layers() that get an adapter.

    Raises:
        UserError: names each of lora.target_modules that is no linear layer of the base.
    """
    layers = linear_layers()

    def hit(name: str, target: str) -> bool:  # PEFT's rule for lists
        return f".{name}".endswith(f".{target}")

    if lora.target_modules == "all-linear":
        chosen = layers
    else:
        absent = [target for target in lora.target_modules if not any(hit(name, target) for name in layers)]
        if absent:
            known = sorted({name.rpartition(".")[2] for name in layers})
            raise UserError(
                f"lora.target_modules: {', '.join(absent)} not among the base's linear layers, which are "
                f"{', '.join(known)}. Correct the names, or set it to all-linear"
            )
        chosen = {name: layers[name] for name in layers if any(hit(name, target) for target in lora.target_modules)}
    smallest = min(min(shape) for shape in chosen.values())
    if lora.init != "default" and lora.r > smallest:
        raise UserError(
            f"lora.r is {lora.r}, but with lora.init: {lora.init} it can be {smallest} at most, the smallest width of "
            "the layers that are adapted"
        )
    return chosen


def adapter_parameters(lora: Lora) -> int:
    """How many parameters the adapter will have. Dora's magnitudes are one an output."""
    layers = adapted_layers(lora).values()
    return sum(lora.r * (width + height) + (height if lora.variant == "dora" else 0) for width, height in layers)


def existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def check_disk(parameters: int, checkpoints: Checkpoints, adapters: int = 1) -> None:
    """An adapter takes 4 bytes a parameter (fp32), AdamW's two moments twice that. adapters: how many a checkpoint has.
    They are also what the result takes at most."""
    adapter, checkpoint = 4 * adapters * parameters + MARGIN, 4 * (adapters + 2) * parameters + MARGIN
    # One more than are kept: the oldest goes when the newest is whole.
    needs = [
        (existing(ADAPTER), adapter, f"{ADAPTER} takes"),
        (checkpoints.folder, (checkpoints.limit + 1) * checkpoint - checkpoints.bytes(), "the checkpoints take"),
    ]
    shared = needs[0][0].stat().st_dev == needs[1][0].stat().st_dev
    for path, need, what in needs:
        free = shutil.disk_usage(path).free
        if free < (sum(need for _, need, _ in needs) if shared else need):
            raise UserError(
                f"{what} {need / MIB:.0f} MiB, and the disk of {path} has {free / MIB:.0f} MiB free"
                f"{', for adapter and checkpoints together' if shared else ''}. Free some space (`dvc gc --workspace` "
                "drops what no current file needs from DVC's cache) or lower machine.save_total_limit"
            )
