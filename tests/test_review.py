"""Runs tools/review.py on real repositories: with Git only, and with what DVC keeps."""

import json
import re
import shutil
import sys
from html import unescape

import numpy as np
import pytest
from markdown_it import MarkdownIt

from stages.comparison.revisions import Outputs, Revision
from tests.support.project import ROOT
from tests.support.repository import Repository
from tests.support.small_run import LOSSES, ROWS, rows_of
from tools._review.changes import Change, Figure, Tree, figures, flatten, reruns, staleness
from tools._review.markdown import MOST_CHARACTERS, block, bounded, code, markdown_table, sparkline
from tools._review.outputs import PARTS
from tools.review import results_text

HOSTILE = "@octocat #1 `tick` | <img src=http://x/y.png onerror=x()> \x1b[31m **b** [a](http://x) ``` \\| \u202e"
# Nine copies of nine copies of …: less than a page, and 9^8 params.
BOMB = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{{', '.join(f'{key}: *a{n - 1}' for key in 'bcdefghij')}}}\n" for n in range(1, 9)
)
MARKDOWN = MarkdownIt("gfm-like", {"html": True, "linkify": False})


@pytest.fixture
def repository(small_run, tmp_path):
    """A copy, on a branch of its own."""
    copied = small_run.copied(tmp_path / "repository")
    copied.run("git", "switch", "--quiet", "--create", "branch")
    return copied


def review(repository, *options, code=0):
    """(the page, the status)"""
    status = repository.folder.parent / "status.json"
    command = [sys.executable, "-m", "tools.review", "--base", "main", *options, "--status", str(status)]
    # The commit's own tools/ must not run.
    command.insert(1, "-P")
    page = repository.output(*command, code=code, PYTHONPATH=str(ROOT))
    return page, json.loads(status.read_text())


def section(page, title):
    return re.search(rf"(?ms)^### {title}\n(.*?)(?=^###|\Z)", page)[1]


def lines_of(page, title):
    """The cells of a section's tables."""
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in section(page, title).splitlines()
        if line.startswith("|") and "---" not in line
    ]


def test_a_branch_without_a_change_has_nothing_to_say(repository):
    page, status = review(repository)
    assert {cells[3] for cells in lines_of(page, "Results")[1:]} == {"="}
    assert section(page, "Params") == "\nAs before.\n\n"
    assert "Nothing: `dvc.lock` is the same." in section(page, "What ran")
    assert "all as before" in section(page, "Data")
    assert status == {"state": "success", "description": "1 gate passed"}


@pytest.mark.slow
def test_a_better_training_shows_in_params_stages_and_in_pairs(repository):
    repository.change("train.learning_rate", 1e-3)
    repository.rows = rows_of(LOSSES - 0.02, np.linspace(20, 60, ROWS))
    repository.curve, repository.text = [3.0, 2.4, 2.0, 1.7], "new answer"
    repository.measure("better")
    page, status = review(repository)
    loss = next(cells for cells in lines_of(page, "Results") if cells[0] == "Loss, nats a token")
    assert loss[3] == "↓ 0.02000 (−0.02000 to −0.02000, in pairs), better"
    assert lines_of(page, "Params")[1:] == [["`train.learning_rate`", "`0.002`", "`0.001`"]]
    ran = {cells[0]: cells[1] for cells in lines_of(page, "What ran")[1:]}
    assert ran["`train`"].endswith("params: `train.learning_rate`")
    assert ran.keys() == {"`train`", "`evaluate@tuned`", "`report`"}
    assert "As before: `download_model`, `clean`" in section(page, "What ran")
    assert "No row was added" in section(page, "Rows")
    assert [cells[:2] for cells in lines_of(page, "Loss curves")[1:]] == [
        [name, when] for name in ("train", "validation") for when in ("before", "now")
    ]
    answers = section(page, "Best and worst answers")
    assert re.findall(r"chrF ([+-][\d.]+)", answers) == ["+20.0", "+19.0", "+17.9", "-20.0", "-19.0", "-17.9"]
    assert answers.count("<pre>answer to test") == answers.count("<pre>new answer to test") == 6
    assert status["state"] == "success"


