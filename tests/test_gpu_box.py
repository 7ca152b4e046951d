"""The batch file for Slurm and the task for SkyPilot are the lines of docs/gpu-box.md."""

import re
import subprocess

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
