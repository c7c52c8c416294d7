"""The table of what ltxq does on Redis has every command of its scripts."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from ltxq.ledger import PREFIX, queue_name
from ltxq.ledger.permissions import LEDGER, OPTIONAL, QUEUES, Role, calls


@pytest.mark.parametrize("role", ["client", "gateway", "worker"])
def test_every_command_of_the_scripts_is_declared(role: Role) -> None:
    lua = "".join(
        part.read_text()
        for part in files("ltxq.ledger").joinpath("script").iterdir()
        if part.name.endswith(".lua")
    )
    called = {name.lower() for name in re.findall(r"redis\.p?call\('([A-Z]+)'", lua)}
    assert len(called) > 30
    assert called - {call.command for call in calls(role, 0)} == {*OPTIONAL} & called


def test_the_probes_keys_are_of_this_contract() -> None:
    assert LEDGER.samples[0].startswith(PREFIX)
    assert QUEUES.samples[0] == queue_name("probe")
