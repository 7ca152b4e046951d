"""Short trainings for tests: rows, options, and the trainer that the stage makes of them.

This is a plugin of every test session: heavy libraries are imported where they are used.
"""

import pytest

from stages.core.machine import resolve_machine
from stages.core.prompts import IGNORED
from stages.runtime.activations import is_fused
from stages.runtime.memory import MemoryPlan

BASE_MANIFEST = {"id": "owner/name", "path": None, "revision": "a" * 40}
PLAN = MemoryPlan(activations=1, weights=1)  # of two layers: it covers what is kept and what is not
BITS = {bits: {"quantization": {"bits": bits}, "merge": {"base": "original"}} for bits in (4, 8, 16)}
OPTIONS = {
    "rslora": {"lora": {"variant": "rslora"}},
    "dora": {"lora": {"variant": "dora"}},
    "loftq": {"lora": {"init": "loftq"}},
    "pissa": {"lora": {"init": "pissa"}, **BITS[16]},
    "pissa with rslora": {"lora": {"init": "pissa", "variant": "rslora"}, **BITS[16]},
    "olora": {"lora": {"init": "olora"}, **BITS[16]},
    "olora with rslora": {"lora": {"init": "olora", "variant": "rslora"}, **BITS[16]},
    "8 bits": BITS[8],
    "16 bits": BITS[16],
    "LoRA+": {"lora": {"plus_ratio": 4.0}},
    "AdamW in 8 bits": {"lora": {"r": 64}, "train": {"optimizer": "adamw_8bit"}},
    "AdamW in 8 bits with LoRA+": {"lora": {"plus_ratio": 4, "r": 64}, "train": {"optimizer": "adamw_8bit"}},
    "NEFTune": {"train": {"neftune_alpha": 5.0}},
    "linear": {"train": {"lr_scheduler": "linear"}},
    "constant": {"train": {"lr_scheduler": "constant"}},
    "some targets": {"lora": {"target_modules": ["q_proj", "mlp.down_proj"]}},
    "q and v": {"lora": {"target_modules": ["q_proj", "v_proj"]}},
    "fp4": {"quantization": {"quant_type": "fp4", "double_quant": False}},
}
OVERFIT = {"epochs": 6, "learning_rate": 1e-2, "batch_size": 2, "gradient_accumulation_steps": 2}
CPU = {"device": "cpu", "save_steps": 5}


def rows(count, seed=0):
    """Packed rows of two or three conversations each, half of the tokens trained."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    made = []
    for index in range(count):
        lengths = [24, 40] if index % 2 else [16, 20, 12]
        ids = torch.randint(5, 32768, (sum(lengths),), generator=generator).tolist()
        labels = []
        for length in lengths:
            labels += [IGNORED] * (length // 2) + ids[len(labels) + length // 2 : len(labels) + length]
        made.append({"input_ids": ids, "labels": labels, "seq_lengths": lengths})
    return made


def new_trainer(params, train, validation, checkpoints, plan=PLAN):
    """The trainer that the stage makes in a new process. The current directory must have models/base."""
    from datasets import Dataset

    from stages._train.model import prepare_model
    from stages._train.trainer import make_trainer
    from stages.core.models import make_deterministic
    from stages.runtime.signals import Stop

    make_deterministic(params.seed, wanted=True, warn_only=False)
    machine = resolve_machine(params.machine)
    prepared = prepare_model(params.quantization, params.lora, machine, BASE_MANIFEST, plan)
    data = {"train": Dataset.from_list(train), "validation": Dataset.from_list(validation)}
    trainer = make_trainer(prepared, data, params, machine, checkpoints, Stop())
    trainer.values = prepared.values
    fused = is_fused(params.quantization, params.lora, machine)
    assert trainer.autocast != fused  # or these tests would see PEFT's forward
    return trainer


def saved(trainer, folder):
    """Saves the adapter as the stage does. Returns the bytes of its weights and of its configuration."""
    from stages._train.adapter_io import check_saved, save_adapter

    save_adapter(trainer.model, folder, trainer.subtracted)
    check_saved(trainer.model, folder / "adapter_model.safetensors")
    return (folder / "adapter_model.safetensors").read_bytes(), (folder / "adapter_config.json").read_bytes()


@pytest.fixture
def options_of(params_of):
    """options_of(lora={"r": 8}) is the params of a short training on the CPU, with lora.r changed."""

    def build(**changes):
        sections = {
            "lora": {"r": 4, "alpha": 8, "dropout": 0.1},
            "train": OVERFIT | {"warmup_steps": 1, "eval_steps": 4},
            "machine": CPU,
        }
        return params_of(**{name: sections.get(name, {}) | changes.get(name, {}) for name in sections | changes})

    return build


@pytest.fixture
def training_folder(small_base, tmp_path, monkeypatch):
    """The current directory, with models/base. DVC_ROOT names it."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models/base").symlink_to(small_base)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def trainer_of(training_folder):
    """trainer_of(params, checkpoints) is what the stage makes in a new process."""

    from stages._train.checkpointing import Checkpoints

    def build(params, checkpoints=None, validation=None):
        # By default it validates on rows that it trains on: it learns to repeat them.
        return new_trainer(params, rows(8), validation or rows(2), checkpoints or Checkpoints({}, limit=100))

    return build
