"""Compares installed libraries with requirements.txt, and with those of the training in dvc.lock."""

from stages.runtime.command import environment_advice

import importlib.metadata
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from tools._doctor.finding import Finding


def pins(text: str) -> dict[str, str]:
    """{distribution: version} of the lines `name==version` in a requirements file."""
    return dict(re.findall(r"(?m)^([\w.-]+)==([^\s;]+)", text))


def installed(names: Iterable[str]) -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def describe_differing(wanted: dict[str, str], versions: dict[str, str | None]) -> str:
    pairs = [(name, versions.get(name), version.partition("+")[0]) for name, version in sorted(wanted.items())]
    return ", ".join(f"{name} {have or 'missing'} for {version}" for name, have, version in pairs if have != version)


def check_installed(needed: Iterable[str]) -> Finding | None:
    """A finding where one of the libraries that the doctor itself needs is missing, which then ends its work."""
    missing = [name for name, version in installed(needed).items() if version is None]
    if not missing:
        return None
    file = Path("requirements.txt")
    wanted = list(pins(file.read_text(encoding="utf-8"))) if file.exists() else missing
    absent = [name for name, version in installed(wanted).items() if version is None] or missing
    which = f"none of the {len(wanted)}" if len(absent) == len(wanted) else f"{', '.join(absent)}:"
    return Finding(
        "libraries",
        f"{which} not installed for {sys.executable}. Nothing else was checked, because that needs "
        f"{', '.join(missing)}",
        environment_advice(),
    )


def check_pins(wanted: dict[str, str], versions: dict[str, str | None]) -> Finding:
    if differing := describe_differing(wanted, versions):
        return Finding("libraries", f"not as pinned: {differing}", "python -m pip install -r requirements.txt")
    return Finding("libraries", f"{len(wanted)} as in requirements.txt")


def check_run(trained_with: dict[str, str] | None, versions: dict[str, str | None]) -> Finding:
    """Compares with the versions that the training in dvc.lock recorded, on which its bytes depend."""
    if trained_with is None:
        return Finding("last training", "its metrics/train.json is not here, so its versions are unknown")
    if differing := describe_differing(trained_with, versions):
        pip = " ".join(f"{name}=={version.partition('+')[0]}" for name, version in sorted(trained_with.items()))
        return Finding(
            "last training",
            f"made with other versions: {differing}. Training again would give other bytes",
            f"For the same ones: python -m pip install {pip}; for the new ones: dvc repro --force train",
        )
    return Finding("last training", "made with the versions that are installed")


def trained_versions(*files: Path) -> dict[str, str] | None:
    """The versions in the first of these copies of metrics/train.json that can be read, or None."""
    for file in files:
        try:
            return json.loads(file.read_text(encoding="utf-8"))["versions"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None
