"""The bucket in which clips are kept."""

from ltxq.storage.s3 import Storage, Stored

__all__ = ["Storage", "Stored"]
