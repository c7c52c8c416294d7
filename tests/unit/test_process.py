"""A worker's place: whose folder it may lock."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ltxq.errors import ConfigurationError
from ltxq_worker.process import Place, lock_place


def test_a_spool_that_another_user_made_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(name="cpu0@host", device="cpu", gpu=None)
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(ConfigurationError, match="belongs to another user"):
        lock_place(place, tmp_path)
    assert list(tmp_path.iterdir()) == []
