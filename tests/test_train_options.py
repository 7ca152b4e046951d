"""Each option of the training: the loss falls, PEFT loads what is saved, and a stopped training ends with the same
bytes as one that was not."""

import json
import math
import os
from pathlib import Path

import peft
import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from safetensors.torch import load_file, save_file
from trl import SFTTrainer

from stages._train.adapter_init import (
    check_initial_adapter,
    dequantized_weight,
    expected_shapes,
    initialize_adapter,
    lora_layers,
)
from stages._train.checkpointing import Checkpoints, finished_checkpoints
from stages._train.metrics import curves, losses
from stages._train.model import loaded_bytes
from stages._train.preflight import adapter_parameters
from stages.core.attention import flat_batch
from stages.core.fused.layer import fuse
from stages.core.machine import resolve_machine
from stages.core.models import load_model
from stages.core.params import Lora, Train
from stages.runtime.errors import UserError
from stages.runtime.memory import MemoryPlan
from stages.runtime.signals import Stop
from stages.train import main
from tests.support.data_files import write_rows
from tests.support.layers import graph_of
from tests.support.project import ROOT
from tests.support.training import BITS, OPTIONS, PLAN, new_trainer, rows, saved
from tests.support.training_repository import tokenized


def logits(model, batch):
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        states = {name: value for name, value in batch.items() if name != "labels"}
        return model.eval()(**states, use_cache=False).logits.float()


