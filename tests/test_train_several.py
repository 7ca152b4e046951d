"""Several processes: each optimizer step has the rows, and to rounding the result, that one process has."""

import contextlib
import csv
import importlib.metadata
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, SeedableRandomSampler
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import BatchSampler, SequentialSampler

from stages._train.callbacks import TrainingGuard
from stages._train.data_parallel import EvenBatchSampler
from stages._train.distributed import rank
from stages._train.fingerprint import LIBRARIES
from stages._train.model import add_adapter, shard_base
from stages.core.fused import layer
from stages.core.machine import resolve_machine
from stages.core.models import load_model
from stages.core.params import load_params
from stages.core.paths import read_json
from stages.runtime.errors import UserError
from stages.runtime.launch import check_processes, launch_config
from stages.runtime.signals import Stop
from stages.train import main
from tests.support.data_files import write_rows
from tests.support.project import ROOT
from tests.support.training import BASE_MANIFEST
from tests.support.training_repository import TrainingRepository, tokenized

ROWS = 11  # over 2 processes the last batch of an epoch has no partner
VALUES = {
    "lora": {"r": 4, "alpha": 8},
    "train": {"epochs": 2, "batch_size": 1, "gradient_accumulation_steps": 4, "warmup_steps": 1, "eval_steps": 2},
    "machine": {"device": "cpu", "save_steps": 2},
}
STEPS = 6


def in_one(rows, batch_size, seed):
    """The row numbers of the batches of two epochs, as accelerate orders them for one process."""
    order = SequentialSampler(range(rows)) if seed is None else SeedableRandomSampler(range(rows), data_seed=seed)
    return [list(BatchSampler(order, batch_size, drop_last=False)) for epoch in range(2)]


def spread(rows, batch_size, processes, seed, monkeypatch):
    """The same for each of several processes, as accelerate deals them out."""
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    dealt = []
    for number in range(processes):
        order = EvenBatchSampler(rows + 1, batch_size, seed)
        shard = BatchSamplerShard(BatchSampler(order, batch_size, drop_last=False), processes, number)
        epochs = []
        for epoch in range(2):
            order.set_epoch(epoch)
            epochs.append(list(shard))
        dealt.append(epochs)
    return dealt


@pytest.mark.parametrize("seed", [None, 42])
@pytest.mark.parametrize(("rows", "batch_size", "processes"), [(11, 1, 2), (8, 2, 2), (13, 2, 3), (1, 1, 4)])
def test_an_optimizer_step_has_the_rows_that_it_has_in_one_process(rows, batch_size, processes, seed, monkeypatch):
    expected = in_one(rows, batch_size, seed)
    dealt = spread(rows, batch_size, processes, seed, monkeypatch)
    for epoch, batches in enumerate(expected):
        lengths = {len(own[epoch]) for own in dealt}
        assert len(lengths) == 1
        for step in range(lengths.pop()):
            together = [row for own in dealt for row in own[epoch][step] if row != rows]
            assert together == [row for batch in batches[step * processes : (step + 1) * processes] for row in batch]
    assert (expected[0] == expected[1]) == (seed is None or rows == 1)


def with_gpus(count, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("gpus", "machine", "expected"),
    [
        (8, {"devices": "auto"}, 8),
        (6, {"devices": "auto"}, 4),
        (8, {"devices": "auto", "nodes": 2, "rendezvous": "10.0.0.1:29500"}, 4),
        (0, {"devices": "auto"}, 1),
        (4, {"devices": 2}, 2),
        (0, {"devices": 2}, 2),
    ],
)
def test_auto_takes_the_gpus_that_divide_the_batches_of_a_step(params_of, monkeypatch, gpus, machine, expected):
    with_gpus(gpus, monkeypatch)
    section = params_of(machine=machine).machine
    resolved = resolve_machine(section, batches=8)
    check_processes(section, resolved, batches=8)
    assert resolved.processes == expected * section.nodes


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        ({"devices": 4}, "machine.devices is 4, but PyTorch sees 3 CUDA devices"),
        ({"sharding": "fsdp"}, "machine.sharding shares the base among several processes, and there is one"),
        ({"devices": 3}, "train.gradient_accumulation_steps is 8, which 3 processes"),
        ({"devices": 1, "nodes": 3, "rendezvous": "a:1"}, "train.gradient_accumulation_steps is 8, which 3 processes"),
    ],
)
def test_processes_that_cannot_be_are_refused(params_of, monkeypatch, machine, message):
    with_gpus(3, monkeypatch)
    section = params_of(machine=machine).machine
    with pytest.raises(UserError, match=message):
        check_processes(section, resolve_machine(section, batches=8), batches=8)


