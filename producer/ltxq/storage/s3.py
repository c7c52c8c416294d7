"""Clips in a bucket of any S3-compatible server, by boto3, and its failures as errors of ltxq."""

from __future__ import annotations

import math
import re
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from ltxq.errors import (
    ConfigurationError,
    InvalidRequest,
    LtxqError,
    MissingExtra,
    StorageRefused,
    StorageUnavailable,
)
from ltxq.job import MAX_URL_SECONDS
from ltxq.settings import Settings, without_password

CONNECT_TIMEOUT = 5.0  # seconds
READ_TIMEOUT = 30.0  # seconds without a byte, in either direction
ATTEMPTS = 3  # of each request, a second or two apart; a server that is away costs about 20 s
PART = 16 * 2**20  # bytes; a larger file is uploaded in parts, each with its own retries
SIGNED_FOR = 60.0  # seconds for which a clip's signed URLs are reused
SIGNED_MOST = 10_000  # clips whose URLs are kept for that; about 3 kB each
PAGE = 1000  # keys in one answer or one deletion, the most S3 allows


class ClipKeys(NamedTuple):
    """The keys of the files that one claim of a job made. Each claim has its own."""

    clip: str
    poster: str
    spritesheet: str
    sidecar: str


class Stored(NamedTuple):
    """An object in the bucket."""

    key: str
    size: int  # bytes
    modified: datetime  # by the storage's clock


_CLAIM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}/[0-9a-f]{16}")  # <job id>/<nonce>


def _keys_in(folder: str) -> ClipKeys:
    names = ("clip.mp4", "poster.jpg", "spritesheet.jpg", "clip.json")
    return ClipKeys(*(f"{folder}/{name}" for name in names))


