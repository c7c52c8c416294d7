"""The base classes of pipelines and of their settings."""
