"""The trainers beside each other. Each takes the same conversations, base, adapter, optimizer and learning rate."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from bench._train.base import load_base, masked, packed_rows
from stages._train.assemble import make_trainer
from stages._train.attention import register
from stages._train.checkpoints import Checkpoints
from stages._train.layer import fuse
from stages._train.memory import choose, shape_of
from stages._train.signals import Stop
from stages.shared.models import make_deterministic, pick_attention
from stages.shared.params import Params
from stages.shared.paths import read_json


@dataclass(frozen=True)
class Ours:
    """The stage's own trainer; the options take back what makes it fast, one by one."""

    attention: str = "auto"
    memory: str = "auto"
    fused: bool = True
    deterministic: bool = False
    dropout: float | None = None
    batch: tuple[int, int] | None = None  # rows, batches to an optimizer step
    budget: float | None = None  # GiB, of which the allocator takes no more

    def trainer(self, folder: Path, some: list[dict], params: Params) -> Any:
        train, lora = {"deterministic": self.deterministic}, {}
        if self.batch:
            train |= {"batch_size": self.batch[0], "gradient_accumulation_steps": self.batch[1]}
        if self.dropout is not None:
            lora = {"dropout": self.dropout}
        params = params.model_copy(
            update={
                "train": params.train.model_copy(update=train),
                "lora": params.lora.model_copy(update=lora),
                "machine": params.machine.model_copy(update={"attention": self.attention, "memory": self.memory}),
            }
        )
        make_deterministic(params.seed, self.deterministic, warn_only=False)
        register()
        cuda = torch.cuda.is_available()
        budget = int(self.budget * 2**30) if self.budget else None
        if cuda:
            card = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, (budget or card) / card))
            budget = budget or card
        varlen = pick_attention(params.machine, packed=True) == "varlen"
        shape = shape_of(read_json(folder / "config.json"))
        keep = choose(shape, params, params.tokenize.max_length, varlen, budget or 2**40)
        print(f"  keeps {keep}", flush=True)
        model = load_base(folder, params, packed=True)
        if self.fused:
            fuse(model, keep)
        rows = Dataset.from_list(packed_rows(some, params.tokenize.max_length))
        checkpoints = Checkpoints({"bench": str(self)}, 1)
        again = not self.fused and not keep.activations
        trainer = make_trainer(model, {"train": rows, "validation": rows}, params, checkpoints, Stop(), again)
        trainer.args.eval_strategy, trainer.args.eval_on_start, trainer.args.save_strategy = "no", False, "no"
        trainer.args.include_num_input_tokens_seen = "no"
        return trainer


@dataclass(frozen=True)
class Trl:
    """TRL's SFTTrainer with its defaults, but for what is named here and the values all contenders share."""

    packing: bool = False
    liger: bool = False
    recompute: bool = True  # its default
    padding_free: bool = False
    batch: tuple[int, int] | None = None

    def trainer(self, folder: Path, some: list[dict], params: Params) -> Any:
        from transformers import AutoTokenizer
        from trl import SFTConfig, SFTTrainer

        make_deterministic(params.seed, False, warn_only=False)
        if torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(1.0)
        train = params.train
        batch, accumulated = self.batch or (train.batch_size, train.gradient_accumulation_steps)
        if not self.packing:  # about as many tokens to a step
            mean = sum(len(each["input_ids"]) for each in some) / len(some)
            batch = max(1, round(batch * params.tokenize.max_length / mean))
        arguments = SFTConfig(
            output_dir=".dvc/tmp/trainer",
            num_train_epochs=1,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulated,
            learning_rate=train.learning_rate,
            lr_scheduler_type=train.lr_scheduler,
            warmup_steps=train.warmup_steps,
            max_length=params.tokenize.max_length,
            packing=self.packing,
            padding_free=self.padding_free,
            completion_only_loss=True,
            gradient_checkpointing=self.recompute,
            use_liger_kernel=self.liger,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            seed=params.seed,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        machine = params.machine.model_copy(update={"attention": "sdpa"})
        model = load_base(folder, params.model_copy(update={"machine": machine}), packed=False)
        return SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(masked(some)),
            processing_class=AutoTokenizer.from_pretrained(folder),
        )


CONTENDERS: dict[str, Ours | Trl] = {
    "ours": Ours(),
    "ours, PEFT's forward on 4 bits": Ours(attention="sdpa", memory="activations", fused=False),
    "TRL as documented": Trl(),
    "TRL, packing": Trl(packing=True),
    "TRL, packing, no recompute": Trl(packing=True, recompute=False),
    "TRL, packing, Liger": Trl(packing=True, liger=True),
}

STEPWISE: dict[str, Ours | Trl] = {  # on a GPU: what each change brings
    "sdpa, recompute, PEFT's forward": Ours("sdpa", "low", fused=False),
    "+ varlen": Ours("varlen", "low", fused=False),
    "+ fused adapters": Ours("varlen", "low"),
    "+ activations kept": Ours("varlen", "activations"),
    "+ weights in 16 bits": Ours("varlen", "both"),
    "auto within 24 GiB": Ours(budget=24),
    "auto, deterministic": Ours(deterministic=True),
}
