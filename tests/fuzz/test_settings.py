"""Settings of the wrong type: refused by the variable's name, and its value is told to nobody."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import strategies as st

from generated import count, fuzzed, numbers, texts
from ltxq.errors import ConfigurationError
from ltxq.ledger import Ledger
from ltxq.settings import Settings

SECRET = "Pl4ntedSecret"
NAMES = sorted(f"LTXQ_{name.upper()}" for name in Settings.model_fields)

values = st.one_of(
    texts.filter(lambda text: "\0" not in text),
    numbers.filter(lambda n: abs(n) < 10**300 or n != n).map(str),
    st.sampled_from(["\udcff\udc80", "~nobody-here/x", "inf", "-0", "true", "[]", '{"a": 1}']),
)
parts = st.sampled_from(
    ["", "//", ":", "@", "[", "]", "/", "?", "#", "%", "℀", "redis:", "rediss:", "host", "6379",
     "99999", "-1", "?db=x", "?socket_timeout=x", "?foo=bar", "?health_check_interval=[", "\t"]
)  # fmt: skip
urls = st.lists(parts, max_size=4).map("".join)


@fuzzed(0.15, name=st.sampled_from(NAMES), value=values)
def test_a_setting_is_taken_or_its_variable_named(name: str, value: str) -> None:
    count()
    with patch.dict(os.environ, {name: value}):
        try:
            Settings.read()
        except ConfigurationError as exc:
            assert name in exc.message


@fuzzed(0.1, before=urls, after=urls)
def test_a_url_with_a_password_is_taken_or_refused_without_showing_it(
    before: str, after: str
) -> None:
    count()
    url = f"redis://{before}:{SECRET}{after}"
    with patch.dict(os.environ, {"LTXQ_URL": url}):
        try:
            settings = Settings.read()
            Ledger(settings).close()
        except ConfigurationError as exc:
            assert "LTXQ_URL" in exc.message
            assert SECRET not in str(exc)
            assert SECRET not in repr(exc.__cause__)
            return
    assert SECRET not in repr(settings) + str(settings)


def test_a_home_of_nobody_is_refused_by_its_variable() -> None:
    with (
        patch.dict(os.environ, {"LTXQ_MODEL_DIR": "~nobody-here/models"}),
        pytest.raises(ConfigurationError, match="LTXQ_MODEL_DIR"),
    ):
        Settings.read()
    assert Settings(model_dir=Path("~/models")).model_dir == Path("~/models")
