"""What counts as a change of code, and which modules a stage's hashes cover."""

import ast
import hashlib
import shutil
from pathlib import Path

import pytest

from stages.core import code_hash
from stages.core.code_hash import STAGES, UNHASHED, dump, imported_modules, is_hashed, module_hash, stage_files
from stages.runtime.errors import UserError
from tests.support.project import ROOT

CODE = '''
"""What the module is for."""

LIMIT = 3  # rows


def share(count: int, total: int = 10) -> float:
    """The share of the rows."""
    if count > total:
        raise UserError(f"{count} rows of {total:,}: lower the limit")
    print(f"counted {count} rows", flush=True)
    with progress("clean", total, " rows"):
        return count / total


def main() -> object:
    return Outcome("3 rows", {"seconds": 1})
'''


def hashed(code: str) -> str:
    return dump(ast.parse(code))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("# rows", "# rows at most"),
        ("What the module is for", "What this module is for"),
        ("The share of the rows.", "What share the rows have."),
        ('"""The share of the rows."""', ""),
        (" rows of ", " of "),
        (": lower the limit", ""),
        ("counted {count} rows", "{count} rows were counted"),
        ('progress("clean"', 'progress("rows"'),
        ('Outcome("3 rows"', 'Outcome("Three rows"'),
        ("\n\n\ndef main", "\n\n\n\ndef main"),
        ("count / total", "(count / total)"),
    ],
)
def test_wording_and_layout_are_no_change(before, after):
    assert before in CODE
    assert hashed(CODE.replace(before, after, 1)) == hashed(CODE)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("LIMIT = 3", "LIMIT = 4"),
        ("total: int = 10", "total: int = 11"),
        ("count / total", "total / count"),
        ("count > total", "count >= total"),
        ("{total:,}", "{LIMIT:,}"),  # an expression in a message may have an effect
        ("flush=True", "flush=False"),
        ("UserError(", "ValueError("),
        ('{"seconds": 1}', '{"minutes": 1}'),
        ("        return count / total", "        pass\n    return count / total"),
        ("flush=True", "file=open('rows', 'w')"),
        ("LIMIT = 3", "LIMIT = 3\n'a text that is no docstring'"),
    ],
)
def test_code_is_a_change(before, after):
    assert before in CODE
    assert hashed(CODE.replace(before, after, 1)) != hashed(CODE)


@pytest.mark.parametrize(
    "call",
    [
        "print({text}, file=open('rows', 'w'))",
        "print(TABLE[{text}])",
        "print(write({text}))",
        "print(A := {text})",
        'raise UserError(f"{{TABLE[{text}]}}")',
    ],
)
def test_text_in_a_message_that_may_have_an_effect_is_a_change(call):
    assert hashed(call.format(text="'a'")) != hashed(call.format(text="'b'"))


def test_the_noun_of_a_count_in_a_message_is_no_change_and_the_count_is_one():
    text = """print(f"{plural(%s, %r)} read")"""
    assert hashed(text % ("a", "row")) == hashed(text % ("a", "line"))
    assert hashed(text % ("a", "row")) != hashed(text % ("b", "row"))


def test_a_message_to_standard_error_is_no_change():
    assert hashed("print('a', file=sys.stderr)") == hashed("print('b', file=sys.stderr)")


def test_text_of_an_error_that_may_become_data_is_a_change():
    """clean catches ValueError, and writes its text to rejected.parquet."""
    assert hashed('raise ValueError("no answer")') != hashed('raise ValueError("no text")')


def test_no_hashed_module_makes_data_of_the_text_of_a_message():
    """A UserError ends the stage. Who catches one under a name may only show it: in main, or as the gate's verdict."""
    binding = []
    for stage in STAGES:
        for path in stage_files(stage):
            if path.suffix == ".py":
                tree = ast.parse((ROOT / path).read_text())
                handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.name]
                binding += [str(path) for node in handlers if "UserError" in ast.unparse(node.type)]
    assert set(binding) <= {
        "stages/report.py",
        "stages/tokenize.py",
        "stages/train.py",
        "stages/comparison/revisions.py",
        "stages/comparison/gate.py",
    }


