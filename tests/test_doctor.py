"""python -m tools.doctor finds every fault. Each fault here is a real one."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.core.yaml_files import read_yaml
from tests.support.project import ROOT
from tests.support.repository import Repository
from tools import doctor, sweep
from tools._doctor import checks, copies, libraries, locks, machine, processes, stored, torn
from tools._doctor.finding import Finding


def wrong(findings):
    return [str(finding) for finding in findings if finding.remedy]


def test_a_finding_is_a_line_with_its_remedy():
    assert str(Finding("disk", "1 GiB free")) == "✓ disk: 1 GiB free"
    assert str(Finding("disk", "full", "Free some")) == "✗ disk: full. Free some"
    assert str(Finding("disk", "full.\nQuite full.", "Free some")) == "✗ disk: full. Quite full. Free some"


def test_more_workers_than_cores_are_named():
    assert not machine.check_cores(4, 4).remedy
    assert not machine.check_cores(4, None).remedy
    assert "machine.workers is 5" in str(machine.check_cores(4, 5))


def test_memory_is_compared_with_the_base_alone():
    assert not machine.check_memory(8 << 30, 7_000_000_000, 4).remedy
    found = machine.check_memory(8 << 30, 7_000_000_000, 16)
    assert "8.0 GiB available, but the base in 16 bits needs 13.0 GiB" in str(found)
    assert found.remedy
    assert "is known after the base is downloaded" in str(machine.check_memory(8 << 30, None, 4))


def test_the_disk_must_hold_the_merged_model_and_the_base_where_it_is_absent():
    assert not machine.check_disk_space(20 << 30, 14 << 30, base_is_here=True).remedy
    found = machine.check_disk_space(20 << 30, 14 << 30, base_is_here=False)
    assert "20.0 GiB free, and models/base and models/merged takes 28.0 GiB" in str(found)
    assert found.remedy
    assert "is known after the base is downloaded" in str(machine.check_disk_space(20 << 30, None, base_is_here=True))


def test_the_base_is_measured_where_it_lies(params_of, small_base, tmp_path):
    model = params_of(model={"path": str(small_base.parents[1] / "source")}).model
    manifest = json.loads((small_base / "manifest.json").read_text())
    expected = manifest["parameters"], manifest["bytes"]
    assert machine.base_size(model, small_base) == expected
    assert machine.base_size(model, tmp_path) == expected, "from the files' headers"
    assert machine.base_size(params_of(model={"path": str(tmp_path)}).model, small_base) is None, "of another model"
    assert machine.downloaded(params_of(model={"path": str(tmp_path)}).model, small_base) is None, "another is there"
    (tmp_path / "manifest.json").write_text("[]")
    assert machine.downloaded(model, tmp_path) is None
    hub = {"source": "hub", "path": "x", "id": "owner/name", "revision": "c" * 40}
    assert machine.base_size(params_of(model=hub).model, small_base) is None
    known = params_of(model=hub | {"id": "mistralai/Mistral-7B-v0.3"}).model
    assert machine.base_size(known, small_base) == (7_248_023_552, 2 * 7_248_023_552), "from the table"


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (("auto", "NVIDIA H100, 570.86", False, False, 10**7), "PyTorch cannot use it"),
        (("cuda", None, False, False, 10**7), "none, and machine.device is cuda"),
        (
            ("cpu", "NVIDIA H100, 570.86", True, True, 7 * 10**9),
            "not used, as machine.device is cpu, and the base has 7",
        ),
        (("auto", None, False, False, 7 * 10**9), "none, and the base has 7,000,000,000 parameters"),
        (("cuda", None, False, False, 7 * 10**9), "Use or rent a machine with a GPU (docs/gpu-box.md), or rehearse"),
        (("cpu", None, False, False, 7 * 10**9), "set machine.device to auto there"),
        (("auto", "Tesla T4, 550.54", True, False, 10**7), "without bfloat16"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_named_with_the_reason(seen, words):
    found = machine.check_gpu(*seen)
    assert words in str(found)
    assert found.remedy


def test_a_base_of_unknown_size_is_not_said_to_train_on_the_cpu():
    found = machine.check_gpu("auto", None, False, False, None)
    assert str(found) == "✓ GPU: none; whether this base needs one is known after it is downloaded"


def test_a_7b_that_is_not_downloaded_fails_where_there_is_no_gpu(params_of, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checks, "driver", lambda: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    seven = {"source": "hub", "id": "mistralai/Mistral-7B-v0.3", "revision": "c" * 40}
    found = checks.find_gpu(params_of(model=seven))
    assert str(found).startswith("✗ GPU: none, and the base has 7,248,023,552 parameters")
    assert found.remedy.endswith("python -m tools.profile tiny")


def test_a_gpu_that_works_and_a_small_base_on_the_cpu_are_well():
    assert not machine.check_gpu("auto", "NVIDIA H100, 570.86", True, True, 7 * 10**9).remedy
    assert not machine.check_gpu("auto", None, False, False, 10**7).remedy
    for cuda in (True, False):  # a device that is not asked for may be broken
        assert not machine.check_gpu("cpu", "Tesla T4, 550.54", cuda, False, 10**7).remedy


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo NVIDIA H100, 570.86", "NVIDIA H100, 570.86"),
        ("echo cannot talk to the driver; exit 9", "nvidia-smi failed: cannot talk to the driver"),
    ],
)
def test_what_the_driver_says_is_asked_of_nvidia_smi(tmp_path, monkeypatch, script, said):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.driver() == said
    program.unlink()
    assert machine.driver() is None


def test_a_library_that_is_missing_or_of_another_version_is_named():
    wanted = libraries.pins("-c constraints.txt\npytest==0.1  # reason\nno-such-library==1.0\n")
    assert wanted == {"pytest": "0.1", "no-such-library": "1.0"}
    found = libraries.check_pins(wanted, libraries.installed(list(wanted)))
    assert f"no-such-library missing for 1.0, pytest {pytest.__version__} for 0.1" in found.text
    assert found.remedy == "python -m pip install -r requirements.txt"


def test_versions_other_than_those_of_the_last_training_are_named(tmp_path):
    path = tmp_path / "train.json"
    assert libraries.trained_versions(path) is None
    here = libraries.installed(["torch", "peft"])
    path.write_text(json.dumps({"versions": {**here, "torch": f"{here['torch']}+cu130"}}))
    assert not libraries.check_run(libraries.trained_versions(path), here).remedy, "a build for a GPU is the same"
    path.write_text(json.dumps({"versions": {**here, "peft": "0.1"}}))
    found = libraries.check_run(libraries.trained_versions(tmp_path / "absent", path), here)
    assert f"peft {here['peft']} for 0.1" in found.text
    assert "peft==0.1" in found.remedy


@pytest.fixture
def dead():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def alive():
    with subprocess.Popen(["sleep", "600"]) as one:
        while not processes.command_of(one.pid):  # right after its start it has none
            time.sleep(0.01)
        yield one.pid
        one.kill()


def rwlock(folder, pid):
    path = folder / "rwlock"
    info = {"pid": pid, "cmd": "/usr/bin/dvc repro"}
    path.write_text(json.dumps({"read": {"/x/data": [info]}, "write": {"/x/models": info}}))
    return path


def test_a_lock_of_a_dead_process_is_found_once(tmp_path, dead):
    found = wrong(locks.check_rwlock(rwlock(tmp_path, dead)))
    assert len(found) == 1
    assert f"names process {dead} (/usr/bin/dvc repro), which is dead" in found[0]
    assert f"rm {tmp_path}/rwlock" in found[0]


def test_a_lock_whose_number_another_program_got_is_found(tmp_path, alive):
    assert (
        f"process {alive}, which is now 'sleep 600', not DVC" in wrong(locks.check_rwlock(rwlock(tmp_path, alive)))[0]
    )


def test_a_broken_lock_is_found_and_none_is_well(tmp_path):
    assert locks.check_rwlock(tmp_path / "rwlock") == []
    (tmp_path / "rwlock").write_text('{"read": {')
    assert "cannot be read" in wrong(locks.check_rwlock(tmp_path / "rwlock"))[0]


HOLD = """
import fcntl, os, sys, time
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.write(f"{os.getpid()}\\n")
file.flush()
print("held", flush=True)
time.sleep(600)
"""


def holder(lock, name):
    """A process that holds the lock. Its parent is a Python that runs a file of that name."""
    lock.parent.mkdir(parents=True)
    program, above = lock.parent.parent / "hold.py", lock.parent.parent / name
    program.write_text(HOLD)
    above.parent.mkdir(exist_ok=True)
    above.write_text("import subprocess, sys\nsubprocess.run([sys.executable, *sys.argv[1:]])\n")
    command = [sys.executable, above, program, lock]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout.readline() == "held\n"
    return process


def end(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_a_trainer_below_a_dvc_is_at_work_and_one_whose_dvc_was_killed_is_an_orphan(tmp_path):
    lock = tmp_path / "checkpoints/0123456789abcdef/lock"
    process = holder(lock, "dvc")
    try:
        trainer = int(lock.read_text())
        assert [str(one) for one in locks.check_trainings(tmp_path / "checkpoints")] == [
            f"✓ trainings: process {trainer} trains in 0123456789abcdef"
        ]
        process.kill()
        process.wait()
        found = wrong(locks.check_trainings(tmp_path / "checkpoints"))
        assert len(found) == 1
        assert f"process {trainer} holds" in found[0]
        assert f"kill {trainer}" in found[0]
    finally:
        end(process)
    for _ in range(300):
        if not copies.is_held(lock):
            break
        time.sleep(0.1)
    found = locks.check_trainings(tmp_path / "checkpoints")
    assert wrong(found) == []
    assert "1 stopped" in found[0].text


def test_a_trainer_below_a_program_in_a_folder_named_after_dvc_is_an_orphan(tmp_path):
    process = holder(tmp_path / "checkpoints/0123456789abcdef/lock", "mistral-dvc/start.py")
    try:
        (found,) = wrong(locks.check_trainings(tmp_path / "checkpoints"))
        assert "no DVC waits for its result" in found
    finally:
        end(process)


@pytest.mark.parametrize(
    ("command", "is_one"),
    [
        ("dvc repro", True),
        ("/x/bin/dvc repro", True),
        ("/x/bin/python3.11 /x/bin/dvc repro", True),
        ("python -m dvc exp queue-worker", True),
        ("python -u -m dvc repro", True),
        ("python /x/dvc/train.py dvc", False),
        ("vim dvc", False),
        ("/opt/dvc/bin/other", False),
        ("python -m dvclive", False),
        ("", False),
    ],
)
def test_dvc_is_known_by_the_name_of_its_program_or_module(command, is_one):
    assert processes.is_dvc(command.split()) is is_one


def test_looking_at_a_lock_takes_it_from_nobody(tmp_path):
    path = tmp_path / "lock"
    path.write_text("")
    assert not copies.is_held(path)
    with open(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert copies.is_held(path)
    assert not copies.is_held(tmp_path / "absent")


@pytest.mark.parametrize("place", ["exps/standalone", "exps"])
def test_the_copy_of_a_killed_experiment_is_found_and_one_in_use_is_not(tmp_path, place):
    for name in ("tmpkilled", "tmpused"):
        (tmp_path / place / name / "deep").mkdir(parents=True)
    with subprocess.Popen(["sleep", "600"], cwd=tmp_path / place / "tmpused/deep") as process:
        found = wrong(copies.check_copies(tmp_path))
        process.kill()
    assert len(found) == 1
    assert found[0].endswith(f"rm -r {tmp_path / place}/tmpkilled")


def test_the_clone_of_a_stopped_sweeps_trial_is_found_and_of_one_that_runs_it_is_not(tmp_path):
    for name in ("stopped", "runs"):
        (tmp_path / "sweeps" / name / f"{name}-0" / ".git").mkdir(parents=True)
        (tmp_path / "sweeps" / name / f"{name}-0.checkpoints").mkdir()
        (tmp_path / "sweeps" / name / "lock").touch()
    with open(tmp_path / "sweeps/runs/lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (found,) = wrong(copies.check_copies(tmp_path))
    assert f"{tmp_path}/sweeps/stopped/stopped-0 is the clone of a stopped trial" in found
    assert found.endswith(f"rm -r {tmp_path}/sweeps/stopped")


def test_the_trials_that_outlive_a_killed_sweep_are_named_and_nothing_of_theirs_may_be_removed(tmp_path):
    clones = [tmp_path / "sweeps/killed" / f"killed-{number}" for number in (0, 1)]
    for clone in clones:
        (clone / ".git").mkdir(parents=True)
    lock = tmp_path / "sweeps/killed/lock"
    lock.touch()
    with subprocess.Popen(["sleep", "600"], cwd=clones[0], env=os.environ | {"SWEEP_TRIAL": str(clones[0])}) as trial:
        try:
            (found,) = wrong(copies.check_copies(tmp_path))
            with open(lock) as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                assert wrong(copies.check_copies(tmp_path)) == [], "as long as the sweep runs, they are its own"
            sweep.stop_trials(lock.parent)  # the first step of a sweep that is started again
            assert processes.trials_below(lock.parent) == []
        finally:
            trial.kill()
    assert f"the sweep killed was killed, and its trials still run: processes {trial.pid}. Start the sweep" in found
    assert f"kill {trial.pid} and, once they have ended, rm -r {tmp_path}/sweeps/killed" in found
    assert len(wrong(copies.check_copies(tmp_path))) == len(clones)


@pytest.fixture
def tracked(tmp_path, monkeypatch):
    """A small repository of Git and DVC in which two stages have run, and its `dvc` and `git`."""
    repository = Repository(tmp_path / "tracked")

    def run(command, **options):
        return repository.run("sh", "-c", command, **options)

    folder = repository.folder
    folder.mkdir()
    (folder / "a").write_text("a")
    stages = {
        name: {"cmd": f"cp a {name} && echo {name} >> ran", "deps": ["a"], "outs": [name]} for name in ("one", "two")
    }
    YAML().dump({"stages": stages}, folder / "dvc.yaml")
    run("git init --quiet && dvc init --quiet")
    (folder / ".dvc/config").write_text((ROOT / ".dvc/config").read_text())
    run("git add --all && dvc repro")
    run("git commit --quiet --message run")
    monkeypatch.chdir(folder)
    return run


def remedies(line):
    """The commands of a finding's remedy."""
    advice = line.partition(").")[2]
    return [advice.partition(", then")[0].strip(), *re.findall("`(.+?)`", advice)]


