"""The trackers of machine.report_to, which the Trainer itself logs to.

Their files hold times and paths, so they are no outs. They go to logs/ of the original repository, which Git ignores,
unless the tracker's own environment variable names another place.
"""

import importlib.util
import os
from pathlib import Path

from stages.core.params import Machine
from stages.runtime.errors import UserError


def tracker_variables(logs: Path, run: str) -> dict[str, str]:
    """{environment variable: its value} for a run of this name. transformers reads TensorBoard's variable."""
    return {
        "TENSORBOARD_LOGGING_DIR": str(logs / "tensorboard" / run),
        "WANDB_DIR": str(logs),
        "MLFLOW_TRACKING_URI": f"sqlite:///{logs / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TRACKIO_DIR": str(logs / "trackio"),
    }


def prepare_trackers(machine: Machine, run: str) -> None:
    """Tells each tracker of machine.report_to where to write. run: the name of the run.

    Raises:
        UserError: names each package that is not installed.
    """
    if machine.report_to == "none":
        return
    specs = {package: importlib.util.find_spec(package) for package in machine.report_to}
    # Python takes a folder such as ./wandb for a package, but one without a file.
    missing = [package for package, spec in specs.items() if spec is None or spec.origin is None]
    if missing:
        raise UserError(
            f"machine.report_to needs {', '.join(missing)}, which is not installed. Run pip install "
            f"{' '.join(missing)}, or set machine.report_to: none"
        )
    logs = Path(os.environ.get("DVC_ROOT", "."), "logs").absolute()
    logs.mkdir(exist_ok=True)
    for variable, value in tracker_variables(logs, run).items():
        os.environ.setdefault(variable, value)
