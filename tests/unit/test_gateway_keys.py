"""API keys are stored as hashes and compared whole. Hosts: which ones are loopback."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest
from pydantic import SecretStr, ValidationError

from ltxq import cli
from ltxq.errors import ConfigurationError
from ltxq.gateway.access.browser_guard import is_loopback
from ltxq.gateway.access.keys import ApiKeys, new_key
from ltxq.settings import Settings


def test_a_key_is_known_by_the_entry_made_with_it() -> None:
    alice, bob = new_key("alice"), new_key("bob-2.x")
    keys = ApiKeys(f"{alice.entry},{bob.entry}")
    assert (keys.owner(alice.key), keys.owner(bob.key)) == ("alice", "bob-2.x")
    for wrong in ("", "ltxq_", alice.key[:-1], alice.key + "x", alice.key.upper(), alice.entry):
        assert keys.owner(wrong) is None


def test_the_entry_holds_the_hash_and_not_the_key() -> None:
    made = new_key("alice")
    assert made.entry == f"alice={hashlib.sha256(made.key.encode()).hexdigest()}"
    assert made.key not in made.entry
    assert len(made.key) == len("ltxq_") + 43  # 256 bits
    assert new_key("alice").key != made.key


def test_a_name_may_have_two_keys_while_one_replaces_the_other() -> None:
    old, new = new_key("alice"), new_key("alice")
    keys = ApiKeys(f"{old.entry}\n {new.entry}, ")
    assert keys.owner(old.key) == keys.owner(new.key) == "alice"


def test_empty_settings_have_no_keys() -> None:
    assert not ApiKeys("")
    assert not ApiKeys(" ,\n")
    assert ApiKeys(new_key("alice").entry)


@pytest.mark.parametrize("entry", ["alice", "alice=", "alice=s3cret", "=" + "0" * 64,
                                   "Alice=" + "0" * 64, "alice=" + "G" * 64])  # fmt: skip
def test_a_wrong_entry_is_reported_by_its_position_and_never_shown(entry: str) -> None:
    settings = Settings(api_keys=SecretStr(f"{new_key('bob').entry},{entry}"))
    with pytest.raises(ConfigurationError, match="LTXQ_API_KEYS: entry 2 is not") as caught:
        ApiKeys.from_settings(settings)
    assert "s3cret" not in str(caught.value)


def test_an_unusual_key_is_unknown_and_no_error() -> None:
    keys = ApiKeys(new_key("alice").entry)
    for strange in ("\ud800", "x" * 10**6, "\0", "ключ"):
        assert keys.owner(strange) is None


def test_the_command_shows_a_key_once_with_its_entry(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["key", "alice", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert ApiKeys(made["entry"]).owner(made["key"]) == "alice"
    assert cli.main(["key", "alice"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("ltxq_")
    assert "alice=" in said.err
    assert cli.main(["key", "Alice Smith"]) == 2


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "app.localhost", "127.0.0.1",
                                  "127.8.9.1", "::1", "[::1]", "localhost."])  # fmt: skip
def test_names_of_this_machine_are_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::",  # noqa: S104
                                   "10.0.0.1", "example.com", "localhost.evil.com",
                                  "127.0.0.1.evil.com", "", "evil.com#localhost"])  # fmt: skip
def test_other_names_are_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_only_origins_are_accepted_as_origins() -> None:
    two = Settings(cors_origins="https://app.example.com, http://localhost:3000")
    assert two.cors_origins == ("https://app.example.com", "http://localhost:3000")
    as_browsers = Settings(cors_origins="https://App.Example.com:443,http://[::1]:80,http://a:443")
    assert as_browsers.cors_origins == ("https://app.example.com", "http://[::1]", "http://a:443")
    assert Settings().cors_origins == ()
    for wrong in ("*", "app.example.com", "https://app.example.com/", "null"):
        with pytest.raises(ValidationError, match="entry 1 is not an origin"):
            Settings(cors_origins=wrong)


def test_without_its_packages_the_command_says_which_extra_is_missing() -> None:
    program = "import sys; sys.modules['fastapi'] = None; from ltxq.cli import main; " \
        "sys.exit(main(['gateway']))"  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "pip install 'ltxq[gateway]'" in done.stderr
