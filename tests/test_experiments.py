"""What docs/experiments.md says of experiments, with its own commands, and the traps it names."""

import json
import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from dvc.utils.hydra import apply_overrides

from stages.core.yaml_files import read_yaml
from tests.support.project import ROOT, blocks
from tests.support.repository import Repository, queue_workers, running

PAGE = "docs/experiments.md"
TEXT = (ROOT / PAGE).read_text()
# Of the grid, what is run here; the other four are taken out of the queue. The fixture has grid-3's own values, so that
# what the page does with grid-3 is done with grid-4.
KEPT = ("grid-3", "grid-4")


def commands(start: str) -> list[list[str]]:
    """The words of each command in the page's bash block that begins so."""
    (found,) = [text for text in blocks(PAGE, "bash") if text.startswith(start)]
    return [words for line in found.splitlines() if (words := shlex.split(line, comments=True))]


def trained(start: str) -> list[list[str]]:
    """The same with what has been trained here."""
    assert any("grid-3" in words for words in commands(start))
    return [["grid-4" if word == "grid-3" else word for word in words] for words in commands(start)]


def cheaper(words: list[str], samples: int) -> list[str]:
    """The command with a value that runs `report` alone in place of one that trains."""
    assert sum(word.startswith("train.") for word in words) == 1
    return [f"report.samples={samples}" if word.startswith("train.") else word for word in words]


def is_shown(start: str, printed: str) -> None:
    """Each line of the page's output that begins so was printed, with other numbers perhaps."""
    (found,) = [text for text in blocks(PAGE, "text") if text.startswith(start)]
    for line in found.replace("…\n", "").splitlines():
        assert re.search(f"(?m)^{re.sub(r'[0-9]+', '[0-9]+', re.escape(line))}$", printed), (line, printed)


def restore(repository: Repository) -> None:
    repository.run("git", "reset", "--quiet", "--hard")
    repository.run("dvc", "checkout")


def experiments(repository: Repository) -> set[str]:
    return set(repository.run("dvc", "exp", "list", "--name-only").split())


def samples(repository: Repository) -> int:
    return read_yaml(repository.folder / "params.yaml")["report"]["samples"]


@pytest.fixture(scope="module")
def repository(first_run, tmp_path_factory) -> Iterator[Repository]:
    """A clone with storage and an origin, and the experiment `early` of before it had storage."""
    folder = tmp_path_factory.mktemp("experiments")
    made = first_run.clone(folder / "clone", with_data=True)
    made.run("dvc", "exp", "run", "--name", "early", "-S", "report.samples=1")
    restore(made)
    made.run("dvc", "remote", "add", "--default", "storage", str(folder / "storage"))
    made.run("dvc", "config", "remote.storage.verify", "true")
    made.run("git", "commit", "--quiet", "--message", "Storage", ".dvc/config")
    made.run("git", "init", "--quiet", "--bare", "--initial-branch=main", str(folder / "origin.git"))
    made.run("git", "remote", "add", "origin", str(folder / "origin.git"))
    made.run("git", "push", "--quiet", "origin", "main")
    made.run("dvc", "push")
    yield made
    for worker in queue_workers(made.folder):
        worker.kill()


@pytest.fixture(scope="module")
def grid(repository) -> Repository:
    """The page's grid is queued, and the two of KEPT have run."""
    queue, run = commands("dvc exp run --queue --name grid")
    printed = repository.run(*queue)
    is_shown("Queueing with overrides", printed)
    names = re.findall(r"Queued experiment '(\S+)'", printed)
    assert names == [f"grid-{number}" for number in range(1, 7)]
    both = re.findall(r"\['train.learning_rate=(\S+)', 'lora.r=(\S+)'\]", printed)
    shown = table(TEXT)
    assert [(float(rate), int(rank)) for rate, rank in both] == [(shown[name].rate, shown[name].rank) for name in names]
    repository.run("dvc", "queue", "remove", *sorted(set(names) - set(KEPT)))
    for _ in range(3):  # a worker may end with experiments left, as the page says
        repository.run("sh", "-c", f"timeout --signal=INT 240 {shlex.join(run)} || true")
        if set(KEPT) <= experiments(repository):
            break
    return repository


class Row(NamedTuple):
    test_loss: float
    loss: float
    rank: int
    rate: float


def table(text: str) -> dict[str, Row]:
    """The rows of the grid in what `dvc exp show` prints with the page's columns."""
    rows = re.findall(r"(?m)^\| \S+ \S+ \[(grid-\d)\] +\|" + r" (\S+) +\|" * 4 + "$", text)
    return {
        name: Row(float(test_loss), float(loss), int(rank), float(rate)) for name, test_loss, loss, rank, rate in rows
    }


def test_the_chart_of_the_grid_shows_the_figures_of_its_table():
    chart = (ROOT / "docs/experiments-grid.svg").read_text()
    assert "](experiments-grid.svg)" in TEXT
    labels = sorted(float(text) for text in re.findall(r'class="value"[^>]*>([\d.]+)<', chart))
    assert labels == sorted(row.loss for row in table(TEXT).values())
    assert len(labels) == 6


@pytest.mark.slow
def test_an_experiment_runs_in_the_workspace_or_with_temp_beside_it(repository):
    here, beside = commands("dvc exp run --name")
    head = repository.run("git", "rev-parse", "HEAD")
    printed = repository.run(*cheaper(here, 3))
    assert running(printed) == ["report"]
    is_shown("Reproducing experiment", printed)
    assert samples(repository) == 3
    assert repository.run("git", "rev-parse", "HEAD") == head
    assert running(repository.run(*cheaper(beside, 0))) == ["report"]
    assert samples(repository) == 3, "the workspace is as it was"
    assert experiments(repository) == {"slower", "longer"}
    restore(repository)
    assert samples(repository) == 2


