"""Which stages `dvc repro` would run, and why; nothing is run or changed.

    python -m tools.plan [-S KEY=VALUE ...] [--check]

It reads dvc.yaml, dvc.lock, params.yaml and the code through DVC's own index, so it works in a clone that has Git only.
There it also names the stages that plain `dvc repro` would run only because their outputs are missing, and says what
`dvc repro --pull --allow-missing` would do. -S tries a value as `dvc exp run` would. --check is for CI: it exits with 1
if something changed. (`dvc repro --dry` stops at the first changed stage, and `dvc status` takes missing data for
changed.)

A stage that follows another one runs only if that one's output changes. For code this is known here: the stage
hash_code runs after each edit, and the plan names the modules whose hashes change. A changed stage whose result is in
DVC's run cache does not run either. DVC takes the result from there.
"""

from stages.runtime.command import command_parser, explained

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.core.code_hash import check_unhashed, stage_hashes
from stages.core.params import check_params
from stages.core.paths import CODE, PARAMS, json_text
from stages.core.yaml_files import read_yaml, read_yaml_text
from stages.runtime.errors import UserError

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc.stage import Stage

MISSING = object()
FILES = 3


@dataclass(frozen=True)
class Planned:
    """A stage: what changed for it, and the stages before it that would run.

    Args:
        absent: an output of it is not here.
        lost: an output of it is not in DVC's cache either.
    """

    name: str
    changed: list[str]
    after: list[str]
    absent: bool = False
    lost: bool = False

    @property
    def runs(self) -> bool:
        return bool(self.changed or self.after)


def leaves(value: object, prefix: str) -> dict[str, object]:
    """{dotted key: value} of nested dicts."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {key: leaf for name, inner in value.items() for key, leaf in leaves(inner, f"{prefix}.{name}").items()}


def changed_params(locked: dict, declared: list[str], values: dict) -> Iterator[str]:
    """A line for each key below the declared ones that differs from what dvc.lock has."""
    now_set = leaves(values, "")
    for section in declared:
        old = leaves(locked[section], section) if section in locked else {}
        new = {key[1:]: value for key, value in now_set.items() if f"{key}.".startswith(f".{section}.")}
        for key in sorted(old.keys() | new.keys()):
            before, now = old.get(key, MISSING), new.get(key, MISSING)
            if before != now:
                yield f"{key}: {shown(before)} → {shown(now)}"


def shown(value: object) -> str:
    return "unset" if value is MISSING else "null" if value is None else str(value)


def looked_at(stage: "Stage", values: dict, after: list[str]) -> Planned:
    """A stage by itself, when the stages `after` of those before it would run."""
    from dvc.dependency.param import ParamsDependency

    if not any(dep.hash_info for dep in stage.deps):
        return Planned(stage.addressing, ["it has never run, by dvc.lock"], after)
    changed = []
    after = [name for name in after if name != "hash_code"]  # what it would make is known
    made_before = [out for other in stage.repo.index.graph.successors(stage) for out in other.outs]
    for dep in stage.deps:
        made = next((out for out in made_before if Path(dep.fs_path).is_relative_to(out.fs_path)), None)
        if isinstance(dep, ParamsDependency):
            changed += changed_params(dep.hash_info.value or {}, dep.params, values)
        elif dep.def_path.startswith(f"{CODE}/"):
            changed += [f"{file} (modified)" for file in changed_code(dep, made)]
        elif made is None:
            changed += [f"{path} ({'missing' if state == 'deleted' else state})" for path, state in states(dep)]
        elif made.stage.addressing not in after and is_made_anew(dep, made):  # else that stage is told of
            changed.append(f"{dep} was made anew" if dep.hash_info else f"{dep} (new)")
    if stage.changed_stage():
        changed.append("its command in dvc.yaml")
    outs = [pair for out in stage.outs for pair in states(out)]
    if differing := [path for path, state in outs if state != "deleted"]:
        changed.append(f"not as in dvc.lock: {', '.join(differing)}. `dvc checkout` brings back what the cache has")
    absent = any(state == "deleted" for _, state in outs)
    return Planned(stage.addressing, changed, after, absent, any(map(is_lost, stage.outs)))


def is_lost(out: "Output") -> bool:
    """Whether DVC has to run an output's stage to have it: it is not in the cache, and metrics.json not here."""
    return out.changed_cache() if out.use_cache else not out.exists


def changed_code(dep: "Output", made: "Output") -> list[str]:
    """The modules whose hashes are not those that the stage had when it ran."""
    stage = Path(dep.def_path).stem
    hashes = stage_hashes(stage)
    md5 = hashlib.md5(json_text(hashes).encode(), usedforsecurity=False).hexdigest()
    if dep.hash_info and dep.hash_info.value == md5:
        return []
    former: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):  # a clone that has Git only does not have the former hashes
        former = json.loads(Path(made.cache.oid_to_path(dep.hash_info.value)).read_text(encoding="utf-8"))
    if not former:
        return [f"code of {stage}"]
    return sorted(file for file in former.keys() | hashes.keys() if former.get(file) != hashes.get(file))


