"""Faults around a whole run of the small pipeline; the table of docs/reliability.md names these and the other tests."""

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import time

import psutil
import pytest

from stages.core.paths import TIMING
from stages.core.yaml_files import read_yaml
from tests.support.pipeline import ALL
from tests.support.repository import PATIENCE, Repository, running, succeeds

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def repository(first_run, tmp_path_factory) -> Repository:
    """A copy, cache included, to harm; each test leaves it whole."""
    copy = first_run.clone(tmp_path_factory.mktemp("reliability") / "clone", with_data=True)
    assert copy.ran("repro") == []
    return copy


def bytes_of(folder):
    """{file: sha256} of all outputs."""
    files = [path for name in ("data", "models", "metrics") for path in (folder / name).rglob("*")]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.is_file() and path.parent != folder / TIMING and "partial" not in str(path)
    }


def flip(repository, file):
    """Changes a byte of the file and of DVC's copy of it, as a failing disk does, and returns what it was."""
    whole = file.read_bytes()
    md5 = hashlib.md5(whole).hexdigest()
    for path in (file, repository.folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:]):
        times, mode = (path.stat().st_atime_ns, path.stat().st_mtime_ns), path.stat().st_mode
        path.chmod(0o644)
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        path.chmod(mode)
        os.utime(path, ns=times)
    return whole


@pytest.mark.parametrize(
    ("path", "stage", "maker"),
    [
        ("models/adapter/adapter_model.safetensors", "merge", "train"),
        ("models/merged/config.json", "evaluate@tuned", "merge"),
    ],
)
def test_a_flipped_byte_in_the_cache_is_refused_by_the_stage_that_needs_it_and_the_remedy_works(
    repository, path, stage, maker
):
    before = repository.hashes()
    whole = flip(repository, repository.folder / path)
    printed = repository.run("dvc", "repro", "--force", "--single-item", "--no-run-cache", stage, code=255)
    out = path.rpartition("/")[0]
    assert f"{stage}: {path} is not what {maker} left there" in printed
    assert "Traceback" not in printed
    assert repository.hashes() == before
    said = repository.run("python", "-m", "tools.doctor", "--deep", code=1)
    line = next(line for line in said.splitlines() if line.startswith(f"✗ cache: the copy of {out}"))
    remove = line.partition(". rm")[2].partition(", then")[0]
    repository.run("sh", "-euc", f"rm{remove} && rm -rf {out}")
    repository.run("dvc", "repro")
    assert (repository.folder / path).read_bytes() == whole
    assert repository.hashes() == before


def test_a_flipped_byte_in_the_base_is_refused_by_each_stage_that_uses_it_and_the_remedy_brings_it_back(
    repository,
):
    base = next(repository.folder.glob("models/base/*.safetensors"))
    whole = flip(repository, base)
    for stage in ("evaluate@base", "merge", "train"):  # merge reads the adapter, which DVC removes before train
        printed = repository.run("dvc", "repro", "--force", "--single-item", "--no-run-cache", stage, code=255)
        assert f"{stage}: {base.relative_to(repository.folder)} has other bytes than its manifest says" in printed
        assert "Traceback" not in printed
    said = repository.run("python", "-m", "tools.doctor", "--deep", code=1)
    line = next(line for line in said.splitlines() if line.startswith("✗ cache: the copy of models/base"))
    remove = line.partition(". rm")[2].partition(", then")[0]
    again = line.rpartition("`")[0].rpartition("`")[2]
    repository.run("sh", "-euc", f"rm{remove}")
    repository.run("sh", "-euc", again)
    assert base.read_bytes() == whole
    repository.run("dvc", "checkout")


CLEAN = ["dvc", "repro", "--force", "--single-item", "--no-run-cache", "clean"]
BEFORE, AFTER = 1, 2  # its work, of which snapshots of all inputs are taken


