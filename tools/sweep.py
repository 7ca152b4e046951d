"""Searches over params with Optuna. Each trial is a DVC experiment.

    python -m tools.sweep               # the search that sweep.yaml describes
    python -m tools.sweep other.yaml    # docs/experiments.md says what the file holds

Run it again to continue a search that was stopped. A trial runs in a clone of the commit on which the sweep began, in
.dvc/tmp/sweeps/NAME, with this repository's cache. `dvc exp run --temp` would take what the workspace holds at that
moment. Two runs that start at the same time might even take each other's values.
"""

from stages.runtime.command import command_parser

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
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import optuna
import psutil
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial, TrialState
from pydantic import Field, ValidationError

from stages.core.params import Count, CountOrZero, Section, describe, key_of
from stages.core.paths import PARAMS, RESULT, VALIDATION_CURVE, read_json, write_json
from stages.core.yaml_files import read_yaml, read_yaml_text
from stages.runtime.counts import plural
from stages.runtime.errors import UserError
from tools._doctor.processes import trials_below
from tools.plan import leaves, with_overrides

optuna.logging.set_verbosity(optuna.logging.WARNING)
POLL, PATIENCE = 0.5, 60.0  # seconds: between two checks of the trials; for a stopped trial's checkpoint
KILLED = r"exited with (-\d+|1(2[89]|[3-9]\d))$"  # DVC's message about a stage that a signal ended
SCRIPT = """mkdir .dvc/tmp && ln -s "$PWD.checkpoints" .dvc/tmp/checkpoints && dvc cache dir -q --local "$0" || exit
dvc checkout -q --allow-missing; exec "$@" """


class Sweep(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z][\w-]*$")]
    objective: str
    better: Literal["lower", "higher"]
    space: Annotated[dict[str, list | dict[str, Any]], Field(min_length=1)]
    budget: Count
    workers: Count | Annotated[list[CountOrZero], Field(min_length=1)]
    retries: CountOrZero
    pruning: dict[Literal["n_startup_trials", "n_warmup_steps"], CountOrZero] | None


def read_space(space: dict[str, list | dict], params: str) -> dict[str, BaseDistribution]:
    """The search space in Optuna's form.

    Choices become JSON, which Optuna can store and `dvc exp run -S` reads. Each choice, and both ends of each range, is
    tried in the text of params.yaml.

    Raises:
        UserError: The form or a value is not legal.
    """
    distributions = {}
    for key, given in space.items():
        try:
            if isinstance(given, list):
                distributions[key] = CategoricalDistribution([json.dumps(choice) for choice in given])
            else:
                whole = all(isinstance(value, int) for value in given.values())
                distributions[key] = (IntDistribution if whole else FloatDistribution)(**given)
            for value in given if isinstance(given, list) else (given["low"], given["high"]):
                with_overrides(read_yaml_text(params), [f"{key}={json.dumps(value)}"])
        except (TypeError, ValueError, UserError) as error:
            raise UserError(f"space.{key}: {error}. It takes a list, or low, high and perhaps step or log") from None
    return distributions