def is_made_anew(dep: "Output", made: "Output") -> bool:
    """Whether dvc.lock has other bytes for what a stage made than for what the one that reads it was given: it ran
    alone, or the reader was stopped. Of a file in a folder this is known only where the cache has the folder's list."""
    if dep.fs_path == made.fs_path:
        return dep.hash_info != made.hash_info
    held = made.get_obj(filter_info=dep.fs_path)
    return held is not None and dep.hash_info != held.hash_info


def states(output: "Output") -> list[tuple[str, str]]:
    """Its path and how it differs from dvc.lock, or nothing; a dependency is an output, too, for DVC."""
    return list(output.workspace_status().items())


def plan(repo: "Repo", values: dict) -> list[Planned]:
    """Every stage in the order in which DVC would run them; `values` are those of params.yaml."""
    import networkx
    from dvc.stage import PipelineStage

    # From a stage to those whose outputs it reads. A .dvc file, which `dvc add` makes, is no stage that could run.
    graph = repo.index.graph.subgraph(stage for stage in repo.index.stages if isinstance(stage, PipelineStage))
    planned: dict[Stage, Planned] = {}
    for stage in networkx.lexicographical_topological_sort(graph.reverse(), key=lambda stage: place(repo, stage)):
        after = sorted(planned[other].name for other in graph.successors(stage) if planned[other].runs)
        planned[stage] = looked_at(stage, values, after)
    return list(planned.values())


def place(repo: "Repo", stage: "Stage") -> int:
    """Where it stands in dvc.yaml."""
    return repo.index.stages.index(stage)


def with_overrides(values: dict, overrides: list[str]) -> dict:
    """The values of params.yaml with KEY=VALUE set.

    Raises:
        UserError: the text is no KEY=VALUE, or the key or value is not legal.
    """
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"-S {text}: write KEY=VALUE, such as -S train.learning_rate=1e-3")
        *parents, last = key.split(".")
        section = values
        for name in parents:
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise UserError(f"-S {text}: {name} is a value and has no keys below it")
        section[last] = read_yaml_text(value)
    check_params(values)
    return values


def folded(reasons: list[str]) -> list[str]:
    """Of the files that were modified no more than FILES by name."""
    modified = [reason for reason in reasons if reason.endswith(" (modified)")]
    if len(modified) <= FILES + 1:
        return reasons
    others = [reason for reason in reasons if reason not in modified]
    return [*modified[:FILES], f"{len(modified) - FILES} more files (modified)", *others]


def text_of(stages: list[Planned], has_remote: bool) -> str:
    running = [stage for stage in stages if stage.runs]
    width = max((len(stage.name) for stage in running), default=0)
    lines = []
    for stage in running:
        reasons = [*folded(stage.changed), *([f"follows {', '.join(stage.after)}"] if stage.after else [])]
        lines += [f"{stage.name if place == 0 else '':{width}}  {reason}" for place, reason in enumerate(reasons)]
    rest = [stage for stage in stages if not stage.runs]
    lost = [stage.name for stage in rest if stage.lost]
    if idle := [stage.name for stage in rest if not stage.lost]:
        lines.append(f"nothing to do for {', '.join(idle)}")
    if cached := [stage.name for stage in rest if stage.absent and not stage.lost]:
        lines.append(f"`dvc repro` takes the missing outputs of {', '.join(cached)} from DVC's cache")
    if lost:
        lines += lines_on_lost(lost, bool(running), has_remote)
    return "\n".join(lines if rest else [*lines, "every stage would run"])


def lines_on_lost(lost: list[str], something_changed: bool, has_remote: bool) -> list[str]:
    """What the two commands do about stages that nothing changed for, but whose outputs are missing."""
    also = "also " if something_changed else ""
    if something_changed:
        fetched = "It fetches" if has_remote else "No default remote is set, so it cannot fetch"
        pull = f"runs only what changed. {fetched} what that needs"
    else:
        pull = "runs nothing" + (". `dvc pull` brings what the remote has" if has_remote else "")
    return [
        f"`dvc repro` {also}runs {', '.join(lost)}: outputs are missing, and DVC's cache does not have them",
        f"`dvc repro --pull --allow-missing` {pull}",
    ]


def main(arguments: list[str]) -> str:
    parser = command_parser("tools.plan", __doc__)
    parser.add_argument("-S", "--set-param", action="append", default=[], metavar="KEY=VALUE", help="a value to try")
    parser.add_argument("--check", action="store_true", help="exit with 1 if something changed")
    options = parser.parse_args(arguments)
    values = with_overrides(read_yaml(PARAMS), options.set_param)
    check_unhashed()
    os.environ.setdefault("DVC_NO_ANALYTICS", "1")
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            stages = plan(repo, values)
            text = text_of(stages, bool(repo.config["core"].get("remote")))
            if options.check and any(stage.runs for stage in stages):
                raise UserError(
                    "dvc.lock is not of this code, these params and data. Run `dvc repro` and commit it; where only "
                    f"code differs, run `dvc repro --single-item --force hash_code` before\n{text}"
                )
            return text
    except DvcException as error:
        raise UserError(f"DVC: {error}") from None


if __name__ == "__main__":
    with explained("plan"):
        print(main(sys.argv[1:]))
