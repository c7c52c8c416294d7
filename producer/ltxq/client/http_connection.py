"""Requests to a gateway: one HTTP attempt, its errors as ltxq's, and retries for a few seconds.

httpx2 is imported on first use.
"""

from __future__ import annotations

import logging
import re
import ssl
import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_before_delay,
    wait_exponential_jitter,
)

from ltxq.client.http_errors import refusal
from ltxq.client.transport import LOOK_SECONDS
from ltxq.errors import ConfigurationError, JobNotFound, LtxqError, QueueFull, QueueUnavailable
from ltxq.proxies import is_here, is_proxied, trust_env
from ltxq.settings import Settings

if TYPE_CHECKING:
    import httpx2

log = logging.getLogger("ltxq")

CONNECT_SECONDS = 2.0  # one connection attempt, TLS included
ANSWER_SECONDS = 8.0  # one answer; the gateway itself retries Redis for up to 5 seconds
PATIENCE = 2.8  # seconds of new attempts: 5 in all with a gateway that cannot be reached
MOST_BYTES = 16 * 1024**2  # of an answer; a hundred jobs with the longest prompts are 11 MB

_THROUGH_PROXY = (
    " The request goes through the proxy in HTTP_PROXY, HTTPS_PROXY or ALL_PROXY: does it lead "
    "there? NO_PROXY names hosts that are reached without it."
)

_backoff = wait_exponential_jitter(multiplier=0.05, max=1.0, jitter=0.05)


class GatewayConnection:
    """The gateway at `settings.url`, with the API key of the settings. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        import httpx2

        url = settings.url.get_secret_value().rstrip("/")
        self.where = urlsplit(url).netloc  # for messages
        self._proxied = is_proxied(url)
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if settings.api_key:
            headers["Authorization"] = f"Bearer {settings.api_key.get_secret_value()}"
            if url.startswith("http:") and not is_here(url):
                log.warning("The API key is sent to %s unencrypted. Use https://.", self.where)
        self._http = httpx2.Client(
            base_url=url,
            headers=headers,
            timeout=httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            verify=ssl.create_default_context(cafile=settings.https_ca),
            # No limit on connections: a caller that watches a hundred jobs can still send requests.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
            trust_env=trust_env(url),
        )
        self.poll_seconds = LOOK_SECONDS  # between readings of a job, as the gateway advised last

    def call(self, method: str, path: str, **what: Any) -> bytes:
        """The body of a 2xx answer. Sends the request again while the error is temporary.

        Every request must be safe to repeat: submissions carry an idempotency key.

        Raises:
            LtxqError: the gateway's own error, or QueueUnavailable.
        """
        perhaps_done = False

        def attempt() -> bytes:
            nonlocal perhaps_done
            try:
                return self._attempt(method, path, **what)
            except _Temporary as exc:
                perhaps_done |= exc.perhaps_done
                raise
            except JobNotFound:
                if method == "DELETE" and perhaps_done:  # an earlier attempt deleted it
                    return b""
                raise

        attempts = Retrying(
            retry=retry_if_exception_type(_Temporary),
            stop=stop_before_delay(PATIENCE),
            wait=_pause,
            reraise=True,
        )
        try:
            return attempts(attempt)
        except _Temporary as exc:
            if isinstance(exc.error, QueueUnavailable):
                exc.error.sent = perhaps_done
            raise exc.error from exc.__cause__

    def stream(self, path: str, **what: Any) -> AbstractContextManager[httpx2.Response]:
        """An open answer to a GET: one attempt, with httpx2's errors."""
        return self._http.stream("GET", path, **what)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _attempt(self, method: str, path: str, **what: Any) -> bytes:
        import httpx2

        try:
            with self._http.stream(method, path, **what) as response:
                body = self._read(response)
        except httpx2.HTTPError as exc:
            raise self._translated(exc) from exc
        advised = _seconds(response.headers.get("openai-poll-after-ms"), 0.001)
        self.poll_seconds = advised or LOOK_SECONDS
        if response.is_success:
            return body
        error = refusal(self.where, response.status_code, response.headers, body)
        if response.status_code in (429, 502, 503, 504) and not isinstance(error, QueueFull):
            pause = _seconds(response.headers.get("retry-after"))
            raise _Temporary(error, perhaps_done=response.status_code != 429, pause=pause)
        raise error

    def _read(self, response: httpx2.Response) -> bytes:
        """The body, limited in size and time. It is raw: `Accept-Encoding` asks for no coding."""
        end = time.monotonic() + ANSWER_SECONDS
        body = bytearray()
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > MOST_BYTES or time.monotonic() > end:
                raise QueueUnavailable(
                    f"The answer of the gateway at {self.where} does not end: more than "
                    f"{MOST_BYTES // 1024**2} MiB, or {ANSWER_SECONDS:g} s.",
                    hint="Check the proxies in between, then try again.",
                )
        return bytes(body)

    def _translated(self, exc: httpx2.HTTPError) -> ConfigurationError | _Temporary:
        import httpx2

        if "CERTIFICATE_VERIFY_FAILED" in str(exc):
            return ConfigurationError(
                f"The TLS certificate of the gateway at {self.where} is not trusted.",
                hint="Set LTXQ_HTTPS_CA to the CA bundle (PEM) that signed it, and use the host "
                "name in the certificate.",
            )
        away = QueueUnavailable(
            f"The gateway at {self.where} does not answer ({type(exc).__name__}).",
            hint="Is it running, and is LTXQ_URL right? (https:// with TLS, http:// without.)"
            f"{_THROUGH_PROXY if self._proxied else ''}",
        )
        never_sent = isinstance(exc, httpx2.ConnectError | httpx2.ConnectTimeout)
        return _Temporary(away, perhaps_done=not never_sent)


class _Temporary(Exception):
    """An attempt failed with `error`; the next attempt may succeed.

    Args:
        perhaps_done: the gateway may have executed the request.
        pause: seconds that the gateway asks us to wait.
    """

    def __init__(self, error: LtxqError, *, perhaps_done: bool, pause: float = 0) -> None:
        super().__init__(error)
        self.error, self.perhaps_done, self.pause = error, perhaps_done, pause


def _pause(state: RetryCallState) -> float:
    exc = state.outcome and state.outcome.exception()
    asked = exc.pause if isinstance(exc, _Temporary) else 0
    return max(asked, _backoff(state))


def _seconds(header: str | None, unit: float = 1.0) -> float:
    """A header's whole number of `unit` seconds; 0 for anything else."""
    return int(header) * unit if header and re.fullmatch("[0-9]{1,9}", header) else 0
