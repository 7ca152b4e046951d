"""python -m tools.plan: every leaf of params.yaml against the table of docs/experiments.md."""

import hashlib
import re
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.core import code_hash
from stages.core.code_hash import STAGES, module_hash, stage_hashes
from stages.core.paths import json_text, write_json
from stages.core.yaml_files import read_yaml
from stages.runtime.errors import UserError
from tests.support.project import ROOT, copy_project
from tests.support.repository import Repository
from tools import plan as tool
from tools._profile.profiles import profile_values

TABLE = {
    section: [] if stages == "none" else stages.split(", ")
    for section, stages in re.findall(r"(?m)^\| `(\w+)` \| ([\w@, ]+) \|$", (ROOT / "docs/experiments.md").read_text())
}
VALUES = read_yaml(ROOT / "tests/params.yaml")
LEAVES = [key for section, value in VALUES.items() for key in tool.leaves(value, section)]


def locked_clone(folder, profile="tiny"):
    """A clone with Git only, whose dvc.lock is that of a run with the present code and a profile."""
    copy_project(folder, without=("dvc.lock",))
    YAML().dump(profile_values(profile, folder), folder / "params.yaml")
    for stage in STAGES:
        write_json(folder / f".code/{stage}.json", stage_hashes(stage))
    repository = Repository(folder)
    repository.run("git", "init", "--quiet")
    from dvc.repo import Repo

    with pytest.MonkeyPatch.context() as patch, Repo(str(folder)) as repo, repo.lock:
        patch.chdir(folder)
        for stage in repo.index.stages:
            stage.save(allow_missing=True, run_cache=False)
            stage.dump(update_pipeline=False)
    shutil.rmtree(folder / ".code")
    repository.commit()
    return repository


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    return locked_clone(tmp_path_factory.mktemp("plan") / "clone")


@pytest.fixture
def inside(clone, monkeypatch):
    """The clone as the current directory, and after the test as it was."""
    monkeypatch.chdir(clone.folder)
    monkeypatch.setattr(code_hash, "ROOT", clone.folder)
    module_hash.cache_clear()
    yield clone.folder
    module_hash.cache_clear()
    clone.run("git", "checkout", "--quiet", "--", ".")
    clone.run("git", "clean", "-xfdq")


def test_data_of_the_users_own_do_not_download_a_model_of_the_hub_again(tmp_path, monkeypatch):
    from dvc.repo import Repo

    repository = locked_clone(tmp_path / "clone", "mistral-7b")
    monkeypatch.chdir(repository.folder)
    (repository.folder / "data/source/mine.jsonl").write_text("{}\n")
    with Repo() as repo:
        modified = [
            stage.name
            for stage in repo.index.stages
            if any("modified" in dep.workspace_status().values() for dep in stage.deps)
        ]
    assert modified == ["download_data"]


@pytest.fixture(scope="module")
def repo(clone):
    from dvc.repo import Repo

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(clone.folder)
        with Repo(str(clone.folder)) as opened:
            yield opened


def changed(dotted):
    """The values of the tiny profile with one leaf changed."""
    values = read_yaml(ROOT / "tests/params.yaml")
    *parents, last = dotted.split(".")
    section = values
    for name in parents:
        section = section[name]
    section[last] = "something else"
    return values


def test_every_section_stands_in_the_table():
    assert TABLE.keys() == VALUES.keys()


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_changed_leaf_runs_what_the_table_says(leaf, repo):
    first = ["hash_code"] if leaf in ("data.path", "model.path") else []  # it checks that they exist
    found = [stage.name for stage in tool.plan(repo, changed(leaf)) if stage.runs]
    expected = first + TABLE[leaf.partition(".")[0]]
    if leaf == "tokenize.train_turns":  # both evaluations score only what is trained
        expected.insert(expected.index("evaluate@tuned"), "evaluate@base")
    assert found == expected


EVERY_STAGE = (
    "hash_code, download_model, download_data, clean, tokenize, train, merge, evaluate@base, evaluate@tuned, report"
)
MADE_AGAIN = "outputs are missing, and DVC's cache does not have them"


def test_a_clone_with_git_only_is_told_what_each_command_runs(inside):
    assert tool.main([]).splitlines() == [
        f"`dvc repro` runs {EVERY_STAGE}: {MADE_AGAIN}",
        "`dvc repro --pull --allow-missing` runs nothing",
    ]


def test_pulling_is_advised_only_where_a_remote_is_set(inside, clone):
    clone.run("dvc", "remote", "add", "--default", "storage", str(inside / "storage"))
    assert tool.main([]).splitlines()[-1] == (
        "`dvc repro --pull --allow-missing` runs nothing. `dvc pull` brings what the remote has"
    )
    assert tool.main(["-S", "report.samples=1"]).splitlines()[-1] == (
        "`dvc repro --pull --allow-missing` runs only what changed. It fetches what that needs"
    )


