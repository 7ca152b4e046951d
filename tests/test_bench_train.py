"""The benchmark of `train` runs, on a base of two layers and a few rows."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from datasets import Dataset

from bench import train
from bench._train import base
from stages.core.records import record_file
from tests.support.data_files import write_rows
from tests.support.project import ROOT
from tests.support.training import rows

READ = """
import json, sys
from bench import pipeline, train
modules = {"bench.train": train, "bench.pipeline": pipeline}
options = [vars(modules[module].read_options(rest)) for module, *rest in json.loads(sys.argv[1])]
print(json.dumps(options, default=str))
"""


@pytest.mark.slow
def test_the_script_for_a_gpu_asks_the_benchmarks_for_what_they_have(capfd):
    script = (ROOT / "bench/gpu.sh").read_text()
    stub = 'python() { shift; printf "%s\\n" "$@" --; }\n'
    subprocess.run(["sh", "-c", stub + script], env={"UNSLOTH": "/x y/python"}, check=True)
    calls = [call.splitlines() for call in capfd.readouterr().out.split("--\n") if call]
    asked = [call for call in calls if call[0].startswith("bench.")]
    assert [module for module, *_ in asked] == ["bench.train"] * 4 + ["bench.pipeline"]
    command = [sys.executable, "-c", READ, json.dumps(asked)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found[0]["unsloth"] == "/x y/python"
    assert {"plan", "kill", "devices", "merge"} <= set(found[-1]["parts"])
    assert len(asked) == len(calls)


def test_the_7b_has_rows_of_its_own_length_though_the_small_base_reads_fewer_tokens(
    small_base, params_of, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/base").symlink_to(small_base)
    (tmp_path / "data/clean").mkdir(parents=True)
    for split in ("train", "validation"):
        with record_file(tmp_path / f"data/clean/{split}.parquet") as file:
            answers = [f"{split} {number} " + "word " * 300 for number in range(20)]
            messages = [
                [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": each}] for each in answers
            ]
            columns = {"id": answers, "messages": messages, "source": ["a:1"] * 20}
            file.write_table(pyarrow.table(columns, schema=file.schema))
    params = params_of(tokenize={"max_length": 2048}, machine={"workers": 1})
    base.tokenize_rows(params, tmp_path / "rows")
    assert len(base.conversations("train", 2048, tmp_path / "rows")) == 20
    context = json.loads((small_base / "config.json").read_text())["max_position_embeddings"]
    assert max(map(len, Dataset.from_file(str(tmp_path / "rows/train.arrow"))["input_ids"])) > context


def test_what_a_benchmark_of_the_training_lacks_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        SystemExit, match=r"models/base/manifest\.json, data/tokenized/train\.arrow, .*`dvc repro tokenize"
    ):
        train.check_inputs("tiny")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="--config 7b needs a CUDA GPU"):
        train.check_inputs("7b")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(SystemExit, match=r"data/clean/train\.parquet, data/clean/validation\.parquet missing"):
        train.check_inputs("7b")


@pytest.mark.slow
def test_ours_and_trl_train_the_same_tokens_in_the_benchmark(small_base, tiny, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/base").symlink_to(small_base)
    (tmp_path / "params.yaml").write_text(tiny.read_text().replace("device: auto", "device: cpu"))
    (tmp_path / "data/tokenized").mkdir(parents=True)
    for split, count in (("train", 100), ("validation", 4)):
        write_rows(tmp_path / f"data/tokenized/{split}.arrow", rows(count))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    names = ["ours", "TRL, packing"]
    command = [sys.executable, "-m", "bench.train", "--curve", "1", "--steps", "5", "--only", *names]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = re.findall(r"(?m)^(.+): (\d+) trained tokens/s", done.stdout)
    assert [name for name, rate in said if int(rate)] == names
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line[0] == "|"]
    assert [row[0] for row in table[2:]] == names
    (*ours, trained), (*trl, of_trl) = ([float(cell.split()[0]) for cell in row[1:]] for row in table[2:])
    assert trained == of_trl > 0
    assert len(ours) == 5 + 1 and ours == pytest.approx(trl, rel=0.02)
    assert len(set(ours[:5])) == 5


@pytest.mark.slow
@pytest.mark.parametrize("by_dvc", [True, False])
def test_the_benchmark_of_the_pipeline_runs_by_dvc_and_stage_by_stage(tmp_path, by_dvc):
    """On the tiny profile. Stage by stage, each other way to write the merged weights is compared with the first."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "git").symlink_to(shutil.which("git"))
    path = os.pathsep.join([str(tools), *([str(Path(sys.executable).parent), os.environ["PATH"]] if by_dvc else [])])
    command = [sys.executable, "-m", "bench.pipeline", "--config", "tiny", "--steps", "2", "--folder", str(tmp_path)]
    command += ["--parts", *(["train"] if by_dvc else ["train", "merge", "evaluate"])]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"PATH": path}
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"(?m)^train: 2 steps", done.stdout)
    assert ("Running stage 'train'" in done.stdout) == by_dvc
    if by_dvc:
        return
    assert '"other values": 0' in done.stdout
    assert re.search(r"(?m)^evaluate@tuned: \d.*generated_tokens_per_second", done.stdout)
    assert len(re.findall(r"(?m)^ours +\d+ +\d+ +\d\.\d\d", done.stdout)) == 2
