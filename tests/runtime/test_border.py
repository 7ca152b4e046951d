"""The border between what shapes results and how stages run: what crosses it returns nothing into data."""

import ast
from pathlib import Path

import pytest

from stages.core.code_hash import STAGES, is_hashed, stage_files
from tests.support.project import ROOT

# What hashed modules may use of stages/runtime, and why no byte of a result depends on it.
ALLOWED = {
    "activations.shape_of": "sizes for the count of pick_plan",
    "machine_checks.GB": "a unit in messages",
    "machine_checks.check_disk_for_merge": "ends the stage with a message, or does nothing",
    "command.explained": "turns an error into a message, for modes that only print",
    "counts.listed_counts": "text of a message",
    "counts.plural": "text of a message",
    "errors.UserError": "ends the stage with a message",
    "errors.readable": "text for a terminal",
    "failures.explained_failures": "turns an error into a message",
    "hub_errors.HUB_ANSWER_SECONDS": "how long the hub may take to answer",
    "hub_errors.check_pinned": "ends the stage with a message, or does nothing",
    "hub_errors.explain_hub_error": "turns an error into a message",
    "integrity.check_base": "ends the stage with a message, or does nothing",
    "integrity.check_plain_files": "ends the stage with a message, or does nothing",
    "integrity.base_files": "the manifest's hashes, which name a checkpoint",
    "launch.EXPECTED_PROCESSES": "the name of an environment variable",
    "launch.launch": "starts processes; their number is in the fingerprint",
    "live_curves.LiveCurves": "writes the curves while a training runs; the stage writes them again at its end",
    "lock.take_lock": "keeps a second training out",
    "machine_checks.check_disk": "ends the stage with a message, or does nothing",
    "machine_checks.check_bfloat16": "ends the stage with a message, or does nothing",
    "memory.MemoryPlan": "what is kept; the numbers are the same as those computed again",
    "memory.Workload": "what pick_plan counts",
    "memory.pick_plan": "returns a MemoryPlan",
    "memory_table.plan_table": "of --plan, which trains nothing",
    "progress.progress": "a bar or a line",
    "runner.Outcome": "the closing line and the timing file",
    "runner.declaration": "which inputs name a checkpoint",
    "runner.file_state": "which weights name kept answers",
    "runner.peak_memory": "a figure of the timing file",
    "runner.run_stage": "calls main()",
    "shown.without_private_data": "text of a message",
    "signals.Stop": "when a training stops; a stopped one ends with the same bytes",
    "signals.die_with_parent": "when a training stops",
    "small_data.warn_of_few_steps": "prints a line, or does nothing",
    "small_data.warn_of_small_splits": "prints a line, or does nothing",
    "stage_options.stage_options": "whether the stage runs; evaluate's name and folder come from dvc.yaml",
    "trackers.prepare_trackers": "where a tracker writes",
    "url_errors.DOWNLOAD_BY_HAND": "a part of messages",
    "url_errors.address_without_secrets": "a part of messages",
    "url_errors.explain_url_error": "turns an error into a message",
    "watch.Watch": "progress, times and costs",
}


def used_of_runtime(path) -> set[str]:
    """`module.name` for each import from stages.runtime in a file, in any function of it."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("stages.runtime"):
            module = node.module.removeprefix("stages.runtime").lstrip(".")
            names |= {f"{module}.{alias.name}".lstrip(".") for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("stages.runtime")}
    return names


HASHED = sorted({path for stage in STAGES for path in stage_files(stage) if path.suffix == ".py"})


@pytest.mark.parametrize("path", HASHED, ids=str)
def test_a_hashed_module_uses_only_the_listed_names(path):
    assert used_of_runtime(path) <= ALLOWED.keys()


def test_every_listed_name_is_used():
    assert set().union(*map(used_of_runtime, HASHED)) == ALLOWED.keys()


def test_hashed_code_is_all_of_stages_but_runtime_and_the_schema():
    ours = {path.relative_to(ROOT) for path in (ROOT / "stages").rglob("*.py") if path.name != "__init__.py"}
    assert {path for path in ours if is_hashed(path)} - set(HASHED) == {Path("stages/hash_code.py")}


@pytest.mark.parametrize("path", sorted((ROOT / "stages/runtime").glob("*.py")), ids=lambda path: path.name)
def test_operational_code_imports_no_stage_when_it_is_loaded(path):
    """Else a message would bring torch with it, and a stage's private package would have a second user."""
    for node in ast.parse(path.read_text()).body:
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not [module for module in modules if module.startswith("stages._")]