def test_each_process_has_a_gpu_of_its_own(params_of, monkeypatch):
    with_gpus(2, monkeypatch)
    machine = params_of().machine
    assert resolve_machine(machine).device == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert resolve_machine(machine).device == torch.device("cuda:1")


def test_several_machines_need_a_place_to_meet(params_of):
    with pytest.raises(ValueError, match="nodes above 1 needs rendezvous"):
        params_of(machine={"nodes": 2})
    with pytest.raises(ValueError, match=r"machine\.rendezvous"):
        params_of(machine={"nodes": 2, "rendezvous": "no-port"})


def test_a_machine_tells_the_others_the_address_that_faces_them(params_of):
    def meeting(place):
        machine = params_of(machine={"nodes": 2, "rendezvous": place}).machine
        return launch_config(machine, 1)

    assert meeting("127.0.0.1:29500").local_addr == "127.0.0.1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAIN_ADDRESS", "10.0.0.7")
        assert meeting("127.0.0.1:29500").local_addr == "10.0.0.7"
    with pytest.raises(UserError, match=r"machine\.rendezvous is no-such-host\.invalid:1, which this machine cannot"):
        meeting("no-such-host.invalid:1")


def test_a_sharded_base_leaves_half_of_its_layers_in_each_of_two_processes(small_base, params_of, monkeypatch):
    params = params_of(lora={"r": 4}, machine={"device": "cpu", "devices": 2, "sharding": "fsdp"})
    monkeypatch.setenv("LOCAL_RANK", "0")
    model = load_model(small_base, resolve_machine(params.machine), params.quantization)
    layers = [p for name, p in model.named_parameters() if ".layers." in name]
    before = sum(p.nbytes for p in layers)
    assert {p.dtype for p in layers} == {torch.bfloat16}
    model = add_adapter(model, params.lora, BASE_MANIFEST)
    monkeypatch.setenv("WORLD_SIZE", "2")
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        shard_base(model)
    finally:
        torch.distributed.destroy_process_group()
    base = [p for name, p in model.named_parameters() if ".layers." in name and not p.requires_grad]
    assert sum(p.to_local().nbytes for p in base) == before // 2
    assert not [name for name, p in model.named_parameters() if p.requires_grad and isinstance(p, DTensor)]


@pytest.fixture
def begin(monkeypatch):
    """begin(rank, seed) → the adapter and a dropout mask with which one of four processes begins its training.

    Each process has drawn its own adapter, and has the same seed. What rank 0 broadcasts reaches the others.
    """
    sent = []

    def broadcast(tensor, source):
        assert source == 0
        sent.append(tensor.clone()) if rank() == 0 else tensor.copy_(sent[-1])

    def start(number, seed):
        monkeypatch.setenv("RANK", str(number))
        model = torch.nn.Linear(4, 4, bias=False)
        model.weight.data.fill_(number)
        args, state = SimpleNamespace(save_steps=1, seed=seed), SimpleNamespace()
        torch.manual_seed(seed)
        TrainingGuard().on_train_begin(args, state, None, model=model, optimizer=torch.optim.AdamW(model.parameters()))
        return model.weight.data, torch.nn.functional.dropout(torch.ones(1000), 0.5)

    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    return start


