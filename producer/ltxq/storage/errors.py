"""Errors of boto3 and botocore, and answers of a server, as errors of ltxq.

Their own texts are not passed on, except the code and message of an S3 server's answer: botocore's
speak of parameters that ltxq's users do not know, and may hold what a program for credentials
printed.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ltxq.errors import LtxqError, StorageRefused, StorageUnavailable
from ltxq.printable import one_line
from ltxq.storage.operations import BY_NAME, CHECKS, arn

ANSWER_MOST = 300  # characters of a server's message


class Place(NamedTuple):
    """A bucket, in the words of messages."""

    bucket: str
    prefix: str
    server: str
    sse: str | None = None  # LTXQ_S3_SSE

    def __str__(self) -> str:
        return f"bucket {self.bucket!r} at {self.server}"

    @property
    def endpoint_hint(self) -> str:
        """For an endpoint that was copied with the bucket in its host's name; else empty."""
        host = urlsplit(self.server).hostname or ""
        if not host.startswith(f"{self.bucket.lower()}."):
            return ""
        other = self.server.replace(f"{self.bucket}.", "", 1)
        return f"LTXQ_S3_ENDPOINT seems to name the bucket too: try {other}. "


_KEYS = (
    "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or the profile or role), and "
    "LTXQ_S3_ENDPOINT."
)
_SESSION = "The session credentials have ended or are wrong: renew AWS_SESSION_TOKEN and its keys."
_REGION = "Set AWS_DEFAULT_REGION to the bucket's region."
_BUCKET = (
    "Create the bucket, or correct LTXQ_S3_BUCKET. If the store wants the bucket in the host's "
    "name, set LTXQ_S3_ADDRESSING=virtual; if it wants it in the path, path."
)
_STYLE = "Set LTXQ_S3_ADDRESSING=virtual: the store wants the bucket in the host's name."
_HINTS = {
    "NoSuchBucket": _BUCKET,
    "InvalidBucketName": _BUCKET,
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "SecondLevelDomainForbidden": _STYLE,
    "PathStyleNotSupported": _STYLE,
    "InvalidAddressingHeader": _STYLE,
    "RequestTimeTooSkewed": "Set this machine's clock: timedatectl set-ntp true.",
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "ExpiredToken": _SESSION,
    "ExpiredTokenException": _SESSION,
    "InvalidToken": _SESSION,
    "TokenRefreshRequired": _SESSION,
}
# The whole bucket is refused to these credentials, not one operation or object.
_WHOLE = frozenset({*_HINTS, "RequestExpired", "AllAccessDisabled"})
_BUSY_STATUSES = {408, 429, 507}  # besides 5xx; MinIO answers 507 when its disk is full
_BUSY_CODES = {"SlowDown", "RequestTimeout", "TooManyRequests", "ServiceUnavailable"}
# Servers answer 400, 403 or 507 when a bucket, an account or a disk is full, each in other words.
_FULL = re.compile("quota|cap exceeded|storage ?full|disk ?full|insufficient ?storage", re.I)
_CREDENTIALS = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give this machine a role."
)
_TRUST = (
    "Set AWS_CA_BUNDLE to its authority's CA bundle, and name the host as the certificate does."
)
# As Python and urllib3 say it.
_UNTRUSTED = re.compile(r"CERTIFICATE_VERIFY_FAILED.*: ([^(]*?)\.? \(_ssl|(hostname '.*match .*)")
_TLS = "https:// is for a port with TLS, http:// for one without: check LTXQ_S3_ENDPOINT."
_NO_S3 = "Check LTXQ_S3_ENDPOINT: another program, or a proxy in between, answers there."
_ENDPOINT = "Check LTXQ_S3_ENDPOINT, LTXQ_S3_BUCKET and LTXQ_S3_ADDRESSING."


def refuses_bucket(exc: Any) -> bool:
    """Whether an answer concerns all calls, not this one: credentials, bucket or region."""
    code, status = code_of(exc), status_of(exc)
    return code in _WHOLE or 300 <= status < 400 or is_busy(exc)


