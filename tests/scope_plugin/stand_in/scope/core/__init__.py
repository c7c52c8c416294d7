"""The marker for plugin hooks."""

import pluggy

hookimpl = pluggy.HookimplMarker("scope")
