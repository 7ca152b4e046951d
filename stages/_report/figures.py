"""The report's tables, as text that both the Markdown and the HTML page print."""

from collections.abc import Callable
from pathlib import PurePath
from typing import NamedTuple

from stages._report.charts import Chart, line_chart

NOTHING = "–"


class Table(NamedTuple):
    caption: str
    header: list[str]
    rows: list[list[str]]


class Section(NamedTuple):
    title: str
    note: str
    tables: list[Table]
    charts: tuple[Chart, ...] = ()


class Measure(NamedTuple):
    name: str
    label: str
    show: Callable[[float | None], str]
    change: Callable[[float, float], str]
    lower_is_better: bool


def number(value: float | None) -> str:
    """A count in full; a measurement to four digits."""
    if value is None:
        return NOTHING
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}"


def share(value: float | None, digits: int = 1) -> str:
    return NOTHING if value is None else f"{value:.{digits}%}"


def size(count: float | None) -> str:
    """Bytes in the decimal units that disks and hubs use."""
    if count is None:
        return NOTHING
    power = min(4, (len(str(round(count))) - 1) // 3)
    value, unit = count / 1000**power, ("B", "kB", "MB", "GB", "TB")[power]
    return f"{value:.0f} {unit}" if value >= 100 or not power else f"{value:.1f} {unit}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def times(large: float | None, small: float | None) -> str:
    return f"{large / small:,.1f}×" if large and small else NOTHING


def signed(text: str) -> str:
    """With a real minus sign, so that it lines up with the plus."""
    return text.replace("-", "−", 1) if text.startswith("-") else f"+{text}"


def relative(before: float, after: float) -> str:
    return signed(f"{(after - before) / before:.1%}") if before else NOTHING


def difference(before: float, after: float) -> str:
    return signed(number(after - before))


def points(before: float, after: float) -> str:
    return f"{signed(f'{100 * (after - before):.1f}')} points"


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


def origin(manifest: dict, clean: dict, tokenize: dict) -> Section:
    base = [["Model", base_name(manifest)], ["Commit", str(manifest.get("revision") or NOTHING)]]
    base += [["Parameters", number(manifest["parameters"])], ["Size", size(manifest["bytes"])]]
    read, rejected = clean["rows"]["read"], clean["rows"]["rejected"]

    def line(name: str, count: int) -> list[str]:
        return [name, number(count), share(count / read) if read else NOTHING]

    rows = [line("Read", read), *(line(f"Rejected: {reason}", rejected[reason]) for reason in sorted(rejected))]
    rows += [line("Kept", clean["rows"]["kept"])]
    rows += [line(f"Split: {name}", clean["splits"][name]) for name in ("train", "validation", "test")]
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
            Table("Rows", ["", "Rows", "Share of read"], rows),
            Table("Tokens", ["", "Train", "Validation"], tokens),
        ],
    )


def spread(items: list, most: int) -> list:
    """At most `most` of the items, in order, evenly apart."""
    chosen = min(most, len(items))
    return [items[(2 * place + 1) * len(items) // (2 * chosen)] for place in range(chosen)]


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
    full, small, adapter = train["base_bytes_16bit"], train["base_bytes_4bit"], train["adapter_bytes"]
    sizes = [
        ["Base in 16 bit", size(full), ""],
        ["Base in 4 bit", size(small), f"{times(full, small)} smaller"],
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
        origin(inputs["manifest"], inputs["clean"], inputs["tokenize"]),
        training(inputs["train"], inputs["curves"]),
        merging(inputs["merge"]),
        efficiency(inputs["train"], inputs["merge"], inputs["timing"]),
        versions(inputs["train"]),
    ]
