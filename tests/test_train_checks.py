"""What stops a training before anything heavy is loaded, and what makes a checkpoint its own."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from stages._train import fingerprint
from stages._train.checkpointing import Checkpoints
from stages._train.fingerprint import fingerprint_changes, training_fingerprint
from stages._train.preflight import Rows, adapter_parameters, check_rows, count_rows
from stages.core.code_hash import stage_hashes
from stages.core.machine import resolve_machine
from stages.core.models import load_model, packed_batch
from stages.core.params import Machine
from stages.core.paths import write_json
from stages.core.prompts import IGNORED
from stages.runtime.errors import UserError
from stages.runtime.integrity import check_base
from stages.runtime.machine_checks import check_bfloat16, check_disk
from stages.runtime.signals import Stop
from stages.train import main, prepare
from tests.support.data_files import write_rows
from tests.support.project import ROOT
from tests.support.training import rows


@pytest.fixture(autouse=True)
def repository(small_base, tmp_path, monkeypatch):
    """What the stage needs to have before it: code, rows, the base."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    shutil.copytree(ROOT / "stages", "stages", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(small_base, "models/base")
    Path("data/adapters").mkdir(parents=True)
    for name in ("dvc.yaml", "tests/params.yaml"):
        shutil.copy(ROOT / name, "dvc.yaml" if name == "dvc.yaml" else "params.yaml")
    for split in ("train", "validation"):
        write(split, rows(4))


def write(split, made):
    Path("data/tokenized").mkdir(parents=True, exist_ok=True)
    write_rows(Path("data/tokenized", f"{split}.arrow"), made)


def ending(row):
    return {name: values[:-1] + [2] if name != "seq_lengths" else values for name, values in row.items()}


