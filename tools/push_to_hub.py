"""Uploads models/merged or models/adapter with its card to a model repository of the Hugging Face hub. Never a stage.

    python -m tools.push_to_hub merged owner/name --dry-run     what would go where; needs no network
    python -m tools.push_to_hub merged owner/name

The card is reports/model-card.md, and the commit on the hub names the Git commit that made the model. So it stops where
the working tree or the results (`dvc status`) are not those of that commit. A new repository is private. The token is
that of HF_TOKEN or `hf auth login`.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stages.shared.errors import UserError
from stages.shared.hub import ANSWER_SECONDS, offline
from stages.shared.params import load_params
from stages.shared.paths import ADAPTER, MERGED, REPORTS
from stages.shared.prompts import CHAT_TEMPLATES
from stages.shared.stage import explained

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

FOLDERS = {"merged": (MERGED, "merge"), "adapter": (ADAPTER, "train")}
CARD = REPORTS / "model-card.md"
ALLOWED = (".safetensors", ".json", ".jinja")  # and beside them the card
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npy", ".npz", ".joblib")
ADAPTER_USE = """## Use

This is the adapter alone, in PEFT's layout; the results above are those of the model that it was merged into. It was
trained on the base in 4 bits: `PeftModel.from_pretrained` puts it onto a base that is loaded with the `quantization` of
the parameters below. Prompts follow Mistral's instruct format {template}, as chat_template.jinja writes it.

"""
TOKEN = "set HF_TOKEN to a token that may write, or run `hf auth login`"  # noqa: S105


class Upload(NamedTuple):
    """What goes to the hub: {path there: a file, or the bytes themselves}, and what its commit says."""

    files: dict[str, Path | bytes]
    message: str
    description: str


def files_of(folder: Path, stage: str) -> dict[str, Path | bytes]:
    """The folder's files but its README.md, whose place the card takes."""
    if not folder.is_dir():
        raise UserError(f"{folder} is missing. `dvc repro {stage}` makes it, or `dvc pull {folder}` brings it")
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if not path.is_dir()}
    found.pop("README.md", None)
    for name, path in found.items():
        if not path.exists():
            raise UserError(f"{path} is a link to nothing: DVC's cache lacks the file. `dvc pull {folder}` brings it")
        if name.endswith(PICKLES):
            raise UserError(
                f"{folder / name} may be a pickle, which runs code when it is loaded. Remove it; weights go as "
                "safetensors"
            )
        if not name.endswith(ALLOWED):
            raise UserError(f"{folder / name} is none of the pipeline's files ({', '.join(ALLOWED)}). Remove it")
    check_weights([path for name, path in found.items() if name.endswith(".safetensors")], folder, stage)
    return found


def check_weights(paths: list[Path], folder: Path, stage: str) -> None:
    from safetensors import SafetensorError, safe_open

    if not paths:
        raise UserError(f"{folder} has no weights. `dvc repro {stage}` makes them")
    for path in paths:
        try:
            with safe_open(path, "np"):
                pass
        except SafetensorError as error:
            raise UserError(f"{path} is no safetensors file ({error}). `dvc repro {stage}` makes it") from None


def adapter_card(card: str, template: str) -> str:
    """The card of the merged model turned into that of the adapter."""
    from huggingface_hub import ModelCard

    changed = ModelCard(re.sub(r"(?ms)^## Use\n.*?(?=^## )", lambda _: ADAPTER_USE.format(template=template), card))
    changed.data.library_name = "peft"
    if changed.data.base_model:
        changed.data.base_model_relation = "adapter"
    return str(changed)


