"""Which models a gateway takes jobs for. Each name has a queue of its own, so names that strangers
make up must not get that far.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from ltxq.client.transport import RedisTransport
from ltxq.errors import UnknownModel
from ltxq.job import Job, VideoRequest
from ltxq.printable import one_line
from ltxq.settings import Settings

FRESH_SECONDS = 5.0  # the models served are known for so long before they are asked for again
AGAIN_SECONDS = 1.0  # and for so long where a name is not among them, which may just have come
NAMED_MOST = 20  # models in a refusal


class GatewayTransport(RedisTransport):
    """Every job that a gateway makes passes `submit`, whatever the route."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.served = ServedModels(self.models, default=settings.default_model)

    def submit(self, job_id: str, request: VideoRequest, **about: Any) -> Job:
        """As `RedisTransport.submit`.

        Raises:
            UnknownModel
        """
        self.served.check(request.model)
        return super().submit(job_id, request, **about)


class ServedModels:
    """The default model, and those that have a worker or had one within a week. Thread-safe.

    Args:
        ask: gives the models served; asks Redis.
        clock: seconds.
    """

    def __init__(
        self,
        ask: Callable[[], Iterable[str]],
        *,
        default: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask, self._default, self._clock = ask, default, clock
        self._lock = threading.Lock()
        self._names: frozenset[str] | None = None  # as of the last answer
        self._asked_at = -math.inf

    def check(self, model: str | None) -> None:
        """Refuse a model that is not served. May ask Redis: to be called in a thread.

        Raises:
            UnknownModel: names the models there are.
            QueueUnavailable: Redis had to be asked, and is away.
        """
        if model is None or model == self._default:
            return
        names = self._names_for(model)
        if model not in names:
            raise UnknownModel(
                f"There is no model '{one_line(model[:80])}' here: no worker has served it within "
                "a week.",
                hint=f"Served are: {_listed(sorted({self._default, *names}))}.",
            )

    def _names_for(self, model: str) -> frozenset[str]:
        now = self._clock()
        with self._lock:
            if self._names is not None:
                known_for = FRESH_SECONDS if model in self._names else AGAIN_SECONDS
                if now - self._asked_at < known_for:
                    return self._names
                self._asked_at = now  # until the answer is here, others go by what is known
        try:
            names = frozenset(self._ask())
        except Exception:
            self._asked_at = -math.inf
            raise
        with self._lock:
            self._names, self._asked_at = names, now
        return names


def _listed(names: list[str]) -> str:
    more = len(names) - NAMED_MOST
    shown = ", ".join(names[:NAMED_MOST])
    return shown if more <= 0 else f"{shown} and {more} more"