@contextlib.contextmanager
def stopped(repository, moment):
    """`dvc repro` of the stage clean, and that stage's process, which has stopped itself before or after its work."""
    process = repository.start(*CLEAN, fault=f"stages.runtime.runner:snapshot:{moment}:SIGSTOP")
    try:
        yield process, stopped_below(process)
    finally:
        if process.returncode is None:  # once it is waited for, its number may be another's
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def stopped_below(process):
    for _ in range(3000):
        assert process.poll() is None, process.stdout.read()
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.status() == psutil.STATUS_STOPPED:
                    return child
        time.sleep(0.1)
    raise AssertionError("nothing stopped within 300 s")


def test_of_two_repros_at_once_the_second_is_refused_and_the_first_ends_well(repository):
    before = bytes_of(repository.folder)
    with stopped(repository, BEFORE) as (first, stage):
        refused = repository.run(*CLEAN, code=255)
        assert "is busy, it is being blocked by" in refused
        assert f"(PID {first.pid})" in refused
        stage.send_signal(signal.SIGCONT)
        printed = first.communicate(timeout=PATIENCE)[0]
    assert first.returncode == 0, printed
    assert bytes_of(repository.folder) == before


EDITS = {
    "params.yaml:clean": ("params.yaml", "min_characters: 1", "min_characters: 2"),
    "stages/core/python_syntax.py": ("stages/core/python_syntax.py", '"py")', '"py", "py2")'),
}


def test_what_is_edited_while_a_stage_runs_is_named_and_the_result_not_taken(repository):
    before = bytes_of(repository.folder)
    contents = {name: (repository.folder / name).read_text() for name, _, _ in EDITS.values()}
    with stopped(repository, AFTER) as (dvc, stage):
        for name, old, new in EDITS.values():
            assert old in contents[name]
            (repository.folder / name).write_text(contents[name].replace(old, new, 1))
        stage.send_signal(signal.SIGCONT)
        printed = dvc.communicate(timeout=PATIENCE)[0]
    assert dvc.returncode == 255, printed
    assert f"clean: {', '.join(EDITS)} changed while the stage ran, so its result belongs to neither version" in printed
    assert "Traceback" not in printed
    assert "clean" in repository.run("dvc", "status", "clean"), "not taken for the result of the edited inputs"
    for name, text in contents.items():
        (repository.folder / name).write_text(text)
    repository.run("dvc", "repro", "clean")
    assert bytes_of(repository.folder) == before


def test_ctrl_c_ends_the_stage_with_a_word_and_the_next_run_makes_the_same(repository):
    before = bytes_of(repository.folder)
    with stopped(repository, BEFORE) as (dvc, stage):
        os.killpg(dvc.pid, signal.SIGINT)
        stage.send_signal(signal.SIGCONT)
        printed = dvc.communicate(timeout=PATIENCE)[0]
    assert dvc.returncode == 255, printed
    assert "\nclean: stopped\n" in printed
    assert "Traceback" not in printed
    repository.run(*CLEAN)
    assert bytes_of(repository.folder) == before


def test_a_lock_that_a_killed_dvc_left_stops_nobody(repository):
    with stopped(repository, BEFORE) as (dvc, _):
        os.killpg(dvc.pid, signal.SIGKILL)
        dvc.wait()
    said = repository.run("python", "-m", "tools.doctor", code=1)
    assert f"names process {dvc.pid} (" in said
    assert "which is dead. Make sure that no DVC command runs" in said
    assert running(repository.run(*CLEAN)) == ["clean"]


def unprivileged():
    """The beginning of a command that even root needs to be allowed to write."""
    if os.geteuid():
        return []
    return ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]


@pytest.mark.parametrize(
    ("name", "first"), [("data", "data/.clean.partial"), ("metrics", "metrics/.clean.json.partial")]
)
def test_a_folder_that_may_not_be_written_is_named_and_the_former_results_stay(repository, name, first):
    folder, before = repository.folder / name, bytes_of(repository.folder)
    folder.chmod(0o555)
    try:
        printed = repository.run(*unprivileged(), "python", "-m", "stages.clean", code=1)
    finally:
        folder.chmod(0o755)
    assert f"\nclean: Permission denied: {first}. Allow" in printed
    assert "Traceback" not in printed
    assert bytes_of(repository.folder) == before


