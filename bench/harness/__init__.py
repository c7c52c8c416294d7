"""What `bench/clip.py` and `bench/busy.py` stand on: models without files, arms, clocks, tables.

Needs torch, transformers, pydantic, numpy, av, ltx-core and ltx-pipelines, and a checkout; neither
Redis nor Celery.
"""
