"""A model of a few megabytes with random weights, for demos and tests."""
