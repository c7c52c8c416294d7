"""The bucket in which clips are kept."""

from ltxq.storage.operations import OPERATIONS, Role, policy
from ltxq.storage.s3 import Storage, Stored

__all__ = ["OPERATIONS", "Role", "Storage", "Stored", "policy"]
