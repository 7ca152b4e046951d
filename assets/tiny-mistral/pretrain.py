"""Pre-trains assets/tiny-mistral, the base model of the tiny profile, and measures it.

    python assets/tiny-mistral/pretrain.py train --tokenizer tokenizer.model --minutes 6.5 --out DIR
    python assets/tiny-mistral/pretrain.py measure --tokenizer tokenizer.model --model assets/tiny-mistral

`train` reads the Python source of the installed, permissively licensed packages and writes DIR/model
(Hugging Face folder, bf16), DIR/corpus.csv (package, version, licence, files, bytes) and DIR/training.json.
`measure` prints bits per byte on the held-out packages for the model, the same net untrained, and xz.

The corpus leaves out the Python standard library, because the tiny profile fine-tunes on it, and every file
that repeats it: vendored folders by name, and any file that shares RUN consecutive lines with it.
"""

import argparse
import ast
import csv
import hashlib
import importlib.metadata
import json
import lzma
import math
import multiprocessing
import os
import random
import re
import sysconfig
import time
from pathlib import Path

SEED = 20261123
SEQUENCE = 1024
BATCH = 128  # sequences in an optimizer step
PEAK_LR, WARMUP_STEPS, DECAY_SHARE, WEIGHT_DECAY = 4e-3, 200, 0.4, 0.1
CONFIG = {
    "vocab_size": 32768,
    "hidden_size": 192,
    "intermediate_size": 640,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": SEQUENCE,
    "rope_theta": 10_000.0,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

RUN = 5  # a file that shares this many consecutive lines with the standard library is left out
PERMISSIVE = re.compile(r"\b(MIT|BSD|Apache|ISC|0BSD|Zlib|Unlicense|HPND|CC0)\b", re.IGNORECASE)
RESTRICTED = re.compile(r"GPL|MPL|Mozilla|Proprietary|NVIDIA|PSF|Python Software|Python-2|CNRI|EUPL", re.IGNORECASE)
VENDORED = re.compile(
    r"(^|/)(_?vendor(ed)?|_vendorized|third_party|externals?|extern|backports?|_distutils|_stdlib|lib2to3|compat)(/|\.py$)"
    r"|(^|/)(typing_extensions|importlib_(metadata|resources)|zipp|six|tomli|exceptiongroup|setuptools|pip|pkg_resources)(/|\.py$)"
)
HELD_OUT = ("attrs", "click", "jinja2", "networkx", "requests")


def run_hashes(text: str) -> set[int]:
    """Hashes of each run of RUN consecutive lines, blank and short ones left out."""
    lines = [line for line in (raw.strip() for raw in text.splitlines()) if len(line) > 8]
    windows = ("\n".join(lines[i : i + RUN]) for i in range(len(lines) - RUN + 1))
    return {int.from_bytes(hashlib.blake2b(window.encode(), digest_size=8).digest()) for window in windows}


def standard_library_runs() -> set[int]:
    root = Path(sysconfig.get_path("stdlib"))
    runs = set()
    for path in sorted(root.rglob("*.py")):
        if "site-packages" not in path.parts and "dist-packages" not in path.parts:
            runs |= run_hashes(path.read_text(encoding="utf-8", errors="ignore"))
    return runs


def licence(distribution: importlib.metadata.Distribution) -> str:
    meta = distribution.metadata
    classifiers = [c.split(" :: ")[-1] for c in meta.get_all("Classifier", []) if c.startswith("License ::")]
    declared = meta.get("License-Expression") or "; ".join(classifiers) or (meta.get("License") or "").strip()
    return " ".join(declared.split())


def usable(path: Path) -> str | None:
    """The file's text, or None where it is not readable, hand-written Python of ordinary size."""
    try:
        text = path.read_text(encoding="utf-8")
        if not 200 <= len(text) <= 200_000 or max(map(len, text.splitlines())) > 400:
            return None
        ast.parse(text)
    except (OSError, UnicodeDecodeError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    digits = sum(map(str.isdigit, text))
    return text if text.isascii() and digits < 0.1 * len(text) else None


def read_one(path: Path) -> str | None:
    text = usable(path)
    return None if text is None or not run_hashes(text).isdisjoint(STDLIB) else text


def read_corpus() -> tuple[dict[str, list[str]], list[dict]]:
    """{distribution: its files' texts}, exact duplicates once, and the rows of corpus.csv."""
    global STDLIB
    STDLIB = standard_library_runs()  # inherited by the forked workers
    jobs, table = [], {}
    for distribution in sorted(importlib.metadata.distributions(), key=lambda d: d.metadata["Name"].lower()):
        name, declared = distribution.metadata["Name"].lower(), licence(distribution)
        if name in table or not PERMISSIVE.search(declared) or RESTRICTED.search(declared):
            continue
        table[name] = {"package": name, "version": distribution.version, "licence": declared, "files": 0, "bytes": 0}
        files = [f for f in distribution.files or [] if f.suffix == ".py" and not VENDORED.search(f.as_posix().lower())]
        jobs += [(name, Path(distribution.locate_file(f))) for f in sorted(files)]
    texts, seen = {}, set()
    with multiprocessing.get_context("fork").Pool() as pool:
        for (name, _), text in zip(jobs, pool.imap(read_one, [path for _, path in jobs], chunksize=64)):
            digest = hashlib.sha256((text or "").encode()).digest()
            if text is None or digest in seen:
                continue
            seen.add(digest)
            texts.setdefault(name, []).append(text)
            table[name]["files"] += 1
            table[name]["bytes"] += len(text)
    return texts, [row for row in table.values() if row["files"]]


def encode(texts: list[str], tokenizer: str):
    """One row of token ids: <s> text </s> for each text. Shape (tokens,), int32."""
    import numpy
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=tokenizer)
    pieces = processor.encode(texts, num_threads=os.cpu_count(), add_bos=True, add_eos=True)
    return numpy.concatenate([numpy.asarray(ids, dtype=numpy.int32) for ids in pieces])


def build_model():
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(SEED)
    config = dict(CONFIG)
    theta = config.pop("rope_theta")
    return MistralForCausalLM(MistralConfig(**config, rope_parameters={"rope_type": "default", "rope_theta": theta}))


def learning_rate(step: int, steps: int) -> float:
    """Warm-up, constant, then linear to zero over the last DECAY_SHARE of the steps."""
    return PEAK_LR * min(1.0, (step + 1) / WARMUP_STEPS, (steps - step) / (DECAY_SHARE * steps))


def batches(tokens, device):
    """Endless (BATCH, SEQUENCE + 1) windows; each epoch cuts the row at another offset and shuffles the windows."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    row = torch.from_numpy(tokens).to(device)
    while True:
        offset = int(torch.randint(SEQUENCE, (1,), generator=generator))
        starts = torch.arange(offset, len(row) - SEQUENCE - 1, SEQUENCE)
        starts = starts[torch.randperm(len(starts), generator=generator)].to(device)
        for chunk in starts[: len(starts) // BATCH * BATCH].split(BATCH):
            yield row[chunk[:, None] + torch.arange(SEQUENCE + 1, device=device)].long()


def fit(model, tokens, minutes: float, micro_batch: int):
    """Trains in place for about `minutes`, whose number of steps is fixed once the first 60 have been timed."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)

    def loss_of(rows):
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())

    compiled = torch.compile(loss_of)
    steps, started, warm, losses, log = 10**9, time.monotonic(), 0.0, [], []
    for step, rows in enumerate(batches(tokens, device)):
        if step in (10, 60):
            losses[-1].item()  # waits for the device
            now = time.monotonic()
            if step == 60:
                steps = max(100, 10 + int((minutes * 60 - (warm - started)) * 50 / (now - warm)))
                print(f"{steps} steps of {BATCH * SEQUENCE} tokens", flush=True)
            warm = now
        if step >= steps:
            break
        total = 0.0
        for part in rows.split(micro_batch):
            with torch.autocast(device, dtype=torch.bfloat16):
                loss = compiled(part) * (len(part) / BATCH)
            loss.backward()
            total = total + loss.detach()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
        if step % 100 == 0:
            log.append({"step": step, "loss": round(total.item(), 4), "seconds": round(time.monotonic() - started, 1)})
            print(log[-1], flush=True)
    seconds = round(time.monotonic() - started, 1)
    tail = torch.stack(losses[-100:]).mean().item()
    return {"steps": steps, "tokens": steps * BATCH * SEQUENCE, "seconds": seconds, "final_loss": tail, "log": log}


