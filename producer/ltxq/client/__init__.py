"""`Client` and `AsyncClient`: submit jobs, follow them, get their clips. Over Redis or a gateway.

client.py           the calls, the same over every transport; async_client.py for asyncio
job_watch.py        what a watcher of a job does next
transport.py        the interface to a queue, and Redis as one
http.py             a gateway as one
http_connection.py  its requests and retries; http_events.py: events; http_errors.py: errors
"""

from ltxq.client.async_client import AsyncClient
from ltxq.client.client import Client

__all__ = ["AsyncClient", "Client"]
