"""The environment's HTTP proxies: never for this machine, and told by their variable."""

from __future__ import annotations

import pytest

from ltxq import Client
from ltxq.errors import ConfigurationError, QueueUnavailable
from ltxq.proxies import check_proxies, is_here, is_proxied, trust_env

DEAD = "http://127.0.0.1:1"
SOCKS = "socks5://user:s3cret@127.0.0.1:1"


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://localhost:8080", True),
        ("http://127.0.0.2:8080/x", True),
        ("http://[::1]:8080", True),
        ("https://clips.example.com", False),
        ("http://10.0.0.5:9000", False),
    ],
)
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_no_proxy_is_used_for_this_machine(
    url: str, here: bool, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, DEAD)
    assert is_here(url) == here
    assert trust_env(url) != here
    assert is_proxied(url.replace("https", "http")) != here
    monkeypatch.setenv("NO_PROXY", "clips.example.com,10.0.0.5")
    assert not is_proxied(url)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "https_proxy", "ALL_PROXY"])
@pytest.mark.parametrize(
    "value", [SOCKS, "ftp://s3cret", "http://s3cret[", "http://", "http://a:s3cret/b@c", "s3 cret"]
)
def test_a_proxy_that_cannot_be_used_is_told_by_its_variable(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    for call in (check_proxies, lambda: Client("http://clips.example.com")):
        with pytest.raises(ConfigurationError, match=f"^{variable} ") as told:
            call()
        assert "s3cret" not in str(told.value)
    Client("http://127.0.0.1:1").close()


def test_a_gateway_that_does_not_answer_through_a_proxy_is_not_blamed_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", DEAD)
    with (
        Client("http://clips.invalid") as client,
        pytest.raises(QueueUnavailable, match="The request goes through the proxy in HTTP_PROXY"),
    ):
        client.get("video_1")
