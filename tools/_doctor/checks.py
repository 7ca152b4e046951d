"""All checks of the doctor, in the order in which it says what they found."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from stages.core.params import Params, load_params
from stages.core.paths import METRICS
from stages.runtime.errors import UserError
from tools._doctor.finding import Finding
from tools._doctor.hub import check_hub
from tools._doctor.libraries import check_pins, check_run, installed, pins, trained_versions
from tools._doctor.locks import lock_findings
from tools._doctor.machine import base_size, check_gpu, check_paths, driver, machine_findings
from tools._doctor.stored import StoredOutput, check_cache, check_remotes, stored_outputs
from tools._doctor.torn import check_lock_file

if TYPE_CHECKING:
    from dvc.repo import Repo


def check_machine(params: Params) -> list[Finding]:
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return machine_findings(params, cores, psutil.virtual_memory().available, shutil.disk_usage(".").free)


def find_gpu(params: Params) -> Finding:
    try:
        import torch
    except ImportError as error:
        return Finding("GPU", f"PyTorch cannot be loaded ({error})", "python -m pip install -r requirements.txt")
    cuda = torch.cuda.is_available()
    parameters = (base_size(params.model) or (None, None))[0]
    return check_gpu(params.machine.device, driver(), cuda, cuda and torch.cuda.is_bf16_supported(False), parameters)


def check_outputs(repo: "Repo", deep: bool, legal: bool) -> Iterator[Finding]:
    """Findings about libraries and DVC's cache. legal: whether params.yaml is legal."""
    from dvc.exceptions import DvcException

    try:
        known = stored_outputs(repo)
    except DvcException:
        if legal:
            raise
        yield from check_libraries([])
        yield Finding("cache", "not compared with dvc.lock, because dvc.yaml needs a legal params.yaml")
        return
    yield from check_libraries(known)
    yield from check_cache(known, deep)


def check_libraries(known: list[StoredOutput]) -> Iterator[Finding]:
    wanted = pins(Path("requirements.txt").read_text(encoding="utf-8"))
    yield check_pins(wanted, installed(list(wanted)))
    trained = METRICS / "train.json"
    locked = [stored.path for stored in known if stored.output == str(trained)]
    versions = trained_versions(*locked, trained)
    yield check_run(versions, installed(list(versions or {})))


def findings(deep: bool, network: bool) -> Iterator[Finding]:
    """All findings. The arguments are the options of tools/doctor.py."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    params = None
    try:
        params = load_params()
        yield Finding("params.yaml", "legal")
    except UserError as error:
        yield Finding("params.yaml", f"not legal, so machine, GPU and hub were not checked: {error}", "Correct it")
    if params:
        yield from check_paths({"data.path": params.data.path, "model.path": params.model.path})
        yield from check_machine(params)
        yield find_gpu(params)
    try:
        with Repo() as repo:
            yield from lock_findings(Path(repo.root_dir), Path(repo.tmp_dir))
            torn = check_lock_file(repo)
            yield from torn
            if not torn:  # the check of the outputs reads dvc.lock too
                yield from check_outputs(repo, deep, params is not None)
            yield from check_remotes(repo.config["remote"], repo.config.load_one("repo").get("remote", {}))
    except DvcException as error:
        yield Finding("DVC", f"{error}", "Run this in the repository's own folder, with dvc.yaml and dvc.lock of Git")
    if not network:
        yield Finding("hub", "not asked; --network asks it")
    elif params:
        yield check_hub(params.model)
