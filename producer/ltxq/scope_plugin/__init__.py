"""The Daydream Scope plugin: pipeline `ltx2-queue` plays clips that an ltxq queue generates.

Scope imports this module at every start (entry point group `scope`), so it imports nothing but
Scope's hook marker. The pipeline's modules are imported when Scope registers it.
"""

from __future__ import annotations

from collections.abc import Callable

import scope.core


@scope.core.hookimpl  # type: ignore[untyped-decorator]  # Scope has no types here
def register_pipelines(register: Callable[[type], None]) -> None:
    """Register the pipeline. Scope calls this more than once."""
    from ltxq.scope_plugin.pipeline import Ltx2QueuePipeline

    register(Ltx2QueuePipeline)
