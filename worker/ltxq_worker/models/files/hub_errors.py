"""Translates errors of huggingface_hub into ltxq's, each with the next step and its web page."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)

from ltxq.errors import (
    ConfigurationError,
    LtxqError,
    ModelUnusable,
    RetryableError,
    StorageUnavailable,
)
from ltxq_worker.models.catalog import GEMMA, Repo

TOKENS_PAGE = "https://huggingface.co/settings/tokens"

SET_TOKEN = (
    f"Make a token with the role 'read' at {TOKENS_PAGE} and set it: HF_TOKEN=hf_… in the "
    "environment ($env:HF_TOKEN='hf_…' in PowerShell), or run `hf auth login`."
)
AGAIN = "Run the same command again: it continues where it stopped."


class HubUnavailable(RetryableError):
    """The hub is unreachable, busy or ended the connection; downloaded parts are kept."""


def disk_full(message: str, *, free_up: str = "space") -> StorageUnavailable:
    """The error for a disk with too little space."""
    return StorageUnavailable(
        message,
        hint=f"Free {free_up}, or set LTXQ_MODEL_DIR to a folder on a larger disk. {AGAIN}",
    )


def _check_token() -> None:
    """Can the file be read in which `hf auth login` stores the token?"""
    try:
        get_token()
    except (OSError, UnicodeError) as exc:
        raise ConfigurationError(
            f"The file of the Hugging Face token, {constants.HF_TOKEN_PATH}, cannot be read: "
            f"{getattr(exc, 'strerror', None) or 'it is no text'}.",
            hint=SET_TOKEN,
        ) from exc


@contextmanager
def advice(repo: Repo, folder: Path) -> Iterator[None]:
    """Translate errors while downloading `repo` into `folder` into errors with a hint."""
    _check_token()
    try:
        yield
    except HfHubHTTPError as exc:
        raise _refused(repo, exc) from exc
    except OfflineModeIsEnabled as exc:
        raise ConfigurationError(
            "huggingface_hub is in offline mode.", hint="Unset HF_HUB_OFFLINE and run again."
        ) from exc
    except HTTPError as exc:
        raise HubUnavailable(
            f"The connection to the hub failed: {type(exc).__name__}: {exc}.",
            hint="Check the network, HTTPS_PROXY if you need a proxy, and HF_ENDPOINT if you set "
            f"it. {AGAIN}",
        ) from exc
    except UnicodeEncodeError as exc:
        raise ConfigurationError(
            "The Hugging Face token has a character that no token has.", hint=SET_TOKEN
        ) from exc
    except JSONDecodeError as exc:
        raise HubUnavailable(
            "The server that answered is not the hub: a login page of the network, or a wrong "
            "HF_ENDPOINT.",
            hint=f"Check both. {AGAIN}",
        ) from exc
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(f"The disk that holds {folder} is full.") from exc
        if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ConfigurationError(
                f"{exc.filename or folder} cannot be written: {exc.strerror}.",
                hint="Change its owner or permissions, or run the download as its owner.",
            ) from exc
        if exc.errno == errno.EFBIG:
            raise StorageUnavailable(
                f"The disk that holds {folder}, or this user's limit, refuses a file of that size.",
                hint="FAT32 takes 4 GB: set LTXQ_MODEL_DIR to another disk. `ulimit -f` shows the "
                f"limit. {AGAIN}",
            ) from exc
        raise StorageUnavailable(
            f"The disk that holds {folder} failed: {exc.strerror or exc}.",
            hint="The system's log (dmesg) may say more. Use another disk: set LTXQ_MODEL_DIR.",
        ) from exc


def _refused(repo: Repo, exc: HfHubHTTPError) -> LtxqError:
    """Translate the hub's answer `exc`; the hint names the first missing step."""
    status = exc.response.status_code
    if isinstance(exc, RemoteEntryNotFoundError):
        return ModelUnusable(
            f"{repo.id} has no file {exc.response.url.path.rpartition('/')[2]} any more.",
            hint=f"See {repo.page}/tree/main, and upgrade ltxq.",
        )
    if status == 429 or status >= 500:
        return HubUnavailable(f"The hub is busy (HTTP {status}).", hint=f"Wait a minute. {AGAIN}")
    if isinstance(exc, RepositoryNotFoundError) or status in (401, 403):
        if get_token() is None:
            return ConfigurationError(
                f"{repo.id} requires an account that accepted its licence, and no Hugging Face "
                "token is set.",
                hint=SET_TOKEN,
            )
        terms = ""
        if repo.id == GEMMA.id:
            terms = (
                " (the form may ask for a verified e-mail address, your name and affiliation; "
                "access may take some minutes)"
            )
        if isinstance(exc, GatedRepoError):
            return ConfigurationError(
                f"Access to {repo.id} is restricted: the account of your Hugging Face token has "
                f"not accepted the {repo.licence}.",
                hint=f"Open {repo.page} with that account, accept the licence{terms}, and run the "
                "same command again.",
            )
        if isinstance(exc, RepositoryNotFoundError) and status != 401:
            return ConfigurationError(
                f"The hub shows no repository {repo.id} to the account of your Hugging Face token.",
                hint=f"Open {repo.page} with that account. If it asks to accept a licence, do so"
                f"{terms}, and run the same command again. If the page is missing, the repository "
                "was renamed: upgrade ltxq.",
            )
        if status == 401:
            return ConfigurationError(
                "The hub does not accept the Hugging Face token: it is mistyped, expired or "
                "revoked.",
                hint=SET_TOKEN,
            )
        return ConfigurationError(
            f"The Hugging Face token may not read {repo.id}.",
            hint=f"At {TOKENS_PAGE}, give it the role 'read', or tick 'Read access to contents of "
            "all public gated repos you can access'.",
        )
    return HubUnavailable(f"The hub answered HTTP {status} for {repo.id}.", hint=AGAIN)
