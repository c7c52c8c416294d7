"""All that touches Celery's insides: which messages a worker takes, and when it connects again."""
