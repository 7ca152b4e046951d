"""Changes, pages and kills in a clone in which the whole pipeline ran. test_whole_run.py looks at that run itself."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from ruamel.yaml import YAML

from stages.core.yaml_files import read_yaml
from tests.support.pipeline import ALL
from tests.support.project import ROOT, blocks
from tests.support.repository import Repository, running

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def repository(first_run, tmp_path_factory) -> Repository:
    """A clone in which everything has run once."""
    return first_run.clone(tmp_path_factory.mktemp("pipeline") / "clone", with_data=True)


def test_a_comment_or_the_machine_section_reruns_nothing(repository):
    params = repository.folder / "params.yaml"
    params.write_text("# a comment\n" + params.read_text())
    repository.change("machine.memory", "low")
    assert repository.ran("repro") == []
    repository.run("git", "checkout", "params.yaml")


def test_an_experiment_with_another_learning_rate_runs_training_and_what_follows_and_the_way_back_runs_no_training(
    repository,
):
    changed = repository.ran("exp", "run", "--set-param", "train.learning_rate=0.01")
    assert changed == ["train", "merge", "evaluate@tuned", "report"]
    learned = json.loads((repository.folder / "metrics.json").read_text())["evaluate"]["tuned"]["loss"]
    repository.change("train.learning_rate", 2e-3)
    back = repository.run("dvc", "repro")
    assert "Running stage 'train'" not in back
    assert "Stage 'train' is cached - skipping run, checking out outputs" in back
    assert json.loads((repository.folder / "metrics.json").read_text())["evaluate"]["tuned"]["loss"] != learned
    repository.run("git", "checkout", "--", ".")
    assert repository.ran("repro") == []


@pytest.mark.parametrize(
    "override",
    [
        *("data.limit=190", "tokenize.max_length=63", "merge.parity_rows=1"),
        *("evaluate.max_new_tokens=4", "report.samples=1", "machine.memory=low"),
    ],
)
def test_a_change_runs_what_tools_plan_says_it_would(repository, override):
    plan = repository.run("python", "-m", "tools.plan", "-S", override)
    planned = re.findall(r"(?m)^([a-z]\S*)  ", plan)
    first = [name for name in planned if re.search(rf"(?m)^{name} +{override.partition('=')[0]}: ", plan)]
    assert f"nothing to do for {', '.join(name for name in ALL if name not in planned)}\n" in plan or planned == ALL
    printed = repository.run("dvc", "exp", "run", "--set-param", override)
    ran = re.findall(r"(?m)^Running stage '(.+)':$", printed)
    same = re.findall(r"(?m)^Stage '(.+)' didn't change, skipping$", printed)
    assert set(first) <= set(ran), "what is changed itself runs"
    assert set(ran) | set(same) == set(ALL)
    assert [name for name in planned if name not in same] == ran, "what follows runs where the output before it differs"
    repository.run("git", "checkout", "--", ".")
    repository.run("dvc", "checkout")
    assert repository.ran("repro") == []


def test_an_edited_data_file_runs_download_data_again(repository):
    data = repository.folder / "data/source/rows.jsonl"
    original = data.read_text()
    data.write_text(original + "\n")  # a blank line: the rows are the same
    assert repository.ran("repro")[:1] == ["download_data"]
    assert "clean" not in repository.ran("repro")
    data.write_text(original)
    repository.run("dvc", "repro")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.learning_rate", "fast", "params.yaml: train.learning_rate is 'fast'"),
        ("evaluate.max_row", 5, "params.yaml: evaluate.max_row is not a known key"),
        ("data.path", "data/source/absent.jsonl", "data/source/absent.jsonl"),
    ],
)
def test_a_mistake_in_params_ends_at_once_with_one_message(repository, key, value, message):
    repository.change(key, value)
    printed = repository.run("dvc", "repro", "--force", "download_data", code=255)
    assert message in printed
    assert "Traceback" not in printed
    repository.run("git", "checkout", "params.yaml")


def test_a_bad_row_stops_clean_and_names_its_line(repository):
    data = repository.folder / "data/source/rows.jsonl"
    original = data.read_text()
    data.write_text("{broken\n" + original)
    printed = repository.run("dvc", "repro", code=255)
    assert "rows.jsonl:1" in printed
    assert "Traceback" not in printed
    assert "Running stage 'tokenize'" not in printed
    data.write_text(original)
    repository.run("dvc", "repro")


def test_the_merged_model_loads_with_nothing_of_ours(repository, tmp_path):
    code = (
        "import sys\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "chat = [{'role': 'user', 'content': 'Add 3 to a number.'}]\n"
        "inputs = tokenizer.apply_chat_template(chat, return_tensors='pt', return_dict=True)\n"
        "print(model.generate(**inputs, max_new_tokens=3, do_sample=False, pad_token_id=0).shape[1] > 3)\n"
    )
    merged = repository.folder / "models/merged"
    done = subprocess.run(
        [sys.executable, "-c", code, str(merged)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "True"


def readme_commands() -> list[str]:
    """The commands of README.md's code blocks, without their comments."""
    lines = (line for block in blocks("README.md", "bash") for line in block.splitlines())
    return [line.partition(" #")[0].strip() for line in lines if not line.startswith("#")]


