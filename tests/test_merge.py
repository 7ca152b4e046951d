"""Merging, against PEFT's own merge of the same base, tensor by tensor."""

import json
import subprocess
import sys

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from stages import merge as merge_stage
from stages._train.adapter import add_adapter, save_adapter
from stages.merge import adapter_deltas, compare, copy_companions, dequantized, merge
from stages.shared.errors import UserError
from stages.shared.models import load_model, make_deterministic, quantized_modules
from tests.conftest import write_rows

MANIFEST = {"id": None, "path": "somewhere", "revision": None}


@pytest.fixture
def repository(small_base, params_of, tmp_path, monkeypatch):
    """A folder with models/base and a models/adapter whose weights are far from zero."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/base").symlink_to(small_base)
    params = params_of(lora={"r": 4, "alpha": 8}, machine={"device": "cpu"})
    make_deterministic(1, wanted=True, warn_only=False)
    model = add_adapter(load_model(small_base, params.machine, params.quantization), params.lora, MANIFEST)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    save_adapter(model, tmp_path / "models/adapter")
    return params


def trained_model(params):
    base = load_model(merge_stage.BASE, params.machine, params.quantization)
    return peft.PeftModel.from_pretrained(base, merge_stage.ADAPTER).eval()


def tensors(folder):
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def in_units_of_bf16(found, expected):
    """The largest distance between two bf16 tensors, in units in the last place of the expected values."""
    unit = torch.exp2(expected.float().abs().clamp(min=1e-30).log2().floor() - 7)
    return ((found.float() - expected.float()).abs() / unit).max().item()


@pytest.mark.parametrize("base", ["dequantized", "original"])
def test_the_merge_equals_that_of_peft_on_the_same_base(repository, tmp_path, base):
    merge(trained_model(repository), base, tmp_path)
    reference = load_model(merge_stage.BASE, repository.machine)
    if base == "dequantized":
        values = load_model(merge_stage.BASE, repository.machine, repository.quantization)
        for name, module in quantized_modules(values):
            reference.get_submodule(name).weight.data = dequantized(module)
    expected = peft.PeftModel.from_pretrained(reference, merge_stage.ADAPTER).merge_and_unload().state_dict()
    found = tensors(tmp_path)
    assert found.keys() == expected.keys() - {"lm_head.weight"}
    assert max(in_units_of_bf16(found[name], expected[name]) for name in found) <= 1
    changed = [name for name in found if not torch.equal(found[name], tensors(merge_stage.BASE)[name])]
    assert len(changed) == 2 * 7
    assert all("_proj" in name for name in changed)


def test_the_files_have_the_bases_names_shapes_dtypes_and_index(repository, tmp_path):
    merge(trained_model(repository), "dequantized", tmp_path)
    copy_companions(tmp_path, "v3")
    assert len(list(merge_stage.BASE.glob("*.safetensors"))) > 1
    for path in merge_stage.BASE.glob("*.safetensors"):
        original, merged = load_file(path), load_file(tmp_path / path.name)
        shapes = [{name: (t.shape, t.dtype) for name, t in each.items()} for each in (original, merged)]
        assert shapes[0] == shapes[1]
    index = "model.safetensors.index.json"
    assert (tmp_path / index).read_bytes() == (merge_stage.BASE / index).read_bytes()


def test_the_merged_model_behaves_as_the_trained_one(repository, tmp_path):
    rows = [{"input_ids": list(range(50, 90)), "labels": list(range(50, 90)), "seq_lengths": [40]}] * 2
    parities = {}
    trained = trained_model(repository)
    for base in ("dequantized", "original"):
        folder = tmp_path / base
        folder.mkdir()
        merge(trained, base, folder)
        copy_companions(folder, "v3")
        parities[base] = compare(trained, load_model(folder, repository.machine), rows)
    assert parities["dequantized"]["tokens"] == 2 * 39
    assert abs(parities["dequantized"]["loss_gap"]) < 0.02
    assert parities["dequantized"]["kl"] < parities["original"]["kl"] / 3
    assert parities["dequantized"]["top1_agreement"] > parities["original"]["top1_agreement"]


def test_plain_transformers_loads_the_folder_and_its_chat_template(repository, tmp_path):
    folder = tmp_path / "merged"
    folder.mkdir()
    merge(trained_model(repository), "dequantized", folder)
    copy_companions(folder, "v3")
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


def test_an_adapter_weight_that_belongs_to_no_module_stops_the_merge(repository):
    path = merge_stage.ADAPTER / "adapter_model.safetensors"
    weights = load_file(path)
    weights["base_model.model.model.layers.7.mlp.up_proj.lora_A.weight"] = torch.zeros(4, 64)
    save_file(weights, path)
    with pytest.raises(UserError, match=r"layers\.7\.mlp\.up_proj"):
        adapter_deltas(trained_model(repository))


def test_a_gap_above_the_bound_fails_the_stage_and_leaves_no_merged_model(repository, params_of, tmp_path, monkeypatch):
    parity = dict.fromkeys(("loss_trained", "loss_merged", "kl", "top1_agreement"), 1.0)
    monkeypatch.setattr(merge_stage, "compare", lambda *_: parity | {"loss_gap": 0.5, "tokens": 3})
    import pyarrow

    (tmp_path / "data/tokenized").mkdir(parents=True)
    row = {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "seq_lengths": [3]}
    write_rows(tmp_path / "data/tokenized/validation.arrow", [row])
    assert pyarrow.ipc.open_stream(tmp_path / "data/tokenized/validation.arrow").read_all().num_rows == 1
    with pytest.raises(UserError, match=r"\+0\.50000 nats a token.*merge\.max_loss_gap \(0\.01\)"):
        merge_stage.main(repository)
    assert not merge_stage.MERGED.exists()
