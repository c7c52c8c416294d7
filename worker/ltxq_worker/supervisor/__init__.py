"""The process that starts the workers of a host, watches them and serves metrics. No torch."""
