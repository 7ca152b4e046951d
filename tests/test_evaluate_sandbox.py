"""Runs code that tries to get out of the sandbox, as the stage would run it.

Each attempt would be visible if it succeeded: as a passed test, or outside.
"""

import os
import platform
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from pathlib import Path

import psutil
import pytest

from stages._evaluate import sandbox
from stages._evaluate.sandbox import (
    CLOCK_FACTOR,
    FOLDER_BYTES,
    MOST_PROCESSES,
    Program,
    check_sandbox,
    run_program,
    run_programs,
)
from stages.runtime.errors import UserError
from tests.support.project import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="bubblewrap is only there for Linux")
SECONDS, MEGABYTES = 20, 256  # CPU time; the machine may be busy


def outcome(answer, tests="", seconds=SECONDS, megabytes=MEGABYTES):
    return run_program(Program(textwrap.dedent(answer), textwrap.dedent(tests)), seconds, megabytes)[0]


def left_over(mark) -> list[int]:
    """Processes that were started with `mark` among their arguments, after the kernel has had time to end them."""
    for _ in range(100):
        found = [each.pid for each in psutil.process_iter(["cmdline"]) if mark in (each.info["cmdline"] or [])]
        if not found:
            return []
        time.sleep(0.1)
    return found


@pytest.fixture
def marked(monkeypatch):
    """A word among the arguments of everything that the sandbox starts, and short limits."""
    mark = uuid.uuid4().hex
    whole = [*sandbox.bwrap_command(), mark]
    monkeypatch.setattr(sandbox, "bwrap_command", lambda: whole)
    monkeypatch.setattr(sandbox, "CLOCK_FACTOR", 1)
    return mark


def test_an_answer_passes_that_stands_its_tests():
    answer = "def double(x):\n    return 2 * x"
    assert outcome(answer, "assert double(2) == 4") == "passed"
    assert outcome(answer, "assert double(2) == 5") == "failed"
    assert outcome("def double(x):\n    return x +", "pass") == "failed"
    assert outcome("", "assert double(2) == 4") == "failed"


def test_the_standard_library_works_inside():
    answer = """
        import asyncio, ctypes, decimal, hashlib, json, multiprocessing, sqlite3, tempfile, zlib
        from concurrent.futures import ThreadPoolExecutor
        from dataclasses import dataclass
        import pickle

        @dataclass
        class Pair:
            one: int

        def f():
            return pickle.loads(pickle.dumps(Pair(1)))
        """
    tests = """
        assert f() == Pair(1)
        assert list(ThreadPoolExecutor(3).map(abs, [-1, 2])) == [1, 2]
        assert multiprocessing.get_context("fork").Pool(2).map(abs, [-1, 2]) == [1, 2]
        with tempfile.TemporaryFile() as file:
            assert file.write(b"text") == 4
        assert sqlite3.connect(":memory:").execute("select 1").fetchone() == (1,)
        """
    assert outcome(answer, tests) == "passed"


@pytest.mark.parametrize("end", ["import sys; sys.exit(0)", "import os; os._exit(0)", "raise SystemExit"])
def test_an_answer_that_ends_before_its_tests_has_not_passed(end):
    assert outcome(end, "assert False") == "failed"


def test_the_part_of_a_program_that_is_for_its_start_is_left_out():
    assert outcome("if __name__ == '__main__':\n    input()", "pass") == "passed"


def test_chance_is_the_same_each_time():
    answer = "import random\nx = random.random(), hash('word'), list({'a', 'b', 'c', 'd', 'e'})"
    guess = "x = None\nfor n in range(1): pass"
    assert outcome(answer, "assert x[0] == 0.8444218515250481") == "passed"  # random.Random(0).random()
    code = "print(hash('word'))"
    command = [sys.executable, "-c", code]
    known = subprocess.run(
        command, env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()
    assert outcome(answer, f"assert x[1] == {known}") == "passed"
    assert outcome(guess, "assert x == 1") == "failed"


def test_the_network_cannot_be_reached():
    with socket.create_server(("127.0.0.1", 0)) as server:
        arrived = []
        threading.Thread(target=lambda: arrived.append(server.accept()), daemon=True).start()
        port = server.getsockname()[1]
        connect = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=5)"
        assert outcome(connect) == "failed"
        assert not arrived
        exec(connect, {})  # noqa: S102  outside it works
    interfaces = "import socket\nassert [name for _, name in socket.if_nameindex()] == ['lo']"
    assert outcome(interfaces) == "passed"


@pytest.fixture
def secret(tmp_path):
    """A file outside that anybody may read and write, in a folder that anybody may write to."""
    tmp_path.chmod(0o777)
    path = tmp_path / "secret.txt"
    path.write_text("outside")
    path.chmod(0o666)
    return path


@pytest.mark.parametrize("action", ["open(path).read()", "open(path, 'w')", "os.listdir(os.path.dirname(path))"])
def test_files_outside_are_not_there(secret, action):
    assert outcome(f"import os\npath = {str(secret)!r}\n{action}") == "failed"
    assert secret.read_text() == "outside"


