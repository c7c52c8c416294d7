"""A gateway behind a real nginx with its defaults: the page, events, the description, and what is
told where it cannot work.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
from playwright.sync_api import Browser, Page, expect
from test_client import LedgerWorker

from browser import chromium
from gateways import Gateway
from ltxq import Client
from ltxq.errors import InvalidRequest
from ltxq.settings import Settings
from ltxq_worker.embedded.servers import RedisServer
from nginx import nginx
from servers import start_or_skip

PATIENCE_MS = 10_000
expect.set_options(timeout=PATIENCE_MS)

HOSTS = {
    "its default Host": "",
    "$host, without the port": "proxy_set_header Host $host;",
    "$http_host": "proxy_set_header Host $http_host;",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with start_or_skip(lambda: RedisServer.start(tmp_path_factory.mktemp("redis"))) as running:
        yield running


@pytest.fixture(scope="module")
def started(server: RedisServer) -> Iterator[Gateway]:
    """Without API keys."""
    with Gateway({"LTXQ_URL": server.url, "LTXQ_DEFAULT_MODEL": "instant"}) as running:
        yield running


@pytest.fixture
def gateway(started: Gateway, server: RedisServer) -> Gateway:
    with redis.Redis.from_url(server.url, socket_timeout=5) as connection:
        connection.flushdb()
    return started


@pytest.fixture
def worker(server: RedisServer) -> Iterator[LedgerWorker]:
    made = LedgerWorker(Settings(url=server.url))
    yield made
    made.ledger.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """To it `ltxq.example` is this machine."""
    with chromium("--host-resolver-rules=MAP ltxq.example 127.0.0.1") as started:
        yield started


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    opened = browser.new_context().new_page()
    opened.set_default_timeout(PATIENCE_MS)
    yield opened
    opened.context.close()


def port_of(gateway: Gateway) -> int:
    return urlsplit(gateway.url).port or 0


def passing(gateway: Gateway, more: str = "", path: str = "/") -> str:
    """A location whose path is taken off."""
    return f"location {path} {{ proxy_pass http://127.0.0.1:{port_of(gateway)}/; {more} }}"


def submit(page: Page, prompt: str) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Make the clip").click()


@pytest.mark.parametrize("path", ["/", "/ltxq/"])
@pytest.mark.parametrize("host", HOSTS)
def test_the_page_works_and_events_arrive_at_once(
    gateway: Gateway, worker: LedgerWorker, page: Page, tmp_path: Path, host: str, path: str
) -> None:
    with nginx(tmp_path, passing(gateway, HOSTS[host], path)) as port:
        page.goto(f"http://localhost:{port}{path}")
        expect(page.get_by_text("No worker is ready")).to_be_visible()
        expect(page.locator("#unloaded")).to_have_count(0)
        submit(page, "a red fox")
        item = page.locator("#queue > li")
        expect(item).to_contain_text("Next in the queue")
        page.route(re.compile(r"/v1/jobs\?"), lambda route: route.abort())  # events alone
        worker.start(job_id := item.get_attribute("data-id") or "")
        worker.report(job_id, "denoise", 3, 8, 0.4)
        expect(item).to_contain_text("Denoising 3/8")
        page.goto("about:blank")


def test_try_it_out_calls_with_the_prefix(gateway: Gateway, page: Page, tmp_path: Path) -> None:
    with nginx(tmp_path, passing(gateway, path="/ltxq/")) as port:
        page.goto(f"http://localhost:{port}/ltxq/docs")
        operation = page.locator("#operations-jobs-listModels")
        operation.locator("button.opblock-summary-control").click()
        operation.get_by_role("button", name="Try it out").click()
        with page.expect_response("**/v1/models") as asked:
            operation.get_by_role("button", name="Execute").click()
        assert asked.value.url == f"http://localhost:{port}/ltxq/v1/models"
        assert asked.value.status == 200


def test_a_client_works_with_the_prefix_in_its_url(gateway: Gateway, tmp_path: Path) -> None:
    with (
        nginx(tmp_path, passing(gateway, path="/ltxq/")) as port,
        Client(f"http://127.0.0.1:{port}/ltxq") as client,
    ):
        job = client.submit("a fox")
        assert next(iter(client.watch(job.id))).state == "queued"
        client.delete(job.id)
        assert not client.list().jobs


def test_a_body_that_the_proxy_refuses_is_told_plainly(
    gateway: Gateway, page: Page, tmp_path: Path
) -> None:
    with nginx(tmp_path, f"client_max_body_size 1k; {passing(gateway)}") as port:
        with (
            Client(f"http://127.0.0.1:{port}") as client,
            pytest.raises(InvalidRequest, match=r"A proxy in front of the gateway at .* refuses"),
        ):
            client.submit("x" * 2000)
        page.goto(f"http://localhost:{port}/")
        submit(page, "x" * 2000)
        expect(page.locator("#form-error")).to_contain_text("A proxy in front of the gateway")
        expect(page.locator("#form-error")).to_contain_text("client_max_body_size")


def test_a_name_of_another_machine_needs_keys_and_the_page_says_so(
    gateway: Gateway, page: Page, tmp_path: Path
) -> None:
    with nginx(tmp_path, passing(gateway)) as port:  # the Host is 127.0.0.1 then
        page.goto(f"http://ltxq.example:{port}/")
        submit(page, "a red fox")
        told = page.locator("#form-error")
        expect(told).to_contain_text(f"This page's origin is http://ltxq.example:{port}")
        expect(told).to_contain_text("ltxq key NAME")
        expect(told).not_to_contain_text("Host $http_host;")  # it would be refused for its Host
    with nginx(tmp_path, passing(gateway, HOSTS["$http_host"])) as port:
        page.goto(f"http://ltxq.example:{port}/")
        expect(page.locator("body")).to_contain_text(f"not ltxq.example:{port}")
        expect(page.locator("body")).to_contain_text("ltxq key NAME")


def test_a_page_whose_script_does_not_load_says_what_to_do(
    gateway: Gateway, page: Page, tmp_path: Path
) -> None:
    below = f"{passing(gateway)} location /page/app.js {{ return 403; }}"
    with nginx(tmp_path, below) as port:
        page.goto(f"http://localhost:{port}/")
        expect(page.get_by_text("its script did not load")).to_be_visible()
        expect(page.get_by_text("proxy_set_header Host $http_host;")).to_be_visible()


@pytest.mark.parametrize(
    "answer",
    ["204", "200 null", '200 \'{"data": 5, "jobs": 5}\'', "200 '<html>Log in</html>'", "302 /"],
)
def test_an_answer_that_is_no_gateways_is_told(
    gateway: Gateway, page: Page, tmp_path: Path, answer: str
) -> None:
    with nginx(tmp_path, f"{passing(gateway)} location /v1/ {{ return {answer}; }}") as port:
        page.goto(f"http://localhost:{port}/")
        submit(page, "a red fox")
        for told in (page.locator("#form-error"), page.get_by_role("alert").last):
            expect(told).to_contain_text("The answer is not from an ltxq gateway.")
        removed = page.evaluate(
            "() => import(`${location}page/api.js`).then((api) => api.remove('video_1'))"
            ".then(() => 'removed', (error) => error.message)"
        )
        assert (removed == "removed") == (answer == "204")