@pytest.mark.parametrize(("name", "first"), [("data", "data/clean"), ("metrics", "metrics/clean.json")])
def test_under_dvc_a_folder_that_may_not_be_written_is_named_and_a_checkout_brings_the_former_results(
    repository, name, first
):
    """DVC removes a stage's outputs before its command, and so says it before the stage can."""
    folder, before = repository.folder / name, bytes_of(repository.folder)
    lock = (repository.folder / "dvc.lock").read_bytes()
    folder.chmod(0o555)
    try:
        printed = repository.run(*unprivileged(), *CLEAN, code=255)
    finally:
        folder.chmod(0o755)
    assert f"[Errno 13] Permission denied: '{repository.folder / first}'" in printed
    assert bytes_of(repository.folder).items() < before.items(), "removed in part, and nothing else was made"
    assert "changed outs" in repository.run("dvc", "status", "clean")
    repository.run("dvc", "checkout")
    assert bytes_of(repository.folder) == before
    assert repository.ran("repro", "clean") == []
    assert (repository.folder / "dvc.lock").read_bytes() == lock


def test_a_cache_that_may_not_be_written_is_named_and_the_next_run_makes_the_same(repository):
    before = bytes_of(repository.folder)
    folders = [repository.folder / ".dvc/cache", *(repository.folder / ".dvc/cache").rglob("*/")]
    repository.change("clean.min_characters", 2)  # another lock and run, and so a new object
    for folder in folders:
        folder.chmod(0o555)
    try:
        printed = repository.run(*unprivileged(), *CLEAN, code=255)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert "Permission denied" in printed
    assert ".dvc/cache" in printed
    repository.run("git", "checkout", "params.yaml")
    repository.run("dvc", "repro", "clean")
    assert bytes_of(repository.folder) == before


SMALL_DISK = """
mkdir "$1" && mount -t tmpfs -o size=512m tmpfs "$1" || exit 99
cp -R "$2"/. "$1" && cd "$1" && rm -rf .dvc/cache || exit 98
digest() {
  find data models metrics -type f ! -path 'metrics/timing/*' ! -path '*partial*' -exec sha256sum {} + | sort
}
digest > "$3"
"""
FULL_DISK = """
while read -r command; do
  cat /dev/zero >> filler 2>/dev/null
  echo "== $command"
  $command 2>&1 < /dev/null
  echo "== ended with $?"
done
digest > "$4"
rm filler
python -m stages.clean > /dev/null && digest | cmp - "$3" && echo "== recovered"
"""


