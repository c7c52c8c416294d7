"""boto3's clients of one bucket, its credentials, and when those end."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from ltxq.errors import LtxqError, MissingExtra, StorageRefused, StorageUnavailable
from ltxq.printable import one_line
from ltxq.proxies import is_here
from ltxq.settings import Settings, without_password
from ltxq.storage.errors import (
    Place,
    answered,
    code_of,
    redirected,
    without_answer,
    without_credentials,
)

CONNECT_TIMEOUT = 5.0  # seconds
READ_TIMEOUT = 30.0  # seconds without a byte, in either direction
ATTEMPTS = 3  # of each request, a second or two apart; a server that is away costs about 20 s
# Session credentials that do not say when they end are taken to end this soon: no URL is promised
# for longer. It is the shortest session that AWS gives.
UNKNOWN_END = timedelta(minutes=15)
_PARTS = ("access key", "secret key", "session token")
_WITH_MD5 = ("PutObject", "UploadPart", "DeleteObjects")


class Credentials:
    """What signs calls and URLs: keys, perhaps of a session that ends. Thread-safe."""

    def __init__(self, found: Any, place: Place) -> None:
        self._found = found  # botocore's; it refreshes what can be refreshed
        self._place = place

    def ready(self) -> Any:
        """The keys now, refreshed if they are about to end.

        Raises:
            StorageRefused: there are none, or they have ended and cannot be refreshed.
            StorageUnavailable: their source does not answer.
        """
        from botocore.exceptions import NoCredentialsError

        if self._found is None:
            raise without_credentials(NoCredentialsError(), self._place)
        try:
            keys = self._found.get_frozen_credentials()
        except RuntimeError as exc:  # refreshed, and they have ended all the same
            raise self._ended() from exc
        except Exception as exc:  # whatever a provider of credentials raises
            raise _source_failed(exc, self._place) from exc
        for name, text in zip(_PARTS, keys[:3], strict=True):
            if text and (text != text.strip() or not text.isprintable()):
                raise StorageRefused(
                    f"The {name} for the {self._place} begins or ends with a space, or has a line "
                    "break or a control character.",
                    hint="Set it again. `printf`, unlike `echo`, writes no line break.",
                )
        return keys

    def end(self) -> datetime | None:
        """When URLs that are signed now end at the latest; None: when it is asked.

        Raises:
            StorageRefused, StorageUnavailable: as `ready`.
        """
        keys = self.ready()
        if not keys.token:
            return None
        return self._known_end(keys) or datetime.now(UTC) + UNKNOWN_END

    @property
    def end_is_unknown(self) -> bool:
        """Whether they are a session's that does not say when it ends."""
        keys = self.ready()
        return bool(keys.token) and self._known_end(keys) is None

    def _known_end(self, keys: Any) -> datetime | None:
        # botocore shows the end of a session nowhere else.
        end: datetime | None = getattr(self._found, "_expiry_time", None)
        return end.astimezone(UTC) if end else _end_of_token(keys.token)

    def _ended(self) -> LtxqError:
        text = f"The session credentials for the {self._place} have ended."
        if getattr(self._found, "method", "") == "env":
            hint = "Renew AWS_SESSION_TOKEN, its keys and AWS_CREDENTIAL_EXPIRATION, and restart."
            return StorageRefused(text, hint=hint)
        return StorageUnavailable(text, hint="Check the source that AWS_PROFILE names.")