def test_a_changed_value_in_a_clone_with_git_only_runs_more_by_plain_repro(inside):
    *_, plain, pull = tool.main(["-S", "report.samples=1"]).splitlines()
    assert plain == f"`dvc repro` also runs {EVERY_STAGE.removesuffix(', report')}: {MADE_AGAIN}"
    assert pull == (
        "`dvc repro --pull --allow-missing` runs only what changed. "
        "No default remote is set, so it cannot fetch what that needs"
    )


def test_a_value_that_is_tried_is_named_and_params_yaml_stays_as_it_is(inside):
    before = (inside / "params.yaml").read_bytes()
    first, second, *_, plain, _ = tool.main(["-S", "train.learning_rate=1e-3"]).splitlines()
    assert first.split(maxsplit=1) == ["train", "train.learning_rate: 0.002 → 0.001"]
    assert second.split(maxsplit=1) == ["merge", "follows train"]
    unchanged = "hash_code, download_model, download_data, clean, tokenize, evaluate@base"
    assert plain == f"`dvc repro` also runs {unchanged}: {MADE_AGAIN}"
    assert (inside / "params.yaml").read_bytes() == before


def test_a_comment_another_order_and_another_way_to_write_a_number_run_nothing(inside):
    params = inside / "params.yaml"
    before = params.read_text()
    name, seed, rest = re.fullmatch(r"(?s)(.*?)(^seed: \d+).*?\n(.*)", before, re.MULTILINE).groups()
    params.write_text(f"# a comment\n{name}{rest}\n{seed}\n".replace(": 2e-3", ": 0.0020"))
    assert params.read_text() != before
    assert running(tool.main([])) == []


@pytest.fixture
def cached(inside):
    """Next to Git, DVC's cache has the hashes of the code."""
    for stage in STAGES:
        text = json_text(stage_hashes(stage))
        md5 = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
        path = inside / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return inside


def append(path, text):
    path.write_text(path.read_text() + text)
    module_hash.cache_clear()


def running(printed):
    """The stages that the plan names with a reason."""
    return re.findall(r"(?m)^([a-z_@]+)  ", printed)


def test_a_comment_runs_nothing_but_the_stage_that_hashes_code(cached):
    append(cached / "stages/core/quantization.py", "# another\n")
    assert running(tool.main([])) == ["hash_code"]


def test_a_comment_in_operational_code_runs_nothing(cached):
    append(cached / "stages/runtime/progress.py", "ANOTHER = 1\n")
    assert running(tool.main([])) == []


def test_a_constant_runs_the_stages_that_compute_with_it(cached):
    append(cached / "stages/_merge/stream.py", "ANOTHER = 1\n")
    printed = tool.main([])
    assert running(printed) == ["hash_code", "merge", "evaluate@tuned", "report"]
    assert re.search(r"(?m)^merge +stages/_merge/stream.py \(modified\)$", printed)


def test_a_check_fails_where_a_stage_would_run(cached):
    tool.main(["--check"])
    append(cached / "stages/_merge/stream.py", "ANOTHER = 1\n")
    with pytest.raises(UserError, match=r"dvc.lock is not of this code(?s:.*)merge +stages/_merge/stream.py"):
        tool.main(["--check"])


def test_without_the_former_hashes_the_plan_names_the_code_of_the_stage(inside):
    append(inside / "stages/_merge/stream.py", "ANOTHER = 1\n")
    assert re.search(r"(?m)^merge +code of merge \(modified\)$", tool.main([]))


def test_changed_code_data_and_commands_are_named(cached):
    inside = cached
    code, pipeline = inside / "stages/_train/objective.py", inside / "dvc.yaml"
    for path, old, new in [(code, "", "ANOTHER = 1\n"), (pipeline, "stages.merge\n", "stages.merge --anew\n")]:
        path.write_text(path.read_text().replace(old, new) if old else path.read_text() + new)
    module_hash.cache_clear()
    (inside / "data/source/more.jsonl").write_text("{}\n")
    printed = tool.main([])
    assert re.search(r"(?m)^train +stages/_train/objective.py \(modified\)$", printed)
    assert re.search(r"(?m)^merge +its command in dvc.yaml$", printed)
    assert re.search(r"(?m)^download_data +data/source \(modified\)$", printed)


def test_an_output_that_was_edited_is_named_with_the_remedy(inside):
    out = inside / "metrics/train.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text("{}")
    assert "not as in dvc.lock: metrics/train.json. `dvc checkout` brings back" in tool.main([])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "-S seed: write KEY=VALUE"),
        ("train.lr=1", "params.yaml: train.lr is not a known key"),
        ("train.learning_rate=fast", "params.yaml: train.learning_rate is 'fast'"),
        ("seed.x=1", "-S seed.x=1: seed is a value and has no keys below it"),
    ],
)
def test_a_value_that_is_not_legal_is_refused(inside, override, message):
    with pytest.raises(UserError) as raised:
        tool.main(["-S", override])
    assert message in str(raised.value)


