"""Early stopping, and what can be watched while a training runs."""

import csv
import errno
import os
import re
import sys
from pathlib import Path
from typing import get_args

import pytest
from transformers import TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from stages._train.arguments import training_arguments
from stages._train.checkpointing import Checkpoints, finished_checkpoints
from stages._train.metrics import best_evaluation, curves, evaluations, losses
from stages.core.machine import resolve_machine
from stages.core.params import Tracker
from stages.core.paths import CURVE, VALIDATION_CURVE
from stages.runtime import live_curves as live
from stages.runtime import progress
from stages.runtime.errors import UserError
from stages.runtime.live_curves import LiveCurves
from stages.runtime.trackers import prepare_trackers, tracker_variables
from tests.support.training import rows, saved

# One row of those that are trained, and random tokens, on which whatever is learned soon makes things worse.
UNLIKE = [*rows(1), *rows(3, seed=1)]


HARMFUL = {"eval_steps": 1, "epochs": 6, "learning_rate": 5e-2, "lr_scheduler": "constant", "warmup_steps": 0}


@pytest.fixture
def harmful(options_of):
    """A training that gets better on the validation rows in its first steps only."""
    return options_of(train=HARMFUL | {"early_stopping_patience": 2}, machine={"save_steps": 3})


def history(*values):
    return [{"step": step, "eval_loss": value} for step, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "index"),
    [((3.0,), 0), ((3.0, 2.0, 2.5), 1), ((3.0, 2.0, 2.0), 1), ((float("nan"), 2.0), 1), ((2.0, float("nan")), 0)],
)
def test_the_best_evaluation_is_the_first_with_the_lowest_loss(values, index):
    assert best_evaluation([{"step": 0, "loss": 1.0}, *history(*values)]) == index


def test_a_training_that_does_harm_ends_early_with_its_best_adapter(trainer_of, harmful, training_folder):
    trainer = trainer_of(harmful, Checkpoints({}, limit=100), UNLIKE)
    trainer.run(None)
    found = evaluations(trainer.state.log_history)
    step, loss = min(found, key=lambda evaluation: evaluation[1])
    assert 0 < step == trainer.state.global_step - 2 < trainer.state.max_steps - 2
    figures = losses(trainer.state.log_history, keeps_best=True)
    assert (figures["adapter_step"], figures["validation_loss"]) == (step, loss)
    assert trainer.evaluate()["eval_loss"] == loss != found[-1][1]
    del trainer.state.log_history[-1]
    result = saved(trainer, training_folder / "whole"), curves(trainer.state.log_history)
    for number, checkpoint in enumerate(finished_checkpoints(trainer.checkpoints.folder)):
        again = trainer_of(harmful, Checkpoints({"number": number}, limit=100), UNLIKE)
        again.run(checkpoint)
        assert (saved(again, training_folder / f"again-{number}"), curves(again.state.log_history)) == result, (
            checkpoint.name
        )


def test_the_checkpoint_at_which_it_stopped_goes_no_step_further(trainer_of, harmful, training_folder):
    rare = harmful.model_copy(update={"machine": harmful.machine.model_copy(update={"save_steps": 100})})
    trainer = trainer_of(rare, Checkpoints({}, limit=100), UNLIKE)
    trainer.run(None)
    (checkpoint,) = finished_checkpoints(trainer.checkpoints.folder)
    again = trainer_of(rare, Checkpoints({"number": 1}, limit=100), UNLIKE)
    again.run(checkpoint)
    assert again.state.global_step == trainer.state.global_step
    assert saved(again, training_folder / "again") == saved(trainer, training_folder / "whole")


def test_a_training_that_does_not_run_out_of_patience_keeps_its_best_adapter_too(trainer_of, options_of):
    train = HARMFUL | {"early_stopping_patience": 100, "epochs": 4}
    trainer = trainer_of(options_of(train=train), validation=UNLIKE)
    trainer.run(None)
    found = [loss for _, loss in evaluations(trainer.state.log_history)]
    assert trainer.state.global_step == trainer.state.max_steps
    assert trainer.evaluate()["eval_loss"] == min(found) < found[-1]


