"""Requests to the Hugging Face Hub: the content of a repository, and the hub's errors as errors of this app.

`huggingface_hub` makes the requests: proxies are taken from the usual environment variables (``https_proxy``,
``no_proxy``), a mirror from ``HF_ENDPOINT``, a token from ``HF_TOKEN`` or ``hf auth login``; ``HF_HUB_OFFLINE`` forbids
all requests.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_app import __version__
from bids_app.catalog.references import COMMIT, HUB_PREFIX, Reference, problem_of_path
from bids_app.errors import BadDataError, InputOutputError, NeurostormError, NoInputError, TemporaryError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TIMEOUT_S = 30.0
SHA256 = re.compile(r"[0-9a-f]{64}")
LICENCE = re.compile(r"[\w.+ -]{1,100}", re.ASCII)
TOKEN_HINT = (
    "If it is private or gated, request access on its page, then set HF_TOKEN to a token that may read it, or log in "
    "with 'hf auth login'."
)


@dataclass(frozen=True)
class RepoFile:
    """A file of a repository.

    Attributes
    ----------
    path : str
    size : int or None
        Bytes, if the hub tells.
    sha256 : str
        SHA-256 checksum; empty for small files, for which the hub has none.
    """

    path: str
    size: int | None
    sha256: str


@dataclass(frozen=True)
class Repo:
    """A repository of the hub at a commit.

    Attributes
    ----------
    name : str
        ``owner/name``.
    commit : str
    licence : str
        From the model card; empty if it names none.
    private : bool
    files : tuple of RepoFile
        In the order of their paths.
    """

    name: str
    commit: str
    licence: str
    private: bool
    files: tuple[RepoFile, ...]


def read_repo(name: str, revision: str) -> Repo:
    """Query the files of a repository and the commit of a revision.

    Parameters
    ----------
    name : str
        ``owner/name``.
    revision : str
        Commit, tag or branch.

    Raises
    ------
    NoInputError
        There is no such repository or revision, or it is not accessible.
    TemporaryError
        The hub cannot be reached, or ``HF_HUB_OFFLINE`` forbids requests.
    BadDataError
        The answer is not that of the hub, or is about another commit.
    """
    where = f"{HUB_PREFIX}{name}@{revision}"
    with hub_session(where), parsed_answer(where):
        info = hub_api().model_info(name, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
        commit = str(info.sha or "")
        if not COMMIT.fullmatch(commit) or (COMMIT.fullmatch(revision) and commit != revision):
            raise BadDataError(
                f"{where}: the hub answers with the commit {commit[:50]!a}.",
                "This is not that repository; check HF_ENDPOINT and the proxy.",
            )
        licence = info.card_data.get("license") if info.card_data else ""
        files = sorted((_repo_file(sibling) for sibling in info.siblings or ()), key=lambda file: file.path)
    unsafe = [file.path for file in files if problem_of_path(file.path)]
    return Repo(
        name,
        commit,
        licence if isinstance(licence, str) and LICENCE.fullmatch(licence) else "",
        bool(info.private),
        tuple(file for file in files if file.path not in unsafe),
    )


def _repo_file(sibling: Any) -> RepoFile:
    sha256 = str(sibling.lfs.sha256 if sibling.lfs else "").lower()
    return RepoFile(sibling.rfilename, sibling.size, sha256 if SHA256.fullmatch(sha256) else "")


def hub_api() -> HfApi:
    """Return the client of the hub, for use within a `hub_session`."""
    from huggingface_hub import HfApi

    return HfApi(
        endpoint=os.environ.get("HF_ENDPOINT") or None,
        token=hub_token() or False,
        library_name="neurostorm",
        library_version=__version__,
    )


def hub_token() -> str | None:
    """Return the user's token: from ``HF_TOKEN``, or stored by ``hf auth login``."""
    from huggingface_hub import get_token

    return get_token()


@contextmanager
def hub_session(what: str, local: Path | None = None, token_hint: str = TOKEN_HINT) -> Iterator[None]:
    """Convert errors of the hub to those of this app, and close the connections at the end.

    Parameters
    ----------
    what : str
        URL or reference of what is requested.
    local : pathlib.Path, optional
        File that is written meanwhile.
    token_hint : str
        How to get access.
    """
    from huggingface_hub import close_session, constants
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    constants.HF_HUB_DISABLE_TELEMETRY = True  # otherwise it downloads a list of agents into HF_HOME
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise TemporaryError(
            f"{what}: not requested, because HF_HUB_OFFLINE is set.", "Unset HF_HUB_OFFLINE."
        ) from error
    except HfHubHTTPError as error:
        raise _http_error(what, error, token_hint) from error
    except (HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None and local is not None:
            hint = "Free some space, or set NEUROSTORM_CACHE."
            raise InputOutputError(f"{local}: {error.strerror}.", hint) from error
        raise TemporaryError(
            f"{what}: the hub cannot be reached ({error}).",
            "Check the network, https_proxy and HF_ENDPOINT, then repeat the command; downloads are resumed.",
        ) from error
    finally:
        close_session()  # a session keeps the proxies of its first use


@contextmanager
def parsed_answer(what: str) -> Iterator[None]:
    """Convert the exceptions that an answer of another form causes, such as that of a network's login page."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadDataError(
            f"{what}: unexpected answer of the hub ({type(error).__name__}: {str(error)[:200]}).",
            "Check HF_ENDPOINT and the proxy: a login page of the network may have answered.",
        ) from error


def _http_error(what: str, error: Any, token_hint: str) -> NeurostormError:
    """Convert an HTTP error of the hub."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    code = error.response.status_code
    if code in (401, 403) or isinstance(error, GatedRepoError):
        gated = " It is gated." if isinstance(error, GatedRepoError) else ""
        return NoInputError(f"{what}: access denied by the hub ({code}), or it does not exist.{gated}", token_hint)
    if isinstance(error, RevisionNotFoundError):
        return NoInputError(f"{what}: no such commit, tag or branch ({code}).", "Check the revision.")
    if isinstance(error, RepositoryNotFoundError):
        return NoInputError(f"{what}: no such repository ({code}).", f"Check owner and name. {token_hint}")
    if code in (404, 410):
        return NoInputError(f"{what}: not found on the hub ({code}).", "Check HF_ENDPOINT; the file may have moved.")
    if code == 429:
        return TemporaryError(f"{what}: the hub limits the number of requests ({code}).", "Try again in some minutes.")
    return TemporaryError(f"{what}: HTTP error {code} from the hub.", "Try again later.")


def missing_file(reference: Reference, repo: Repo) -> NoInputError:
    """Return the error of a file that is not in a repository."""
    close = [file.path for file in repo.files if Path(file.path).name == Path(reference.path).name]
    where = f"{HUB_PREFIX}{repo.name}@{reference.revision}"
    return NoInputError(
        f"{where}: there is no file {reference.path}.",
        f"Did you mean {close[0]}?" if close else f"'neurostorm-models list --hub {where}' lists its files.",
    )