def test_neither_the_home_folder_nor_the_repository_can_be_read():
    home = Path.home()
    python = os.path.realpath(sys._base_executable)
    tests = f"""
        import os
        home, root = {str(home)!r}, {str(ROOT)!r}
        seen = [os.path.join(folder, name) for folder, _, names in os.walk(home) for name in names]
        assert all(path == {python!r} or path.startswith({sys.base_prefix + "/lib/"!r}) for path in seen), seen[:3]
        assert not os.path.exists(root)
        assert not os.path.exists("/etc/passwd")
        assert not [name for name in os.environ if name not in ("HOME", "PYTHONHASHSEED", "PWD", "LC_CTYPE")]
        """
    assert outcome("", tests) == "passed"


def test_nothing_can_be_written_but_a_little_in_memory(secret):
    tests = f"""
        import os
        def writable(folder):
            try:
                with open(os.path.join(folder, "new"), "w") as file:
                    file.write("x")
            except OSError:
                return False
            return True
        folders = ["/", "/usr", "/usr/lib", "/dev", os.path.dirname(os.__file__), {str(secret.parent)!r}]
        assert not [folder for folder in folders if writable(folder)]
        assert writable("/tmp") and writable("/dev/shm")
        """
    assert outcome("", tests) == "passed"
    fill = f"""
        import os
        written = 0
        try:
            for number in range(1000):
                with open(f"/tmp/{{number}}", "wb") as file:
                    written += file.write(bytes(1 << 20))
        except OSError:
            pass
        assert 1 << 20 <= written <= {FOLDER_BYTES}
        """
    assert outcome(fill) == "passed"
    assert not (secret.parent / "new").exists()


def test_the_interpreters_own_files_cannot_be_changed():
    path = str(Path(os.__file__))
    assert outcome(f"open({path!r}, 'a')") == "failed"
    assert outcome(f"import os\nos.chmod({path!r}, 0o777)") == "failed"
    assert outcome("import ctypes\nassert ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, 0) == 0") == "failed"


def test_signals_reach_nobody_outside(marked):
    """They do not reach this process by its number, or by any other."""
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        kill = f"""
            import os, signal
            assert os.getppid() < 10 and os.getpid() < 10
            for pid in ({os.getpid()}, {os.getppid()}, 1):
                try:
                    os.kill(pid, signal.SIGTERM)
                except OSError:
                    pass
            os.kill(-1, signal.SIGTERM)
            """
        assert outcome(kill) in ("failed", "stopped", "passed")
        assert outcome(f"import os\nos.kill({os.getpid()}, 0)") == "failed"
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not heard
    assert not left_over(marked)


def test_a_fork_bomb_ends_with_its_sandbox(marked):
    bomb = """
        import os
        while True:
            try:
                os.fork()
            except OSError:
                pass
        """
    assert outcome(bomb, seconds=1) == "stopped"
    assert not left_over(marked)


def test_no_more_than_a_few_processes_run_at_once():
    count = f"""
        import os, time
        started = 1
        try:
            while True:
                if os.fork() == 0:
                    time.sleep(1000)
                started += 1
        except OSError:
            pass
        assert 3 <= started <= {MOST_PROCESSES}
        """
    assert outcome(count) == "passed"


def test_a_process_that_goes_its_own_way_ends_as_well(marked):
    daemon = """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(1000)
            os._exit(0)
        """
    assert outcome(daemon) == "passed"
    assert not left_over(marked)


def test_endless_output_goes_nowhere():
    """A program may print, or write to the pipe that the sandbox keeps for its word."""
    assert outcome("while True:\n    print('x' * 100_000)", seconds=1) == "stopped"
    flood = """
        import os, stat
        while True:
            for number in range(64):
                try:
                    if stat.S_ISFIFO(os.fstat(number).st_mode):
                        os.write(number, b"x" * 100_000)
                except OSError:
                    pass
        """
    before = psutil.Process().memory_info().rss
    assert outcome(flood, seconds=1) in ("failed", "stopped")
    assert psutil.Process().memory_info().rss - before < 50 << 20


def test_too_much_memory_is_refused_to_one_process_and_ends_several():
    assert outcome(f"x = bytearray({MEGABYTES} << 20)") == "failed"
    assert outcome(f"x = bytearray({MEGABYTES // 4} << 20)") == "passed"
    many = f"""
        import os, time
        for _ in range(8):
            if os.fork() == 0:
                x = b"1" * ({MEGABYTES // 4} << 20)
                time.sleep(1000)
        time.sleep(1000)
        """
    started = time.monotonic()
    assert outcome(many) == "stopped"
    assert time.monotonic() - started < CLOCK_FACTOR * SECONDS  # memory was the limit, not time