SYNTAX = """
@decorate(1)
async def f(*a, b: 'int' = None, **c) -> None:
    async with a as b, c:
        print(f'{b!r:>{c}} {a=}' 'text')
        yield f'{b!r:>{c}} {a=}' 'text'
    match a:
        case {'k': [1, *_], **r} if (n := len(r)):
            return lambda x, /, y=2: x[y:, ...]
    try:
        pass
    except* (OSError, ValueError) as e:
        del e
    while {**c, 'a': [i for i in range(3) if i < 2.5e-4 or not 1j]}:
        global n, m
        await g(*a, -1, None, b'x', **c)
"""


def test_the_hash_is_the_same_in_every_version_of_python():
    """The constant is from 3.11; the dump of `ast` has other fields in 3.12, and others again in 3.13."""
    assert hashlib.sha256(hashed(SYNTAX).encode()).hexdigest()[:16] == "5db9bc2697fbddf2"


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of stages/ that a test may edit."""
    shutil.copytree(ROOT / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code_hash, "ROOT", tmp_path)
    module_hash.cache_clear()
    yield tmp_path
    module_hash.cache_clear()


def edit(root: Path, addition: str, *names: str) -> set[str]:
    """The stages whose hashes change with a line at the end of these files."""
    before = {stage: code_hash.stage_hashes(stage) for stage in STAGES}
    for name in names:
        with open(root / name, "a") as file:
            file.write(f"\n{addition}\n")
    module_hash.cache_clear()
    return {stage for stage in STAGES if code_hash.stage_hashes(stage) != before[stage]}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_every_module_that_it_loads(stage):
    """Seen from outside: each import statement of ours, in any function, leads to a file of the stage."""
    files = set(stage_files(stage))
    assert Path("stages") / f"{stage}.py" in files
    for path in files:
        if path.suffix == ".py":
            assert {module for module in imported_modules(path) if is_hashed(module)} <= files
    package = ROOT / "stages" / f"_{stage}"
    own = {path.relative_to(ROOT) for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert own - files <= {Path(f"stages/_{stage}/__init__.py")}, "a file that no hash covers"


def test_a_constant_reruns_the_stages_that_compute_with_it(copy):
    assert edit(copy, "ANOTHER = 1", "stages/_train/objective.py") == {"train"}
    assert edit(copy, "ANOTHER = 1", "stages/core/quantization.py") == {"train", "merge", "evaluate"}
    assert edit(copy, "let another = 1", "stages/_report/report.js") == {"report"}


def test_a_comment_reruns_nothing(copy):
    modules = [path for stage in STAGES for path in stage_files(stage) if path.suffix == ".py"]
    assert edit(copy, "# another", *set(map(str, modules))) == set()


def test_operational_code_and_the_schema_rerun_nothing(copy):
    assert all((ROOT / path).exists() for path in UNHASHED)
    modules = [*(copy / "stages/runtime").glob("*.py"), *(copy / path for path in UNHASHED if path.suffix == ".py")]
    assert edit(copy, "ANOTHER = 1", *(str(path.relative_to(copy)) for path in modules)) == set()


def test_code_that_is_no_python_is_named(copy):
    (copy / "stages/_merge/stream.py").write_text("A = 1\ndef\n")
    with pytest.raises(UserError, match=r"^stages/_merge/stream.py:2 is not valid Python: invalid syntax$"):
        code_hash.stage_hashes("merge")
    (copy / "stages/merge.py").unlink()
    with pytest.raises(UserError, match=r"^stages/merge.py is missing"):
        code_hash.stage_hashes("merge")


def test_what_an_editor_leaves_next_to_a_module_is_no_change(copy):
    before = code_hash.stage_hashes("train")
    for name in (".trainer.py.swp", ".DS_Store", "trainer.py.orig", "trainer.py~"):
        (copy / "stages/_train" / name).write_text("")
    module_hash.cache_clear()
    assert code_hash.stage_hashes("train") == before


def test_the_list_of_stages_and_of_messages_is_no_change_of_a_stage(copy):
    assert edit(copy, "ANOTHER = 1", "stages/core/code_hash.py") == set()


def test_no_hashed_module_is_imported_by_a_name_that_is_made_at_run_time():
    """Its import statement would not show."""
    for path in {path for stage in STAGES for path in stage_files(stage) if path.suffix == ".py"}:
        calls = [node for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.Call)]
        assert not [call for call in calls if "import_module" in ast.unparse(call.func)], path
