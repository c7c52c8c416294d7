"""The base class of pipelines, and of their schemas."""
