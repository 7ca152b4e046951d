"""Compares merging with PEFT's own merge of the same base, tensor by tensor."""

import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from inspect import getsource
from pathlib import Path

import peft
import pyarrow
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from stages import merge as merge_stage
from stages._merge import four_bit, stream, weights
from stages._merge.adapter import Adapter
from stages._merge.four_bit import FourBitWeight
from stages._merge.judgement import check_divergence, judge_loss_gap
from stages._merge.nf4 import quantized
from stages._merge.parity import Reference, compare, merge_in_memory, reference_bytes
from stages._merge.stream import write_merged
from stages._merge.weights import OriginalWeight, stored_tensors
from stages._tokenize.packing import row_schema
from stages.core.fused import layer
from stages.core.machine import resolve_machine
from stages.core.models import load_model
from stages.core.paths import read_json, write_json
from stages.core.prompts import Encoder
from stages.core.quantization import (
    SAMPLE_SIZE,
    VALUE_HASHES,
    VALUE_SAMPLES,
    base_values,
    dequantized,
    double_quantize,
    quantized_modules,
)
from stages.core.yaml_files import read_yaml
from stages.download_model import download_model
from stages.merge import ADAPTER, BASE, main
from stages.runtime import machine_checks
from stages.runtime.errors import UserError
from tests.support.layers import layer_of
from tests.support.merging import make_adapter, merged_folder, plan_of
from tests.support.project import ROOT, committed

CHANGED = 2 * 7  # linear layers of the small base
ROWS = [{"input_ids": list(range(50, 90)), "labels": list(range(50, 90)), "seq_lengths": [40]}] * 2
KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "rs-dora": {"use_rslora": True, "use_dora": True},
    "patterns": {
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\..*": 6},
        "alpha_pattern": {"down_proj": 3, r"model\.layers\.0\.self_attn\.v_proj": 32},
        "use_rslora": True,
    },
}


def write_validation(rows):
    merge_stage.TOKENIZED.mkdir(parents=True)
    with (
        open(merge_stage.TOKENIZED / "validation.arrow", "wb") as file,
        pyarrow.ipc.new_stream(file, row_schema()) as writer,
    ):
        writer.write_batch(pyarrow.RecordBatch.from_pylist(rows, row_schema()))


