"""Runs tools.push_to_hub against the stand-in hub: what arrives there, and what never leaves this machine."""

import json
import pickle
import shutil
from pathlib import Path

import numpy
import pytest
from huggingface_hub import ModelCard
from safetensors.numpy import save

from stages._download_model.checks import TOKENIZER_EXTRAS, TOKENIZER_FILES
from stages.core.paths import MERGED
from stages.core.prompts import CHAT_TEMPLATES
from stages.runtime.errors import UserError
from tests.support.hub import TOKEN
from tests.support.project import ROOT
from tests.support.repository import Repository
from tools._push_to_hub.files import CARD, adapter_card, file_list, files_of, left_over, prepare_upload
from tools.push_to_hub import changed_paths, read_options

CODE = """
import os, runpy, sys
os.chdir(sys.argv.pop(1))
runpy.run_module("tools.push_to_hub", run_name="__main__", alter_sys=True)
"""
# The same without Git and DVC.
SEND = """
from stages.runtime.command import explained
from tools.push_to_hub import hub_errors, prepare_upload, push
with explained("push_to_hub", online=True), hub_errors("owner/name"):
    push("owner/name", prepare_upload("merged", "c" * 40, None), False)
"""
CARD_TEXT = """---
base_model: mistralai/Mistral-7B-v0.3
base_model_relation: merge
library_name: transformers
pipeline_tag: text-generation
tags:
- mistral
- qlora
---

# Mistral-7B-v0.3, fine-tuned

## Results
Some \\d figures.

## Use

The weights are those of models/merged, a plain folder for transformers.

## Parameters

What params.yaml said of the result.
"""
WEIGHTS = [save({"x": numpy.full(300, number, numpy.float32)}) for number in range(3)]
MODELS = {
    "merged": {
        "config.json": b"{}",
        "chat_template.jinja": b"template",
        "model-00001-of-00002.safetensors": WEIGHTS[0],
        "model-00002-of-00002.safetensors": WEIGHTS[1],
        "model.safetensors.index.json": b"{}",
        "README.md": b"the stage's own",
    },
    "adapter": {"adapter_config.json": b"{}", "adapter_model.safetensors": WEIGHTS[2], "base_values.json": b"{}"},
}
DVC = """stages:
  train:
    cmd: cp -r from/adapter models/adapter
    deps: [from/adapter, code.py]
    outs: [models/adapter]
  merge:
    cmd: cp -r from/merged models/merged
    deps: [from/merged]
    outs: [models/merged]
  report:
    cmd: mkdir reports && cp from/model-card.md reports
    deps: [from/model-card.md]
    outs: [reports]
"""


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A repository with two models and a card, which came from DVC and are committed."""
    folder = tmp_path_factory.mktemp("push") / "repository"
    fill(
        folder, {f"from/{model}/{name}": content for model, files in MODELS.items() for name, content in files.items()}
    )
    card = {"from/model-card.md": CARD_TEXT.encode()}
    fill(folder, card | {"dvc.yaml": DVC.encode(), "code.py": b"", ".gitignore": b"/models\n/reports\n"})
    shutil.copy(ROOT / "tests/params.yaml", folder / "params.yaml")
    repository = Repository(folder)
    repository.init()
    (folder / "models").mkdir()
    repository.run("dvc", "repro", "--quiet")
    repository.commit()
    return repository


@pytest.fixture
def push(made, tmp_path, hub, python_at):
    """push(*options) → all that was printed, in a copy of the repository, which is push.repository."""
    repository = made.copied(tmp_path / "repository")

    def run(*options, code=0, url=None, **variables):
        quiet = {name: repository.environment[name] for name in ("DVC_NO_ANALYTICS", "DVC_SITE_CACHE_DIR")}
        quiet |= {"HF_HUB_DISABLE_XET": "1"}
        done = python_at(url or hub.url, CODE, str(repository.folder), *options, **quiet | variables)
        printed = done.stdout + done.stderr
        assert done.returncode == code, printed
        assert "Traceback" not in printed
        return printed

    run.repository, run.folder = repository, repository.folder
    return run


@pytest.mark.slow
def test_the_merged_model_arrives_whole_with_its_card_in_a_private_repository(push, hub):
    printed = push("merged", "owner/name")
    arrived = hub.files["models/owner/name"]
    expected = {**MODELS["merged"], "README.md": CARD_TEXT.encode(), ".gitattributes": b""}
    assert arrived == expected
    assert hub.received.private == {"owner/name": True}
    assert hub.received.tokens == {f"Bearer {TOKEN}"}
    commit = push.repository.run("git", "rev-parse", "HEAD").strip()
    (made,) = hub.received.commits
    assert made["summary"] == f"models/merged of Git commit {commit[:12]}"
    assert made["description"] == f"Git commit {commit}"
    assert printed.rstrip().endswith(f"{hub.url}/owner/name/commit/{'d' * 40}")
    assert len(hub.received.sent) == 2  # the weights, in the large file storage


@pytest.mark.slow
def test_a_later_upload_replaces_the_model_and_leaves_other_files(push, hub):
    push("merged", "owner/name")
    others = dict.fromkeys(("LICENSE", "notes.json", "onnx/config.json", "eval_results/2024.json"), b"{}")
    hub.files["models/owner/name"] |= others
    printed = push("adapter", "owner/name")
    arrived = hub.files["models/owner/name"]
    assert arrived.keys() == {*MODELS["adapter"], "README.md", "chat_template.jinja", ".gitattributes", *others}
    assert "removed config.json, model-00001-of-00002.safetensors" in printed
    assert arrived["chat_template.jinja"].decode() == CHAT_TEMPLATES["v3"]
    again = push("adapter", "owner/name")
    assert "earlier upload" not in again
    assert len(hub.received.sent) == 3


@pytest.mark.slow
def test_a_public_repository_must_be_asked_for(push, hub):
    hub.files["models/owner/open"] = {}
    assert "owner/open is public. Use --public" in push("merged", "owner/open", code=1)
    assert hub.received.commits == []
    push("merged", "owner/open", "--public")
    push("merged", "owner/new", "--public")
    assert hub.received.private == {"owner/new": False}
    assert len(hub.received.commits) == 2


@pytest.mark.slow
def test_a_dry_run_lists_files_and_sizes_and_asks_nobody(push, hub, closed_port):
    printed = push("adapter", "owner/name", "--dry-run", url=closed_port, HF_TOKEN="", HF_HUB_OFFLINE="1")
    assert f"{len(WEIGHTS[2]):,} bytes  adapter_model.safetensors" in printed
    assert "models/adapter of Git commit" in printed
    assert "→ owner/name (private)" in printed
    assert hub.requests == []


@pytest.mark.slow
def test_what_is_not_of_the_commit_is_refused_but_for_force(push, hub):
    (push.folder / "code.py").write_text("x = 1\n")
    assert "code.py differs from the Git commit. Commit it, or use --force" in push("merged", "owner/name", code=1)
    push.repository.run("git", "commit", "--quiet", "--all", "--message", "code")
    listed = push("merged", "owner/name", "--dry-run", code=1)
    first, *files = listed.splitlines()
    assert first.startswith("push_to_hub: `dvc status` says that code.py changed since the results were made. Run")
    assert any(line.endswith(" bytes  model-00001-of-00002.safetensors") for line in files)
    assert hub.requests == []
    push("merged", "owner/name", "--force")
    (made,) = hub.received.commits
    assert made["summary"].endswith(" and changes")
    assert "Not just of that commit: `dvc status` says that code.py changed" in made["description"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, {f"models/{model}/{name}": text for model, files in MODELS.items() for name, text in files.items()})
    fill(tmp_path, {str(CARD): CARD_TEXT.encode()})
    shutil.copy(ROOT / "tests/params.yaml", tmp_path / "params.yaml")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        ({"/api/repos/create": 403}, {}, "the hub refuses it (HTTP 403). Check the owner and the token: set HF_TOKEN"),
        ({"/commit/main": 413}, {}, "the hub answers HTTP 413"),
        ({"/api/validate-yaml": 400}, {}, "the hub does not take the files or reports/model-card.md's block of YAML"),
        ({}, {"HF_TOKEN": ""}, "there is no token: set HF_TOKEN to a token that may write"),
        ({}, {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        (None, {}, "the hub cannot be reached (ConnectError)"),
    ],
)
def test_what_the_hub_or_the_network_does_is_said_with_advice(place, hub, closed_port, python_at, case):
    refused, variables, words = case
    hub.received.refuse = refused or {}
    url = closed_port if refused is None else hub.url
    done = python_at(url, SEND, **{"HF_HUB_DISABLE_XET": "1"} | variables)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["training_args.bin", "old/optimizer.pt", "x.pkl"])
def test_a_pickle_is_refused(place, name):
    fill(MERGED, {name: pickle.dumps(1)})
    with pytest.raises(UserError, match=f"{name} may be a pickle, which runs code"):
        files_of(MERGED, "merge")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (".env", b"HF_TOKEN=x", "is none of the pipeline's files"),
        ("notes.txt", b"x", "is none of the pipeline's files"),
        ("other.safetensors", pickle.dumps(1), "is no safetensors file"),
    ],
)
def test_what_the_pipeline_did_not_write_is_refused(place, name, content, words):
    fill(MERGED, {name: content})
    with pytest.raises(UserError, match=f"{name} {words}"):
        files_of(MERGED, "merge")


def test_a_tokenizer_of_the_bases_own_goes_along(place):
    fill(MERGED, {"tokenizer.model": b"pieces", "tokenizer.model.v3": b"pieces"})
    assert {"tokenizer.model", "tokenizer.model.v3"} <= files_of(MERGED, "merge").keys()


@pytest.mark.parametrize("model", MODELS)
def test_of_what_is_there_only_the_pipelines_own_files_may_go(place, model):
    stranger = {"notes.json", "onnx/config.json", "eval_results/2024.json", "consolidated.safetensors", "LICENSE"}
    earlier = {*MODELS["merged"], *MODELS["adapter"], *TOKENIZER_FILES, *TOKENIZER_EXTRAS, "generation_config.json"}
    upload = prepare_upload(model, "c" * 40, None)
    assert set(left_over([*earlier, *stranger], upload)) == earlier - upload.files.keys()


def test_what_is_missing_is_named_with_what_makes_it(place):
    shutil.rmtree(MERGED)
    with pytest.raises(UserError, match=r"models/merged is missing. `dvc repro merge` makes it"):
        prepare_upload("merged", "c" * 40, None)
    CARD.unlink()
    with pytest.raises(UserError, match=r"reports/model-card.md is missing. `dvc repro report` makes it"):
        prepare_upload("adapter", "c" * 40, None)
    for path in Path("models/adapter").glob("*.safetensors"):
        path.unlink()
    with pytest.raises(UserError, match="models/adapter has no weights"):
        prepare_upload("adapter", "c" * 40, None)


def test_links_to_the_cache_are_files_as_any(place):
    (place / "cache").write_bytes(WEIGHTS[0])
    (MERGED / "model-00001-of-00002.safetensors").unlink()
    (MERGED / "model-00001-of-00002.safetensors").symlink_to(place / "cache")
    upload = prepare_upload("merged", "c" * 40, None)
    assert len(upload.files) == len(MODELS["merged"])
    sizes = [int(line.split()[0].replace(",", "")) for line in file_list(upload).splitlines()]
    (place / "cache").rename(place / "elsewhere")
    with pytest.raises(UserError, match="model-00001-of-00002.safetensors is a link to a missing file"):
        files_of(MERGED, "merge")
    assert sizes[-1] == sum(sizes[:-1]) == sum(map(len, MODELS["merged"].values())) - 15 + len(CARD_TEXT.encode())


def test_the_adapters_card_says_that_it_is_one():
    card = ModelCard(adapter_card(CARD_TEXT, "v3"))
    assert card.data.to_dict() == ModelCard(CARD_TEXT).data.to_dict() | {
        "library_name": "peft",
        "base_model_relation": "adapter",
    }
    assert "models/merged, a plain folder" not in card.text
    assert "This is the adapter alone" in card.text
    assert [line for line in card.text.splitlines() if line.startswith("## ")] == [
        *("## Results", "## Use", "## Parameters")
    ]
    local = adapter_card(
        CARD_TEXT.replace("base_model: mistralai/Mistral-7B-v0.3\nbase_model_relation: merge\n", ""), "v1"
    )
    assert "base_model" not in ModelCard(local).data.to_dict()
    assert "instruct format v1" in local


def test_the_reports_card_has_the_section_that_the_adapters_replaces():
    assert "\n## Use\n" in (ROOT / "stages/_report/model-card.md.j2").read_text()


def test_only_changes_make_results_stale_and_not_what_is_missing():
    status = {
        "train": [{"changed deps": {"models/base": "deleted", "stages/train.py": "modified"}}, "changed command"],
        "merge": [{"changed deps": {"params.yaml": {"merge.base": "modified"}}}],
        "download_model": [{"changed outs": {"models/base": "deleted"}}],
    }
    assert changed_paths(status) == ["params.yaml", "stages/train.py", "train"]
    assert changed_paths({}) == []
    assert changed_paths(json.loads('{"download_model": [{"changed outs": {"models/base": "deleted"}}]}')) == []


@pytest.mark.parametrize("name", ["name", "owner/name/more", "owner/na me", "../x/y"])
def test_a_repository_is_owner_and_name(name, capsys):
    with pytest.raises(SystemExit):
        read_options(["merged", name])
    assert "is not owner/name" in capsys.readouterr().err