def check_option(trainer_of, params, training_folder):
    """Trains, stops, loads. Returns the trainer, at its end."""
    whole = trainer_of(params, Checkpoints({"number": 0}, limit=100))
    whole.run(None)
    result = saved(whole, training_folder / "whole")
    found = losses(whole.state.log_history)
    assert found["validation_loss"] < found["validation_loss_start"] - 0.3

    again = trainer_of(params, Checkpoints({"number": 1}, limit=100))
    torch.rand(5)
    again.run(finished_checkpoints(whole.checkpoints.folder)[-1])
    assert saved(again, training_folder / "again") == result
    assert curves(again.state.log_history) == curves(whole.state.log_history)

    base = load_model(Path("models/base"), resolve_machine(params.machine), params.quantization, packed=True)
    loaded = peft.PeftModel.from_pretrained(base, training_folder / "whole")
    trained, read = (logits(model, flat_batch(rows(2))) for model in (whole.model, loaded))
    # Of W − B₀A₀ the trained model has the bf16 values, and the stage's own layers round otherwise than PEFT's.
    assert (trained - read).abs().mean() < 0.02 * trained.std()
    if not whole.subtracted:
        fuse(loaded, **vars(PLAN))
        assert torch.equal(logits(loaded, flat_batch(rows(2))), trained)
    return whole


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_trains_is_loaded_by_peft_and_goes_on_to_the_same_bytes(
    trainer_of, options_of, training_folder, name
):
    check_option(trainer_of, options_of(**OPTIONS[name]), training_folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dora", "8 bits", "16 bits"])
def test_without_fused_layers_too_the_bytes_do_not_depend_on_what_is_kept(options_of, training_folder, name):
    params, found = options_of(**OPTIONS[name]), []
    for plan in (MemoryPlan(2, 0), MemoryPlan(0, 0)):
        checkpoints = Checkpoints({"plan": str(plan)}, limit=1)
        trainer = new_trainer(params, rows(8), rows(2), checkpoints, plan=plan)
        assert trainer.args.gradient_checkpointing == (plan.activations == 0)
        trainer.run(None)
        found.append(saved(trainer, training_folder / str(plan.activations)))
    assert found[0] == found[1]


@pytest.mark.usefixtures("training_folder")
def test_recomputing_holds_no_inputs_of_llm_int8(options_of):
    """They lie on the nodes of autograd's graph, out of the sight of its hooks for saved tensors."""
    params, kinds = options_of(**OPTIONS["8 bits"]), []
    for plan in (MemoryPlan(2, 0), MemoryPlan(0, 0)):
        trainer = new_trainer(params, rows(4), rows(2), Checkpoints({"plan": str(plan)}, limit=1), plan=plan)
        if trainer.args.gradient_checkpointing:  # as the Trainer does when it starts
            trainer.model.activation_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
        batch = trainer.data_collator(rows(2))
        loss, _ = trainer.summed_loss(trainer.model.train(), batch)
        kinds.append({type(node).__name__ for node in graph_of(loss.grad_fn)})
    kept, recomputed = kinds
    assert "MatMul8bitFpBackward" in kept and "CheckpointFunctionBackward" not in kept
    assert "MatMul8bitFpBackward" not in recomputed and "CheckpointFunctionBackward" in recomputed


@pytest.mark.slow
def test_a_training_goes_on_from_an_earlier_adapter(trainer_of, options_of, training_folder):
    first = trainer_of(options_of())
    first.run(None)
    Path("data").mkdir()
    saved(first, training_folder / "data/adapters/first")
    params = options_of(lora={"init_from": "first"}, train={"learning_rate": 5e-3})
    check_initial_adapter(params.lora)
    second = check_option(trainer_of, params, training_folder)
    start, before = (losses(trainer.state.log_history) for trainer in (second, first))
    assert start["validation_loss_start"] == before["validation_loss"]


@pytest.mark.parametrize("bits", [8, 16])
def test_gradients_after_an_evaluation_equal_those_before_one(trainer_of, options_of, bits):
    model = trainer_of(options_of(lora={"dropout": 0.0}, **BITS[bits])).model
    batch = flat_batch(rows(2))

    def gradients():
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model.train()(**batch, use_cache=False).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

    before = gradients()
    logits(model, batch)
    assert torch.equal(gradients(), before)


def test_in_8_bits_every_linear_layer_but_the_head_is_int8_and_in_16_none_is(training_folder, options_of):
    eight, sixteen = (
        load_model(Path("models/base"), resolve_machine(options_of().machine), options_of(**BITS[bits]).quantization)
        for bits in (8, 16)
    )
    layers = [(name, module) for name, module in eight.named_modules() if isinstance(module, Linear8bitLt)]
    assert len(layers) == 2 * 7
    assert not any("lm_head" in name for name, _ in layers)
    assert not [module for module in sixteen.modules() if isinstance(module, Linear8bitLt | Linear4bit)]
    assert {parameter.dtype for parameter in sixteen.parameters()} == {torch.bfloat16}
    assert loaded_bytes(sixteen) == 2 * sixteen.num_parameters()
    # One byte a weight instead of two, and a scale in fp32 for each row.
    saving = sum(module.in_features * module.out_features - 4 * module.out_features for _, module in layers)
    assert loaded_bytes(eight) == loaded_bytes(sixteen) - saving


def original(name):
    for shard in Path("models/base").glob("*.safetensors"):
        if (tensors := load_file(shard)).keys() & {f"{name}.weight"}:
            return tensors[f"{name}.weight"].float()
    raise KeyError(name)


@pytest.mark.parametrize("variant", ["lora", "rslora"])
def test_loftq_leaves_the_least_error_that_its_rank_allows(trainer_of, options_of, variant):
    params = options_of(lora={"init": "loftq", "variant": variant})
    model = trainer_of(params).model
    assert initialize_adapter(model, params.lora, None) == {}
    for name, layer in lora_layers(model):
        lost = original(name) - dequantized_weight(layer.weight).float()
        with torch.no_grad():
            left = lost - layer.get_delta_weight("default").float()
        least = torch.linalg.svdvals(lost)[params.lora.r :].norm()  # Eckart and Young 1936
        assert left.norm() == pytest.approx(least.item(), rel=1e-4), name


@pytest.mark.parametrize("variant", ["lora", "rslora"])
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_what_was_taken_out_of_the_base_leaves_the_adapter_as_in_pefts_own_conversion(
    trainer_of, options_of, training_folder, init, variant
):
    trainer = trainer_of(options_of(lora={"init": init, "variant": variant}, **BITS[16]))
    model, batch = trainer.model, flat_batch(rows(1))
    before = logits(model, batch)
    trainer.subtracted = initialize_adapter(model, trainer.lora, None)
    assert (logits(model, batch) - before).abs().mean() < 0.02 * before.std()
    for name, layer in lora_layers(model):
        assert not torch.equal(layer.weight, original(name).bfloat16())
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.01 * torch.randn_like(parameter)
    saved(trainer, training_folder / "ours")
    (training_folder / "initial").mkdir()
    save_file(trainer.subtracted, training_folder / "initial/adapter_model.safetensors")
    model.save_pretrained(
        training_folder / "peft",
        save_embedding_layers=False,
        path_initial_model_for_weight_conversion=str(training_folder / "initial"),
    )
    ours, theirs = (load_file(training_folder / name / "adapter_model.safetensors") for name in ("ours", "peft"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    ours, theirs = (
        json.loads((training_folder / name / "adapter_config.json").read_text()) for name in ("ours", "peft")
    )
    assert ours.pop("target_modules") == sorted(theirs.pop("target_modules"))
    assert ours == theirs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 8}, "has lora.r 4, but lora.r is 8"),
        ({"alpha": 16}, "has lora.alpha 8, but lora.alpha is 16"),
        ({"variant": "dora"}, "has lora.variant lora, but lora.variant is dora"),
        ({"target_modules": ["q_proj"]}, "does not fit lora.target_modules and the base; 24 tensors"),
        ({"init_from": "absent"}, "data/adapters/absent is no adapter .*No such file"),
        ({}, None),
    ],
)
def test_an_adapter_to_start_from_that_does_not_fit_is_refused_by_the_key(
    trainer_of, options_of, training_folder, change, message
):
    trainer = trainer_of(options_of())
    Path("data").mkdir()
    saved(trainer, training_folder / "data/adapters/first")
    lora = options_of(lora={"init_from": "first"} | change).lora
    if message is None:
        check_initial_adapter(lora)
    else:
        with pytest.raises(UserError, match=f"lora.init_from: .*{message}"):
            check_initial_adapter(lora)


