"""`HttpTransport`: the calls of a `Client` as requests to a gateway's `/v1/jobs`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, Unpack

from pydantic import BaseModel, ValidationError

from ltxq.client.http_connection import GatewayConnection
from ltxq.client.http_events import Events
from ltxq.client.transport import Selection, Submission
from ltxq.errors import ConfigurationError, InvalidRequest
from ltxq.job import Job, JobPage, ModelName, VideoRequest, is_job_id
from ltxq.ledger import not_found
from ltxq.limits import ServedModel
from ltxq.settings import Settings

MOST_IDS = 100  # in one call

Model = TypeVar("Model", bound=BaseModel)


class _Model(ServedModel):
    id: ModelName


class _Models(BaseModel):
    data: tuple[_Model, ...]


class HttpTransport:
    """A gateway at `settings.url`. It makes ids and digests of jobs; the API key of the settings
    decides their owner.
    """

    def __init__(self, settings: Settings) -> None:
        self._gateway = GatewayConnection(settings)

    def submit(self, job_id: str, request: VideoRequest, **about: Unpack[Submission]) -> Job:  # noqa: ARG002
        idempotency_key, retry_of = about["idempotency_key"], about["retry_of"]
        if not re.fullmatch(r"[!-~]([ -~]*[!-~])?", idempotency_key):
            reason = "must be ASCII without spaces around it, since it is sent as a header"
            raise InvalidRequest.of(("idempotency_key", reason))
        headers = {"Idempotency-Key": idempotency_key}
        if about["resent"] is not None:
            headers["Ltxq-Resent"] = str(about["resent"]).lower()
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

    def list(self, **which: Unpack[Selection]) -> JobPage:
        if which["after"] is not None and not is_job_id(which["after"]):
            raise not_found(which["after"])
        given = {name: value for name, value in which.items() if value is not None}
        return self._ask(JobPage, "GET", "/v1/jobs", params=given)

    def cancel(self, job_id: str) -> None:
        self._ask(Job, "POST", f"{_path(job_id)}/cancel")

    def delete(self, job_id: str) -> None:
        if self._gateway.call("DELETE", _path(job_id)):  # a proxy's page that asks for a login
            raise self._is_no_gateway()

    def models(self) -> dict[str, ServedModel]:
        models = self._ask(_Models, "GET", "/v1/models")
        return {model.id: ServedModel(**dict(model)) for model in models.data}

    def check_storage(self) -> None:
        """Does nothing: the storage belongs to the gateway, and `/readyz` checks it."""

    @contextmanager
    def changes(self, job_id: str) -> Iterator[Events]:
        events = Events(self._gateway, f"{_path(job_id)}/events")
        try:
            yield events
        finally:
            events.close()

    def close(self) -> None:
        self._gateway.close()

    def _ask(self, kind: type[Model], method: str, path: str, **what: Any) -> Model:
        body = self._gateway.call(method, path, **what)
        try:
            return kind.model_validate_json(body)
        except ValidationError:
            raise self._is_no_gateway() from None

    def _is_no_gateway(self) -> ConfigurationError:
        return ConfigurationError(
            f"The server at {self._gateway.where} is not an ltxq gateway, or is a newer one.",
            hint="Check LTXQ_URL, or update ltxq.",
        )


def _path(job_id: str) -> str:
    if not is_job_id(job_id):
        raise not_found(job_id)
    return f"/v1/jobs/{job_id}"