@pytest.mark.parametrize("count", [1, 2500])  # three batches of the file
def test_rows_are_counted_as_by_reading_them_into_lists(count):
    made = [ending(row) if index % 3 else row for index, row in enumerate(rows(4) * (count // 4 + 1))][:count]
    write("train", made)
    dataset = Dataset.from_file("data/tokenized/train.arrow")
    labels = dataset["labels"]
    assert count_rows(Path("data/tokenized/train.arrow"), end=2) == Rows(
        rows=count,
        tokens=sum(map(len, dataset["input_ids"])),
        trained=sum(label != IGNORED for row in labels for label in row),
        endless=sum(2 not in row for row in labels),
        longest_conversation=max(max(lengths) for lengths in dataset["seq_lengths"]),
        longest_row=max(map(len, labels)),
    )


@pytest.mark.parametrize("kept", [False, True])
def test_few_steps_are_named_before_the_training_and_not_again_when_it_continues(params_of, capsys, monkeypatch, kept):
    write("train", [ending(row) for row in rows(4)])
    params = params_of(machine={"device": "cpu"}, train={"batch_size": 1, "gradient_accumulation_steps": 2})
    monkeypatch.setattr(Checkpoints, "newest", lambda self: Path("step-1") if kept else None)
    prepare(params, resolve_machine(params.machine, 2))
    lines = [line for line in capsys.readouterr().out.splitlines() if "warm up" in line]
    assert len(lines) == (not kept)
    assert all(line.startswith("train: only 2 optimizer steps") for line in lines)


def test_rows_whose_answers_never_end_are_refused():
    write("train", [ending(row) for row in rows(3)] + rows(2))
    with pytest.raises(UserError, match="2 of 5 rows of data/tokenized/train.arrow have no </s> among their labels"):
        check_rows(Path("data/tokenized/train.arrow"))


@pytest.mark.parametrize("untrained", [[], [row | {"labels": [IGNORED] * len(row["labels"])} for row in rows(2)]])
def test_validation_rows_that_train_no_token_are_refused(params_of, untrained):
    write("train", [ending(row) for row in rows(4)])
    write("validation", untrained)
    with pytest.raises(UserError, match=r"no row of data/tokenized/validation.arrow has a token .*validation_fraction"):
        main(Stop(), params_of(machine={"device": "cpu"}))


def test_a_base_that_lost_a_file_or_a_byte_is_refused_with_what_brings_it_back():
    check_base()
    weights = sorted(Path("models/base").glob("*.safetensors"))[-1]
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=f"^{weights} has other bytes .* `rm -rf models/base`"):
        check_base()
    weights.unlink()
    with pytest.raises(UserError, match=rf"^{weights} has .*or is missing\. Run .*doctor --deep"):
        check_base()


@pytest.mark.parametrize("text", [None, "", "[1]", "{}", '{"files": 3}'])
def test_a_training_on_a_base_without_its_manifest_does_not_begin(params_of, text):
    path = Path("models/base/manifest.json")
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=r"models/base/manifest.json is missing or damaged\. Run `python -m tools"):
        main(Stop(), params_of(machine={"device": "cpu"}))


def test_a_training_on_a_base_without_its_tokenizer_does_not_begin(params_of):
    Path("models/base/tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"models/base/tokenizer.json has other bytes than its manifest says, or is mi"):
        main(Stop(), params_of(machine={"device": "cpu"}))


def set_window(window):
    config = json.loads(Path("models/base/config.json").read_text())
    write_json(Path("models/base/config.json"), config | {"sliding_window": window})


@pytest.mark.parametrize(("window", "said"), [(None, False), (39, True), (40, False)])
def test_a_conversation_longer_than_the_sliding_window_is_said(capsys, window, said):
    set_window(window)
    write("train", [ending(row) for row in rows(4)])
    check_rows(Path("data/tokenized/train.arrow"))
    assert (
        "longest conversation has 40 tokens, but each layer of this base looks back" in capsys.readouterr().out
    ) == said


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_in_packed_rows_a_window_as_long_as_the_longest_conversation_changes_nothing(params_of, attention):
    machine = resolve_machine(params_of(machine={"device": "cpu", "attention": attention}).machine)
    batch = packed_batch(rows(2))

    def states(window):
        set_window(window)
        model = load_model(Path("models/base"), machine).model
        with torch.no_grad():
            return model(
                input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
            ).last_hidden_state

    unlimited = states(None)
    assert torch.equal(states(40), unlimited)
    assert not torch.equal(states(8), unlimited)


def test_each_lora_target_that_the_base_lacks_is_named(params_of):
    lora = params_of(lora={"target_modules": ["q_proj", "w1", "lm_head", "embed_tokens"]}).lora
    with pytest.raises(UserError, match=r"target_modules: w1, lm_head, embed_tokens not among .* are down_proj, gate_"):
        adapter_parameters(lora)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "mlp.down_proj"]])
def test_the_adapters_size_is_known_before_the_base_is_loaded(params_of, targets):
    from stages._train.model import add_adapter

    params = params_of(lora={"target_modules": targets}, machine={"device": "cpu"})
    model = add_adapter(
        load_model(Path("models/base"), resolve_machine(params.machine), params.quantization),
        params.lora,
        {"id": None, "path": "x", "revision": None},
    )
    assert adapter_parameters(params.lora) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_too_little_room_for_adapter_and_checkpoints_is_said_before_the_training():
    checkpoints = Checkpoints({}, limit=2)
    check_disk(1000, checkpoints.folder, checkpoints.limit)
    size = shutil.disk_usage(".").free // 36  # 4 + 3 · 12 bytes a parameter are needed
    with pytest.raises(UserError, match=r"MiB free, for adapter and checkpoints together. Free some space"):
        check_disk(size, checkpoints.folder, checkpoints.limit)