@pytest.fixture
def repository(small_base, params_of, tmp_path, monkeypatch):
    """A folder with models/base. Returns the params."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/base").symlink_to(small_base)
    return params_of(lora={"r": 4, "alpha": 8}, machine={"device": "cpu"})


@pytest.fixture
def adapted(repository):
    """A folder with models/base and a plain LoRA in models/adapter. Returns the params."""
    make_adapter(BASE, repository, ADAPTER)
    return repository


@pytest.fixture
def with_rows(adapted):
    write_validation(ROWS)
    return adapted


def changed_merge(params, **changes):
    return params.model_copy(update={"merge": params.merge.model_copy(update=changes)})


def tensors(folder):
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def in_units_of_bf16(found, expected):
    """The largest distance between two bf16 tensors, in units in the last place of the expected values."""
    unit = torch.exp2(expected.float().abs().clamp(min=1e-30).log2().floor() - 7)
    return ((found.float() - expected.float()).abs() / unit).max().item()


@pytest.mark.parametrize("base", ["dequantized", "original"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_merge_equals_that_of_peft_on_the_same_base(repository, tmp_path, base, kind):
    make_adapter(BASE, repository, ADAPTER, **KINDS[kind])
    found = tensors(merged_folder(repository, tmp_path / "merged", base))
    reference = load_model(BASE, resolve_machine(repository.machine))
    if base == "dequantized":
        values = load_model(BASE, resolve_machine(repository.machine), repository.quantization)
        for name, module in quantized_modules(values):
            reference.get_submodule(name).weight.data = dequantized(module)
    expected = peft.PeftModel.from_pretrained(reference, ADAPTER).merge_and_unload().state_dict()
    assert found.keys() == expected.keys() - {"lm_head.weight"}
    assert max(in_units_of_bf16(found[name], expected[name]) for name in found) <= 1
    same = sum((found[name] == expected[name]).float().mean().item() for name in found) / len(found)
    assert same > 0.999
    originals = tensors(BASE)
    changed = [name for name in found if not torch.equal(found[name], originals[name])]
    assert len(changed) == CHANGED
    assert all("_proj" in name for name in changed)


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_the_values_are_those_of_the_loaded_4_bit_model_to_the_last_bit(
    params_of, small_base, monkeypatch, quant_type, double_quant
):
    monkeypatch.setattr(weights, "BLOCK", 3000)  # several blocks a weight, and a smaller last one
    params = params_of(machine={"device": "cpu"}, quantization={"quant_type": quant_type, "double_quant": double_quant})
    model = load_model(small_base, resolve_machine(params.machine), params.quantization)
    expected = base_values(model)
    stored = {each.name: each for path in sorted(small_base.glob("*.safetensors")) for each in stored_tensors(path)}
    assert len(expected.hashes) == CHANGED
    for name, module in quantized_modules(model):
        values = FourBitWeight(stored[f"{name}.weight"], "cpu", params.quantization)
        blocks = [rows for _, rows in values.blocks()]
        assert len(blocks) > 1 or stored[f"{name}.weight"].shape[0] <= 64
        assert torch.equal(torch.cat(blocks), dequantized(module))
        assert values.digest.hexdigest() == expected.hashes[name]
        assert torch.equal(torch.cat(values.sample), expected.samples[name])


def test_a_weight_whose_columns_fill_no_quantized_block_keeps_its_values(tmp_path, params_of, monkeypatch):
    """Blocks of 64 values then cross the ends of rows, and the last block is not full."""
    monkeypatch.setattr(weights, "BLOCK", 3000)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(150, 30, generator=generator).to(torch.bfloat16)
    save_file({"x.weight": weight}, tmp_path / "x.safetensors")
    quantization = params_of().quantization
    layer = layer_of(weight)
    double_quantize(layer)
    (stored,) = stored_tensors(tmp_path / "x.safetensors")
    blocks = [rows for _, rows in FourBitWeight(stored, "cpu", quantization).blocks()]
    assert len(blocks) > 1
    assert torch.equal(torch.cat(blocks), dequantized(layer))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_values_that_bf16_does_not_have_are_rounded_to_it_before_they_are_quantized(tmp_path, params_of, dtype):
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)).to(dtype)
    save_file({"x.weight": weight}, tmp_path / "x.safetensors")
    layer = layer_of(weight.to(torch.bfloat16))
    double_quantize(layer)
    (stored,) = stored_tensors(tmp_path / "x.safetensors")
    blocks = [rows for _, rows in FourBitWeight(stored, "cpu", params_of().quantization).blocks()]
    assert torch.equal(torch.cat(blocks), dequantized(layer))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_base_in_another_dtype_stays_in_it_and_is_quantized_from_bf16(adapted, tmp_path, dtype, small_base):
    (tmp_path / "models/base").unlink()
    shutil.copytree(small_base, BASE)
    for path in BASE.glob("*.safetensors"):
        save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    found = tensors(merged_folder(adapted, tmp_path / "merged"))
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    values = dict(quantized_modules(load_model(BASE, resolve_machine(adapted.machine), adapted.quantization)))
    adapter = load_file(ADAPTER / "adapter_model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    expected = dequantized(values[name]).float() + 2 * b @ a
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(found[f"{name}.weight"].float(), expected, rtol=rounding, atol=1e-6)


def test_the_files_have_the_bases_names_shapes_dtypes_and_index(adapted, tmp_path):
    folder = merged_folder(adapted, tmp_path / "merged")
    assert len(list(BASE.glob("*.safetensors"))) > 1
    for path in BASE.glob("*.safetensors"):
        original, merged = load_file(path), load_file(folder / path.name)
        shapes = [{name: (t.shape, t.dtype) for name, t in each.items()} for each in (original, merged)]
        assert shapes[0] == shapes[1]
        with safe_open(path, "pt") as one, safe_open(folder / path.name, "pt") as other:
            assert one.metadata() == other.metadata()
        assert (folder / path.name).stat().st_size == path.stat().st_size
        assert (folder / path.name).stat().st_mode & 0o777 == 0o644
    index = "model.safetensors.index.json"
    assert (folder / index).read_bytes() == (BASE / index).read_bytes()


def test_one_thread_or_several_and_blocks_of_any_size_write_the_same_bytes(adapted, tmp_path, monkeypatch):
    found = []
    for threads, block, part in ((1, 1 << 21, 1 << 24), (4, 3000, 1000)):
        monkeypatch.setattr(weights, "BLOCK", block)
        monkeypatch.setattr(weights, "COPY_BYTES", part)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        folder = merged_folder(adapted, tmp_path / str(threads))
        found.append({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.safetensors")})
    assert found[0] == found[1]


@pytest.mark.parametrize("base", ["dequantized", "original"])
def test_every_weight_and_every_update_goes_to_the_device_of_the_plan(adapted, tmp_path, monkeypatch, base):
    """A device without values stands for a GPU. What is asked of it, the CPU does."""
    expected, asked, update = merged_folder(adapted, tmp_path / "expected", base), [], Adapter.update

    def watched(kind):
        return lambda stored, device, *rest: asked.append(device) or kind(stored, "cpu", *rest)

    for kind in (FourBitWeight, OriginalWeight):
        monkeypatch.setattr(stream, kind.__name__, watched(kind))
    monkeypatch.setattr(
        Adapter, "update", lambda self, name, shape, device=None: asked.append(device) or update(self, name, shape)
    )
    found = tmp_path / "found"
    found.mkdir()
    write_merged(replace(plan_of(adapted, base), device="meta"), found)
    assert asked == ["meta"] * (2 * CHANGED)
    assert all(path.read_bytes() == (found / path.name).read_bytes() for path in expected.glob("*.safetensors"))


def test_weights_and_updates_are_on_the_device_that_is_asked_for(adapted, monkeypatch):
    name, devices = "model.layers.1.mlp.up_proj", []
    stored = plan_of(adapted).tensors()[name]

    def watched(rows, quant_type):
        devices.append(rows.device.type)
        return quantized(rows, quant_type)

    monkeypatch.setattr(four_bit, "quantized", watched)
    weight = FourBitWeight(stored, "meta", adapted.quantization.model_copy(update={"double_quant": False}))
    devices += [weight.packed.device.type, weight.constants.device.type]
    update = Adapter(ADAPTER).update(name, stored.shape, "meta")
    assert {*devices, update.a.device.type, update.b.device.type} == {"meta"}
    assert Adapter(ADAPTER).update(name, stored.shape).a.device.type == "cpu"


def test_no_tensor_is_held_whole(adapted, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "BLOCK", 2048)
    largest = []
    read = weights.StoredTensor.read

    def watched(stored, first, last):
        rows = read(stored, first, last)
        largest.append(rows.numel())
        return rows

    monkeypatch.setattr(weights.StoredTensor, "read", watched)
    merged_folder(adapted, tmp_path / "merged")
    assert max(largest) == 64 * 128  # at least 64 rows, of the widest matrix
    assert len(largest) > CHANGED


@pytest.fixture
def parities(adapted, tmp_path):
    """{merge.base: parity of the merge, from the files}.

    "in memory" has that of the naive merge, which is never written.
    """
    reference = Reference(BASE, ADAPTER, ROWS, resolve_machine(adapted.machine), adapted.quantization)
    found = {}
    for base in ("dequantized", "original"):
        folder = merged_folder(adapted, tmp_path / base, base)
        found[base] = compare(reference, load_model(folder, resolve_machine(adapted.machine)))
    model = load_model(BASE, resolve_machine(adapted.machine))
    merge_in_memory(model, plan_of(adapted))
    return found | {"in memory": compare(reference, model)}


def test_the_merged_model_behaves_as_the_trained_one(parities):
    assert parities["dequantized"]["tokens"] == 2 * 39
    assert abs(parities["dequantized"]["loss_gap"]) < 0.02
    assert parities["dequantized"]["kl"] < parities["original"]["kl"] / 3
    assert parities["dequantized"]["top1_agreement"] > parities["original"]["top1_agreement"]


def test_the_naive_merge_in_memory_equals_the_one_from_files(parities):
    assert parities["in memory"] == parities["original"]


def test_parity_equals_a_comparison_of_the_logits_themselves(adapted, tmp_path, monkeypatch):
    """Runs PEFT's and PyTorch's passes in place of training's, which round differently (see test_merge_options.py)."""
    monkeypatch.setattr(layer, "fuse", lambda model: False)
    machine = resolve_machine(adapted.machine.model_copy(update={"attention": "sdpa"}))
    rows = [{"input_ids": [*range(50, 90)], "labels": [-100] * 10 + [*range(60, 90)], "seq_lengths": [15, 25]}]
    folder = merged_folder(adapted, tmp_path / "merged")
    found = compare(
        Reference(BASE, ADAPTER, rows, machine, adapted.quantization),
        load_model(folder, resolve_machine(adapted.machine)),
    )
    ids = torch.tensor([rows[0]["input_ids"]])
    positions = torch.cat([torch.arange(15), torch.arange(25)])[None]
    trained = peft.PeftModel.from_pretrained(
        load_model(BASE, resolve_machine(adapted.machine), adapted.quantization), ADAPTER
    ).eval()
    with torch.no_grad():
        merged = load_model(folder, resolve_machine(adapted.machine))(
            ids, position_ids=positions, use_cache=False
        ).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            reference = trained(input_ids=ids, position_ids=positions, use_cache=False).logits
    p, q = (each[0, 9:-1].float().log_softmax(-1) for each in (reference, merged))
    losses = [torch.nn.functional.nll_loss(each, ids[0, 10:]).item() for each in (p, q)]
    kl = torch.nn.functional.kl_div(q, p, log_target=True, reduction="batchmean").item()
    assert found["tokens"] == 30
    assert (found["loss_trained"], found["loss_merged"]) == pytest.approx(losses, rel=1e-6)
    assert found["kl"] == pytest.approx(kl, rel=1e-4)
    assert found["top1_agreement"] == pytest.approx((p.argmax(-1) == q.argmax(-1)).float().mean().item())


