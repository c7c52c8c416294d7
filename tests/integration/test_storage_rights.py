"""The rights that ltxq needs in the bucket: the policy of the documents is enough, and a missing
right is named. moto enforces the policy, as IAM does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
import pytest

from ltxq.errors import StorageRefused
from ltxq.storage import OPERATIONS, Role, Storage, policy
from ltxq.storage.s3 import PART
from servers import S3

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "operating.md"
Grant = Callable[[dict[str, Any]], None]


def documented(role: Role) -> dict[str, Any]:
    """The policy in the documents."""
    text = DOCUMENT.read_text()
    start = text.index(f"<!-- table: policy_{role} -->")
    block = text[start : text.index("<!-- end -->", start)]
    found: dict[str, Any] = json.loads(block.partition("```json\n")[2].partition("```")[0])
    return found


@pytest.fixture
def grant(moto: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Grant]:
    """Gives this test's credentials exactly the rights of a policy."""
    from moto import settings

    iam = boto3.Session().client("iam", endpoint_url=moto.endpoint, region_name="us-east-1")
    iam.create_user(UserName="ltxq")
    key = iam.create_access_key(UserName="ltxq")["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])

    def to(rights: dict[str, Any]) -> None:
        monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", float("inf"))
        iam.put_user_policy(UserName="ltxq", PolicyName="ltxq", PolicyDocument=json.dumps(rights))
        monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)

    with closing(iam):
        yield to
        monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", float("inf"))
        iam.delete_user_policy(UserName="ltxq", PolicyName="ltxq")
        iam.delete_access_key(UserName="ltxq", AccessKeyId=key["AccessKeyId"])
        iam.delete_user(UserName="ltxq")


def without(rights: dict[str, Any], action: str) -> dict[str, Any]:
    """A policy with one action less."""
    kept = []
    for statement in rights["Statement"]:
        actions = [one for one in statement["Action"] if one != action]
        if actions:
            kept.append({**statement, "Action": actions})
    return {**rights, "Statement": kept}


def test_the_documented_policy_is_enough_for_a_worker(
    moto: S3, grant: Grant, tmp_path: Path
) -> None:
    grant(documented("worker"))
    storage = Storage.from_settings(moto.settings())
    storage.check("worker")
    claim = f"video_1/{1:016x}"
    file = tmp_path / "clip.mp4"
    for size in (1, PART + 1):
        file.write_bytes(b"x" * size)
        storage.put(storage.clip_keys(claim).clip, file, "video/mp4")
    storage.mark(f"{storage.prefix}.queues/one")
    assert len(list(storage.list())) == 2
    assert storage.delete_clips([claim]) == {}
    storage.delete(storage.list())


def test_the_documented_policy_is_enough_for_a_gateway(moto: S3, grant: Grant) -> None:
    grant(documented("gateway"))
    storage = Storage.from_settings(moto.settings())
    storage.check("gateway")
    assert storage.delete_clips([f"video_1/{1:016x}"]) == {}
    with pytest.raises(StorageRefused, match=r"refused \w+ .*Allow s3:"):
        storage.check("worker")


@pytest.mark.parametrize("role", ["worker", "gateway"])
def test_a_missing_right_is_named_with_the_call(role: Role, moto: S3, grant: Grant) -> None:
    rights = policy(role, moto.bucket, "ltxq/")
    actions = {o.action for o in OPERATIONS if getattr(o, role)}
    for action in sorted(actions):
        grant(without(rights, action))
        with pytest.raises(StorageRefused) as caught:
            Storage.from_settings(moto.settings()).check(role)
        calls = {o.name for o in OPERATIONS if o.action == action}
        assert any(f"refused {call} (" in caught.value.message for call in calls), action
        assert f"Allow {action} on arn:aws:s3:::clips" in caught.value.hint


def test_no_policy_allows_anything_outside_the_prefix() -> None:
    for role in ("worker", "gateway"):
        for statement in policy(role, "clips", "video/a/")["Statement"]:
            if statement["Resource"] == "arn:aws:s3:::clips":
                assert statement["Action"] == ["s3:ListBucket"]
                assert statement["Condition"] == {"StringLike": {"s3:prefix": "video/a/*"}}
            else:
                assert statement["Resource"].startswith("arn:aws:s3:::clips/video/a/")
