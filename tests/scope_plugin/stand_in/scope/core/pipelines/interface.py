"""The base class of pipelines."""

from __future__ import annotations

from typing import Any


class Pipeline:
    def __init__(self, node_id: str = "", config: dict[str, Any] | None = None) -> None:
        self.node_id = node_id
        self.config = config or {}

    @classmethod
    def get_config_class(cls) -> Any:
        return None

    def prepare(self, **parameters: Any) -> None:
        """Requests no input frames."""

    def __call__(self, **parameters: Any) -> dict[str, Any]:
        raise NotImplementedError