def test_all_processes_begin_with_the_adapter_of_rank_0_and_draw_different_dropout(begin, monkeypatch):
    started = {(number, seed): begin(number, seed) for seed in (42, 1042) for number in range(4)}
    assert all(torch.equal(adapter, torch.zeros(4, 4)) for adapter, _ in started.values())
    for (first, (_, mask)), (second, (_, second_mask)) in itertools.combinations(started.items(), 2):
        assert 400 < (mask == second_mask).sum() < 600, f"rank and seed {first} and {second} draw alike"
    assert torch.equal(begin(3, 42)[1], started[3, 42][1]), "a second training draws different numbers"
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert torch.equal(begin(0, 42)[1], started[0, 42][1]), "rank 0 must draw what a training of one process draws"


# From here on processes of their own, each with the libraries to import.


class Training(TrainingRepository):
    """A repository in which `python -m stages.train` trains ROWS rows."""

    def __init__(self, folder, small_base, **machine):
        super().__init__(folder, small_base)
        write_rows(folder / "data/tokenized/train.arrow", list(tokenized(ROWS, 0)))
        self.change_sections(VALUES)
        self.change_sections({"lora": {"dropout": machine.pop("dropout", 0.0)}, "machine": machine})
        self.run(sys.executable, "-m", "stages.hash_code")  # a training that DVC starts compares its code with this

    def begin(self, fault=None, **variables):
        return self.start(sys.executable, "-m", "stages.train", fault=fault, **variables)

    def finish(self, process, code=0):
        printed = process.communicate(timeout=300)[0]
        assert process.returncode == code, printed
        return printed

    def weights(self):
        return load_file(self.folder / "models/adapter/adapter_model.safetensors")

    def curve(self, name):
        with open(self.folder / f"metrics/{name}_curve.csv") as file:
            return [[float(value) for value in row] for row in list(csv.reader(file))[1:]]


