"""The diagrams of docs/architecture.md, in Mermaid, which GitHub draws."""

import re
from pathlib import Path

from stages.runtime.counts import plural
from tools._architecture.modules import MAY_IMPORT, Module, room_of

HASHES = ".code"  # the hashes of code that every stage depends on
METRICS = "metrics"
FEW = 2  # names that stand at an arrow
ROOMS = {
    "bench": "<b>bench/</b><br>measurements",
    "tools": "<b>tools/</b><br>commands for people",
    "stages": "<b>stages/&lt;stage&gt;.py</b><br>the stages",
    "private": "<b>stages/_&lt;stage&gt;/</b><br>parts of one stage",
    "comparison": "<b>stages/comparison/</b><br>compares commits",
    "core": "<b>stages/core/</b><br>computes results",
    "runtime": "<b>stages/runtime/</b><br>runs a stage",
}


BELOW = ("core", "runtime")  # every other room imports both


def expand(declared: dict) -> dict[str, dict[str, list[str]]]:
    """Returns {stage: its deps, outs and params} of dvc.yaml, without the hashes of code.

    Each item of a foreach is a stage. A value of params.yaml stays as its key, such as model.path.
    """
    stages = {}
    for name, entry in declared.items():
        for key, item in entry.get("foreach", {"": {}}).items():
            values = {"key": key} | {f"item.{field}": value for field, value in item.items()}
            body = entry.get("do", entry)
            deps = [fill(path, values) for path in body["deps"]]
            outs = [fill(path, values) for path in [*body["outs"], *body.get("metrics", [])]]
            stages[f"{name}@{key}" if key else name] = {
                "deps": [path for path in deps if not path.startswith(HASHES)],
                "outs": [path for path in outs if not path.startswith(HASHES)],
                "params": body.get("params", []),
            }
    return {name: stage for name, stage in stages.items() if stage["outs"]}


def fill(path: str | dict, values: dict[str, str]) -> str:
    text = path if isinstance(path, str) else next(iter(path))
    return re.sub(r"\$\{([\w.]+)\}", lambda match: values.get(match[1], match[1]), text)


def artifact(path: str, made: list[str]) -> str:
    """Returns the output that a path is or lies in, else the path itself. The metrics of all stages count as one."""
    if Path(path).parts[0] == METRICS:
        return METRICS
    return next((out for out in made if Path(path).is_relative_to(out)), path)


def inputs(stage: dict, made: list[str]) -> dict[str, list[str]]:
    """Returns {artifact that a stage reads: the files in it that it reads, or nothing if it reads all}."""
    files: dict[str, list[str]] = {}
    for path in stage["deps"]:
        names = files.setdefault(source := artifact(path, made), [])
        if source not in (path, METRICS):
            names.append(Path(path).stem)
    return files


def outputs(stage: dict) -> list[str]:
    """Returns what a stage writes. Its metrics are left out if it writes something else too."""
    written = list(dict.fromkeys(artifact(path, stage["outs"]) for path in stage["outs"]))
    return [path for path in written if path != METRICS] or written


def box(name: str, text: str, ends: tuple[str, str], kind: str) -> str:
    return f'  {identifier(name)}{ends[0]}"{text}"{ends[1]}:::{kind}'


def identifier(name: str) -> str:
    """Returns a name without the signs and words that Mermaid takes for its own."""
    return "n_" + re.sub(r"\W", "_", name)


def arrow(source: str, target: str, label: str = "") -> str:
    text = f'|"{label}"|' if label else ""
    return f"  {identifier(source)} -->{text} {identifier(target)}"


def data_flow(stages: dict[str, dict]) -> str:
    """Returns the diagram of stages and artifacts."""
    made = [path for stage in stages.values() for path in stage["outs"]]
    read = {name: inputs(stage, made) for name, stage in stages.items()}
    written = {name: outputs(stage) for name, stage in stages.items()}
    artifacts = dict.fromkeys(path for name in stages for path in (*read[name], *written[name]))
    lines = ["flowchart TD"]
    lines += [box(name, f"<b>{name}</b>", ("[", "]"), "stage") for name in stages]
    lines += [box(path, path, ("([", "])"), "made" if path in (*made, METRICS) else "given") for path in artifacts]
    lines += [arrow(path, name, ", ".join(files)) for name in stages for path, files in read[name].items()]
    lines += [arrow(name, path) for name in stages for path in written[name]]
    return "\n".join([*lines, "  classDef stage stroke-width:3px", "  classDef given stroke-dasharray:4"])


def unit(path: Path) -> str:
    """Returns the stage or tool that a module belongs to, such as `report` for stages/_report/page.py."""
    return Path(path.parts[1]).stem.lstrip("_")


def rooms(modules: dict[Path, Module]) -> str:
    """Returns the diagram of rooms and imports, without the imports of core and runtime."""
    lines = ["flowchart TD"]
    for room, text in ROOMS.items():
        count = sum(room_of(path) == room for path in modules)
        lines.append(box(room, f"{text}<br>{plural(count, 'module')}", ("[", "]"), "room"))
    pairs = [(module.path, target) for module in modules.values() for target in module.imports]
    for room in MAY_IMPORT:
        for other in MAY_IMPORT:
            between = [pair for pair in pairs if (room_of(pair[0]), room_of(pair[1])) == (room, other)]
            if room == other or other in BELOW or not between:
                continue
            sides = [sorted({unit(pair[side]) for pair in between}) for side in (0, 1)]
            by, only = (", ".join(names) if len(names) <= FEW else "" for names in sides)
            own = "each its own" if (room, other) == ("stages", "private") else ""
            lines.append(arrow(room, other, own or (by and f"by {by}") or (only and f"only {only}")))
    lines += ['  subgraph n_below["imported by all the others"]', "    n_core <--> n_runtime", "  end"]
    return "\n".join([*lines, arrow("comparison", "below"), "  classDef room text-align:left"])
