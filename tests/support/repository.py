"""A repository of Git and DVC for tests, and the environment in which its commands run."""

import contextlib
import copy
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile

import psutil
from ruamel.yaml import YAML

from tests.support.project import ROOT

PATIENCE = 800  # seconds for a command: a whole run on a busy machine
FAULTS = ROOT / "tests/support/faults"
OFFLINE = ROOT / "tests/support/offline"


def git_environment(site_cache: Path) -> dict[str, str]:
    """The variables of a command: this Python's programs first, an author for Git, none of the user's settings."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DVC_SITE_CACHE_DIR": str(site_cache),
        "DVC_NO_ANALYTICS": "1",
        "OMP_NUM_THREADS": "1",  # see conftest.one_thread
        "GIT_CONFIG_GLOBAL": os.devnull,
        **{f"GIT_{who}_{what}": "test@test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }


def succeeds(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
    except OSError:
        return False


def without_network() -> list[str]:
    """The first words of a command whose processes have no network. Empty where this system does not allow it."""
    ways = (["unshare", "--net"], ["unshare", "--map-root-user", "--net"])
    return next((way for way in ways if succeeds(*way, "true")), [])


def running(printed: str) -> list[str]:
    """The stages that DVC says it starts."""
    return re.findall(r"^Running stage '(.+)':$", printed, re.MULTILINE)


def queue_workers(folder: Path) -> list[psutil.Process]:
    """The workers of DVC's queue in a repository that have not ended."""
    workers = []
    for file in (folder / ".dvc/tmp/exps/celery").glob("*.pid"):
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(int(file.read_text()))
            if "queue-worker" in process.cmdline():
                workers.append(process)
    return workers


class Repository:
    """A folder with Git and DVC in it. Its caches are its own.

    Args:
        folder: where the repository is, or will be once a command has made it.
        site_cache: DVC's cache outside the repository. The default is next to the repository.
    """

    def __init__(self, folder: Path, site_cache: Path | None = None):
        self.folder = folder
        self.environment = git_environment(site_cache or default_site_cache(folder))
        self.groups: list[int] = []  # the process groups that start() made

    def init(self) -> None:
        self.run("git", "init", "--quiet", "--initial-branch=main")
        self.run("dvc", "init", "--quiet")

    def start(
        self,
        *command: str,
        folder: Path | None = None,
        fault: str | None = None,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.STDOUT,
        **variables: str,
    ) -> subprocess.Popen:
        """Starts a command in a process group of its own.

        Args:
            folder: where it runs, if not in the repository.
            fault: where a signal ends or stops it, as in faults/sitecustomize.py.
            variables: what its environment has in addition.
        """
        faults = {"FAULT": fault, "PYTHONPATH": str(FAULTS)} if fault else {}
        process = subprocess.Popen(
            command,
            cwd=folder or self.folder,
            env=self.environment | faults | variables,
            stdout=stdout,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
        self.groups.append(process.pid)
        return process

    def completed(self, *command: str, **options) -> tuple[int, str]:
        """A command's exit code and output, once it has ended. `options` are those of start()."""
        # To a file: a pipe would end only with the last worker of DVC's queue that holds it.
        with TemporaryFile("w+") as printed:
            process = self.start(*command, stdout=printed, **options)
            try:
                process.wait(timeout=PATIENCE)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
            printed.seek(0)
            return process.returncode, printed.read()

    def run(self, *command: str, code: int | None = 0, **options) -> str:
        """Standard output and error of a command. `options` are those of start().

        Args:
            code: the exit code that the command must have. None allows any.
        """
        ended, printed = self.completed(*command, **options)
        assert code in (None, ended), f"{' '.join(command)} ended with {ended}:\n{printed}"
        return printed

    def output(self, *command: str, code: int | None = 0, **options) -> str:
        """As run(), but only standard output."""
        with TemporaryFile("w+") as errors:
            ended, printed = self.completed(*command, stderr=errors, **options)
            errors.seek(0)
            assert code in (None, ended), f"{' '.join(command)} ended with {ended}:\n{printed}{errors.read()}"
        return printed

    def ran(self, *command: str) -> list[str]:
        """The stages that DVC says it ran."""
        return running(self.run("dvc", *command))

    def cut_off(self, log: Path, *command: str, code: int = 0) -> str:
        """As run(), without the network. Each attempt to reach it fails, and is written to the file `log`."""
        log.touch()
        variables = {"PYTHONPATH": str(OFFLINE), "NETWORK_LOG": str(log)}
        return self.run(*without_network(), *command, code=code, **variables)

    def killed(self, stage: str, fault: str) -> str:
        """What `dvc repro` printed until SIGKILL ended its process group. fault: module:function:n, the n-th call."""
        return self.run("dvc", "repro", stage, fault=f"{fault}:SIGKILL", code=-signal.SIGKILL)

    def change(self, dotted: str, value: object) -> None:
        """Sets a key of params.yaml as a person would, and keeps the comments."""
        section, key = dotted.split(".")
        self.change_sections({section: {key: value}})

    def change_sections(self, sections: dict[str, dict]) -> None:
        """As change(), for {section: {key: value}}."""
        yaml, path = YAML(), self.folder / "params.yaml"
        values = yaml.load(path)
        for section, changes in sections.items():
            values[section].update(changes)
        # A new file: Git may overlook an edit that keeps the length within a second of a checkout.
        edited = path.with_suffix(".new")
        yaml.dump(values, edited)
        edited.replace(path)

    def clone(self, folder: Path, *, with_data: bool = False) -> "Repository":
        """Another clone: of what is in Git, or a copy of everything with DVC's cache."""
        if with_data:
            shutil.copytree(self.folder, folder, symlinks=True)
        else:
            self.run("git", "clone", "--quiet", str(self.folder), str(folder))
        return Repository(folder)

    def copied(self, folder: Path):
        """A copy of this object and of everything in its folder."""
        shutil.copytree(self.folder, folder, symlinks=True)
        twin = copy.deepcopy(self)
        twin.folder, twin.groups = folder, []
        twin.environment["DVC_SITE_CACHE_DIR"] = str(default_site_cache(folder))
        return twin

    def commit(self, message: str = "state") -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", message, "--allow-empty")

    def experiment(self, name: str) -> str:
        """The reference of an experiment."""
        return re.search(rf"refs/exps/\S+/{name}\n", self.run("git", "for-each-ref"))[0].strip()

    def hashes(self, experiment: str | None = None) -> dict[str, str]:
        """{out: md5} of dvc.lock, or of an experiment's."""
        lock = self.folder / "dvc.lock"
        text = self.run("git", "show", f"{self.experiment(experiment)}:dvc.lock") if experiment else lock.read_text()
        stages = YAML(typ="safe").load(text)["stages"].values()
        return {out["path"]: out["md5"] for stage in stages for out in stage.get("outs", [])}

    def kill_groups(self) -> None:
        """Ends what start() left behind."""
        for group in self.groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)


def default_site_cache(folder: Path) -> Path:
    return folder.parent / f"{folder.name}-site-cache"
