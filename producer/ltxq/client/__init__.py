"""`Client` and `AsyncClient`: submit jobs, follow them, get their clips. Over Redis or a gateway.

client.py       the calls, the same over every transport
transport.py    the interface to a queue, and Redis behind it
http.py         a gateway behind it; http_events.py its events, http_errors.py its refusals
"""

from ltxq.client.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]
