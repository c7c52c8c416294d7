"""tests/gpu from a plain checkout, on a machine that has torch, transformers and pytest and may
lack what other tests need: `python -m pytest tests/gpu`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
TIMEOUT = "timeout"  # pytest-timeout's name, and that of its setting and its mark


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    if not pluginmanager.hasplugin(TIMEOUT):
        parser.addini(TIMEOUT, "seconds; without pytest-timeout of no effect")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full_size: builds a whole model; needs a card of 80 GB")
    if not config.pluginmanager.hasplugin(TIMEOUT):
        config.addinivalue_line("markers", f"{TIMEOUT}: without pytest-timeout of no effect")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Warnings are shown and are no errors: torch warns of a machine's driver and of tools that it
    calls prototypes, set_sync_debug_mode among them.
    """
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))
