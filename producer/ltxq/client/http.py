"""A gateway as the queue: what `RedisTransport` does, asked over `https://` with an API key.

httpx2 is imported on first use; its errors, and what the gateway answers, become ltxq's own here.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import ssl
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_before_delay,
    wait_exponential_jitter,
)

from ltxq.client.http_errors import refusal
from ltxq.client.http_events import Events
from ltxq.client.transport import LOOK_SECONDS
from ltxq.errors import (
    ConfigurationError,
    InvalidRequest,
    JobNotFound,
    LtxqError,
    QueueFull,
    QueueUnavailable,
)
from ltxq.job import Job, JobPage, JobState, ModelName, Order, VideoRequest, is_job_id
from ltxq.ledger import not_found
from ltxq.settings import Settings

if TYPE_CHECKING:
    import httpx2

log = logging.getLogger("ltxq")

CONNECT_SECONDS = 2.0  # one connection attempt, TLS included, may take this long
ANSWER_SECONDS = 8.0  # and an answer: the gateway is itself patient with Redis, for 5 seconds
PATIENCE = 2.8  # seconds a call tries again: 5 in all with a gateway that cannot be reached
MOST_BYTES = 16 * 1024**2  # of an answer; a hundred jobs of the longest prompts are 11 MB
MOST_IDS = 100  # in one call

_backoff = wait_exponential_jitter(multiplier=0.05, max=1.0, jitter=0.05)

Model = TypeVar("Model", bound=BaseModel)


class _Model(BaseModel):
    id: ModelName
    ready_workers: int


class _Models(BaseModel):
    data: tuple[_Model, ...]


class HttpTransport:
    """To a gateway at `settings.url`, as whoever `settings.api_key` belongs to.

    A call that fails on the way is sent again for a few seconds. That is safe: a submission has an
    idempotency key, the caller's or one of its own, and all else may be repeated.
    """

    def __init__(self, settings: Settings) -> None:
        import httpx2

        url = settings.url.get_secret_value().rstrip("/")
        self._where = urlsplit(url).netloc
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if settings.api_key:
            headers["Authorization"] = f"Bearer {settings.api_key.get_secret_value()}"
            if url.startswith("http:") and not _is_loopback(url):
                log.warning("The API key goes to %s unencrypted; https:// hides it.", self._where)
        self._http = httpx2.Client(
            base_url=url,
            headers=headers,
            timeout=httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            verify=ssl.create_default_context(cafile=settings.https_ca),
            # No bound on connections: who watches a hundred jobs can still ask for others.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
            trust_env=not _is_loopback(url),  # HTTPS_PROXY is for hosts elsewhere
        )
        self._look_after: float | None = None  # seconds between looks at a job, as last advised

    def submit(
        self,
        job_id: str,
        request: VideoRequest,
        *,
        digest: str,  # noqa: ARG002  the gateway makes its own
        idempotency_key: str | None = None,
        retry_of: str | None = None,
        resent: bool | None = None,
        owner: str | None = None,  # noqa: ARG002  the key's own
    ) -> Job:
        if idempotency_key is not None and not re.fullmatch(
            r"[!-~]([ -~]*[!-~])?", idempotency_key
        ):
            reason = "must be ASCII without spaces around it, since it is sent as a header"
            raise InvalidRequest(
                f"idempotency_key: {reason}", problems=(("idempotency_key", reason),)
            )
        headers = {"Idempotency-Key": idempotency_key or job_id}
        if resent is not None:
            headers["Ltxq-Resent"] = str(resent).lower()
        if retry_of is not None:
            return self._ask(Job, "POST", f"{_path(retry_of)}/retry", headers=headers)
        headers["Content-Type"] = "application/json"
        body = request.model_dump_json().encode()
        return self._ask(Job, "POST", "/v1/jobs", headers=headers, content=body)

    def get(self, job_id: str) -> Job:
        return self._ask(Job, "GET", _path(job_id))

    def get_many(self, job_ids: Collection[str]) -> dict[str, Job]:
        ids = [job_id for job_id in dict.fromkeys(job_ids) if is_job_id(job_id)]
        jobs: dict[str, Job] = {}
        for start in range(0, len(ids), MOST_IDS):
            asked = {"id": ids[start : start + MOST_IDS]}
            page = self._ask(JobPage, "GET", "/v1/jobs", params=asked)
            jobs.update({job.id: job for job in page.jobs})
        return jobs

    def list(
        self,
        *,
        state: JobState | None = None,
        limit: int = 20,
        after: str | None = None,
        order: Order = "desc",
        owner: str | None = None,  # noqa: ARG002  the key's own
    ) -> JobPage:
        if after is not None and not is_job_id(after):
            raise not_found(after)
        params = {"state": state, "limit": limit, "after": after, "order": order}
        given = {name: value for name, value in params.items() if value is not None}
        return self._ask(JobPage, "GET", "/v1/jobs", params=given)

    def cancel(self, job_id: str) -> None:
        self._call("POST", f"{_path(job_id)}/cancel")

    def delete(self, job_id: str) -> None:
        self._call("DELETE", _path(job_id))

    def models(self) -> dict[str, int]:
        models = self._ask(_Models, "GET", "/v1/models")
        return {model.id: model.ready_workers for model in models.data}

    def check_storage(self) -> None:
        """It is the gateway's."""

    @contextmanager
    def changes(self, job_id: str) -> Iterator[Events]:
        events = Events(
            self._http, f"{_path(job_id)}/events", lambda: self._look_after or LOOK_SECONDS
        )
        try:
            yield events
        finally:
            events.close()

    def close(self) -> None:
        self._http.close()

    def _ask(self, kind: type[Model], method: str, path: str, **what: Any) -> Model:
        body = self._call(method, path, **what)
        try:
            return kind.model_validate_json(body)
        except ValidationError:
            raise ConfigurationError(
                f"What answers at {self._where} is no ltxq gateway, or a newer one.",
                hint="Is LTXQ_URL right?",
            ) from None

    def _call(self, method: str, path: str, **what: Any) -> bytes:
        """The answer's body, after as many attempts as patience allows.

        Raises:
            LtxqError: what the gateway says, or QueueUnavailable.
        """
        perhaps_done = False

        def attempt() -> bytes:
            nonlocal perhaps_done
            try:
                return self._once(method, path, **what)
            except _Passing as exc:
                perhaps_done |= exc.perhaps_done
                raise
            except JobNotFound:
                if method == "DELETE" and perhaps_done:  # by us, and the answer was lost
                    return b""
                raise

        attempts = Retrying(
            retry=retry_if_exception_type(_Passing),
            stop=stop_before_delay(PATIENCE),
            wait=_pause,
            reraise=True,
        )
        try:
            return attempts(attempt)
        except _Passing as exc:
            if isinstance(exc.error, QueueUnavailable):
                exc.error.sent = perhaps_done
            raise exc.error from exc.__cause__

    def _once(self, method: str, path: str, **what: Any) -> bytes:
        import httpx2

        try:
            with self._http.stream(method, path, **what) as response:
                body = self._read(response)
        except httpx2.HTTPError as exc:
            if "CERTIFICATE_VERIFY_FAILED" in str(exc):
                raise ConfigurationError(
                    f"The gateway at {self._where} shows a certificate that is not trusted.",
                    hint="Set LTXQ_HTTPS_CA to the file of who signed it, and name the host as "
                    "it does.",
                ) from exc
            away = QueueUnavailable(
                f"The gateway at {self._where} does not answer ({type(exc).__name__}).",
                hint="Is it running, and is LTXQ_URL right? (https:// with TLS, http:// without.)",
            )
            never_sent = isinstance(exc, httpx2.ConnectError | httpx2.ConnectTimeout)
            raise _Passing(away, perhaps_done=not never_sent) from exc
        self._look_after = _seconds(response.headers.get("openai-poll-after-ms"), 0.001)
        if response.is_success:
            return body
        error = refusal(self._where, response.status_code, response.headers, body)
        if response.status_code in (429, 502, 503, 504) and not isinstance(error, QueueFull):
            pause = _seconds(response.headers.get("retry-after")) or 0
            raise _Passing(error, perhaps_done=response.status_code != 429, pause=pause)
        raise error

    def _read(self, response: httpx2.Response) -> bytes:
        """The body, within bounds of size and time. It is not decoded: none was asked for."""
        end = time.monotonic() + ANSWER_SECONDS
        body = bytearray()
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > MOST_BYTES or time.monotonic() > end:
                raise QueueUnavailable(f"The answer of the gateway at {self._where} does not end.")
        return bytes(body)


class _Passing(Exception):
    """An attempt failed with `error`, and another may do better.

    Args:
        perhaps_done: the gateway may have done what it was asked.
        pause: seconds it wants us to wait before.
    """

    def __init__(self, error: LtxqError, *, perhaps_done: bool, pause: float = 0) -> None:
        super().__init__(error)
        self.error, self.perhaps_done, self.pause = error, perhaps_done, pause


def _pause(state: RetryCallState) -> float:
    exc = state.outcome and state.outcome.exception()
    asked = exc.pause if isinstance(exc, _Passing) else 0
    return max(asked, _backoff(state))


def _seconds(header: str | None, unit: float = 1.0) -> float | None:
    """A header's whole number of `unit` seconds; None where it is none."""
    return int(header) * unit if header and re.fullmatch("[0-9]{1,9}", header) else None


def _path(job_id: str) -> str:
    if not is_job_id(job_id):
        raise not_found(job_id)
    return f"/v1/jobs/{job_id}"


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
