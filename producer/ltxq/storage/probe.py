"""Tries each operation that a role makes once, as the work makes it (`operations.py`).

A worker does so at its start, and `ltxq doctor`. A server that answers 200 to everything is found
out too: what was written must be read, and what was deleted must be gone.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ltxq.errors import LtxqError, StorageRefused
from ltxq.storage.client import Calls
from ltxq.storage.deletion import Deleter
from ltxq.storage.operations import CHECKS, Operation, Role, made_by

GONE_SECONDS = 2.0  # for which a deleted object may still be found
GONE_LOOK = 0.1  # seconds between two looks


class Probe:
    """One run of the probe.

    Args:
        encrypted: arguments of every call that writes.
    """

    def __init__(self, calls: Calls, deleter: Deleter, encrypted: dict[str, str]) -> None:
        self._calls = calls
        self._deleter = deleter
        self._encrypted = encrypted
        # Many workers may start at once.
        self._key = f"{calls.place.prefix}{CHECKS}{secrets.token_hex(8)}"
        self._body = f"ltxq may write here: {secrets.token_hex(8)}\n".encode()
        self.keeps_versions = False  # whether the bucket keeps what is deleted; known after `run`
        self._written: list[str] = []
        self._uploads: list[dict[str, Any]] = []  # begun, neither finished nor given up

    def run(self, role: Role) -> None:
        """Make every call of the role.

        Raises:
            StorageRefused: names the call and the right that is missing.
            StorageUnavailable
        """
        steps: dict[str, Callable[[], None]] = {
            "PutObject": self._put,
            "GetObject": self._get,
            "HeadObject": self._head,
            "ListObjectsV2": self._list,
            "CreateMultipartUpload": self._upload_in_parts,
            "AbortMultipartUpload": self._give_up_an_upload,
            "DeleteObjects": self._delete,
        }
        wanted: tuple[Operation, ...] = made_by(role)
        names = [operation.name for operation in wanted if operation.name in steps]
        try:
            for name in names:
                with self._calls.translated():
                    steps[name]()
        finally:
            self._clear_away()

    def _where(self, suffix: str = "") -> dict[str, str]:
        return {"Bucket": self._calls.place.bucket, "Key": self._key + suffix}

    def _put(self) -> None:
        self._written.append(self._key)
        stored = self._calls.client.put_object(**self._where(), Body=self._body, **self._encrypted)
        self.keeps_versions = stored.get("VersionId", "null") != "null"

    def _get(self) -> None:
        body = self._calls.client.get_object(**self._where())["Body"]
        try:
            read = body.read(len(self._body) + 1)
        finally:
            body.close()
        if read != self._body:
            raise StorageRefused(
                f"What was written is not what is read, {self._calls.place}.",
                hint="No S3 server answers there, or a cache in front of it: check "
                "LTXQ_S3_ENDPOINT.",
            )

    def _head(self) -> None:
        self._calls.client.head_object(**self._where())

    def _list(self) -> None:
        self._calls.client.list_objects_v2(
            Bucket=self._calls.place.bucket, Prefix=f"{self._calls.place.prefix}{CHECKS}", MaxKeys=1
        )

    def _upload_in_parts(self) -> None:
        client, where = self._calls.client, self._where("-parts")
        self._written.append(where["Key"])
        upload = self._begin(where)
        part = client.upload_part(**upload, PartNumber=1, Body=self._body)
        client.complete_multipart_upload(
            **upload, MultipartUpload={"Parts": [{"ETag": part["ETag"], "PartNumber": 1}]}
        )
        self._uploads.remove(upload)

    def _give_up_an_upload(self) -> None:
        upload = self._begin(self._where("-given-up"))
        self._calls.client.abort_multipart_upload(**upload)
        self._uploads.remove(upload)

    def _begin(self, where: dict[str, str]) -> dict[str, Any]:
        begun = self._calls.client.create_multipart_upload(**where, **self._encrypted)
        if "UploadId" not in begun:
            raise StorageRefused(
                f"A large upload was begun, and has no id, {self._calls.place}.",
                hint="No S3 server answers there: check LTXQ_S3_ENDPOINT.",
            )
        upload = {**where, "UploadId": begun["UploadId"]}
        self._uploads.append(upload)
        return upload

    def _delete(self) -> None:
        for refusal in self._deleter.delete(self._written):
            raise refusal.reason
        deadline = time.monotonic() + GONE_SECONDS
        while self._is_there():
            if time.monotonic() > deadline:
                raise StorageRefused(
                    f"An object is still there after its deletion, {self._calls.place}.",
                    hint=f"{self._calls.place.endpoint_hint}Check the bucket for an object lock, a "
                    "retention, or a cache in front of it.",
                )
            time.sleep(GONE_LOOK)
        self._written.clear()

    def _is_there(self) -> bool:
        from botocore.exceptions import ClientError

        try:
            self._calls.client.head_object(**self._where())
        except ClientError as exc:
            # Without the right to list, S3 answers 403 for an object that is missing.
            if exc.response["ResponseMetadata"]["HTTPStatusCode"] in (403, 404):
                return False
            raise
        return True

    def _clear_away(self) -> None:
        with suppress(LtxqError):
            list(self._deleter.delete(self._written))
            for upload in self._uploads:
                with self._calls.translated():
                    self._calls.client.abort_multipart_upload(**upload)
