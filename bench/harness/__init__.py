"""The modules of `bench/clip.py` and `bench/busy.py`: models without files, arms, clocks, tables.

Needs torch, transformers, pydantic, numpy, av, ltx-core and ltx-pipelines, and a checkout; neither
Redis nor Celery.
"""
