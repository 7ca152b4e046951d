"""The lock on a folder of checkpoints. Who is refused and what it says: tests/test_train_resume.py."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from stages.runtime.errors import UserError
from stages.runtime.lock import WAIT, take_lock
from tests.support.project import ROOT


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoints" / "lock"


def test_the_lock_names_its_process_until_it_is_closed(path):
    path.parent.mkdir()
    path.write_text("1234567890\n")  # of a process that was killed
    with take_lock(path):
        assert path.read_text() == f"{os.getpid()}\n"
        with pytest.raises(UserError, match=rf"process {os.getpid()} is training .* holds {path.parent}\. .*`kill "):
            take_lock(path)
    take_lock(path).close()


def test_a_lock_that_is_not_kept_is_free(path):
    take_lock(path)
    take_lock(path).close()


def test_a_removed_folder_is_made_anew_and_its_old_lock_keeps_nobody_out(path):
    with take_lock(path):
        shutil.rmtree(path.parent)
        take_lock(path).close()


def test_a_lock_whose_file_is_removed_while_another_waits_for_it_goes_to_that_one(path):
    ended = take_lock(path)

    def end():
        shutil.rmtree(path.parent)
        path.parent.mkdir()
        ended.close()

    timer = threading.Timer(WAIT / 4, end)
    timer.start()
    with take_lock(path):
        assert path.read_text() == f"{os.getpid()}\n"
        with pytest.raises(UserError, match="is training"):
            take_lock(path)
    timer.join()


def test_who_looks_at_the_lock_for_a_moment_refuses_nobody(path):
    take_lock(path).close()
    with open(path) as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as tools/_doctor does
        timer = threading.Timer(WAIT / 4, lambda: fcntl.flock(file, fcntl.LOCK_UN))
        timer.start()
        take_lock(path).close()
        timer.join()


def test_a_killed_process_frees_the_lock_though_a_fork_of_it_lives_on(path):
    code = """
import os, sys, time
from pathlib import Path
from stages.runtime.lock import take_lock
held = take_lock(Path(sys.argv[1]))
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(600)
"""
    command = [sys.executable, "-c", code, path]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
        try:
            with pytest.raises(UserError, match=f"process {process.pid} is training"):
                take_lock(path)
            process.kill()
            process.wait()
            take_lock(path).close()
            os.kill(child, 0)  # it lives
        finally:
            os.kill(child, signal.SIGKILL)
            process.kill()
