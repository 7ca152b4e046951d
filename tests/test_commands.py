"""Every module that a person can start has help, refuses what it does not know, and does nothing until it is asked to.

The modules are found by their `if __name__ == "__main__"`, so a new command is tested too.
"""

from stages.runtime.command import explained

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.project import ROOT, copy_project, tracked_files

NEEDS_ARGUMENTS = ("stages.evaluate", "tools.profile", "tools.push_to_hub")


def is_startable(path: Path) -> bool:
    tests = [ast.unparse(node.test) for node in ast.parse(path.read_text()).body if isinstance(node, ast.If)]
    return "__name__ == '__main__'" in tests


STARTABLE = [
    name.removesuffix(".py").replace("/", ".")
    for name in tracked_files()
    if re.match(r"(stages|tools|bench)/.*\.py$", name) and is_startable(ROOT / name)
]
# A part of a name with _ is private: another module starts it, and nobody else.
INTERNAL = [module for module in STARTABLE if "._" in module]
COMMANDS = [module for module in STARTABLE if module not in INTERNAL]


def start(module: str, *arguments: str, cwd: Path, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """Starts a command in an empty folder, where whatever it wrote would be seen."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *flags, "-m", module, *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    assert list(cwd.iterdir()) == []
    assert "Traceback" not in done.stderr
    return done


def test_the_commands_are_found():
    assert {"stages.train", "tools.doctor", "bench.pipeline"} <= set(COMMANDS)
    assert "stages._evaluate.sandbox_runner" in INTERNAL


@pytest.mark.parametrize("module", COMMANDS)
def test_help_has_a_usage_and_examples_and_starts_nothing(module, tmp_path):
    done = start(module, "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: python -m {module} ")
    stage = module.removeprefix("stages.")
    assert re.search(rf"(?m)^    (python -m {re.escape(module)}\b|dvc repro {stage}\b)", done.stdout)


@pytest.mark.parametrize("module", COMMANDS)
def test_an_unknown_argument_is_refused_with_exit_code_2(module, tmp_path):
    done = start(module, "--nonsense", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"usage: python -m {module} ")
    assert f"python -m {module}: error: " in done.stderr


@pytest.mark.parametrize("module", NEEDS_ARGUMENTS)
def test_a_command_that_needs_arguments_says_which(module, tmp_path):
    done = start(module, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search("error: (the following arguments are required|give one of)", done.stderr)


@pytest.mark.parametrize(
    ("module", "arguments", "words"),
    [
        ("stages.train", ["--plan", "-5"], "argument --plan: -5 is not a number of GiB above 0, such as 24"),
        ("stages.train", ["--plan", "x"], "argument --plan: x is not a number of GiB"),
        ("stages.train", ["--plan", "inf"], "argument --plan: inf is not a number of GiB"),
        ("stages.train", ["--plan", "nan"], "argument --plan: nan is not a number of GiB"),
        ("stages.train", ["--plan", "24", "80"], "unrecognized arguments: 80"),
        ("stages.tokenize", ["--show"], "argument --show: expected one argument"),
        ("stages.tokenize", ["--show", "0"], "argument --show: 0 is not a whole number of 1 or more"),
        ("stages.report", ["--show", "--gate"], "not allowed with argument"),
        ("stages.report", ["--sho"], "unrecognized arguments: --sho"),
        ("stages.evaluate", ["both", "models/base"], "argument name: invalid choice: 'both'"),
        ("tools.generate", [""], "the prompt is empty"),
        ("bench.tokenize", ["-1"], "argument ROWS: -1 is not a whole number of 1 or more"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(module, arguments, words, tmp_path):
    done = start(module, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr


@pytest.mark.parametrize("module", INTERNAL)
def test_what_other_modules_start_is_not_taken_for_a_command(module, tmp_path):
    done = start(module, "--help", cwd=tmp_path)
    assert (
        done.stdout.startswith(f"usage: python -m {module} ") if done.returncode == 0 else done.stderr.count("\n") == 1
    )


@pytest.mark.parametrize("module", STARTABLE)
def test_a_missing_library_is_named_with_what_to_do(module, tmp_path):
    """With -S Python finds no installed library, as another Python would not."""
    done = start(module, "--help", cwd=tmp_path, flags=("-S",))
    if done.returncode:
        assert re.fullmatch(
            r"\w+: (the library \w+ is not installed for \S+\. Run `.+|this is no command.+)\n", done.stderr
        )


def test_the_doctor_works_without_any_library(tmp_path):
    done = start("tools.doctor", cwd=tmp_path, flags=("-S",))
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("✗ libraries: none of the 4 not installed for ")
    assert "Run `" in done.stdout


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["tools.profile", "--keys"], ["stages.train", "--help"]], ids=" ".join)
def test_a_reader_that_leaves_early_as_head_does_is_no_error(arguments, unbuffered):
    """A buffered text is written at the very end of the process, any other in the middle of its work."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", *arguments]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True
    ) as process:
        os.close(writer)
        assert process.stderr.read() == ""


def test_a_mode_that_only_reads_says_nothing_of_dvc():
    done = subprocess.run(
        [sys.executable, "-m", "stages.report", "--show"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("--nonsense", 2)])
def test_the_script_for_a_gpu_shows_its_usage_and_starts_nothing(argument, code, tmp_path):
    command = ["sh", str(ROOT / "bench/gpu.sh"), argument]
    done = subprocess.run(command, env={"PATH": os.defpath}, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.endswith("Start it with: sh bench/gpu.sh\n")


@pytest.mark.parametrize(("key", "given"), [("data.path", "data/mine.jsonl"), ("model.path", "assets/none")])
def test_dvc_repro_names_the_key_of_a_path_that_is_missing(key, given, tmp_path):
    """DVC itself would only say [Errno 2]: it hashes the inputs of a stage before it starts it."""
    copy_project(tmp_path, without=("assets/tiny-mistral/model-00001-of-00002.safetensors",))
    environment = os.environ | {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(tmp_path / "site")}

    def repro(*stage):
        command = [sys.executable, "-m", "dvc", "repro", *stage]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    assert repro("hash_code").returncode == 0  # so that only the path is new
    params = tmp_path / "params.yaml"
    section, _, name = key.partition(".")
    text, count = re.subn(rf"(?ms)^({section}:.*?^  {name}: )\S+", rf"\g<1>{given}", params.read_text(), count=1)
    assert count == 1
    params.write_text(text)
    done = repro()
    assert done.returncode != 0
    assert f"hash_code: {key}: there is no file or folder {given}. Correct params.yaml" in done.stderr
    assert "Errno" not in done.stderr


@pytest.mark.parametrize("test", ["first", "second"])
def test_what_a_command_sets_in_this_process_is_gone_in_the_next_test(test, monkeypatch):
    assert os.environ.get("DO_NOT_TRACK") != "1-of-an-earlier-test", f"{test}: conftest.same_environment"
    with explained("x"):
        os.environ["DO_NOT_TRACK"] = "1-of-an-earlier-test"
