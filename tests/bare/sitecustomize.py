"""Loaded at the start of every Python process that has this folder on its PYTHONPATH: a machine for
measuring, where ltxq is not installed, nor what its queue, gateway and tests need. The variable
BARE_HAS names packages, with commas between, that it has all the same.
"""

import importlib.machinery
import os
import sys

LACKING = {
    *("celery", "kombu", "redis", "boto3", "botocore", "tenacity", "pydantic_settings"),
    *("fastapi", "uvicorn", "prometheus_client", "standardwebhooks", "flower"),
    *("pytest_timeout", "xdist", "moto", "playwright", "schemathesis"),
} - set(os.environ.get("BARE_HAS", "").split(","))


class Bare(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in LACKING:
            return None
        return super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Bare
# An installation for development is two folders on the path, behind those of PYTHONPATH.
given = {os.path.abspath(folder) for folder in os.environ["PYTHONPATH"].split(os.pathsep)}
sys.path[:] = [
    folder
    for folder in sys.path
    if not folder.endswith(("/producer", "/worker")) or os.path.abspath(folder) in given
]