@pytest.mark.slow
def test_another_launcher_is_refused_before_anything_is_loaded(tmp_path):
    environment = os.environ | {"WORLD_SIZE": "2", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "stages.train"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "\ntrain: WORLD_SIZE is 2, set by torchrun, accelerate launch or the like. Start it with" in done.stderr


@pytest.fixture
def gpu(monkeypatch):
    """gpu("Tesla T4", 7) is what PyTorch sees then: the name, and the compute capability's first digit."""

    def see(name, major):
        # Asked for more than the hardware has, PyTorch says that all these have bfloat16, which they imitate.
        monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
        monkeypatch.setattr(torch.version, "hip", None)
        for function, answer in {
            "is_available": True,
            "device_count": 1,
            "current_device": 0,
            "get_device_properties": SimpleNamespace(name=name, major=major, total_memory=1 << 34),
        }.items():
            monkeypatch.setattr(torch.cuda, function, lambda *_, answer=answer: answer)

    return see


def test_a_gpu_without_bfloat16_is_refused_before_anything_is_loaded_or_written(params_of, gpu):
    write("train", [ending(row) for row in rows(4)])
    gpu("Tesla T4", 7)
    with pytest.raises(UserError, match=r"Tesla T4 does not compute in bfloat16.* compute capability 8\.0 or more"):
        main(Stop(), params_of())
    assert not Path(".dvc").exists()


def test_a_gpu_with_bfloat16_and_any_cpu_are_fine(params_of, gpu):
    gpu("NVIDIA A10", 8)
    check_bfloat16(resolve_machine(params_of().machine))
    gpu("Tesla T4", 7)
    check_bfloat16(resolve_machine(params_of(machine={"device": "cpu"}).machine))


def fingerprint_of(params):
    return training_fingerprint(params, resolve_machine(params.machine))


def changed_code(monkeypatch):
    edited = {"stages/train.py": "0" * 64}
    monkeypatch.setattr(fingerprint, "stage_hashes", lambda stage: stage_hashes(stage) | edited)


def changed_rows(monkeypatch):
    write("validation", rows(5))


def changed_base(monkeypatch):
    manifest = json.loads(Path("models/base/manifest.json").read_text())
    manifest["files"]["config.json"] = "0" * 64
    write_json(Path("models/base/manifest.json"), manifest)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed 42 → 1"),
        ({"lora": {"dropout": 0.5}}, "lora.dropout 0.0 → 0.5"),
        ({"train": {"epochs": 3, "eval_steps": 7}}, "train.epochs 1.0 → 3, train.eval_steps 50 → 7"),
        ({"quantization": {"double_quant": False}}, "quantization.double_quant True → False"),
        ({"machine": {"attention": "eager"}}, "machine.attention varlen → eager"),
        ({"machine": {"devices": 2}}, ""),  # the processes there are count, not those asked for
        (changed_code, "stages/train.py"),
        (changed_rows, "data/tokenized/validation.arrow"),
        (changed_base, "models/base"),
        ({"machine": {"save_steps": 1, "save_total_limit": 9, "workers": 3, "memory": "low"}}, ""),
        ({"evaluate": {"max_rows": 1}}, ""),
        ({}, ""),
    ],
)
def test_a_checkpoint_is_known_by_all_that_shapes_its_bytes_and_by_nothing_else(params_of, monkeypatch, change, named):
    before = fingerprint_of(params_of())
    values = {}
    if callable(change):
        change(monkeypatch)
    else:
        values = change
    assert fingerprint_changes(before, fingerprint_of(params_of(**values))) == named


def test_the_order_of_the_files_in_the_bases_manifest_changes_no_fingerprint():
    path = Path("models/base/manifest.json")
    manifest, before = json.loads(path.read_text()), fingerprint.content_hash(Path("models/base"))
    manifest["files"] = dict(reversed(manifest["files"].items()))
    path.write_text(json.dumps(manifest))
    assert fingerprint.content_hash(Path("models/base")) == before


def test_of_the_adapters_only_the_one_to_start_from_counts_for_a_checkpoint(params_of):
    for name in ("first", "second"):
        Path("data/adapters", name).mkdir()
        Path("data/adapters", name, "adapter_model.safetensors").write_bytes(b"1")
    params = params_of(lora={"init_from": "first"})
    before = fingerprint_of(params)
    Path("data/adapters/second/adapter_model.safetensors").write_bytes(b"2")
    assert fingerprint_of(params) == before
    Path("data/adapters/first/adapter_model.safetensors").write_bytes(b"2")
    assert fingerprint_changes(before, fingerprint_of(params)) == "data/adapters/first/adapter_model.safetensors"


