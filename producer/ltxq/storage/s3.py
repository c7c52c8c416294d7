"""Clips in a bucket of any S3-compatible server, by boto3, and its failures as errors of ltxq."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ltxq.download_name import content_disposition
from ltxq.errors import ConfigurationError, StorageRefused, StorageUnavailable
from ltxq.settings import Settings
from ltxq.storage.client import Calls
from ltxq.storage.deletion import PAGE, Deleter, Refusal
from ltxq.storage.operations import Role
from ltxq.storage.probe import Probe
from ltxq.storage.signing import ClipKeys, Signer, keys_in

if TYPE_CHECKING:
    from ltxq.storage.reading import Reader

PART = 16 * 2**20  # bytes; a larger file is uploaded in parts, each with its own retries


class Stored(NamedTuple):
    """An object in the bucket."""

    key: str
    size: int  # bytes
    modified: datetime  # by the storage's clock


_CLAIM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}/[0-9a-f]{16}")  # <job id>/<nonce>


class Storage:
    """One bucket. Thread-safe.

    Any call may raise `StorageRefused` (the server refuses, and will again, or there are no
    credentials) or `StorageUnavailable` (it is away, slow, full or broken; a later call may
    succeed).
    """

    def __init__(self, settings: Settings) -> None:
        self._calls = Calls(settings)
        self.bucket = self._calls.place.bucket
        self.prefix = self._calls.place.prefix  # of every key that is written, listed or deleted
        self._deleter = Deleter(self._calls)
        self.signer = Signer(self._calls, settings.s3_public_base_url)
        self._encrypted = _encryption(settings)  # arguments of every call that writes

    @classmethod
    def from_settings(cls, settings: Settings) -> Storage:
        """The bucket that the settings name. Connects on first use; see `check`.

        Raises:
            ConfigurationError: there is no bucket.
            StorageRefused, StorageUnavailable: boto3 cannot use its settings or credentials.
            MissingExtra: boto3 is not installed.
        """
        if not settings.s3_bucket:
            raise ConfigurationError(
                "No bucket for clips is set.",
                hint="Set LTXQ_S3_BUCKET, and LTXQ_S3_ENDPOINT if it is not Amazon's.",
            )
        return cls(settings)

    def check(self, role: Role = "worker") -> Probe:
        """Try each call that a role makes, on small objects of its own.

        Raises:
            StorageRefused: names the call, and the right to grant.
            StorageUnavailable
        """
        probe = Probe(self._calls, self._deleter, self._encrypted)
        probe.run(role)
        return probe

    @property
    def credentials_end_unknown(self) -> bool:
        """Whether they are a session's that does not say when it ends: URLs are short then."""
        return self._calls.credentials.end_is_unknown

    @property
    def trust(self) -> ssl.SSLContext | bool:
        """What an HTTP client takes as `verify` to trust the server as boto3 does."""
        return self._calls.trust

    def clip_keys(self, claim: str) -> ClipKeys:
        """The keys of the files made under a claim of a job, '<job id>/<nonce>'."""
        return keys_in(f"{self.prefix}{claim}")

    def claim_of(self, key: str) -> str | None:
        """The claim under which an object was made; None if the key is not a clip's."""
        claim = key.removeprefix(self.prefix).rpartition("/")[0]
        if _CLAIM.fullmatch(claim) and key in self.clip_keys(claim):
            return claim
        return None

    def put(self, key: str, path: Path, content_type: str, *, name: str | None = None) -> None:
        """Upload the file at `path` without reading it whole into memory.

        Args:
            name: under which a browser saves it, where the URL does not say so: that of a CDN.
        """
        from boto3.s3.transfer import TransferConfig

        parts = TransferConfig(
            multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=4
        )
        extra = {"ContentType": content_type, **self._encrypted}
        if name is not None:
            extra["ContentDisposition"] = content_disposition(name)
        with path.open("rb") as body, self._calls.translated():
            self._calls.client.upload_fileobj(body, self.bucket, key, ExtraArgs=extra, Config=parts)

    def mark(self, key: str) -> None:
        """Write an empty object."""
        with self._calls.translated():
            self._calls.client.put_object(Bucket=self.bucket, Key=key, Body=b"", **self._encrypted)

    def url(
        self, key: str, expires_in: int, *, name: str | None = None, head: bool = False
    ) -> tuple[str, datetime | None]:
        """A URL from which anyone can fetch the object, and when it expires (None: never).

        Args:
            key: not checked: the URL of a missing object answers 404.
            expires_in: seconds, 1 to 7 days. Credentials that end earlier end the URL with them,
                and the time returned says so.
            name: under which a browser saves the file.
            head: for a HEAD request, whose signature differs.
        """
        method = "head_object" if head else "get_object"
        return self.signer.url(key, expires_in, name=name, method=method)

    def clip_urls(
        self,
        clip_key: str,
        expires_in: int,
        name: str | None = None,
        until: datetime | None = None,
    ) -> dict[str, Any]:
        """`VideoResult`'s URLs and `expires_at` of the clip with this key.

        Args:
            until: when the clip is deleted: a job's end and its retention.

        They were signed within the last minute, or within a tenth of their validity if that is
        less. Signing costs more than reading the job, and clients that wait ask often.
        """
        return self.signer.clip_urls(clip_key, expires_in, name, until)

    def reader(self) -> Reader:
        """Reads objects without a thread for each; create and use it on one event loop."""
        from ltxq.storage.reading import Reader  # brings an HTTP client, which only gateways need

        return Reader(self._calls, self.signer)

    def delete_clips(self, claims: Iterable[str]) -> dict[str, StorageRefused]:
        """Delete the files that were made under claims; a text that is no claim is skipped.

        Returns:
            The claims of which the server refuses to delete a file, and why. All others are gone.

        Raises:
            StorageRefused: the whole bucket is refused, not single objects.
        """
        of = {key: c for c in claims if _CLAIM.fullmatch(c) for key in self.clip_keys(c)}
        refused: dict[str, StorageRefused] = {}
        for refusal in self.try_delete(of):
            refused.setdefault(of[refusal.key], refusal.reason)
        return refused

    def delete(self, keys: Iterable[str]) -> None:
        """Delete the objects; missing ones are no error.

        Raises:
            ValueError: a key is not under the prefix, so it is not ltxq's to delete.
            StorageRefused: some objects are still there; all others are deleted.
        """
        refused = list(self.try_delete(keys))
        if refused:
            first = refused[0]
            raise StorageRefused(
                f"{len(refused)} objects were not deleted, {first.key} first: "
                f"{first.reason.message}",
                hint=first.reason.hint,
            )

    def try_delete(self, keys: Iterable[str]) -> Iterator[Refusal]:
        """Delete the objects, and yield those that the server refuses to delete."""
        return self._deleter.delete(self._own(key) for key in keys)

    def list(self, folder: str = "") -> Iterator[str]:
        """The keys under the prefix and in it under `folder`, as 'video_1/', in order."""
        return (stored.key for stored in self.entries(folder))

    def entries(self, folder: str = "") -> Iterator[Stored]:
        """The objects of those keys."""
        prefix = self.prefix + folder
        wanted: dict[str, Any] = {"Bucket": self.bucket, "Prefix": prefix, "MaxKeys": PAGE}
        last = ""
        while True:
            with self._calls.translated():
                answer = self._calls.client.list_objects_v2(**wanted)
            page = answer.get("Contents", ())
            for entry in page:
                if entry["Key"].startswith(prefix):  # some servers ignore what they do not know
                    yield _stored(entry)
            if not answer.get("IsTruncated"):
                return
            # Some servers say that there is more, and not how to get it: go on after the last key.
            token = answer.get("NextContinuationToken")
            follow = {"ContinuationToken": token} if token else {"StartAfter": _last_of(page)}
            if not page or (not token and _last_of(page) <= last):
                raise StorageUnavailable(
                    f"A list of objects does not go on after {last or 'its first page'}, "
                    f"{self._calls.place}.",
                    hint="The server does not list as S3 does; ltxq needs ListObjectsV2.",
                )
            last = _last_of(page)
            wanted = {"Bucket": self.bucket, "Prefix": prefix, "MaxKeys": PAGE, **follow}

    def _own(self, key: str) -> str:
        if not key.startswith(self.prefix):
            raise ValueError(f"{key!r} is not under {self.prefix!r}")
        return key


def _encryption(settings: Settings) -> dict[str, str]:
    if settings.s3_sse is None:
        return {}
    key = {"SSEKMSKeyId": settings.s3_sse_key_id} if settings.s3_sse_key_id else {}
    return {"ServerSideEncryption": settings.s3_sse, **key}


def _stored(entry: dict[str, Any]) -> Stored:
    # Without a time the object counts as new: what is new is no orphan.
    return Stored(entry["Key"], entry.get("Size", 0), entry.get("LastModified", _now()))


def _now() -> datetime:
    return datetime.now(UTC)


def _last_of(page: Any) -> str:
    return str(page[-1]["Key"]) if page else ""
