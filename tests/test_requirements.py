"""requirements.txt lists what the code imports, pinned; constraints.txt pins the rest."""

import importlib.metadata

from tests.support.project import ROOT
from tests.support.requirements import pins, third_party

# The trainer, the stages' runner and the converter of transformers import these. mistral-common has data files.
NEEDED_UNSEEN = {"accelerate", "dvc", "protobuf", "mistral-common"}


MUTANTS = ROOT / "tools/_mutants"  # bench/requirements-mutants.txt lists what this tool needs


def imported_distributions():
    files = [*(ROOT / "stages").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]
    return third_party([file for file in files if MUTANTS not in file.parents])


def test_what_is_imported_is_listed_and_what_is_listed_is_imported():
    assert pins("requirements.txt").keys() == imported_distributions() | NEEDED_UNSEEN


def test_the_files_do_not_contradict_each_other():
    constraints = pins("constraints.txt")
    listed = pins("requirements.txt") | pins("requirements-dev.txt")
    assert {name: constraints[name] for name in listed.keys() & constraints.keys()} == {
        name: version for name, version in listed.items() if name in constraints
    }


def test_what_runs_here_is_what_is_pinned():
    for name, version in pins("requirements.txt").items():
        assert importlib.metadata.version(name).partition("+")[0] == version