def test_the_reference_takes_the_bytes_that_were_announced_and_leaves_no_file(adapted):
    before = sorted(ADAPTER.parent.rglob("*"))
    reference = Reference(BASE, ADAPTER, ROWS, resolve_machine(adapted.machine), adapted.quantization)
    assert reference.states.nbytes == reference_bytes(ROWS, 64) == 4 * 64 * 2 * 39
    assert sorted(ADAPTER.parent.rglob("*")) == before


def tie_head(tied):
    write_json(BASE / "config.json", read_json(BASE / "config.json") | {"tie_word_embeddings": tied})


@pytest.fixture
def with_head(small_base, params_of, tmp_path, monkeypatch):
    """A base whose files have a head that is not tied to the embeddings, and an adapter on it. Returns the params."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_base, BASE)
    tie_head(False)
    head = torch.randn(32768, 64, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16) / 8
    save_file(tensors(small_base) | {"lm_head.weight": head}, BASE / "model.safetensors", {"format": "pt"})
    for path in [*BASE.glob("model-*.safetensors"), BASE / "model.safetensors.index.json"]:
        path.unlink()
    params = params_of(machine={"device": "cpu"})
    make_adapter(BASE, params, ADAPTER, std=0.3, target_modules=["lm_head", "q_proj"])
    return params


def test_an_adapter_on_a_head_that_the_base_ties_to_the_embeddings_is_refused(with_head):
    """Its head in the file is not used then."""
    assert "lm_head" in plan_of(with_head).tensors()
    tie_head(True)
    with pytest.raises(UserError, match="lm_head.*embeddings"):
        plan_of(with_head).tensors()


def test_an_adapter_on_the_head_is_compared_with_its_own_head(with_head, tmp_path):
    """lm_head is never in 4 bits."""
    params, head = with_head, tensors(BASE)["lm_head.weight"]
    folder = merged_folder(params, tmp_path / "merged")
    assert not torch.equal(tensors(folder)["lm_head.weight"], head)
    reference = Reference(BASE, ADAPTER, ROWS, resolve_machine(params.machine), params.quantization)
    assert compare(reference, load_model(folder, resolve_machine(params.machine)))["kl"] < 0.01
    save_file(tensors(folder) | {"lm_head.weight": head}, folder / "model.safetensors", {"format": "pt"})
    assert compare(reference, load_model(folder, resolve_machine(params.machine)))["kl"] > 0.05


def test_plain_transformers_loads_the_folder_and_its_chat_template(adapted, tmp_path):
    folder = merged_folder(adapted, tmp_path / "merged")
    code = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model, info = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
print(json.dumps([type(model).__name__, str(model.dtype), sorted(info["missing_keys"]), chat]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd="/", capture_output=True, text=True, check=True
    )
    name, dtype, missing, chat = json.loads(done.stdout.splitlines()[-1])
    assert (name, dtype, missing) == ("MistralForCausalLM", "torch.bfloat16", [])
    assert chat == "<s>[INST] Hi[/INST]"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"layers.7.mlp.up_proj.lora_A": (4, 64), "layers.7.mlp.up_proj.lora_B": (128, 4)},
            r"layers\.7\.mlp.* base",
        ),
        ({"layers.1.mlp.up_proj.lora_A": None}, r"no lora_A\.weight for the module model\.layers\.1\.mlp\.up_proj"),
        ({"layers.1.mlp.up_proj.lora_A": (3, 64)}, r"shape \[3, 64\], but .* make it \[4, 64\]"),
        ({"layers.1.mlp.up_proj.lora_B": (64, 4)}, r"shape \[64, 4\], but .* make it \[128, 4\]"),
        ({"layers.1.mlp.up_proj.lora_C": (4, 64)}, r"lora_C\.weight, which a merge would leave out"),
        ({"embed_tokens.lora_embedding_A": (4, 9)}, r"embed_tokens\.lora_embedding_A\.weight, which a merge would"),
    ],
)
def test_an_adapter_weight_that_cannot_be_used_stops_the_merge(adapted, tmp_path, change, message):
    path = ADAPTER / "adapter_model.safetensors"
    stored = load_file(path)
    for name, shape in change.items():
        key = f"base_model.model.model.{name}.weight"
        if shape is None:
            del stored[key]
        else:
            stored[key] = torch.zeros(shape)
    save_file(stored, path)
    with pytest.raises(UserError, match=message):
        write_merged(plan_of(adapted), tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["lm_head"]},
        {"bias": "all"},
        {"init_lora_weights": "pissa"},
        {"layer_replication": [[0, 2], [1, 2]]},
        {"trainable_token_indices": [1, 2]},
        {"lora_bias": True},
        {"fan_in_fan_out": True},
        {"some_later_invention": 0.5},
        {"peft_type": "IA3"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_the_merge_does_not_know_is_refused_by_name(adapted, options):
    path = ADAPTER / "adapter_config.json"
    write_json(path, read_json(path) | options)
    key, value = next(iter(options.items()))
    with pytest.raises(UserError) as refused:
        Adapter(ADAPTER)
    assert f"{key}: {value!r}" in str(refused.value)


def test_every_setting_that_peft_has_is_followed_or_refused():
    """Somebody must decide about a new field of LoraConfig before the merge accepts it."""
    from stages._merge.adapter import ALLOWED_VALUES, SUPPORTED, WITHOUT_EFFECT

    defaults = peft.LoraConfig().to_dict()
    rest = {
        key: value for key, value in defaults.items() if key not in SUPPORTED | WITHOUT_EFFECT | ALLOWED_VALUES.keys()
    }
    assert not [key for key, value in rest.items() if value not in (None, False, [], {})]
    assert {key: defaults[key] for key in ALLOWED_VALUES} == {
        "peft_type": "LORA",
        "bias": "none",
        "init_lora_weights": True,
    }
    assert SUPPORTED | WITHOUT_EFFECT - {"auto_mapping", "runtime_config"} <= defaults.keys()


@pytest.mark.parametrize("name", [VALUE_HASHES, VALUE_SAMPLES])
def test_a_missing_record_of_the_4_bit_values_says_what_to_do(with_rows, name):
    (ADAPTER / name).unlink()
    said = rf"{re.escape(name)} is missing.*dvc repro train.*merge\.base: original"
    with pytest.raises(UserError, match=said):
        main(with_rows)


@pytest.mark.parametrize("base", ["dequantized", "original"])
def test_values_that_another_device_rounded_otherwise_are_counted_and_not_hidden(with_rows, capsys, base):
    """Training's device seems to have made every fourth value of one module larger, by a tenth of the largest value."""
    hashes, samples = read_json(ADAPTER / VALUE_HASHES), load_file(ADAPTER / VALUE_SAMPLES)
    changed = sorted(hashes)[:3]
    write_json(ADAPTER / VALUE_HASHES, hashes | dict.fromkeys(changed, "0" * 64))
    loose = changed_merge(with_rows, base=base, max_loss_gap=1.0, max_kl=1.0)
    main(loose)
    assert "so few values that none of the 1,024 of each that training kept is among them" in capsys.readouterr().out
    there = samples[changed[1]].float()
    largest = there.abs().max()
    there[::4] = torch.where(there[::4] < 0, there[::4] + largest / 10, there[::4] - largest / 10)
    save_file(samples | {changed[1]: there.to(torch.bfloat16)}, ADAPTER / VALUE_SAMPLES)
    main(loose)
    values = read_json(merge_stage.METRICS / "merge.json")["values"]
    assert (values["compared"], values["different"]) == (CHANGED, 3)
    assert values["largest_difference"] == pytest.approx(0.1, rel=0.12)  # the largest value may have become smaller
    said = f"3 of {CHANGED} modules have other 4-bit values here than in training, such as {changed[0]}"
    share = "up to 25.0% differ"
    printed, card = capsys.readouterr().out, (merge_stage.MERGED / "README.md").read_text()
    assert said in printed
    assert share in printed
    assert f"Not exact: {said}" in card
    assert share in card


