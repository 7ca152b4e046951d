"""`dvc repro` and `dvc exp run` on a repository with the one stage `train`, killed for real and run again."""

import contextlib
import os
import re
import signal
import time
from pathlib import Path

import psutil
import pytest

from stages.core.yaml_files import read_yaml
from tests.support.repository import queue_workers
from tests.support.training_repository import STEPS, TrainingRepository

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory, small_base):
    repositories = []

    def make(name):
        repositories.append(TrainingRepository(tmp_path_factory.mktemp(name) / "repository", small_base))
        return repositories[-1]

    yield make
    for worker in (worker for repository in repositories for worker in queue_workers(repository.folder)):
        worker.kill()
    for repository in repositories:
        repository.kill_groups()


@pytest.fixture(scope="module")
def uninterrupted(made):
    repository = made("uninterrupted")
    repository.run("dvc", "repro")
    assert len(repository.results()) == 7
    assert not list(repository.folder.glob(".dvc/tmp/checkpoints/*"))
    return repository


KILLS = [  # where, and the step from which the next run must go on
    ("right after the first checkpoint", "stages.runtime.watch:Watch.on_step_begin:5:SIGKILL", 4),
    ("between two, in the middle of an accumulation", "stages._train.trainer:Trainer.training_step:6:SIGKILL", 4),
    ("while a checkpoint is written", "stages._train.checkpointing:sync:3:SIGKILL", 4),
    ("after the adapter, before the metrics", "stages._train.metrics:losses:1:SIGKILL", STEPS),
]


def test_killed_again_and_again_a_training_ends_with_the_bytes_of_one_that_was_not(made, uninterrupted):
    repository = made("killed")
    step = 0
    for where, fault, next_step in KILLS:
        printed = repository.run("dvc", "repro", fault=fault, code=-signal.SIGKILL)
        assert (f"train: continues from step {step}\n" in printed) == (step > 0), where
        assert repository.checkpoints()[-1] == f"step-{next_step:08}", where
        step = next_step
    assert f"train: continues from step {STEPS}\n" in repository.run("dvc", "repro")
    assert repository.results() == uninterrupted.results()
    assert not list(repository.folder.glob(".dvc/tmp/checkpoints/*"))
    timing = read_yaml(repository.folder / "metrics/timing/train.json")
    assert timing["runs"] == 3  # two of the killed ones saved nothing
    assert "median_step_seconds" not in timing  # the last one had no step left to take
    whole = read_yaml(uninterrupted.folder / "metrics/timing/train.json")
    assert 0 < whole["median_step_seconds"] < whole["train_seconds"]


def ended(pid):
    """Whether a process is gone within 40 s. A zombie, which nobody has waited for, is gone."""
    for _ in range(400):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


def test_sigterm_saves_the_step_it_came_in_and_a_trainer_whose_dvc_was_killed_does_the_same(made, uninterrupted):
    repository = made("terminated")
    fault = "stages._train.trainer:Trainer.training_step:3:SIGTERM"  # in the second step
    printed = repository.run("dvc", "repro", fault=fault, code=255)
    assert "train: SIGTERM: ends after this step, with a checkpoint\n" in printed
    assert "train: stopped by SIGTERM. The next run with the same values continues from step 2\n" in printed
    assert "exited with 143" in printed
    assert "Traceback" not in printed

    # SIGSTOP keeps the trainer in its fifth step until DVC is dead.
    process = repository.start("dvc", "repro", fault="stages.runtime.watch:Watch.on_step_begin:3:SIGSTOP")
    lock = next(repository.folder.glob(".dvc/tmp/checkpoints/*/lock"))
    owner = stopped_below(process)
    assert lock.read_text().strip() == str(owner)
    process.kill()
    process.wait()
    refused = repository.run("dvc", "repro", code=255)
    assert f"train: process {owner} is training with the same values" in refused
    os.kill(owner, signal.SIGCONT)
    assert ended(owner)
    said = re.search(r"train: stopped by SIGTERM. The next run .* continues from (step \d+)\n", process.stdout.read())
    assert said[1] != "step 2"
    assert f"train: continues from {said[1]}\n" in repository.run("dvc", "repro")
    assert repository.results() == uninterrupted.results()


SLURM = ("bash", "-c", 'trap "" TERM; exec dvc repro')  # as in tools/slurm/train.sbatch


def test_what_slurm_or_ctrl_c_sends_to_dvc_and_training_alike_saves_a_step_to_go_on_from(made, uninterrupted):
    repository = made("grouped")
    fault = "stages._train.trainer:Trainer.training_step:3:SIGTERM:group"  # in the second step
    printed = repository.run(*SLURM, fault=fault, code=255)
    assert "train: stopped by SIGTERM. The next run with the same values continues from step 2\n" in printed
    assert "exited with 143" in printed
    assert repository.checkpoints() == ["step-00000002"]
    printed = repository.run(
        "dvc", "repro", fault="stages._train.trainer:Trainer.training_step:3:SIGINT:group", code=255
    )
    assert "train: continues from step 2\n" in printed
    assert "train: stopped by SIGINT. The next run with the same values continues from step 4\n" in printed
    assert "Traceback" not in printed
    assert "train: continues from step 4\n" in repository.run("dvc", "repro")
    assert repository.results() == uninterrupted.results()


def stopped_below(dvc):
    """The trainer, DVC's child or its shell's, once it has stopped itself."""
    for _ in range(3000):
        assert dvc.poll() is None, dvc.stdout.read()
        for process in psutil.Process(dvc.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() == psutil.STATUS_STOPPED:
                    return process.pid
        time.sleep(0.1)
    raise AssertionError("no process stopped itself within 300 s")


def test_an_experiment_in_a_temporary_folder_goes_on_where_a_killed_one_stopped(made, uninterrupted):
    repository = made("temporary")
    fault = "stages.runtime.watch:Watch.on_step_begin:7:SIGKILL"
    repository.run("dvc", "exp", "run", "--temp", "--name", "one", fault=fault, code=-signal.SIGKILL)
    printed = repository.run("dvc", "exp", "run", "--temp", "--name", "two")
    assert "train: continues from step 4\n" in printed
    assert repository.hashes("two") == uninterrupted.hashes()


def test_a_queued_experiment_goes_on_where_one_stopped_that_was_killed_with_its_worker(made, uninterrupted):
    repository = made("queued")
    repository.run("dvc", "exp", "run", "--queue", "--name", "one")
    repository.run("dvc", "queue", "start", fault="stages.runtime.watch:Watch.on_step_begin:7:SIGKILL")
    wait_for(repository.checkpoints)
    (lock,) = repository.folder.glob(".dvc/tmp/checkpoints/*/lock")
    assert ended(int(lock.read_text()))
    repository.run("dvc", "exp", "run", "--queue", "--name", "two")
    repository.run("dvc", "queue", "start")
    wait_for(lambda: "/two\n" in repository.run("git", "for-each-ref"))
    assert "train: continues from step 4\n" in repository.run("dvc", "queue", "logs", "two")
    assert repository.hashes("two") == uninterrupted.hashes()


def wait_for(condition):
    """For at most 300 s."""
    for _ in range(1500):
        if condition():
            return
        time.sleep(0.2)
    raise AssertionError("not within 300 s")