@pytest.mark.parametrize("init", ["loftq", "pissa", "olora"])
def test_a_rank_above_the_smallest_layers_width_is_refused(training_folder, options_of, init):
    changes = BITS[4 if init == "loftq" else 16] | {"lora": {"init": init, "r": 33}}
    with pytest.raises(UserError, match=f"lora.r is 33, but with lora.init: {init} it can be 32 at most"):
        adapter_parameters(options_of(**changes).lora)


def test_the_size_of_a_dora_adapter_is_known_before_the_base_is_loaded(trainer_of, options_of):
    params = options_of(lora={"variant": "dora"})
    trained = [p for p in trainer_of(params).model.parameters() if p.requires_grad]
    assert adapter_parameters(params.lora) == sum(p.numel() for p in trained)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_every_schedule_warms_up(trainer_of, options_of, schedule):
    trainer = trainer_of(options_of(train={"lr_scheduler": schedule, "warmup_steps": 3, "learning_rate": 0.3}))
    trainer.create_optimizer_and_scheduler(10)
    rates = []
    for _ in range(10):
        rates += trainer.lr_scheduler.get_last_lr()[:1]
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    after = {  # shares of the rate, one and six steps after the warm-up
        "constant": [1, 1],
        "linear": [6 / 7, 1 / 7],
        "cosine": [0.5 + 0.5 * math.cos(math.pi * step / 7) for step in (1, 6)],
    }
    assert [rate / 0.3 for rate in (*rates[:5], rates[9])] == pytest.approx([0, 1 / 3, 2 / 3, 1, *after[schedule]])


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_with_loraplus_b_learns_at_its_own_rate(trainer_of, options_of, optimizer):
    train = {"optimizer": optimizer, "learning_rate": 1e-3, "weight_decay": 0.1}
    trainer = trainer_of(options_of(lora={"plus_ratio": 8}, train=train))
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in groups(trainer) for p in group["params"]}
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            assert rates.pop(id(parameter)) == (8e-3 if "lora_B" in name else 1e-3, 0.1), name
    assert not rates


def groups(trainer):
    trainer.create_optimizer()
    return trainer.optimizer.param_groups


def test_8_bit_moments_are_bytes_with_scales_and_not_paged(trainer_of, options_of):
    trainer = trainer_of(options_of(lora={"r": 64}, train={"optimizer": "adamw_8bit", "epochs": 1}))
    trainer.run(None)
    optimizer = trainer.optimizer.optimizer
    assert not optimizer.is_paged
    dtypes = {p.numel() >= 4096: set() for p in optimizer.state}
    for p, kept in optimizer.state.items():
        dtypes[p.numel() >= 4096] |= {kept["state1"].dtype, kept["state2"].dtype}
    assert dtypes == {True: {torch.uint8}, False: {torch.float32}}  # bitsandbytes leaves small ones in fp32