def test_a_base_that_is_not_what_its_manifest_says_is_not_merged(with_rows, small_base):
    BASE.unlink()
    shutil.copytree(small_base, BASE)
    path = max(BASE.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"{path.name} has other bytes than its manifest says.*tools\.doctor --deep"):
        main(with_rows)


def test_what_the_comparison_needs_is_said_beforehand(with_rows, capsys):
    main(changed_merge(with_rows, max_loss_gap=1.0, max_kl=1.0))
    size = sum(path.stat().st_size for path in BASE.glob("*.safetensors")) / 1e9
    printed = capsys.readouterr().out
    assert "then compares models on 2 conversations, one model in memory at a time. " in printed
    assert f"writes {size:.2f} GB, then" in printed and f"This takes up to {size:.2f} GB" in printed


def test_a_full_disk_is_said_before_anything_is_written(with_rows, monkeypatch):
    monkeypatch.setattr(machine_checks.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(UserError, match=r"merging needs 0\.0 GB on the disk of models.*0\.0 GB are free"):
        main(with_rows)
    assert not list(merge_stage.MERGED.parent.glob("*merged*"))
    machine_checks.check_disk_for_merge(merge_stage.MERGED.parent, 10**10, -(10**10))


def test_what_a_killed_merge_left_takes_no_room_from_the_next(with_rows, monkeypatch):
    partial = merge_stage.MERGED.with_name(".merged.partial")
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(bytes(100))
    seen = []
    monkeypatch.setattr(merge_stage, "check_disk_for_merge", lambda *_: seen.append(list(partial.iterdir())))
    main(changed_merge(with_rows, max_loss_gap=1.0, max_kl=1.0))
    assert seen == [[]]


FULL_MEANWHILE = """
import sys
from pathlib import Path
from stages._merge.parity import Reference
from stages.core.machine import resolve_machine
from stages.core.params import Params
row = {"input_ids": [*range(50, 90)], "labels": [*range(50, 90)], "seq_lengths": [40]}
params = Params.model_validate_json(sys.argv[3])
try:
    Reference(Path(sys.argv[1]), Path(sys.argv[2]), [row] * 150, resolve_machine(params.machine), params.quantization)
except OSError as error:
    print("refused:", error)
"""


@pytest.mark.slow
def test_a_disk_that_gets_full_before_the_comparison_is_no_bus_error(adapted, tmp_path):
    """150 rows need 1.5 MB in the adapter's folder."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["unshare", "--mount"] if not os.geteuid() else ["unshare", "--map-root-user", "--mount"]
    script = 'mount -t tmpfs -o size=1m tmpfs "$1" || exit 99; cp -R "$2" "$1/adapter" && shift 2 && exec "$@"'
    code = [
        sys.executable,
        "-c",
        FULL_MEANWHILE,
        str(BASE.resolve()),
        str(place / "adapter"),
        adapted.model_dump_json(),
    ]
    command = [*mount, "sh", "-c", script, "sh", str(place), str(ADAPTER.resolve()), *code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode in (1, 99) and "mount" in done.stderr + done.stdout:
        pytest.skip("this system allows no mounts")
    assert "refused: [Errno 28] No space left on device" in done.stdout, done.stderr


def test_a_base_that_is_cut_short_is_said(adapted, small_base, tmp_path):
    (tmp_path / "models/base").unlink()
    shutil.copytree(small_base, BASE)
    path = max(BASE.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"is cut short"):
        write_merged(plan_of(adapted), tmp_path)


@pytest.fixture
def tiny_mistral(params_of, tmp_path, monkeypatch):
    """The tiny profile's own base with a small adapter, and Python source to compare models on."""
    monkeypatch.chdir(tmp_path)
    BASE.mkdir(parents=True)
    params = params_of(model={"path": str(ROOT / "assets/tiny-mistral")}, machine={"device": "cpu"})
    write_json(BASE / "manifest.json", download_model(params.model, BASE))
    make_adapter(BASE, params, ADAPTER, std=0.005)
    encoder = Encoder(params.prompt)
    ids = encoder.conversations(
        [[{"role": "user", "content": "x"}, {"role": "assistant", "content": getsource(json.decoder)}]]
    )
    ids = next(iter(ids)).input_ids[:2048]
    parts = [ids[start : start + 512] for start in range(0, len(ids), 512)]
    write_validation([{"input_ids": part, "labels": part, "seq_lengths": [len(part)]} for part in parts])
    return params


@pytest.mark.slow
def test_the_profiles_bounds_let_our_merge_pass_and_stop_the_naive_one(tiny_mistral):
    main(tiny_mistral)
    metrics = read_json(merge_stage.METRICS / "merge.json")
    assert metrics["parity"]["tokens"] > 1000
    assert metrics["parity"]["kl"] < tiny_mistral.merge.max_kl / 3
    assert metrics["naive"]["kl"] > tiny_mistral.merge.max_kl * 1.5
    made = sorted(path.name for path in merge_stage.MERGED.iterdir())
    with pytest.raises(UserError, match=r"\(KL\) .*merge\.max_kl \(0\.02\)"):
        main(changed_merge(tiny_mistral, base="original"))
    assert sorted(path.name for path in merge_stage.MERGED.iterdir()) == made  # the earlier files are kept


def test_a_divergence_above_its_bound_fails_the_stage_and_keeps_what_was_measured(with_rows):
    with pytest.raises(UserError, match=r"nats a token.*merge\.max_kl \(1e-09\).*logs/merge-parity\.json has what"):
        main(changed_merge(with_rows, max_kl=1e-9))
    assert not list(merge_stage.MERGED.parent.glob("*merged*"))
    assert not (merge_stage.METRICS / "merge.json").exists()
    assert read_json(Path("logs/merge-parity.json"))["kl"] > 1e-9


def test_a_divergence_that_is_no_number_is_above_every_bound(adapted):
    with pytest.raises(UserError, match=r"nan nats .*merge\.max_kl"):
        check_divergence({"loss_gap": math.nan, "kl": math.nan}, adapted.merge)
    assert read_json(Path("logs/merge-parity.json"))["kl"] == "nan"


PARITY = {"tokens": 5600, "rows": 40, "judged": True, "loss_gap": 0.03, "kl": 0.0003}


@pytest.mark.parametrize(
    ("low", "high", "is_too_large"),
    [(0.011, 0.05, True), (0.009, 0.05, False), (-0.05, -0.011, True), (-0.05, -0.009, False), (-0.2, 0.2, False)],
)
def test_a_loss_gap_is_too_large_only_where_its_interval_leaves_out_the_bound(adapted, low, high, is_too_large):
    said = judge_loss_gap(PARITY | {"loss_gap_lo": low, "loss_gap_hi": high}, adapted.merge)
    assert ("more than merge.max_loss_gap (0.01)" in said) == is_too_large


def test_a_merge_that_few_rows_cannot_judge_passes_and_says_so(with_rows, capsys):
    main(changed_merge(with_rows, max_kl=1.0, max_loss_gap=1e-9))
    parity = read_json(merge_stage.METRICS / "merge.json")["parity"]
    assert (parity["judged"], parity["rows"], parity["tokens"]) == (False, 2, 2 * 39)
    assert "loss_gap_lo" not in parity
    assert (
        "merge: measured on 78 tokens of 2 conversations: too few to judge the loss, KL 0." in capsys.readouterr().out
    )


def test_the_interval_of_the_loss_gap_draws_conversations_not_packed_rows(adapted, tmp_path):
    packed = [{"input_ids": [*range(50, 110)], "labels": [*range(50, 110)], "seq_lengths": [5] * 12}]
    reference = Reference(BASE, ADAPTER, packed, resolve_machine(adapted.machine), adapted.quantization)
    folder = merged_folder(adapted, tmp_path / "merged")
    parity = compare(reference, load_model(folder, resolve_machine(adapted.machine)))
    assert (parity["judged"], parity["rows"], parity["tokens"]) == (True, 12, 59)
    assert parity["loss_gap_lo"] < parity["loss_gap"] < parity["loss_gap_hi"]


def test_two_runs_write_the_same_bytes_and_a_card_that_hubs_take(with_rows):
    params = changed_merge(with_rows, max_loss_gap=1.0, max_kl=1.0)
    runs = []
    for _ in range(2):
        outcome = main(params)
        files = [*merge_stage.MERGED.iterdir(), merge_stage.METRICS / "merge.json"]
        runs.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files})
    assert runs[0] == runs[1]
    assert {"README.md", "chat_template.jinja", "tokenizer.json", "config.json", "generation_config.json"} < set(
        runs[0]
    )
    assert f"{CHANGED} modules merged onto the dequantized base" in outcome.message
    card = ModelCard.load(merge_stage.MERGED / "README.md")
    assert card.data.library_name == "transformers"
    assert "A LoRA adapter of rank 4 (alpha 8)" in card.text


