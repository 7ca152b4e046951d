"""The stage `evaluate` beside plain use of the same model: generation beside transformers' `generate` in a loop, one
prompt at a time and in batches as they come, and scoring beside a bare forward pass, in one run.

    python -m bench.evaluate [ROWS] [FOLDER] [--turns N]

The rows are the first ROWS (default 32) of data/clean/test.parquet, the model is FOLDER (default models/merged), with
the params of `prompt` and `evaluate`, on whatever device there is. All generate greedily, at most max_new_tokens; the
tokens that count are those up to an answer's end. The bare forward pass gives the logits of all positions of the same
batches, and computes nothing from them. Each is measured --turns times (2), by turns, and the better one counts. Beside
seconds on the clock stand those of the processor, which a busy machine changes less.
"""

from stages.runtime.command import command_parser
from stages.runtime.stage_options import positive

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stages._evaluate.generation import batches, generate
from stages._evaluate.scoring import score
from stages.core.decoding import PADDING
from stages.core.machine import resolve_machine
from stages.core.models import load_model, packed_batch
from stages.core.params import Evaluate, load_params
from stages.core.paths import CLEAN, MERGED
from stages.core.prompts import Encoder
from stages.core.records import Record, read_records

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Measured(NamedTuple):
    tokens: int
    seconds: float
    processor: float


def timed(work: Callable[[], int]) -> Measured:
    """work: returns the number of its tokens."""
    import torch

    started, before = time.perf_counter(), time.process_time()
    tokens = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Measured(tokens, time.perf_counter() - started, time.process_time() - before)


def plain_loop(model: "PreTrainedModel", prompts: list[list[int]], eos: int, params: Evaluate, size: int) -> int:
    """`model.generate` on `size` prompts at a time in the order in which they come."""
    import torch
    from transformers import GenerationConfig

    config = GenerationConfig(max_new_tokens=params.max_new_tokens, eos_token_id=eos, pad_token_id=PADDING)
    tokens = 0
    for start in range(0, len(prompts), size):
        some = prompts[start : start + size]
        longest = max(map(len, some))
        ids = torch.tensor([[PADDING] * (longest - len(prompt)) + prompt for prompt in some], device=model.device)
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in some], device=model.device)
        for answer in model.generate(ids, attention_mask=mask, generation_config=config)[:, longest:].tolist():
            tokens += answer.index(eos) + 1 if eos in answer else len(answer)
    return tokens


def forward(model: "PreTrainedModel", rows: list[dict], size: int) -> int:
    import torch

    with torch.no_grad():
        for group in batches([len(row["input_ids"]) for row in rows], size):
            batch = packed_batch([rows[index] for index in group], model.device)
            model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
    return sum(len(row["input_ids"]) for row in rows)


def scored(model: "PreTrainedModel", records: list[Record], encoder: Encoder, params: Evaluate) -> None:
    """As the stage does it, which encodes the conversations too."""
    score(model, records, encoder, params, [None] * len(records))


def by_turns(works: dict[str, Callable[[], int]], turns: int) -> dict[str, Measured]:
    found: dict[str, Measured] = {}
    for _ in range(turns):
        for name, work in works.items():
            result = timed(work)
            best = found.get(name, result)
            seconds = min(best.seconds, result.seconds)
            found[name] = Measured(result.tokens, seconds, min(best.processor, result.processor))
    return found


def table(title: str, found: dict[str, Measured], reference: str) -> str:
    """Ratios of tokens a second to those of the reference, by the clock and by the processor."""
    base = found[reference]
    lines = [f"{title:28}{'tokens':>8}{'tokens/s':>10}{'ratio':>7}{'cpu s':>8}{'cpu ratio':>11}"]
    for name, each in found.items():
        ratio = each.tokens / each.seconds / (base.tokens / base.seconds)
        processor = each.tokens / each.processor / (base.tokens / base.processor)
        rate = each.tokens / each.seconds
        lines.append(f"{name:28}{each.tokens:>8}{rate:>10.0f}{ratio:>7.2f}{each.processor:>8.2f}{processor:>11.2f}")
    return "\n".join(lines)


def main(count: int, folder: Path, turns: int = 2) -> None:
    import torch
    from transformers import GenerationConfig

    params = load_params()
    section, encoder = params.evaluate, Encoder(params.prompt)
    records = next(read_records(CLEAN / "test.parquet", count))
    model = load_model(folder, resolve_machine(params.machine))
    context = model.config.max_position_embeddings
    prompts = [encoder.prompt(record.messages[:-1])[-(context - section.max_new_tokens) :] for record in records]
    rows = []
    for encoded in encoder.conversations([record.messages for record in records]):
        ids = encoded.input_ids[:context]
        rows.append({"input_ids": ids, "labels": encoded.labels[:context], "seq_lengths": [len(ids)]})
    model.generation_config = GenerationConfig()
    generation = {
        "plain loop, one at a time": lambda: plain_loop(model, prompts, encoder.eos, section, 1),
        "plain loop, batches": lambda: plain_loop(model, prompts, encoder.eos, section, section.batch_size),
        "ours": lambda: sum(map(len, generate(model, prompts, encoder.eos, section))),
    }
    scoring = {
        "bare forward pass": lambda: forward(model, rows, section.batch_size),
        "ours": lambda: scored(model, records, encoder, section) or sum(len(row["input_ids"]) for row in rows),
    }
    forward(model, rows[:1], 1)  # what the first call sets up is nobody's
    how = f"{model.device.type}, {torch.get_num_threads()} threads"
    print(f"{how}, {len(records)} rows, batches of {section.batch_size}", flush=True)
    print(table("generation", by_turns(generation, turns), "plain loop, one at a time"), flush=True)
    print(table("scoring", by_turns(scoring, turns), "bare forward pass"))


if __name__ == "__main__":
    parser = command_parser("bench.evaluate", __doc__)
    parser.add_argument("rows", nargs="?", type=positive, default=32, metavar="ROWS", help="default: %(default)s")
    parser.add_argument("folder", nargs="?", type=Path, default=MERGED, metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--turns", type=positive, default=2, metavar="N", help="default: %(default)s")
    options = parser.parse_args()
    main(options.rows, options.folder, options.turns)
