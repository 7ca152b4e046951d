"""The report's section on sizes, times and memory."""

from stages._report.layout import ReportSection, Table
from stages.comparison.number_text import duration, number, ratio, share, size


def efficiency_section(train: dict, merge: dict, timing: dict) -> ReportSection:
    full, small, adapter = train["base_bytes_16bit"], train["base_bytes_loaded"], train["adapter_bytes"]
    sizes = [
        ["Base in 16 bit", size(full), ""],
        ["Base as trained on", size(small), f"{ratio(full, small)} smaller"],
        ["Merged model", size(merge["bytes"]), ""],
        ["Adapter", size(adapter), f"{ratio(merge['bytes'], adapter)} smaller"],
        ["Trainable parameters", number(train["trainable_parameters"]), f"{share(train['trainable_share'], 2)} of all"],
    ]
    note = "Tokens/s are those seen in train, and those generated in evaluate."
    if device := timing["train"].get("device"):
        note = f"Trained on {device}. {note}"
    return ReportSection("Efficiency", note, [Table("Sizes", ["", "Value", "Ratio"], sizes), stage_costs(timing)])


def gpu_memory(values: dict) -> float | None:
    """Peak GPU memory in bytes. None without a GPU, where peak_memory_bytes is the process's own memory."""
    return None if values.get("device", "cpu") == "cpu" else values.get("peak_memory_bytes")


def without_repeats(timing: dict) -> dict:
    """A stage's timing file without the figure that repeats another."""
    return {name: value for name, value in timing.items() if name != "peak_memory_bytes" or gpu_memory(timing)}


def stage_costs(timing: dict) -> Table:
    on_gpu = any(gpu_memory(values) for values in timing.values())
    rows = []
    for stage, values in timing.items():
        rate = values.get("tokens_per_second", values.get("generated_tokens_per_second"))
        memory = [size(values["peak_rss_bytes"]), *([size(gpu_memory(values))] if on_gpu else [])]
        rows.append([stage, duration(values["seconds"]), *memory, number(rate)])
    memory = ["Peak memory", *(["Peak GPU memory"] if on_gpu else [])]
    return Table("Stages", ["", "Time", *memory, "Tokens/s"], rows)