def own_data_commands() -> list[str]:
    """The commands of README.md that lead from a file of one's own to its report."""
    commands = readme_commands()
    return commands[commands.index(". .venv/bin/activate") + 1 :][:3]


def test_every_command_of_the_readme_is_run_here_or_by_ci():
    run_by_ci = {"make run", "make test"}  # test-all has the tests of test
    clone = {"git clone <address of this repository> pipeline && cd pipeline"}
    the_same_without_make = {line for line in readme_commands() if line.startswith("python3 -m venv .venv && ")}
    assert len(the_same_without_make) == 2
    needs_a_gpu = {"python -m tools.profile mistral-7b && dvc repro"}
    own_data = {". .venv/bin/activate", *own_data_commands()}
    assert set(readme_commands()) - clone - the_same_without_make - needs_a_gpu - run_by_ci - own_data == {
        "dvc exp run -S train.learning_rate=1e-3",
        "dvc exp show --only-changed --hide-workspace --md --drop 'Created|stages|.*(/|[.].*[.])' "
        "--keep 'evaluate.tuned.(perplexity|chrf)$'",
        "dvc metrics diff --md",
        "dvc params diff --md",
        "dvc plots diff",
        "dvc repro",
        "python -m tools.plan -S clean.min_characters=9",
        "python -m tools.doctor",
        'python -m tools.generate --compare "Write the Python function add(a, b)."',
        "python -m tools.push_to_hub merged owner/name --dry-run",
    }