def output_of_command(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603


def stop_trials(folder: Path) -> None:
    """Stops all trials below a folder, first with SIGTERM, later with SIGKILL.

    At SIGTERM a training saves a checkpoint.
    """
    left = trials_below(folder)
    for stop in (psutil.Process.terminate, psutil.Process.kill):
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                stop(process)
        left = psutil.wait_procs(left, PATIENCE)[1]


class Search:
    def __init__(self, sweep: Sweep, folder: Path):
        self.sweep, self.folder, self.lower = sweep, folder, sweep.better == "lower"
        kept, asked = folder / "sweep.json", sweep.model_dump(include={"objective", "better", "space"})
        began = read_json(kept) if kept.exists() else asked | {"commit": output_of_command("git", "rev-parse", "HEAD")}
        self.commit = began["commit"]
        if began != asked | {"commit": self.commit}:
            raise UserError(f"name: {sweep.name} began with another objective or space. Choose another name")
        refs = "" if kept.exists() else output_of_command("git", "for-each-ref", f"refs/exps/*/*/{sweep.name}-[0-9]*")
        if refs or not kept.exists() and (refs := output_of_command("git", "status", "--porcelain")):
            raise UserError(f"a sweep begins on a commit, under a new name. Commit, ignore or rename first:\n{refs}")
        self.space = read_space(sweep.space, output_of_command("git", "show", f"{self.commit}:{PARAMS}"))
        if not isinstance(self.value(self.commit), int | float):
            raise UserError(f"objective: {RESULT} of the last commit has no figure {sweep.objective}")
        write_json(kept, began)
        prune = optuna.pruners.MedianPruner(**sweep.pruning) if sweep.pruning else optuna.pruners.NopPruner()
        new = {"study_name": sweep.name, "direction": "minimize" if self.lower else "maximize", "pruner": prune}
        self.study = optuna.create_study(storage=f"sqlite:///{folder}/study.db", load_if_exists=True, **new)
        self.stopped = [Trial(self.study, t._trial_id) for t in self.study.trials if t.state == TrialState.RUNNING]
        print(
            f"{sweep.name}: on commit {self.commit[:9]}, {len(self.study.trials)} of "
            f"{plural(sweep.budget, 'trial')} so far"
        )

    def value(self, revision: str) -> object:
        return leaves(json.loads(output_of_command("git", "show", f"{revision}:{RESULT}")), "").get(
            f".{self.sweep.objective}"
        )

    def start(self, copy: Path, changes: list[str], gpu: int | None) -> subprocess.Popen:
        """Starts `dvc exp run` in a fresh clone, with its checkpoints in a folder next to it.

        flock holds the GPU until the run ends.
        """
        shutil.rmtree(copy, ignore_errors=True)
        output_of_command("git", "clone", "--quiet", "--shared", "--no-checkout", ".", str(copy))
        output_of_command("git", "-C", str(copy), "checkout", "--quiet", "--detach", self.commit)
        settings = Path(output_of_command("git", "rev-parse", "--git-common-dir"), "config")
        shutil.copy(settings, copy / ".git/config")  # it says who commits
        copy.with_suffix(".checkpoints").mkdir(exist_ok=True)
        command = ["dvc", "exp", "run", "--name", copy.name, *(f"--set-param={change}" for change in changes)]
        environment = os.environ | {"SWEEP_TRIAL": str(copy), "PYTHONUNBUFFERED": "1"}
        if gpu is not None:
            command = ["flock", "-F", f"/tmp/sweep-{os.getuid()}-gpu-{gpu}", *command]  # noqa: S108
            environment["CUDA_VISIBLE_DEVICES"] = str(gpu)
        command = ["sh", "-c", SCRIPT, output_of_command("dvc", "cache", "dir"), *command]
        with open(copy.with_suffix(".log"), "w") as log:  # Ctrl-C reaches only this process's own group
            return subprocess.Popen(command, cwd=copy, env=environment, stdout=log, stderr=log, process_group=0)  # noqa: S603

    def report(self, trial: Trial, copy: Path) -> bool:
        """Reports new rows of the validation curve. Returns whether there were any.

        Until `train` runs in the clone, the file there is that of the commit, and does not count.
        """
        curve, log = copy / VALIDATION_CURVE, copy.with_suffix(".log").read_text(errors="replace")
        known = self.study.trials[trial.number].intermediate_values
        lines = curve.read_text().splitlines()[1:] if "Running stage 'train':" in log and curve.exists() else []
        new = {int(step): float(loss) for step, loss in (line.split(",") for line in lines) if int(step) not in known}
        for step, loss in new.items():
            trial.report(loss if self.lower else -loss, step)
        return bool(new)

    def work(self, gpu: int | None) -> Iterator[None]:
        """Runs trials one after another, first those that were stopped. Yields while it waits."""
        while (
            self.stopped
            or sum(study_trial.state != TrialState.WAITING for study_trial in self.study.trials) < self.sweep.budget
        ):
            trial = self.stopped.pop(0) if self.stopped else self.study.ask()
            copy = self.folder / f"{self.sweep.name}-{trial.number}"
            changes = [f"{key}={trial._suggest(key, values)}" for key, values in self.space.items()]
            for left in reversed(range(self.sweep.retries + 1)):
                print(f"{copy.name}: {', '.join(changes)}", flush=True)
                process, pruned = self.start(copy, changes, gpu), False
                while not pruned and process.poll() is None:
                    yield
                    pruned = self.report(trial, copy) and trial.should_prune()
                stop_trials(copy)
                said = copy.with_suffix(".log").read_text(errors="replace").strip().rpartition("\n")[2]
                if pruned or not left or not (process.returncode < 0 or re.search(KILLED, said)):
                    break
            if not pruned and process.returncode == 0:
                ref = f"refs/exps/{self.commit[:2]}/{self.commit[2:]}/{copy.name}"
                output_of_command("git", "fetch", "--quiet", str(copy), f"+{ref}:{ref}")
                self.study.tell(trial, said := self.value(ref))
            else:
                self.study.tell(trial, state=TrialState.PRUNED if pruned else TrialState.FAIL)
            print(f"{copy.name}: {'pruned' if pruned else said}", flush=True)
            output_of_command("rm", "-rf", str(copy), f"{copy}.checkpoints")

    def result(self) -> str:
        if not self.study.get_trials(states=[TrialState.COMPLETE]):
            raise UserError(f"no trial ended well. {self.folder} has a log of each")
        frame = self.study.trials_dataframe(("number", "state", "value", "duration", "params"))
        seconds, value = frame.duration.dt.total_seconds().round(), frame.value.where(frame.state == "COMPLETE")
        table = frame.assign(duration=seconds, value=value).to_string(index=False, na_rep="")
        shares = [f"{key} {share:.0%}" for key, share in optuna.importance.get_param_importances(self.study).items()]
        best = f"best: dvc exp apply {self.sweep.name}-{self.study.best_trial.number}"
        return "\n".join([table, f"importance: {', '.join(shares)}", best])


def main(path: Path) -> str:
    if not path.exists():
        raise UserError(f"{path} is missing. docs/experiments.md shows one")
    try:
        sweep = Sweep.model_validate(read_yaml(path))
    except ValidationError as error:
        raise UserError("\n".join(describe([entry], key_of(entry)) for entry in error.errors())) from None
    folder = Path(".dvc/tmp/sweeps", sweep.name).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        search, gpus = Search(sweep, folder), sweep.workers
        stop_trials(folder)  # trials that a killed sweep left running
        workers = [search.work(gpu) for gpu in (gpus if isinstance(gpus, list) else [None] * gpus)]
        try:
            while workers:
                workers = [worker for worker in workers if next(worker, True) is None]
                time.sleep(POLL)
        finally:
            stop_trials(folder)
    return search.result()


if __name__ == "__main__":
    parser = command_parser("tools.sweep", __doc__)
    parser.add_argument("file", nargs="?", type=Path, default="sweep.yaml", help="default: %(default)s", metavar="FILE")
    options = parser.parse_args()
    os.environ["PATH"] = (
        f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # for dvc, and the stages' python
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        print(main(options.file))
    except (UserError, BlockingIOError, KeyboardInterrupt, subprocess.CalledProcessError) as error:
        why = {BlockingIOError: "runs already", KeyboardInterrupt: "stopped; run it again to continue"}
        sys.exit(f"sweep: {why.get(type(error), getattr(error, 'stderr', None) or error)}")
