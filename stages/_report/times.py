"""Shows what the stages took when they last ran on this machine. The page is in no report, since each run differs."""

from pathlib import Path

from stages._report.inputs import read_values
from stages._report.layout import Table
from stages._report.page import template_environment
from stages._report.pipeline_drawing import PLACES, drawing
from stages.comparison.number_text import NOTHING, duration, number, size
from stages.core.paths import TIMING, timing_file, write_text

PAGE = TIMING / "times.html"


def read_times() -> dict[str, dict]:
    """{stage: its timing file}, for the stages that ran here.

    Raises:
        UserError: A timing file is damaged.
    """
    return {stage: read_values(timing_file(stage), "timing") for stage in PLACES if timing_file(stage).exists()}


def gpu_memory(values: dict) -> float | None:
    """Peak GPU memory in bytes. None without a GPU, where peak_memory_bytes is the process's own memory."""
    return None if values.get("device", "cpu") == "cpu" else values.get("peak_memory_bytes")


def stage_costs(timing: dict[str, dict]) -> Table:
    on_gpu = any(gpu_memory(values) for values in timing.values())
    rows = []
    for stage, values in timing.items():
        rate = values.get("tokens_per_second", values.get("generated_tokens_per_second"))
        memory = [size(values["peak_rss_bytes"]), *([size(gpu_memory(values))] if on_gpu else [])]
        ended = values["ended"].replace("T", " ").replace("+00:00", "")
        rows.append([stage, ended, duration(values["seconds"]), *memory, number(rate), values.get("device", NOTHING)])
    memory = ["Peak memory", *(["Peak GPU memory"] if on_gpu else [])]
    return Table("Last runs", ["", "Ended (UTC)", "Time", *memory, "Tokens/s", "Device"], rows)


def write_times_page() -> Path | None:
    """Writes the page of times. Returns its path, or None where no stage ran in this clone."""
    timing = read_times()
    page = {"table": stage_costs(timing) if timing else None, "drawing": drawing(timing)}
    write_text(PAGE, template_environment().get_template("times.html.j2").render(page))
    return PAGE if timing else None
