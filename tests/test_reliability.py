"""Faults around a whole run of the small pipeline; the table of docs/reliability.md names these and the other tests."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from stages.shared.params import read_yaml
from tests.pipeline import ALL, ROOT

pytestmark = pytest.mark.slow

DOWNLOADS = ["download_model", "download_data"]
CONNECT = "import socket; socket.create_connection(('127.0.0.1', int(__import__('sys').argv[1])), 5)"


def works(*command):
    try:
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
    except OSError:
        return False


def without_network():
    """The beginning of a command whose programs have no network, where this system allows that."""
    ways = (["unshare", "--net"], ["unshare", "--map-root-user", "--net"])
    return next((way for way in ways if works(*way, "true")), [])


@pytest.fixture(scope="module")
def offline_run(made, tmp_path_factory):  # noqa: F811
    """A clone whose downloads ran, and then the others with the network cut off; what DVC printed; the attempts."""
    repository = made("offline-run")
    repository.run("dvc", "repro", *DOWNLOADS)
    log = tmp_path_factory.mktemp("network") / "log"
    before = dict(repository.environment)
    repository.environment |= {"PYTHONPATH": str(ROOT / "tests/offline"), "NETWORK_LOG": str(log)}
    with pytest.MonkeyPatch.context() as patch:
        import socket

        with socket.create_server(("127.0.0.1", 0)) as server:
            port = str(server.getsockname()[1])
            refused = repository.run(*without_network(), "python", "-c", CONNECT, port, code=1)
            patch.delenv("PYTHONPATH", raising=False)
            if without_network():  # without the watch as well
                assert not works(*without_network(), sys.executable, "-c", CONNECT, port)
    assert "the network is cut off" in refused
    assert "socket.connect" in log.read_text()
    log.write_text("")
    printed = repository.run(*without_network(), "dvc", "repro")
    repository.environment = before
    repository.commit()
    return repository, printed, log.read_text()


def test_no_stage_but_the_downloads_needs_or_tries_the_network(offline_run):
    repository, printed, attempts = offline_run
    ran = [line.split("'")[1] for line in printed.splitlines() if line.startswith("Running stage '")]
    assert sorted(ran) == sorted(set(ALL) - set(DOWNLOADS))
    assert attempts == ""
    assert repository.ran("repro") == []


@pytest.fixture
def repository(offline_run, tmp_path):
    """A copy of that clone, cache included, to harm."""
    shutil.copytree(offline_run[0].folder, tmp_path / "clone", symlinks=True)
    copy = type(offline_run[0])(tmp_path / "clone", tmp_path / "site-cache")
    assert copy.ran("repro") == []
    return copy


def bytes_of(folder):
    """{file: sha256} of all outputs, timing apart."""
    files = [path for name in ("data", "models", "metrics") for path in (folder / name).rglob("*")]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.is_file() and not path.name.endswith(".timing.json") and "partial" not in str(path)
    }


def test_a_flipped_byte_in_the_base_is_refused_before_training_and_the_remedy_brings_it_back(repository):
    base = repository.folder / "models/base/model.safetensors"
    if not base.is_file():
        base = sorted(base.parent.glob("*.safetensors"))[0]
    whole = base.read_bytes()
    md5 = hashlib.md5(whole).hexdigest()
    for path in (base, repository.folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:]):  # one file, where it is linked
        times, mode = (path.stat().st_atime_ns, path.stat().st_mtime_ns), path.stat().st_mode
        path.chmod(0o644)
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        path.chmod(mode)
        os.utime(path, ns=times)
    repository.change("train.learning_rate", 0.001)
    printed = repository.run("dvc", "repro", code=255)
    assert "Running stage 'download_model'" not in printed, "DVC goes by size and time"
    assert f"train: {base.relative_to(repository.folder)} has other bytes than its manifest says" in printed
    assert "Traceback" not in printed
    said = repository.run("python", "-m", "tools.doctor", "--deep", code=1)
    line = next(line for line in said.splitlines() if line.startswith("✗ cache: the copy of models/base"))
    remove = line.partition(". rm")[2].partition(", then")[0]
    again = line.rpartition("`")[0].rpartition("`")[2]
    repository.run("sh", "-euc", f"rm{remove}")
    repository.run("sh", "-euc", again)
    assert base.read_bytes() == whole


def stopped_below(process):
    """The stage that stopped itself."""
    for _ in range(3000):
        assert process.poll() is None, process.stdout.read()
        for child in psutil.Process(process.pid).children(recursive=True):
            if child.status() == psutil.STATUS_STOPPED:
                return child
        time.sleep(0.1)
    raise AssertionError("nothing stopped")


def test_of_two_repros_at_once_the_second_is_refused_and_the_first_ends_well(repository):
    before = bytes_of(repository.folder)
    environment = repository.environment | {
        "PYTHONPATH": str(ROOT / "tests/faults"),
        "FAULT": "stages.shared.stage:snapshot:1:SIGSTOP",
    }
    command = ["dvc", "repro", "--force", "--single-item", "--no-run-cache", "clean"]
    first = subprocess.Popen(
        command,
        cwd=repository.folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        stage = stopped_below(first)
        refused = repository.run(*command, code=255)
        assert "busy" in refused or "lock" in refused.lower(), refused
        assert str(first.pid) in refused or "Unable to acquire lock" in refused
        stage.send_signal(signal.SIGCONT)
        printed = first.communicate(timeout=600)[0]
    finally:
        if first.poll() is None:
            os.killpg(first.pid, signal.SIGKILL)
    assert first.returncode == 0, printed
    assert bytes_of(repository.folder) == before


def test_a_lock_that_a_killed_dvc_left_stops_nobody(repository):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    info = f'{{"pid": {ended.pid}, "cmd": "dvc repro"}}'
    clean = repository.folder / "data/clean"
    (repository.folder / ".dvc/tmp/rwlock").write_text(f'{{"write": {{"{clean}": {info}}}, "read": {{}}}}')
    (repository.folder / ".dvc/tmp/lock").write_text(f"{ended.pid}\n")
    assert f"process {ended.pid} (dvc repro), which is dead" in repository.run("python", "-m", "tools.doctor", code=1)
    assert repository.ran("repro", "--force", "--single-item", "clean") == ["clean"]


def unprivileged():
    """The beginning of a command that even root needs to be allowed to write."""
    if os.geteuid():
        return []
    return ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]


def test_a_folder_that_may_not_be_written_is_named_and_the_former_results_stay(repository):
    data, before = repository.folder / "data", bytes_of(repository.folder)
    data.chmod(0o555)
    try:
        printed = repository.run(*unprivileged(), "python", "-m", "stages.clean", code=1)
    finally:
        data.chmod(0o755)
    assert printed.startswith("clean: Permission denied: data/.clean.partial. Allow")
    assert "Traceback" not in printed
    assert bytes_of(repository.folder) == before


FULL_DISK = """
mkdir "$1" && mount -t tmpfs -o size=512m tmpfs "$1" || exit 99
cp -R "$2"/. "$1" && cd "$1" || exit 98
digest() { find data models metrics -type f ! -name '*.timing.json' ! -path '*partial*' -exec sha256sum {} + | sort; }
digest > "$3"
while read -r command; do
  cat /dev/zero >> filler 2>/dev/null
  echo "== $command"
  $command 2>&1 < /dev/null
  echo "== ended with $?"