@pytest.mark.slow
def test_a_range_is_queued_without_its_end(repository):
    for command in commands("dvc exp run --queue --name ranks"):
        printed = repository.run(*command)
    repository.run("dvc", "queue", "remove", "--queued")
    assert [int(rank) for rank in re.findall(r"lora.r=(\d+)", printed)] == [4, 8, 12, 16]


@pytest.mark.slow
def test_a_grid_is_queued_and_run_beside_the_workspace_and_stands_in_a_table(grid):
    assert grid.run("git", "status", "--porcelain") == ""
    assert set(KEPT) <= experiments(grid)
    (show,) = commands("dvc exp show")
    rows = table(grid.run(*show))
    assert rows.keys() == set(KEPT)
    for name, row in rows.items():
        assert (row.rate, row.rank) == (table(TEXT)[name].rate, table(TEXT)[name].rank)
        metrics = json.loads(grid.run("git", "show", f"{grid.experiment(name)}:metrics.json"))
        assert row.loss == pytest.approx(metrics["train"]["validation_loss"], rel=1e-4)
        assert row.test_loss == pytest.approx(metrics["evaluate"]["tuned"]["loss"], rel=1e-4)
    assert rows["grid-3"].loss != rows["grid-4"].loss


@pytest.mark.slow
def test_an_experiment_is_taken_over_by_apply_or_by_branch(grid):
    compare, curves = trained("dvc params diff")
    assert re.search(r"\| lora.r +\| 4 +\| 16 +\|", grid.run(*compare))
    assert "index.html" in grid.run(*curves)
    apply, commit, branch = trained("dvc exp apply")
    grid.run("git", "switch", "--quiet", "--create", "taken")
    printed = grid.run(*apply)
    assert grid.ran("repro") == []
    grid.run(*commit)
    assert grid.run("git", "status", "--porcelain") == ""
    is_shown("Changes for experiment", printed + grid.run(*branch))
    assert grid.run("git", "diff", "taken", branch[-1]) == ""
    grid.run("git", "switch", "--quiet", "main")
    grid.run("dvc", "checkout")
    assert grid.ran("repro") == []


@pytest.mark.slow
def test_an_experiment_is_pushed_and_a_colleagues_clone_of_git_alone_has_all_its_results(grid, tmp_path):
    push, look, pull, apply, repro = trained("dvc exp push")
    name = push[-1]
    is_shown("Pushed experiment", grid.run(*push))
    origin = grid.run("git", "remote", "get-url", "origin").strip()
    grid.run("git", "clone", "--quiet", origin, str(tmp_path / "clone"))
    colleague = Repository(tmp_path / "clone", tmp_path / "site-cache")
    assert name in colleague.run(*look)
    printed = colleague.run(*pull)
    said = colleague.run(*apply, code=255)  # the base is not pushed
    is_shown("Pulled experiment", printed + said)
    assert said.partition("following targets:\n")[2].split("Is your")[0].split() == ["models/base"]
    assert running(colleague.run(*repro)) == ["download_model"]
    lock = grid.run("git", "show", f"{grid.experiment(name)}:dvc.lock")
    assert (colleague.folder / "dvc.lock").read_text() == lock
    assert (colleague.folder / "reports/report.html").is_file()


@pytest.mark.slow
def test_apply_takes_uncommitted_edits_away_and_the_page_brings_them_back(repository):
    repository.change("train.epochs", 3)
    (repository.folder / "README.md").write_text("mine\n")
    repository.run("dvc", "exp", "apply", "early")
    assert read_yaml(repository.folder / "params.yaml")["train"]["epochs"] == 1
    for command in commands("git reset --hard"):
        repository.run(*command)
    assert read_yaml(repository.folder / "params.yaml")["train"]["epochs"] == 3
    assert (repository.folder / "README.md").read_text() == "mine\n"
    assert samples(repository) == 2
    restore(repository)


@pytest.mark.slow
def test_a_failed_run_leaves_its_value_in_params_and_with_temp_it_does_not(repository):
    before = experiments(repository)
    failing = ["dvc", "exp", "run", "-S", "merge.max_kl=0"]
    assert "merge.max_kl is 0" in repository.run(*failing, "--temp", code=255)
    assert repository.run("git", "status", "--porcelain") == ""
    assert "merge.max_kl is 0" in repository.run(*failing, code=255)
    assert read_yaml(repository.folder / "params.yaml")["merge"]["max_kl"] == 0
    (back,) = commands("git checkout params.yaml")
    repository.run(*back)
    assert repository.run("git", "status", "--porcelain") == ""
    restore(repository)
    assert experiments(repository) == before


@pytest.mark.slow
def test_an_experiment_of_before_the_storage_is_pushed_without_its_results_and_the_same_once_more_with_them(repository):
    printed = repository.run("dvc", "exp", "push", "origin", "early")
    assert "Pushed experiment early" in printed
    assert "uploaded" not in printed
    again = repository.run("dvc", "exp", "run", "--name", "again", "-S", "report.samples=1")
    assert running(again) == [], "from the run cache"
    restore(repository)
    assert re.search(r"\d+ files uploaded", repository.run("dvc", "exp", "push", "origin", "again"))


def test_what_dvc_writes_to_params_for_an_experiment_means_the_same(tmp_path):
    params = tmp_path / "params.yaml"
    params.write_text((ROOT / "params.yaml").read_text())
    apply_overrides(params, ["seed=7"])
    assert read_yaml(params) == {**read_yaml(ROOT / "params.yaml"), "seed": 7}