def test_neftune_adds_its_noise_while_training_and_none_in_evaluations(trainer_of, options_of):
    trainer = trainer_of(options_of(train={"neftune_alpha": 5.0, "epochs": 1, "eval_steps": 1}))
    model = trainer.model.get_base_model()
    seen = {True: [], False: []}
    ids = []
    model.model.embed_tokens.register_forward_pre_hook(lambda module, inputs: ids.append(inputs[0]))

    def compare(module, inputs):
        plain = torch.nn.functional.embedding(ids[-1], model.model.embed_tokens.weight)
        noise = (inputs[0] - plain).abs()[0]
        if not module.training:
            seen[False].append(noise.max().item())
            return
        lengths = trainer.noise.lengths[0]
        assert sorted(lengths.unique().tolist()) == [12, 16, 20, 24, 40]  # of rows()
        for length in lengths.unique():
            largest = noise[lengths == length].max().item()
            seen[True].append(largest * (length.item() * plain.shape[-1]) ** 0.5)

    model.model.layers[0].register_forward_pre_hook(compare)
    trainer.run(None)
    assert len(seen[True]) == 4 * 5
    assert len(seen[False]) >= 3
    assert set(seen[False]) == {0.0}
    assert all(4 < noise < 5.2 for noise in seen[True])  # uniform up to alpha / √(length · width), in bf16


class TrainingBeganError(Exception):
    """Carries the trainer at the moment in which it would take its first step."""


@pytest.fixture
def trainer_at_start(training_folder, monkeypatch):
    """trainer_at_start(params) → the trainer of the stage. All of main() before the first step has run."""

    def begin(trainer, *_, **__):
        raise TrainingBeganError(trainer)

    def run(params):
        with pytest.raises(TrainingBeganError) as caught:
            main(Stop(), params)
        (trainer,) = caught.value.args
        trainer.checkpoints.remove()
        return trainer

    (training_folder / "data/tokenized").mkdir(parents=True)
    (training_folder / "data/adapters").mkdir()
    for name, target in {"stages": "stages", "dvc.yaml": "dvc.yaml", "params.yaml": "tests/params.yaml"}.items():
        (training_folder / name).symlink_to(ROOT / target)
    for split, seed in (("train", 0), ("validation", 1)):
        write_rows(training_folder / f"data/tokenized/{split}.arrow", list(tokenized(4, seed)))
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(training_folder / "logs"))
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(SFTTrainer, "train", begin)
    return run


def adapter_config(trainer):
    return trainer.model.peft_config["default"]


def variant_of_trainer(trainer):
    config = adapter_config(trainer)
    return {(False, False): "lora", (True, False): "rslora", (False, True): "dora"}[config.use_rslora, config.use_dora]


def initial_adapter_of_trainer(trainer):
    """The folder in data/adapters whose values the model has."""
    state = peft.get_peft_model_state_dict(trainer.model, save_embedding_layers=False)
    for folder in Path("data/adapters").iterdir():
        given = load_file(folder / SAVED)
        if given.keys() == state.keys() and all(torch.equal(state[name], value) for name, value in given.items()):
            return folder.name
    return None


def init_of_trainer(trainer):
    """`loftq` or `default`. PEFT starts with B = 0, and LoftQ does not."""
    (first, *_) = (p for name, p in trainer.model.named_parameters() if "lora_B" in name)
    return "loftq" if first.any() and initial_adapter_of_trainer(trainer) is None else "default"


def plus_ratio_of_trainer(trainer):
    rates = {id(p): group["lr"] for group in groups(trainer) for p in group["params"]}
    a, b = ({rates[id(p)] for n, p in trainer.model.named_parameters() if name in n} for name in ("lora_A", "lora_B"))
    return round(b.pop() / a.pop(), 6)


def batch_size_of_trainer(trainer):
    sizes = {trainer.args.per_device_train_batch_size, trainer.args.per_device_eval_batch_size}
    return sizes.pop() if len(sizes) == 1 else sizes


