"""The repository's files at a commit: Git's from Git, and DVC's outputs from its cache or remote where they have them.

Nothing here runs or configures anything from that commit. Its dvc.lock names outputs by hash. Only the working tree
says which remote to ask, so a stranger's commit cannot send anyone to a server of its choice.
"""

import hashlib
import json
import re
import subprocess
from functools import cached_property
from pathlib import Path

from ruamel.yaml.error import YAMLError

from stages.core.paths import EVALUATIONS, RESULT
from stages.core.yaml_files import read_yaml_text
from stages.runtime.errors import UserError

# Errors in code that reads a malformed file.
MALFORMED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, YAMLError)
DVC_LOCK = Path("dvc.lock")
TEST_FILE, VALIDATION_FILE = "data/clean/test.parquet", "data/tokenized/validation.arrow"
LARGEST = 512 * 2**20  # bytes of an output; a larger one is not read


def git(*arguments: str) -> bytes:
    """What Git prints.

    Raises:
        UserError: Git failed; with its message.
    """
    done = subprocess.run(["git", *arguments], capture_output=True, check=False)  # noqa: S603, S607  (no shell)
    if done.returncode:
        raise UserError(" ".join(done.stderr.decode(errors="replace").split()).removeprefix("fatal: "))
    return done.stdout


def commit_of(name: str) -> str:
    """The full hash of a commit by any name that Git knows.

    Raises:
        UserError: Git knows no such commit.
    """
    try:
        return git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}").decode().strip()
    except UserError:
        raise UserError(f"Git knows no commit {name!r} here. Fetch it, or correct the name") from None


class Outputs:
    """What DVC has stored for any commit, by hash. It asks the cache first, then the working tree's default remote."""

    def __init__(self) -> None:
        self.problem: str | None = None  # why the remote could not be asked

    @cached_property
    def _stores(self) -> list:
        try:
            from dvc.config import NoRemoteError
            from dvc.exceptions import DvcException
            from dvc.repo import Repo
        except ModuleNotFoundError as error:
            self.problem = f"{error.name} is not installed"
            return []
        try:
            repository = Repo()
        except DvcException as error:
            self.problem = str(error).splitlines()[0]
            return []
        stores = [repository.cache.local]
        try:
            stores.append(repository.cloud.get_remote_odb())
        except NoRemoteError:
            self.problem = "no default DVC remote is set"
        except DvcException as error:
            self.problem = str(error).splitlines()[0]
        return stores

    def read(self, digest: str) -> bytes | None:
        """The bytes with this hash, or None where neither has them."""
        if not (isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{32}(\.dir)?", digest)):
            return None  # the hash becomes part of a path
        for store in list(self._stores):
            try:
                path = store.oid_to_path(digest)
                if store.fs.size(path) > LARGEST:
                    self.problem = f"an output of more than {LARGEST >> 20} MiB is left out"
                    continue
                with store.fs.open(path, "rb") as file:
                    content = file.read()
            except FileNotFoundError:
                continue
            except Exception as error:  # noqa: BLE001  (each kind of remote has its own; the page is made without it)
                self.problem = f"the remote cannot be read: {str(error).splitlines()[0] if str(error) else error!r}"
                self._stores.remove(store)
                continue
            if hashlib.md5(content, usedforsecurity=False).hexdigest() == digest.removesuffix(".dir"):
                return content
        return None


class Revision:
    """A commit by any name that Git knows, or the working tree (name None)."""

    def __init__(self, name: str | None, outputs: Outputs) -> None:
        self.name, self.outputs = name, outputs
        self._rows: dict[str, list[dict] | None] = {}

    def __str__(self) -> str:
        return self.name or "the working tree"

    def text(self, path: Path | str) -> str:
        """A file that Git has.

        Raises:
            UserError: It cannot be read.
        """
        if self.name is None:
            try:
                return Path(path).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{path} cannot be read ({error})") from None
        try:
            return git("show", f"{self._commit}:{path}").decode(errors="replace")
        except UserError as error:
            raise UserError(
                f"{path} of {self.name!r} cannot be read ({error}). Fetch it, or correct the name"
            ) from None

    @cached_property
    def _commit(self) -> str:
        """The commit's hash. A branch that is only on `origin` is found too, as `git switch` does."""
        for name in (self.name, f"origin/{self.name}"):
            try:
                return commit_of(name)
            except UserError:
                continue
        return self.name

    @cached_property
    def metrics(self) -> dict:
        return json.loads(self.text(RESULT))

    @cached_property
    def stages(self) -> dict[str, dict]:
        """The entries of dvc.lock."""
        return (read_yaml_text(self.text(DVC_LOCK)) or {}).get("stages") or {}

    def hash_of_dep(self, stage: str, path: str) -> str | None:
        """The hash of what a stage read in its last run."""
        deps = self.stages.get(stage, {}).get("deps", [])
        return next((dep.get("md5") for dep in deps if dep["path"] == path), None)

    @property
    def test_set(self) -> str | None:
        """The hash of the test split on which the tuned model was evaluated."""
        return self.hash_of_dep("evaluate@tuned", TEST_FILE)

    @property
    def validation_set(self) -> str | None:
        """The hash of the tokenized validation split, which `train` and the merge's parity use."""
        return self.hash_of_dep("merge", VALIDATION_FILE)

    @property
    def evaluation(self) -> dict:
        """The params of `evaluate` with which the tuned model was evaluated."""
        return self.stages.get("evaluate@tuned", {}).get("params", {}).get("params.yaml", {}).get("evaluate", {})

    def hash_of(self, path: Path | str) -> str | None:
        """The hash of an output, or of a file in an output that is a folder."""
        path = Path(path)
        hashes = {out["path"]: out.get("md5") for stage in self.stages.values() for out in stage.get("outs", [])}
        if str(path) in hashes:
            return hashes[str(path)]
        folder = next((parent for parent in path.parents if str(parent) in hashes), None)
        listing = folder and self.outputs.read(hashes[str(folder)] or "")
        if not listing:
            return None
        inside = {file["relpath"]: file["md5"] for file in json.loads(listing)}
        return inside.get(str(path.relative_to(folder)))

    def output(self, path: Path | str) -> bytes | None:
        """What a stage wrote, or None where nobody has it.

        A file in the working tree counts only if its hash is right.
        """
        digest = self.hash_of(path)
        if digest and self.name is None and Path(path).is_file():
            content = Path(path).read_bytes()
            if hashlib.md5(content, usedforsecurity=False).hexdigest() == digest:
                return content
        return self.outputs.read(digest) if digest else None

    def rows(self, name: str, kind: str = "rows") -> list[dict] | None:
        """The lines of metrics/evaluate/<name>.rows.jsonl or .predictions.jsonl, or None where nobody has the file."""
        key = f"{name}.{kind}"
        if key not in self._rows:
            content = self.output(EVALUATIONS / f"{key}.jsonl")
            lines = None if content is None else content.decode().split("\n")
            self._rows[key] = lines and [json.loads(line) for line in lines if line.strip()]
        return self._rows[key]