@pytest.mark.slow
@pytest.mark.parametrize("share", [0, 0.3, 0.6])
def test_a_dvc_lock_that_a_kill_tore_is_found_and_the_remedy_brings_back_what_had_run(tracked, share):
    from dvc.repo import Repo

    assert wrong(torn.check_lock_file(Repo())) == []
    Path("a").write_text("b")
    tracked("dvc repro")
    tracked("git restore --staged dvc.lock")  # it was killed before it could stage the new one
    whole = Path("dvc.lock").read_text()
    cut = whole[: int(len(whole) * share)].rpartition("\n")[0] + "\n  hal" * bool(share)
    Path("dvc.lock").write_text(cut)
    assert "dvc.lock" in tracked("dvc repro", code=255)
    (found,) = wrong(torn.check_lock_file(Repo()))
    assert found.startswith("✗ dvc.lock: no DVC command can read it (")
    for command in remedies(found):
        tracked(command)
    assert Path("dvc.lock").read_text() == whole
    assert Path("ran").read_text() == "one\ntwo\n" * 2, "once before and once after the edit, and not again"


@pytest.mark.slow
def test_a_dvc_killed_as_it_begins_to_write_its_lock_leaves_an_empty_one_and_the_remedy_goes_on_from_there(tracked):
    from dvc.repo import Repo

    Path("a").write_text("b")
    # The first call writes the entry in the run cache of the stage `one`, the second dvc.lock.
    tracked("dvc repro", code=-signal.SIGKILL, fault="dvc.utils.serialize._yaml:_dump:2:SIGKILL")
    assert Path("dvc.lock").read_text() == ""
    (found,) = wrong(torn.check_lock_file(Repo()))
    for command in remedies(found):
        tracked(command)
    assert Path("ran").read_text() == "one\ntwo\n" * 2, "the stage `one` had ended before the kill"
    assert Path("one").read_text() == Path("two").read_text() == "b"


