"""run_stage in a small repository: what stops a stage, with which words, and what is left when it went well."""

import datetime
import errno
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from stages.core import code_hash
from stages.core.code_hash import module_hash, stage_hashes
from stages.core.paths import timing_file, write_json
from stages.runtime.errors import UserError
from stages.runtime.runner import Outcome, declaration, run_stage, say_that_dvc_does_not_know, snapshot
from tests.support.project import ROOT

DVC_YAML = """
stages:
  clean:
    cmd: python -m stages.clean
    deps: [data/rows.jsonl, data/folder]
    params: [seed, clean]
  bare:
    cmd: python -m stages.bare
    deps: ["${data.path}/x"]
  evaluate:
    foreach:
      base: {weights: models/base}
      tuned: {weights: models/merged}
    do:
      cmd: python -m stages.evaluate ${key}
      deps: ["${item.weights}"]
      params: [evaluate]
"""


@pytest.fixture(autouse=True)
def repository(tmp_path, monkeypatch, tiny):
    """A working directory with dvc.yaml, the tiny profile and the inputs of `clean`."""
    monkeypatch.chdir(tmp_path)
    Path("dvc.yaml").write_text(DVC_YAML)
    shutil.copy(tiny, "params.yaml")
    Path("data/folder").mkdir(parents=True)
    Path("data/rows.jsonl").write_text("{}\n")
    Path("data/folder/part").write_text("1")
    yield tmp_path
    module_hash.cache_clear()


def went_well(params):
    return Outcome("3 rows", {"rows_per_second": 1.5})


def stopped(capsys, main, stage="clean") -> str:
    """What a user sees of a stage that ends with exit code 1."""
    with pytest.raises(SystemExit) as caught:
        run_stage(stage, main)
    text = str(caught.value)  # the interpreter prints a text to stderr and exits with 1
    assert not isinstance(caught.value.code, int)
    assert text.startswith(f"{stage}: ")
    assert "Traceback" not in text + capsys.readouterr().err
    assert not timing_file(stage).exists()
    return text


def edit_params(key, value):
    text, count = re.subn(
        rf"^( *){key}:.*", rf"\1{key}: {value}", Path("params.yaml").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert count == 1
    Path("params.yaml").write_text(text, encoding="utf-8")


def test_a_stage_says_what_it_made_and_leaves_its_timing(capsys):
    run_stage("clean", went_well)
    assert capsys.readouterr().out.startswith("clean: 3 rows (")
    timing = json.loads(Path("metrics/timing/clean.json").read_text())
    assert timing["rows_per_second"] == 1.5
    assert timing["seconds"] >= 0
    ended = datetime.datetime.fromisoformat(timing["ended"])
    assert abs(ended - datetime.datetime.now(datetime.UTC)) < datetime.timedelta(minutes=5)
    assert timing["peak_rss_bytes"] > 1 << 20


def test_a_user_error_is_a_message_and_exit_code_1(capsys):
    def main(params):
        raise UserError("data.path: there is no file x. Set it")

    assert stopped(capsys, main) == "clean: data.path: there is no file x. Set it"


def test_the_former_timing_does_not_outlive_a_failure(capsys):
    run_stage("clean", went_well)

    def main(params):
        raise UserError("no")

    stopped(capsys, main)


def test_any_other_error_keeps_its_traceback():
    def main(params):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_stage("clean", main)


def test_a_mistake_in_any_section_stops_the_stage_before_it_starts(capsys):
    edit_params("samples", "ten")
    text = stopped(capsys, lambda params: pytest.fail("it ran"))
    assert "params.yaml: report.samples is 'ten'" in text


def test_a_missing_input_is_named_with_the_way_to_get_it(capsys):
    Path("data/rows.jsonl").unlink()
    text = stopped(capsys, lambda params: pytest.fail("it ran"))
    assert text == "clean: the input data/rows.jsonl is missing. `dvc repro clean` makes it, or `dvc pull` brings it"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda: Path("data/rows.jsonl").write_text("[]\n"), "data/rows.jsonl"),
        (lambda: Path("data/folder/part").write_text("2"), "data/folder/part"),
        (lambda: Path("data/folder/new").write_text(""), "data/folder/new"),
        (lambda: Path("data/folder/part").unlink(), "data/folder/part"),
        (lambda: edit_params("seed", "43"), "params.yaml:seed"),
        (lambda: edit_params("min_characters", "21"), "params.yaml:clean"),
    ],
)
def test_an_input_edited_meanwhile_is_refused(capsys, change, named):
    def main(params):
        change()
        return went_well(params)

    assert f"clean: {named} changed while the stage ran" in stopped(capsys, main)


