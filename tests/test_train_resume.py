"""A training that was stopped, at whatever moment, ends with the bytes of one that was not."""

import json
import math
import os
import shutil
import subprocess
import sys

import numpy
import pytest
import torch
from transformers import TrainerCallback

from stages._train.adapter_io import check_saved, save_adapter
from stages._train.checkpointing import MANIFEST, Checkpoints, checkpoint_root, finished_checkpoints
from stages._train.metrics import curves, losses
from stages.core.quantization import BaseValues
from stages.runtime.errors import UserError
from stages.runtime.failures import explained_failures
from stages.runtime.memory import MemoryPlan
from stages.runtime.signals import Stop
from stages.train import train
from tests.support.project import ROOT
from tests.support.training import BASE_MANIFEST, PLAN, new_trainer, rows

STEPS = 8  # 10 rows are 5 batches, of which an epoch makes 3 steps, the last of one batch; 2.5 epochs


@pytest.fixture(scope="module")
def params(params_of):
    return params_of(
        lora={"r": 4, "alpha": 8, "dropout": 0.1},
        train={"epochs": 2.5, "batch_size": 2, "gradient_accumulation_steps": 2, "warmup_steps": 2, "eval_steps": 2},
        machine={"device": "cpu", "save_steps": 1},
    )


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trainer_of(small_base, params):
    """trainer_of(checkpoints) is what the stage makes of a fresh process."""

    def build(checkpoints, save_steps=1, plan=PLAN):
        machine = params.machine.model_copy(update={"save_steps": save_steps})
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(small_base.parents[1])
            changed = params.model_copy(update={"machine": machine})
            return new_trainer(changed, rows(10), rows(3, seed=1), checkpoints, plan)

    return build


def result(trainer, folder):
    """All that the stage writes of a training, except its times."""
    save_adapter(trainer.model, folder)
    texts = list(curves(trainer.state.log_history).values())
    weights = (folder / "adapter_model.safetensors").read_bytes()
    return weights, texts, losses(trainer.state.log_history), trainer.state.global_step, trainer.state.epoch


@pytest.fixture(scope="module")
def uninterrupted(trainer_of, tmp_path_factory):
    """(result, folder with the checkpoint of each of its steps)."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(folder))
        checkpoints = Checkpoints({"name": "uninterrupted"}, limit=100)
        trainer = trainer_of(checkpoints)
        trainer.run(None)
    return result(trainer, folder / "adapter"), checkpoints.folder


def test_checkpoints_change_no_bit_of_the_result(uninterrupted, trainer_of, tmp_path):
    trainer = trainer_of(Checkpoints({}, limit=1), save_steps=100)
    trainer.run(None)
    assert result(trainer, tmp_path / "adapter") == uninterrupted[0]
    assert [path.name for path in finished_checkpoints(trainer.checkpoints.folder)] == [f"step-{STEPS:08}"]


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_resumed_training_equals_the_uninterrupted_one_from_each_of_its_steps(
    uninterrupted, trainer_of, tmp_path, step
):
    expected, folder = uninterrupted
    checkpoint = folder / f"step-{step:08}"
    trainer = trainer_of(Checkpoints({}, limit=2))
    numpy.random.rand(step)  # what a new process has drawn is not what the old one had
    torch.rand(step)
    trainer.run(checkpoint)
    assert result(trainer, tmp_path / "adapter") == expected
    costs, before = trainer.watch.costs(), json.loads((checkpoint / "costs.json").read_text())
    assert costs["runs"] == before["runs"] + 1 == 2
    assert costs["train_seconds"] >= before["train_seconds"] > 0
    assert len(trainer.watch.steps) == STEPS - step
    assert (trainer.watch.typical_step() is None) == (step == STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("plan", [MemoryPlan(0, 0), MemoryPlan(1, 0, offload=True), MemoryPlan(2, 2)])
def test_whatever_is_kept_in_memory_the_bytes_are_the_same_and_a_resumed_training_may_keep_something_else(
    uninterrupted, trainer_of, tmp_path, capsys, plan
):
    expected, folder = uninterrupted
    whole = trainer_of(Checkpoints({"number": 0}, limit=1), plan=plan)
    whole.run(None)
    assert result(whole, tmp_path / "whole") == expected
    capsys.readouterr()
    again = trainer_of(Checkpoints({"number": 1}, limit=1), plan=plan)
    again.run(folder / "step-00000003")
    assert (
        capsys.readouterr().out == f"train: until this checkpoint it kept {PLAN}; now {plan}. The bits are the same\n"
    )
    assert result(again, tmp_path / "again") == expected
    (last,) = finished_checkpoints(again.checkpoints.folder)
    assert json.loads((last / "costs.json").read_text())["memory"] == str(plan)


@pytest.fixture
def saved(uninterrupted, monkeypatch, tmp_path):
    """saved() opens a folder that holds the uninterrupted run's checkpoints of the steps 1, 2 and 3."""
    opened = []

    def build(parts=BASE_MANIFEST, limit=2):
        for checkpoints in opened:
            checkpoints.lock.close()
        opened.append(Checkpoints(parts, limit))
        return opened[-1]

    folder = build().folder
    for path in finished_checkpoints(uninterrupted[1])[-3:]:
        shutil.copytree(path, folder / path.name)
    return build