def is_busy(exc: Any) -> bool:
    """Whether the server says that a later call may succeed."""
    code, status = code_of(exc), status_of(exc)
    if code in _BUSY_CODES or status in _BUSY_STATUSES or is_full(exc):
        return True
    return status >= 500 and status != 501 and code != "NotImplemented"


def is_full(exc: Any) -> bool:
    """Whether the server has no room for an object."""
    text = f"{code_of(exc)} {exc.response.get('Error', {}).get('Message', '')}"
    return status_of(exc) == 507 or _FULL.search(text) is not None


def code_of(exc: Any) -> str:
    """The error's code, as 'AccessDenied'; of a HEAD request the HTTP status."""
    return str(exc.response.get("Error", {}).get("Code", ""))


def status_of(exc: Any) -> int:
    """The answer's HTTP status."""
    return int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def answered(exc: Any, place: Place) -> LtxqError:
    """The error of a `ClientError`: the server answered, and not as wished."""
    code, status = code_of(exc), status_of(exc)
    message = one_line(str(exc.response.get("Error", {}).get("Message", ""))[:ANSWER_MOST])
    answer = one_line(f"{code[:60]}: {message}".removesuffix(": "))
    if is_full(exc):
        return StorageUnavailable(
            f"The storage is full ({answer}), {place}.",
            hint="Delete objects, or raise the quota of the bucket or account. ltxq tries again.",
        )
    if is_busy(exc):
        return StorageUnavailable(
            f"The storage has an error ({answer}), {place}.",
            hint="ltxq tries again. If it persists, see the storage server's log."
            # botocore makes such an error of any answer that is not S3's.
            + (f" {_NO_S3}" if code.isdigit() else ""),
        )
    operation = str(getattr(exc, "operation_name", ""))
    text = f"The storage refused {operation or 'a call'} ({answer}), {place}."
    return StorageRefused(text, hint=_hint(operation, code, status, message, place))


def _hint(operation: str, code: str, status: int, message: str, place: Place) -> str:
    known = BY_NAME.get(operation)
    writes = known is not None and known.action == "s3:PutObject"
    if code in _HINTS:
        return (place.endpoint_hint if _HINTS[code] == _BUCKET else "") + _HINTS[code]
    if 300 <= status < 400:
        return f"{_REGION} {_NO_S3}"
    if "kms" in f"{code} {message}".lower():
        return (
            "Allow kms:GenerateDataKey and kms:Decrypt on the key, or correct LTXQ_S3_SSE_KEY_ID."
        )
    if code == "InvalidObjectState":
        return (
            "A lifecycle rule has archived the object: keep clips in a class that is read at once."
        )
    if status in (401, 403) and known is not None:
        where = arn(known.action, place.bucket, place.prefix)
        hint = f"Allow {known.action} on {where}: docs/operating.md has the whole policy."
        if writes and place.sse is None:
            hint += " If the bucket demands encryption, set LTXQ_S3_SSE."
        if known.action == "s3:DeleteObject":
            hint += f" A lock or retention must not cover {place.prefix}{CHECKS}."
        return hint
    if writes and place.sse is not None and status in (400, 501):
        return f"The store may not support LTXQ_S3_SSE={place.sse}: change or unset it."
    if known is not None and code in ("NotImplemented", "MethodNotAllowed"):
        return f"{place.endpoint_hint}The store must have {operation}: use another, or a newer one."
    return place.endpoint_hint + (_BUCKET if status == 404 else _ENDPOINT)


def redirected(place: Place) -> StorageRefused:
    """The error of a server that redirects every request."""
    return StorageRefused(
        f"The server answers with a redirect, {place}.", hint=f"{_REGION} {_NO_S3}"
    )