@pytest.mark.slow
def test_a_clone_with_git_alone_says_what_it_cannot_show_and_a_remote_brings_it(repository, tmp_path):
    repository.kept, repository.rejected = list(range(5, 34)), {"too_long": [30, 31, 0, 1], "secret": [2]}
    repository.rows = rows_of(LOSSES + 1, np.full(ROWS, 35.0))
    repository.measure("other rows")
    clone = repository.clone(tmp_path / "clone")
    clone.run("git", "fetch", "--quiet", "origin", "main:main")
    page, status = review(clone)
    worse = next(cells for cells in lines_of(page, "Results") if cells[0] == "Perplexity")
    assert re.fullmatch(r"↑ [\d.]+ \(\+[\d.]+ to \+[\d.]+, unpaired\), worse", worse[3])
    assert ["`rows.kept`", "30", "29", "↓ 1"] in lines_of(page, "Data")
    assert ["`rows.rejected.secret`", "–", "1", "new"] in lines_of(page, "Data")
    assert "Not shown: rows, loss curves, best and worst answers, which need DVC's outputs" in page
    assert "no default DVC remote is set" in page
    assert status["state"] == "failure"
    assert status["description"].startswith("1 of 1 gate failed: evaluate.tuned.loss is ")

    storage = repository.folder / ".dvc/cache"  # a local remote looks the same
    clone.run("dvc", "remote", "add", "--default", "storage", str(storage))
    page, _ = review(clone)
    assert lines_of(page, "Rows")[1:] == [
        ["train", "4", "5", "29"],
        ["validation", "0", "0", "1"],
        ["test", "0", "0", str(ROWS)],
        ["rejected: `duplicate`", "0", "1", "0"],
        ["rejected: `secret`", "1", "0", "1"],
        ["rejected: `too_long`", "2", "0", "4"],
    ]
    assert "in pairs" in section(page, "Results")
    assert "Not shown" not in page


@pytest.mark.slow
def test_another_test_split_is_said_and_compared_nowhere(repository):
    repository.test = [f"other{n}" for n in range(ROWS)]
    repository.rows = rows_of(LOSSES + 1, np.full(ROWS, 30.0), prefix="other")
    repository.measure("other test rows")
    page, status = review(repository)
    assert "**Before and now are not compared, since the test split is another one.**" in page
    assert lines_of(page, "Results")[0] == ["", "now"]
    assert "evaluate." not in section(page, "Results")
    assert re.search("➖ .*not compared, since the test split is another one", section(page, "Gate"))
    assert "No prompt was answered by both" in section(page, "Best and worst answers")
    assert status["state"] == "success"


@pytest.mark.slow
def test_a_branch_that_changes_its_own_gates_says_so_first_and_in_its_status(repository):
    repository.gates([{"metric": "evaluate.tuned.loss", "better": "lower", "bound": 99.0, "against": None}])
    repository.measure("a bound that nothing passes")
    page, status = review(repository)
    assert "⚠️ **This branch changes `report.gates`" in section(page, "Gate").splitlines()[1]
    assert status == {"state": "success", "description": "1 gate passed, of gates that this branch changes"}


@pytest.mark.slow
def test_what_came_to_main_meanwhile_is_not_taken_for_the_branchs_change(repository):
    repository.run("git", "switch", "--quiet", "main")
    repository.change("train.epochs", 2.0)
    repository.rows = rows_of(LOSSES - 0.5, np.full(ROWS, 50.0))
    repository.measure("main goes on")
    repository.run("git", "switch", "--quiet", "branch")
    page, _ = review(repository)
    assert "**`main` has other results by now" in page
    assert section(page, "Params") == "\nAs before.\n\n"
    assert "Nothing: `dvc.lock` is the same." in page


def test_a_branch_that_was_not_run_after_its_last_change_fails(repository):
    repository.change("train.epochs", 3.0)
    repository.put("inputs/tuned.rows.jsonl", "{}\n")
    repository.commit("changed, and not run")
    page, status = review(repository)
    assert "❌ `train ran with another state of train.epochs`" in page
    assert "❌ `evaluate@tuned ran with another state of inputs/tuned.rows.jsonl`" in page
    assert status == {
        "state": "failure",
        "description": "metrics.json is not of this commit: train ran with another state of train.epochs",
    }


def test_an_edited_metrics_json_fails(repository):
    metrics = json.loads((repository.folder / "metrics.json").read_text())
    metrics["evaluate"]["tuned"]["loss"] = 0.1
    repository.put("metrics.json", json.dumps(metrics))
    repository.commit("wishful")
    page, status = review(repository)
    assert "❌ `metrics.json is not the one that its stage wrote`" in page
    assert status["state"] == "failure"


