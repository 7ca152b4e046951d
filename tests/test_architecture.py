"""python -m tools.architecture: the page is current, its pictures show dvc.yaml and the imports, and rules hold."""

import re
import shutil

import pytest

from stages.core.yaml_files import read_yaml
from stages.runtime.errors import UserError
from tests.support.project import ROOT
from tools import architecture as tool
from tools._architecture.modules import read_modules
from tools._architecture.pictures import data_flow, expand, rooms

DECLARED = {
    "hash_code": {"deps": ["stages"], "outs": [".code/make.json"]},
    "make": {
        "deps": [".code/make.json", "${data.path}"],
        "outs": [{"data/made": {"push": False}}, "metrics/make.json"],
    },
    "judge": {
        "foreach": {"base": {"weights": "data/made"}},
        "do": {"deps": ["${item.weights}"], "params": ["seed"], "outs": ["metrics/judge/${key}.json"]},
    },
    "end": {"deps": ["data/made/one.txt", "metrics/judge/base.json"], "outs": ["pages"], "metrics": ["metrics.json"]},
}


def test_the_page_is_current():
    assert (ROOT / tool.PAGE).read_text() == tool.page(ROOT), "run: python -m tools.architecture"


def arrows(diagram):
    return {(source, label, target) for source, label, target in re.findall(r"n_(\w+) -->(\|.+\|)? n_(\w+)", diagram)}


def test_the_data_flow_shows_stages_and_what_they_read_and_write():
    diagram = data_flow(expand(DECLARED))
    assert arrows(diagram) == {
        ("data_path", "", "make"),
        ("make", "", "data_made"),
        ("data_made", "", "judge_base"),
        ("judge_base", "", "metrics"),
        ("data_made", '|"one"|', "end"),
        ("metrics", "", "end"),
        ("end", "", "pages"),
        ("end", "", "metrics_json"),
    }
    assert '  n_judge_base["<b>judge@base</b>"]:::stage' in diagram
    assert '  n_data_path(["data.path"]):::given' in diagram
    assert '  n_data_made(["data/made"]):::made' in diagram


@pytest.mark.parametrize(
    "diagram",
    [data_flow(expand(read_yaml(ROOT / "dvc.yaml")["stages"])), rooms(read_modules(ROOT))],
    ids=["data", "rooms"],
)
def test_each_end_of_an_arrow_is_a_box(diagram):
    boxes = re.findall(r"(?m)^  n_(\w+)[\[(]|subgraph n_(\w+)\[", diagram)
    ends = {end for source, _, target in arrows(diagram) for end in (source, target)}
    assert ends and ends <= {name for pair in boxes for name in pair}


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the code and the page, as the current directory."""
    for folder in ("stages", "tools", "bench"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "results"))
    (tmp_path / tool.PAGE).parent.mkdir()
    for name in (tool.PAGE, "dvc.yaml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def add(path, line):
    path.write_text(f"{path.read_text()}{line}\n")


FORBIDDEN = {
    "stages/merge.py": ("stages.train", "a module of stages may not import one of stages"),
    "stages/core/hub.py": ("stages._train.model", "a module of stages/core may not import one of stages/_train"),
    "stages/runtime/lock.py": ("stages.comparison.gate", "a module of stages/runtime may not import one of"),
    "stages/comparison/gate.py": ("tools.plan", "a module of stages/comparison may not import one of tools"),
    "stages/_merge/nf4.py": ("stages._train.model", "only train.py may import stages/_train"),
    "stages/clean.py": ("stages._train.model", "only train.py may import stages/_train"),
    "tools/_review/outputs.py": ("stages._download_model.checks", "only download_model.py may import"),
    "tools/plan.py": ("bench.idle", "a module of tools may not import one of bench"),
    "tools/sweep.py": ("stages.train", "a module of tools may not import one of stages"),
}


@pytest.mark.parametrize("path", FORBIDDEN)
def test_an_import_in_a_direction_that_is_not_allowed_is_named(copy, path):
    module, why = FORBIDDEN[path]
    add(copy / path, f"def later():\n    import {module}")
    with pytest.raises(UserError, match=rf"^{path} imports {module.replace('.', '/')}\.py: {why}"):
        tool.main([])


@pytest.mark.parametrize("path", ["tools/_doctor/hub.py", "tools/_generate/speakers.py", "bench/merge.py"])
def test_a_private_package_may_be_imported_where_the_page_says_so(copy, path):
    add(copy / path, "import stages._download_model.checks")
    tool.main([])


def test_a_check_names_what_differs_and_writes_nothing(copy):
    tool.main([])
    assert tool.main(["--check"]) == "docs/architecture.md is up to date"
    (copy / "stages/core/hub.py").rename(copy / "stages/core/hubs.py")
    before = (copy / tool.PAGE).read_bytes()
    with pytest.raises(
        UserError, match=r"out of date\. Run python -m tools\.architecture(?s:.*)\n-\| \[hub\.py\]"
    ) as error:
        tool.main(["--check"])
    assert "+| [hubs.py](../stages/core/hubs.py)" in str(error.value)
    assert (copy / tool.PAGE).read_bytes() == before
    assert tool.main([]) == "wrote docs/architecture.md"
    assert tool.main(["--check"]) == "docs/architecture.md is up to date"


def test_a_module_that_is_no_python_is_named(copy):
    add(copy / "tools/plan.py", "def")
    with pytest.raises(UserError, match=r"^tools/plan\.py:\d+ is not valid Python: "):
        tool.main([])


def test_the_summary_is_the_first_sentence_of_the_docstring(copy):
    path = copy / "tools/_review/extra.py"
    path.write_text('"""Makes `a|b`\nof <c>. More.\n\nMuch more.\n"""\n')
    tool.main([])
    line = r"| [extra.py](../tools/_review/extra.py) | Makes `a\|b` of \<c\> | 100 |"
    assert line in (copy / tool.PAGE).read_text()


def test_an_unknown_argument_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        tool.main(["--chek"])
    assert "unrecognized arguments: --chek" in capsys.readouterr().err
