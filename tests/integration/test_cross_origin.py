"""The gateway called by a page of another origin, in a real Chromium: what SDKs send arrives, and
every answer can be read, errors too.
"""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from browser import chromium
from gateways import Gateway
from ltxq.gateway.access.keys import new_key
from ltxq_worker.embedded.servers import RedisServer
from servers import start_or_skip

ALICE = new_key("alice")

# As openai 6.49 sends them from a browser, with a proxy's and a retrying client's added.
SDK = {
    "authorization": f"Bearer {ALICE.key}",
    "accept": "application/json",
    "idempotency-key": "order-7",
    "openai-beta": "x",
    "openai-organization": "org-1",
    "openai-project": "p1",
    "x-stainless-arch": "unknown",
    "x-stainless-custom-poll-interval": "1000",
    "x-stainless-helper-method": "stream",
    "x-stainless-lang": "js",
    "x-stainless-os": "Unknown",
    "x-stainless-package-version": "6.49.0",
    "x-stainless-poll-helper": "true",
    "x-stainless-retry-count": "0",
    "x-stainless-runtime": "browser:chrome",
    "x-stainless-runtime-version": "156.0.0",
    "x-stainless-timeout": "600",
}
ASK = """async ([url, method, headers, body]) => {
    const answer = await fetch(url, { method, headers, body });
    const reader = answer.body.getReader();
    const text = new TextDecoder().decode((await reader.read()).value);
    await reader.cancel();
    return { status: answer.status, headers: Object.fromEntries(answer.headers), text };
}"""


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The origin of another server."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "index.html").write_text("<title>A site</title>")
    serve = functools.partial(_Silent, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def queue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with start_or_skip(lambda: RedisServer.start(tmp_path_factory.mktemp("redis"))) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(site: str, queue: RedisServer) -> Iterator[Gateway]:
    environment = {
        "LTXQ_URL": queue.url,
        "LTXQ_DEFAULT_MODEL": "instant",
        "LTXQ_API_KEYS": ALICE.entry,
        "LTXQ_CORS_ORIGINS": site,
        "LTXQ_RATE_LIMIT": "20/hour",
    }
    with Gateway(environment) as running:
        yield running


@pytest.fixture(scope="module")
def page(site: str) -> Iterator[Page]:
    with chromium() as browser:
        page = browser.new_page()
        page.goto(site)
        yield page


def ask(page: Page, url: str, method: str = "GET", **what: Any) -> dict[str, Any]:
    answer: dict[str, Any] = page.evaluate(
        ASK, [url, method, {**SDK, **what.get("headers", {})}, what.get("body")]
    )
    return answer


def test_what_an_sdk_sends_arrives(page: Page, gateway: Gateway) -> None:
    headers = {"content-type": "application/json"}
    made = ask(page, f"{gateway.api}/videos", "POST", headers=headers, body='{"prompt": "a fox"}')
    assert made["status"] == 200, made
    assert made["headers"]["openai-poll-after-ms"]
    video = f"{gateway.api}/videos/{page.evaluate('JSON.parse', made['text'])['id']}"
    assert ask(page, video, headers={"cache-control": "no-cache"})["status"] == 200
    following = {"accept": "text/event-stream", "last-event-id": "7", "cache-control": "no-cache"}
    events = ask(page, f"{video}/events", headers=following)
    assert events["headers"]["content-type"].startswith("text/event-stream")
    unfinished = ask(page, f"{video}/content", headers={"range": "bytes=0-9"})
    assert unfinished["status"] == 409
    assert ask(page, video, "DELETE")["status"] == 200


def test_every_error_can_be_read(page: Page, gateway: Gateway) -> None:
    videos, headers = f"{gateway.api}/videos", {"content-type": "application/json"}
    codes = {
        "unauthorized": ask(page, videos, headers={"authorization": "Bearer wrong"}),
        "invalid_request": ask(page, videos, "POST", headers=headers, body='{"prompt": ""}'),
        "too_large": ask(page, videos, "POST", headers=headers, body="x" * 600_000),
        "not_found": ask(page, f"{gateway.api}/nothing"),
        "method_not_allowed": ask(page, f"{gateway.api}/models", "DELETE"),
        "job_not_found": ask(page, f"{videos}/video_1"),
    }
    for code, answer in codes.items():
        assert f'"code":"{code}"' in answer["text"]
    for _ in range(25):
        full = ask(page, videos, "POST", headers=headers, body="{}")
    assert full["status"] == 429
    assert int(full["headers"]["retry-after"]) > 0


def test_a_failure_of_the_gateway_can_be_read(
    page: Page, site: str, tmp_path: Path, queue: RedisServer
) -> None:
    environment = {"LTXQ_URL": "redis://127.0.0.1:1/0", "LTXQ_CORS_ORIGINS": site}
    with Gateway(environment) as away:
        answer = ask(page, f"{away.api}/videos")
        assert (answer["status"], answer["headers"]["retry-after"]) == (503, "2")


def test_an_origin_that_is_not_named_is_refused(page: Page, queue: RedisServer) -> None:
    environment = {"LTXQ_URL": queue.url, "LTXQ_CORS_ORIGINS": "https://app.example.com"}
    with Gateway(environment) as other:
        failed = page.evaluate(
            "url => fetch(url, { headers: { 'x-a': 'b' } }).catch((error) => error.name)",
            f"{other.api}/models",
        )
        assert failed == "TypeError"
        asked = {"Origin": "https://evil.example.com", "Access-Control-Request-Method": "GET"}
        refused = other.ask("OPTIONS", "/v1/models", headers=asked)
        assert refused.json()["error"]["code"] == "wrong_origin"
        assert "access-control-allow-origin" not in refused.headers
        allowed = {"Origin": "https://app.example.com", "Host": "evil.example.com"}
        wrong = other.ask("GET", "/v1/models", headers=allowed)  # the guard refuses it
        assert wrong.status_code == 403
        assert wrong.headers["access-control-allow-origin"] == "https://app.example.com"
        assert "access-control-allow-credentials" not in wrong.headers