def on_a_small_disk(repository, tmp_path, script, given=""):
    """What the script printed in a copy of the repository on a disk of its own, which is gone afterwards."""
    mount = ["unshare", "--mount"] if not os.geteuid() else ["unshare", "--map-root-user", "--mount"]
    places = [tmp_path / "disk", repository.folder, tmp_path / "old", tmp_path / "new"]
    done = subprocess.run(
        [*mount, "sh", "-c", SMALL_DISK + script, "sh", *places],
        env=repository.environment | {"PYTHONDONTWRITEBYTECODE": "1"},
        input=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if done.returncode == 99 or not succeeds(*mount, "true"):
        pytest.skip("this system lets no test mount a disk; test_a_limit_on_the_size_of_files... stands for it")
    return done.stdout


def commands_of(repository):
    """{stage: command}, as dvc.lock has them."""
    return {name: entry["cmd"] for name, entry in read_yaml(repository.folder / "dvc.lock")["stages"].items()}


def test_a_full_disk_stops_every_stage_with_what_to_do_and_the_former_results_stay(repository, tmp_path):
    commands = commands_of(repository)
    assert commands.keys() == set(ALL)
    del commands["hash_code"]  # its files are so small that they still fit
    commands = list(commands.values())
    done = on_a_small_disk(repository, tmp_path, FULL_DISK, "".join(f"{command}\n" for command in commands))
    assert (tmp_path / "old").read_text() == (tmp_path / "new").read_text() != ""
    said = dict(zip(commands, done.split("== python")[1:], strict=True))
    for command, text in said.items():
        assert "== ended with 1\n" in text, text
        assert "Traceback" not in text, text
        assert "ree some space" in text, (command, text)
    assert done.endswith("== recovered\n")


FULL_UNDER_DVC = """
cp -R "$2/.dvc/cache" .dvc/cache
dvc checkout --quiet --relink  # as where they were made: what is removed frees nothing
cp dvc.lock lock
head -c $(($(df --output=avail -B1 . | tail -n 1) - (1 << 20))) /dev/zero > filler
merge() { dvc repro --force --single-item --no-run-cache merge; echo "== ended with $?"; }
merge
[ -e models/merged ] || echo "== removed"
cat /dev/zero >> filler
merge
rm filler
python -m tools.doctor > said
sed -n 's/^✗ locks: .* then: rm /rm /p' said | sh -eux
dvc status merge
dvc checkout && digest | cmp - "$3" && echo "== brought back"
dvc repro merge
cmp dvc.lock lock && digest | cmp - "$3" && echo "== recovered"
"""


def test_on_a_full_disk_dvc_has_removed_the_former_results_and_a_checkout_brings_them_back(repository, tmp_path):
    """With room only for DVC's own files the stage says it. Without any room, DVC may tear its list of locks, and then
    no stage begins. If that list still fits into the block that it has, the stage begins and says it."""
    printed = on_a_small_disk(repository, tmp_path, FULL_UNDER_DVC)
    little, none, after = printed.split("== ended with 255\n")
    assert re.search(r"(?m)^merge: .*ree some space", little)
    assert none.startswith("== removed\n")
    assert re.search("Unable to read RWLock-file|No space left on device", none)
    assert set(running(none)) <= {"merge"}
    assert "changed outs" in after
    assert "== brought back\n" in after
    assert running(after) == []
    assert printed.endswith("== recovered\n"), printed


FULL_WHILE_DVC_WRITES_ITS_LOCK = """
head -c $(($(df --output=avail -B1 . | tail -n 1) - (4 << 20))) /dev/zero > filler
timeout 300 python -c "$FILL" &
dvc repro --force --single-item --no-run-cache clean
echo "== ended with $?"
wait $! && echo "== filled meanwhile"
rm filler more
dvc repro clean > /dev/null || echo "== not as it is"
python -m tools.doctor > said
grep '^✗ dvc.lock: ' said && git checkout dvc.lock
sed -n 's/^✗ locks: .* then: rm /rm /p' said | sh -eux
dvc repro clean > /dev/null && digest | cmp - "$3" && echo "== recovered"
"""
FILL = """
import os
size = os.stat("dvc.lock").st_size
while os.stat("dvc.lock").st_size == size:
    pass
with open("more", "wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(1 << 16))
    except OSError:
        pass
"""


def test_a_disk_that_gets_full_while_dvc_writes_its_lock_tears_it_and_the_doctors_remedy_mends_it(
    repository, tmp_path, monkeypatch
):
    monkeypatch.setitem(repository.environment, "FILL", FILL)
    printed = on_a_small_disk(repository, tmp_path, FULL_WHILE_DVC_WRITES_ITS_LOCK)
    assert "== filled meanwhile" in printed
    assert "No space left on device" in printed
    assert "== ended with 255\n" in printed
    assert "== not as it is\n✗ dvc.lock: " in printed
    assert printed.endswith("== recovered\n")


@pytest.mark.parametrize("stage", ["clean", "tokenize"])
def test_a_limit_on_the_size_of_files_is_said_in_words(repository, stage):
    before = bytes_of(repository.folder)
    printed = repository.run("sh", "-c", f"ulimit -f 1; exec {commands_of(repository)[stage]}", code=1)
    assert "(ulimit -f)" in printed
    assert "Traceback" not in printed
    assert bytes_of(repository.folder) == before
