"""The batch file for Slurm and the task for SkyPilot are the lines of docs/gpu-box.md, and the Dockerfile is linted."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages.core.yaml_files import read_yaml
from tests.support.project import ROOT

PAGE = (ROOT / "docs/gpu-box.md").read_text()
BATCH = (ROOT / "tools/slurm/train.sbatch").read_text()
TASK = read_yaml(ROOT / "tools/skypilot/train.yaml")
STEP = r"""^srun bash -c 'trap "" TERM; exec (.*)'$"""
SCRIPTS = {"slurm": BATCH, "skypilot setup": TASK["setup"], "skypilot run": TASK["run"]}


@pytest.mark.parametrize("script", SCRIPTS)
def test_bash_reads_the_script(script):
    subprocess.run(["bash", "-n"], input=SCRIPTS[script], text=True, check=True)


@pytest.mark.parametrize("script", ["slurm", "skypilot run"])
def test_the_script_runs_what_the_page_says_for_each_change(script):
    block = next(block for block in re.findall(r"(?ms)^```bash\n(.*?)^```", PAGE) if block.startswith("git pull"))
    lines = [line.partition("#")[0].strip() for line in block.splitlines()]
    said = [line for line in lines if line.startswith("dvc")]
    said += ["git add dvc.lock params.yaml metrics.json", "git push"]
    done = [re.sub(STEP, r"\1", line.strip()) for line in SCRIPTS[script].splitlines()]
    assert [line for line in done if line in said] == said
    assert "git add dvc.lock params.yaml metrics.json" in block


def test_of_a_job_step_only_the_training_hears_slurms_sigterm():
    """What becomes of it is in test_train_faults.py."""
    steps = [line for line in BATCH.splitlines() if line.startswith("srun")]
    assert len(steps) == 2
    assert all(re.match(STEP, line) for line in steps)


def test_slurm_gives_as_much_time_to_stop_as_a_training_takes():
    from stages.runtime.signals import PATIENCE

    (seconds,) = re.findall(r"#SBATCH --signal=TERM@(\d+)", BATCH)
    assert int(seconds) > max(PATIENCE.values())


def lint(dockerfile):
    """(exit code, findings) of hadolint."""
    found = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found, "hadolint is not installed: pip install -r requirements-dev.txt"
    command = [found, "--no-color", "-"]
    done = subprocess.run(command, input=dockerfile, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout + done.stderr


DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_the_linter_finds_nothing_in_the_dockerfile():
    assert lint(DOCKERFILE) == (0, "")


@pytest.mark.parametrize(
    ("good", "bad", "rule"),
    [
        ("python:3.11.14-slim-bookworm", "python", "DL3006"),  # no tag
        (" --no-cache-dir", "", "DL3042"),
        ("USER $USER_ID", "USER root", "DL3002"),
        ("RUN useradd", "RUN sudo useradd", "DL3004"),
    ],
)
def test_the_linter_sees_what_must_not_be_in_a_dockerfile(good, bad, rule):
    assert good in DOCKERFILE
    code, findings = lint(DOCKERFILE.replace(good, bad))
    assert code == 1 and rule in findings


def test_the_image_has_the_pinned_libraries_the_sandbox_and_nothing_of_the_repository_else():
    copied = re.findall(r"(?m)^(?:COPY|ADD) .*", DOCKERFILE)
    assert copied == ["COPY --chown=$USER_ID requirements.txt constraints.txt /tmp/requirements/"]
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["*", "!requirements.txt", "!constraints.txt"]
    assert "bubblewrap" in DOCKERFILE and "Not built here" in DOCKERFILE
    assert not re.search("(?i)token|password|secret *=", re.sub("(?m)^#.*", "", DOCKERFILE))


def test_the_devcontainer_is_the_dockerfile_without_root():
    text = re.sub(r"(?m)^\s*//.*$", "", (ROOT / ".devcontainer/devcontainer.json").read_text())
    settings = json.loads(text)
    assert (ROOT / ".devcontainer" / settings["build"]["dockerfile"]).resolve() == ROOT / "Dockerfile"
    assert f"--shell /bin/bash {settings['remoteUser']}" in DOCKERFILE
    environment = settings["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    assert environment == "/home/user/venv/bin/python" and "VIRTUAL_ENV=/home/user/venv " in DOCKERFILE


def test_the_page_builds_and_starts_the_image_as_the_dockerfile_says():
    commands = re.findall(r"(?m)^#     (docker .*)$", DOCKERFILE)
    assert len(commands) == 2
    assert "\n".join(commands) in PAGE
