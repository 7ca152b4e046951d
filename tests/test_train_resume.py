"""A training that was stopped, at whatever moment, ends with the bytes of one that was not."""

import json
import shutil
import subprocess
import sys

import numpy
import pytest
import torch
from datasets import Dataset

from stages._train.adapter import add_adapter, check_saved, save_adapter
from stages._train.checkpoints import MANIFEST, Checkpoints, root, steps
from stages._train.results import curves, losses
from stages._train.signals import Stop
from stages.shared.errors import UserError
from stages.shared.models import load_model, make_deterministic
from stages.train import make_trainer
from tests.test_train import MANIFEST as BASE_MANIFEST
from tests.test_train import rows

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


@pytest.fixture(scope="module")
def trainer_of(small_base, params):
    """trainer_of(checkpoints) is what the stage makes of a fresh process."""

    def build(checkpoints, save_steps=1):
        machine = params.machine.model_copy(update={"save_steps": save_steps})
        make_deterministic(params.seed, wanted=True)
        model = add_adapter(load_model(small_base, params.machine, params.quantization), params.lora, BASE_MANIFEST)
        data = {"train": Dataset.from_list(rows(10)), "validation": Dataset.from_list(rows(3, seed=1))}
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(small_base.parents[1])
            return make_trainer(model, data, params.model_copy(update={"machine": machine}), checkpoints, Stop())

    return build


def result(trainer, folder):
    """All that the stage writes of a training, timing apart."""
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
    assert [path.name for path in steps(trainer.checkpoints.folder)] == [f"step-{STEPS:08}"]


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
