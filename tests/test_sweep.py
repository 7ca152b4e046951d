"""python -m tools.sweep: real Optuna and DVC, trials that train for real, killed and stopped for real."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import psutil
import pytest
from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML

from stages.core.params import load_params
from stages.core.yaml_files import read_yaml
from stages.runtime.errors import UserError
from tests.support.project import ROOT
from tests.support.repository import Repository
from tests.support.training_repository import TrainingRepository
from tools import sweep as tool

PAGE = (ROOT / "docs/experiments.md").read_text()
EXAMPLE = YAML(typ="safe").load(re.search(r"(?m)^```yml\n(.*?)^```", PAGE, re.DOTALL)[1])


def written(folder, **changes):
    """The page's example with changes, as a file."""
    YAML().dump(EXAMPLE | changes, folder / "sweep.yaml")
    return folder / "sweep.yaml"


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """A repository with the tiny profile and the metrics of the last run, and no DVC in it."""
    folder = tmp_path_factory.mktemp("sweep") / "repository"
    folder.mkdir()
    shutil.copy(ROOT / "tests/params.yaml", folder / "params.yaml")
    shutil.copy(ROOT / "metrics.json", folder)
    (folder / ".gitignore").write_text("/.dvc/\n/sweep.yaml\n")
    repository = Repository(folder)
    repository.run("git", "init", "--quiet")
    repository.commit()
    return folder


@pytest.fixture
def inside(committed, monkeypatch):
    monkeypatch.chdir(committed)
    yield committed
    subprocess.run(["git", "checkout", "--quiet", "--", "."], check=True)
    shutil.rmtree(".dvc", ignore_errors=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 0}, "budget is 0: Input should be greater than or equal to 1"),
        ({"buget": 3}, "buget is not a known key"),
        ({"space": {}}, "space"),
        ({"better": "smaller"}, "better is 'smaller': Input should be 'lower' or 'higher'"),
        ({"name": "../up"}, "name is '../up'"),
        ({"workers": []}, "workers is []"),
        (
            {"objective": "evaluate.tuned.los"},
            "objective: metrics.json of the last commit has no figure evaluate.tuned.los",
        ),
        ({"space": {"train.lr": [1]}}, "space.train.lr: params.yaml: train.lr is not a known key"),
        ({"space": {"train": [1]}}, "space.train: params.yaml: train is 1"),
        ({"space": {"lora.r": [8, 0]}}, "space.lora.r: params.yaml: lora.r is 0: Input should be greater than"),
        ({"space": {"lora.r": {"low": 1.5, "high": 4}}}, "space.lora.r: params.yaml: lora.r is 1.5"),
        ({"space": {"lora.dropout": {"low": 0, "high": 1.5}}}, "space.lora.dropout: params.yaml: lora.dropout is 1.5"),
        ({"space": {"train.learning_rate": {"low": 0, "high": 1e-2, "log": True}}}, "space.train.learning_rate: "),
        ({"space": {"lora.r": {"low": 8, "high": 4}}}, "space.lora.r: "),
        ({"space": {"lora.r": {"low": 8, "heigh": 4}}}, "unexpected keyword argument 'heigh'"),
        ({"space": {"lora.r": []}}, "space.lora.r: "),
    ],
)
def test_a_mistake_in_the_file_is_refused_by_its_key_before_anything_starts(inside, changes, message):
    with pytest.raises(UserError) as raised:
        tool.main(written(inside, **changes))
    assert message in str(raised.value)
    assert not list(inside.glob(".dvc/tmp/sweeps/*/s*"))


def test_without_a_file_it_says_where_one_is_shown(inside):
    with pytest.raises(UserError, match=r"none.yaml is missing. docs/experiments.md shows one"):
        tool.main(inside / "none.yaml")


def test_a_sweep_begins_on_a_commit_only(inside):
    params = inside / "params.yaml"
    params.write_text(params.read_text() + "# by hand\n")
    with pytest.raises(UserError, match=r"(?s)a sweep begins on a commit, .*M params.yaml"):
        tool.main(written(inside))


def test_one_that_has_begun_keeps_its_space_and_its_commit(inside):
    sweep = tool.Sweep.model_validate(EXAMPLE)
    folder = inside / ".dvc/tmp/sweeps" / sweep.name
    folder.mkdir(parents=True)
    first = tool.Search(sweep, folder)
    (inside / "params.yaml").write_text("no: params\n")
    assert tool.Search(sweep.model_copy(update={"budget": 99, "workers": 7}), folder).commit == first.commit
    with pytest.raises(UserError, match="began with another objective or space"):
        tool.Search(sweep.model_copy(update={"better": "higher"}), folder)


