"""What docs/security.md claims and no other test holds. tests/test_docs.py sees that the tests it names exist."""

import ast
import json
import os
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from stages._download_data.files import path_rows
from stages.clean import clean
from stages.core.machine import resolve_machine
from stages.core.models import load_model
from stages.core.params import Params, load_params
from stages.core.paths import read_json
from stages.core.yaml_files import read_yaml
from stages.runtime.errors import UserError
from tests.support.cleaning import layout_of, write_raw
from tests.support.project import ROOT

PAGE = (ROOT / "docs/security.md").read_text()
CLAIMS = re.findall(r"(?m)^\| ([^|]+) \| (`test_[^|]+) \|$", PAGE)
CODE = sorted(path for folder in ("stages", "tools") for path in (ROOT / folder).rglob("*.py"))


def test_each_claim_of_the_page_names_its_tests():
    assert len(CLAIMS) > 15
    assert len({claim for claim, _ in CLAIMS}) == len(CLAIMS)
    for claim, tests in CLAIMS:
        assert not re.sub(r"`test_\w+::test_\w+`(, )?", "", tests), claim
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| `")]
    headings = {"| claim | held by |", "| file | rules | why it may |"}
    assert len([row for row in rows if row not in headings]) == len(CLAIMS), "no row without a test"


class Trap:
    """Its pickle writes a file when it is loaded."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.fixture
def trap(tmp_path):
    """Something that a pickle would do, and its code; neither may have happened in the end."""
    yield Trap(tmp_path / "it ran")
    assert not (tmp_path / "it ran").exists()


def test_the_trap_is_one(tmp_path):
    import torch

    torch.save(Trap(tmp_path / "it ran"), tmp_path / "pickle")
    torch.load(tmp_path / "pickle", weights_only=False)
    assert (tmp_path / "it ran").exists()


@pytest.mark.parametrize("name", ["rows.pkl", "rows.tar.gz", "rows.zip", "rows.py", "rows.jsonl.tar", "rows.npy"])
def test_no_pickle_archive_or_script_is_taken_for_rows(tmp_path, name):
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(UserError, match="ends in none of"):
        list(path_rows(tmp_path / name, None))
    with pytest.raises(UserError, match="holds no data"):
        list(path_rows(tmp_path, None))


def test_a_pickle_in_the_schema_of_a_parquet_file_is_not_loaded(tmp_path, trap):
    import pickle

    metadata = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(trap)}
    schema = pyarrow.schema([pyarrow.field("text", pyarrow.string(), metadata=metadata)])
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}, schema=schema), tmp_path / "rows.parquet")
    assert [row["row"] for row in path_rows(tmp_path / "rows.parquet", None)] == [{"text": "a"}]


FETCH = """
import sys
from stages.core.hub import fetch
print(fetch("owner/name", sys.argv[1], "dataset", ["*.jsonl"], "data"))
"""


@pytest.mark.parametrize("name", ["../../../../../../evil.jsonl", "a/../../../../../../evil.jsonl", "/tmp/evil.jsonl"])
def test_a_file_of_the_hub_that_leads_out_of_its_folder_is_refused(hub, python_at, tmp_path, name):
    hub.files["datasets/owner/name"] = {name: b'{"a": 1}\n'}
    done = python_at(hub.url, FETCH, hub.commit)
    assert "UserError" in done.stderr
    assert "(ValueError)" in done.stderr, "refused, and not for want of the file"
    assert not list(tmp_path.rglob("*evil*"))
    assert not list(tmp_path.parent.glob("evil*"))
    assert not Path("/tmp/evil.jsonl").exists()


NAMES = [
    ("lora", "init_from", "../other"),
    ("lora", "init_from", "/etc"),
    ("clean", "decontaminate", ["../rows.jsonl"]),
    ("data", "files", "../*.jsonl"),
    ("data", "files", "/etc/*.jsonl"),
    ("data", "sha256", "../" * 21 + "a"),
    ("report", "gates", [{"metric": "x", "better": "lower", "bound": None, "against": "--output=/tmp/x"}]),
    ("machine", "rendezvous", "host:1; id"),
]


@pytest.mark.parametrize(("section", "key", "value"), NAMES)
def test_a_name_in_params_leads_nowhere_else(tiny, section, key, value):
    values = read_yaml(tiny)
    values[section][key] = value
    with pytest.raises(ValueError, match=key):
        Params.model_validate(values)


def test_code_beside_the_weights_is_never_run(small_base, tmp_path, trap):
    """download_model refuses such a folder; this is one that was put in its place."""
    from transformers import AutoTokenizer

    folder = tmp_path / "model"
    folder.mkdir()
    for path in small_base.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(trap.file)!r})\n")
    for name, classes in {"config.json": ("AutoConfig", "AutoModelForCausalLM"), "tokenizer_config.json": ()}.items():
        content = read_json(folder / name)
        content["auto_map"] = dict.fromkeys(classes, "evil.Model") | {"AutoTokenizer": ["evil.Model", "evil.Model"]}
        (folder / name).write_text(json.dumps(content))
    assert load_model(folder, resolve_machine(load_params(ROOT / "tests/params.yaml").machine)).num_parameters() > 0
    assert AutoTokenizer.from_pretrained(folder).encode("text")


def test_nothing_asks_for_code_of_others():
    given = [
        (path.name, ast.unparse(keyword.value))
        for path in CODE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "trust_remote_code"
    ]
    assert {value for _, value in given} == {"False"}


def test_a_pickled_adapter_is_not_loaded(small_base, tmp_path, monkeypatch, params_of, trap):
    import torch
    from peft import LoraConfig, get_peft_model

    from tools._generate.speakers import load_pair

    monkeypatch.chdir(small_base.parents[1])
    params = params_of(machine={"device": "cpu"})
    model = get_peft_model(
        load_model(small_base, resolve_machine(params.machine)),
        LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )
    model.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter/adapter_model.safetensors").unlink()
    torch.save({"weight": trap}, tmp_path / "adapter/adapter_model.bin")
    with pytest.raises(UserError, match=r"lacks adapter_model\.safetensors"):
        load_pair(str(tmp_path / "adapter"), params, None)


def test_a_data_set_colours_no_terminal_through_an_error(tmp_path, params_of):
    shards = write_raw([{"source": "a\x1b]0;title\x07.jsonl:1", "row": {"\x1b[31mcolumn": "x"}}], tmp_path / "raw")
    section = params_of(clean={"max_malformed_rows": 0}).clean
    (tmp_path / "clean").mkdir()
    with pytest.raises(UserError) as error:
        clean(shards, section, layout_of("prompt-completion"), tmp_path / "clean", 1)
    assert "\\x1b[31mcolumn" in str(error.value)
    assert "a\\x1b]0;title\\x07.jsonl:1" in str(error.value)
    assert "\x1b" not in str(error.value)


EXCEPTIONS = re.findall(r"(?m)^\| `((?:stages|tools)/\S+)` \| ((?:S\d+(?:, )?)+) \|", PAGE)


def test_each_exception_from_the_security_rules_stands_on_the_page_with_its_reason():
    allowed = {path: re.findall(r"# noqa: (.*)", path.read_text()) for path in CODE}
    found = {str(path.relative_to(ROOT)): set(re.findall(r"\bS\d{3}\b", "\n".join(allowed[path]))) for path in CODE}
    found = {path: rules for path, rules in found.items() if rules}
    assert {path: set(rules.split(", ")) for path, rules in EXCEPTIONS} == found


def test_the_linter_looks_for_what_bandit_does():
    import tomllib

    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert "S" in lint["select"]
    assert not [rule for rule in lint["ignore"] if re.fullmatch(r"S\d*", rule)]
    allowed = {folder for folder, rules in lint["per-file-ignores"].items() if any(r.startswith("S") for r in rules)}
    assert not [folder for folder in allowed if folder.startswith(("stages", "tools"))]


def test_what_runs_a_forks_code_has_no_secret_and_reads_alone():
    """pull_request runs a fork's code; pull_request_target has rights, and test_workflows.py sees that it runs none."""
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        workflow, text = read_yaml(path), path.read_text()
        assert "secrets." not in text, path.name
        if "self-hosted" in text:
            assert list(workflow["on"]) == ["workflow_dispatch"], f"{path.name}: a fork's code would reach your machine"
        if "pull_request" in workflow["on"]:
            assert workflow["permissions"] == {"contents": "read"}
            assert not [job for job in workflow["jobs"].values() if "permissions" in job]
            assert "github.token" not in text