def object_below(folder, content):
    md5 = hashlib.md5(content).hexdigest()
    return folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:]


@pytest.mark.slow
@pytest.mark.parametrize("writable", [True, False])
def test_dvc_hashes_a_changed_object_that_can_be_written_and_trusts_one_that_cannot(tracked, writable):
    """Size and time do not matter. If DVC one day hashes both, docs/reliability.md must say so."""
    from dvc.repo import Repo

    path = object_below(Path(), b"a")
    assert path.samefile("one"), "a hard link, as `.dvc/config` of the pipeline has it"
    mode = path.stat().st_mode
    path.chmod(0o644)
    path.write_bytes(b"changed")
    if not writable:
        path.chmod(mode)
        (found, *_) = wrong(stored.check_cache(stored.stored_outputs(Repo()), deep=False))
        assert f"has other bytes than dvc.lock says ({path.absolute()})" in found
    tracked("dvc repro")
    assert Path("one").read_text() == Path("two").read_text() == ("a" if writable else "changed")
    # The stage `two` has the same object, which is whole again when its turn comes.
    assert Path("ran").read_text() == "one\ntwo\n" + "one\n" * writable


@pytest.mark.slow
def test_a_merge_conflict_in_dvc_lock_is_not_taken_for_a_kill(tracked):
    from dvc.repo import Repo

    Path("dvc.lock").write_text("<<<<<<< HEAD\nschema: '2.0'\n")
    (found,) = wrong(torn.check_lock_file(Repo()))
    assert found.endswith("see docs/pull-requests.md")