def cut(file):
    file.write_bytes(file.read_bytes()[:-5])


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES = [
    ("optimizer.pt", cut, "optimizer.pt is cut short"),
    ("adapter_model.safetensors", flip, "adapter_model.safetensors has other bytes than were written"),
    ("rng_state.pth", lambda file: file.unlink(), "FileNotFoundError"),
    (MANIFEST, lambda file: file.unlink(), "FileNotFoundError"),
    (MANIFEST, cut, "JSONDecodeError"),
    (MANIFEST, lambda file: file.write_text("[1]"), "manifest.json names no files"),
    (MANIFEST, lambda file: file.write_text("{}"), "manifest.json names no files"),
]


@pytest.mark.parametrize(("name", "harm", "message"), DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_with_a_line_that_says_what_is_wrong(saved, capsys, name, harm, message):
    checkpoints = saved()
    harm(finished_checkpoints(checkpoints.folder)[0] / name)
    assert checkpoints.newest().name == "step-00000002"
    first, second = capsys.readouterr().out.splitlines()
    assert "step-00000003" in first
    assert message in first
    assert second == "train: continues from step 2"


def test_a_checkpoint_that_was_being_written_is_cleared_away(saved):
    partial = saved().folder / ".step-00000004.partial"
    shutil.copytree(saved().folder / "step-00000003", partial)
    assert saved().newest().name == "step-00000003"
    assert not partial.exists()


@pytest.fixture
def disk():
    """disk(full=True): a write that makes a file longer than 4 KiB fails, as on a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def set_limit(full):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096 if full else soft, hard))

    yield set_limit
    set_limit(full=False)


def test_a_checkpoint_that_cannot_be_written_stops_the_training_and_harms_no_other(saved, disk):
    before = saved().folder
    disk(full=True)
    with pytest.raises(UserError, match=r"checkpoint of step 4 could not be written.*are kept: 3, 2, 1\. Free"):
        saved().save(4, lambda folder: torch.save(torch.zeros(10_000), folder / "optimizer.pt"))
    disk(full=False)
    assert sorted(path.name for path in before.iterdir() if "step" in path.name) == [
        *("step-00000001", "step-00000002", "step-00000003")
    ]
    assert saved().newest().name == "step-00000003"


def test_as_many_checkpoints_are_kept_as_asked_for(saved):
    checkpoints = saved(limit=2)
    checkpoints.save(4, lambda folder: (folder / "costs.json").write_text("{}"))
    assert [path.name for path in finished_checkpoints(checkpoints.folder)] == ["step-00000004", "step-00000003"]
    assert checkpoints.newest().name == "step-00000004"


def test_other_values_start_afresh_and_the_line_names_what_differs(saved, capsys):
    parts = {"lora.r": 16, "seed": 1, "stages/train.py": "sha256:aa", "torch": "2.13.0"}
    first = saved(parts)
    shutil.copytree(finished_checkpoints(saved().folder)[0], first.folder / "step-00000007")
    other = saved(parts | {"lora.r": 8, "stages/train.py": "sha256:bb"})
    assert other.newest() is None
    assert capsys.readouterr().out == (
        f"train: starts afresh; the newest other checkpoint ({first.folder.name}, at step 7) differs in "
        "lora.r 16 → 8, stages/train.py\n"
    )


def test_of_other_fingerprints_the_three_newest_stay_and_those_in_use(saved):
    source = finished_checkpoints(saved().folder)[0]
    used = Checkpoints({"number": -1}, 1)
    shutil.copytree(source, used.folder / source.name)
    names = []
    for number in range(5):
        checkpoints = saved({"number": number})
        shutil.copytree(source, checkpoints.folder / source.name)
        names.append(checkpoints.folder.name)
    shutil.rmtree(checkpoint_root() / saved().folder.name)
    saved({"number": "killed before its first checkpoint"})
    own = saved({"number": "own"})
    own.tidy()
    assert {path.name for path in checkpoint_root().iterdir()} == {own.folder.name, used.folder.name, *names[2:]}
    used.lock.close()


def test_a_second_training_with_the_same_values_is_refused_and_named_the_process(saved, tmp_path):
    folder = saved().folder
    code = f"""
from stages._train.checkpointing import Checkpoints
from stages.runtime.errors import UserError
try:
    Checkpoints({BASE_MANIFEST!r}, 1)
except UserError as error:
    print(error)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert f"process {os.getpid()} is training with the same values and holds {folder}" in done.stdout
    assert f"`kill {os.getpid()}`" in done.stdout


def test_an_adapter_that_reads_back_differently_is_refused(trainer_of, tmp_path):
    trainer = trainer_of(Checkpoints({}, 1))
    save_adapter(trainer.model, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    check_saved(trainer.model, file)
    flip(file)
    with pytest.raises(UserError, match="does not hold what was trained .1 tensors, such as base_model"):
        check_saved(trainer.model, file)


def test_training_refuses_adapters_that_are_not_fp32(trainer_of):
    trainer = trainer_of(Checkpoints({}, 1))
    parameter = next(p for p in trainer.model.parameters() if p.requires_grad)
    parameter.data = parameter.data.to(torch.bfloat16)
    with pytest.raises(RuntimeError, match=r"not trained in fp32: .*lora_A"):
        trainer.run(None)


class Rounding(TrainerCallback):
    """A resume that loads AdamW's moments in another dtype."""

    def on_train_begin(self, args, state, control, optimizer, **_):
        for kept in optimizer.state.values():
            kept["exp_avg"] = kept["exp_avg"].to(torch.bfloat16)


def test_training_refuses_moments_that_come_back_in_another_dtype(uninterrupted, trainer_of):
    trainer = trainer_of(Checkpoints({}, 1))
    trainer.callback_handler.callbacks.insert(0, Rounding())
    with pytest.raises(RuntimeError, match=r"not trained in fp32: .*exp_avg"):
        trainer.run(finished_checkpoints(uninterrupted[1])[-2])


class Greedy(TrainerCallback):
    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 2:
            torch.empty(1 << 50)


class Exploding(TrainerCallback):
    """Makes one weight of the adapter so large that the loss is no number any more."""

    def on_step_begin(self, args, state, control, model, **_):
        if state.global_step == 2:
            next(p for p in model.parameters() if p.requires_grad).data[0, 0] = float("inf")


def test_a_training_that_diverged_says_so_before_it_leaves_a_checkpoint_of_it(trainer_of):
    trainer = trainer_of(Checkpoints({}, 9))
    trainer.add_callback(Exploding)
    with pytest.raises(UserError, match=r"diverged: loss of step 3 is (nan|inf)\. Lower train\.learning_rate"):
        trainer.run(None)
    assert trainer.checkpoints.newest().name == "step-00000002"


class Spoiling(TrainerCallback):
    """Makes one figure of the log `value`, while the losses of the steps stay finite.

    grad_norm: it spoils a gradient of step 3. eval_loss: it spoils a weight between step 2 and its evaluation.
    """

    def __init__(self, figure, value):
        self.figure, self.value = figure, float(value)

    def on_step_begin(self, args, state, control, model, **_):
        if self.figure == "grad_norm" and state.global_step == 2:
            first_trained(model).register_post_accumulate_grad_hook(self.spoil)

    def spoil(self, weight):
        weight.grad[0, 0] = self.value

    def on_step_end(self, args, state, control, model, **_):
        if self.figure == "eval_loss" and state.global_step == 2:
            first_trained(model).data[0, 0] = self.value


def first_trained(model):
    return next(p for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(("figure", "step"), [("grad_norm", 3), ("eval_loss", 2)])
def test_a_gradient_norm_or_validation_loss_that_is_not_finite_ends_a_training(trainer_of, figure, step, value):
    trainer = trainer_of(Checkpoints({}, 9))
    trainer.add_callback(Spoiling(figure, value))
    with pytest.raises(UserError, match=rf"diverged: {figure} of step {step} is (nan|inf)\. "):
        trainer.run(None)
    assert trainer.checkpoints.newest().name == f"step-{step - 1:08}"
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == step and all(map(math.isfinite, logged))


def test_an_adapter_of_no_numbers_is_compared_by_its_bytes(trainer_of, tmp_path):
    trainer = trainer_of(Checkpoints({}, 1))
    next(p for p in trainer.model.parameters() if p.requires_grad).data[0, 0] = float("nan")
    save_adapter(trainer.model, tmp_path)
    check_saved(trainer.model, tmp_path / "adapter_model.safetensors")


@pytest.mark.parametrize("said", ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"])
def test_what_cuda_says_of_memory_is_told_while_the_base_is_loaded_too(said):
    with (
        pytest.raises(UserError, match=r"^out of memory while the base was loaded .*No step.*stages\.train --plan"),
        explained_failures(lambda: "while the base was loaded", Stop().next_run),
    ):
        raise RuntimeError(said)


def test_out_of_memory_ends_with_what_to_do_and_from_where_it_goes_on(uninterrupted, trainer_of, tmp_path):
    trainer = trainer_of(Checkpoints({}, 1))
    trainer.add_callback(Greedy)
    with pytest.raises(UserError, match=r"out of memory in step 3 .*continues from step 2\. .*train\.batch_size"):
        train(trainer, None, BaseValues({}, {}))
    assert not (tmp_path / "models/adapter").exists()
    again = trainer_of(trainer.checkpoints)
    train(again, trainer.checkpoints.newest(), BaseValues({}, {}))
    assert result(again, tmp_path / "again") == uninterrupted[0]
    saved_adapter = (tmp_path / "models/adapter/adapter_model.safetensors").read_bytes()
    assert saved_adapter == uninterrupted[0][0]


class Filling(TrainerCallback):
    """Fills the disk in the middle of a step, or when the last one is over."""

    def __init__(self, disk, step):
        self.disk, self.step = disk, step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            self.disk(full=True)

    def on_train_end(self, args, state, control, **_):
        if state.global_step == self.step:
            self.disk(full=True)


FULL = [  # in the middle of which step, what is said, from where the next run goes on
    (4, r"^the checkpoint of step 5 could not be written .* are kept: 4\. Free some space and run it again$", 4),
    (STEPS, r"^models/adapter could not be written .*\. Free some space\. .* continues from step 8, the last$", STEPS),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", FULL, ids=["checkpoint", "adapter"])
def test_a_full_disk_ends_a_training_with_what_to_do_and_the_next_run_ends_with_the_same_bytes(
    uninterrupted, trainer_of, tmp_path, disk, case
):
    step, message, last = case
    trainer = trainer_of(Checkpoints({}, 1))
    trainer.add_callback(Filling(disk, step))
    with pytest.raises(UserError, match=message):
        train(trainer, None, BaseValues({}, {}))
    disk(full=False)
    assert not (tmp_path / "models/adapter").exists()
    again, checkpoint = trainer_of(trainer.checkpoints), trainer.checkpoints.newest()
    assert checkpoint.name == f"step-{last:08}"
    train(again, checkpoint, BaseValues({}, {}))
    assert result(again, tmp_path / "again") == uninterrupted[0]
    assert (tmp_path / "models/adapter/adapter_model.safetensors").read_bytes() == uninterrupted[0][0]


class Restless(TrainerCallback):
    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 2:
            torch.zeros(2).put_(torch.tensor([0, 0]), torch.ones(2))  # of which no kernel repeats to the bit


def test_an_operation_that_does_not_repeat_ends_a_deterministic_training_with_what_to_do(trainer_of, monkeypatch):
    trainer = trainer_of(Checkpoints({}, 1))
    trainer.add_callback(Restless)
    torch.use_deterministic_algorithms(True)  # as on CUDA with train.deterministic
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    try:
        with pytest.raises(
            UserError,
            match=r"in step 3 gives other bits .*\(put_ does not have .*\), and train\.deterministic is true",
        ):
            train(trainer, None, BaseValues({}, {}))
    finally:
        torch.use_deterministic_algorithms(False)
