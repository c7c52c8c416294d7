"""Real servers for the tests: where they come from, and what a missing one means.

On a laptop a test whose server is not installed is skipped; where `CI` is set it fails.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import pytest

from ltxq.errors import ConfigurationError, MissingExtra
from ltxq.settings import Settings
from ltxq.storage import Storage

_Server = TypeVar("_Server")


@dataclass(frozen=True)
class S3:
    """An S3-compatible server with an empty bucket, and what it takes to use it."""

    endpoint: str
    bucket: str
    environment: dict[str, str]  # credentials, as boto3 reads them

    def settings(self, **others: object) -> Settings:
        """Settings that keep clips there. The credentials must be in the environment."""
        return Settings(s3_endpoint=self.endpoint, s3_bucket=self.bucket, **others)

    @property
    def worker_environment(self) -> dict[str, str]:
        """All a worker process needs to keep clips there."""
        return {
            **self.environment,
            "LTXQ_S3_ENDPOINT": self.endpoint,
            "LTXQ_S3_BUCKET": self.bucket,
        }


def start_or_skip(start: Callable[[], _Server]) -> _Server:
    """`start()`, or a skipped test where the server is not installed (a failed one in CI)."""
    try:
        return start()
    except (MissingExtra, ConfigurationError) as exc:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(exc))


def exists(storage: Storage, key: str) -> bool:
    """Whether the bucket has an object of that key, under the prefix or not."""
    from botocore.exceptions import ClientError

    try:
        storage._calls.client.head_object(Bucket=storage.bucket, Key=key)
    except ClientError as exc:
        if exc.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise
        return False
    return True


@contextmanager
def moto_server() -> Iterator[str]:
    """moto's S3 server in a thread of this process; yields its endpoint."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    app = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
