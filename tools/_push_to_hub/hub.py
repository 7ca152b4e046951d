"""Sends an upload: the repository, one commit, and advice on errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stages.runtime.errors import UserError
from stages.runtime.hub_errors import HUB_ANSWER_SECONDS, hub_is_offline
from tools._push_to_hub.files import CARD, Upload, left_over

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

TOKEN = "set HF_TOKEN to a token that may write, or run `hf auth login`"  # noqa: S105


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Turns errors of the hub and the network into advice.

    Their own texts may contain a token, so they are not repeated.
    """
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
        if hub_is_offline():
            text = "HF_HUB_OFFLINE is set. Unset it"
        elif status in (401, 403):
            text = f"the hub refuses it (HTTP {status}). Check the owner and the token: {TOKEN}"
        elif isinstance(cause, BadRequestError) or (isinstance(error, ValueError) and not status):
            text = f"the hub does not take the files or {CARD}'s block of YAML ({type(cause).__name__})"
        elif status:
            text = f"the hub answers HTTP {status}. {again} later"
        elif isinstance(cause, httpx2.HTTPError):
            text = f"the hub cannot be reached ({type(cause).__name__}). Check the network and HTTPS_PROXY. {again}"
        elif getattr(cause, "errno", None):  # an error of the disk
            raise
        else:
            text = f"the upload broke off ({type(cause).__name__}). {again}"
        raise UserError(f"{repo_id}: {text}") from None


def find_or_create(repo_id: str, public: bool) -> "ModelInfo":
    """The repository, which is created if it does not exist.

    Raises:
        UserError: It is public, and --public was not given.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()
    try:
        info = api.model_info(repo_id, timeout=HUB_ANSWER_SECONDS)
    except RepositoryNotFoundError:
        api.create_repo(repo_id, private=not public)
        info = api.model_info(repo_id, timeout=HUB_ANSWER_SECONDS)
    if not info.private and not public:
        raise UserError(f"{repo_id} is public. Use --public to show the model to everybody, or take another name")
    if info.private and public:
        print(f"push_to_hub: {repo_id} was private and stays private; its page on the hub can change that")
    return info


def push(repo_id: str, upload: Upload, public: bool) -> str:
    """Makes one commit with all files, and removes left-over files of earlier uploads. Returns the commit's address.

    Raises:
        UserError: There is no token, or the repository is public.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    if not get_token():
        raise UserError(f"there is no token: {TOKEN}")
    info = find_or_create(repo_id, public)
    old = left_over([sibling.rfilename for sibling in info.siblings or []], upload)
    operations = [CommitOperationDelete(name) for name in old]
    operations += [CommitOperationAdd(name, content) for name, content in upload.files.items()]
    done = HfApi().create_commit(
        repo_id, operations, commit_message=upload.message, commit_description=upload.description
    )
    if old:
        print(f"push_to_hub: removed {', '.join(old)} of an earlier upload")
    return done.commit_url