def held_out_text(texts: dict[str, list[str]], limit: int = 2_000_000) -> list[str]:
    files = [text for name in HELD_OUT for text in texts.get(name, [])]
    random.Random(SEED).shuffle(files)
    kept, size = [], 0
    for text in files:
        if size + len(text) <= limit:
            kept.append(text)
            size += len(text)
    return kept


def bits_per_byte(model, files: list[str], tokenizer: str) -> float:
    """Cross-entropy of every token of the files, each from its own <s>, in windows of SEQUENCE, over their bytes."""
    import torch

    device, nats = next(model.parameters()).device, 0.0
    model.eval()
    for text in files:
        ids = torch.from_numpy(encode([text], tokenizer)).long().to(device)
        for start in range(0, len(ids) - 1, SEQUENCE):
            window = ids[start : start + SEQUENCE + 1][None]
            with torch.no_grad():
                logits = model(input_ids=window[:, :-1], use_cache=False).logits.float()
            nats += torch.nn.functional.cross_entropy(logits[0], window[0, 1:], reduction="sum").item()
    return nats / math.log(2) / sum(len(text.encode()) for text in files)


def measure(model, texts: dict[str, list[str]], tokenizer: str) -> dict:
    files = held_out_text(texts)
    joined = "".join(files).encode()
    untrained = build_model().to(next(model.parameters()).device)
    return {
        "packages": [name for name in HELD_OUT if name in texts],
        "files": len(files),
        "bytes": len(joined),
        "bits_per_byte": round(bits_per_byte(model, files, tokenizer), 3),
        "untrained": round(bits_per_byte(untrained, files, tokenizer), 3),
        "xz": round(8 * len(lzma.compress(joined, preset=9 | lzma.PRESET_EXTREME)) / len(joined), 3),
    }