class Reader(TrainerCallback):
    """Reads the curve's file after each step, as a browser would."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, **_):
        rows = list(csv.DictReader(CURVE.open())) if CURVE.exists() else []
        self.seen.append((state.global_step, int(rows[-1]["step"]) if rows else 0))


@pytest.mark.parametrize(("every", "behind"), [(0, 0), (1000, None)])
def test_the_curves_files_follow_the_training(trainer_of, options_of, monkeypatch, every, behind):
    monkeypatch.setattr(live, "WRITE_SECONDS", every)
    trainer = trainer_of(options_of(train={"epochs": 2}))
    reader = Reader()
    trainer.add_callback(LiveCurves(curves))
    trainer.add_callback(reader)
    trainer.run(None)
    assert max(step for step, _ in reader.seen) == 4
    assert all(written == (step if behind == 0 else 0) for step, written in reader.seen)
    if behind == 0:
        assert {path: path.read_text() for path in (CURVE, VALIDATION_CURVE)} == curves(trainer.state.log_history)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_or_lines_show_loss_speed_and_the_time_left(trainer_of, options_of, monkeypatch, capsys, terminal):
    trainer = trainer_of(options_of(train={"epochs": 2}))
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    trainer.run(None)
    printed = capsys.readouterr()
    rate = trainer.watch.tokens / trainer.watch.passed
    assert trainer.watch.tokens == 2 * sum(len(row["input_ids"]) for row in rows(8))
    if terminal:
        assert re.search(r"train: +0%.*0/4 \[", printed.err)
        shown = trainer.watch.progress.bar.postfix  # tqdm draws it again when a tenth of a second has passed
        assert re.fullmatch(rf"loss=\d+\.\d{{3}}, tokens/s={rate:.0f}", shown)
    else:
        last = printed.out.splitlines()[-1]
        assert re.fullmatch(rf"train: 4 of 4 steps, loss \d+\.\d{{3}}, tokens/s {rate:.0f}, 0 s to go", last)


def test_curves_that_cannot_be_written_do_not_end_the_training_and_are_said_once(
    trainer_of,
    options_of,
    monkeypatch,
    capsys,
):
    def refuse(path, text):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(live, "WRITE_SECONDS", 0)
    monkeypatch.setattr(live, "write_text", refuse)
    trainer = trainer_of(options_of(train={"epochs": 2}))
    trainer.add_callback(LiveCurves(curves))
    trainer.run(None)
    assert trainer.state.global_step == trainer.state.max_steps
    said = [line for line in capsys.readouterr().out.splitlines() if "curves" in line]
    assert said == [
        f"train: the curves cannot be shown ([Errno 28] No space left on device: '{CURVE}'); the training continues"
    ]


def with_tracker(options_of, *names):
    return options_of(train={"epochs": 2}, machine={"report_to": list(names)})


TRACKERS = get_args(Tracker)


def test_trackers_that_are_not_installed_are_named_before_the_training(options_of, training_folder, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(training_folder)])
    for name in TRACKERS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    Path(TRACKERS[0]).mkdir()  # no package, though Python would import it
    params = with_tracker(options_of, *TRACKERS)
    with pytest.raises(UserError, match=rf"needs {', '.join(TRACKERS)}, .*pip install {' '.join(TRACKERS)}"):
        prepare_trackers(params.machine, "run")
    assert not Path("logs").exists()


@pytest.fixture
def own_environment(training_folder, monkeypatch):
    """Whatever a test sets of the trackers' variables goes again."""
    for variable in tracker_variables(training_folder, "name"):
        monkeypatch.setenv(variable, "to be restored")
        monkeypatch.delenv(variable)


@pytest.mark.parametrize("tracker", TRACKERS)
def test_every_tracker_is_one_that_the_trainer_logs_to(trainer_of, options_of, tracker):
    """The Trainer makes its callbacks from just these names; making one needs the tracker itself."""
    params = with_tracker(options_of, tracker)
    arguments = training_arguments(params, resolve_machine(params.machine), recompute=False)
    assert arguments.report_to == [tracker]
    assert INTEGRATION_TO_CALLBACK[tracker] in get_reporting_integration_callbacks(arguments.report_to)


def test_trackers_write_below_logs_of_the_repository_unless_they_are_told_otherwise(
    options_of,
    training_folder,
    monkeypatch,
    own_environment,
):
    repository = training_folder / "repository"
    repository.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(repository))
    monkeypatch.setenv("WANDB_DIR", "elsewhere")
    prepare_trackers(with_tracker(options_of, "tensorboard").machine, "name")
    found = {variable: os.environ[variable] for variable in tracker_variables(training_folder, "name")}
    assert found.pop("WANDB_DIR") == "elsewhere"
    assert found.pop("MLFLOW_DISABLE_TELEMETRY") == "true"
    logs = repository / "logs"
    assert found == {
        "TENSORBOARD_LOGGING_DIR": f"{logs}/tensorboard/name",
        "MLFLOW_TRACKING_URI": f"sqlite:///{logs}/mlflow.db",
        "TRACKIO_DIR": f"{logs}/trackio",
    }
    assert list(training_folder.rglob("logs")) == [logs]


def test_a_tracker_changes_no_byte_and_writes_below_logs(trainer_of, options_of, training_folder, own_environment):
    """TensorBoard, which requirements-dev.txt brings; the others need a server or an account."""
    plain = trainer_of(options_of(train={"epochs": 2}), Checkpoints({}, 1))
    plain.run(None)
    result = saved(plain, training_folder / "plain")
    before = set(training_folder.iterdir())
    params = with_tracker(options_of, "tensorboard")
    prepare_trackers(params.machine, "name")
    trainer = trainer_of(params, Checkpoints({"number": 1}, 1))
    trainer.run(None)
    assert {path.name for path in set(training_folder.iterdir()) - before} == {"logs"}
    assert saved(trainer, training_folder / "tracked") == result
    assert tensorboard_losses(training_folder / "logs/tensorboard/name") == [
        pytest.approx(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry
    ]


def tensorboard_losses(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [event.value for event in events.Scalars("train/loss")]