def output_of(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise UserError(f"`{' '.join(command)}` failed: {lines[-1] if lines else done.returncode}")
    return done.stdout


def stale(status: dict[str, list]) -> list[str]:
    """What `dvc status --json` calls changed. What is only missing here, such as a base that nobody pulls, is not."""
    found = []
    for stage, changes in status.items():
        for change in changes:
            states = list(change.values())[0] if isinstance(change, dict) else {stage: change}
            found += [path for path, state in states.items() if state != "deleted"]
    return sorted(set(found))


def refusal() -> str | None:
    """Why the files here are not those of the Git commit, if so."""
    changed = output_of("git", "status", "--porcelain", "--untracked-files=no").splitlines()
    if changed:
        return f"{changed[0][3:]} differs from the Git commit. Commit it"
    found = stale(json.loads(output_of(sys.executable, "-m", "dvc", "status", "--json")))
    if found:
        return f"`dvc status` says that {found[0]} changed since the results were made. Run `dvc repro` and commit"
    return None


def prepare(name: str, commit: str, forced: str | None) -> Upload:
    """forced: what is not as in the commit, if it goes up all the same."""
    folder, stage = FOLDERS[name]
    template = load_params().prompt.template
    files = files_of(folder, stage)
    if not CARD.is_file():
        raise UserError(f"{CARD} is missing. `dvc repro report` makes it, or `dvc pull {REPORTS}` brings it")
    card = CARD.read_text(encoding="utf-8")
    if name == "adapter":
        card = adapter_card(card, template)
        files.setdefault("chat_template.jinja", CHAT_TEMPLATES[template].encode())
    files["README.md"] = card.encode()
    doubt = f"\n\nNot just of that commit: {forced}" if forced else ""
    return Upload(
        dict(sorted(files.items())),
        f"{folder} of Git commit {commit[:12]}{' and changes' if forced else ''}",
        f"Git commit {commit}{doubt}",
    )


def size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def listing(upload: Upload) -> str:
    rows = [*upload.files.items(), ("in all", sum(map(size, upload.files.values())))]
    sizes = [f"{each if isinstance(each, int) else size(each):,}" for _, each in rows]
    width = max(map(len, sizes))
    return "\n".join(f"{count:>{width}} bytes  {name}" for count, (name, _) in zip(sizes, rows, strict=True))


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Turns what the hub or the network says into advice. Their own texts may hold a token and are not repeated."""
    import httpx2
    from huggingface_hub.errors import BadRequestError, HFValidationError

    try:
        yield
    except HFValidationError:
        raise UserError(f"{repo_id} is no name of a repository: owner/name, of letters, digits, ., _ and -") from None
    except (OSError, httpx2.HTTPError, RuntimeError, ValueError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        status = getattr(getattr(cause, "response", None), "status_code", 0)
        again = "Run it again: whole files that are there already are not sent twice"
        if offline():
            text = "HF_HUB_OFFLINE is set. Unset it"
        elif status in (401, 403):
            text = f"the hub refuses it (HTTP {status}). Check the owner and the token: {TOKEN}"
        elif isinstance(cause, BadRequestError) or (isinstance(error, ValueError) and not status):
            text = f"the hub does not take the files or {CARD}'s block of YAML ({type(cause).__name__})"
        elif status:
            text = f"the hub answers HTTP {status}. {again} later"
        elif isinstance(cause, httpx2.HTTPError):
            text = f"the hub cannot be reached ({type(cause).__name__}). Check the network and HTTPS_PROXY. {again}"
        else:
            raise
        raise UserError(f"{repo_id}: {text}") from None


def repository(repo_id: str, public: bool) -> "ModelInfo":
    """The repository, made where it does not exist."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()
    try:
        info = api.model_info(repo_id, timeout=ANSWER_SECONDS)
    except RepositoryNotFoundError:
        api.create_repo(repo_id, private=not public)
        info = api.model_info(repo_id, timeout=ANSWER_SECONDS)
    if not info.private and not public:
        raise UserError(f"{repo_id} is public. Say --public to show the model to everybody, or take another name")
    if info.private and public:
        print(f"push_to_hub: {repo_id} was private before and stays it; its page on the hub can change that")
    return info


def push(repo_id: str, upload: Upload, public: bool) -> str:
    """One commit with all files; of earlier uploads, model files of other names go. Returns the commit's address."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    if not get_token():
        raise UserError(f"there is no token: {TOKEN}")
    info = repository(repo_id, public)
    left = [each.rfilename for each in info.siblings or []]
    old = [name for name in left if name.endswith(ALLOWED) and name not in upload.files]
    operations = [CommitOperationDelete(name) for name in old]
    operations += [CommitOperationAdd(name, content) for name, content in upload.files.items()]
    done = HfApi().create_commit(
        repo_id, operations, commit_message=upload.message, commit_description=upload.description
    )
    if old:
        print(f"push_to_hub: of an earlier upload {', '.join(old)} went")
    return done.commit_url


def main(options: argparse.Namespace) -> None:
    reason = refusal()
    if reason and not options.force:
        upload = prepare(options.model, "", None) if options.dry_run else None
        raise UserError(f"{listing(upload)}\n{reason}, or say --force" if upload else f"{reason}, or say --force")
    commit = output_of("git", "rev-parse", "HEAD").strip()
    upload = prepare(options.model, commit, reason)
    print(f"{listing(upload)}\n{upload.message} → {options.repository} ({'public' if options.public else 'private'})")
    if options.dry_run:
        return
    with hub_errors(options.repository):
        print(push(options.repository, upload, options.public))


def read_options(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.push_to_hub", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=FOLDERS)
    parser.add_argument("repository", help="owner/name")
    parser.add_argument("--dry-run", action="store_true", help="list files and sizes, and send nothing")
    parser.add_argument("--public", action="store_true", help="make a new repository public, or write to a public one")
    parser.add_argument("--force", action="store_true", help="send it though it is not what the Git commit makes")
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
