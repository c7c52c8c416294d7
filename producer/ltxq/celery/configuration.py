"""How Celery is configured: JSON alone, no late acknowledgements, short timeouts.

Which job runs when is the ledger's to say. A message only wakes a worker, so a lost one costs
little: the sweep sends another.
"""

from __future__ import annotations

from celery import Celery

from ltxq.ledger import queue_name
from ltxq.settings import Settings


def make_app(settings: Settings) -> Celery:
    """A Celery app for the Redis of `settings`; connects on first use."""
    url, tls = settings.url.get_secret_value(), settings.redis_tls or None
    app = Celery("ltxq", broker=url, backend=url, set_as_current=False)
    # A lost message is found by the sweep. So nothing here waits long or tries hard.
    app.conf.update(
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        result_accept_content=["json"],
        task_default_queue=queue_name(settings.default_model),  # Flower counts it
        task_ignore_result=True,  # the ledger's writer stores the result
        task_acks_late=False,
        worker_send_task_events=settings.events,
        ltxq_show_prompts=settings.show_prompts,
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=True,  # no late acks: touches nothing
        worker_hijack_root_logger=False,
        result_expires=settings.retention,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,  # full or read-only: connect again, rather than end
        broker_transport_options={
            "socket_timeout": 5.0,  # more than the second for which a worker waits for a message
            "socket_connect_timeout": 2.0,
            # A worker drops a connection that is silent for 6 to 11 s (kombu's default: 26 to 51):
            # where a host vanishes, as in a failover, nothing closes its connections.
            "health_check_interval": 5,
            "ack_emulation": False,  # a worker keeps its own note of the message it has in hand
        },
        broker_use_ssl=tls,
        redis_backend_use_ssl=tls,
        # One pool of connections. Else each thread has its own, and each job a thread.
        result_backend_thread_safe=True,
        redis_socket_timeout=2.0,
        redis_socket_connect_timeout=2.0,
        result_backend_transport_options={"retry_policy": {"timeout": 2.0}},
    )
    return app
