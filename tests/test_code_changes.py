"""What DVC runs after an edit of code or of the schema, in a clone in which everything has run once."""

import ast
import json
import re
import shutil

import pytest

from stages.core.params import Params
from stages.core.yaml_files import read_yaml
from tests.support.project import ROOT
from tests.support.repository import Repository

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(first_run, tmp_path_factory) -> Repository:
    return first_run.clone(tmp_path_factory.mktemp("code") / "clone", with_data=True)


@pytest.fixture
def edited(finished):
    """For edits after which no stage runs."""
    yield finished
    finished.run("git", "checkout", "--", ".")


@pytest.fixture
def repository(edited):
    """For edits after which stages run."""
    yield edited
    edited.run("git", "checkout", "--", ".")
    assert set(edited.ran("repro")) <= {"hash_code"}


def append(repository, name, text):
    with open(repository.folder / name, "a") as file:
        file.write(f"\n{text}\n")


def changed(repository) -> dict[str, list]:
    return json.loads(repository.run("dvc", "status", "--json"))


def test_edits_of_operational_code_are_none_for_dvc(repository):
    for path in (repository.folder / "stages/runtime").glob("*.py"):
        append(repository, path, "ANOTHER = 1  # another")
    assert changed(repository) == {}
    assert repository.ran("repro") == []


def test_a_comment_and_a_docstring_run_only_the_stage_that_hashes_code(repository):
    for path in (*(repository.folder / "stages/core").rglob("*.py"), repository.folder / "stages/_train/trainer.py"):
        text = path.read_text()
        path.write_text(text.replace('"""', '"""Edited. ', 1) + "\n# another\n")
    assert changed(repository) == {"hash_code": [{"changed deps": {"stages": "modified"}}]}
    assert repository.ran("repro") == ["hash_code"]
    assert changed(repository) == {}


def test_a_constant_runs_exactly_the_stages_that_compute_with_it(repository):
    append(repository, "stages/_merge/stream.py", "ANOTHER = 1")
    assert repository.ran("repro") == ["hash_code", "merge"]  # it writes the same model again
    append(repository, "stages/core/statistics.py", "ANOTHER = 1")
    ran = repository.ran("repro")
    assert (ran[0], ran[-1]) == ("hash_code", "report")
    assert sorted(ran[1:-1]) == ["evaluate@base", "evaluate@tuned", "merge"]


def test_a_clone_with_git_only_notices_a_result_of_former_code(finished, tmp_path):
    """The gate of CI, .github/scripts/lock.sh: hashing new code without running its stage is not enough."""
    repository = finished.clone(tmp_path / "edited", with_data=True)
    append(repository, "stages/_merge/stream.py", "ANOTHER = 1")
    repository.run("dvc", "repro", "hash_code")
    repository.commit()
    bare = repository.clone(tmp_path / "bare")
    assert "merge" in bare.run("bash", ".github/scripts/lock.sh", code=1)
    repository.run("dvc", "repro")
    repository.commit()
    repository.clone(tmp_path / "current").run("bash", ".github/scripts/lock.sh")


def sections_of(stage: str) -> list[str]:
    entry = read_yaml(ROOT / "dvc.yaml")["stages"][stage]
    return entry.get("do", entry).get("params", [])


@pytest.mark.parametrize("section", [name for name in Params.model_fields if name != "seed"])
def test_a_new_key_in_a_section_concerns_only_the_stages_that_declare_the_section(edited, section):
    schema = edited.folder / "stages/core/params.py"
    header = re.search(rf"(?m)^class {section.capitalize()}\(\w+\):\n(?:    \"\"\".*\"\"\"\n\n?)?", schema.read_text())[
        0
    ]
    schema.write_text(schema.read_text().replace(header, f"{header}    another: str\n\n", 1))
    params = edited.folder / "params.yaml"
    text = params.read_text()
    params.write_text(re.sub(rf"(?m)^({section}:.*\n)", r"\1  another: key" + "\n", text))
    edited.run("python", "-c", "from stages.core.params import load_params; load_params()")
    stages = {name.partition("@")[0] for name in changed(edited)}
    declaring = {stage for stage in read_yaml(ROOT / "dvc.yaml")["stages"] if section in sections_of(stage)}
    assert stages == declaring
    assert ("hash_code" not in stages) and (bool(stages) == (section != "machine"))


class Reworded(ast.NodeTransformer):
    """Other messages, and clocks that run three times as fast."""

    def __init__(self):
        self.messages, self.clocks = 0, 0

    def visit_JoinedStr(self, node):  # noqa: N802
        return node

    def visit_Call(self, node):  # noqa: N802
        self.generic_visit(node)
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if name in ("print", "UserError", "say", "exit") and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                node.args[0] = ast.Constant("reworded " + first.value)
                self.messages += 1
            elif isinstance(first, ast.JoinedStr):
                first.values.insert(0, ast.Constant("reworded "))
                self.messages += 1
        if name in ("monotonic", "perf_counter", "time") and not node.args:
            self.clocks += 1
            return ast.BinOp(node, ast.Mult(), ast.Constant(3.0))
        return node


def test_other_messages_and_timings_of_operational_code_leave_every_hash(finished, tmp_path):
    repository = finished.clone(tmp_path / "clone", with_data=True)
    shutil.rmtree(repository.folder / ".dvc/cache")  # nothing is taken from the run cache
    reworded = Reworded()
    for path in (repository.folder / "stages/runtime").glob("*.py"):
        tree = ast.fix_missing_locations(reworded.visit(ast.parse(path.read_text())))
        path.write_text(ast.unparse(tree))
    assert reworded.messages > 30
    assert reworded.clocks > 5
    before = repository.hashes()
    printed = repository.run("dvc", "repro", "--force")
    assert "reworded" in printed
    assert repository.hashes() == before
