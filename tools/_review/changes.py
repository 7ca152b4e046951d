"""Finds what differs between two commits in Git: metrics.json, params.yaml, dvc.lock and the code."""

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from stages.comparison.gate import paired_interval, unpaired_interval, why_incomparable
from stages.comparison.measures import SHOWN_MEASURES
from stages.comparison.revisions import DVC_LOCK, Revision, git
from stages.core.code_hash import is_watched
from stages.core.paths import CODE, PARAMS, RESULT
from stages.core.yaml_files import read_yaml_text
from stages.runtime.errors import UserError

LOWER_IS_BETTER = {measure.name: measure.lower_is_better for measure in SHOWN_MEASURES}


def flatten(values: object, prefix: str = "") -> dict[str, object]:
    """{"a.b": value} of nested dicts. A list is a value."""
    if not isinstance(values, dict):
        return {prefix: values}
    return {
        name: value
        for key, inner in values.items()
        for name, value in flatten(inner, f"{prefix}.{key}" if prefix else str(key)).items()
    }


class Figure(NamedTuple):
    value: float
    interval: dict | None  # lo, hi


def figures(metrics: dict) -> dict[str, Figure]:
    """The numbers of metrics.json by their dotted names, each with its interval where it has one."""
    values = {name: value for name, value in flatten(metrics).items() if isinstance(value, int | float)}
    figures_by_name = {}
    for name, value in values.items():
        if name.endswith(("_lo", "_hi")) and name[:-3] in values:
            continue
        ends = {end: values.get(f"{name}_{end}") for end in ("lo", "hi")}
        figures_by_name[name] = Figure(value, None if None in ends.values() else ends)
    return figures_by_name


class Change(NamedTuple):
    """How a figure changed between two commits.

    Args:
        interval: Of the difference, where it is known.
        how: "in pairs" or "unpaired" where there is an interval, else empty.
    """

    name: str
    before: Figure | None
    after: Figure | None
    interval: tuple[float, float] | None
    how: str

    @property
    def arrow(self) -> str:
        if self.before is None or self.after is None:
            return ""
        difference = self.after.value - self.before.value
        return "↑" if difference > 0 else "↓" if difference < 0 else "="

    @property
    def verdict(self) -> str:
        """better, worse or may be chance. Empty where there is no interval, or nobody knows which way is better."""
        if self.arrow in ("", "=") or not self.interval:
            return ""
        if self.interval[0] <= 0 <= self.interval[1]:
            return "may be chance"
        lower = LOWER_IS_BETTER.get(self.name.rpartition(".")[2])
        return "" if lower is None else "better" if (self.arrow == "↓") == lower else "worse"


def metric_changes(base: Revision, head: Revision) -> list[Change]:
    """The changes of all figures of both commits, in the order of their names."""
    before, after = figures(base.metrics), figures(head.metrics)
    changes = []
    for name in sorted(before.keys() | after.keys()):
        earlier, later = before.get(name), after.get(name)
        interval, how = None, ""
        both = earlier and later and earlier.interval and later.interval
        if both and earlier != later and not why_incomparable(name, base, head):
            pair = paired_interval(name, base, head)
            interval = pair or unpaired_interval(earlier.value, later.value, earlier.interval, later.interval)
            how = "in pairs" if pair else "unpaired"
        changes.append(Change(name, earlier, later, interval, how))
    return changes


def param_changes(base: Revision, head: Revision) -> list[tuple[str, str | None, str | None]]:
    """(name, before, after) of each param that differs, as JSON. None where there is no such param."""
    before, after = (flatten(read_yaml_text(revision.text(PARAMS))) for revision in (base, head))
    names = [*before, *(name for name in after if name not in before)]
    return [
        (name, *(json.dumps(side[name], ensure_ascii=False) if name in side else None for side in (before, after)))
        for name in names
        if name not in before or name not in after or before[name] != after[name]
    ]


def hashes(entry: dict, kind: str) -> dict[str, str | None]:
    return {file["path"]: file.get("md5") or file.get("etag") for file in entry.get(kind, [])}


def differing_names(before: dict, after: dict) -> list[str]:
    return [name for name in {**before, **after} if before.get(name) != after.get(name)]


def changed_modules(base: Revision, head: Revision, dep: str) -> list[str]:
    """The modules whose hashes differ, for a file of the stage hash_code. Any other path alone."""
    if not dep.startswith(f"{CODE}/"):
        return [dep]
    contents = [revision.output(dep) for revision in (base, head)]
    if None in contents:  # nobody has the hashes of one side
        return [dep]
    return sorted(differing_names(*(json.loads(content) for content in contents)))


