"""models/merged behind `transformers serve`, asked with OpenAI's own client, answers as tools.generate does."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import openai
import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file

from stages.core.machine import resolve_machine
from stages.core.models import load_model
from stages.core.params import Prompt, load_params
from stages.core.paths import ADAPTER, BASE, MERGED, PARAMS
from stages.core.prompts import Encoder
from tests.support.merging import make_adapter, merged_folder
from tests.support.project import ROOT, blocks
from tools.generate import main, read_options

pytestmark = pytest.mark.slow

PATIENCE = 300  # seconds, where the cores are shared
COUNT = 24
TALK = [
    {"role": "user", "content": "Add 3 to a number."},
    {"role": "assistant", "content": "def add(x):\n    return x + 3"},
    {"role": "user", "content": "And with 🧿?"},
    {"role": "assistant", "content": "def zähle(🧿):\n\treturn 7"},
]


def learn(params) -> None:
    """Trains the adapter until both answers of TALK come by themselves, and end."""
    encoded = Encoder(Prompt(template="v3", system=None)).conversation(TALK)
    model = PeftModel.from_pretrained(
        load_model(BASE, resolve_machine(params.machine), params.quantization), ADAPTER, is_trainable=True
    )
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    inputs, labels = torch.tensor([encoded.input_ids]), torch.tensor([encoded.labels])
    for _ in range(40):
        model(input_ids=inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    weights = {name.replace(".default", ""): each.data for name, each in trained.items()}
    save_file(weights, ADAPTER / "adapter_model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def place(small_base, params_of, tmp_path_factory):
    """A folder with params.yaml and a models/merged that has learned TALK."""
    folder = tmp_path_factory.mktemp("served")
    params = params_of(machine={"device": "cpu"})
    shutil.copy(ROOT / "tests/params.yaml", folder / PARAMS)
    with contextlib.chdir(folder):
        shutil.copytree(small_base, BASE)
        make_adapter(BASE, params, ADAPTER, r=16, lora_alpha=32)
        learn(params)
        merged_folder(params, MERGED)
        yield folder


def wait_for(server: subprocess.Popen, address: str, log: Path) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), 5):
            return
        time.sleep(0.2)
    raise AssertionError(f"no answer in {PATIENCE} s: {log.read_text()}")


@pytest.fixture(scope="module")
def client(place, tmp_path_factory):
    """A client of `transformers serve models/merged`, which is started as docs/serving.md says and reaches no other
    machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("log") / "serve.log"
    unreachable = {f"{kind}_PROXY": "http://127.0.0.1:9" for kind in ("HTTP", "HTTPS", "ALL")}
    environment = {
        **os.environ,
        **unreachable,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",  # as many as here, for the same roundings
    }
    lines = [line for block in blocks("docs/serving.md", "bash") for line in block.splitlines()]
    (command,) = [line for line in lines if line.startswith("transformers serve models/merged")]
    with open(log, "wb") as output:
        server = subprocess.Popen(
            command.replace("--port 8000", f"--host 127.0.0.1 --port {port}").split(),
            cwd=place,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(server, address, log)
        http = httpx2.Client(trust_env=False)  # whatever proxy is set, this machine is asked itself
        yield openai.OpenAI(base_url=f"{address}/v1", api_key="none", timeout=PATIENCE, max_retries=0, http_client=http)
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(30)


ASKED = {
    "that it learned": TALK[:1],
    "after an answer": TALK[:3],
    "with a system prompt": [{"role": "system", "content": "Be brief."}, *TALK[:1]],
    "with a system prompt in a later turn": [{"role": "system", "content": "Be brief."}, *TALK[:3]],
    "of another kind": [{"role": "user", "content": "Wie heißt du?\n\n  <b>x</b> "}],
}


@pytest.fixture(scope="module")
def ours(place):
    """{kind of conversation: what tools.generate answers}."""
    rows = [{"kind": kind, "messages": messages} for kind, messages in ASKED.items()]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    params = load_params()
    files = ["--input", "rows.jsonl", "--output", "answers.jsonl"]
    main(read_options(params, [*files, "--batch-size", "1", "--max-new-tokens", str(COUNT)]), params)
    answers = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    return {row["kind"]: row for row in answers}


def test_what_was_learned_is_answered_and_ended(ours):
    assert ours["that it learned"]["answer"] == TALK[1]["content"]
    assert ours["after an answer"]["answer"] == TALK[3]["content"]
    assert ours["that it learned"]["answer_ended"]


def test_the_server_answers_as_tools_generate_does(client, ours):
    for kind, row in ours.items():
        found = client.chat.completions.create(
            model="models/merged", messages=ASKED[kind], max_tokens=COUNT, temperature=0
        )
        (choice,) = found.choices
        assert choice.message.content == row["answer"], kind
        assert choice.finish_reason == ("stop" if row["answer_ended"] else "length")


def test_a_streamed_answer_is_the_same(client, ours):
    chunks = client.chat.completions.create(
        model="models/merged", messages=TALK[:3], max_tokens=COUNT, temperature=0, stream=True
    )
    parts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(parts) == ours["after an answer"]["answer"]
    assert len(parts) > 3
