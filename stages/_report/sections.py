"""The report's sections, as text that both the Markdown and the HTML page print."""

from stages._report.data_section import data_section
from stages._report.layout import ReportSection, Table, spread
from stages._report.row_tables import interval_text, lost_tests_table, plain_rows, worse_rows_table
from stages._report.slice_tables import slice_tables
from stages._report.svg_charts import line_chart
from stages.comparison.measures import SHOWN_MEASURES, Measure, answers_are_code, label_of
from stages.comparison.number_text import NOTHING, number, ratio, share, size
from stages.core.model_card import base_name
from stages.core.statistics import FEW_ROWS, FEWEST_CLUSTERS, document_of, paired_change
from stages.runtime.counts import plural

BODY_MEASURE = "body_bits_per_byte"


def change_text(measure: Measure, before: float | None, after: float | None) -> str:
    """The difference of a measure, and whether it is better or worse."""
    if before is None or after is None:
        return NOTHING
    if before == after:
        return "none"
    return f"{measure.change(before, after)}, {'better' if (after < before) == measure.lower_is_better else 'worse'}"


def interval_verdict(values: dict, measure: Measure) -> str:
    """The interval of a difference, marked where it contains zero."""
    low, high = (values.get(f"{measure.name}_{end}", 0) for end in ("lo", "hi"))
    if low == high == 0:
        return NOTHING
    return interval_text(values, measure.name, measure.scale) + ("" if low > 0 or high < 0 else ", may be chance")


def interval_note(tuned: dict) -> str:
    """What the last column is."""
    if tuned["clusters"] < FEWEST_CLUSTERS:
        return f"There are no intervals of tuned − base, since fewer than {FEWEST_CLUSTERS} rows have none."
    return (
        "The last column is the 95 % interval of tuned − base in pairs, by drawing "
        f"{number(tuned['clusters'])} clusters of rows anew; shares in points."
    )


def answers_note(tuned: dict) -> str:
    """How many answers were generated."""
    if not tuned["generated_rows"]:
        return "No test row ends with an answer to generate, so there are no figures on answers."
    return (
        f"The rows on answers are over {number(tuned['generated_rows'])} generated ones; chrF and ROUGE-L are means "
        "over them."
    )


def comparison_section(base: dict, tuned: dict, differences: dict, rows: dict[str, list[dict]]) -> ReportSection:
    lines = []
    for measure in SHOWN_MEASURES:
        if measure.name not in base or measure.name not in tuned:
            continue
        if measure.name == BODY_MEASURE and not answers_are_code(tuned):  # the next table has it
            continue
        before, after = base[measure.name], tuned[measure.name]
        shown = [
            measure.show(before),
            measure.show(after),
            change_text(measure, before, after),
            interval_verdict(differences, measure),
        ]
        lines.append([measure.label, *shown])
    note = (
        f"Loss, perplexity, bits and likeliest tokens over the {number(tuned['tokens'])} answer tokens of "
        f"{number(tuned['rows'])} test rows; “after 8 tokens” leaves out the first 8 of each answer, which mostly "
        f"carry the format. {answers_note(tuned)} {interval_note(tuned)}"
        f"{one_document_remark(rows['tuned'])}"
    )
    lost = lost_tests_table(rows["base"], rows["tuned"])
    tables = [
        Table("On the test split", ["", "Base", "Tuned", "Change", "95 % interval"], lines),
        *([completions_table(base, tuned, rows)] if tuned["generated_rows"] else []),
        *slice_tables(rows["base"], rows["tuned"]),
        worse_rows_table(rows["base"], rows["tuned"]),
        *([lost] if lost else []),
    ]
    return ReportSection("Base against tuned", note, tables)


def completions_table(base: dict, tuned: dict, rows: dict[str, list[dict]]) -> Table:
    """Compares the tuned model with the base on completion prompts, the form that pre-training taught it."""
    plain, differences = base["plain"], paired_change(plain_rows(rows["base"]), rows["tuned"])
    lines = []
    for measure in SHOWN_MEASURES:
        if measure.name in plain and measure.name in tuned:
            values = [plain[measure.name], base[measure.name], tuned[measure.name]]
            shown = [
                *map(measure.show, values),
                change_text(measure, values[0], values[2]),
                interval_verdict(differences, measure),
            ]
            lines.append([label_of(measure, answers_are_code(tuned)), *shown])
    form = "by signature and docstring where there are any" if answers_are_code(tuned) else "as the beginning of a text"
    caption = f"Beyond the chat format: the base is also asked in plain text, {form}"
    return Table(caption, ["", "Base, plain text", "Base", "Tuned", "Change from plain text", "95 % interval"], lines)


def origin_section(manifest: dict, tokenize: dict) -> ReportSection:
    base = [["Model", base_name(manifest)], ["Commit", str(manifest.get("revision") or NOTHING)]]
    base += [["Parameters", number(manifest["parameters"])], ["Size", size(manifest["bytes"])]]
    names = {"rows": "Rows", "packed_rows": "Packed rows", "tokens": "Tokens", "trained_tokens": "Tokens trained on"}
    names |= {"truncated": "Rows cut to length", "dropped": "Rows dropped"}
    train, validation = tokenize["train"], tokenize["validation"]
    tokens = [[title, number(train[name]), number(validation[name])] for name, title in names.items()]
    tokens += [["Fill of the packed rows", share(train["fill"]), share(validation["fill"])]]
    return ReportSection(
        "What was trained on what",
        "",
        [
            Table("Base model", ["", "Value"], base),
            Table("Tokens", ["", "Train", "Validation"], tokens),
        ],
    )


