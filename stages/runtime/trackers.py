"""The trackers of machine.report_to, which the Trainer itself logs to.

Their files are no outs: they hold times and paths. They lie in logs/ of the original repository, which Git ignores,
unless the tracker's own environment variable says otherwise.
"""

import importlib.util
import os
from pathlib import Path

from stages.core.params import Machine
from stages.runtime.errors import UserError


def places(logs: Path, name: str) -> dict[str, str]:
    """{environment variable: its value} for runs called `name`. TensorBoard's is read by transformers."""
    return {
        "TENSORBOARD_LOGGING_DIR": str(logs / "tensorboard" / name),
        "WANDB_DIR": str(logs),
        "MLFLOW_TRACKING_URI": f"sqlite:///{logs / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TRACKIO_DIR": str(logs / "trackio"),
    }


def prepare_trackers(machine: Machine, name: str) -> None:
    """Tells each tracker where to write; name: that of the run.

    Raises:
        UserError: names each package that is not installed.
    """
    if machine.report_to == "none":
        return
    specs = {package: importlib.util.find_spec(package) for package in machine.report_to}
    # A folder such as ./wandb would pass for a package, one without a file.
    missing = [package for package, spec in specs.items() if spec is None or spec.origin is None]
    if missing:
        raise UserError(
            f"machine.report_to needs {', '.join(missing)}, which is not installed. Run pip install "
            f"{' '.join(missing)}, or set machine.report_to: none"
        )
    logs = Path(os.environ.get("DVC_ROOT", "."), "logs").absolute()
    logs.mkdir(exist_ok=True)
    for variable, value in places(logs, name).items():
        os.environ.setdefault(variable, value)
