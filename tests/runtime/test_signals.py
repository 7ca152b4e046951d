"""Being stopped, in a process of its own without a model: what each signal does, and when."""

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from tests.support.project import ROOT

# In C, without the interpreter's lock, for many seconds: Python's own handlers have to wait for its end.
BUSY = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'a', b'b', 100_000_000)"
BEGIN = """
import sys, time
from stages.runtime import signals
stop = signals.Stop()
stop.install()
signals.die_with_parent()
print("ready", flush=True)
"""


@pytest.fixture
def started():
    processes = []

    def start(code):
        process = subprocess.Popen(
            [sys.executable, "-c", BEGIN + code],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in processes:
        process.kill()


def end(process, *signals):
    """(exit code, last line of standard error) after the signals, half a second apart."""
    for number in signals:
        time.sleep(0.5)
        process.send_signal(number)
    errors = process.communicate(timeout=20)[1]
    return process.returncode, errors.splitlines()[-1]


def test_sigterm_outside_of_the_training_ends_it_at_once_with_143(started):
    assert end(started("time.sleep(60)"), signal.SIGTERM) == (143, "train: stopped by SIGTERM. No step was saved yet")


def test_sigint_outside_of_the_training_ends_it_at_once(started):
    process = started("""
try:
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(130)
""")
    assert end(process, signal.SIGINT) == (130, "train: stopped by SIGINT. No step was saved yet")


def test_a_signal_in_the_training_waits_for_the_checkpoint(started):
    process = started("""
stop.training, stop.saved = True, 3
while not stop.received:
    time.sleep(0.1)
stop.saved = 4
stop.leave()
""")
    line = "train: stopped by SIGTERM. The next run with the same values continues from step 4"
    assert end(process, signal.SIGTERM) == (143, line)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_step_that_does_not_end_falls_back_on_the_last_checkpoint(started, number, code):
    process = started(f"signals.PATIENCE[{int(number)}] = 0.7; stop.training, stop.saved = True, 3; {BUSY}")
    line = "no checkpoint within 0.7 s of the signal. The next run with the same values continues from step 3"
    assert end(process, number) == (code, f"train: {line}")


def test_a_second_ctrl_c_waits_for_nothing(started):
    process = started("""
stop.training, stop.saved = True, 3
try:
    while True:
        time.sleep(0.1)
except KeyboardInterrupt:
    sys.exit(130)
""")
    line = "train: stopped by SIGINT. The next run with the same values continues from step 3"
    assert end(process, signal.SIGINT, signal.SIGINT) == (130, line)


def test_the_first_process_of_a_container_has_no_parent_to_die_with():
    namespace = (
        ["unshare", "--pid", "--fork"] if not os.geteuid() else ["unshare", "--map-root-user", "--pid", "--fork"]
    )
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system allows no namespaces")
    command = [*namespace, "--mount-proc", sys.executable, "-c", BEGIN]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "ready\n", done.stderr


@pytest.mark.parametrize("between", [[], ["/bin/sh", "-c"]], ids=["its parent", "a shell's parent"])
def test_the_process_dies_with(between):
    command = [sys.executable, "-c", BEGIN + "time.sleep(60)"]
    if between:  # `true` keeps every shell from putting the last command in its own place
        command = [*between, f"{shlex.join(command)}; true"]
    starter = f"import subprocess; subprocess.run({command!r})"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", starter], env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "ready\n"
    killed = time.monotonic()
    parent.kill()
    parent.wait()
    assert parent.stdout.read() == ""  # it returns when the child, who holds the pipe too, is gone
    assert time.monotonic() - killed < 30
