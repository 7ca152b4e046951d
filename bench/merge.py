"""The stage `merge` beside PEFT, and axolotl, on the same adapter, base, cores and disk, in one run.

    python -m bench.merge [LAYERS] [--folder FOLDER] [--axolotl PYTHON]
    python -m bench.merge --base FOLDER --adapter FOLDER [--folder FOLDER] [--axolotl PYTHON]

The base is Mistral-7B's shapes with LAYERS (default 8) of its 32 layers and random bf16 weights, the adapter a LoRA of
rank 16 on all seven projections; or both are what is named. With 32 layers it takes three times 14.5 GB in FOLDER
(default: a temporary one) and, for PEFT, 15 GiB of memory. PEFT: `from_pretrained` of base and adapter,
`merge_and_unload`, `save_pretrained`. Ours: the weights that the stage writes, onto the 16-bit base as PEFT does, and
onto the values of the base in 4 bits, for which PEFT has no counterpart that leaves a 16-bit model. axolotl: its merge
by shards, both ways, in an interpreter that has our libraries and axolotl too (`pip install --no-deps axolotl==0.19.0`
is enough for it).

Each way is a process of its own, whose peak is the kernel's figure for resident memory, mapped files included. For
fewer than 32 layers the last column says what 32 would take, with the time of each layer the same.
"""

