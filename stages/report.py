"""Report: metrics/, the predictions and rows of both evaluations, all params that shape the result → metrics.json,
reports/.

metrics.json holds every figure under its stage's name. It is the one result in Git, for `dvc metrics diff`.
reports/report.md and reports/report.html (one self-contained file) show the data, the training and the results.
reports/model-card.md is for people who get the merged model.

    dvc repro report
    python -m stages.report --show    # prints the last results, writes metrics/timing/times.html
    python -m stages.report --gate    # checks report.gates, and exits with 1 where one failed
"""

from stages.runtime.stage_options import stage_options

import sys

from stages._report.data_section import sampled
from stages._report.inputs import read_curve, read_rejected, read_values
from stages._report.layout import spread
from stages._report.metrics import collect_metrics
from stages._report.model_card import card_values
from stages._report.page import page_script, template_environment
from stages._report.predictions import answer_pairs, read_predictions, verdict
from stages._report.row_tables import KINDS, check_same_rows, plain_rows, read_evaluated_rows, row_lines, row_measures
from stages._report.sections import headline, sections
from stages._report.times import write_times_page
from stages.comparison.gate import judge_gates
from stages.comparison.measures import SHOWN_MEASURES
from stages.core.params import Params, load_params
from stages.core.paths import (
    CURVE,
    EVALUATIONS,
    METRICS,
    REPORTS,
    RESULT,
    VALIDATION_CURVE,
    whole_directory,
    write_json,
    write_text,
)
from stages.core.statistics import FEW_ROWS, paired_change
from stages.runtime.counts import plural
from stages.runtime.errors import UserError
from stages.runtime.runner import Outcome, run_stage

IN_CONSOLE = ("perplexity", "perplexity_after_8", "ended_share", "parses_share", "chrf", "call_arguments_share")


def check_equal_evaluations(base: dict, tuned: dict) -> None:
    """Checks that base and tuned were evaluated on the same tokens.

    Perplexities over different tokens do not compare models.

    Raises:
        UserError: A count of the two evaluations differs.
    """
    for name in ("rows", "tokens", "generated_rows", "tested_rows"):
        if base[name] != tuned[name]:
            raise UserError(
                f"the evaluation of base has {name}: {base[name]}, that of tuned {tuned[name]}, so they cannot be "
                "compared. Run `dvc repro --force evaluate`"
            )


def report(inputs: dict, samples: int) -> dict:
    """Makes all that the stage writes from what the other stages measured.

    Args:
        inputs: As main() reads them.
        samples: How many generated answers the report shows.

    Returns:
        {"metrics": for metrics.json, "markdown": …, "html": …, "card": the model card}

    Raises:
        UserError: Base and tuned were not evaluated on the same rows.
    """
    check_equal_evaluations(inputs["base"], inputs["tuned"])
    check_same_rows(inputs["rows"]["base"], inputs["rows"]["tuned"])
    before, after = inputs["rows"]["base"], inputs["rows"]["tuned"]
    inputs = inputs | {"change": paired_change(before, after), "change_plain": paired_change(plain_rows(before), after)}
    generated = answer_pairs(inputs["predictions"]["base"], inputs["predictions"]["tuned"])
    page = {
        "headline": headline(inputs["base"], inputs["tuned"]),
        "sections": sections(inputs),
        "samples": spread(generated, samples),
        "samples_note": samples_note(len(spread(generated, samples)), len(generated)),
        "lines": row_lines(inputs["rows"], generated),
        "evaluated": len(inputs["rows"]["base"]),
        "kinds": KINDS,
        "measures": row_measures(bool(generated)),
        "verdict": verdict,
        **page_script(),
    }
    environment = template_environment()
    return {
        "metrics": collect_metrics(inputs),
        "markdown": environment.get_template("report.md.j2").render(page),
        "html": environment.get_template("report.html.j2").render(page),
        "card": environment.get_template("model-card.md.j2").render(card_values(inputs)),
    }


