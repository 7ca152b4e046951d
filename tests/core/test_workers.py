"""Work in several processes: results keep their order, errors and kills are reported, and no process is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.core.workers import count_workers, ordered_map
from stages.runtime.errors import UserError
from tests.support.project import ROOT


def squared(number: int) -> tuple[int, int]:
    time.sleep(0.02 * (number % 3 == 0))  # so that the second of two workers is often done before the first
    return number**2, os.getpid()


def fail_at_five(number: int) -> int:
    if number == 5:
        raise UserError("row 5 is wrong")
    return number


def die_at_five(number: int) -> int:
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_items(workers):
    results = list(ordered_map(squared, range(20), workers))
    assert [square for square, _ in results] == [number**2 for number in range(20)]
    assert len({process for _, process in results} - {os.getpid()}) == (0 if workers == 1 else workers)


def test_one_item_needs_no_other_process():
    assert list(ordered_map(squared, [3], 4)) == [(9, os.getpid())]
    assert list(ordered_map(squared, [], 4)) == []


def test_items_are_taken_only_as_fast_as_results():
    taken = []
    results = ordered_map(abs, (taken.append(n) or n for n in range(1000)), 2)
    assert next(results) == 0
    assert len(taken) <= 5
    results.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_users_mistake_in_a_worker_is_raised_in_the_stage(workers):
    with pytest.raises(UserError, match="row 5 is wrong"):
        list(ordered_map(fail_at_five, range(20), workers))


def test_a_worker_that_is_killed_is_explained():
    with pytest.raises(UserError, match=r"a worker process was killed.*machine\.workers"):
        list(ordered_map(die_at_five, range(20), 2))


def test_machine_workers_is_the_number_of_workers(params_of):
    assert count_workers(params_of(machine={"workers": 3}).machine) == 3
    assert count_workers(params_of(machine={"workers": None}).machine) == len(os.sched_getaffinity(0))


WAIT = """
import os, time
from stages.core.workers import ordered_map
if __name__ == "__main__":
    for _ in ordered_map(time.sleep, [0, 0, 60, 60], 2):
        pass
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks processes up in /proc")
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent(tmp_path, kill):
    script = tmp_path / "wait.py"
    script.write_text(WAIT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script)]
    parent = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    workers = eventually(lambda: workers_of(parent.pid, 2))
    if kill == signal.SIGINT:
        os.killpg(parent.pid, kill)  # as a terminal sends Ctrl-C to all processes
    else:
        parent.send_signal(kill)
    _, printed = parent.communicate(timeout=20)
    if kill == signal.SIGINT:
        assert printed.count("Traceback") == 1  # only the parent's, which run_stage() turns into a line
    assert eventually(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))


def workers_of(parent: int, count: int) -> list[int]:
    """Returns the spawned children of a process once there are `count`, and an empty list before."""
    with open(f"/proc/{parent}/task/{parent}/children") as file:
        children = [int(child) for child in file.read().split()]
    workers = []
    for child in children:
        with open(f"/proc/{child}/cmdline") as file:
            if "spawn_main" in file.read():
                workers.append(child)
    return workers if len(workers) == count else []


def eventually(ask, seconds: float = 20.0):
    end = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
    return answer
