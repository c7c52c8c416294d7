"""The Daydream Scope plugin: pipeline `ltx2-queue`, which plays clips that workers make.

Scope loads this module through the entry point in group `scope`, at every start: so it imports
nothing but Scope's marker. The pipeline and all it stands on are loaded when Scope asks for them.
"""

from __future__ import annotations

from collections.abc import Callable

import scope.core


@scope.core.hookimpl  # type: ignore[untyped-decorator]  # Scope has no types here
def register_pipelines(register: Callable[[type], None]) -> None:
    """Register the pipeline. Scope calls this more than once."""
    from ltxq.scope_plugin.pipeline import Ltx2QueuePipeline

    register(Ltx2QueuePipeline)