def test_a_stage_finishes_when_all_is_written_and_not_at_all_where_an_input_was_edited(capsys):
    finished = []

    def main(params):
        if not finished:
            return Outcome("well", finish=lambda: finished.append(timing_file("clean").exists()))
        Path("data/rows.jsonl").write_text("[]\n")
        return Outcome("too late", finish=lambda: finished.append("again"))

    run_stage("clean", main)
    stopped(capsys, main)
    assert finished == [True]


def test_a_large_input_edited_meanwhile_is_refused(capsys):
    Path("data/rows.jsonl").write_bytes(b"x" * (2 << 20))

    def main(params):
        with open("data/rows.jsonl", "r+b") as file:
            file.write(b"y")
        os.utime("data/rows.jsonl", ns=(1, 1))
        return went_well(params)

    assert "clean: data/rows.jsonl changed while the stage ran" in stopped(capsys, main)


def test_an_input_that_vanishes_meanwhile_is_refused(capsys):
    def main(params):
        Path("data/rows.jsonl").unlink()
        return went_well(params)

    assert "the input data/rows.jsonl is missing" in stopped(capsys, main)


@pytest.mark.parametrize(("key", "value"), [("samples", "11"), ("device", "cpu")])
def test_a_section_that_the_stage_does_not_declare_may_change(key, value):
    def main(params):
        edit_params(key, value)
        return went_well(params)

    run_stage("clean", main)
    assert timing_file("clean").exists()


def test_a_comment_in_params_may_change():
    def main(params):
        edit_params("seed", "42  # the answer")
        return went_well(params)

    run_stage("clean", main)


def test_bytecode_beside_a_dependency_is_no_change():
    def main(params):
        Path("data/folder/__pycache__").mkdir()
        Path("data/folder/__pycache__/part.pyc").write_bytes(b"1")
        return went_well(params)

    run_stage("clean", main)


def test_a_full_disk_is_said_in_words(capsys):
    def main(params):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "data/clean/train.parquet")

    text = stopped(capsys, main)
    assert text == "clean: the disk is full (data/clean/train.parquet). Free some space and run it again"


def test_a_real_full_device_is_said_in_words(capsys):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")

    def main(params):
        with open("/dev/full", "w") as file:
            file.write("x")

    assert "clean: the disk is full" in stopped(capsys, main)


def test_a_file_that_may_not_be_written_is_named(capsys):
    def main(params):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "data/clean")

    text = stopped(capsys, main)
    assert text == "clean: Permission denied: data/clean. Allow this user to read and write there, and run it again"


@pytest.mark.parametrize(("number", "words"), [(errno.EDQUOT, "your quota"), (errno.EFBIG, "(ulimit -f)")])
def test_a_quota_and_a_limit_on_files_are_said_in_words(capsys, number, words):
    def main(params):
        raise OSError(number, os.strerror(number))

    text = stopped(capsys, main)
    assert words in text
    assert "(while writing)" in text


def test_ctrl_c_ends_with_the_code_of_an_interrupt(capsys):
    def main(params):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        run_stage("clean", main)
    assert caught.value.code == 130
    assert "clean: stopped" in capsys.readouterr().err


