"""The report's tables, as text that both the Markdown and the HTML page print."""

from collections.abc import Callable
from pathlib import PurePath
from typing import NamedTuple

from stages._report.charts import line_chart
from stages._report.data import data
from stages._report.parts import (
    NOTHING,
    Section,
    Table,
    difference,
    duration,
    number,
    points,
    relative,
    share,
    size,
    spread,
    times,
)


class Measure(NamedTuple):
    name: str
    label: str
    show: Callable[[float | None], str]
    change: Callable[[float, float], str]
    lower_is_better: bool


MEASURES = (
    Measure("perplexity", "Perplexity", number, relative, True),
    Measure("perplexity_after_8", "Perplexity after 8 tokens", number, relative, True),
    Measure("loss", "Loss, nats a token", number, difference, True),
    Measure("loss_after_8", "Loss after 8 tokens", number, difference, True),
    Measure("ended_share", "Answers that end by themselves", share, points, False),
    Measure("parses_share", "Answers that parse as Python", share, points, False),
    Measure("chrf", "chrF against the reference", number, difference, False),
)


def change(measure: Measure, before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return NOTHING
    if before == after:
        return "none"
    return f"{measure.change(before, after)}, {'better' if (after < before) == measure.lower_is_better else 'worse'}"


def comparison(base: dict, tuned: dict) -> Section:
    rows = []
    for measure in MEASURES:
        before, after = base[measure.name], tuned[measure.name]
        rows.append([measure.label, measure.show(before), measure.show(after), change(measure, before, after)])
    note = (
        f"Loss and perplexity over the {number(tuned['tokens'])} answer tokens of {number(tuned['rows'])} test rows; "
        f"“after 8 tokens” leaves out the first 8 of each answer, which mostly carry the format. "
        f"The last three rows are over {number(tuned['generated_rows'])} generated answers."
    )
    return Section("Base against tuned", note, [Table("On the test split", ["", "Base", "Tuned", "Change"], rows)])


def base_name(manifest: dict) -> str:
    """Where the base came from; a path outside the repository is a matter of one machine, so only its end is told."""
    name = str(manifest.get("id") or manifest.get("path") or "a local folder")
    return PurePath(name).name if PurePath(name).is_absolute() else name


def origin(manifest: dict, tokenize: dict) -> Section:
    base = [["Model", base_name(manifest)], ["Commit", str(manifest.get("revision") or NOTHING)]]
    base += [["Parameters", number(manifest["parameters"])], ["Size", size(manifest["bytes"])]]
    names = {"rows": "Rows", "packed_rows": "Packed rows", "tokens": "Tokens", "trained_tokens": "Tokens trained on"}
    names |= {"truncated": "Rows cut to length", "dropped": "Rows dropped"}
    train, validation = tokenize["train"], tokenize["validation"]
    tokens = [[title, number(train[name]), number(validation[name])] for name, title in names.items()]
    tokens += [["Fill of the packed rows", share(train["fill"]), share(validation["fill"])]]
    return Section(
        "What was trained on what",
        "",
        [
            Table("Base model", ["", "Value"], base),
            Table("Tokens", ["", "Train", "Validation"], tokens),
        ],
    )


def training(train: dict, curves: dict) -> Section:
    summary = [
        ["Optimizer steps", number(train["steps"])],
        ["Tokens seen", number(train["tokens"])],
        ["Tokens trained on", number(train["trained_tokens"])],
        ["Train loss, first and last", f"{number(train['loss_first'])} → {number(train['loss_last'])}"],
        [
            "Validation loss, before and after",
            f"{number(train['validation_loss_start'])} → {number(train['validation_loss'])}",
        ],
    ]
    looks = [[number(step), number(loss)] for step, loss in spread(curves["validation"], 12)]
    tables = [Table("The run", ["", "Value"], summary)]
    if looks:
        tables.append(Table("Validation loss", ["Step", "Loss, nats a token"], looks))
    loss = {"train": curves["train"], "validation": curves["validation"]}
    charts = (
        line_chart("loss", "Loss, nats a token", loss, ["first", "second"]),
        line_chart("rate", "Learning rate", {"learning rate": curves["learning_rate"]}, ["first"], zero=True),
    )
    return Section("Training", "", tables, charts)


def merging(merge: dict) -> Section:
    parity = merge["parity"]
    rows = [
        ["Loss of base and adapter", number(parity["loss_trained"])],
        ["Loss of the merged model", number(parity["loss_merged"])],
        ["Loss gap", number(parity["loss_gap"])],
        ["KL divergence, nats a token", number(parity["kl"])],
        ["Same most likely token", share(parity["top1_agreement"], 2)],
        ["Tokens compared", number(parity["tokens"])],
        ["Base that the adapter was merged into", merge["base"]],
        ["Modules merged", f"{number(merge['merged_modules'])} of {number(merge['tensors'])} tensors"],
    ]
    note = "Whether the merged model says what the trained one said, on rows of the validation split."
    return Section("Merge", note, [Table("Merged against trained", ["", "Value"], rows)])


def efficiency(train: dict, merge: dict, timing: dict) -> Section:
    full, small, adapter = train["base_bytes_16bit"], train["base_bytes_loaded"], train["adapter_bytes"]
    sizes = [
        ["Base in 16 bit", size(full), ""],
        ["Base as trained on", size(small), f"{times(full, small)} smaller"],
        ["Merged model", size(merge["bytes"]), ""],
        ["Adapter", size(adapter), f"{times(merge['bytes'], adapter)} smaller"],
        ["Trainable parameters", number(train["trainable_parameters"]), f"{share(train['trainable_share'], 2)} of all"],
    ]
    note = "Tokens/s are those seen in train, and those generated in evaluate."
    if device := timing["train"].get("device"):
        note = f"Trained on {device}. {note}"
    return Section("Efficiency", note, [Table("Sizes", ["", "Value", "Ratio"], sizes), stage_costs(timing)])


def gpu_memory(values: dict) -> float | None:
    """Without a GPU peak_memory_bytes is the process's own once more."""
    return None if values.get("device", "cpu") == "cpu" else values.get("peak_memory_bytes")


def stage_costs(timing: dict) -> Table:
    on_gpu = any(gpu_memory(values) for values in timing.values())
    rows = []
    for stage, values in timing.items():
        rate = values.get("tokens_per_second", values.get("generated_tokens_per_second"))
        memory = [size(values["peak_rss_bytes"]), *([size(gpu_memory(values))] if on_gpu else [])]
        rows.append([stage, duration(values["seconds"]), *memory, number(rate)])
    memory = ["Peak memory", *(["Peak GPU memory"] if on_gpu else [])]
    return Table("Stages", ["", "Time", *memory, "Tokens/s"], rows)


def versions(train: dict) -> Section:
    rows = [[name, str(version)] for name, version in sorted(train["versions"].items())]
    return Section("Library versions", "", [Table("As the training used them", ["", "Version"], rows)])


def headline(base: dict, tuned: dict) -> str:
    before, after = base["perplexity"], tuned["perplexity"]
    verdict = change(MEASURES[0], before, after)
    return f"Perplexity on the test split: {number(before)} before, {number(after)} after ({verdict})."


def sections(inputs: dict) -> list[Section]:
    """The page from top to bottom, the sample generations apart."""
    return [
        comparison(inputs["base"], inputs["tuned"]),
        origin(inputs["manifest"], inputs["tokenize"]),
        data(inputs["clean"], inputs["rejected"]),
        training(inputs["train"], inputs["curves"]),
        merging(inputs["merge"]),
        efficiency(inputs["train"], inputs["merge"], inputs["timing"]),
        versions(inputs["train"]),
    ]
