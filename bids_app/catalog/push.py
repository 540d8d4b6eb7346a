"""Upload of files to a model repository of the Hugging Face Hub, on request only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bids_app.catalog.hub import TIMEOUT_S, hub_api, hub_session, hub_token
from bids_app.catalog.references import HUB_PREFIX, REPO
from bids_app.errors import BadDataError, NoInputError, TemporaryError, UsageError

WRITE_HINT = (
    "Set HF_TOKEN to a token with write access to the repository (huggingface.co, Settings, Access Tokens), or log in "
    "with 'hf auth login'."
)


def check_repo(name: str) -> None:
    """Check the name of a repository.

    Raises
    ------
    UsageError
        It is not ``owner/name``.
    """
    if not REPO.fullmatch(name) or "--" in name or ".." in name:
        raise UsageError(f"Invalid repository {name[:200]!a}.", "Give owner/name: a user or organisation, and a name.")


def upload(files: Sequence[Path], repo: str, private: bool = False) -> str:
    """Upload files to the top folder of a repository in one commit, and return the URL of the commit.

    Parameters
    ----------
    files : sequence of pathlib.Path
    repo : str
        ``owner/name``; it is created if it does not exist.
    private : bool
        Create a private repository, and upload nothing to a public one.

    Raises
    ------
    NoInputError
        There is no token, or it does not allow writing.
    UsageError
        The repository is public, although ``private`` is given.
    BadDataError
        The hub refuses the model card.
    TemporaryError
        The hub cannot be reached, or the upload failed.
    """
    check_repo(repo)
    what = f"{HUB_PREFIX}{repo}"
    if not hub_token():
        raise NoInputError(f"{what}: uploading requires a token.", WRITE_HINT)
    from huggingface_hub import CommitOperationAdd

    with hub_session(what, token_hint=WRITE_HINT):
        api = hub_api()
        api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(repo, timeout=TIMEOUT_S).private:
            raise UsageError(
                f"{what}: the repository exists and is public; nothing was uploaded.",
                "Make it private on its page, choose another name, or leave out --private.",
            )
        operations = [CommitOperationAdd(path.name, str(path)) for path in files]
        names = ", ".join(path.name for path in files)
        try:
            commit = api.create_commit(repo, operations, commit_message=f"Upload {names}")
        except ValueError as error:  # of the card's front matter
            raise BadDataError(f"{what}: the hub refuses the model card: {error}.", "Correct the card.") from error
        except RuntimeError as error:  # of its storage
            raise TemporaryError(f"{what}: the upload failed ({error}).", "Repeat the command.") from error
    return str(commit.commit_url)
