"""Makes the queue's client from the environment that Scope was started in."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from ltxq.errors import MissingExtra

if TYPE_CHECKING:
    from ltxq import Client

log = logging.getLogger("ltxq.scope")

NO_URL = (
    "LTXQ_URL is not set, so the plugin has no queue. In the environment that starts Scope, set it "
    "to the queue's Redis (redis://…), or to a gateway (https://…) together with LTXQ_API_KEY."
)
NO_KEY = (
    "LTXQ_API_KEY is not set. A gateway with API keys will refuse every request. Set it in the "
    "environment that starts Scope."
)


def connect() -> Client | None:
    """A client of the queue at LTXQ_URL; None: LTXQ_URL is not set."""
    url = os.environ.get("LTXQ_URL", "").strip()
    if not url:
        return None
    if url.startswith("http") and not os.environ.get("LTXQ_API_KEY"):
        log.warning("%s", NO_KEY)
    from ltxq import Client
    from ltxq.settings import Settings

    try:
        return Client()
    except MissingExtra:
        # LTXQ_S3_BUCKET is set, and Scope has no boto3 to sign new URLs. The URLs that the workers
        # signed are still valid when the plugin downloads the clip.
        return Client(settings=Settings(s3_bucket=None))
