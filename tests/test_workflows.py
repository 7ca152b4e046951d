"""The workflows in .github: a linter finds nothing, and their shell steps do what they say, in clones with Git alone.

`gh` is a stand-in that keeps comments and statuses in a folder; Git, DVC and its remote are real.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from stages.core.yaml_files import read_yaml
from tests.support.project import ROOT
from tests.support.requirements import pins, third_party
from tests.support.small_run import LOSSES, ROWS, SmallRun, rows_of

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
SCRIPTS = sorted((ROOT / ".github/scripts").glob("*.sh"))
BOT = "github-actions[bot]"

# What of GitHub's API the scripts use. Every call is recorded with whether it had the token.
GH = """
import json, os, pathlib, re, sys
state = pathlib.Path(os.environ["GH_STATE"])
arguments = sys.argv[1:]
with open(state / "calls", "a") as calls:
    calls.write(json.dumps(arguments) + "\\n")
assert os.environ.get("GH_TOKEN") == "the-token", "gh: no token"
if arguments[:2] == ["workflow", "run"]:
    sys.exit()
assert arguments.pop(0) == "api", arguments
method, path, fields = "GET", None, {}
while arguments:
    word = arguments.pop(0)
    if word == "--method":
        method = arguments.pop(0)
    elif word in ("-f", "-F"):
        name, _, value = arguments.pop(0).partition("=")
        fields[name] = pathlib.Path(value[1:]).read_text() if word == "-F" and value.startswith("@") else value
    elif word not in ("--silent", "--paginate"):
        path = word.partition("?")[0].removeprefix("repos/owner/name/")
comments = json.loads((state / "comments").read_text())
if path == "pulls":
    wanted = fields["head"] == "owner:branch"
    print(json.dumps([{"number": 7}] if wanted else []))
elif path == "pulls/7":
    print(json.dumps({"number": 7, "base": {"ref": "main"}}))
elif method == "GET" and path == "issues/7/comments":
    for start in range(0, max(1, len(comments)), 2):  # a page after the other
        print(json.dumps(comments[start:start + 2]), end="")
elif method == "POST" and path == "issues/7/comments":
    comments.append({"id": 100 + len(comments), "user": {"login": "github-actions[bot]"}, "body": fields["body"]})
elif method == "PATCH" and (found := re.fullmatch(r"issues/comments/(\\d+)", path)):
    next(each for each in comments if each["id"] == int(found[1]))["body"] = fields["body"]
elif method == "POST" and (found := re.fullmatch(r"statuses/([0-9a-f]{40})", path)):
    assert len(fields["description"]) <= 140
    with open(state / "statuses", "a") as statuses:
        statuses.write(json.dumps({"commit": found[1]} | fields) + "\\n")
else:
    sys.exit(f"gh: {method} {path} is not known here")