def reruns(base: Revision, head: Revision) -> list[tuple[str, dict[str, list[str]]]]:
    """(stage, {kind: what differs in its entry of dvc.lock}) of each stage that ran again, in the order of dvc.lock."""
    stages = []
    for stage in [*head.stages, *(stage for stage in base.stages if stage not in head.stages)]:
        before, after = base.stages.get(stage), head.stages.get(stage)
        if before == after:
            continue
        if before is None or after is None:
            stages.append((stage, {"new" if before is None else "gone": []}))
            continue
        reasons = {kind: differing_names(hashes(before, kind), hashes(after, kind)) for kind in ("deps", "outs")}
        reasons["deps"] = [name for dep in reasons["deps"] for name in changed_modules(base, head, dep)]
        reasons["params"] = differing_names(
            *(flatten(entry.get("params", {}).get(str(PARAMS), {})) for entry in (before, after))
        )
        reasons["command"] = ["changed"] if before.get("cmd") != after.get("cmd") else []
        stages.append((stage, {kind: names for kind, names in reasons.items() if names}))
    return stages


def content_md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


class Tree:
    """The files at a commit in Git, with their hashes as DVC takes them."""

    def __init__(self, commit: str) -> None:
        self.commit = commit
        lines = git("ls-tree", "-r", "-z", commit).decode(errors="surrogateescape").split("\0")
        entries = (line.partition("\t") for line in lines if line)
        self.blobs = {path: meta.split()[2] for meta, _, path in entries if meta.split()[1] == "blob"}
        self._known: dict[str, str] = {}

    def file(self, path: str) -> str:
        blob = self.blobs[path]
        if blob not in self._known:
            self._known[blob] = content_md5(git("cat-file", "blob", blob))
        return self._known[blob]

    def hash(self, path: str) -> str | None:
        """The hash of a file or folder. None for what Git does not have."""
        if path in self.blobs:
            return self.file(path)
        inside = sorted(name for name in self.blobs if name.startswith(f"{path}/") and is_watched(Path(name)))
        if not inside:
            return None
        listing = [{"md5": self.file(name), "relpath": name[len(path) + 1 :]} for name in inside]
        return content_md5(json.dumps(listing, sort_keys=True).encode()) + ".dir"

    def lost(self, path: str, made: dict) -> bool:
        """Whether Git had the path once and has nothing in its place now.

        A file, a file of DVC and a stage's output all count as something.
        """
        inside = PurePosixPath(path)
        if inside.is_absolute() or ".." in inside.parts or self.hash(path):
            return False
        if any(str(parent) in made or f"{parent}.dvc" in self.blobs for parent in (inside, *inside.parents)):
            return False
        return bool(git("--literal-pathspecs", "log", "-1", "--format=%H", self.commit, "--", path))


def staleness(head: Revision, commit: str) -> list[str]:
    """Why this commit's code, params and data do not make its metrics.json or dvc.lock. Empty where they do.

    It finds what `dvc repro --dry --allow-missing` would find, except changed commands. It does not run DVC on the
    commit.
    """
    tree = Tree(commit)
    params = flatten(read_yaml_text(head.text(PARAMS)))
    made = {out["path"]: out.get("md5") for stage in head.stages.values() for out in stage.get("outs", [])}
    problems = []
    for stage, entry in head.stages.items():
        wrong = [
            path
            for path, digest in hashes(entry, "deps").items()
            if digest is not None and (digest != made.get(path, tree.hash(path) or digest) or tree.lost(path, made))
        ]
        recorded = flatten(entry.get("params", {}).get(str(PARAMS), {}))
        wrong += [name for name, value in recorded.items() if params.get(name) != value]
        wrong += [name for name in params if name not in recorded and name.partition(".")[0] in entry_sections(entry)]
        if wrong:
            problems.append(f"{stage} ran with another state of {', '.join(wrong[:4])}" + (", …" if wrong[4:] else ""))
    if not head.stages:
        problems.append(f"{DVC_LOCK} has no stage")
    for path, digest in made.items():
        if path in tree.blobs and tree.file(path) != digest:
            problems.append(f"{path} is not the one that its stage wrote")
    if str(RESULT) not in made:
        problems.append(f"no stage in {DVC_LOCK} wrote {RESULT}")
    return problems


def entry_sections(entry: dict) -> set[str]:
    return {name for name, value in entry.get("params", {}).get(str(PARAMS), {}).items() if isinstance(value, dict)}


def merge_base(base: str, head: str) -> str:
    """The commit where the branch left the base. What the base got later must not look removed here.

    Raises:
        UserError: They have no commit in common.
    """
    try:
        return git("merge-base", "--end-of-options", base, head).decode().strip()
    except UserError as error:
        raise UserError(
            f"{base} and {head} have no commit in common here ({error or 'none was found'}). In a shallow clone, "
            "`git fetch --unshallow` first"
        ) from None
