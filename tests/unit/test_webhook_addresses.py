"""Where a webhook may go: which addresses count as public, and how a URL is taken apart."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from pydantic import ValidationError

from ltxq.errors import ConfigurationError
from ltxq.settings import Settings
from ltxq_worker.webhooks.safe_http import NotSent, Outbound, Target, is_public

PUBLIC = ["8.8.8.8", "93.184.215.14", "2606:4700:4700::1111", "::ffff:8.8.8.8"]
PRIVATE = [
    *("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fd12::1", "fc00::1"),
    *("127.0.0.1", "127.255.255.254", "::1", "0.0.0.0", "0.1.2.3", "::"),  # noqa: S104
    *("169.254.1.1", "fe80::1", "fe80::1%1", "fec0::1"),
    *("169.254.169.254", "fd00:ec2::254", "168.63.129.16", "100.100.100.200", "192.0.0.192"),
    *("100.64.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "2001:db8::1"),
    *("224.0.0.1", "239.1.1.1", "ff02::1", "ff0e::1", "240.0.0.1", "255.255.255.255"),
    *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:10.0.0.1", "::127.0.0.1"),
    *("64:ff9b::a00:1", "2002:a00:1::", "2001:0:4136:e378:8000:63bf:3fff:fdd2"),
    *("64:ff9b:1::a00:1", "3fff::1", "100::1", "5f00::1", "192.88.99.1", "fe80::ffff:8.8.8.8"),
]


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_may_be_reached(address: str) -> None:
    assert is_public(ip_address(address))
    assert Outbound().addresses(Target.parse(f"http://{bracketed(address)}/")) == [address]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_may_not(address: str) -> None:
    assert not is_public(ip_address(address))
    with pytest.raises(NotSent, match=r"private|not a known host"):
        Outbound().addresses(Target.parse(f"http://{bracketed(address)}/"))


def bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@pytest.mark.parametrize("host", ["127.1", "0x7f.0.0.1", "0177.0.0.1", "2130706433", "0"])
def test_other_spellings_of_loopback_are_loopback(host: str) -> None:
    with pytest.raises(NotSent, match="private"):
        Outbound().addresses(Target.parse(f"http://{host}/"))


def test_a_network_allows_what_is_in_it_alone() -> None:
    outbound = Outbound(Settings(webhook_allow="10.1.0.0/16, fd00::/8").webhook_allow)
    assert outbound.addresses(Target.parse("http://10.1.2.3/")) == ["10.1.2.3"]
    assert outbound.addresses(Target.parse("http://[fd00::1]/")) == ["fd00::1"]
    assert outbound.addresses(Target.parse("http://[::ffff:10.1.2.3]/"))
    for refused in ("10.2.0.1", "[fe80::1]", "127.0.0.1"):
        with pytest.raises(NotSent, match="private"):
            outbound.addresses(Target.parse(f"http://{refused}/"))


@pytest.mark.parametrize(
    ("url", "host", "path"),
    [
        ("http://h.example", "h.example", "/"),
        ("https://H.Example:443/a?b=c#d", "h.example", "/a?b=c"),
        ("http://h.example:8080/ä b\x7f%20", "h.example:8080", "/%C3%A4%20b%7F%20"),
        ("http://bücher.example/", "xn--bcher-kva.example", "/"),
        ("http://[2606:4700::1]:8080?x=\u2028", "[2606:4700::1]:8080", "/?x=%E2%80%A8"),
    ],
)
def test_a_url_becomes_what_http_can_send(url: str, host: str, path: str) -> None:
    target = Target.parse(url)
    assert (target.host_header, target.path) == (host, path)


@pytest.mark.parametrize(
    "url", ["ftp://h/", "http:///x", "http://h:99999/", "http://[::1", "http://a..b/", "", "x",
            "http://user@h/", "http://user:password@h/"],
)  # fmt: skip
def test_a_url_that_cannot_be_sent_to_is_refused(url: str) -> None:
    with pytest.raises(NotSent):
        Target.parse(url)


@pytest.mark.parametrize(
    ("allow", "receivers"),
    [
        ("10.0.0.0/8", (ip_network("10.0.0.0/8"),)),
        ("Hooks.internal, ::1,", ("hooks.internal", ip_network("::1"))),
        ("my_host", ("my_host",)),
        (("10.0.0.0/8", "Host"), (ip_network("10.0.0.0/8"), "host")),
        ("", ()),
    ],
)
def test_hosts_and_networks_may_be_allowed(allow: Any, receivers: tuple[Any, ...]) -> None:
    assert Settings(webhook_allow=allow).webhook_allow == receivers


@pytest.mark.parametrize("allow", ["10.0.0.0/33", "10.0.0", "http://host", "host:80", "a b"])
def test_what_is_neither_host_nor_network_is_refused(allow: str) -> None:
    with pytest.raises(ValidationError, match="no host name and no network"):
        Settings(webhook_allow=allow)


@pytest.mark.parametrize("secret", ["secret", "whsec_", "whsec_c2hvcnQ=", "whsec_Möwe" + "A" * 40])
def test_a_secret_of_another_form_is_refused_and_not_shown(
    secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LTXQ_WEBHOOK_SECRET", secret)
    with pytest.raises(ConfigurationError, match="LTXQ_WEBHOOK_SECRET: must be whsec_") as caught:
        Settings.read()
    assert secret == "whsec_" or secret not in str(caught.value)


def test_a_secret_is_not_in_the_settings_repr() -> None:
    settings: Any = Settings(webhook_secret="whsec_" + "A" * 40)
    assert "AAAA" not in repr(settings)