done
digest > "$4"
rm filler
python -m stages.clean > /dev/null && echo "== recovered"
"""


def commands_of(repository):
    """What dvc.lock has: also those of stages that stand in dvc.yaml several times."""
    return [entry["cmd"] for entry in read_yaml(repository.folder / "dvc.lock")["stages"].values()]


def test_a_full_disk_stops_every_stage_with_what_to_do_and_the_former_results_stay(repository, tmp_path):
    commands = commands_of(repository)
    assert len(commands) == len(ALL)
    shutil.rmtree(repository.folder / ".dvc/cache")
    space = ["unshare", "--mount"] if works("unshare", "--mount", "true") else ["unshare", "--map-root-user", "--mount"]
    done = subprocess.run(
        [*space, "sh", "-c", FULL_DISK, "sh", tmp_path / "disk", repository.folder, tmp_path / "old", tmp_path / "new"],
        env=repository.environment | {"PYTHONDONTWRITEBYTECODE": "1"},
        input="".join(f"{command}\n" for command in commands),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=800,
        check=False,
    )
    if done.returncode == 99 or "unshare" in done.stdout[:200]:  # no mounts here: a limit on files stands for the disk
        return each_stage_under_a_limit(repository, commands)
    assert (tmp_path / "old").read_text() == (tmp_path / "new").read_text() != ""
    said = dict(zip(commands, done.stdout.split("== python")[1:], strict=True))
    for command, text in said.items():
        assert "== ended with 1\n" in text, text
        assert "Traceback" not in text, text
        assert "ree some space" in text, (command, text)
    assert done.stdout.endswith("== recovered\n")
    return None


def each_stage_under_a_limit(repository, commands):
    before = bytes_of(repository.folder)
    for command in commands:
        printed = repository.run("sh", "-c", f"ulimit -f 1; exec {command}", code=1)
        assert "ulimit -f" in printed or "ree some space" in printed, (command, printed)
        assert "Traceback" not in printed, printed
    assert bytes_of(repository.folder) == before


def test_a_limit_on_the_size_of_files_is_said_in_words(repository):
    each_stage_under_a_limit(repository, [command for command in commands_of(repository) if "clean" in command])
    assert Path(repository.folder, "data/clean/train.parquet").is_file()