SAVED = "adapter_model.safetensors"
SCHEDULERS = {"constant_with_warmup": "constant", "linear": "linear", "cosine": "cosine"}
# Every key of lora and train: (value in one training, value in another, how to read it from the trainer). A default
# fails in one of the two, since the values differ.
KEYS = {
    "seed": (1234, 77, lambda trainer: trainer.args.seed),
    "lora.variant": ("rslora", "dora", variant_of_trainer),
    "lora.init": ("loftq", "default", init_of_trainer),
    "lora.init_from": (None, "first", initial_adapter_of_trainer),
    "lora.r": (3, 5, lambda trainer: adapter_config(trainer).r),
    "lora.alpha": (7.5, 13, lambda trainer: adapter_config(trainer).lora_alpha),
    "lora.dropout": (0.15, 0.35, lambda trainer: adapter_config(trainer).lora_dropout),
    "lora.target_modules": (
        *(["mlp.up_proj", "v_proj"], ["o_proj", "q_proj"]),
        lambda trainer: sorted(adapter_config(trainer).target_modules),
    ),
    "lora.plus_ratio": (6, 3.5, plus_ratio_of_trainer),
    "train.epochs": (2.5, 4, lambda trainer: trainer.args.num_train_epochs),
    "train.batch_size": (3, 2, batch_size_of_trainer),
    "train.gradient_accumulation_steps": (5, 4, lambda trainer: trainer.args.gradient_accumulation_steps),
    "train.optimizer": ("adamw_8bit", "adamw", lambda trainer: trainer.args.optim.value.removesuffix("_torch")),
    "train.learning_rate": (3e-3, 7e-4, lambda trainer: trainer.args.learning_rate),
    "train.lr_scheduler": ("constant", "cosine", lambda trainer: SCHEDULERS[trainer.args.lr_scheduler_type.value]),
    "train.warmup_steps": (7, 3, lambda trainer: trainer.args.warmup_steps),
    "train.weight_decay": (0.03, 0.2, lambda trainer: trainer.args.weight_decay),
    "train.max_grad_norm": (0.7, 1.9, lambda trainer: trainer.args.max_grad_norm),
    "train.neftune_alpha": (5.5, 9, lambda trainer: trainer.noise.alpha),
    "train.eval_steps": (13, 6, lambda trainer: trainer.args.eval_steps),
    "train.early_stopping_patience": (
        *(7, 2),
        lambda trainer: next(c.patience for c in trainer.callback_handler.callbacks if c is trainer.early),
    ),
    "train.deterministic": (False, True, lambda trainer: "CUBLAS_WORKSPACE_CONFIG" in os.environ),
    "machine.save_steps": (17, 8, lambda trainer: trainer.args.save_steps),
    "machine.report_to": (["tensorboard"], "none", lambda trainer: trainer.args.report_to or "none"),
}


@pytest.mark.parametrize("training", [0, 1])
def test_every_key_of_lora_and_train_reaches_peft_and_the_trainer(trainer_at_start, params_of, training):
    """A new key of these sections needs a line in KEYS."""
    keys = {f"{name}.{key}" for name, section in (("lora", Lora), ("train", Train)) for key in section.model_fields}
    assert KEYS.keys() == keys | {"seed", "machine.save_steps", "machine.report_to"}
    assert all(first != second for first, second, _ in KEYS.values())
    expected, changes = {key: line[training] for key, line in KEYS.items()}, {"machine": {"device": "cpu"}}
    for key, value in expected.items():
        section, _, name = key.rpartition(".")
        changes |= {section: changes.get(section, {}) | {name: value}} if section else {name: value}
    params = params_of(**changes)
    if params.lora.init_from:
        first = Path("data/adapters", params.lora.init_from)
        first.mkdir()
        save_file({name: torch.rand(shape) for name, shape in expected_shapes(params.lora).items()}, first / SAVED)
        config = {"use_dora": True, "r": params.lora.r, "lora_alpha": params.lora.alpha}
        (first / "adapter_config.json").write_text(json.dumps(config))
    trainer = trainer_at_start(params)
    assert {key: read(trainer) for key, (*_, read) in KEYS.items()} == expected


def test_the_seed_decides_the_first_values_of_the_adapter(trainer_at_start, params_of):
    adapters = []
    for seed in (7, 7, 8):
        torch.rand(3)  # earlier draws must not matter
        model = trainer_at_start(params_of(seed=seed, lora={"r": 4}, machine={"device": "cpu"})).model
        adapters.append(next(p.detach() for name, p in model.named_parameters() if "lora_A" in name))
    assert torch.equal(adapters[0], adapters[1])
    assert not torch.equal(adapters[0], adapters[2])
