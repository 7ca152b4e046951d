"""Compares DVC's cache with dvc.lock, and checks the remotes' settings."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from stages.runtime.counts import plural
from stages.runtime.credentials import holds_credentials
from tools._doctor.finding import Finding

if TYPE_CHECKING:
    from dvc.repo import Repo

# Keys in dvc.config_schema whose values are secret. A user's name, or a path to a key file, is not.
SECRETS = {
    *("access_key_id", "account_key", "client_secret", "connection_string", "gdrive_client_secret", "oss_key_id"),
    *("oss_key_secret", "password", "passphrase", "sas_token", "secret_access_key", "session_token"),
    *("sse_customer_key", "token"),
}


@dataclass(frozen=True)
class StoredOutput:
    """An output in dvc.lock, and the place of its object in the cache. size: bytes; for a folder, of all its files."""

    output: str
    stage: str
    md5: str
    size: int | None
    path: Path


def stored_outputs(repo: "Repo") -> list[StoredOutput]:
    """The outputs that the cache holds. metrics.json is not among them, since Git holds it."""
    cache = repo.cache.local
    return [
        StoredOutput(
            out.def_path,
            out.stage.addressing,
            out.hash_info.value,
            out.meta.size,
            Path(cache.oid_to_path(out.hash_info.value)),
        )
        for out in repo.index.outs
        if out.use_cache and out.hash_info and out.hash_info.name == "md5"
    ]


def md5_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def objects_of(stored: StoredOutput) -> Iterator[tuple[str, Path]]:
    """Yields (md5, path) of the objects of an output. For a folder, the list of its files comes first."""
    yield stored.md5.removesuffix(".dir"), stored.path
    if stored.md5.endswith(".dir"):
        root = stored.path.parents[1]
        for entry in json.loads(stored.path.read_bytes()):
            yield entry["md5"], root / entry["md5"][:2] / entry["md5"][2:]


def damaged_objects(stored: StoredOutput, deep: bool) -> list[Path] | None:
    """The objects of an output that are not what their names say. None where one of them is missing.

    Without `deep` only sizes are compared, and the hash of a folder's list of files, which is short.
    """
    if not stored.path.is_file():
        return None
    folder = stored.md5.endswith(".dir")
    if folder and md5_of(stored.path) != stored.md5.removesuffix(".dir"):
        return [stored.path]
    pairs = list(objects_of(stored))
    if not all(path.is_file() for _, path in pairs):
        return None
    contents = pairs[1:] if folder else pairs
    if deep:
        return [path for md5, path in contents if md5_of(path) != md5]
    size = sum(path.stat().st_size for _, path in contents)
    return [path for _, path in contents] if stored.size not in (None, size) else []


def check_cache(outputs: list[StoredOutput], deep: bool) -> list[Finding]:
    findings, absent = [], []
    for stored in outputs:
        try:
            damaged = damaged_objects(stored, deep)
        except OSError as error:
            findings.append(
                Finding(
                    "cache",
                    f"the copy of {stored.output} cannot be read ({error.strerror}: {error.filename or stored.path})",
                    "Allow this user to read it, or check the disk",
                )
            )
            continue
        if damaged is None:
            absent.append(stored.output)
        elif damaged:
            which = f"{damaged[0]}" if len(damaged) == 1 else f"one of {len(damaged)} objects"
            findings.append(
                Finding(
                    "cache",
                    f"the copy of {stored.output} has other bytes than dvc.lock says ({which})",
                    f"rm -rf {stored.output} {' '.join(map(str, damaged))}, then `dvc pull {stored.stage}` where a "
                    f"remote has it, else `dvc repro --no-run-cache --force {stored.stage}`",
                )
            )
    if findings:
        return findings
    how = "hashes" if deep else "sizes"
    text = f"{len(outputs) - len(absent)} of {plural(len(outputs), 'output')} of dvc.lock, {how} compared"
    return [Finding("cache", f"{text}; `dvc pull` or `dvc repro` brings the others" if absent else text)]


def secrets_in(settings: dict) -> list[str]:
    """The keys of a remote's settings whose values are secret, or are addresses that contain a secret."""

    def is_secret(value: object) -> bool:
        if not isinstance(value, str) or "://" not in value:
            return False
        try:
            parts = urlsplit(value)
            return bool(parts.password) or holds_credentials(parts._replace(netloc="").geturl())
        except ValueError:
            return "@" in value

    return sorted(key for key, value in settings.items() if key in SECRETS or is_secret(value))


def check_remotes(remotes: dict[str, dict], tracked: dict[str, dict]) -> list[Finding]:
    """Findings about the remotes.

    Args:
        remotes: Settings from all configuration files together.
        tracked: Settings from .dvc/config, which Git shares.
    """
    findings = []
    for name, settings in sorted(remotes.items()):
        if str(settings.get("verify", "")).lower() != "true":
            findings.append(
                Finding(
                    "remotes",
                    f"{name} is not verified, so damaged objects in it would go unnoticed",
                    f"dvc remote modify {name} verify true",
                )
            )
        if shared := secrets_in(tracked.get(name, {})):
            mend = " ".join(["dvc remote modify", *([] if shared[0] == "url" else ["--unset"]), name, shared[0]])
            findings.append(
                Finding(
                    "remotes",
                    f"{name} has its {', '.join(shared)} in .dvc/config, which Git shares",
                    f"Make it void, then: {mend}{' with an address without it' * (shared[0] == 'url')}, and set a new "
                    "one with --local",
                )
            )
    if not remotes:
        return [Finding("remotes", "none; results stay on this machine")]
    return findings or [Finding("remotes", f"{', '.join(sorted(remotes))}, verified")]