class Storage:
    """One bucket. Thread-safe.

    Any call but `url` may raise `StorageRefused` (the server refuses, and will again) or
    `StorageUnavailable` (it is away, slow, full or broken; a later call may succeed).
    """

    def __init__(self, settings: Settings, client: Any, signer: Any) -> None:
        self.bucket: str = settings.s3_bucket or ""
        self.prefix = settings.s3_prefix  # of every key that is written, listed or deleted
        self._server = without_password(settings.s3_endpoint or "Amazon S3")
        self._public_base_url = settings.s3_public_base_url
        self._client = client
        self._signer = signer
        self._signing = threading.Lock()
        self._signed: dict[tuple[str, int], tuple[float, dict[str, Any]]] = {}  # and when

    @classmethod
    def from_settings(cls, settings: Settings) -> Storage:
        """The bucket that the settings name. Connects on first use; see `check`.

        Raises:
            ConfigurationError: there is no bucket, or an endpoint is no URL.
            MissingExtra: boto3 is not installed.
        """
        if not settings.s3_bucket:
            raise ConfigurationError(
                "No bucket for clips is set.",
                hint="Set LTXQ_S3_BUCKET, and LTXQ_S3_ENDPOINT if it is not Amazon's.",
            )
        client = _client(settings.s3_endpoint, "LTXQ_S3_ENDPOINT")
        signer = client
        if settings.s3_public_endpoint:
            signer = _client(settings.s3_public_endpoint, "LTXQ_S3_PUBLIC_ENDPOINT")
        return cls(settings, client, signer)

    def check(self) -> None:
        """Write, find and delete a small object, as a worker tries at its start."""
        key = f"{self.prefix}.check/{secrets.token_hex(8)}"  # many workers may start at once
        with self._errors_translated():
            self._client.put_object(Bucket=self.bucket, Key=key, Body=b"ltxq may write here\n")
            self._client.head_object(Bucket=self.bucket, Key=key)
            self._client.delete_object(Bucket=self.bucket, Key=key)

    def clip_keys(self, claim: str) -> ClipKeys:
        """The keys of the files made under a claim of a job, '<job id>/<nonce>'."""
        return _keys_in(f"{self.prefix}{claim}")

    def claim_of(self, key: str) -> str | None:
        """The claim under which an object was made; None if the key is not a clip's."""
        claim = key.removeprefix(self.prefix).rpartition("/")[0]
        if _CLAIM.fullmatch(claim) and key in self.clip_keys(claim):
            return claim
        return None

    def put(self, key: str, path: Path, content_type: str) -> None:
        """Upload the file at `path` without reading it whole into memory."""
        from boto3.s3.transfer import TransferConfig

        parts = TransferConfig(
            multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=4
        )
        with path.open("rb") as body, self._errors_translated():
            self._client.upload_fileobj(
                body, self.bucket, key, ExtraArgs={"ContentType": content_type}, Config=parts
            )

    def mark(self, key: str) -> None:
        """Write an empty object."""
        with self._errors_translated():
            self._client.put_object(Bucket=self.bucket, Key=key, Body=b"")

    def url(self, key: str, expires_in: int) -> tuple[str, datetime | None]:
        """A URL from which anyone can fetch the object, and when it expires (None: never).

        Args:
            key: not checked: the URL of a missing object answers 404.
            expires_in: seconds, 1 to 7 days. Credentials that end earlier end the URL with them.
        """
        if self._public_base_url is not None:
            return f"{self._public_base_url.rstrip('/')}/{quote(key)}", None
        if not 1 <= expires_in <= MAX_URL_SECONDS:
            raise InvalidRequest(
                f"A URL is valid for 1 to {MAX_URL_SECONDS} seconds (7 days), not {expires_in}."
            )
        # Signed to the whole second, so the URL does not expire before the returned time.
        signed_at = datetime.now(UTC).replace(microsecond=0)
        with self._errors_translated():
            url = self._signer.generate_presigned_url(
                "get_object", Params={"Bucket": self.bucket, "Key": key}, ExpiresIn=expires_in
            )
        return url, signed_at + timedelta(seconds=expires_in)

    def clip_urls(self, clip_key: str, expires_in: int) -> dict[str, Any]:
        """`VideoResult`'s URLs and `expires_at` of the clip with this key.

        They were signed within the last minute, or within a tenth of their validity if that is
        less. Signing costs more than reading the job, and clients that wait ask often.
        """
        wanted, now = (clip_key, expires_in), time.monotonic()
        signed_at, urls = self._signed.get(wanted, (-math.inf, {}))
        if now - signed_at > min(SIGNED_FOR, expires_in / 10):
            urls = self._sign(_keys_in(clip_key.rpartition("/")[0]), expires_in)
            with self._signing:
                while len(self._signed) >= SIGNED_MOST:
                    del self._signed[next(iter(self._signed))]
                self._signed[wanted] = now, urls
        return dict(urls)

    def _sign(self, keys: ClipKeys, expires_in: int) -> dict[str, Any]:
        url, expires_at = self.url(keys.clip, expires_in)
        return {
            "url": url,
            "poster_url": self.url(keys.poster, expires_in)[0],
            "spritesheet_url": self.url(keys.spritesheet, expires_in)[0],
            "sidecar_url": self.url(keys.sidecar, expires_in)[0],
            "expires_at": expires_at,
        }

    def delete_clips(self, claims: Iterable[str]) -> None:
        """Delete the files that were made under claims; a text that is no claim is skipped."""
        real = [claim for claim in claims if _CLAIM.fullmatch(claim)]
        self.delete(key for claim in real for key in self.clip_keys(claim))

    def delete(self, keys: Iterable[str]) -> None:
        """Delete the objects; missing ones are no error.

        Raises:
            ValueError: a key is not under the prefix, so it is not ltxq's to delete.
        """
        rest = (self._own(key) for key in keys)
        while page := list(islice(rest, PAGE)):
            with self._errors_translated():
                answer = self._client.delete_objects(
                    Bucket=self.bucket,
                    Delete={"Objects": [{"Key": key} for key in page], "Quiet": True},
                )
            if errors := answer.get("Errors"):
                raise StorageRefused(
                    f"{self._server} did not delete {len(errors)} of {len(page)} objects; the "
                    f"first: {errors[0].get('Key')}: {errors[0].get('Message')}",
                    hint="Check that the credentials may delete in the bucket.",
                )

    def list(self, folder: str = "") -> Iterator[str]:
        """The keys under the prefix and in it under `folder`, as 'video_1/', in order."""
        return (stored.key for stored in self.entries(folder))

    def entries(self, folder: str = "") -> Iterator[Stored]:
        """The objects of those keys."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self.prefix + folder, PaginationConfig={"PageSize": PAGE}
        )
        with self._errors_translated():
            for page in pages:
                for entry in page.get("Contents", ()):
                    yield Stored(entry["Key"], entry["Size"], entry["LastModified"])

    def _own(self, key: str) -> str:
        if not key.startswith(self.prefix):
            raise ValueError(f"{key!r} is not under {self.prefix!r}")
        return key

    @contextmanager
    def _errors_translated(self) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError) as exc:
            raise _translated(exc, self._server, self.bucket) from exc


def _client(endpoint: str | None, variable: str) -> Any:
    try:
        from boto3.session import Session
        from botocore.config import Config
    except ImportError:
        raise MissingExtra("S3 storage", "s3") from None

    config = Config(
        signature_version="s3v4",
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        # A server with an endpoint of its own has no host name for each bucket.
        s3={"addressing_style": "path" if endpoint else "auto"},
        # Other servers may not know Amazon's newer checksums.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        return Session().client("s3", endpoint_url=endpoint, config=config)
    except ValueError as exc:
        raise ConfigurationError(
            f"{variable} is not a URL: {exc}", hint="It looks like https://s3.example.com"
        ) from None


_CREDENTIALS = (
    "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that they may list, read, write and "
    "delete in the bucket."
)
_REGION = "Set AWS_DEFAULT_REGION to the bucket's region."
_HINTS = {
    "NoSuchBucket": "Create the bucket, or correct LTXQ_S3_BUCKET.",
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "RequestTimeTooSkewed": "Set this machine's clock.",
}
_BUSY = {408, 429, 507}  # besides all other 5xx; MinIO answers 507 when its disk is full


def _translated(exc: Exception, server: str, bucket: str) -> LtxqError:
    """A botocore error as ours."""
    from botocore.exceptions import ClientError, ConnectionError, HTTPClientError, SSLError

    where = f"bucket {bucket!r} at {server}"
    if isinstance(exc, ClientError):
        code = exc.response["Error"].get("Code", "")
        status = int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        answer = f"{code}: {exc.response['Error'].get('Message', '')}".removesuffix(": ")
        if status >= 500 or status in _BUSY or code == "SlowDown":
            return StorageUnavailable(
                f"The storage has an error ({answer}), {where}.",
                hint="ltxq tries again. If it persists, see the storage server's log.",
            )
        hint = _HINTS.get(code) or (_CREDENTIALS if status in (401, 403) else "")
        return StorageRefused(f"The storage refused ({answer}), {where}.", hint=hint)
    if isinstance(exc, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(exc):
        return StorageRefused(
            f"The storage's certificate is not trusted, {where}.",
            hint="Set AWS_CA_BUNDLE to the CA bundle of its authority.",
        )
    if isinstance(exc, (HTTPClientError, ConnectionError)):
        return StorageUnavailable(
            f"The storage cannot be reached, {where}: {type(exc).__name__}.",
            hint="Check that it runs, LTXQ_S3_ENDPOINT, and the network between.",
        )
    # The rest are botocore's own findings: no credentials, an impossible bucket name.
    return StorageRefused(f"The storage cannot be asked, {where}: {exc}.", hint=_CREDENTIALS)