def size_section(train: dict, merge: dict) -> ReportSection:
    full, small, adapter = train["base_bytes_16bit"], train["base_bytes_loaded"], train["adapter_bytes"]
    sizes = [
        ["Base in 16 bit", size(full), ""],
        ["Base as trained on", size(small), f"{ratio(full, small)} smaller"],
        ["Merged model", size(merge["bytes"]), ""],
        ["Adapter", size(adapter), f"{ratio(merge['bytes'], adapter)} smaller"],
        ["Trainable parameters", number(train["trainable_parameters"]), f"{share(train['trainable_share'], 2)} of all"],
    ]
    return ReportSection("Sizes", "", [Table("Models", ["", "Value", "Ratio"], sizes)])


def training_section(train: dict, curves: dict, validation_rows: int) -> ReportSection:
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
    note = few_rows_remark("The validation split", validation_rows, "so its loss says little")
    return ReportSection("Training", note, tables, charts)


def merge_section(merge: dict) -> ReportSection:
    ours, naive = merge["parity"], merge["naive"]
    rows = [
        ["Loss of base and adapter as trained", number(ours["loss_trained"]), number(ours["loss_trained"])],
        ["Loss of the merged model", number(ours["loss_merged"]), number(naive["loss_merged"])],
        ["Loss gap", number(ours["loss_gap"]), number(naive["loss_gap"])],
        [
            "95 % interval of the gap",
            interval_text(ours, "loss_gap") if ours["judged"] else "too few rows to judge",
            NOTHING,
        ],
        ["KL divergence, nats a token", number(ours["kl"]), number(naive["kl"])],
        ["Same most likely token", share(ours["top1_agreement"], 2), share(naive["top1_agreement"], 2)],
    ]
    facts = [
        ["Tokens compared", number(ours["tokens"])],
        ["Base that the adapter was merged into", merge["base"]],
        ["Modules merged", f"{number(merge['merged_modules'])} of {number(merge['tensors'])} tensors"],
    ]
    if compared := merge["values"]["compared"]:
        same = compared - merge["values"]["different"]
        facts += [["Modules with the very values of training", f"{number(same)} of {number(compared)}"]]
        if distance := merge["values"]["largest_difference"]:
            facts += [["Largest distance of the 1,024 sampled of each, of the largest", share(distance, 2)]]
    note = (
        "Whether the merged model says what the trained one said, on rows of the validation split. The last column is "
        "the usual merge, onto the 16-bit weights, which the adapter never saw."
    )
    parity = Table("Merged against trained", ["", "This model", "Merged onto 16 bits"], rows)
    return ReportSection("Merge", note, [parity, Table("The merge", ["", "Value"], facts)])


def versions_section(train: dict) -> ReportSection:
    rows = [[name, str(version)] for name, version in sorted(train["versions"].items())]
    return ReportSection("Library versions", "", [Table("As the training used them", ["", "Version"], rows)])


def headline(base: dict, tuned: dict) -> str:
    before, after = base["perplexity"], tuned["perplexity"]
    verdict = change_text(SHOWN_MEASURES[0], before, after)
    said = f"Perplexity on the test split: {number(before)} before, {number(after)} after ({verdict})."
    remark = few_rows_remark("The split", tuned["rows"], "so these figures say little")
    return f"{said} {remark}" if remark else said


def few_rows_remark(split: str, rows: int, meaning: str) -> str:
    """A sentence about a split with few rows, or an empty text.

    Args:
        split: How the sentence begins.
        rows: Those of the split.
        meaning: What is said of fewer than FEW_ROWS, if they are not too few for anything.
    """
    if rows >= FEW_ROWS:
        return ""
    too_few = "too few to judge a model by" if rows < FEWEST_CLUSTERS else meaning
    return f"{split} has only {plural(rows, 'row')}, {too_few}."


def one_document_remark(rows: list[dict]) -> str:
    """A sentence about test rows of one document, or an empty text."""
    documents = {document_of(row["source"]) for row in rows}
    if len(documents) > 1 or len(rows) < FEWEST_CLUSTERS:  # so few rows have no interval
        return ""
    return (
        f" All test rows come from one document, {documents.pop()}, and each counts as independent. If they resemble "
        "each other, the intervals are too narrow."
    )


def sections(inputs: dict) -> list[ReportSection]:
    """All sections in the order of the page. The sample generations are not among them."""
    return [
        comparison_section(inputs["base"], inputs["tuned"], inputs["change"], inputs["rows"]),
        origin_section(inputs["manifest"], inputs["tokenize"]),
        data_section(inputs["clean"], inputs["rejected"]),
        training_section(inputs["train"], inputs["curves"], inputs["clean"]["splits"]["validation"]),
        merge_section(inputs["merge"]),
        size_section(inputs["train"], inputs["merge"]),
        versions_section(inputs["train"]),
    ]