def samples_note(shown: int, generated: int) -> str:
    if not generated:
        return "No test row ends with an answer to generate."
    return f"{shown} of {generated} generated answers, evenly spread over them."


def closing_table(base: dict, tuned: dict) -> str:
    """A few lines for a terminal that compare base and tuned."""
    lines = [f"{'':32}{'base':>10}{'tuned':>10}"]
    for measure in SHOWN_MEASURES:
        if measure.name in IN_CONSOLE and measure.name in base and measure.name in tuned:
            before, after = measure.show(base[measure.name]), measure.show(tuned[measure.name])
            lines.append(f"{measure.label:32}{before:>10}{after:>10}")
    return "\n".join(f"  {line}" for line in lines)


def print_results() -> None:
    """Prints the results of the last run, and writes the page of times."""
    try:
        evaluations = read_values(RESULT, "result")["evaluate"]
        times = write_times_page()
    except UserError as error:
        sys.exit(f"report: {error}")
    print(closing_table(evaluations["base"], evaluations["tuned"]))
    rows = evaluations["tuned"]["rows"]
    few = ", too few to say much" if rows < FEW_ROWS else ""
    print(f"  {plural(rows, 'test row')}{few}; the whole report: {REPORTS / 'report.html'}")
    print(f"  times and memory: {times or 'none, since no stage ran in this folder'}")


def print_gates() -> None:
    """Prints the verdict of each gate in report.gates. Ends the process with 1 where one failed."""
    try:
        verdicts = judge_gates(load_params().report.gates)
    except UserError as error:
        sys.exit(f"report: {error}")
    for gate in verdicts:
        word = "FAILED" if gate.failed else "passed" if gate.judged else "skipped"
        print(f"{word}: {gate.line}")
    if any(gate.failed for gate in verdicts):
        sys.exit(1)


def result_params(params: Params) -> dict:
    """{section: values} of the params that shape the result.

    Each is named here, so that a test can compare dvc.yaml with it.
    """
    sections = {
        "model": params.model,
        "data": params.data,
        "clean": params.clean,
        "prompt": params.prompt,
        "tokenize": params.tokenize,
        "quantization": params.quantization,
        "lora": params.lora,
        "train": params.train,
        "merge": params.merge,
        "evaluate": params.evaluate,
    }
    return {"seed": params.seed} | {name: section.model_dump() for name, section in sections.items()}


def main(params: Params) -> Outcome:
    inputs = {name: read_values(METRICS / f"{name}.json", name) for name in ("clean", "tokenize", "train", "merge")}
    inputs |= {name: read_values(EVALUATIONS / f"{name}.json", name) for name in ("base", "tuned")}
    inputs["rejected"] = read_rejected(METRICS / "clean.rejected.json", sampled(inputs["clean"]))
    inputs["manifest"] = read_values(METRICS / "download_model.json", "manifest")
    inputs["curves"] = {
        "train": read_curve(CURVE, "loss"),
        "learning_rate": read_curve(CURVE, "learning_rate"),
        "validation": read_curve(VALIDATION_CURVE, "loss"),
    }
    inputs["predictions"] = {
        name: read_predictions(EVALUATIONS / f"{name}.predictions.jsonl") for name in ("base", "tuned")
    }
    inputs["rows"] = {name: read_evaluated_rows(EVALUATIONS / f"{name}.rows.jsonl") for name in ("base", "tuned")}
    inputs["params"] = result_params(params)
    result = report(inputs, params.report.samples)
    with whole_directory(REPORTS) as folder:
        write_text(folder / "report.md", result["markdown"])
        write_text(folder / "report.html", result["html"])
        write_text(folder / "model-card.md", result["card"])
    write_json(RESULT, result["metrics"])
    return Outcome(f"{RESULT} and {REPORTS} written")


if __name__ == "__main__":
    options = stage_options("report", __doc__)
    if options.show:
        print_results()
    elif options.gate:
        print_gates()
    else:
        run_stage("report", main)
