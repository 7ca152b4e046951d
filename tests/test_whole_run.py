"""One whole run of the pipeline through DVC, in a clone, with parameters smaller than the tiny profile's.

It is in the default tier. What happens to changes and under faults is in test_pipeline.py and test_reliability.py.
"""

import json
import socket
import sys

import pytest

from tests.support.repository import Repository, succeeds, without_network

CONNECT = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5)"


def test_a_whole_run_on_local_files_neither_needs_nor_tries_the_network(first_run):
    assert (first_run.folder.parent / "attempts").read_text() == ""


def test_an_attempt_to_reach_the_network_would_have_failed_and_shown(first_run, tmp_path):
    log = tmp_path / "attempts"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        assert succeeds(sys.executable, "-c", CONNECT, port)
        assert "the network is cut off" in first_run.cut_off(log, "python", "-c", CONNECT, port, code=1)
        if without_network():  # for what does not ask Python
            assert not succeeds(*without_network(), sys.executable, "-I", "-c", CONNECT, port)
    assert "socket.getaddrinfo" in log.read_text()


@pytest.fixture(scope="module")
def repository(first_run, tmp_path_factory) -> Repository:
    """A copy, cache included: DVC's commands write into it."""
    return first_run.clone(tmp_path_factory.mktemp("whole") / "clone", with_data=True)


def test_after_a_run_nothing_runs_again_and_git_is_clean(repository):
    assert repository.ran("repro") == []
    repository.run("dvc", "status")
    assert repository.run("git", "status", "--porcelain") == ""


def test_metrics_json_is_in_git_and_what_dvc_compares(repository):
    assert "metrics.json" in repository.run("git", "ls-files")
    metrics = json.loads((repository.folder / "metrics.json").read_text())
    assert metrics["clean"]["rows"]["read"] == 200
    assert metrics["evaluate"]["base"]["rows"] == metrics["evaluate"]["tuned"]["rows"] == 12
    assert metrics["train"]["validation_loss"] < metrics["train"]["validation_loss_start"]
    assert "evaluate.tuned.perplexity" in repository.run("dvc", "metrics", "show", "--md")