from stages.runtime.command import command_parser
from stages.runtime.stage_options import positive

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LAYERS, WIDTH, FEED_FORWARD, HEADS, VOCABULARY, RANK = 32, 4096, 14336, (32, 8), 32768, 16
NAMES = {
    **{"peft": "PEFT", "original": "ours, 16-bit base", "axolotl": "axolotl, 16-bit base"},
    **{"dequantized": "ours, 4-bit values", "axolotl-nf4": "axolotl, 4-bit values"},
}
COMPARED = {"original": ["peft", "axolotl"], "dequantized": ["axolotl-nf4"]}
SHARD = 5_000_000_000  # bytes
PROJECTIONS = {
    **{f"self_attn.{name}_proj": (WIDTH // (1 if name in "qo" else 4), WIDTH) for name in "qkvo"},
    **{"mlp.gate_proj": (FEED_FORWARD, WIDTH), "mlp.up_proj": (FEED_FORWARD, WIDTH)},
    "mlp.down_proj": (WIDTH, FEED_FORWARD),
}


def make_base(folder: Path, layers: int) -> None:
    """Shards of about SHARD bytes, a layer at a time."""
    import torch
    from safetensors.torch import save_file
    from transformers import MistralConfig

    folder.mkdir()
    shape = {"hidden_size": WIDTH, "intermediate_size": FEED_FORWARD, "num_hidden_layers": layers}
    heads = {"num_attention_heads": HEADS[0], "num_key_value_heads": HEADS[1], "head_dim": WIDTH // HEADS[0]}
    config = MistralConfig(
        vocab_size=VOCABULARY, dtype="bfloat16", architectures=["MistralForCausalLM"], **shape, **heads
    )
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)

    places, kept, number = {}, {}, 1

    def close() -> None:
        save_file(kept, folder / f"model-{number:05}.safetensors", metadata={"format": "pt"})
        places.update(dict.fromkeys(kept, f"model-{number:05}.safetensors"))
        kept.clear()

    kept |= {"model.embed_tokens.weight": matrix(VOCABULARY, WIDTH), "lm_head.weight": matrix(VOCABULARY, WIDTH)}
    kept["model.norm.weight"] = torch.ones(WIDTH, dtype=torch.bfloat16)
    for layer in range(layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            kept[f"model.layers.{layer}.{norm}.weight"] = torch.ones(WIDTH, dtype=torch.bfloat16)
        kept |= {f"model.layers.{layer}.{name}.weight": matrix(*shape) for name, shape in PROJECTIONS.items()}
        if sum(tensor.nbytes for tensor in kept.values()) > SHARD:
            close()
            number += 1
    close()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def make_adapter(folder: Path, layers: int) -> None:
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file

    names = sorted(name.split(".")[1] for name in PROJECTIONS)
    LoraConfig(r=RANK, lora_alpha=32, target_modules=names, task_type="CAUSAL_LM").save_pretrained(folder)
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(layers):
        for name, (rows, columns) in PROJECTIONS.items():
            for part, shape in (("A", (RANK, columns)), ("B", (rows, RANK))):
                key = f"base_model.model.model.layers.{layer}.{name}.lora_{part}.weight"
                tensors[key] = torch.randn(shape, generator=generator) * 0.01
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def peft(base: Path, adapter: Path, target: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(target)


def ours(base: Path, adapter: Path, target: Path, onto: str) -> None:
    import torch

    from stages._merge.adapter import Adapter
    from stages._merge.stream import MergePlan, write_merged
    from stages.core.params import Quantization
    from stages.core.quantization import SAMPLE_SIZE, BaseValues

    target.mkdir()
    found = Adapter(adapter)
    # Any values, so that theirs are hashed and compared.
    names = list(found) if onto == "dequantized" else []
    trained = BaseValues(dict.fromkeys(names, ""), {name: torch.ones(SAMPLE_SIZE) for name in names})
    write_merged(
        MergePlan(base, found, Quantization(bits=4, quant_type="nf4", double_quant=True), trained, "cpu"), target
    )


def axolotl(base: Path, adapter: Path, target: Path, *, four_bit: bool) -> None:
    from axolotl.cli.utils.lora_merge import merge_lora_sharded_efficient

    merge_lora_sharded_efficient(base, adapter, target, simulate_nf4=four_bit)


def one(way: str, folder: Path) -> None:
    """In a process of its own: does it and prints seconds without the imports, and the peak of memory in bytes."""
    import bitsandbytes  # noqa: F401
    import peft as _  # noqa: F401
    import torch  # noqa: F401

    started = time.perf_counter()
    paths = (folder / "base", folder / "adapter", folder / way)
    if way == "peft":
        peft(*paths)
    elif way.startswith("axolotl"):
        axolotl(*paths, four_bit=way == "axolotl-nf4")
    else:
        ours(*paths, way)
    seconds = time.perf_counter() - started
    # Not getrusage's figure, into which the parent's memory goes at a fork.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps([seconds, int(peak.split()[1]) * 1024]))


def difference(one_folder: Path, other_folder: Path) -> float:
    """The share of the merged values that are not the same to the last bit."""
    import torch
    from safetensors import safe_open

    def opened(folder: Path) -> dict:
        files = [safe_open(path, "pt") for path in sorted(folder.glob("*.safetensors"))]
        return {name: file for file in files for name in file.keys()}  # noqa: SIM118

    ours, theirs = opened(one_folder), opened(other_folder)
    if ours.keys() != theirs.keys():
        sys.exit(f"the two merges do not hold the same tensors: {sorted(ours.keys() ^ theirs.keys())[:3]}")
    different = total = 0
    for name, file in ours.items():
        one, other = file.get_tensor(name), theirs[name].get_tensor(name)
        different += int(torch.count_nonzero(one != other))
        total += one.numel()
    return different / total


def measured(way: str, folder: Path, python: str) -> tuple[float, int]:
    """(seconds, bytes of memory at its peak)"""
    command = [python, "-m", "bench.merge", "--one", way, str(folder)]
    os.sync()  # or the disk is still at work on what came before: 14.5 GB for the first way
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    print(f"{NAMES[way]}: {seconds:.1f} s, {peak / 1e9:.2f} GB", flush=True)
    return seconds, peak


def weights(base: Path) -> int:
    return sum(path.stat().st_size for path in base.glob("*.safetensors"))


def refuse_short_disk(folder: str, layers: int) -> None:
    """The base and two merges of it lie there at one time."""

    def needed(number: int) -> int:
        matrices = number * sum(a * b for a, b in PROJECTIONS.values()) + 2 * VOCABULARY * WIDTH
        return 3 * 2 * matrices

    free = shutil.disk_usage(folder).free
    if needed(layers) > free:
        fitting = max((number for number in range(LAYERS) if needed(number) <= free), default=0)
        sys.exit(
            f"{layers} layers need {needed(layers) / 1e9:.0f} GB in {folder}, where {free / 1e9:.0f} GB are free: "
            f"enough for {fitting} layers, of which the table says what {LAYERS} would take"
        )


def prepare(folder: Path, options: argparse.Namespace) -> int:
    """Puts base and adapter into the folder, and returns the base's layers."""
    if options.base is None:
        refuse_short_disk(str(folder), options.layers)
        make_base(folder / "base", options.layers)
        make_adapter(folder / "adapter", options.layers)
        return options.layers
    needed, free = 2 * weights(options.base), shutil.disk_usage(folder).free
    if needed > free:
        sys.exit(f"two merges take {needed / 1e9:.0f} GB in {folder}, where {free / 1e9:.0f} GB are free")
    for name in ("base", "adapter"):
        (folder / name).symlink_to(getattr(options, name).resolve())
    return json.loads((options.base / "config.json").read_text())["num_hidden_layers"]


def main(options: argparse.Namespace) -> None:
    found, different = {}, {}
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        layers, size = prepare(folder, options), weights(folder / "base")
        for reference, others in COMPARED.items():
            found[reference] = measured(reference, folder, sys.executable)
            for other in others:
                if other != "peft" and options.axolotl is None:
                    continue
                found[other] = measured(other, folder, sys.executable if other == "peft" else options.axolotl)
                different[other] = difference(folder / reference, folder / other)
                shutil.rmtree(folder / other)
            shutil.rmtree(folder / reference)
    print(f"{layers} of {LAYERS} layers, {size / 1e9:.1f} GB, {len(os.sched_getaffinity(0))} cores")
    print(
        f"{'':24}{'seconds':>9}{'ratio':>7}{'peak GB':>9}{'ratio':>7}{'32 layers, s':>14}{'values other than ours':>24}"
    )
    seconds, peak = found["peft"]
    for way in filter(found.get, NAMES):
        each, memory = found[way]
        line = f"{NAMES[way]:24}{each:>9.1f}{each / seconds:>7.2f}{memory / 1e9:>9.2f}{memory / peak:>7.2f}"
        other = f"{different[way]:.1e}" if way in different else ""
        print(f"{line}{each * LAYERS / layers:>14.0f}{other:>24}")


def read_options(arguments: list[str]) -> argparse.Namespace:
    parser = command_parser("bench.merge", __doc__)
    parser.add_argument("layers", nargs="?", type=positive, default=8, metavar="LAYERS", help="default: %(default)s")
    parser.add_argument("--folder", type=Path, help="where the models are written")
    parser.add_argument("--axolotl", metavar="PYTHON", help="an interpreter with axolotl")
    parser.add_argument("--base", type=Path, help="a folder like models/base, with --adapter")
    parser.add_argument("--adapter", type=Path, help="a folder like models/adapter")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)  # a process of ours
    options = parser.parse_args(arguments)
    if (options.base is None) != (options.adapter is None):
        parser.error("--base and --adapter go together")
    return options


if __name__ == "__main__":
    asked = read_options(sys.argv[1:])
    if asked.one:
        one(asked.one[0], Path(asked.one[1]))
    else:
        main(asked)