def test_merged_onto_the_original_base_the_naive_merge_is_the_result(with_rows):
    for name in (VALUE_HASHES, VALUE_SAMPLES):
        (ADAPTER / name).unlink()  # needed only for a merge onto the 4-bit values
    main(changed_merge(with_rows, base="original", max_loss_gap=1.0, max_kl=1.0))
    metrics = read_json(merge_stage.METRICS / "merge.json")
    assert metrics["naive"].items() <= metrics["parity"].items()
    assert metrics["values"] == {"compared": 0, "different": 0, "largest_difference": 0.0}


def test_training_records_the_values_of_every_module_that_was_in_4_bits(adapted):
    model = load_model(BASE, resolve_machine(adapted.machine), adapted.quantization)
    values = {name: dequantized(module) for name, module in quantized_modules(model)}
    assert len(values) == CHANGED
    assert read_json(ADAPTER / VALUE_HASHES) == {
        name: hashlib.sha256(each.view(torch.int16).numpy().tobytes()).hexdigest() for name, each in values.items()
    }
    samples = load_file(ADAPTER / VALUE_SAMPLES)
    assert samples.keys() == values.keys()
    for name, each in values.items():
        assert torch.equal(samples[name], each.flatten()[:: each.numel() // SAMPLE_SIZE][:SAMPLE_SIZE])


def test_the_bound_is_far_above_the_committed_merge_and_far_below_the_naive_one(tiny):
    """The bound is the shipped one, and the distances are those of its own run in metrics.json."""
    merge, bound = json.loads(committed("metrics.json"))["merge"], read_yaml(tiny)["merge"]["max_kl"]
    assert 10 * merge["parity"]["kl"] < bound < merge["naive"]["kl"] / 2