@pytest.mark.slow
def test_a_git_index_lock_that_a_kill_left_is_found_and_one_of_a_git_at_work_is_not(tracked):
    lock = Path(".git/index.lock")
    assert torn.check_git_index(Path()) == []
    lock.touch()
    Path("a").write_text("b")
    assert "index.lock" in tracked("dvc repro", code=255)
    with subprocess.Popen(["git", "cat-file", "--batch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as git:
        (found,) = torn.check_git_index(Path())
        git.kill()
    assert found.remedy == ""
    (found,) = torn.check_git_index(Path())
    assert "nothing can be staged" in found.text
    tracked(found.remedy.partition("then: ")[2])
    assert "didn't change, skipping" in tracked("dvc repro")
    assert torn.check_git_index(Path()) == []
    tracked("git add dvc.lock")


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository with a file and a folder in its cache, and without our stages."""
    folder = tmp_path_factory.mktemp("doctor")
    stages = {
        "one": {"cmd": "echo one > file", "outs": ["file"]},
        "many": {"cmd": "mkdir folder && echo a > folder/a && echo b > folder/b", "outs": ["folder"]},
        "kept": {"cmd": "echo {} > kept.json", "metrics": [{"kept.json": {"cache": False}}]},
    }
    YAML().dump({"stages": stages}, folder / "dvc.yaml")
    for name in ("params.yaml", "requirements.txt"):
        (folder / name).write_text((ROOT / name).read_text())
    from dvc.repo import Repo

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path_factory.mktemp("site")))
        with Repo.init(no_scm=True) as repo:
            repo.reproduce()
    return folder


@pytest.fixture
def inside(repository, monkeypatch):
    monkeypatch.chdir(repository)
    from dvc.repo import Repo

    with Repo() as repo:
        yield repo


def object_of(repo, output):
    one = next(one for one in stored.stored_outputs(repo) if one.output == output)
    return list(stored.objects_of(one))[-1][1]


@contextlib.contextmanager
def harmed(path, content):
    """The file with other bytes, and later with its own again."""
    before, mode = path.read_bytes(), path.stat().st_mode
    path.chmod(0o644)
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)
        path.chmod(mode)


def test_a_whole_cache_is_well_and_what_git_keeps_is_not_looked_for(inside):
    for deep in (False, True):
        found = stored.check_cache(stored.stored_outputs(inside), deep)
        assert [finding.remedy for finding in found] == [""]
        assert "2 of 2 outputs" in found[0].text


@pytest.mark.parametrize("output", ["file", "folder"])
def test_a_flipped_byte_in_the_cache_is_found_by_its_hash_alone(inside, output):
    path = object_of(inside, output)
    flipped = bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]
    with harmed(path, flipped):
        assert wrong(stored.check_cache(stored.stored_outputs(inside), deep=False)) == []
        found = wrong(stored.check_cache(stored.stored_outputs(inside), deep=True))
    assert len(found) == 1
    assert f"the copy of {output} has other bytes than dvc.lock says ({path})" in found[0]


@pytest.mark.parametrize("output", ["file", "folder"])
def test_an_object_that_was_cut_short_is_found_by_its_size(inside, output):
    with harmed(object_of(inside, output), b""):
        assert (
            f"the copy of {output} has other bytes"
            in wrong(stored.check_cache(stored.stored_outputs(inside), False))[0]
        )


def test_a_damaged_list_of_a_folders_files_is_found(inside):
    one = next(one for one in stored.stored_outputs(inside) if one.output == "folder")
    with harmed(one.path, one.path.read_bytes()[:-1]):
        assert f"({one.path})" in wrong(stored.check_cache(stored.stored_outputs(inside), False))[0]


def test_another_base_in_the_place_of_this_one_leaves_its_room_to_be_found(
    params_of, small_base, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_base, "models/base")
    params = params_of(model={"path": str(small_base.parents[1] / "source")})
    here, absent = "models/merged", "models/base and models/merged"
    assert str(machine.machine_findings(params, 1, 1 << 40, 1 << 40)[2]).endswith(f" for {here}")
    shutil.copytree(small_base.parents[1] / "source", "other")
    assert str(machine.machine_findings(params_of(model={"path": "other"}), 1, 1 << 40, 1 << 40)[2]).endswith(absent)


def test_an_object_that_cannot_be_read_is_a_finding_beside_the_others(inside):
    path = object_of(inside, "file")
    path.rename(path.with_suffix(".away"))
    path.symlink_to("/proc/self/mem")  # a file whose first byte nobody can read
    try:
        found = wrong(stored.check_cache(stored.stored_outputs(inside), deep=True))
    finally:
        path.with_suffix(".away").replace(path)
    assert len(found) == 1
    assert found[0].startswith("✗ cache: the copy of file cannot be read (Input/output error: ")


def test_an_absent_object_is_nothing_wrong(inside):
    path = object_of(inside, "file")
    path.rename(path.with_suffix(".away"))
    try:
        found = stored.check_cache(stored.stored_outputs(inside), deep=True)
    finally:
        path.with_suffix(".away").rename(path)
    assert wrong(found) == []
    assert "1 of 2 outputs" in found[0].text


def test_the_remedy_for_a_damaged_object_brings_it_back(repository, inside):
    path = object_of(inside, "file")
    path.chmod(0o644)
    path.write_bytes(b"two\n")
    remedy = wrong(stored.check_cache(stored.stored_outputs(inside), deep=True))[0]
    commands = [remedy.partition(". ")[2].partition(", then")[0], remedy.rpartition("`")[0].rpartition("`")[2]]
    assert [command.split()[0] for command in commands] == ["rm", "dvc"]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in commands:
        subprocess.run(command, shell=True, check=True, cwd=repository, env=environment, timeout=300)
    assert path.read_text() == "one\n"
    assert (repository / "file").read_text() == "one\n"


def test_a_remote_without_verify_and_a_password_in_git_are_found(inside):
    from dvc.config import Config

    with inside.config.edit("repo") as edited:
        edited["remote"]["shared"] = {"url": "s3://bucket/path", "secret_access_key": "x"}
        edited["remote"]["well"] = {"url": "/srv/dvc", "verify": True}
    config = Config(inside.dvc_dir)
    found = wrong(stored.check_remotes(config["remote"], config.load_one("repo")["remote"]))
    assert [line.partition(",")[0].partition(":")[0] for line in found] == ["✗ remotes", "✗ remotes"]
    assert found[0].endswith("dvc remote modify shared verify true")
    assert "shared has its secret_access_key in .dvc/config" in found[1]
    with inside.config.edit("repo") as edited:
        edited["remote"]["shared"] = {"url": "s3://bucket/path", "verify": True}
    config = Config(inside.dvc_dir)
    assert wrong(stored.check_remotes(config["remote"], config.load_one("repo")["remote"])) == []
    assert wrong(stored.check_remotes({}, {})) == []


SECRET = "hunter2"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("url", f"https://me:{SECRET}@host/x"),
        ("url", f"webdavs://host/x?token={SECRET}"),
        ("url", f"https://me:[{SECRET}@host/x"),
        ("endpointurl", f"https://me:{SECRET}@host"),
        *((key, SECRET) for key in ("oss_key_secret", "sse_customer_key", "gdrive_client_secret", "password")),
    ],
)
def test_a_secret_in_git_is_named_by_its_key_alone(key, value):
    settings = {"url": "s3://bucket/path", "verify": "true", key: value}
    (found,) = wrong(stored.check_remotes({"shared": settings}, {"shared": settings}))
    assert f"shared has its {key} in .dvc/config, which Git shares. Make it void, then: dvc remote modify" in found
    assert SECRET not in found


def test_each_of_dvcs_settings_that_may_be_secret_is_known():
    from dvc.config_schema import REMOTE_SCHEMAS

    keys = {str(key) for schema in REMOTE_SCHEMAS.values() for key in schema}
    known = stored.SECRETS | {
        *("ask_password", "ask_passphrase", "bearer_token_command", "exclude_shared_token_cache_credential"),
        *("exclude_environment_credential", "exclude_visual_studio_code_credential"),
        *(
            "exclude_managed_identity_credential",
            "credentialpath",
            "gdrive_user_credentials_file",
            "keyfile",
            "key_path",
        ),
        "sse_kms_key_id",
    }
    assert {key for key in keys if re.search("key|secret|pass|token|cred|conn.*string", key)} - known == set()
    assert keys >= stored.SECRETS


def test_what_a_remote_may_tell_is_no_secret():
    for url in ("ssh://me@host/x", "s3://bucket/path", "/srv/dvc", "azure://container/path", "https://host/x?v=1"):
        assert stored.secrets_in({"url": url, "user": "me", "keyfile": "/home/me/key", "verify": True}) == [], url


def test_the_exit_code_says_whether_something_is_wrong(repository, inside, capsys, monkeypatch, dead):
    monkeypatch.setattr(machine, "driver", lambda: None)
    for path in (repository / ".dvc/tmp").glob("rwlock"):
        path.unlink()
    for folder in ("data/source", "assets/tiny-mistral"):
        (repository / folder).mkdir(parents=True)
    code, said = doctor.main(["--deep"]), capsys.readouterr().out
    assert code == 0, said
    assert all(line.startswith("✓ ") for line in said.splitlines())
    assert {line.split()[1] for line in said.splitlines()} >= {
        *("params.yaml:", "cores:", "memory:", "disk:", "GPU:", "libraries:", "locks:", "cache:", "remotes:")
    }
    assert "✓ hub: not asked; --network asks it\n" in said
    path = rwlock(repository / ".dvc/tmp", dead)
    assert doctor.main([]) == 1
    path.unlink()
    assert f"process {dead} (/usr/bin/dvc repro), which is dead" in capsys.readouterr().out


def test_params_that_are_not_legal_are_a_finding_among_the_others(inside, repository, capsys):
    values = read_yaml(repository / "params.yaml")
    with harmed(repository / "params.yaml", b"train: {}\n"):
        assert doctor.main([]) == 1
    assert read_yaml(repository / "params.yaml") == values
    said = capsys.readouterr().out
    assert "✗ params.yaml: not legal" in said
    assert said.count("is missing. Every key must be set") > 2
    assert {line[:2] for line in said.splitlines()} == {"✗ ", "✓ "}
    assert "✓ cache:" in said


@pytest.mark.parametrize("text", ["train: {}\n", "model: {path: [}\n", ""])
def test_what_dvc_yaml_takes_from_params_that_are_not_legal_is_waited_for_and_no_second_fault(
    tmp_path, monkeypatch, capsys, text
):
    from dvc.repo import Repo

    monkeypatch.setattr(machine, "driver", lambda: None)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("dvc.yaml", "dvc.lock", "requirements.txt"):
        shutil.copy(ROOT / name, name)
    Path("params.yaml").write_text(text)
    Repo.init(no_scm=True).close()
    assert doctor.main([]) == 1
    said = capsys.readouterr().out.splitlines()
    (first,) = [line for line in said if line.startswith("✗")]
    assert first.startswith("✗ params.yaml: not legal")
    assert "✓ cache: not compared with dvc.lock, because dvc.yaml needs a legal params.yaml" in said
    assert {"✓ locks: none", "✓ remotes: none; results stay on this machine"} <= set(said)


def test_outside_of_a_repository_it_says_where_to_go(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert doctor.main([]) == 1
    assert "✗ DVC: you are not inside of a DVC repository" in capsys.readouterr().out


@pytest.mark.slow
def test_ctrl_c_ends_it_with_one_line(repository, inside):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tools.doctor", "--deep"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout.readline() == "✓ params.yaml: legal\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=300)
    assert (process.returncode, said) == (130, "\ndoctor: stopped\n")


ASK = (
    "import sys\nfrom stages.core.params import Model\nfrom tools._doctor.hub import check_hub\n"
    "model = Model(source='hub', path='x', id=sys.argv[1], revision='c' * 40, tokenizer='own')\n"
    "print(check_hub(model))\n"
)


def test_the_hub_says_whether_the_base_can_be_read_and_its_licence(hub, python_at, closed_port):
    hub.files["models/owner/name"] = {"config.json": b"{}"}
    hub.card = {"license": "apache-2.0"}
    assert python_at(hub.url, ASK, "owner/name").stdout == (
        "✓ hub: owner/name can be read; its licence is apache-2.0\n"
    )
    hub.gated = True
    said = python_at(hub.url, ASK, "owner/name").stdout
    assert said.startswith("✗ hub: no access to owner/name. It is gated. Accept the licence")
    assert "no such model" in python_at(hub.url, ASK, "owner/absent").stdout
    assert "cannot be reached" in python_at(closed_port, ASK, "owner/name").stdout


def test_a_base_from_a_folder_asks_no_hub(params_of):
    from tools._doctor.hub import check_hub

    assert "not needed" in str(check_hub(params_of().model))


def test_a_path_of_params_that_is_missing_is_named_by_its_key(tmp_path):
    paths = {"data.path": str(tmp_path), "model.path": str(tmp_path / "none")}
    (finding,) = machine.check_paths(paths)
    assert str(finding).startswith(f"✗ model.path: there is no file or folder {tmp_path / 'none'}, at which")
