"""Training: real NF4 layers, a real PEFT adapter and TRL's trainer, on a Mistral of two layers."""

import itertools
import json
import re

import pytest
import torch
from trl import SFTTrainer

from stages._train import objective as loss_module
from stages._train.adapter_io import save_adapter
from stages._train.checkpointing import Checkpoints
from stages._train.model import add_adapter
from stages._train.objective import LinearCrossEntropy
from stages._train.preflight import count_steps
from stages.core.machine import resolve_machine
from stages.core.models import load_model, make_deterministic, packed_batch
from stages.core.quantization import quantized_modules
from stages.runtime.errors import UserError
from tests.support.training import BASE_MANIFEST, new_trainer, rows


@pytest.fixture
def params(params_of):
    return params_of(
        lora={"r": 4, "alpha": 8, "dropout": 0.1},
        train={"epochs": 2, "batch_size": 2, "gradient_accumulation_steps": 2, "warmup_steps": 1, "eval_steps": 1},
        machine={"device": "cpu"},
    )


@pytest.fixture
def quantized(small_base, params):
    make_deterministic(0, wanted=True, warn_only=False)
    return add_adapter(
        load_model(small_base, resolve_machine(params.machine), params.quantization), params.lora, BASE_MANIFEST
    )


@pytest.fixture
def trainer_of(small_base, params, monkeypatch, tmp_path):
    monkeypatch.chdir(small_base.parents[1])
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    numbers = itertools.count()

    def build(params=params):
        return new_trainer(params, rows(8), rows(3, seed=1), Checkpoints({"number": next(numbers)}, limit=1))

    return build


def trained(trainer):
    trainer.train()
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def test_training_after_evaluations_equals_training_without_one(trainer_of, monkeypatch):
    with_evaluations = trained(trainer_of())
    trainer = trainer_of()
    trainer.args.eval_on_start, trainer.args.eval_strategy = False, "no"
    monkeypatch.setattr(type(trainer), "evaluate", None)  # called all the same, it would raise
    without = trained(trainer)
    assert all(torch.equal(without[name], with_evaluations[name]) for name in without)


def test_gradients_after_an_evaluation_equal_those_before_one(quantized):
    batch = packed_batch(rows(2))

    def gradients():
        quantized.zero_grad()
        quantized.train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            quantized(**batch, use_cache=False).loss.backward()
        return torch.cat([p.grad.flatten() for p in quantized.parameters() if p.requires_grad])

    quantized.peft_config["default"].lora_dropout = 0.0
    for module in quantized.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    before = gradients()
    quantized.eval()
    with torch.no_grad():
        quantized(**batch, use_cache=False)
    assert torch.equal(gradients(), before)


def test_two_trainings_give_the_same_adapter_file_byte_for_byte(trainer_of, tmp_path):
    for name in ("one", "two"):
        trainer = trainer_of()
        trainer.train()
        save_adapter(trainer.model, tmp_path / name)
    for file in sorted(path.name for path in (tmp_path / "one").iterdir()):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_training_lowers_the_loss_and_logs_both_curves(trainer_of, params):
    trainer = trainer_of(
        params.model_copy(update={"train": params.train.model_copy(update={"epochs": 6, "learning_rate": 2e-2})})
    )
    trainer.train()
    history = trainer.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.3
    assert [entry["step"] for entry in history if "eval_loss" in entry] == list(range(13))


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "epochs"), [(1, 1, 1.0), (3, 2, 1.0), (2, 4, 0.3), (3, 1, 2.5), (16, 4, 2.0)]
)
def test_steps_are_counted_as_the_trainer_counts_them(trainer_of, params, batch_size, accumulation, epochs):
    changes = {"batch_size": batch_size, "gradient_accumulation_steps": accumulation, "epochs": epochs}
    params = params.model_copy(update={"train": params.train.model_copy(update=changes)})
    trainer = trainer_of(params)
    *_, steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    assert count_steps(8, params.train) == steps


def test_each_line_of_progress_has_the_loss_of_its_step_the_first_one_too(trainer_of, monkeypatch, capsys):
    monkeypatch.setattr("stages.runtime.progress.LINE_SECONDS", 0)
    trainer = trainer_of()
    trainer.run(None)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    lines = re.findall(
        r"(?m)^train: (\d+) of (\d+) steps, loss (\S*), tokens/s \d+, \d+ s to go$", capsys.readouterr().out
    )
    assert lines == [(str(step), str(len(losses)), f"{loss:.3f}") for step, loss in enumerate(losses, 1)]


def test_adapters_are_trained_in_fp32_and_the_base_is_frozen(trainer_of):
    trainer = trainer_of()
    base = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if not p.requires_grad}
    after = trained(trainer)
    assert {value.dtype for value in after.values()} == {torch.float32}
    assert all("lora_" in name for name in after)
    assert all(torch.equal(dict(trainer.model.named_parameters())[name], value) for name, value in base.items())


