"""How Celery is configured: JSON only, no late acknowledgements, short timeouts.

The ledger decides which job runs when. A message only wakes a worker, so a lost message costs
little: the sweep sends another. Therefore no timeout here is long.
"""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.app.utils import Settings as CelerySettings
from celery.app.utils import filter_hidden_settings
from celery.loaders.app import AppLoader
from redis.backoff import NoBackoff
from redis.retry import Retry

from ltxq.ledger import queue_name
from ltxq.settings import Settings


def make_app(settings: Settings) -> Celery:
    """A Celery app for the Redis of `settings`. It connects on first use."""
    url, tls = settings.redis, settings.redis_tls or None
    # The backend's URL has no password, so nothing that shows the URL can show it.
    app = Celery(
        "ltxq",
        broker=url.for_kombu(login=True),
        backend=url.for_kombu(login=False),
        loader=_Loader,
        set_as_current=False,
    )
    # Celery has no option for the class of its settings.
    object.__setattr__(app.conf, "__class__", _OwnSettings)
    sentinels = _sentinels(settings)
    app.conf.update(
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        result_accept_content=["json"],
        task_default_queue=queue_name(settings.default_model),  # Flower shows its length
        task_ignore_result=True,  # `report_outcome` stores the result
        task_acks_late=False,
        worker_send_task_events=settings.events,
        ltxq_show_prompts=settings.show_prompts,
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=True,  # no effect without late acks
        worker_hijack_root_logger=False,
        result_expires=settings.retention,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,  # a worker reconnects while Redis is full or read-only
        broker_transport_options={
            "socket_timeout": 5.0,  # more than the second for which a worker waits for a message
            "socket_connect_timeout": 2.0,
            # A worker drops a connection that is silent for 6 to 11 s (kombu's default: 26 to 51).
            # Nothing closes the connections of a host that vanishes, as in a failover.
            "health_check_interval": 5,
            "ack_emulation": False,  # the worker's list `taken:<worker>` has its message
            **sentinels,
        },
        broker_use_ssl=tls,
        redis_backend_use_ssl=tls,
        # One pool of connections for all threads; each job has a thread.
        result_backend_thread_safe=True,
        redis_username=url.username,
        redis_password=url.password,
        redis_socket_timeout=2.0,
        redis_socket_connect_timeout=2.0,
        result_backend_transport_options={"retry_policy": {"timeout": 2.0}, **sentinels},
    )
    return app


class _OwnSettings(CelerySettings):  # type: ignore[misc]
    """Celery's settings, except that the environment replaces none. `CELERY_BROKER_URL` and
    `CELERY_RESULT_BACKEND` belong to another application on this host; with them ltxq would send
    its password and jobs to that application's broker.
    """

    broker_url = property(lambda self: self.first("broker_url"))
    broker_read_url = broker_write_url = broker_url
    result_backend = property(lambda self: self.first("result_backend"))

    def table(self, with_defaults: bool = False, censored: bool = True) -> dict[str, Any]:
        """What Flower shows of a worker. To take the password out of the broker's URL, Celery would
        ask kombu for a connection, and that warns that it will check no certificate.
        """
        every = super().table(with_defaults, censored=False)
        shown = {name: value for name, value in every.items() if not name.startswith("broker_")}
        shown = filter_hidden_settings(shown) if censored else shown
        return {**shown, "broker_url": self.result_backend}


class _Loader(AppLoader):  # type: ignore[misc]
    """Reads no `CELERY_CONFIG_MODULE`, which is another application's too."""

    def read_configuration(self, *_: str) -> dict[str, Any]:
        return {}


def _sentinels(settings: Settings) -> dict[str, Any]:
    """The options of kombu and Celery for a primary behind Sentinels; empty without Sentinels."""
    url = settings.redis
    if not url.master:
        return {}
    tls = {"ssl": True, **settings.redis_tls} if url.tls else {}
    # A Sentinel that is down delays each connection by a second.
    timing = {"socket_timeout": 1.0, "socket_connect_timeout": 1.0, "retry": Retry(NoBackoff(), 0)}
    return {"master_name": url.master, "sentinel_kwargs": {**timing, **tls, **url.sentinel_login}}
