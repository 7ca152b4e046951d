"""Files of a hub repository at a pinned commit: from the local cache where they are all there, else downloaded."""

import contextlib
import os
import re
from functools import partial
from pathlib import Path
from typing import Literal

from stages.runtime.errors import UserError

ANSWER_SECONDS = 10  # for the first answer; huggingface_hub alone would ask a dead network for minutes


def fetch(
    repo_id: str, revision: str, repo_type: Literal["model", "dataset"], allow_patterns: list[str], section: str
) -> Path:
    """The folder with the repository's files that match a pattern. It may hold files of an earlier fetch as well.

    Args:
        section: the section of params.yaml with the keys `id` and `revision`, for the messages.

    Raises:
        UserError: no network, no access, no such repository, commit or file, or a revision that is no commit.
    """
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise UserError(unpinned(repo_id, revision, repo_type, section))
    import httpx2
    from huggingface_hub import HfApi, get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError
    from huggingface_hub.utils import filter_repo_objects

    asked = f"{section}.id {repo_id} at {section}.revision {revision}"
    download = partial(
        snapshot_download, repo_id, repo_type=repo_type, revision=revision, allow_patterns=allow_patterns
    )

    def cached() -> Path:
        # Without the list of the commit's files nobody can say that the cache holds all that were asked for.
        names = [file.path for file in get_cached_repo_tree(repo_id, repo_type=repo_type, revision=revision)]
        if not any(filter_repo_objects(names, allow_patterns=allow_patterns)):
            raise UserError(f"{asked} holds no file named like {', '.join(allow_patterns)}")
        return Path(download(local_files_only=True))

    with contextlib.suppress(CachedRepoTreeNotFoundError, LocalEntryNotFoundError):
        return cached()
    try:
        HfApi().repo_info(repo_id, repo_type=repo_type, revision=revision, timeout=ANSWER_SECONDS)
        download()
        return cached()
    except (OSError, httpx2.HTTPError, RuntimeError, ValueError, CachedRepoTreeNotFoundError) as error:
        if getattr(error, "errno", None):  # the disk's, such as no space left: the stage explains those
            raise
        raise UserError(f"{asked}: {explain(error, repo_type, section)}") from None


def unpinned(repo_id: str, revision: str, repo_type: str, section: str) -> str:
    """What to write instead of a branch, a tag or a short commit, which names other files tomorrow."""
    import httpx2
    from huggingface_hub import HfApi

    asked = f"{section}.id {repo_id} at {section}.revision {revision}"
    needed = f"{section}.revision must be a full commit of 40 hex digits"
    if offline():
        return f"{asked}: {needed}, and the hub cannot be asked for it, because HF_HUB_OFFLINE is set"
    try:
        info = HfApi().repo_info(repo_id, repo_type=repo_type, revision=revision, timeout=ANSWER_SECONDS)
    except (OSError, httpx2.HTTPError, RuntimeError, ValueError) as error:
        return f"{asked}: {needed}, and the hub did not say it: {explain(error, repo_type, section)}"
    return f"{asked}: {needed}. {revision} can move; it is now {info.sha}. Set {section}.revision: {info.sha}"


def offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def explain(error: Exception, repo_type: str, section: str) -> str:
    """What went wrong and what to do. An error's own text may hold a token: only a socket's is repeated."""
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
        (offline(), f"not all files are in the local cache, and HF_HUB_OFFLINE is set. Unset it, or use {local}"),
        (
            unreachable,
            f"the hub cannot be reached ({type(error).__name__}: {error}). Check the network and HTTPS_PROXY, or use "
            f"{local}. A gated {repo_type} also needs its licence accepted on {page}, and a token: {login}",
        ),
    ]
    broken = f"the download broke off ({type(error).__name__}). Run it again: whole files are kept, the rest is fetched"
    return next((text for applies, text in cases if applies), broken)
