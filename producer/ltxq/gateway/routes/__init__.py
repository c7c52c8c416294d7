"""The paths that the gateway serves."""