def test_another_library_version_is_another_fingerprint(params_of):
    parts = fingerprint_of(params_of())
    assert {"python", "torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "numpy"} <= parts.keys()
    many = dict.fromkeys(list(parts)[:7], 0)
    assert fingerprint_changes(parts, parts | {"torch": "9.9"}) == f"torch {parts['torch']} → 9.9"
    assert fingerprint_changes(parts, parts | many).endswith(", 2 more")


def test_a_checkpoint_depends_on_the_number_of_processes_and_on_the_kind_of_device(params_of, gpu, monkeypatch):
    params = params_of(machine={"device": "auto"})
    monkeypatch.setenv("LOCAL_RANK", "0")
    before = fingerprint_of(params)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert fingerprint_changes(before, fingerprint_of(params)) == "processes 1 → 2"
    monkeypatch.delenv("WORLD_SIZE")
    gpu("NVIDIA A10", 8)
    assert fingerprint_changes(before, fingerprint_of(params)) == "device cpu → cuda"
    assert fingerprint_of(params_of(machine={"device": "cpu"})) == before


MACHINE = {  # key: (a changed value, what is named then); "" where the key does not shape the bytes
    "device": ("cpu", ""),  # auto takes the CPU here too
    "devices": (2, ""),  # the processes there are count, not those asked for
    "sharding": ("fsdp", "machine.sharding none → fsdp"),
    "nodes": (2, ""),
    "rendezvous": ("10.0.0.1:29500", ""),
    "attention": ("sdpa", "machine.attention varlen → sdpa"),
    "memory": ("low", ""),
    "workers": (3, ""),
    "save_steps": (1, ""),
    "save_total_limit": (9, ""),
    "report_to": (["tensorboard"], ""),
}


def test_for_every_key_of_machine_it_is_settled_whether_a_checkpoint_depends_on_it(params_of, monkeypatch):
    """A new key of this section needs a line in MACHINE."""
    assert MACHINE.keys() == Machine.model_fields.keys()
    monkeypatch.setenv("LOCAL_RANK", "0")
    params = params_of()
    before = fingerprint_of(params)
    for key, (value, named) in MACHINE.items():
        changed = params_of(machine={"rendezvous": MACHINE["rendezvous"][0], key: value})
        assert getattr(changed.machine, key) != getattr(params.machine, key)
        assert fingerprint_changes(before, fingerprint_of(changed)) == named, key


def test_a_checkpoint_depends_on_every_key_of_quantization_lora_and_train(params_of):
    params = params_of(lora={"target_modules": ["q_proj"]})
    parts, sections = fingerprint_of(params), ("quantization", "lora", "train")
    expected = {f"{name}.{key}": value for name in sections for key, value in dict(getattr(params, name)).items()}
    assert {name: parts.get(name, "missing") for name in ["seed", *expected]} == {"seed": params.seed} | expected


def test_a_checkpoints_folder_is_named_by_the_values_and_not_by_their_order():
    parts = {"seed": 1, "lora.r": 8}
    name = hashlib.sha256(b'{"lora.r": 8, "seed": 1}').hexdigest()[:16]
    assert fingerprint.fingerprint_name(parts) == fingerprint.fingerprint_name(dict(reversed(parts.items()))) == name
    assert fingerprint.fingerprint_name(parts | {"seed": 2}) != name


def test_a_name_that_only_one_side_has_is_a_change_and_five_changes_are_all_named():
    assert fingerprint_changes({"a": 1}, {"b": 2}) == "a 1 → None, b None → 2"
    before, after = (dict.fromkeys("abcde", value) for value in (0, 1))
    assert fingerprint_changes(before, after) == ", ".join(f"{name} 0 → 1" for name in "abcde")
    assert fingerprint_changes(before | {"f": 0}, after | {"f": 1}).endswith(", e 0 → 1, 1 more")