@pytest.mark.slow
def test_a_lock_put_together_of_two_runs_fails(repository):
    path = repository.folder / "dvc.lock"
    entry = re.compile(r"(?ms)^  train:\n.*?(?=^  \S|\Z)")
    earlier = entry.search(path.read_text())[0]
    repository.curve = [3.0, 1.0]
    repository.measure("another training")
    path.write_text(entry.sub(lambda _: earlier, path.read_text()))
    repository.commit("merged by hand")
    page, _ = review(repository)
    assert "evaluate@tuned ran with another state of metrics/train_curve.csv" in page


def test_an_input_that_was_deleted_fails_and_one_that_git_never_had_does_not(repository, monkeypatch):
    monkeypatch.chdir(repository.folder)
    lock = repository.folder / "dvc.lock"
    dep = "    - path: {}\n      hash: md5\n      md5: " + "0" * 32 + "\n"
    extra = "".join(dep.format(path) for path in ("/elsewhere/rows.jsonl", "../rows.jsonl", "moved.jsonl", ":(top)x"))
    lock.write_text(lock.read_text().replace("    deps:\n", f"    deps:\n{extra}", 1))
    repository.put("moved.jsonl", "{}")
    repository.run("git", "add", "--force", "data/clean/train.parquet")
    repository.commit("as if DVC had seen it")
    repository.run("git", "rm", "--quiet", "inputs/tuned.rows.jsonl", "moved.jsonl", "data/clean/train.parquet")
    repository.put("moved.jsonl.dvc", "outs: []")
    repository.commit("deleted, and not run")
    commit = repository.run("git", "rev-parse", "HEAD").strip()
    wrong = staleness(Revision(commit, Outputs()), commit)
    assert wrong == ["evaluate@tuned ran with another state of inputs/tuned.rows.jsonl"]


def test_what_neither_lock_names_is_not_called_the_same(repository, monkeypatch):
    monkeypatch.chdir(repository.folder)
    repository.put("dvc.lock", "schema: '2.0'\nstages: {}\n")
    repository.commit("an empty lock")
    both = [Revision("HEAD", Outputs()) for _ in range(2)]
    assert [make(*both) for make in PARTS.values()] == [None, None, None]


@pytest.mark.slow
def test_folders_are_hashed_as_dvc_does(repository, monkeypatch):
    repository.put("inputs/clean/ä/b.txt", "x")
    repository.put("inputs/clean/a-b.txt", "y")
    repository.measure("a folder in the folder")
    monkeypatch.chdir(repository.folder)
    locked = re.search(r"path: inputs/clean\n\s+hash: md5\n\s+md5: (\S+)", (repository.folder / "dvc.lock").read_text())
    assert Tree("HEAD").hash("inputs/clean") == locked[1]


def hostile_branch(repository):
    values = {"metric": HOSTILE, "better": "lower", "bound": 1.0, "against": None}
    repository.gates([values])
    repository.change("clean.decontaminate", [HOSTILE])
    repository.change("evaluate.@octocat <script>|", HOSTILE)
    repository.rejected = {HOSTILE: [30, 31]}
    repository.rows = rows_of(LOSSES, np.linspace(20, 60, ROWS))
    for row in repository.rows:
        row["source"] = HOSTILE
    repository.text = HOSTILE
    metrics = repository.metrics()
    metrics["evaluate"]["tuned"] |= {"@octocat | <b>`": 1.0, "@octocat | <b>`_lo": 1.0, "@octocat | <b>`_hi": 2.0}
    repository.metrics = lambda: metrics
    repository.measure("hostile")


@pytest.mark.slow
def test_no_text_of_a_branch_becomes_markup_mentions_or_colour(repository):
    hostile_branch(repository)
    gates = [{"metric": "clean.rows.kept", "better": "higher", "bound": 1, "against": None}]
    repository.gates([*gates])
    repository.commit("a gate that passes")
    page, _ = review(repository)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", page)
    rendered = MARKDOWN.render(page)
    tags = set(re.findall(r"<(/?\w+)", rendered))
    known = {"h2", "h3", "p", "code", "ul", "li", "strong", "pre", "th", "td", "tr", "table", "thead", "tbody"}
    known |= {"details", "summary", "em"}
    assert {tag.strip("/") for tag in tags} <= known
    assert not re.search("<[^>]*(?:onerror|src|href)", rendered)
    outside = re.sub(r"(?s)<(code|pre)\b.*?</\1>", "", rendered)
    assert "octocat" in rendered
    assert "octocat" not in outside
    assert "@" not in outside
    for part in re.findall(r"(?s)<table>.*?</table>", rendered):
        widths = {len(re.findall("<t[hd]", line)) for line in re.findall("(?s)<tr>.*?</tr>", part)}
        assert len(widths) == 1, part