@pytest.fixture(scope="module")
def made(tmp_path_factory, small_base):
    trainings = []

    def make(name, **machine):
        trainings.append(Training(tmp_path_factory.mktemp(name) / "repository", small_base, **machine))
        return trainings[-1]

    yield make
    for process in (process for training in trainings for process in training.groups):
        for pid in [process, *children(process)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def children(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.2", 0))
        return taken.getsockname()[1]


JOIN = """
import sys
from stages._train.distributed import all_reduce_max, all_reduce_sum, join_processes
from stages.runtime.errors import UserError
try:
    join_processes(cuda=False)
    print(all_reduce_max(int(sys.argv[1])), all_reduce_sum(int(sys.argv[1]), 0.5), file=sys.stderr)
except UserError as error:
    print(error, file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "said"), [(2, "15 [17.0, 1.0]"), (3, "2 processes came together, 3 were asked for: machine.devices must")]
)
def test_processes_agree_if_there_are_as_many_as_were_asked_for(asked, said):
    port = str(free_port())
    group = {"WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1", "GROUP_RANK": "0", "TRAIN_PROCESSES": str(asked)}
    group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", JOIN, number],
            env=os.environ | group | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, number in enumerate(["2", "15"])
    ]
    for process in processes:
        assert process.communicate(timeout=100)[1].startswith(said)


def trained_here(training, **changes):
    """Trained in this process. changes: {function of stages.core.fused.layer: what takes its place}"""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(training.folder)
        patch.setenv("DVC_ROOT", str(training.folder))
        for name, function in changes.items():
            patch.setattr(layer, name, function)
        main(Stop(), load_params()).finish()
    return training


@pytest.fixture(scope="module")
def alone(made):
    return trained_here(made("alone"))


def assert_same_training(found, expected):
    assert found.weights().keys() == expected.weights().keys()
    for name, tensor in expected.weights().items():
        torch.testing.assert_close(found.weights()[name], tensor, rtol=1e-3, atol=1e-5)
    assert_same_curves(found, expected, 1e-4)


def assert_same_curves(found, expected, tolerance):
    for name in ("train", "validation"):
        ours, theirs = (torch.tensor(each.curve(name)) for each in (found, expected))
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=0)


def meets_at(process):
    """The address that a machine's process was given for the first machine, once it has begun."""
    while True:
        assert process.poll() is None, process.stdout.read()
        for child in children(process.pid):
            with contextlib.suppress(psutil.Error, KeyError):
                return psutil.Process(child).environ()["MASTER_ADDR"]
        time.sleep(0.1)


@pytest.mark.slow
def test_a_training_records_the_versions_of_its_libraries(alone):
    recorded = read_json(alone.folder / "metrics/train.json")["versions"]
    assert recorded == {name: importlib.metadata.version(name) for name in LIBRARIES}


@pytest.mark.slow
def test_a_sharded_base_gives_the_result_of_one_that_is_whole(made, alone):
    sharded = made("sharded", devices=2, sharding="fsdp")
    sharded.finish(sharded.begin())
    # The layers that keep PEFT's forward, since their weights are not whole, round otherwise than the stage's own.
    assert_same_training(sharded, trained_here(made("unfused"), fuse=lambda *_, **__: False))
    assert_same_curves(sharded, alone, 0.02)


@pytest.mark.slow
def test_two_machines_give_the_result_of_one_process_where_dvc_waits_for_it(made, alone):
    meet = {"nodes": 2, "rendezvous": f"127.0.0.2:{free_port()}"}
    helper, first = made("helper", **meet), made("first", **meet)
    helping, waiting = (
        helper.begin(TRAIN_ADDRESS="127.0.0.3"),
        first.begin(DVC_STAGE="train", TRAIN_ADDRESS="127.0.0.2"),
    )
    assert meets_at(helping) in {"127.0.0.2", "127.0.0.3"}
    printed = first.finish(waiting)
    assert helper.finish(helping) == ""
    assert helper.results() == {}
    assert f"train: {STEPS} steps, validation loss" in printed
    assert [line.partition(":")[0] for line in printed.splitlines()] == ["train"] * 2  # what is kept, and the end
    assert not list(first.folder.glob(".dvc/tmp/checkpoints/*"))
    assert_same_training(first, alone)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_two_processes_killed_or_stopped_go_on_to_the_bytes_of_two_that_were_not(made, sharding):
    whole = made("whole", devices=2, dropout=0.1, sharding=sharding)
    by_hand, *printed = whole.finish(whole.begin()).splitlines()
    assert by_hand.startswith("train: started by hand")
    assert [line.partition(":")[0] for line in printed] == ["train"] * 2  # what is kept, and the end

    stopped = made("stopped", devices=2, dropout=0.1, sharding=sharding)
    # Each process kills itself and nobody else in the fourth step, as if the machine went away.
    process = stopped.begin(fault="stages.runtime.watch:Watch.on_step_begin:4:SIGKILL")
    assert "was ended by SIGKILL. If nobody did that" in stopped.finish(process, code=1)
    assert stopped.checkpoints() == ["step-00000002"]

    # Both wait before step 5 until the process that DVC would have started has passed SIGTERM on to them.
    process = stopped.begin(fault="stages.runtime.watch:Watch.on_step_begin:3:SIGSTOP")
    while [state(child) for child in children(process.pid)] != ["T", "T"]:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    process.terminate()
    time.sleep(0.5)
    for child in children(process.pid):
        os.kill(child, signal.SIGCONT)
    printed = stopped.finish(process, code=128 + signal.SIGTERM)
    assert "train: continues from step 2\n" in printed
    assert printed.splitlines()[-2:] == [
        "train: SIGTERM: ends after this step, with a checkpoint",
        "train: stopped by SIGTERM. The next run with the same values continues from step 5",
    ]

    # The last step on two "machines", of which the second has no checkpoint of its own.
    meet = {"devices": 1, "nodes": 2, "rendezvous": f"127.0.0.2:{free_port()}", "sharding": sharding}
    second = made("second", dropout=0.1, **meet)
    stopped.change_sections({"machine": meet})
    helping = second.begin()
    assert "train: continues from step 5\n" in stopped.finish(stopped.begin(DVC_STAGE="train"))
    assert second.finish(helping) == ""
    assert stopped.results() == whole.results()
    assert not [*stopped.folder.glob(".dvc/tmp/checkpoints/*"), *second.folder.glob(".dvc/tmp/checkpoints/*")]