def test_many_modified_files_are_told_in_a_few_lines_and_every_value():
    files = [f"stages/{name}.py (modified)" for name in "abcdefghi"]
    lines = tool.text_of([tool.Planned("clean", [*files, "clean.check_code: True → False"], [])], False).splitlines()
    assert [line.split("  ", 1)[1].strip() for line in lines[:5]] == [
        *files[:3],
        "6 more files (modified)",
        "clean.check_code: True → False",
    ]
    assert "d.py" in tool.text_of([tool.Planned("clean", files[:4], [])], False)


@pytest.fixture
def three_stages(tmp_path, monkeypatch):
    """A repository in which a stage made a folder, and of two others one read all of it and one a file, all run once;
    then the first one alone ran again, on another input."""
    stages = {
        "make": {"cmd": "mkdir made && cp a b made", "deps": ["a", "b"], "outs": ["made"]},
        "all": {"cmd": "cat made/* > all", "deps": ["made"], "outs": ["all"]},
        "part": {"cmd": "cp made/a part", "deps": ["made/a"], "outs": ["part"]},
    }
    YAML().dump({"stages": stages}, tmp_path / "dvc.yaml")
    for name in "ab":
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    from dvc.repo import Repo

    with Repo.init(no_scm=True) as repo:
        repo.reproduce()
    return tmp_path


def made_again(name):
    """The first stage runs alone, on another input."""
    from dvc.repo import Repo

    Path(name).write_text("other")
    with Repo() as repo:
        repo.reproduce(targets=["make"])


def planned():
    """{stage: what changed for it}, which is something just where DVC runs it by `dvc repro --pull --allow-missing`."""
    from dvc.repo import Repo

    with Repo() as repo:
        found = {stage.name: stage for stage in tool.plan(repo, {})}
        with repo.lock:
            for stage in repo.index.stages:
                upstream = list(repo.index.graph.successors(stage))
                assert found[stage.name].runs is stage.changed(allow_missing=True, upstream=upstream), stage
    return {name: stage.changed for name, stage in found.items()}


def test_a_file_that_dvc_add_keeps_is_no_stage_that_could_run(three_stages):
    from dvc.repo import Repo

    with Repo() as repo:
        repo.add("a")
    with Repo() as repo:
        assert tool.text_of(tool.plan(repo, {}), False) == "nothing to do for make, all, part"
        assert repo.status() == {}


def test_what_the_cache_has_is_taken_from_there_and_what_it_lacks_is_made_again(three_stages):
    """The plan's words against what DVC does."""
    from dvc.repo import Repo

    def printed():
        with Repo() as repo:
            return tool.text_of(tool.plan(repo, {}), False).splitlines()

    assert printed() == ["nothing to do for make, all, part"]
    Path("all").unlink()
    assert printed() == [
        "nothing to do for make, all, part",
        "`dvc repro` takes the missing outputs of all from DVC's cache",
    ]
    Path("part").unlink()
    shutil.rmtree(".dvc/cache/files")
    shutil.rmtree("made")
    assert printed()[0] == f"`dvc repro` runs make, all, part: {MADE_AGAIN}"
    with Repo() as repo:
        assert [stage.name for stage in repo.reproduce()] == ["make", "all", "part"]
    assert printed() == ["nothing to do for make, all, part"]


@pytest.mark.parametrize("key", ["machine.devises", "another"])
def test_a_wrong_key_is_named_though_no_stage_would_run(inside, key):
    section, _, name = key.partition(".")
    params = inside / "params.yaml"
    text = params.read_text()
    params.write_text(
        f"{text}\n{section}: 1\n" if not name else re.sub(rf"(?m)^({section}:.*\n)", rf"\1  {name}: 1\n", text)
    )
    with pytest.raises(UserError, match=rf"^params\.yaml: {key} is not a known key"):
        tool.main([])


def test_operational_code_that_is_no_python_is_named(inside):
    append(inside / "stages/runtime/memory_table.py", "def\n")
    with pytest.raises(UserError, match=r"^stages/runtime/memory_table\.py:\d+ is not valid Python: invalid syntax$"):
        tool.main([])


@pytest.mark.parametrize("absent", [False, True])
def test_what_was_made_anew_and_not_read_since_is_named_in_a_clone_without_data_too(three_stages, absent):
    assert planned() == {"make": [], "all": [], "part": []}
    made_again("a")
    if absent:
        for path in ("made", ".dvc/cache"):
            shutil.rmtree(path)
        for path in ("all", "part"):
            Path(path).unlink()
    part = [] if absent else ["made/a was made anew"]  # only the folder's list in the cache knows of its files
    assert planned() == {"make": [], "all": ["made was made anew"], "part": part}


def test_a_file_that_came_out_as_before_in_a_folder_that_did_not_is_no_change_for_who_reads_it_alone(three_stages):
    made_again("b")
    assert planned() == {"make": [], "all": ["made was made anew"], "part": []}


def test_an_input_that_dvc_yaml_names_since_the_last_run_is_new(three_stages):
    yaml = YAML()
    declared = yaml.load(three_stages / "dvc.yaml")
    declared["stages"]["part"]["deps"].append("made/b")
    yaml.dump(declared, three_stages / "dvc.yaml")
    assert planned() == {"make": [], "all": [], "part": ["made/b (new)"]}
