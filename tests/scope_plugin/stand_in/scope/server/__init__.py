"""The loop that calls a pipeline, and the packets in its queues."""
