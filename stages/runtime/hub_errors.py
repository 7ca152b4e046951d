"""What to tell the user when the hub gives no files."""

import os
import re

from stages.runtime.errors import UserError

HUB_ANSWER_SECONDS = 10  # for the first answer; huggingface_hub's own limit on a dead network is minutes


def hub_is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network, read as huggingface_hub reads it."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def check_pinned(repo_id: str, revision: str, repo_type: str, section: str) -> None:
    """Checks that the revision is a full commit. If not, it asks the hub which commit the revision names now.

    Args:
        repo_type: model or dataset.
        section: the section of params.yaml with the keys `id` and `revision`.

    Raises:
        UserError: the revision is a branch, a tag, a short commit, or unknown.
    """
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return
    import httpx2
    from huggingface_hub import HfApi

    needed = (
        f"{section}.id {repo_id} at {section}.revision {revision}: "
        f"{section}.revision must be a full commit of 40 hex digits"
    )
    if hub_is_offline():
        raise UserError(f"{needed}, and the hub cannot be asked for it, because HF_HUB_OFFLINE is set")
    try:
        info = HfApi().repo_info(repo_id, repo_type=repo_type, revision=revision, timeout=HUB_ANSWER_SECONDS)
    except (OSError, httpx2.HTTPError, RuntimeError, ValueError) as error:
        reason = explain_hub_error(error, repo_type, section)
        raise UserError(f"{needed}, and the hub did not say it: {reason}") from None
    raise UserError(f"{needed}. {revision} can move; it is now {info.sha}. Set {section}.revision: {info.sha}")


def explain_hub_error(error: Exception, repo_type: str, section: str) -> str:
    """Says what went wrong and what to do. The arguments are those of check_pinned().

    An error's own text may hold a token, so only a socket's text is repeated.
    """
    import httpx2
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error.__cause__, httpx2.HTTPError) and not isinstance(error, httpx2.HTTPError):
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", 0)
    unreachable = isinstance(error, httpx2.ConnectError | httpx2.TimeoutException | httpx2.ProxyError)
    page = f"the {repo_type}'s page of the hub"
    login = "set HF_TOKEN or run `hf auth login`"
    local = f"`{section}.source: {'path' if repo_type == 'model' else 'file'}` with a local copy"
    cases = [
        (isinstance(error, GatedRepoError), f"it is gated. Accept the licence on {page}, then {login}, or use {local}"),
        (
            isinstance(error, RepositoryNotFoundError),
            f"the hub shows no such {repo_type}. Correct {section}.id; if it is private or gated, {login}",
        ),
        (
            isinstance(error, RevisionNotFoundError),
            f"the {repo_type} has no such commit, branch or tag. Correct {section}.revision; {page} lists its commits",
        ),
        (
            status in (401, 403),
            f"the hub refuses it (HTTP {status}). Accept the licence on {page}, and check the token: {login}",
        ),
        (status == 429 or status >= 500, f"the hub answers HTTP {status}. Try again later, or use {local}"),
        (hub_is_offline(), f"the local cache lacks files, and HF_HUB_OFFLINE is set. Unset it, or use {local}"),
        (
            unreachable,
            f"the hub cannot be reached ({type(error).__name__}: {error}). Check the network and HTTPS_PROXY, or use "
            f"{local}. A gated {repo_type} also needs its licence accepted on {page}, and a token: {login}",
        ),
    ]
    broken = f"the download broke off ({type(error).__name__}). Run it again: whole files are kept, the rest is fetched"
    return next((text for applies, text in cases if applies), broken)
