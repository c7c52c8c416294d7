"""The bucket: address, encryption, and the URLs by which viewers get clips."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator

from ltxq.settings.role import Role, is_gateway_url


class StorageSettings(Role):
    """The storage: workers, and producers that sign URLs."""

    s3_endpoint: str | None = Field(
        default=None, description="URL of the S3-compatible server; default: Amazon S3."
    )
    s3_public_endpoint: str | None = Field(
        default=None,
        description="URL of the storage for viewers, if it differs; URLs are signed for it.",
    )
    s3_bucket: str | None = Field(default=None, description="Bucket that stores the clips.")
    s3_prefix: str = Field(
        default="ltxq/",
        description="Folder of the bucket that stores the clips, with a slash at its end. ltxq "
        "lists and deletes nothing outside it.",
    )
    s3_addressing: Literal["auto", "path", "virtual"] = Field(
        default="auto",
        description="Where a request names the bucket: path: in the URL's path; virtual: in the "
        "host's name. Default: path with LTXQ_S3_ENDPOINT, as Amazon wants it without.",
    )
    s3_sse: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = Field(
        default=None,
        description="Encryption that the server is to use, sent with each upload: AES256, aws:kms "
        "or aws:kms:dsse. Default: the bucket's own.",
    )
    s3_sse_key_id: str | None = Field(
        default=None,
        description="Key for aws:kms and aws:kms:dsse; default: the account's key for S3.",
    )
    s3_public_base_url: str | None = Field(
        default=None,
        description="Prefix of unsigned URLs, for a public bucket or a CDN: what comes before the "
        "object's key, as https://cdn.example.com or https://s3.example.com/clips. Such a URL "
        "works until the clip is deleted.",
    )
    content: Literal["redirect", "proxy"] = Field(
        default="redirect",
        description="How viewers get clips: redirect: by URLs of the storage; proxy: from a "
        "gateway, by links to LTXQ_PUBLIC_URL. The same for all.",
    )
    public_url: str | None = Field(
        default=None,
        description="URL of the gateway for viewers, as https://clips.example.com, for the links "
        "of LTXQ_CONTENT=proxy. Default, at a gateway on this machine only: where it listens.",
    )

    @field_validator("s3_endpoint", "s3_public_endpoint", "s3_public_base_url")
    @classmethod
    def _check_s3_url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        try:
            parts = urlsplit(url)
            right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # its message holds parts of the URL
            raise ValueError("is not a URL: its host or port is wrong") from None
        if parts.username is not None:
            raise ValueError(
                "must have no user or password in it: set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY"
            )
        if not right or not re.fullmatch(r"https?://[^\s?#]+", url) or not url.isprintable():
            raise ValueError(
                "must be a URL: http:// or https:// and a host, as https://s3.example.com, without "
                "? and #"
            )
        return url

    @field_validator("s3_bucket")
    @classmethod
    def _check_s3_bucket(cls, bucket: str | None, found: ValidationInfo) -> str | None:
        # Amazon's names are stricter than those of other servers; an access point has an ARN.
        name, access_point = r"[A-Za-z0-9][\w.-]{0,254}", r"arn:[a-z-]+:s3[a-z-]*:[\w:/.-]{1,255}"
        if bucket is not None and not re.fullmatch(f"{name}|{access_point}", bucket, re.ASCII):
            raise ValueError(
                "must be a bucket's name, as clips: letters, digits, dots, hyphens and "
                "underscores, no URL and no folder"
            )
        for name in ("s3_endpoint", "s3_public_endpoint"):
            last = urlsplit(found.data.get(name) or "").path.rstrip("/").rpartition("/")[2]
            if bucket is not None and last == bucket:
                raise ValueError(f"LTXQ_{name.upper()} ends with it too: leave it out there")
        return bucket

    @field_validator("s3_prefix")
    @classmethod
    def _check_s3_prefix(cls, prefix: str) -> str:
        parts = r"([A-Za-z0-9_-][A-Za-z0-9._-]*/)+"
        if len(prefix) > 200 or not re.fullmatch(parts, prefix):
            raise ValueError(
                "must be one folder or several, each with a slash after it, as ltxq/ or video/a/: "
                "letters, digits, dots, hyphens and underscores, 200 characters at most"
            )
        return prefix

    @field_validator("s3_addressing", mode="before")
    @classmethod
    def _check_s3_addressing(cls, style: Any, found: ValidationInfo) -> Any:
        if style in ("", None):
            return "auto"
        if style not in ("auto", "path", "virtual"):
            raise ValueError("must be auto, path or virtual")
        bucket = found.data.get("s3_bucket")
        for name in ("s3_endpoint", "s3_public_endpoint"):
            endpoint = found.data.get(name)
            if style == "virtual" and endpoint and _is_ip(urlsplit(endpoint).hostname or ""):
                raise ValueError(
                    "virtual puts the bucket before the host's name, but the host of "
                    f"LTXQ_{name.upper()} is an IP address: set path, or give it a name"
                )
        if style == "virtual" and bucket and not re.fullmatch(r"[a-z0-9.-]{3,63}|arn:.*", bucket):
            raise ValueError(
                "virtual puts the bucket before the host's name, and LTXQ_S3_BUCKET cannot be a "
                "part of one: small letters, digits and hyphens can"
            )
        return style

    @field_validator("s3_sse", mode="before")
    @classmethod
    def _check_s3_sse(cls, sse: Any) -> Any:
        if sse not in (None, "AES256", "aws:kms", "aws:kms:dsse"):
            raise ValueError("must be AES256, aws:kms or aws:kms:dsse")
        return sse

    @field_validator("s3_sse_key_id")
    @classmethod
    def _check_s3_sse_key_id(cls, key: str | None, found: ValidationInfo) -> str | None:
        if key is None:
            return None
        if not re.fullmatch(r"[A-Za-z0-9:/_.-]{1,2048}", key):
            raise ValueError("must be the id, the ARN or the alias of a key")
        if "s3_sse" in found.data and found.data["s3_sse"] in (None, "AES256"):
            raise ValueError("needs LTXQ_S3_SSE=aws:kms or aws:kms:dsse")
        return key

    @field_validator("content", mode="before")
    @classmethod
    def _check_content(cls, content: Any) -> Any:
        if content not in ("redirect", "proxy"):
            raise ValueError("must be redirect or proxy")
        return content

    @field_validator("public_url", mode="before")
    @classmethod
    def _check_public_url(cls, url: Any) -> Any:
        if url is not None and (not isinstance(url, str) or not is_gateway_url(url)):
            raise ValueError(
                "must be https:// or http://, a host, and optionally a port and a path, as "
                "https://clips.example.com"
            )
        return url


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
