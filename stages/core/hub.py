"""Downloads files of a hub repository at a pinned commit, or takes them from the local cache when all are there."""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from stages.runtime.errors import UserError
from stages.runtime.hub_errors import HUB_ANSWER_SECONDS, check_pinned, explain_hub_error

RepoType = Literal["model", "dataset"]


@contextlib.contextmanager
def explained_hub_errors(asked: str, repo_type: RepoType, section: str) -> Iterator[None]:
    """Turns what the hub's client raises into a UserError that begins with `asked`."""
    import httpx2
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        yield
    except (OSError, httpx2.HTTPError, RuntimeError, ValueError, CachedRepoTreeNotFoundError) as error:
        if getattr(error, "errno", None):  # an error of the disk, such as a full one; run_stage() explains those
            raise
        raise UserError(f"{asked}: {explain_hub_error(error, repo_type, section)}") from None


def list_files(repo_id: str, revision: str, repo_type: RepoType, allow_patterns: list[str], section: str) -> list[str]:
    """Returns the paths of all files of the repository, and fetches those that match a pattern.

    The list is kept in the local cache, so that a later call needs no network. For the arguments and errors see
    fetch(), but here it is no error if no file matches.
    """
    check_pinned(repo_id, revision, repo_type, section)
    from huggingface_hub import HfApi, get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError
    from huggingface_hub.utils import logging

    def cached() -> list[str]:
        return sorted(file.path for file in get_cached_repo_tree(repo_id, repo_type=repo_type, revision=revision))

    with contextlib.suppress(CachedRepoTreeNotFoundError):
        return cached()
    asked = f"{section}.id {repo_id} at {section}.revision {revision}"
    with explained_hub_errors(asked, repo_type, section):
        HfApi().repo_info(repo_id, repo_type=repo_type, revision=revision, timeout=HUB_ANSWER_SECONDS)
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # it would warn that no file matches
        try:
            snapshot_download(repo_id, repo_type=repo_type, revision=revision, allow_patterns=allow_patterns)
        finally:
            logging.set_verbosity(verbosity)
        return cached()


def fetch(repo_id: str, revision: str, repo_type: RepoType, allow_patterns: list[str], section: str) -> Path:
    """Returns the folder with the repository's files that match a pattern. It may hold files of an earlier fetch too.

    Args:
        section: the section of params.yaml with the keys `id` and `revision`, for the messages.

    Raises:
        UserError: no network, no access, no such repository, commit or file, or a revision that is not a commit.
    """
    check_pinned(repo_id, revision, repo_type, section)
    from huggingface_hub import HfApi, get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError
    from huggingface_hub.utils import filter_repo_objects

    asked = f"{section}.id {repo_id} at {section}.revision {revision}"
    download = partial(
        snapshot_download, repo_id, repo_type=repo_type, revision=revision, allow_patterns=allow_patterns
    )

    def cached() -> Path:
        # Only the commit's list of files can show that the cache holds every file that matches.
        names = [file.path for file in get_cached_repo_tree(repo_id, repo_type=repo_type, revision=revision)]
        if not any(filter_repo_objects(names, allow_patterns=allow_patterns)):
            raise UserError(f"{asked} holds no file named like {', '.join(allow_patterns)}")
        return Path(download(local_files_only=True))

    with contextlib.suppress(CachedRepoTreeNotFoundError, LocalEntryNotFoundError):
        return cached()
    with explained_hub_errors(asked, repo_type, section):
        HfApi().repo_info(repo_id, repo_type=repo_type, revision=revision, timeout=HUB_ANSWER_SECONDS)
        download()
        return cached()