def without_answer(exc: Exception, place: Place) -> LtxqError:
    """The error of a call that no S3 server answered; `exc` is botocore's, or a parser's."""
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError

    if untrusted := without_trust(exc, place):
        return untrusted
    if isinstance(exc, boto.SSLError):
        return StorageUnavailable(f"The storage and ltxq do not agree on TLS, {place}.", hint=_TLS)
    if isinstance(exc, (ResponseParserError, boto.IncompleteReadError)):
        return StorageUnavailable(f"The answer is not an S3 server's, {place}.", hint=_NO_S3)
    if isinstance(exc, boto.ProxyConnectionError):
        return StorageUnavailable(
            f"The proxy to the storage cannot be reached, {place}.",
            hint="Check HTTP_PROXY, HTTPS_PROXY and NO_PROXY.",
        )
    if isinstance(exc, (boto.HTTPClientError, boto.ConnectionError)):
        return StorageUnavailable(
            f"The storage cannot be reached, {place}: {type(exc).__name__}.",
            hint=f"{place.endpoint_hint}Check that it runs, LTXQ_S3_ENDPOINT, and the network "
            "between.",
        )
    if isinstance(exc, boto.ParamValidationError):
        return StorageRefused(f"boto3 takes no such bucket or key, {place}.", hint=_ENDPOINT)
    return without_credentials(exc, place)


def without_trust(exc: Exception, place: Place) -> StorageRefused | None:
    """The error of a certificate that is not trusted; None: `exc` is of another kind."""
    why = _UNTRUSTED.search(str(exc))
    if why is None:
        return None
    reason = one_line((why[1] or why[2])[:ANSWER_MOST])
    return StorageRefused(
        f"The storage's certificate is not trusted ({reason}), {place}.", hint=_TRUST
    )


def without_credentials(exc: Exception, place: Place) -> LtxqError:
    """The error of credentials, a region or a configuration that boto3 cannot use."""
    from botocore import exceptions as boto

    fields = getattr(exc, "kwargs", {})
    if isinstance(exc, boto.NoCredentialsError):
        return StorageRefused(f"There are no credentials for the {place}.", hint=_CREDENTIALS)
    if isinstance(exc, boto.PartialCredentialsError):
        missing = one_line(str(fields.get("cred_var", "a part"))).upper()
        return StorageRefused(
            f"The credentials for the {place} are incomplete: {missing} is missing.",
            hint=_CREDENTIALS,
        )
    if isinstance(exc, boto.ProfileNotFound):
        name = one_line(str(fields.get("profile", ""))[:80])
        return StorageRefused(
            f"There is no AWS profile {name!r}.",
            hint="Correct AWS_PROFILE, or add the profile to ~/.aws/config.",
        )
    if isinstance(exc, (boto.ConfigParseError, boto.ConfigNotFound)):
        path = one_line(str(fields.get("path", "~/.aws/config"))[:200])
        return StorageRefused(
            f"boto3 cannot read its configuration file {path}.",
            hint="Correct the file, or point AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE at "
            "others.",
        )
    if isinstance(exc, (boto.NoRegionError, boto.InvalidRegionError)):
        return StorageRefused(f"The region is missing or wrong, {place}.", hint=_REGION)
    if isinstance(exc, _retrieval()):
        provider = one_line(str(fields.get("provider", ""))[:60])
        source = f" ({provider})" if provider else ""
        return StorageUnavailable(
            f"The source of the storage's credentials{source} gave none: {type(exc).__name__}.",
            hint="Check credential_process, the role or the login that AWS_PROFILE names: "
            "`aws sts get-caller-identity` shows its own message.",
        )
    return StorageRefused(
        f"boto3 cannot use its settings for the {place}: {type(exc).__name__}.",
        hint="Check the AWS_… variables and ~/.aws/config, and LTXQ_S3_ENDPOINT. With "
        "LTXQ_DEBUG=1 the traceback has boto3's own message.",
    )


def _retrieval() -> tuple[type[Exception], ...]:
    from botocore import exceptions as boto

    return (
        boto.CredentialRetrievalError,
        boto.TokenRetrievalError,
        boto.MetadataRetrievalError,
        boto.NoAuthTokenError,
        boto.SSOError,
        boto.LoginError,
        boto.RefreshWithMFAUnsupportedError,
    )