def test_the_validation_loss_is_the_mean_over_all_trained_tokens(trainer_of):
    trainer = trainer_of()
    found = trainer.evaluate()["eval_loss"]
    total, count = 0.0, 0
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for row in rows(3, seed=1):
            loss, trained_tokens = trainer.summed_loss(trainer.model.eval(), trainer.data_collator([row]))
            total, count = total + loss.item(), count + trained_tokens
    assert found == pytest.approx(total / count, rel=1e-3)


def test_the_loss_and_its_gradients_equal_those_of_trl(trainer_of):
    trainer = trainer_of()
    trainer.model.eval()
    batch = trainer.data_collator(rows(4))
    results = []
    for compute in (trainer.compute_loss, super(type(trainer), trainer).compute_loss):
        trainer.model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = compute(trainer.model, dict(batch), num_items_in_batch=torch.tensor(100))
        loss.backward()
        gradients = [p.grad.flatten() for p in trainer.model.parameters() if p.requires_grad]
        results.append((loss.item(), torch.cat(gradients)))
    (ours, our_gradients), (theirs, their_gradients) = results
    assert SFTTrainer.compute_loss is not type(trainer).compute_loss
    assert ours == pytest.approx(theirs, rel=2e-3)
    assert torch.nn.functional.cosine_similarity(our_gradients, their_gradients, dim=0) > 0.9999
    assert our_gradients.norm() == pytest.approx(their_gradients.norm().item(), rel=5e-3)


def test_the_fused_loss_equals_the_plain_one_across_chunks(monkeypatch):
    monkeypatch.setattr(loss_module, "LOGIT_ROWS", {"cpu": 7})
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(30, 16, generator=generator, requires_grad=True)
    weight, targets = torch.randn(50, 16, generator=generator), torch.randint(50, (30,), generator=generator)
    plain = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    (expected,) = torch.autograd.grad(plain * 0.5, hidden)
    fused = LinearCrossEntropy.apply(hidden, weight, targets)
    (found,) = torch.autograd.grad(fused * 0.5, hidden)
    torch.testing.assert_close(fused, plain)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_conversations_do_not_see_each_other(trainer_of, params, attention):
    machine = params.machine.model_copy(update={"attention": attention})
    trainer = trainer_of(params.model_copy(update={"machine": machine}))
    model = trainer.model.get_base_model().model.eval()
    row = rows(1)[0]
    batch = trainer.data_collator([row])

    def states(ids):
        with torch.no_grad():
            return model(input_ids=ids, position_ids=batch["position_ids"], use_cache=False).last_hidden_state[0]

    first = row["seq_lengths"][0]
    changed = batch["input_ids"].clone()
    changed[0, :first] = 7
    before, after = states(batch["input_ids"]), states(changed)
    assert not torch.equal(before[:first], after[:first])
    assert torch.equal(before[first:], after[first:])


def test_a_packed_batch_has_the_loss_of_its_conversations_one_by_one(trainer_of):
    trainer = trainer_of()
    trainer.model.eval()
    packed, alone = 0.0, 0.0
    with torch.no_grad():
        packed = trainer.summed_loss(trainer.model, trainer.data_collator(rows(2)))[0].item()
        for row in rows(2):
            start = 0
            for length in row["seq_lengths"]:
                part = {name: row[name][start : start + length] for name in ("input_ids", "labels")}
                batch = trainer.data_collator([part | {"seq_lengths": [length]}])
                alone += trainer.summed_loss(trainer.model, batch)[0].item()
                start += length
    assert packed == pytest.approx(alone, rel=2e-3)


def test_every_linear_layer_but_the_head_is_quantized_and_adapted(quantized):
    names = [name for name, _ in quantized_modules(quantized.get_base_model())]
    assert len(names) == 2 * 7
    assert not any("lm_head" in name for name in names)
    assert all(module.support_avx512bf16_for_cpu is False for _, module in quantized_modules(quantized))
    assert all(module.weight.quant_type == "nf4" for _, module in quantized_modules(quantized))
    assert all(module.weight.quant_state.nested for _, module in quantized_modules(quantized))
    assert quantized.config.quantization_config.bnb_4bit_use_double_quant


def test_the_adapter_names_its_base_and_has_sorted_targets(quantized, tmp_path):
    save_adapter(quantized, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/name", "a" * 40)
    assert config["target_modules"] == sorted(config["target_modules"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_target_modules_that_the_base_lacks_are_a_user_error(small_base, params):
    lora = params.lora.model_copy(update={"target_modules": ["no_such_layer"]})
    model = load_model(small_base, resolve_machine(params.machine), params.quantization)
    with pytest.raises(UserError, match=r"lora\.target_modules.*no_such_layer"):
        add_adapter(model, lora, BASE_MANIFEST)
