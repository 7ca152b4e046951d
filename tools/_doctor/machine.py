"""Compares cores, memory, disk and GPU with what params.yaml needs."""

import math
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from stages.core.params import Model, Params
from stages.core.paths import BASE, read_json
from stages.runtime.base_shape import FAMILY, is_named
from tools._doctor.finding import Finding, in_bytes

# Parameters from which training on a CPU takes too long. Two cores train the tiny base, of 10 million parameters, at
# 3,912 tokens/s (docs/performance.md). A token costs each parameter the same, so a base this large needs 7 hours for a
# million tokens.
LARGE = 1_000_000_000
BYTES_ON_THE_HUB = 2  # a parameter, in bfloat16


def downloaded(model: Model, base: Path = BASE) -> tuple[int, int] | None:
    """Parameters and bytes of models/base. None where it is missing, or is not the one that params.yaml names."""
    try:
        manifest = read_json(base / "manifest.json")
        if is_named(manifest, model):
            return manifest["parameters"], manifest["bytes"]
    except (OSError, ValueError, TypeError, KeyError):
        pass
    return None


def base_size(model: Model, base: Path = BASE) -> tuple[int, int] | None:
    """Parameters and bytes of the base that params.yaml names. None where they are known only after its download.

    A folder needs no manifest, since the headers of the files are read. A model of the hub may be in a table.
    """
    if size := downloaded(model, base):
        return size
    if model.source == "hub":
        shape = FAMILY.get(model.id)
        return (shape.parameters, BYTES_ON_THE_HUB * shape.parameters) if shape else None
    from stages._download_model.checks import tensor_shapes, weight_files
    from stages.runtime.errors import UserError

    folder = Path(model.path)
    try:
        names = [name for name in weight_files(folder) if name.endswith(".safetensors")]
        shapes = tensor_shapes(folder, names)
    except (UserError, OSError):
        return None
    count = sum(math.prod(shape) for shape in shapes.values())
    return count, sum((folder / name).stat().st_size for name in names)


def check_paths(paths: dict[str, str]) -> Iterator[Finding]:
    """A finding for each path of params.yaml that does not exist. paths: {key: its value}."""
    for key, path in paths.items():
        if not Path(path).exists():
            yield Finding(
                key,
                f"there is no file or folder {path}, at which `dvc repro` ends",
                "Put it there or correct params.yaml. A clone with the results needs none: dvc repro --pull "
                "--allow-missing",
            )


def check_cores(usable: int, workers: int | None) -> Finding:
    if workers is not None and workers > usable:
        return Finding(
            "cores", f"{usable}, and machine.workers is {workers}", "Set it to null, which takes as many as there are"
        )
    return Finding("cores", str(usable))


def check_memory(available: int, parameters: int | None, bits: int) -> Finding:
    """Compares with the least that training takes: the frozen base."""
    if parameters is None:
        return Finding("memory", f"{in_bytes(available)} available; the need is known after the base is downloaded")
    needed = parameters * bits // 8
    if needed > available:
        return Finding(
            "memory",
            f"{in_bytes(available)} available, but the base in {bits} bits needs {in_bytes(needed)}",
            "End other programs, take a larger machine, or a smaller quantization.bits",
        )
    return Finding("memory", f"{in_bytes(available)} available, {in_bytes(needed)} for the base in {bits} bits")


def check_disk_space(free: int, size: int | None, base_is_here: bool) -> Finding:
    """Compares with the size of models/merged, and of models/base where it is missing.

    models/merged is as large as the base, and is written again each time.
    """
    if size is None:
        return Finding("disk", f"{in_bytes(free)} free; the need is known after the base is downloaded")
    needed = size if base_is_here else 2 * size
    what = "models/merged" if base_is_here else "models/base and models/merged"
    if needed > free:
        return Finding(
            "disk",
            f"{in_bytes(free)} free, and {what} takes {in_bytes(needed)}",
            "Free some space; `dvc gc --workspace` drops from DVC's cache what no current file needs",
        )
    return Finding("disk", f"{in_bytes(free)} free, {in_bytes(needed)} for {what}")


def driver() -> str | None:
    """What the GPU's driver says about itself, such as `NVIDIA H100, 570.86`. None where there is none."""
    program = shutil.which("nvidia-smi")
    if not program:
        return None
    query = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)  # noqa: S603 no shell
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi failed ({type(error).__name__})"
    said = "; ".join(done.stdout.split("\n")).strip("; ")
    return said if done.returncode == 0 else f"nvidia-smi failed: {said[:200]}"


def without_gpu(why: str, parameters: int | None, device: str) -> Finding:
    if parameters is None:
        return Finding("GPU", f"{why}; whether this base needs one is known after it is downloaded")
    if parameters < LARGE:
        return Finding("GPU", f"{why}; this base trains on the CPU")
    there = "" if device == "auto" else ", and set machine.device to auto there"
    return Finding(
        "GPU",
        f"{why}, and the base has {parameters:,} parameters, which a CPU would train for days",
        f"Use or rent a machine with a GPU{there} (docs/gpu-box.md), or rehearse here with the small base: "
        "python -m tools.profile tiny",
    )


def check_gpu(device: str, name: str | None, cuda: bool, bf16: bool, parameters: int | None) -> Finding:
    """Findings about the GPU.

    Args:
        device: machine.device.
        name: What the driver says.
        cuda: Whether PyTorch can use a GPU.
        bf16: Whether that GPU computes in bfloat16.
        parameters: Of the base, if known.
    """
    if device == "cpu":
        return without_gpu("not used, as machine.device is cpu", parameters, device)
    if name is not None and not cuda:
        return Finding(
            "GPU",
            f"the driver says {name!r}, but PyTorch cannot use it",
            "Check CUDA_VISIBLE_DEVICES, and install a driver that is new enough for the CUDA of this PyTorch: "
            "python -c 'import torch; print(torch.version.cuda)'",
        )
    if not cuda and device == "cuda" and (parameters or 0) < LARGE:
        return Finding("GPU", "none, and machine.device is cuda", "Set it to auto, or take a machine with a GPU")
    if not cuda:
        return without_gpu("none", parameters, device="auto")
    if not bf16:
        return Finding("GPU", f"{name or 'there'}, without bfloat16", "Take one of the Ampere generation or later")
    return Finding("GPU", f"{name or 'there'}, with bfloat16")


def machine_findings(params: Params, cores: int, available: int, free: int) -> list[Finding]:
    size = base_size(params.model)
    parameters, weights = size or (None, None)
    return [
        check_cores(cores, params.machine.workers),
        check_memory(available, parameters, params.quantization.bits),
        check_disk_space(free, weights, downloaded(params.model) is not None),
    ]