@pytest.mark.parametrize(
    "keep",
    [
        "os.memfd_create('more')",
        "assert libc.syscall(447, 0) >= 0",  # memfd_secret
        "assert libc.shmget(0, 1 << 20, 0o1600) >= 0",
        "assert libc.msgget(0, 0o1600) >= 0",
        "assert libc.semget(0, 100, 0o1600) >= 0",
        "assert libc.unshare(0x10000000) == 0",  # a user namespace, where it may mount a folder in memory
        "assert libc.syscall({'x86_64': 56, 'aarch64': 220}[os.uname().machine], 0x10000011, 0, 0, 0, 0) >= 0",
    ],
)
def test_no_memory_can_be_had_that_belongs_to_no_process(keep):
    assert outcome(f"import ctypes, os\nlibc = ctypes.CDLL(None)\n{keep}") == "failed"


def test_the_processes_of_one_sandbox_do_not_count_in_another(params_of):
    tests = """
        import os, time
        for _ in range(12):
            if os.fork() == 0:
                time.sleep(1000)
        time.sleep(3)
        """
    section = params_of(evaluate={"test_seconds": SECONDS, "test_megabytes": MEGABYTES}).evaluate
    assert run_programs([Program("", textwrap.dedent(tests))] * 3, section, workers=3) == ["passed"] * 3


def test_in_a_container_with_few_users_the_sandbox_takes_one_of_them(monkeypatch):
    monkeypatch.setattr(
        Path, "read_text", lambda path: "         0       1000          1\n         1     100000      65535\n"
    )
    found = {sandbox.unused_user() for _ in range(100)}
    assert len(found) == 100
    assert all(32768 <= user < 65536 for user in found)


def test_on_a_machine_whose_calls_are_not_known_it_says_so(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(UserError, match=r"made for x86_64 and aarch64 only, not for riscv64.*run_tests: false"):
        check_sandbox()


@pytest.mark.parametrize("loop", ["while True: pass", "import time; time.sleep(1e6)", "import signal; signal.pause()"])
def test_what_never_ends_is_ended(loop, marked):
    assert outcome(loop, seconds=1) == "stopped"
    assert not left_over(marked)


@pytest.mark.parametrize(
    "lift",
    [
        "resource.setrlimit(resource.RLIMIT_CPU, (10**6, 10**6))",
        "resource.setrlimit(resource.RLIMIT_NPROC, (10**6, 10**6))",
        "os.setuid(0)",
        "os.setgroups([0])",
        "os.chroot('/tmp')",
        "assert os.getuid() == 0 and os.access('/', os.W_OK)",
    ],
)
def test_no_limit_can_be_lifted(lift):
    assert outcome(f"import os, resource\n{lift}") == "failed"


def test_outcomes_stand_in_the_order_of_the_programs(params_of):
    section = params_of(evaluate={"test_seconds": SECONDS, "test_megabytes": MEGABYTES}).evaluate
    programs = [Program(f"n = {n}", f"assert n % 3 == 0{' or 1 / 0' if n == 4 else ''}") for n in range(7)]
    expected = ["passed", "failed", "failed", "passed", "failed", "failed", "passed"]
    assert run_programs(programs, section, workers=3) == run_programs(programs, section, workers=1) == expected
    assert run_programs([], section, workers=2) == []


def test_without_bubblewrap_it_says_how_to_get_it(monkeypatch):
    sandbox.bwrap_command.cache_clear()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"not installed\. Install it .*apt-get install bubblewrap.*run_tests: false"):
        check_sandbox()


def test_where_bubblewrap_may_not_work_it_says_what_it_said(monkeypatch, tmp_path):
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    sandbox.bwrap_command.cache_clear()
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    try:
        with pytest.raises(UserError, match=r"does not start: bwrap: No permissions to create new namespace"):
            check_sandbox()
    finally:
        sandbox.bwrap_command.cache_clear()


@pytest.fixture
def ordinary_user(monkeypatch):
    """The sandbox as it is made for everybody except root."""
    monkeypatch.setattr(sandbox, "is_root", lambda: False)
    command = sandbox.bwrap_command  # `marked` replaces it
    command.cache_clear()
    yield
    command.cache_clear()


def test_for_an_ordinary_user_it_is_as_tight(ordinary_user, secret, marked):
    assert "--unshare-user" in sandbox.bwrap_command()
    check_sandbox()
    assert outcome("def f():\n    return 1", "assert f() == 1") == "passed"
    tests = f"""
        import os, socket
        def refused(action, *arguments):
            try:
                action(*arguments)
            except OSError:
                return True
        assert [name for _, name in socket.if_nameindex()] == ["lo"]
        assert refused(open, {str(secret)!r})
        assert refused(open, "/new", "w") and refused(open, "/dev/new", "w") and refused(open, os.__file__, "a")
        assert refused(os.kill, {os.getpid()}, 0)
        """
    assert outcome("", tests) == "passed"
    nested = "import ctypes, os\nassert ctypes.CDLL(None, use_errno=True).unshare(0x10000000) == 0"
    assert outcome(nested) == "failed"  # no user namespace inside
    assert outcome("import os\nos.memfd_create('more')") == "failed"
    assert outcome("while True:\n    pass", seconds=1) == "stopped"
    assert not left_over(marked)
