"""Uploads models/merged or models/adapter with its card to a model repository of the Hugging Face hub. This is no
stage.

    python -m tools.push_to_hub merged owner/name --dry-run     what would go where; needs no network
    python -m tools.push_to_hub merged owner/name

The card is reports/model-card.md. The commit on the hub names the Git commit that made the model. So the upload and
its dry run end with 1 where the working tree or the results (`dvc status`) differ from that commit. A new repository is
private. The token is in HF_TOKEN, or comes from `hf auth login`.
"""

from stages.runtime.command import command_parser, explained

import argparse
import json
import os
import re
import subprocess
import sys

from stages.runtime.errors import UserError
from tools._push_to_hub.files import FOLDERS, file_list, prepare_upload
from tools._push_to_hub.hub import hub_errors, push


def output_of(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise UserError(f"`{' '.join(command)}` failed: {lines[-1] if lines else done.returncode}")
    return done.stdout


def changed_paths(status: dict[str, list]) -> list[str]:
    """The paths that `dvc status --json` calls changed.

    Paths that are only missing here, such as a base that nobody pulls, do not count.
    """
    paths = []
    for stage, changes in status.items():
        for change in changes:
            states = list(change.values())[0] if isinstance(change, dict) else {stage: change}
            paths += [path for path, state in states.items() if state != "deleted"]
    return sorted(set(paths))


def reason_to_refuse() -> str | None:
    """Why the files here are not those of the Git commit, or None."""
    changed = output_of("git", "status", "--porcelain", "--untracked-files=no").splitlines()
    if changed:
        return f"{changed[0][3:]} differs from the Git commit. Commit it"
    paths = changed_paths(json.loads(output_of(sys.executable, "-m", "dvc", "status", "--json")))
    if paths:
        return f"`dvc status` says that {paths[0]} changed since the results were made. Run `dvc repro` and commit"
    return None


def main(options: argparse.Namespace) -> None:
    reason = reason_to_refuse()
    if reason and not options.force:
        listed = f"\n{file_list(prepare_upload(options.model, '', None))}" if options.dry_run else ""
        raise UserError(f"{reason}, or use --force{listed}")
    commit = output_of("git", "rev-parse", "HEAD").strip()
    upload = prepare_upload(options.model, commit, reason)
    print(f"{file_list(upload)}\n{upload.message} → {options.repository} ({'public' if options.public else 'private'})")
    if options.dry_run:
        return
    with hub_errors(options.repository):
        print(push(options.repository, upload, options.public))


def read_options(given: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("tools.push_to_hub", __doc__)
    parser.add_argument("model", choices=FOLDERS, help="which of the two models")
    parser.add_argument("repository", help="owner/name")
    parser.add_argument("--dry-run", action="store_true", help="list files and sizes, and send nothing")
    parser.add_argument("--public", action="store_true", help="make a new repository public, or write to a public one")
    parser.add_argument("--force", action="store_true", help="send it even if it differs from the Git commit")
    options = parser.parse_args(given)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", options.repository):
        parser.error(f"{options.repository} is not owner/name")
    return options


if __name__ == "__main__":
    asked = read_options()
    with explained("push_to_hub", online=True):
        if sys.stderr.isatty():
            os.environ.pop("HF_HUB_DISABLE_PROGRESS_BARS", None)
        main(asked)
