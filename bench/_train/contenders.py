"""The trainers beside each other. Each takes the same conversations, base, adapter, optimizer and learning rate."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from bench._train.base import load_base, masked, packed_rows
from stages._train.checkpointing import Checkpoints
from stages._train.model import PreparedModel
from stages._train.trainer import make_trainer
from stages.core.attention import register_varlen
from stages.core.fused.layer import fuse
from stages.core.machine import resolve_machine
from stages.core.models import make_deterministic
from stages.core.params import Params
from stages.core.paths import read_json
from stages.core.quantization import BaseValues
from stages.runtime.activations import shape_of
from stages.runtime.memory import Workload, choose_plan, estimate_memory
from stages.runtime.signals import Stop


@dataclass(frozen=True)
class Ours:
    """The stage's own trainer."""

    changes: dict[str, dict] = field(default_factory=dict)  # of params.yaml, by section
    fused: bool = True
    budget: float | None = None  # GiB, of which the allocator takes no more

    def params(self, params: Params) -> Params:
        return params.model_copy(
            update={name: getattr(params, name).model_copy(update=values) for name, values in self.changes.items()}
        )

    def trainer(self, folder: Path, some: list[dict], params: Params) -> Any:
        """With `estimated`, the bytes of memory at the peak that `python -m stages.train --plan` says."""
        params = self.params(params)
        make_deterministic(params.seed, params.train.deterministic, warn_only=False)
        register_varlen()
        budget = 2**40
        if torch.cuda.is_available():
            card = torch.cuda.get_device_properties(0).total_memory
            budget = min(card, int(self.budget * 2**30)) if self.budget else card
            torch.cuda.set_per_process_memory_fraction(budget / card)
        length = params.tokenize.max_length
        machine = resolve_machine(params.machine)
        shape = shape_of(read_json(folder / "config.json"))
        workload = Workload(shape, params.quantization, params.lora, params.train, machine, length)
        plan = choose_plan(params.machine.memory, workload, budget)
        print(f"  keeps {plan}", flush=True)
        model = load_base(folder, params, machine, packed=True)
        fused = self.fused and workload.fused
        if fused:
            fuse(model, **vars(plan))
        rows = Dataset.from_list(packed_rows(some, length))
        checkpoints = Checkpoints({"bench": str(self), "seed": params.seed}, 1)
        prepared = PreparedModel(model, 0, BaseValues({}, {}), plan, recompute=not fused and not plan.activations)
        data = {"train": rows, "validation": rows}
        trainer = make_trainer(prepared, data, params, machine, checkpoints, Stop())
        trainer.args.eval_strategy, trainer.args.eval_on_start, trainer.args.save_strategy = "no", False, "no"
        trainer.args.include_num_input_tokens_seen = "no"
        if fused == workload.fused:
            trainer.estimated = estimate_memory(workload, plan).total
        return trainer


def trl_trainer(model: Any, tokenizer: Any, some: list[dict], params: Params, packing: bool, **options) -> Any:
    """TRL's SFTTrainer with the values that all contenders share."""
    from trl import SFTConfig, SFTTrainer

    train = params.train
    batch = train.batch_size
    if not packing:  # about as many tokens to a step
        mean = sum(len(each["input_ids"]) for each in some) / len(some)
        batch = max(1, round(batch * params.tokenize.max_length / mean))
    arguments = SFTConfig(
        output_dir=".dvc/tmp/trainer",
        num_train_epochs=1,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.lr_scheduler,
        warmup_steps=train.warmup_steps,
        max_length=params.tokenize.max_length,
        packing=packing,
        completion_only_loss=True,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        seed=params.seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **options,
    )
    rows = Dataset.from_list(masked(some))
    return SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)


@dataclass(frozen=True)
class Trl:
    """TRL's SFTTrainer with its defaults, but for what is named here and the values all contenders share."""

    packing: bool = False
    liger: bool = False
    recompute: bool = True  # its default

    def trainer(self, folder: Path, some: list[dict], params: Params) -> Any:
        from transformers import AutoTokenizer

        make_deterministic(params.seed, False, warn_only=False)
        machine = resolve_machine(params.machine.model_copy(update={"attention": "sdpa"}))
        model = load_base(folder, params, machine, packed=False)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        options = {"gradient_checkpointing": self.recompute, "use_liger_kernel": self.liger}
        return trl_trainer(model, tokenizer, some, params, self.packing, **options)


@dataclass(frozen=True)
class Unsloth:
    """As Unsloth's documentation has it: its model and checkpointing, TRL's trainer with packing."""

    dropout: float | None = None

    def trainer(self, folder: Path, some: list[dict], params: Params) -> Any:
        from unsloth import FastLanguageModel

        lora, length = params.lora, params.tokenize.max_length
        model, tokenizer = FastLanguageModel.from_pretrained(
            str(folder), max_seq_length=length, dtype=torch.bfloat16, load_in_4bit=True, local_files_only=True
        )
        model = FastLanguageModel.get_peft_model(
            model,
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout if self.dropout is None else self.dropout,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            use_gradient_checkpointing="unsloth",
            random_state=params.seed,
            max_seq_length=length,
        )
        return trl_trainer(model, tokenizer, some, params, packing=True)


CONTENDERS: dict[str, Ours | Trl | Unsloth] = {
    "ours": Ours(),
    "TRL as documented": Trl(),
    "TRL, packing": Trl(packing=True),
    "TRL, packing, Liger": Trl(packing=True, liger=True),
}

LOW = {"machine": {"memory": "low"}}
NO_DROPOUT = {"lora": {"dropout": 0.0}}
LITGPT = LOW | {  # its public setting for Mistral-7B
    "train": {"batch_size": 2},
    "tokenize": {"max_length": 512},
    "lora": {"r": 32, "target_modules": ("q_proj", "v_proj")},
    "quantization": {"double_quant": False},
}

ON_A_GPU: dict[str, Ours | Trl | Unsloth] = {
    "ours, as little as possible": Ours(LOW),
    "ours, offload": Ours({"machine": {"memory": "offload"}}),
    "ours, within 24 GiB": Ours(budget=24),
    "ours, within 80 GB": Ours(budget=80e9 / 2**30),
    "ours, deterministic": Ours({"train": {"deterministic": True}}),
    "ours, no dropout": Ours(NO_DROPOUT),
    "ours, no dropout, as little as possible": Ours(NO_DROPOUT | LOW),
    "ours, PEFT's forward, recomputed": Ours(LOW, fused=False),
    "ours, litgpt's setting": Ours(LITGPT),
    "ours, DoRA": Ours({"lora": {"variant": "dora"}}),
    "ours, 8 bits": Ours({"quantization": {"bits": 8}}),
    "ours, 16 bits": Ours({"quantization": {"bits": 16}}),
    "Unsloth, packing": Unsloth(),
    "Unsloth, packing, no dropout": Unsloth(dropout=0.0),
}