def test_what_is_proposed_reaches_params_yaml_as_it_was_meant(tiny, tmp_path):
    space = {
        "lora.target_modules": [["q_proj", "v_proj"]],
        "train.neftune_alpha": [None],
        "train.optimizer": ["adamw_8bit"],
        "train.deterministic": [False],
        "lora.r": {"low": 2, "high": 64, "log": True},
        "train.learning_rate": {"low": 1e-7, "high": 1e-6},
    }
    trial = optuna.create_study().ask(tool.read_space(space, tiny.read_text()))
    shutil.copy(tiny, tmp_path / "params.yaml")
    apply_overrides(tmp_path / "params.yaml", [f"{key}={value}" for key, value in trial.params.items()])
    params = load_params(tmp_path / "params.yaml")
    assert params.lora.target_modules == ["q_proj", "v_proj"]
    assert (params.train.neftune_alpha, params.train.optimizer) == (None, "adamw_8bit")
    assert (params.train.deterministic, params.lora.r) == (False, trial.params["lora.r"])
    assert 2 <= params.lora.r <= 64
    assert 1e-7 <= params.train.learning_rate == trial.params["train.learning_rate"] <= 1e-6


def test_the_example_of_the_page_is_legal_and_its_figure_is_there(tiny):
    sweep = tool.Sweep.model_validate(EXAMPLE)
    assert tool.read_space(sweep.space, tiny.read_text()).keys() == EXAMPLE["space"].keys()
    metrics = json.loads((ROOT / "metrics.json").read_text())
    assert isinstance(tool.leaves(metrics, "")[f".{sweep.objective}"], float)


class SweepRepository(TrainingRepository):
    """One stage that trains, one that makes metrics.json of what it measured; run once and committed."""

    def __init__(self, folder, small_base):
        super().__init__(folder, small_base)
        shutil.copytree(ROOT / "tools", folder / "tools", ignore=shutil.ignore_patterns("__pycache__"))
        score = {"cmd": "cp metrics/train.json metrics.json", "deps": ["metrics/train.json"]}
        stages = read_yaml(folder / "dvc.yaml")["stages"]
        metrics = [{"metrics.json": {"cache": False}}]
        YAML().dump({"stages": stages | {"score": score | {"metrics": metrics}}}, folder / "dvc.yaml")
        (folder / ".gitignore").write_text("__pycache__/\n/models/adapter\n/metrics/\n/sweep.yaml\n")
        self.run("dvc", "repro")
        self.commit("run")

    def sweep(self, fault=None, **settings):
        YAML().dump({**EXAMPLE, "objective": "validation_loss", **settings}, self.folder / "sweep.yaml")
        return self.start(sys.executable, "-m", "tools.sweep", "sweep.yaml", fault=fault)

    def folder_of(self, name):
        return self.folder / ".dvc/tmp/sweeps" / name

    def trials(self, name):
        return optuna.load_study(study_name=name, storage=f"sqlite:///{self.folder_of(name)}/study.db").trials

    def metric(self, experiment):
        return json.loads(self.run("git", "show", f"{self.experiment(experiment)}:metrics.json"))["validation_loss"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory, small_base):
    repository = SweepRepository(tmp_path_factory.mktemp("sweep") / "repository", small_base)
    yield repository
    for process in psutil.process_iter(["environ"]):
        if str(repository.folder) in (process.info["environ"] or {}).get("SWEEP_TRIAL", ""):
            process.kill()
    repository.kill_groups()


def wait(condition, process):
    """What condition() gives, once it is true, while the sweep runs."""
    for _ in range(6000):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if found := condition():
                return found
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    raise AssertionError("not within 600 s")


def below(process):
    return psutil.Process(process.pid).children(recursive=True)


