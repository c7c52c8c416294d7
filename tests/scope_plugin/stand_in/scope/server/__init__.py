"""The loop that calls a pipeline, and what goes through its queues."""
