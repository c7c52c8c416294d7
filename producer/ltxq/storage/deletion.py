"""Deletes objects, and reports which of them the server did not delete.

S3 deletes a thousand keys in one call. Some servers refuse that call, or demand a header for it
that boto3 no longer sends; then each key is deleted by a call of its own. No key counts as deleted
that the server did not confirm.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from ltxq.errors import StorageRefused, StorageUnavailable
from ltxq.storage.client import Calls
from ltxq.storage.errors import answered, code_of, refuses_bucket, status_of

PAGE = 1000  # keys in one answer or one deletion, the most S3 allows

log = logging.getLogger("ltxq")


class Refusal(NamedTuple):
    """An object that the server refuses to delete."""

    key: str
    reason: StorageRefused


class Deleter:
    """Deletes in one bucket. Thread-safe."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._bulk = True  # False once the server has refused a deletion of many keys

    def delete(self, keys: Iterable[str]) -> Iterator[Refusal]:
        """Delete the objects, and yield those that stay; missing ones are no error.

        Raises:
            StorageRefused: the whole bucket is refused, not single objects.
            StorageUnavailable
        """
        rest = iter(keys)
        while some := list(islice(rest, PAGE)):
            confirmed = self._delete_many(some) if self._bulk else frozenset()
            for key in some:
                if key not in confirmed and (reason := self._delete_one(key)):
                    yield Refusal(key, reason)

    def _delete_many(self, keys: list[str]) -> frozenset[str]:
        """The keys of which the server says that they are gone."""
        from botocore.exceptions import ClientError
        from botocore.parsers import ResponseParserError

        # Not quiet: a server that answers 200 and deletes nothing names no key.
        wanted = {"Objects": [{"Key": key} for key in keys], "Quiet": False}
        with self._calls.translated():
            try:
                answer = self._calls.client.delete_objects(
                    Bucket=self._calls.place.bucket, Delete=wanted
                )
            except (ClientError, ResponseParserError) as exc:
                known = isinstance(exc, ClientError) and not code_of(exc).isdigit()
                if known and refuses_bucket(exc):
                    raise
                self._without_bulk(exc)
                return frozenset()
        return frozenset(str(entry.get("Key")) for entry in answer.get("Deleted", ()))

    def _without_bulk(self, exc: Exception) -> None:
        # An unpermitted deletion is no sign of what the server can do.
        if getattr(exc, "response", None) and status_of(exc) in (401, 403):
            return
        self._bulk = False
        why = code_of(exc) if getattr(exc, "response", None) else type(exc).__name__
        log.info("The storage deletes no list of objects (%s): one by one from now on.", why)

    def _delete_one(self, key: str) -> StorageRefused | None:
        """Why the object stays; None: it is gone."""
        from botocore.exceptions import ClientError

        with self._calls.translated():
            try:
                self._calls.client.delete_object(Bucket=self._calls.place.bucket, Key=key)
            except ClientError as exc:
                if status_of(exc) == 404 and code_of(exc) != "NoSuchBucket":
                    return None
                if refuses_bucket(exc):
                    raise
                error = answered(exc, self._calls.place)
                if isinstance(error, StorageUnavailable):
                    raise error from exc
                assert isinstance(error, StorageRefused)  # noqa: S101
                return error
        return None