def test_the_readme_leads_from_a_file_of_ones_own_to_its_report(first_run, tmp_path):
    repository = first_run.clone(tmp_path / "clone", with_data=True)
    columns = {"question": "Double {} in Python.", "answer": "def f(x):\n    return 2 * x + {}"}
    rows = [{name: text.format(n) for name, text in columns.items()} for n in range(120)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    copy, add, run_and_show = own_data_commands()
    run, show = run_and_show.split(" && ")
    (other_columns,) = re.findall(r"add `(-S data.format.+?)`", (ROOT / "README.md").read_text())
    for command in (copy, add, f"{run} {other_columns}"):
        printed = repository.run("bash", "-euc", command, HOME=str(tmp_path))
    assert running(printed) == ["hash_code", *ALL[2:]]  # the first checks a new data.path
    assert "Double" in (repository.folder / "reports/report.md").read_text()
    assert "test rows" in repository.run(*show.split())


def test_the_readmes_commands_on_changes_work(repository):
    def said(beginning):
        (command,) = (line for line in readme_commands() if line.startswith(beginning))
        return repository.run(*shlex.split(command))

    repository.run("dvc", "exp", "remove", "--all-commits")  # those of other tests
    assert "clean.min_characters: 1 → 9" in said("python -m tools.plan")
    assert "✓ params.yaml: legal" in said("python -m tools.doctor")
    assert "model.safetensors" in said("python -m tools.push_to_hub")
    assert "Running stage 'train'" in said("dvc exp run -S train")
    table = said("dvc exp show")
    assert "train.learning_rate" in table and "evaluate.tuned.perplexity" in table
    assert max(map(len, table.splitlines())) < 200, "a person can read it"
    assert "evaluate.tuned.perplexity" in said("dvc metrics diff")
    assert "train.learning_rate" in said("dvc params diff")
    assert "index.html" in said("dvc plots diff")
    repository.run("git", "checkout", "--", ".")
    assert "Running stage" not in said("dvc repro")
    assert all(name in said("python -m tools.generate") for name in ("base", "tuned"))


def test_the_page_on_pull_requests_leads_through_a_review_and_a_conflict(repository, tmp_path):
    folder = tmp_path / "clone"
    shutil.copytree(repository.folder, folder, symlinks=True)
    clone = Repository(folder, tmp_path / "site-cache")
    clone.run("git", "branch", "--move", "main")
    clone.run("dvc", "remote", "add", "--default", "storage", str(tmp_path / "storage"))
    clone.commit()
    clone.run("git", "init", "--quiet", "--bare", str(tmp_path / "origin.git"))
    clone.run("git", "remote", "add", "origin", str(tmp_path / "origin.git"))
    change, conflict, compare = blocks("docs/pull-requests.md", "bash")
    printed = clone.run("bash", "-euc", change)
    assert "| `train.learning_rate` | `0.002` | `0.001` |" in printed
    assert "in pairs" in printed
    assert "❌ `dvc.lock" not in printed
    assert "Not shown" not in printed

    clone.run("git", "switch", "--quiet", "main")
    clone.change("merge.max_kl", 0.25)
    assert clone.ran("repro")[0] == "merge"
    clone.commit()
    clone.run("git", "switch", "--quiet", "slower-rate")
    merge, *rest = conflict.splitlines()
    said = clone.run(*merge.split(), code=1)
    assert "Merge conflict in dvc.lock" in said  # metrics.json is merged: another bound changes no figure
    clone.run("bash", "-euc", "\n".join(rest))
    assert read_yaml(folder / "params.yaml")["merge"]["max_kl"] == 0.25
    assert read_yaml(folder / "params.yaml")["train"]["learning_rate"] == 1e-3
    assert clone.run("git", "status", "--porcelain") == ""
    assert clone.ran("repro") == []
    printed = clone.run("python", "-m", "tools.review", "--base", "main")
    assert "ran with another state" not in printed
    assert "train.learning_rate" in printed
    assert "merge.max_kl" not in printed
    clone.run("bash", "-euc", compare)


def test_make_runs_the_commands_that_the_readme_gives_without_make():
    makefile = (ROOT / "Makefile").read_text()
    readme = (ROOT / "README.md").read_text()
    for command in ("dvc repro", "python -m stages.report --show", "pytest"):
        assert command.removeprefix("python ") in makefile
        assert command in readme
    checked, repro = (makefile.index(command) for command in ("-m tools.plan", "dvc repro"))
    assert checked < repro, "dvc repro reads params.yaml only if a stage runs"
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == "exec make test-all"
    (recipe,) = re.findall(r"(?m)^test: .*\n(\t.*)\n", makefile)
    assert re.search(rf'(?m)^test-all: .*\n{re.escape(recipe)} -m "not gpu"$', makefile), "what test runs, and more"


def test_the_page_on_own_data_leads_to_tokenized_rows_and_to_what_was_rejected(made):
    repository = made("own-data")
    rows = [{"prompt": f"Add {n} to a number.", "completion": f"def f(x):\n    return x + {n}"} for n in range(200)]
    rows[3]["completion"] = "no"
    rows[7] = rows[5]
    lines = [json.dumps(row) for row in rows]
    lines[11] = "{broken"
    (repository.folder / "data/source/answers.jsonl").write_text("\n".join(lines))
    for section, changes in YAML(typ="safe").load(blocks("docs/own-data.md", "yaml")[0]).items():
        for key, value in changes.items():
            repository.change(f"{section}.{key}", value)
    repository.change("clean.min_characters", 5)
    repository.change("clean.max_malformed_rows", 1)
    (repository.folder / "my-texts").mkdir()
    (repository.folder / "my-texts/a.txt").write_text("One day.\n")
    start, _, rejected, show = [repository.run("bash", "-euc", block) for block in blocks("docs/own-data.md", "bash")]
    assert (repository.folder / "data/source/texts.jsonl").read_text() == '{"text": "One day.\\n"}\n'
    assert re.findall(r"(?m)^Running stage '(.+)':$", start) == ALL[:5]
    found = {tuple(line.split()[:2]) for line in rejected.splitlines()}
    assert {("too_short", "answers.jsonl:4"), ("malformed", "answers.jsonl:12")} < found
    assert len(found) == len(found & {("duplicate", "answers.jsonl:6"), ("duplicate", "answers.jsonl:8")}) + 2 == 3
    assert re.search(r"\[INST\]Add \d+ to a number\.\[/INST\]«def f\(x\):\n    return x \+ \d+</s>»", show)


def test_the_python_of_the_page_on_serving_generates_with_the_merged_model_and_with_the_adapter(repository):
    for block in blocks("docs/serving.md", "python"):
        printed = repository.run("python", "-c", f"{block}\nassert len(ids) < output.shape[1] <= len(ids) + 64")
        assert "Traceback" not in printed


KILLS = [  # stage, where it is killed, what it or DVC has written by then. tests/test_train_faults.py has `train`
    ("hash_code", "stages.core.paths:write_text:4", ".code/clean.json"),
    ("download_data", "stages._download_data.formats:recognise:1", "data/.raw.partial/rows-00000.jsonl"),
    ("clean", "stages._clean.tally:Tally.reject:1", "data/.clean.partial/train.parquet"),
    ("download_model", "stages.core.paths:sha256:7", "models/.base.partial/model-00001-of-*.safetensors"),
    ("tokenize", "stages.core.records:read_batches:2", "data/.tokenized.partial/train.arrow"),
    ("merge", "stages._merge.stream:write_tensor:10", "models/.merged.partial/model-00001-of-*.safetensors"),
    ("evaluate@base", "stages.core.paths:write_text:4", "metrics/evaluate/base.predictions.jsonl"),  # 2: kept answers
    ("evaluate@tuned", "dvc.output:Output.commit:5", "metrics/evaluate/tuned.json"),  # DVC has cached one of its files
    ("report", "stages.core.paths:write_text:5", "metrics.json"),  # the whole result, of which DVC does not know
]


def test_killed_in_the_middle_of_each_stage_another_run_with_empty_caches_gives_every_output_the_same_hash(
    repository, made
):
    assert {stage for stage, _, _ in KILLS} == set(ALL) - {"train"}
    other = made("killed")
    for stage, fault, written in KILLS:
        if stage == "report":
            other.run("dvc", "repro", "evaluate")  # killed just now; what report calls would be counted in it, too
        printed = other.killed(stage, fault)
        assert running(printed)[-1] == stage, fault
        assert list(other.folder.glob(written)), fault
    assert other.ran("repro") == ["report"]
    ours, theirs = repository.hashes(), other.hashes()
    assert ours == theirs
    assert not [path for folder in ("data", "models", "metrics") for path in (other.folder / folder).rglob("*.partial")]
    assert other.ran("repro") == []


def test_the_hub_out_of_reach_ends_with_what_to_do(made):
    repository = made("offline")
    shutil.copy2(repository.folder / "tests/params.yaml", repository.folder / "params.yaml")
    repository.run("python", "-m", "tools.profile", "mistral-7b")
    repository.environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(repository.folder.parent / "hf")}
    repository.environment |= {"HF_HUB_OFFLINE": "0"}  # bench.train sets it in a process that imports it
    printed = repository.run("dvc", "repro", "download_model", code=255)
    assert "Traceback" not in printed
    assert all(word in printed for word in ("network", "HF_TOKEN", "licence", "model.source: path")), printed