def test_a_gate_that_cannot_be_judged_is_an_error_that_names_it(repository):
    repository.gates([{"metric": HOSTILE, "better": "lower", "bound": 1.0, "against": None}])
    repository.commit("a gate of nothing")
    page, status = review(repository)
    assert status["state"] == "error"
    assert "has no figure" in page
    assert "@octocat" not in re.sub("(?s)<code>.*?</code>|`[^`]*`", "", page)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("metrics.json", '{"evaluate": {"tuned": {"loss": Infinity, "x_bytes": NaN, "seconds": 1e999}}}'),
        ("metrics.json", '{"a": ' * 5000),
        ("dvc.lock", "stages:\n<<<<<<< HEAD\n  train: 1\n=======\n"),
        ("dvc.lock", "stages: {report: {deps: [{path: x, md5: [1]}], outs: [{path: /etc/passwd, md5: ../../x}]}}"),
        ("params.yaml", "- 1\n"),
        ("params.yaml", BOMB),
        ("dvc.lock", BOMB),
    ],
)
def test_a_file_of_another_kind_ends_in_one_sentence_and_no_success(repository, path, text):
    repository.put(path, text)
    repository.commit("broken")
    page, status = review(repository)
    assert status["state"] in ("error", "failure")
    assert page.startswith("<!-- made by tools/review.py -->\n## Review of the run")


@pytest.mark.slow
def test_nothing_of_the_branch_says_which_remote_is_asked(repository, tmp_path):
    """A branch's own .dvc/config could name any server."""
    repository.run("dvc", "remote", "add", "--default", "trap", str(repository.folder / ".dvc/cache"))
    repository.rows = rows_of(LOSSES - 1, np.full(ROWS, 50.0))
    repository.measure("with another remote")
    clone = repository.clone(tmp_path / "clone")
    clone.run("git", "fetch", "--quiet", "origin", "main:main", "branch:refs/review/head")
    clone.run("git", "switch", "--quiet", "main")
    page, _ = review(clone, "--head", "refs/review/head")
    assert "no default DVC remote is set" in page
    assert "unpaired" in page


@pytest.mark.slow
def test_a_remote_that_is_out_of_reach_costs_only_its_parts(repository, tmp_path):
    repository.rows = rows_of(LOSSES - 1, np.full(ROWS, 50.0))
    repository.measure("better")
    clone = repository.clone(tmp_path / "clone")
    clone.run("git", "fetch", "--quiet", "origin", "main:main")
    clone.run("dvc", "remote", "add", "--default", "gone", "http://127.0.0.1:9/x")
    page, status = review(clone)
    assert "Not shown: rows" in page or "No row was added" in page
    assert "Not shown:" in page
    assert status["state"] == "success"


def test_a_shallow_or_misspelt_base_is_named(repository):
    command = [sys.executable, "-P", "-m", "tools.review", "--base", "nowhere"]
    printed = repository.run(*command, code=1, PYTHONPATH=str(ROOT))
    assert printed.startswith("review: nowhere and ")
    assert "Traceback" not in printed


def test_intervals_belong_to_their_figure_and_are_no_figures_themselves():
    found = figures({"a": {"loss": 1.0, "loss_lo": 0.5, "loss_hi": 1.5, "rows": 3, "only_lo": 2}, "b": "text"})
    assert {name: figure.value for name, figure in found.items()} == {"a.loss": 1.0, "a.rows": 3, "a.only_lo": 2}
    assert found["a.loss"].interval == {"lo": 0.5, "hi": 1.5}
    assert flatten({"a": {"b": [1, {"c": 2}]}, "d": {}}) == {"a.b": [1, {"c": 2}]}


TEXTS = ["plain", "a|b", "`", "``x``", "\\|", "a\\", "<b>", "@x", "**x**", " ", "x\ny", "&amp;"]


@pytest.mark.parametrize(
    ("code_rows", "label"),
    [(True, "Bits a byte after signature and docstring"), (False, "Bits a byte of the last answer’s text")],
)
def test_the_page_calls_a_figure_of_prose_as_the_report_does(code_rows, label):
    figure = Figure(0.5, None)
    body = Change("evaluate.tuned.body_bits_per_byte", figure, figure, None, "")
    # The rows before were code.
    parses = Change("evaluate.tuned.parses_share", figure, figure if code_rows else None, None, "")
    assert f"| {label} | 0.5000 | 0.5000 | = |" in results_text([body, parses], None)


