"""`ltxq gateway` and `ltxq key`: the HTTP API, and who may use it."""

from __future__ import annotations

from typing import Annotated

import typer

from ltxq.cli import screen
from ltxq.cli.options import AsJson
from ltxq.errors import MissingExtra


def gateway(
    host: Annotated[
        str,
        typer.Option(
            help="Address or host name to listen on: localhost is 127.0.0.1 and ::1, 0.0.0.0 is "
            "all IPv4 addresses, :: is all IPv4 and IPv6 addresses. Without API keys only loopback "
            "addresses are allowed."
        ),
    ] = "localhost",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 8080,
    as_json: AsJson = False,
) -> None:
    """Serve the queue over HTTP, for OpenAI's SDKs and for browsers, until Ctrl-C.

    The page is at /, the API's description at /docs. Run as many gateways as you like.
    """
    try:
        from ltxq.gateway.serve import serve
    except ModuleNotFoundError as exc:
        missing = (exc.name or "").partition(".")[0]
        if missing == "ltxq":
            raise
        raise MissingExtra("ltxq gateway", "gateway", missing) from exc
    from ltxq.logs import set_up_logging
    from ltxq.settings import Settings

    settings = Settings.read()
    set_up_logging(settings.log, "gateway")

    def ready(url: str) -> None:
        text = f"The page is {url}/ and the API {url}/v1; Ctrl-C stops."
        screen.result({"url": url, "api": f"{url}/v1"}, text, as_json=as_json)

    serve(settings, host=host, port=port, ready=ready)


def key(
    name: Annotated[str, typer.Argument(help="Name of the owner: a-z 0-9 . _ -")],
    as_json: AsJson = False,
) -> None:
    """Make an API key for the gateway. The key is shown once; the gateway stores its hash."""
    from ltxq.gateway.access.keys import new_key

    try:
        made = new_key(name)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from None
    if as_json:
        screen.emit({"name": made.name, "key": made.key, "entry": made.entry})
        return
    screen.note(f"The API key of {made.name}. It is not shown again:")
    screen.say(made.key)
    screen.note("Add this entry to the gateway's LTXQ_API_KEYS, separated by a comma:", made.entry)