class Calls:
    """boto3's client of the bucket, and one that signs URLs for viewers."""

    def __init__(self, settings: Settings) -> None:
        """
        Raises:
            StorageRefused, StorageUnavailable: boto3 cannot use its settings or credentials.
            MissingExtra: boto3 is not installed.
        """
        self.place = Place(
            bucket=settings.s3_bucket or "",
            prefix=settings.s3_prefix,
            server=settings.s3_endpoint or "Amazon S3",
            sse=settings.s3_sse,
        )
        try:
            from boto3.session import Session
        except ImportError:
            raise MissingExtra("S3 storage", "s3") from None
        # Its warnings hold what a program for credentials printed; `errors.py` says what failed.
        logging.getLogger("botocore.credentials").setLevel(logging.ERROR)
        try:
            session = Session()
            self.credentials = Credentials(session.get_credentials(), self.place)
            self.client = _client(session, settings.s3_endpoint, settings)
            self._name_server(str(self.client.meta.endpoint_url))
            self.signer = self.client
            if settings.s3_public_endpoint:
                self.signer = _client(session, settings.s3_public_endpoint, settings)
            self.trust = _trust(session, str(self.client.meta.endpoint_url))
        except Exception as exc:  # boto3 reads files and runs programs: anything may fail there
            raise _source_failed(exc, self.place) from exc

    def _name_server(self, url: str) -> None:
        """AWS_ENDPOINT_URL and ~/.aws/config may name another server than Amazon's."""
        if self.place.server == "Amazon S3" and ".amazonaws.com" not in url:
            self.place = self.place._replace(server=without_password(url))

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Makes botocore's errors ltxq's. Credentials that are about to end are refreshed first."""
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        self.credentials.ready()
        try:
            yield
        except ClientError as exc:
            raise answered(exc, self.place) from exc
        except (BotoCoreError, ResponseParserError) as exc:
            raise without_answer(exc, self.place) from exc
        except RecursionError:  # botocore's, which asks where a redirect leads and is redirected
            raise redirected(self.place) from None


def _client(session: Any, endpoint: str | None, settings: Settings) -> Any:
    from botocore.config import Config

    # A server with an endpoint of its own seldom has a host name for each bucket.
    style = settings.s3_addressing
    if style == "auto" and endpoint:
        style = "path"
    config = Config(
        signature_version="s3v4",
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        s3={"addressing_style": style},
        # Other servers may not know Amazon's newer checksums, nor trailers and chunked signing.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        proxies={} if endpoint and is_here(endpoint) else None,  # None: the environment's
    )
    client = session.client("s3", endpoint_url=endpoint, config=config)
    if not (settings.s3_bucket or "").endswith("--x-s3"):  # Amazon's directory buckets know no MD5
        for name in _WITH_MD5:
            client.meta.events.register(f"before-call.s3.{name}", _add_md5)
    return client


def _add_md5(params: dict[str, Any], **_: Any) -> None:
    """The header Content-MD5: Amazon wants it, or a newer checksum, for each object that a bucket
    with Object Lock retains; other servers want it for a list of keys to delete.
    """
    body = params["body"]
    if isinstance(body, (bytes, bytearray)):
        digest = hashlib.md5(body, usedforsecurity=False)
    else:
        start = body.tell()
        digest = hashlib.md5(usedforsecurity=False)
        while block := body.read(2**20):
            digest.update(block)
        body.seek(start)
    params["headers"]["Content-MD5"] = base64.b64encode(digest.digest()).decode()


def _trust(session: Any, url: str) -> ssl.SSLContext | bool:
    """What an HTTP client takes as `verify` to trust the server as botocore does.

    Raises:
        StorageRefused: the CA bundle cannot be read. botocore says so of the connection.
    """
    configured = session._session.get_config_variable("ca_bundle")
    file = str(configured or os.environ.get("REQUESTS_CA_BUNDLE") or "")
    if not file or not url.startswith("https:"):
        return True
    try:
        return ssl.create_default_context(cafile=file)
    except OSError as exc:
        why = "it has no certificate" if isinstance(exc, ssl.SSLError) else exc.strerror
        raise StorageRefused(
            f"The storage's CA bundle {one_line(file[:200])} cannot be read: {why}.",
            hint="Point AWS_CA_BUNDLE (or ca_bundle in ~/.aws/config) at a file of certificates "
            "in PEM.",
        ) from exc


def _source_failed(exc: Exception, place: Place) -> LtxqError:
    from botocore.exceptions import BotoCoreError, ClientError

    if isinstance(exc, LtxqError):
        return exc
    if isinstance(exc, ClientError):  # of the service that gives the keys of a role
        return StorageRefused(
            f"The source of the storage's credentials refused ({code_of(exc)}).",
            hint="Check the role, its trust policy and the keys that AWS_PROFILE names.",
        )
    if isinstance(exc, BotoCoreError):
        return without_answer(exc, place)
    if isinstance(exc, OSError):  # the program of credential_process is not there, for one
        name = f" ({exc.strerror})" if exc.strerror else ""
        return StorageRefused(
            f"boto3 cannot read or run a source of credentials for the {place}{name}.",
            hint="Check credential_process and the files that ~/.aws/config names.",
        )
    if os.environ.get("AWS_CREDENTIAL_EXPIRATION") and isinstance(exc, ValueError):
        return StorageRefused(
            "AWS_CREDENTIAL_EXPIRATION is not a time.",
            hint="Write it as 2026-01-31T12:00:00Z, or unset it.",
        )
    if isinstance(exc, ValueError):  # JSON of credential_process, among others
        return StorageRefused(
            f"boto3 cannot read its settings or the answer of a source of credentials for the "
            f"{place}.",
            hint="Check the AWS_… variables, ~/.aws/config, and that credential_process prints the "
            "JSON that AWS describes.",
        )
    return without_answer(exc, place)


def _end_of_token(token: str) -> datetime | None:
    """When a session token ends that says so: a JWT, as MinIO's."""
    try:
        _, body, _ = token.split(".")
        fields = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return datetime.fromtimestamp(float(fields["exp"]), UTC)
    except (ValueError, KeyError, TypeError, OverflowError, OSError):
        return None
