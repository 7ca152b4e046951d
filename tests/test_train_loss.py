"""The loss of a step is the mean over its trained tokens, however they are split, and what others compute."""

import itertools

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

import stages._train.model
from stages._train.checkpointing import Checkpoints
from stages._train.model import add_adapter
from stages.core.machine import resolve_machine
from stages.core.models import load_model, make_deterministic
from stages.core.paths import BASE
from stages.core.prompts import IGNORED
from stages.core.quantization import dequantized, quantized_modules
from tests.support.training import BASE_MANIFEST, BITS, rows

SPLITS = [(8, 1), (4, 2), (2, 4), (1, 8), (3, 3)]  # batch · accumulation: always the 8 rows in one step


class FirstStep(TrainerCallback):
    """The gradients of the first optimizer step, before the optimizer uses them."""

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        self.gradients = gradients(model)


def gradients(model):
    return torch.cat([p.grad.detach().flatten().float() for p in model.parameters() if p.requires_grad])


def test_gradients_are_cut_to_the_norm_asked_for_and_the_log_has_the_norm_before(trainer_of, options_of):
    found = {}
    for norm in (1e9, 1e-3):
        params = options_of(lora={"dropout": 0.0}, train={"epochs": 1, "batch_size": 4, "max_grad_norm": norm})
        trainer, callback = trainer_of(params, Checkpoints({"norm": norm}, limit=1)), FirstStep()
        trainer.args.eval_on_start, trainer.args.eval_strategy = False, "no"
        trainer.add_callback(callback)
        trainer.train()
        logged = next(entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry)
        found[norm] = callback.gradients, logged
    whole, cut = found[1e9], found[1e-3]
    assert cut[0].norm().item() == pytest.approx(1e-3, rel=1e-3)
    assert torch.nn.functional.cosine_similarity(whole[0], cut[0], dim=0) > 0.9999
    assert cut[1] == whole[1] == pytest.approx(whole[0].norm().item(), rel=1e-4)
    assert cut[1] > 0.01


def first_step(trainer):
    """(loss, gradients)"""
    callback = FirstStep()
    trainer.add_callback(callback)
    trainer.train()
    return next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry), callback.gradients


def fill(model):
    """B is 0 at first, and so are A's gradients; from here on they are not. In every model the same."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def load_exactly(*arguments, **options):
    """The base in fp32, and 4-bit layers that compute in it."""
    model = load_model(*arguments, **options)
    for _, module in quantized_modules(model):
        module.weight.quant_state.dtype = torch.float32
    return torch.nn.Module.float(model)  # transformers' own refuses a quantized model


@pytest.fixture
def step_of(trainer_of, options_of, monkeypatch):
    """step_of(batch, accumulation, made) is our trainer's first step, without rounding to bf16 where `exact`."""

    numbers = itertools.count()

    def build(batch=8, accumulation=1, made=None, exact=True, bits=16):
        train = {"epochs": 1, "batch_size": batch, "gradient_accumulation_steps": accumulation, "max_grad_norm": 1e9}
        params = options_of(lora={"dropout": 0.0}, train=train, **BITS[bits])
        monkeypatch.setattr(stages._train.model, "load_model", load_exactly if exact else load_model)
        trainer = trainer_of(params, Checkpoints({"number": next(numbers)}, limit=1))
        trainer.train_dataset = Dataset.from_list(made or rows(8))
        trainer.args.eval_on_start, trainer.args.eval_strategy = False, "no"
        trainer.autocast = trainer.autocast and not exact
        fill(trainer.model)
        return first_step(trainer)

    return build


def alone(made):
    """Each packed conversation as a row of its own."""
    single = []
    for row in made:
        start = 0
        for length in row["seq_lengths"]:
            part = {name: row[name][start : start + length] for name in ("input_ids", "labels")}
            single.append(part | {"seq_lengths": [length]})
            start += length
    return single


def plain_base(params):
    """In 16 bits; of 4 bits with the values that they stand for, not rounded to 16."""
    model = load_model(BASE, resolve_machine(params.machine)).float()
    if params.quantization.bits == 4:
        for name, module in quantized_modules(load_exactly(BASE, resolve_machine(params.machine), params.quantization)):
            model.get_submodule(name).weight.data.copy_(dequantized(module))
    return model


def plain_step(params, made):
    """What the step is by its definition: one conversation after the other, in fp32, in plain PyTorch."""
    make_deterministic(params.seed, wanted=True, warn_only=False)
    model = fill(add_adapter(plain_base(params), params.lora, BASE_MANIFEST).float())
    trained = sum(label != IGNORED for row in alone(made) for label in row["labels"][1:])
    total = 0.0
    for row in alone(made):
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        targets = torch.tensor(row["labels"][1:])
        loss = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum") / trained
        loss.backward()
        total += loss.item()
    return total, gradients(model)


def assert_same(found, expected, tolerance):
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    assert (found[1] - expected[1]).norm() < tolerance * expected[1].norm()


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 16])
@pytest.mark.parametrize("packed", [True, False])
def test_the_first_step_is_that_of_a_plain_loop_under_any_split_of_its_rows(
    step_of, options_of, training_folder, packed, bits
):
    made = rows(8) if packed else alone(rows(4))[:8]
    expected = plain_step(options_of(lora={"dropout": 0.0}, **BITS[bits]), made)
    for batch, accumulation in SPLITS:
        assert_same(step_of(batch, accumulation, made, bits=bits), expected, 1e-5)


def test_the_first_step_on_4_bits_is_that_of_a_plain_loop_over_the_values_they_stand_for(
    step_of, options_of, training_folder
):
    made = rows(4)
    expected = plain_step(options_of(lora={"dropout": 0.0}), made)
    assert_same(step_of(4, 1, made, bits=4), expected, 1e-5)


@pytest.mark.parametrize("bits", [4, 16])
def test_packed_rows_give_the_step_of_unpacked_ones(step_of, bits):
    made = rows(4)
    assert_same(step_of(4, 1, made, bits=bits), step_of(len(alone(made)), 1, alone(made), bits=bits), 1e-5)


@pytest.mark.parametrize(("split", "bits"), [((8, 1), 16), ((2, 4), 4)])
def test_the_first_step_is_that_of_trl_as_documented_on_unpacked_rows(
    step_of,
    options_of,
    training_folder,
    split,
    bits,
):
    (batch, accumulation), made = split, alone(rows(4))[:8]
    params = options_of(lora={"dropout": 0.0}, **BITS[bits])
    make_deterministic(params.seed, wanted=True, warn_only=False)
    model = add_adapter(
        load_model(BASE, resolve_machine(params.machine), params.quantization), params.lora, BASE_MANIFEST
    )
    arguments = SFTConfig(
        output_dir=str(training_folder / "trl"),
        num_train_epochs=1,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=1e9,
        logging_steps=1,
        save_strategy="no",
        bf16=True,
        use_cpu=True,
        report_to="none",
    )
    data = Dataset.from_list([{name: row[name] for name in ("input_ids", "labels")} for row in made])
    trl = SFTTrainer(model, args=arguments, train_dataset=data)
    fill(trl.model)
    found, expected = step_of(batch, accumulation, made, False, bits), first_step(trl)
    assert found[0] == pytest.approx(expected[0], rel=2e-3)
    assert torch.nn.functional.cosine_similarity(found[1], expected[1], dim=0) > 0.999
    assert found[1].norm() == pytest.approx(expected[1].norm().item(), rel=2e-2)
