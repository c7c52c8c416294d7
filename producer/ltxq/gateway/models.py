"""Which jobs a gateway takes: those of models that are served, within the model's limits.

Each model has its own queue, so a gateway refuses names that strangers make up.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Unpack

from ltxq.client.transport import RedisTransport, Submission
from ltxq.errors import InvalidRequest, UnknownModel
from ltxq.job import Job, VideoRequest
from ltxq.limits import ServedModel
from ltxq.links import Links
from ltxq.printable import one_line
from ltxq.reasons import which_are_served
from ltxq.settings import Settings

FRESH_SECONDS = 5.0  # for which an answer of Redis is used
AGAIN_SECONDS = 1.0  # between two questions for names that the answer lacks: workers may have come


class GatewayTransport(RedisTransport):
    """Every job that a gateway makes passes `submit`, whatever the route."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, "gateway")
        # A gateway that redirects opens links too, as those of before LTXQ_CONTENT was changed.
        self.opened_links = self.links or Links("", self._ledger.link_secret)
        self.served = ServedModels(self.models, default=settings.default_model)

    def submit(self, job_id: str, request: VideoRequest, **about: Unpack[Submission]) -> Job:
        """As `RedisTransport.submit`.

        Raises:
            UnknownModel
            InvalidRequest: the model cannot make this clip.
        """
        self.served.check(request.model)
        self.served.check_limits(request)
        return super().submit(job_id, request, **about)


class ServedModels:
    """The default model, and those that have a worker or had one within a week. Thread-safe.

    Args:
        ask: the models served, from Redis.
        clock: seconds.
    """

    def __init__(
        self,
        ask: Callable[[], Mapping[str, ServedModel]],
        *,
        default: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask, self._default, self._clock = ask, default, clock
        self._lock = threading.Lock()
        self._models: Mapping[str, ServedModel] | None = None  # as of the last answer
        self._asked_at = -math.inf
        self._missed_at = -math.inf  # when Redis was last asked for a name that the answer lacked

    def check(self, model: str | None) -> None:
        """Refuse a model that is not served. May ask Redis: to be called in a thread.

        Raises:
            UnknownModel: names the models there are.
            QueueUnavailable: Redis had to be asked, and is away.
        """
        if model is None or model == self._default:
            return
        served = self._served_for(model)
        if model not in served:
            raise UnknownModel(
                f"There is no model '{one_line(model[:80])}' here: no worker has served it within "
                "a week.",
                hint=which_are_served(model, {self._default, *served}),
            )

    def check_limits(self, request: VideoRequest) -> None:
        """Refuse a clip that its model cannot make, if its workers have reported their limits.

        Raises:
            InvalidRequest: names each field.
            QueueUnavailable: Redis had to be asked, and is away.
        """
        model = request.model or self._default
        served = self._served_for(model).get(model)
        problems = served.limits.problems(request) if served and served.limits else ()
        if problems:
            hint = f"These are limits of the model {model}."
            raise InvalidRequest.of(*problems, hint=hint)

    def _served_for(self, model: str) -> Mapping[str, ServedModel]:
        now = self._clock()
        with self._lock:
            if self._models is not None:
                known = model in self._models
                if known and now - self._asked_at < FRESH_SECONDS:
                    return self._models
                if not known and now - self._missed_at < AGAIN_SECONDS:
                    return self._models
                self._asked_at = now  # until the answer is here, others use the last one
                self._missed_at = self._missed_at if known else now
        try:
            models = self._ask()
        except Exception:
            self._asked_at = self._missed_at = -math.inf
            raise
        with self._lock:
            self._models, self._asked_at = models, now
        return models
