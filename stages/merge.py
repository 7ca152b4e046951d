"""Merge: models/base, models/adapter, data/tokenized/validation.arrow, params `quantization`, `prompt`, `merge` →
models/merged, metrics/merge.json.

The adapter was trained on the 4-bit values of the base. With `merge.base: dequantized` it is merged onto those values.
The merged model is compared with the trained one, and takes its place only where the two are close enough.
metrics/merge.json has the same figures for the usual merge, onto the 16-bit weights, under `naive`.

    dvc repro merge
"""

from stages.runtime.stage_options import stage_options

import shutil
import time
from pathlib import Path

from stages._merge.adapter import Adapter
from stages._merge.card import merged_model_card
from stages._merge.judgement import compare_both, judge_loss_gap
from stages._merge.stream import MergePlan, ValueDifference, value_differences, weight_shards, write_merged
from stages.core.machine import resolve_machine
from stages.core.params import Params
from stages.core.paths import (
    ADAPTER,
    BASE,
    MERGED,
    METRICS,
    TOKENIZED,
    read_json,
    whole_directory,
    write_json,
    write_text,
)
from stages.core.prompts import CHAT_TEMPLATES
from stages.core.quantization import SAMPLE_SIZE, VALUE_HASHES, VALUE_SAMPLES, BaseValues
from stages.runtime.counts import plural
from stages.runtime.errors import UserError
from stages.runtime.integrity import check_base
from stages.runtime.machine_checks import GB, check_disk_for_merge
from stages.runtime.runner import Outcome, peak_memory, run_stage

ROUNDING_CAUSE = {"nf4": "Another version of the libraries", "fp4": "Another device or version of the libraries"}


def trained_values(needed: bool) -> BaseValues:
    """The base's 4-bit values, as training stored them in the adapter's folder.

    Args:
        needed: Whether the merge cannot do without them.

    Raises:
        UserError: They are needed, and one of the two files is missing.
    """
    from safetensors.torch import load_file

    try:
        return BaseValues(read_json(ADAPTER / VALUE_HASHES), load_file(ADAPTER / VALUE_SAMPLES))
    except FileNotFoundError as missing:
        if not needed:
            return BaseValues({}, {})
        raise UserError(
            f"{missing.filename or ADAPTER / VALUE_SAMPLES} is missing. It says which 4-bit values the adapter was "
            "trained on. `dvc repro train` makes it. An adapter from elsewhere can be merged with merge.base: original"
        ) from None


def describe_differences(different: list[ValueDifference], compared: int) -> str:
    """One sentence about the modules whose 4-bit values differ from those of training.

    Args:
        different: At least one difference.
        compared: How many modules were compared.
    """
    largest, share = (max(getattr(difference, name) for difference in different) for name in ("largest", "share"))
    extent = f"of {SAMPLE_SIZE:,} values of a module up to {share:.1%} differ, by up to {largest:.2e} of the largest"
    if not share:
        extent = f"so few values that none of the {SAMPLE_SIZE:,} of each that training kept is among them"
    return (
        f"{len(different)} of {plural(compared, 'module')} have other 4-bit values here than in training, such as "
        f"{different[0].module}: {extent}"
    )


def copy_companions(folder: Path, template: str) -> None:
    """Copies the files of models/base except weights and manifest, and writes the chat template of the training."""
    for path in sorted(BASE.iterdir()):
        if path.name != "manifest.json" and path.suffix != ".safetensors":
            shutil.copyfile(path, folder / path.name)
    write_text(folder / "chat_template.jinja", CHAT_TEMPLATES[template])


def main(params: Params) -> Outcome:
    from datasets import Dataset

    from stages._merge.parity import Reference, count_conversations, reference_bytes

    machine = resolve_machine(params.machine)
    rows = list(Dataset.from_file(str(TOKENIZED / "validation.arrow")).take(params.merge.parity_rows))
    check_base()
    dequantized = params.merge.base == "dequantized"
    trained = trained_values(needed=dequantized)
    onto = trained if dequantized else BaseValues({}, {})
    plan = MergePlan(BASE, Adapter(ADAPTER), params.quantization, onto, machine.device)
    conversations = count_conversations(rows)
    parity_bytes = reference_bytes(rows, read_json(BASE / "config.json")["hidden_size"])
    size = sum(path.stat().st_size for path in weight_shards(BASE))
    with whole_directory(MERGED) as folder:  # this removes what a killed run left
        check_disk_for_merge(BASE.parent, size, parity_bytes)
        print(
            f"merge: writes {size / GB:.2f} GB, then compares models on {plural(conversations, 'conversation')}, one "
            f"model in memory at a time. This takes up to {size / GB:.2f} GB and activations on {plan.device}, and for "
            f"a while {parity_bytes / GB:.2f} GB of the disk",
            flush=True,
        )
        started = time.monotonic()
        different = write_merged(plan, folder)
        timing = {"write_seconds": round(time.monotonic() - started, 3), "write_peak_rss_bytes": peak_memory()}
        copy_companions(folder, params.prompt.template)
        wanted = not dequantized and bool(trained.hashes)
        reference = Reference(BASE, ADAPTER, rows, machine, params.quantization, wanted)
        different += value_differences(reference.values, trained)
        different.sort(key=lambda difference: difference.module)
        deviation = describe_differences(different, len(trained.hashes)) if different else ""
        if deviation:
            print(
                f"merge: {deviation}. {ROUNDING_CAUSE[params.quantization.quant_type]} rounds differently. "
                "The models are compared with the base as it is here. Merge where it was trained, or train here",
                flush=True,
            )
        parity, naive = compare_both(plan, reference, folder, params.merge, machine)
        if remark := judge_loss_gap(parity, params.merge):
            print(f"merge: {remark}", flush=True)
        write_text(folder / "README.md", merged_model_card(params, plan.adapter.config, parity, deviation))
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    write_json(
        METRICS / "merge.json",
        {
            "base": params.merge.base,
            "bytes": size,
            "merged_modules": len(plan.adapter),
            "tensors": read_json(BASE / "manifest.json")["tensors"],
            "values": {
                "compared": len(trained.hashes),
                "different": len(different),
                "largest_difference": max((difference.largest for difference in different), default=0.0),
            },
            "parity": parity,
            "naive": {name: naive[name] for name in ("loss_gap", "loss_merged", "kl", "top1_agreement")},
        },
    )
    return Outcome(
        f"{plural(len(plan.adapter), 'module')} merged onto the {params.merge.base} base; on "
        f"{plural(parity['tokens'], 'token')} the loss differs by {parity['loss_gap']:+.5f} "
        f"(merged onto 16 bits {naive['loss_gap']:+.5f}), KL {parity['kl']:.5f}, "
        f"top-1 agreement {parity['top1_agreement']:.2%}",
        timing,
    )


if __name__ == "__main__":
    stage_options("merge", __doc__)
    run_stage("merge", main)
