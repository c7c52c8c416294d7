"""How Celery is configured: JSON only, no late acknowledgements, short timeouts.

The ledger decides which job runs when. A message only wakes a worker, so a lost message costs
little: the sweep sends another. Therefore no timeout here is long.
"""

from __future__ import annotations

from celery import Celery

from ltxq.ledger import queue_name
from ltxq.settings import Settings


def make_app(settings: Settings) -> Celery:
    """A Celery app for the Redis of `settings`. It connects on first use."""
    url, tls = settings.url.get_secret_value(), settings.redis_tls or None
    app = Celery("ltxq", broker=url, backend=url, set_as_current=False)
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
        },
        broker_use_ssl=tls,
        redis_backend_use_ssl=tls,
        # One pool of connections for all threads; each job has a thread.
        result_backend_thread_safe=True,
        redis_socket_timeout=2.0,
        redis_socket_connect_timeout=2.0,
        result_backend_transport_options={"retry_policy": {"timeout": 2.0}},
    )
    return app