def test_only_the_downloads_may_use_the_network(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    Path("dvc.yaml").write_text(DVC_YAML.replace("  bare:", "  download_data:"))
    Path("assets/tiny-mistral").mkdir(parents=True)
    Path("data/source").mkdir()
    Path("data/source/x").write_text("")
    run_stage("download_data", went_well)
    assert "HF_HUB_OFFLINE" not in os.environ
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    run_stage("clean", went_well)
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_a_declaration_is_read_as_dvc_reads_it():
    assert declaration("clean") == (["data/rows.jsonl", "data/folder"], ["seed", "clean"])
    assert declaration("bare") == (["data/source/x"], [])
    assert declaration("evaluate@tuned") == (["models/merged"], ["evaluate"])


def test_each_item_of_a_foreach_stage_has_its_own_timing():
    Path("models/base").mkdir(parents=True)
    run_stage("evaluate@base", went_well)
    assert Path("metrics/timing/evaluate@base.json").exists()


def test_a_snapshot_holds_files_modules_and_declared_sections():
    inputs = {"data/rows.jsonl", "data/folder/part", "params.yaml:seed", "params.yaml:clean"}
    assert set(snapshot("clean")) == inputs | set(stage_hashes("clean"))


@pytest.fixture
def hashed(monkeypatch):
    """The stage clean depends on its hashes, and DVC runs it."""
    monkeypatch.setenv("DVC_STAGE", "clean")
    Path("dvc.yaml").write_text(DVC_YAML.replace("[data/rows.jsonl", "[.code/clean.json, data/rows.jsonl"))
    write_json(Path(".code/clean.json"), stage_hashes("clean"))


def test_a_stage_runs_with_the_code_that_dvc_knows(hashed, capsys):
    run_stage("clean", went_well)
    assert capsys.readouterr().out.startswith("clean: 3 rows (")


def test_code_that_was_edited_after_it_was_hashed_stops_the_stage(hashed, capsys):
    hashes = stage_hashes("clean") | {"stages/_clean/rules.py": "0" * 64}
    write_json(Path(".code/clean.json"), hashes)
    text = stopped(capsys, lambda params: pytest.fail("it ran"))
    assert text == (
        "clean: stages/_clean/rules.py changed after DVC looked at the code. "
        "Run `dvc repro --single-item --force hash_code`, then `dvc repro clean`"
    )


@pytest.mark.parametrize("content", ["{", "{}"])
def test_hashes_that_are_damaged_stop_the_stage(hashed, capsys, content):
    Path(".code/clean.json").write_text(content)
    assert "changed after DVC looked at the code" in stopped(capsys, lambda params: pytest.fail("it ran"))


def test_hashes_that_somebody_makes_by_hand_while_the_stage_runs_stop_it(hashed, capsys):
    def main(params):
        write_json(Path(".code/clean.json"), stage_hashes("clean") | {"stages/_clean/rules.py": "0" * 64})
        return Outcome("3 rows")

    assert "stages/_clean/rules.py changed after DVC looked at the code" in stopped(capsys, main)


def test_code_that_is_edited_while_the_stage_runs_stops_it(hashed, capsys, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "stages", "stages")
    monkeypatch.setattr(code_hash, "ROOT", tmp_path)

    def main(params):
        with open("stages/_clean/rules.py", "a") as file:
            file.write("\nANOTHER = 1\n")
        return Outcome("3 rows")

    text = stopped(capsys, main)
    assert text.startswith("clean: stages/_clean/rules.py changed while the stage ran")


def test_a_comment_that_is_written_while_the_stage_runs_does_not_stop_it(hashed, capsys, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "stages", "stages")
    monkeypatch.setattr(code_hash, "ROOT", tmp_path)

    def main(params):
        with open("stages/_clean/rules.py", "a") as file:
            file.write("\n# another\n")
        return Outcome("3 rows")

    run_stage("clean", main)


def test_operational_code_that_is_no_python_stops_the_first_stage_that_runs(tmp_path, monkeypatch, capsys):
    """Only the training imports this module, hours later."""
    shutil.copytree(ROOT / "stages", "stages")
    monkeypatch.setattr(code_hash, "ROOT", tmp_path)
    with open("stages/runtime/memory_table.py", "a") as file:
        file.write("\ndef\n")
    lines = len(Path("stages/runtime/memory_table.py").read_text().splitlines())
    text = stopped(capsys, lambda params: pytest.fail("it ran"))
    assert text == f"clean: stages/runtime/memory_table.py:{lines} is not valid Python: invalid syntax"


@pytest.mark.parametrize(
    ("variables", "stage", "machines", "said"),
    [
        ({}, "clean", 1, True),
        ({}, "evaluate@base", 2, True),
        ({"DVC_STAGE": "clean"}, "clean", 1, False),
        ({"RANK": "0"}, "train", 1, False),  # one of the processes that a training starts
        ({}, "train", 2, False),  # on all machines but the first no DVC is wanted
    ],
)
def test_a_stage_started_by_hand_says_that_dvc_will_not_know(capsys, monkeypatch, *, variables, stage, machines, said):
    for name in ("DVC_STAGE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    say_that_dvc_does_not_know(stage, machines)
    line = f"{stage}: started by hand, so DVC will not know of the result. `dvc repro {stage}` records it in dvc.lock\n"
    assert capsys.readouterr().err == (line if said else "")


def test_a_run_by_hand_says_so_before_its_work(capsys, monkeypatch):
    monkeypatch.delenv("DVC_STAGE", raising=False)

    def main(params):
        assert "started by hand" in capsys.readouterr().err
        return went_well(params)

    run_stage("clean", main)
