"""All code that depends on Celery's internals: taking messages, remote control, reconnecting."""