(state / "comments").write_text(json.dumps(comments))
"""


class Hub:
    """A bare repository as the server keeps it, and the state of the stand-in gh."""

    def __init__(self, run: SmallRun, folder: Path) -> None:
        self.repository, self.folder = run, folder
        self.origin, self.state = folder / "origin.git", folder / "gh"
        run.run("git", "clone", "--quiet", "--bare", str(run.folder), str(self.origin))
        run.run("git", "remote", "add", "origin", str(self.origin))
        run.run("git", "fetch", "--quiet", "origin")
        (folder / "bin").mkdir()
        self.state.mkdir()
        (self.state / "comments").write_text("[]")
        (folder / "bin/gh").write_text(f"#!{sys.executable}\n{GH}")
        (folder / "bin/gh").chmod(0o755)

    def clone(self, name, branch="main"):
        """As actions/checkout leaves it."""
        self.repository.run(
            "git", "clone", "--quiet", "--branch", branch, str(self.origin), str(self.folder / name), folder=self.folder
        )
        return self.folder / name

    def script(self, name, *arguments, folder, token=True, check=True):
        temp = self.folder / "temp"
        temp.mkdir(exist_ok=True)
        environment = self.repository.environment | {
            "GH_STATE": str(self.state),
            "RUNNER_TEMP": str(temp),
            "GITHUB_REPOSITORY": "owner/name",
            **({"GH_TOKEN": "the-token"} if token else {}),
        }
        environment["PATH"] = f"{self.folder / 'bin'}:{environment['PATH']}"
        environment = {name: value for name, value in environment.items() if "AUTHOR" not in name}
        return subprocess.run(
            [f".github/scripts/{name}", *arguments],
            cwd=folder,
            env=environment,
            check=check,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def read(self, name):
        path = self.state / name
        if name == "comments":
            return json.loads(path.read_text())
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def made_once(small_run, tmp_path_factory):
    """The small run with this repository's own code in it, as main."""
    run = small_run.copied(tmp_path_factory.mktemp("workflows") / "repository")
    for part in ("stages", "tools", ".github/scripts"):
        shutil.copytree(ROOT / part, run.folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    run.commit("the code")
    return run


@pytest.fixture
def hub(made_once, tmp_path):
    copied = made_once.copied(tmp_path / "repository")
    hub = Hub(copied, tmp_path)
    copied.run("git", "switch", "--quiet", "--create", "branch")
    return hub


def linter():
    found = shutil.which("zizmor", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found, "zizmor is not installed: pip install -r requirements-dev.txt"
    return found


def test_the_workflow_linter_finds_nothing():
    command = [linter(), "--offline", "--strict-collection", "--no-progress", "--color", "never", ROOT / ".github"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No findings to report" in done.stdout + done.stderr


@pytest.mark.parametrize("flaw", ["permission: {contents: read}", "permissions: write-all"])
def test_the_workflow_linter_sees_a_misspelt_key_and_too_many_rights(flaw, tmp_path):
    folder = tmp_path / ".github/workflows"
    folder.mkdir(parents=True)
    text = (ROOT / ".github/workflows/ci.yml").read_text()
    (folder / "ci.yml").write_text(text.replace("permissions: {contents: read}", flaw))
    command = [linter(), "--offline", "--strict-collection", "--no-progress", folder]
    assert subprocess.run(command, capture_output=True, check=False, timeout=120).returncode != 0


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_explains_itself_and_refuses_what_it_does_not_know_before_it_starts(script, tmp_path):
    def started(*arguments):
        environment, command = {"PATH": "/usr/bin:/bin", "RUNNER_TEMP": str(tmp_path)}, [script, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True)

    head = [line.removeprefix("# ") for line in script.read_text().splitlines()[1:] if line.startswith("# ")]
    explained = started("--help")
    assert (explained.returncode, explained.stderr) == (0, "")
    assert explained.stdout.splitlines()[0] == head[0]
    assert "set -" not in explained.stdout
    refused = started("--nonsense")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"{script.stem}: ") and "--help explains it" in refused.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_parses_can_be_started_and_stops_at_its_first_failure(script):
    subprocess.run(["bash", "-n", script], check=True, timeout=60)
    assert os.access(script, os.X_OK)
    assert "\nset -euo pipefail\n" in script.read_text()


def test_every_shell_step_of_a_workflow_is_a_script_or_a_target_of_make_that_exists():
    targets = set(re.findall(r"(?m)^([.\w/-]+):", (ROOT / "Makefile").read_text()))
    for workflow in WORKFLOWS:
        steps = [step for job in read_yaml(workflow)["jobs"].values() for step in job["steps"]]
        for step in filter(lambda step: "run" in step, steps):
            command = re.sub(r'^PATH="\S+" ', "", step["run"])
            name, *arguments = command.split()
            assert (name == "make" and set(arguments) <= targets) or ROOT / name in SCRIPTS, (workflow.name, command)
            assert "${{" not in command, "an expression in a shell step is pasted into it"


def test_the_workflow_with_rights_checks_out_nothing_of_a_pull_request():
    review = read_yaml(ROOT / ".github/workflows/review.yml")
    assert "pull_request" not in review["on"]
    steps = review["jobs"]["review"]["steps"]
    checkout = next(step for step in steps if step.get("uses", "").startswith("actions/checkout@"))
    assert checkout["with"] == {"persist-credentials": False, "fetch-depth": 0}  # no ref: the branch to merge into
    with_token = [step["run"].split()[1] for step in steps if "GH_TOKEN" in step.get("env", {})]
    assert with_token == ["fetch", "post"]


def test_on_the_gpu_machine_there_is_no_token_that_writes_and_the_job_with_one_runs_the_default_branch():
    jobs = read_yaml(ROOT / ".github/workflows/gpu.yml")["jobs"]
    assert jobs["run"]["permissions"] == {"contents": "read"}
    assert "github.token" not in json.dumps(jobs["run"])
    assert "secrets" not in json.dumps(jobs["run"])
    assert jobs["push"]["runs-on"] == "ubuntu-latest"
    checkouts = [step["with"] for step in jobs["push"]["steps"] if step.get("uses", "").startswith("actions/checkout@")]
    assert checkouts == [
        {"ref": "${{ github.event.repository.default_branch }}", "persist-credentials": False, "fetch-depth": 0}
    ]
    with_token = [step["run"].split()[:2] for step in jobs["push"]["steps"] if "GH_TOKEN" in step.get("env", {})]
    assert with_token == [[".github/scripts/gpu.sh", "push"]]
    uploaded = next(step["with"] for step in jobs["run"]["steps"] if "upload-artifact@" in step.get("uses", ""))
    downloaded = next(step["with"] for step in jobs["push"]["steps"] if "download-artifact@" in step.get("uses", ""))
    assert uploaded["path"].split() == ["dvc.lock", "metrics.json"]
    assert uploaded["name"] == downloaded["name"]


def test_the_review_installs_what_it_imports(tmp_path):
    (tmp_path / "python").write_text('#!/bin/sh\nexec cp "$RUNNER_TEMP/review-requirements.txt" "$RUNNER_TEMP/asked"\n')
    (tmp_path / "python").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RUNNER_TEMP": str(tmp_path)}
    script = ROOT / ".github/scripts/install-review.sh"
    subprocess.run([script], cwd=ROOT, env=environment, check=True, timeout=60)
    asked = pins(tmp_path / "asked")
    code = "import sys, tools.review; print(*(getattr(each, '__file__', '') for each in sys.modules.values()))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    ours = [Path(name) for name in done.stdout.split() if name.startswith((f"{ROOT}/stages", f"{ROOT}/tools"))]
    assert third_party([*ours, *(ROOT / "tools/_review").glob("*.py")]) <= asked.keys()
    assert asked.items() <= pins("requirements.txt").items()
    assert "/torch/" not in done.stdout


def review(hub, clone, number="7"):
    hub.script("review.sh", "fetch", number, folder=clone)
    hub.script("review.sh", "make", folder=clone, token=False)
    hub.script("review.sh", "post", number, folder=clone)


def propose(hub):
    """The branch as pull request 7."""
    hub.repository.run("git", "push", "--quiet", "--force", "origin", "branch:refs/pull/7/head")


@pytest.mark.slow
def test_a_pull_request_gets_one_comment_which_the_next_run_updates_and_a_status(hub):
    run, strangers = hub.repository, {"id": 1, "user": {"login": "someone"}, "body": "<!-- made by tools/review.py -->"}
    others = [{"id": 2, "user": {"login": BOT}, "body": "of another workflow"}, {"id": 3, "user": None, "body": "gone"}]
    (hub.state / "comments").write_text(json.dumps([strangers, *others]))
    run.rows = rows_of(LOSSES + 1, np.full(ROWS, 35.0))
    run.measure("worse")
    propose(hub)
    review(hub, hub.clone("first"))
    posted = hub.read("comments")[-1]
    assert posted["body"].startswith("<!-- made by tools/review.py -->\n## Review of the run")
    assert "❌" in posted["body"]

    run.rows = rows_of(LOSSES - 1, np.full(ROWS, 45.0))
    run.measure("better")
    propose(hub)
    review(hub, hub.clone("second"))
    comments = hub.read("comments")
    assert [each["id"] for each in comments] == [1, 2, 3, posted["id"]]
    assert comments[:3] == [strangers, *others]
    assert "❌" not in comments[-1]["body"]
    commits = run.run("git", "log", "--format=%H", "-2").split()[::-1]
    assert [(each["commit"], each["state"], each["context"]) for each in hub.read("statuses")] == [
        (commits[0], "failure", "gate"),
        (commits[1], "success", "gate"),
    ]


@pytest.mark.slow
def test_nothing_of_a_pull_request_is_run(hub, tmp_path):
    run, trap = hub.repository, tmp_path / "it ran"
    code = f"open({str(trap)!r}, 'w').close()\n"
    for path in ("tools/review.py", "tools/__init__.py", "stages/__init__.py", "sitecustomize.py", "json.py"):
        run.put(path, code)
    for script in (run.folder / ".github/scripts").iterdir():
        script.write_text(f"#!/bin/sh\ntouch '{trap}'\n")
    pipeline = run.folder / "dvc.yaml"
    pipeline.write_text(pipeline.read_text().replace("cmd: cp ", f"cmd: touch '{trap}'; cp "))
    run.put(".gitattributes", "* filter=trap\n")
    run.commit("hostile")
    propose(hub)
    review(hub, hub.clone("first"))
    assert not trap.exists()
    assert hub.read("statuses")[0]["state"] == "success"


@pytest.mark.slow
def test_a_pull_request_that_cannot_be_reviewed_gets_the_reason(hub):
    hub.repository.put("metrics.json", "[]")
    hub.repository.commit("broken")
    propose(hub)
    review(hub, hub.clone("first"))
    assert "It could not be made" in hub.read("comments")[0]["body"]
    assert hub.read("statuses")[0]["state"] == "error"


@pytest.mark.parametrize("number", ["", "7; touch x", "0", "../7"])
def test_a_number_that_is_none_goes_no_further(hub, number):
    done = hub.script("review.sh", "fetch", number, folder=hub.repository.folder, check=False)
    assert done.returncode == 2
    assert "is no number of a pull request" in done.stderr
    assert hub.read("calls") == []


@pytest.mark.slow
def test_the_lock_is_checked_without_data(hub):
    run = hub.repository
    assert hub.script("lock.sh", folder=hub.clone("same"), token=False).returncode == 0
    run.change("train.epochs", 3.0)
    run.commit("not run")
    run.run("git", "push", "--quiet", "origin", "branch")
    done = hub.script("lock.sh", folder=hub.clone("changed", "branch"), token=False, check=False)
    assert done.returncode != 0
    run.run("git", "revert", "--no-edit", "HEAD")
    pipeline = run.folder / "dvc.yaml"
    pipeline.write_text(pipeline.read_text().replace("cmd: cp inputs/metrics.json", "cmd: cp -f inputs/metrics.json"))
    run.commit("another command in the last stage")
    run.run("git", "push", "--quiet", "origin", "branch")
    done = hub.script("lock.sh", folder=hub.clone("command", "branch"), token=False, check=False)
    assert done.returncode == 1
    assert "dvc.lock is out of date" in done.stderr


def a_box_with_work(hub, storage):
    """A clone of the branch, whose data changed and was not run; the remote has what ran before."""
    run = hub.repository
    run.run("dvc", "remote", "add", "--default", "storage", str(storage))
    run.run("dvc", "push", "--quiet")
    run.rows = rows_of(LOSSES - 1, np.full(ROWS, 45.0))
    run.write()
    run.commit("changed, and not run")
    run.run("git", "push", "--quiet", "origin", "branch")
    return hub.clone("box", "branch")


def give_back(hub, box, check=True):
    """As gpu.yml's second job: the machine's two files, in a clone of main."""
    clone = hub.clone(f"main beside {box.name}")
    results = clone / "results"
    results.mkdir()
    for name in ("dvc.lock", "metrics.json"):
        shutil.copy(box / name, results)
    ran = hub.repository.run("git", "rev-parse", "HEAD", folder=box).strip()
    return hub.script("gpu.sh", "push", "branch", ran, str(results), folder=clone, check=check)


@pytest.mark.slow
def test_the_gpu_machine_runs_what_changed_and_gives_results_to_the_branch_and_the_remote(hub, tmp_path):
    run = hub.repository
    box = a_box_with_work(hub, tmp_path / "storage")
    done = hub.script("gpu.sh", "run", folder=box, token=False)
    assert "Running stage 'evaluate@tuned'" in done.stdout
    assert "Running stage 'clean'" not in done.stdout
    give_back(hub, box)
    after = hub.clone("after", "branch")
    changed = run.run("git", "show", "--format=%an %s", "--name-only", folder=after).split("\n")
    before = run.run("git", "rev-parse", "--short", "HEAD").strip()
    assert [line for line in changed if line] == [f"{BOT} Results of {before}", "dvc.lock", "metrics.json"]
    assert "Running stage" not in run.run("dvc", "repro", "--pull", "--allow-missing", folder=after)
    run.run("dvc", "pull", "evaluate@tuned", folder=after)
    assert (after / "metrics/evaluate/tuned.rows.jsonl").read_text() == (
        run.folder / "inputs/tuned.rows.jsonl"
    ).read_text()
    started = [call[2:] for call in hub.read("calls") if call[:2] == ["workflow", "run"]]
    assert started == [["ci.yml", "--ref", "branch"], ["review.yml", "-f", "number=7"]]

    hub.script("gpu.sh", "run", folder=after, token=False)
    done = give_back(hub, after)
    assert "nothing had to run" in done.stdout


@pytest.mark.slow
def test_a_fresh_gpu_machine_gets_the_base_first_which_the_remote_does_not_have(hub, tmp_path):
    run = hub.repository
    run.run("dvc", "remote", "add", "--default", "storage", str(tmp_path / "storage"))
    run.run("dvc", "push", "--quiet")
    run.change("train.epochs", 3.0)
    run.commit("changed, and not run")
    run.run("git", "push", "--quiet", "origin", "branch")
    box = hub.clone("box", "branch")
    # Should DVC come to run download_model by itself, gpu.sh need not.
    run.run("dvc", "repro", "--pull", "--allow-missing", folder=box, code=255)
    done = hub.script("gpu.sh", "run", folder=hub.clone("other", "branch"), token=False)
    assert re.findall(r"Running stage '(.+)'", done.stdout) == ["download_model", "train"]


@pytest.mark.slow
def test_a_branch_that_moved_on_keeps_its_commit_and_the_remote_has_the_run(hub, tmp_path):
    run = hub.repository
    box = a_box_with_work(hub, tmp_path / "storage")
    hub.script("gpu.sh", "run", folder=box, token=False)
    run.put("note.md", "meanwhile")
    run.commit("meanwhile")
    run.run("git", "push", "--quiet", "origin", "branch")
    done = give_back(hub, box, check=False)
    assert done.returncode == 1
    assert "branch cannot be pushed to. Where it moved on, start the workflow again" in done.stderr
    assert [call for call in hub.read("calls") if call[0] == "workflow"] == []
    again = hub.clone("again", "branch")
    done = hub.script("gpu.sh", "run", folder=again, token=False)
    assert "Running stage 'evaluate@tuned'" not in done.stdout  # from the run cache of the remote


def test_nothing_of_the_branch_runs_beside_the_token_that_pushes(hub, tmp_path):
    run, trap = hub.repository, tmp_path / "it ran"
    for path in ("sitecustomize.py", "json.py"):
        run.put(path, f"open({str(trap)!r}, 'w').close()\n")
    for script in (run.folder / ".github/scripts").iterdir():
        script.write_text(f"#!/bin/sh\ntouch '{trap}'\n")
    run.put(".gitattributes", "* filter=trap\n")
    run.commit("hostile")
    run.run("git", "push", "--quiet", "origin", "branch")
    box = hub.clone("box", "branch")
    for hook in ("pre-commit", "post-commit", "pre-push", "post-index-change", "reference-transaction"):
        (box / ".git/hooks" / hook).write_text(f"#!/bin/sh\ntouch '{trap}'\n")
        (box / ".git/hooks" / hook).chmod(0o755)
    run.run("git", "config", "filter.trap.clean", f"touch '{trap}'; cat", folder=box)
    (box / "metrics.json").write_text("{}")
    give_back(hub, box)
    assert run.run("git", "show", "branch:metrics.json", folder=hub.origin) == "{}"
    assert not trap.exists()


def test_a_result_that_is_no_file_is_not_pushed(hub, tmp_path):
    clone, head = hub.clone("main"), hub.repository.run("git", "rev-parse", "main").strip()
    (tmp_path / "secret").write_text("of the machine that pushes")
    for name in ("dvc.lock", "metrics.json"):
        (clone / "results").mkdir(exist_ok=True)
        (clone / "results" / name).symlink_to(tmp_path / "secret")
    done = hub.script("gpu.sh", "push", "branch", head, "results", folder=clone, check=False)
    assert done.returncode == 1
    assert "results/dvc.lock is no file" in done.stderr
    assert "branch" not in hub.repository.run("git", "branch", folder=hub.origin)


def test_without_a_remote_the_gpu_machine_does_not_begin(hub):
    done = hub.script("gpu.sh", "run", folder=hub.repository.folder, token=False, check=False)
    assert done.returncode == 1
    assert "no default DVC remote is set" in done.stderr


SESSION = ROOT / ".github/scripts/session.py"


def session(*arguments, script=SESSION, cwd=ROOT):
    command = [sys.executable, script, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)


def test_the_recorder_of_the_terminal_explains_itself_and_refuses_what_it_does_not_know():
    explained, refused = session("--help"), session("--nonsense")
    assert (explained.returncode, explained.stderr) == (0, "") and "docs/session.svg" in explained.stdout
    assert (refused.returncode, refused.stdout) == (2, "") and "--nonsense" in refused.stderr


def test_the_terminal_is_recorded_only_of_committed_results(tmp_path):
    script = tmp_path / ".github/scripts/session.py"
    script.parent.mkdir(parents=True)
    shutil.copy(SESSION, script)
    (tmp_path / "params.yaml").write_text("seed: 1\n")
    author = ["-c", "user.name=a", "-c", "user.email=a@a"]
    for command in (["init", "--quiet"], ["add", "."], [*author, "commit", "--quiet", "--message", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    stale = session(script=script)
    assert stale.returncode == 1 and "not those of the committed dvc.lock. Run dvc repro" in stale.stderr
    (tmp_path / "params.yaml").write_text("seed: 2\n")
    dirty = session(script=script)
    assert dirty.returncode == 1 and dirty.stderr == "session: params.yaml differs from the Git commit. Commit it\n"
    assert not (tmp_path / "docs").exists()


def test_the_recorded_terminal_loads_nothing_and_shows_the_commands_of_the_script():
    spec = importlib.util.spec_from_file_location("session", SESSION)
    recorder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recorder)
    committed_picture = (ROOT / "docs/session.svg").read_text()
    for picture in (committed_picture, recorder.draw({"true": "one <line>\n"})):
        assert not re.search("@font-face|<image|<script|url\\(http|href=.http", picture)
    assert "one\u00a0&lt;line&gt;" in picture or "one&#160;&lt;line&gt;" in picture
    shown = re.sub(r"\s+", "", unescape(re.sub("<[^>]+>", "", committed_picture)))
    assert all(re.sub(r"\s+", "", f"$ {command}") in shown for command in recorder.COMMANDS)
