"""A submission arrives and no answer comes back, however often it is sent: every door says that the
job may be there, and trying again as it says makes no second one.
"""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from gateways import Gateway
from ltxq import AsyncClient, Client
from ltxq.cli import main
from ltxq.errors import QueueUnavailable
from ltxq.job import Job
from proxy import Proxy
from variants import variants

AT_REDIS, AT_GATEWAY = b"\r\nsubmit\r\n", b"POST /v1/jobs"
FOX = {"prompt": "a fox", "seed": None}

Submit = Callable[[str, str | None], Job]


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    with Proxy(redis.connection.parse_url(redis_url)["port"]) as made:
        yield made


@pytest.fixture
def url(proxy: Proxy, redis_url: str) -> str:
    """The same database, behind the proxy."""
    return f"redis://127.0.0.1:{proxy.port}/{redis.connection.parse_url(redis_url)['db']}"


@pytest.fixture
def queue(redis_url: str) -> Iterator[Client]:
    """The queue, plainly reached."""
    with Client(redis_url) as client:
        client.models()  # Redis has the script now: no answer is lost that says it has not
        yield client


@pytest.fixture
def gateway(redis_url: str) -> Iterator[Gateway]:
    with Gateway({"LTXQ_URL": redis_url, "LTXQ_DEFAULT_MODEL": "instant"}) as running:
        yield running


def with_client(url: str, key: str | None) -> Job:
    with Client(url) as client:
        return client.submit("a fox", seed=None, idempotency_key=key)


def with_async_client(url: str, key: str | None) -> Job:
    async def submit() -> Job:
        async with AsyncClient(url) as client:
            return await client.submit("a fox", seed=None, idempotency_key=key)

    return asyncio.run(submit())


def with_retry(url: str, key: str | None) -> Job:
    with Client(url) as client:
        (job,) = client.list(state="cancelled").jobs
        return client.retry(job.id, idempotency_key=key)


def only_one_comes_of(
    submit: Submit, url: str, queue: Client, proxy: Proxy, needle: bytes, key: str | None
) -> None:
    proxy.lose_answers_to(needle)
    with pytest.raises(QueueUnavailable, match="may have been accepted") as lost:
        submit(url, key)
    proxy.lose_nothing()
    (arrived,) = queue.list(state="queued").jobs
    again = lost.value.idempotency_key
    assert again is not None
    assert again == key or key is None
    assert again in str(lost.value)
    assert str(lost.value).count("may have been accepted") == 1
    assert submit(url, again).id == arrived.id
    assert [job.id for job in queue.list(state="queued").jobs] == [arrived.id]
    assert submit(url, None).id != arrived.id  # another wish, of its own key


@pytest.mark.parametrize("submit", [with_client, with_async_client, with_retry])
@pytest.mark.parametrize("key", variants(None, extended=("order-7",)))
def test_over_redis(submit: Submit, key: str | None, proxy: Proxy, url: str, queue: Client) -> None:
    queue.cancel(queue.submit("a bear").id)
    only_one_comes_of(submit, url, queue, proxy, AT_REDIS, key)


@pytest.mark.parametrize("submit", [with_client, with_retry])
def test_over_http(submit: Submit, gateway: Gateway, queue: Client) -> None:
    queue.cancel(queue.submit("a bear", model="instant").id)
    with Proxy(int(gateway.url.rpartition(":")[2])) as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        only_one_comes_of(submit, url, queue, proxy, AT_GATEWAY, None)


def test_from_a_gateway_on(proxy: Proxy, url: str, queue: Client) -> None:
    with Gateway({"LTXQ_URL": url, "LTXQ_DEFAULT_MODEL": "instant"}) as gateway:
        only_one_comes_of(with_client, gateway.url, queue, proxy, AT_REDIS, None)


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/videos"])
@pytest.mark.parametrize("key", variants("order-7", extended=(None,)))
def test_a_plain_request_to_a_gateway(
    path: str, key: str | None, proxy: Proxy, url: str, queue: Client
) -> None:
    with Gateway({"LTXQ_URL": url, "LTXQ_DEFAULT_MODEL": "instant"}) as gateway:

        def post(key: str | None) -> tuple[int, dict[str, object]]:
            headers = {"Idempotency-Key": key} if key else {}
            answer = gateway.ask("POST", path, json=FOX, headers=headers)
            return answer.status_code, answer.json()

        proxy.lose_answers_to(AT_REDIS)
        status, body = post(key)
        proxy.lose_nothing()
        error = body["error"]
        assert isinstance(error, dict)
        assert (status, error["code"]) == (503, "queue_unavailable")
        assert error["message"].endswith("The job may have been accepted all the same.")
        again = error["idempotency_key"]
        assert again == key or key is None
        assert again in error["hint"]
        (arrived,) = queue.list().jobs
        assert post(again)[1]["id"] == arrived.id
        assert len(queue.list().jobs) == 1


def test_with_the_command_line(
    proxy: Proxy,
    url: str,
    queue: Client,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LTXQ_URL", url)
    words = ["submit", "a fox", "--seed", "random"]
    for retried in (False, True):
        if retried:
            (job,) = queue.list().jobs
            queue.cancel(job.id)
            words = ["retry", job.id]
        proxy.lose_answers_to(AT_REDIS)
        assert main(words) == 4
        proxy.lose_nothing()
        (arrived,) = queue.list(state="queued").jobs
        shown = capsys.readouterr().err
        assert "may have been accepted" in shown
        options = shown.partition("Run the same command again with: ")[2].splitlines()[0]
        assert main([*words, *shlex.split(options)]) == 0
        assert capsys.readouterr().out == f"{arrived.id}\n"
        assert [job.id for job in queue.list(state="queued").jobs] == [arrived.id]


@pytest.mark.extended
def test_the_command_line_says_it_in_json(
    proxy: Proxy,
    url: str,
    queue: Client,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LTXQ_URL", url)
    proxy.lose_answers_to(AT_REDIS)
    assert main(["submit", "a fox", "--json"]) == 4
    proxy.lose_nothing()
    error = json.loads(capsys.readouterr().out)["error"]
    key = error["idempotency_key"]
    assert main(["submit", "a fox", "--json", "--idempotency-key", key]) == 0
    (arrived,) = queue.list().jobs
    assert json.loads(capsys.readouterr().out)["id"] == arrived.id


@pytest.mark.extended
def test_in_the_midst_of_a_batch(
    proxy: Proxy,
    url: str,
    queue: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LTXQ_URL", url)
    file = tmp_path / "some clips.jsonl"
    prompts = [f"clip {number}" for number in range(1, 6)]
    lines = [json.dumps({"prompt": prompt}) for prompt in prompts]
    file.write_text("\n".join([lines[0], "", *lines[1:]]))
    proxy.lose_answers_to(b'"clip 3"')
    assert main(["batch", str(file)]) == 4
    proxy.lose_nothing()
    shown = capsys.readouterr()
    assert len(shown.out.split()) == 2
    assert "Line 4 may have been submitted" in shown.err
    command = shown.err.partition("Continue with: ltxq ")[2].splitlines()[0]
    assert main(shlex.split(command)) == 0
    ids = shown.out.split() + capsys.readouterr().out.split()
    made = queue.list(order="asc").jobs
    assert [job.request.prompt for job in made] == prompts
    assert [job.id for job in made] == ids