def stopped_trainers(process):
    """{experiment: trainer} of those that have stopped themselves."""
    stopped = [each for each in below(process) if each.status() == psutil.STATUS_STOPPED]
    return {each.environ()["SWEEP_TRIAL"].rpartition("/")[2]: each for each in stopped}


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_with_its_trials_and_counts_none_twice(repository):
    settings = {"name": "killed", "budget": 3, "workers": 2, "retries": 1, "pruning": None}
    fault = "stages.runtime.watch:Watch.on_step_begin:7:SIGSTOP"  # in the seventh step, with a checkpoint of the fourth
    process = repository.sweep(fault=fault, **settings)
    stopped = wait(lambda: len(found := stopped_trainers(process)) == 2 and found, process)
    assert stopped.keys() == {"killed-0", "killed-1"}
    before = repository.trials("killed")
    process.kill()
    process.communicate()
    # Of one trial nothing is left, as after a power cut; the other one has outlived the sweep.
    for left in psutil.process_iter(["environ"]):
        if (left.info["environ"] or {}).get("SWEEP_TRIAL", "").endswith("killed-0"):
            left.kill()
    stopped["killed-1"].resume()

    process = repository.sweep(**settings)
    folder = repository.folder_of("killed")
    log = folder / "killed-0.log"
    wait(lambda: "train: continues from step 4\n" in log.read_text(), process)
    lock = next(folder.glob("killed-0.checkpoints/*/lock"))
    os.kill(int(lock.read_text()), signal.SIGTERM)  # as from a machine that is taken away
    printed = process.communicate(timeout=800)[0]
    assert process.returncode == 0, printed
    assert printed.count("\nkilled-0: train.learning_rate=") == 2, "retried"
    assert re.search("train: continues from step ([4-9]|1[0-9]|20)\n", (folder / "killed-1.log").read_text())

    trials = repository.trials("killed")
    assert [trial.params for trial in trials[:2]] == [trial.params for trial in before]
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 3
    assert [trial.value for trial in trials] == [repository.metric(f"killed-{number}") for number in range(3)]
    best = min(trials, key=lambda trial: trial.value)
    assert printed.endswith(f"best: dvc exp apply killed-{best.number}\n")
    assert {path.name for path in folder.iterdir()} == {
        *("lock", "sweep.json", "study.db"),
        *(f"killed-{number}.log" for number in range(3)),
    }
    assert repository.run("git", "status", "--porcelain") == ""
    repository.run("dvc", "exp", "apply", f"killed-{best.number}")
    applied = read_yaml(repository.folder / "params.yaml")
    assert applied["train"]["learning_rate"] == best.params["train.learning_rate"]
    repository.run("dvc", "status")
    repository.run("git", "checkout", "--quiet", "--", ".")


@pytest.mark.slow
def test_a_trial_that_is_worse_than_those_before_is_pruned_while_it_trains(repository):
    space = {"train.learning_rate": {"low": 1e-8, "high": 1e-2, "log": True}, "train.epochs": [8]}
    folder = repository.folder_of("pruned")
    folder.mkdir(parents=True)
    study = optuna.create_study(study_name="pruned", storage=f"sqlite:///{folder}/study.db", direction="minimize")
    for rate in (2e-3, 1e-8):
        study.enqueue_trial({"train.learning_rate": rate, "train.epochs": "8"})
    pruning = {"n_startup_trials": 1, "n_warmup_steps": 0}
    gpu = 1000 + os.getpid()  # no other test's, and for a training on the CPU as good as any
    settings = {"name": "pruned", "space": space, "budget": 2, "workers": [gpu], "retries": 0, "pruning": pruning}
    process = repository.sweep(fault="stages.runtime.watch:Watch.on_step_begin:5:SIGSTOP", **settings)
    training = wait(lambda: stopped_trainers(process), process)["pruned-0"]
    assert training.environ()["CUDA_VISIBLE_DEVICES"] == str(gpu)
    with open(f"/tmp/sweep-{os.getuid()}-gpu-{gpu}") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for _ in range(6000):
        if process.poll() is not None:
            break
        with contextlib.suppress(psutil.Error):
            for stopped in stopped_trainers(process).values():
                time.sleep(6)  # the curves are then due to be written
                stopped.resume()
        time.sleep(0.1)
    printed = process.communicate(timeout=800)[0]
    assert process.returncode == 0, printed
    assert "\npruned-1: pruned\n" in printed
    good, bad = repository.trials("pruned")
    assert (good.state.name, bad.state.name) == ("COMPLETE", "PRUNED")
    assert max(good.intermediate_values) == 80
    assert 0 < max(bad.intermediate_values) < 80
    assert "pruned-1" not in repository.run("git", "for-each-ref")
    assert not list(folder.glob("pruned-1.checkpoints"))
    Path(f"/tmp/sweep-{os.getuid()}-gpu-{gpu}").unlink()