def train(arguments) -> None:
    import torch

    torch.set_float32_matmul_precision("high")
    texts, table = read_corpus()
    kept = [text for name in sorted(texts) if name not in HELD_OUT for text in texts[name]]
    random.Random(SEED).shuffle(kept)
    tokens = encode(kept, arguments.tokenizer)
    print(f"{len(kept)} files, {sum(map(len, kept))} bytes, {len(tokens)} tokens", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with open(arguments.out / "corpus.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, table[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    model = build_model()
    result = fit(model, tokens, arguments.minutes, arguments.micro_batch)
    model.to(torch.bfloat16).save_pretrained(arguments.out / "model", max_shard_size="15MB")
    result |= {
        "corpus_tokens": len(tokens),
        "torch": torch.__version__,
        "held_out": measure(model, texts, arguments.tokenizer),
    }
    (arguments.out / "training.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "log"}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train", "measure"])
    parser.add_argument("--tokenizer", required=True, help="the sentencepiece model of Mistral-7B v0.3")
    parser.add_argument("--minutes", type=float, default=6.5, help="how long train may take, the corpus not counted")
    parser.add_argument("--micro-batch", type=int, default=32, help="sequences in a forward pass")
    parser.add_argument("--out", type=Path, default=Path("pretrained"))
    parser.add_argument("--model", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    if arguments.command == "train":
        train(arguments)
        return
    from transformers import MistralForCausalLM

    texts, _ = read_corpus()
    print(
        json.dumps(measure(MistralForCausalLM.from_pretrained(arguments.model), texts, arguments.tokenizer), indent=1)
    )


if __name__ == "__main__":
    main()
