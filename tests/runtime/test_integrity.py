"""What other stages made is compared with dvc.lock before a stage uses it."""

import shutil
from pathlib import Path

import pytest
from dvc.repo import Repo

from stages.core.paths import sha256, write_json
from stages.core.yaml_files import read_yaml
from stages.runtime.errors import UserError
from stages.runtime.integrity import check_inputs, check_new_paths, dvc_md5

DVC_YAML = """stages:
  made:
    cmd: "true"
    outs: [folder, file, models/base]
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Of DVC itself, which has recorded a folder, a file and models/base as the outs of a stage."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "next")
    for path in ("folder/b/z", "folder/b.c", "folder/a b/ü", "folder/empty", "file", "models/base/weights"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("" if path.endswith("empty") else path)
    (tmp_path / "dvc.yaml").write_text(DVC_YAML)
    with Repo.init(no_scm=True) as repo:
        repo.commit("made", force=True)
    return tmp_path


def test_the_hashes_are_dvcs_own(repository):
    outs = read_yaml(repository / "dvc.lock")["stages"]["made"]["outs"]
    assert {out["path"] for out in outs} == {"folder", "file", "models/base"}
    for out in outs:
        assert dvc_md5(repository / out["path"]) == out["md5"]


@pytest.mark.parametrize(
    ("path", "deps"), [("file", ["file"]), ("folder/b/z", ["folder/b"]), ("folder/b/z", ["folder/b/z", "other"])]
)
def test_a_changed_byte_in_what_a_stage_needs_is_named_with_what_to_do(repository, path, deps):
    check_inputs(deps)
    (repository / path).chmod(0o644)
    (repository / path).write_text("other")
    out = path.partition("/")[0]
    with pytest.raises(UserError, match=rf"^{path} is not what made left there.*`dvc commit made`.*`rm -rf {out}`"):
        check_inputs(deps)


def test_of_a_folder_that_is_there_in_part_the_files_that_are_needed_count(repository):
    (repository / "folder/empty").unlink()
    (repository / "folder/b.c").chmod(0o644)
    (repository / "folder/b.c").write_text("other")
    check_inputs(["folder/b"])
    for deps, named in ((["folder/b.c"], "folder/b.c"), (["folder/empty"], "folder/empty"), (["folder"], "folder/b.c")):
        with pytest.raises(UserError, match=f"^{named} is not what made left there"):
            check_inputs(deps)
    shutil.rmtree(repository / ".dvc/cache")
    with pytest.raises(UserError, match="^folder/b/z is not what made left there"):
        check_inputs(["folder/b"])  # without DVC's list of its files nothing says that it is


def test_files_of_the_base_that_a_stage_reads_are_compared_with_its_manifest(repository):
    base = repository / "models/base"
    write_json(base / "manifest.json", {"files": {"weights": sha256(base / "weights")}})
    check_inputs(["models/base/weights"])
    (base / "weights").chmod(0o644)
    (base / "weights").write_text("other")
    check_inputs(["models/base"])  # the stages that load it look themselves
    with pytest.raises(UserError, match=r"^models/base/weights has other bytes than its manifest says"):
        check_inputs(["models/base/weights"])


def test_what_no_stage_made_what_is_not_needed_and_the_base_are_not_hashed(repository, monkeypatch):
    for path in ("file", "models/base/weights"):
        (repository / path).chmod(0o644)
        (repository / path).write_text("other")
    check_inputs(["folder", "other", "models/base", "stages/x.py"])
    monkeypatch.delenv("DVC_STAGE")
    check_inputs(["file"])  # run by hand, whatever is there is what was meant


@pytest.mark.parametrize("key", ["data.path", "model.path"])
def test_a_new_path_that_is_missing_is_named_by_its_key(tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"^{key}: there is no file or folder x/y. Correct params.yaml"):
        check_new_paths({key: "x/y"})
    Path("x/y").mkdir(parents=True)
    check_new_paths({key: "x/y"})


def test_a_clone_may_lack_the_data_that_dvc_lock_has_been_made_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("dvc.lock").write_text("stages: {download_data: {deps: [{path: x/y, md5: a}]}}\n")
    check_new_paths({"data.path": "x/y"})
    with pytest.raises(UserError, match="^data.path: there is no file or folder x/z"):
        check_new_paths({"data.path": "x/z"})
