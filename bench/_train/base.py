"""What all contenders train: a base with its fresh adapter, and conversations."""

from stages.runtime.command import command_parser

import json
import shutil
from pathlib import Path

import torch
from transformers import MistralConfig, MistralForCausalLM

from stages._tokenize.packing import pack
from stages.core.machine import ResolvedMachine
from stages.core.models import load_model
from stages.core.params import Params
from stages.core.paths import BASE, TOKENIZED, read_json, whole_directory
from stages.core.prompts import IGNORED
from stages.core.records import record_file

RANDOM = Path(".dvc/tmp/bench-7b")
RANDOM_ROWS = Path(".dvc/tmp/bench-7b-rows")
SEVEN = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}


def random_7b(folder: Path) -> None:
    """A models/base of Mistral-7B v0.3's shape with random weights, made on the GPU; the tokenizer is models/base's."""
    config = MistralConfig(
        vocab_size=32768,
        max_position_embeddings=32768,
        rms_norm_eps=1e-5,
        sliding_window=None,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        **SEVEN,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = MistralForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter.data, std=0.02)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, max_shard_size="5GB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BASE / name, folder / name)
    sizes = [parameter.numel() for parameter in model.parameters()]
    manifest = {"id": None, "path": "random", "revision": None, "parameters": sum(sizes), "tensors": len(sizes)}
    manifest["files"] = {}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def load_base(folder: Path, params: Params, machine: ResolvedMachine, packed: bool) -> torch.nn.Module:
    """The 4-bit base, with an adapter that is the same for every contender."""
    from stages._train.model import add_adapter

    model = load_model(folder, machine, params.quantization, packed=packed)
    torch.manual_seed(params.seed)
    return add_adapter(model, params.lora, read_json(folder / "manifest.json"))


def tokenize_rows(params: Params, folder: Path) -> None:
    """The rows of data/clean as the stage tokenize would write them with `params`.

    Those of data/tokenized may be shorter: a small base reads fewer tokens, and its stage refuses more.
    """
    from stages.tokenize import SHARD_CONVERSATIONS, tokenize_split

    with whole_directory(folder) as made, record_file(made / "rejected.parquet", "reason") as rejected:
        for split in ("train", "validation"):
            tokenize_split(split, made / f"{split}.arrow", rejected, params, SHARD_CONVERSATIONS)


def conversations(split: str, longest: int, folder: Path = TOKENIZED) -> list[dict]:
    """Of a folder's packed rows, one a row again: input_ids, labels."""
    from datasets import Dataset

    found = []
    for row in Dataset.from_file(str(folder / f"{split}.arrow")):
        start = 0
        for length in row["seq_lengths"]:
            part = {name: row[name][start : start + length] for name in ("input_ids", "labels")}
            start += length
            if length <= longest:
                found.append(part)
    return found


def packed_rows(some: list[dict], length: int) -> list[dict]:
    """The conversations in rows of up to `length` tokens, as the stage tokenize packs them."""
    rows = []
    for group in pack([len(each["input_ids"]) for each in some], length):
        row = {name: [token for index in group for token in some[index][name]] for name in ("input_ids", "labels")}
        rows.append(row | {"seq_lengths": [len(some[index]["input_ids"]) for index in group]})
    return rows


def masked(some: list[dict]) -> list[dict]:
    """As TRL takes them: input_ids, completion_mask."""
    return [
        {
            "input_ids": each["input_ids"],
            "completion_mask": [int(label != IGNORED) for label in each["labels"]],
        }
        for each in some
    ]


if __name__ == "__main__":
    parser = command_parser("bench._train.base", __doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the random base is written")
    random_7b(parser.parse_args().folder)
