"""The S3 operations that ltxq makes, by role, and the IAM policy that allows them.

The probe makes each of them once (`probe.py`), errors name the right that is missing (`errors.py`),
and docs/operating.md shows the policies.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

Role = Literal["worker", "gateway"]
"""worker: a worker and its supervisor. gateway: a gateway, and a program that signs URLs and
deletes clips with `Client` over Redis."""

CHECKS = ".check/"  # the folder under the prefix for the objects of the probe


class Operation(NamedTuple):
    """A call of S3's API."""

    name: str  # as in S3's API
    action: str  # of IAM
    does: str  # "write an object"
    worker: str  # why a worker or a supervisor makes it; empty: it does not
    gateway: str  # the same for a gateway


OPERATIONS = (
    Operation("PutObject", "s3:PutObject", "write an object", "uploads", "the check alone"),
    Operation(
        "GetObject", "s3:GetObject", "read an object", "signed URLs", "signed URLs, proxying"
    ),
    Operation("HeadObject", "s3:GetObject", "find an object", "", "signed URLs, proxying"),
    Operation("CreateMultipartUpload", "s3:PutObject", "begin a large upload", "large files", ""),
    Operation("UploadPart", "s3:PutObject", "upload a part", "large files", ""),
    Operation(
        "CompleteMultipartUpload", "s3:PutObject", "finish a large upload", "large files", ""
    ),
    Operation(
        "AbortMultipartUpload",
        "s3:AbortMultipartUpload",
        "give up a large upload",
        "large files that fail",
        "",
    ),
    Operation("ListObjectsV2", "s3:ListBucket", "list objects", "orphaned objects", ""),
    Operation("DeleteObjects", "s3:DeleteObject", "delete objects", "clips", "clips"),
    Operation("DeleteObject", "s3:DeleteObject", "delete an object", "clips", "clips"),
)
BY_NAME = {operation.name: operation for operation in OPERATIONS}


def made_by(role: Role) -> tuple[Operation, ...]:
    """The operations of a role."""
    return tuple(operation for operation in OPERATIONS if getattr(operation, role))


def arn(action: str, bucket: str, prefix: str) -> str:
    """What an action is allowed on."""
    root = bucket if bucket.startswith("arn:") else f"arn:aws:s3:::{bucket}"
    return root if action == "s3:ListBucket" else f"{root}/{prefix}*"


def policy(role: Role, bucket: str, prefix: str) -> dict[str, Any]:
    """The IAM policy that allows exactly the operations of a role."""
    allowed = dict.fromkeys(operation.action for operation in made_by(role))
    # A gateway writes nothing but the probe's objects.
    folders = {"s3:PutObject": prefix + CHECKS} if role == "gateway" else {}
    statements: dict[str, dict[str, Any]] = {}
    for action in allowed:
        resource = arn(action, bucket, folders.get(action, prefix))
        statement = statements.setdefault(
            resource, {"Effect": "Allow", "Action": [], "Resource": resource}
        )
        statement["Action"].append(action)
        if action == "s3:ListBucket":
            statement["Condition"] = {"StringLike": {"s3:prefix": f"{prefix}*"}}
    return {"Version": "2012-10-17", "Statement": list(statements.values())}