@pytest.mark.parametrize("text", TEXTS)
def test_code_in_a_table_reads_as_the_text_it_is(text):
    rendered = MARKDOWN.render(markdown_table(["", ""], [[code(text), "end"]]))
    cells = re.findall("(?s)<td[^>]*>(.*?)</td>", rendered)
    assert unescape(re.sub("</?code>", "", cells[0])).split() == text.split()
    assert cells[1:] == ["end"]


def test_a_block_stays_on_one_line_and_is_cut():
    assert block("a\n\n<b>@c", 100) == "<pre>a&#10;&#10;&lt;b&gt;&#64;c</pre>"
    assert block("x" * 50, 10) == "<pre>" + "x" * 9 + "…</pre>"
    assert block("x" * 49 + "y", 10, keep_end=True) == "<pre>…" + "x" * 8 + "y</pre>"
    assert block("x" * 10, 10, keep_end=True) == "<pre>" + "x" * 10 + "</pre>"


def test_a_page_too_long_for_a_comment_loses_the_sections_that_have_no_room():
    text = bounded(["first\n", "x" * MOST_CHARACTERS, "last"])
    assert text.startswith("first")
    assert "last" in text
    assert "1 section left out" in text
    assert len(text) < MOST_CHARACTERS


def test_a_sparkline_is_high_where_the_curve_is():
    assert sparkline([3.0, 2.0, 1.0, 1.0], 1.0, 3.0) == "█▅▁▁"
    assert sparkline([1.0] * 100, 1.0, 1.0) == "▁" * 32
    assert sparkline([2.0], 1.0, 3.0) == "▅"


MODULES = {
    "stages/merge.py": "A = 1\n",
    "stages/core/code_hash.py": "D = 1\n",
    "stages/runtime/progress.py": "B = 1\n",
    "stages/core/params.py": "C = 1\n",
}


@pytest.fixture
def coded(tmp_path, monkeypatch):
    """A repository in which a stage depends on the code, and another one on the first one's hashes."""
    repository = Repository(tmp_path / "coded")
    repository.folder.mkdir()
    for name, text in MODULES.items():
        (repository.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (repository.folder / name).write_text(text)
    stages = {
        "hash_code": {
            "cmd": 'mkdir -p .code && echo "{\\"stages/merge.py\\": \\"$(cat stages/merge.py)\\"}" > .code/merge.json',
            "deps": ["stages"],
            "outs": [".code/merge.json"],
        },
        "merge": {"cmd": "echo 1 > merged", "deps": [".code/merge.json"], "outs": ["merged"]},
    }
    (repository.folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    (repository.folder / "params.yaml").write_text("seed: 1\n")
    repository.run("git", "init", "--quiet", "--initial-branch=main")
    repository.run("dvc", "init", "--quiet")
    shutil.copy(ROOT / ".dvcignore", repository.folder)
    repository.run("dvc", "repro")
    repository.commit()
    monkeypatch.chdir(repository.folder)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", repository.environment["DVC_SITE_CACHE_DIR"])
    return repository


def stale(repository) -> list[str]:
    repository.commit()
    commit = repository.output("git", "rev-parse", "HEAD").strip()
    return [problem for problem in staleness(Revision(commit, Outputs()), commit) if " ran with " in problem]


def test_code_that_dvc_ignores_makes_no_result_stale(coded):
    assert stale(coded) == []
    for name in ("stages/runtime/progress.py", "stages/core/params.py"):
        (coded.folder / name).write_text("ANOTHER = 1\n")
    assert stale(coded) == []
    (coded.folder / "stages/merge.py").write_text("ANOTHER = 1\n")
    assert stale(coded) == ["hash_code ran with another state of stages"]


def test_hashes_of_new_code_next_to_a_result_of_the_old_one_are_stale(coded):
    (coded.folder / "stages/merge.py").write_text("ANOTHER = 1\n")
    coded.run("dvc", "repro", "hash_code")
    assert stale(coded) == ["merge ran with another state of .code/merge.json"]


def test_what_ran_names_the_modules_that_changed(coded):
    (coded.folder / "stages/merge.py").write_text("ANOTHER = 1\n")
    coded.run("dvc", "repro")
    coded.commit()
    outputs = Outputs()
    base, head = Revision("main~1", outputs), Revision("main", outputs)
    assert dict(reruns(base, head))["merge"] == {"deps": ["stages/merge.py"]}
    shutil.rmtree(coded.folder / ".dvc/cache")
    base, head = Revision("main~1", Outputs()), Revision("main", Outputs())
    assert dict(reruns(base, head))["merge"] == {"deps": [".code/merge.json"]}
