"""dvc.yaml declares what the code uses, no less and no more: what it leaves out would not rerun when it changes."""

import ast
import re
from pathlib import Path

import pytest

from stages.core import paths
from stages.core.code_hash import STAGES as HASHED
from stages.core.code_hash import UNHASHED
from stages.core.params import Params
from stages.core.paths import timing_file
from stages.core.yaml_files import read_yaml
from tests.support.project import ROOT

STAGES = read_yaml(ROOT / "dvc.yaml")["stages"]
SCALARS = {name for name, field in Params.model_fields.items() if field.annotation.__module__ != "stages.core.params"}
# Inputs and outputs by the name that stages.core.paths gives them.
NAMED_PATHS = {name: value for name, value in vars(paths).items() if isinstance(value, Path) and name.isupper()}


def entry(stage):
    return STAGES[stage].get("do", STAGES[stage])


def outputs(stage):
    listed = [out for kind in ("outs", "metrics") for out in entry(stage).get(kind, [])]
    return [next(iter(out)) if isinstance(out, dict) else out for out in listed]


def own_files(stage):
    """The stage's file and its private package: what uses params and paths in this stage's name."""
    package = ROOT / "stages" / f"_{stage}"
    return [ROOT / "stages" / f"{stage}.py", *sorted(package.glob("*.py"))]


def attributes(files, owner):
    """Names x in `owner.x`."""
    trees = [ast.parse(path.read_text()) for path in files]
    return {
        node.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == owner
    }


def used_names(files):
    trees = [ast.parse(path.read_text()) for path in files]
    return {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)}


def test_every_stage_file_is_a_stage_and_the_other_way_round():
    files = {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__"}
    assert files == STAGES.keys()


def test_every_stage_depends_on_the_hashes_of_its_code():
    assert {*HASHED, "hash_code"} == STAGES.keys()
    assert outputs("hash_code") == [f".code/{stage}.json" for stage in HASHED]
    for stage in HASHED:
        assert [dep for dep in entry(stage)["deps"] if dep.startswith((".code/", "stages"))] == [f".code/{stage}.json"]


def test_dvc_ignores_just_the_code_that_no_hash_covers():
    lines = (ROOT / ".dvcignore").read_text().splitlines()
    ignored = {line.strip("/") for line in lines if line.startswith("/stages")}
    assert ignored == {str(path) for path in UNHASHED}
    assert all((ROOT / path).exists() for path in UNHASHED)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_declares_the_params_sections_it_uses_except_machine(stage):
    used = attributes(own_files(stage), "params") & Params.model_fields.keys()
    assert {name.partition(".")[0] for name in entry(stage).get("params", [])} == used - {"machine"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_declares_the_files_it_reads_and_writes(stage):
    """Each path of stages.core.paths that the stage's code names lies in one of its deps or outs."""
    used = {name: NAMED_PATHS[name] for name in used_names(own_files(stage)) & NAMED_PATHS.keys()}
    declared = [re.sub(r"\$\{.*?\}", "x", each) for each in (*entry(stage)["deps"], *outputs(stage))]
    used.pop("TIMING", None)  # which shapes no result
    for name, path in used.items():
        inside = [each for each in declared if Path(each) == path or path in Path(each).parents]
        assert inside, f"{stage} uses {name} ({path}), which it does not declare"


@pytest.mark.parametrize("stage", STAGES)
def test_the_data_a_stage_declares_is_named_in_its_code(stage):
    used = [NAMED_PATHS[name] for name in used_names(own_files(stage)) & NAMED_PATHS.keys()]
    for each in (*entry(stage)["deps"], *outputs(stage)):
        if each.startswith((".code/", "${")) or each == "stages":
            continue
        path = Path(re.sub(r"\$\{.*?\}", "x", each))
        assert any(known == path or known in path.parents for known in used), f"{stage} never names {each}"


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_declares_its_timing_file_which_differs_in_each_run(stage):
    timing = timing_file(stage)
    declared = [Path(path) for path in (*entry(stage)["deps"], *outputs(stage))]
    assert not [path for path in declared if path in (timing, *timing.parents)]


def test_nothing_turns_the_run_cache_off():
    """A persistent or uncached out, or a stage without deps, is run again by each clone and after each way back."""
    for stage in STAGES:
        assert entry(stage)["deps"]
        for out in entry(stage).get("outs", []):
            options = next(iter(out.values())) if isinstance(out, dict) else {}
            assert "persist" not in options
            assert options.get("cache", True)


def test_metrics_json_is_the_only_metric_and_the_only_result_in_git():
    metrics = [metric for stage in STAGES for metric in entry(stage).get("metrics", [])]
    assert metrics == [{"metrics.json": {"cache": False}}]


def test_commands_carry_no_values_of_params():
    assert {entry(stage)["cmd"] for stage in STAGES if stage != "evaluate"} == {
        f"python -m stages.{stage}" for stage in STAGES if stage != "evaluate"
    }
    assert entry("evaluate")["cmd"] == "python -m stages.evaluate ${key} ${item.weights}"


def test_training_leaves_the_bases_evaluation_alone():
    assert STAGES["evaluate"]["foreach"] == {"base": {"weights": "models/base"}, "tuned": {"weights": "models/merged"}}
    assert "${item.weights}" in entry("evaluate")["deps"]
    assert not [dep for dep in entry("evaluate")["deps"] if dep.startswith("models/")]


def test_package_files_are_empty_so_that_no_stage_depends_on_all():
    assert not [path for path in (ROOT / "stages").rglob("__init__.py") if path.read_text()]
