"""A real nginx in front of a server, with its defaults but for what a test changes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fleet import eventually
from ltxq_worker.embedded.servers import free_port

_CONFIGURATION = """
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port};
    {server}
  }}
}}
"""


@contextmanager
def nginx(folder: Path, server: str) -> Iterator[int]:
    """Its port on loopback.

    Args:
        server: directives of its one server, as `location / { proxy_pass http://…; }`.
    """
    binary = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if binary is None:
        if os.environ.get("CI"):
            raise AssertionError("nginx is not installed: apt-get install nginx-light")
        pytest.skip("nginx is not installed")
    port, configuration = free_port(), folder / "nginx.conf"
    configuration.write_text(_CONFIGURATION.format(folder=folder, port=port, server=server))
    with subprocess.Popen([binary, "-c", str(configuration), "-e", "stderr"]) as process:
        try:
            eventually(lambda: _listens(port))
            yield port
        finally:
            process.terminate()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
