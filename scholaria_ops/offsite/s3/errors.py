"""What the client library raises, sorted by what it means for us. Messages name operation, bucket and key, never a secret."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto

from scholaria_ops.errors import AuthenticationFailed, ConfigError, OffsiteError, OffsiteUnavailable, OpsError
from scholaria_ops.process import redact


class NoSuchBucket(OffsiteError):
    """The bucket does not exist (or not for us)."""


class NoSuchObject(OffsiteError):
    """There is no object of that key."""


class NoSuchUpload(OffsiteError):
    """There is no multipart upload of that id: it was finished or removed."""


class PreconditionFailed(OffsiteError):
    """``If-None-Match`` or ``If-Match`` did not hold."""


class NoSuchRange(OffsiteError):
    """The object is shorter than the range that was asked for."""


class ChecksumRejected(OffsiteError):
    """The service compared our checksum with the bytes it got, and they differ."""


class NotSupported(OffsiteError):
    """The service does not know this operation or header."""


class ShortRead(Exception):
    """Inner signal of the retry loop: a body ended before its announced length, or was not the range that was asked for."""


class Kind(Enum):
    """What a failure calls for."""

    RETRY = auto()
    EXPIRED = auto()
    DENIED = auto()
    NO_BUCKET = auto()
    NO_OBJECT = auto()
    NO_UPLOAD = auto()
    PRECONDITION = auto()
    RANGE = auto()
    CHECKSUM = auto()
    UNSUPPORTED = auto()
    CONFIG = auto()
    OTHER = auto()


_BY_CODE = {
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"), Kind.EXPIRED),
    **dict.fromkeys(
        (
            "AccessDenied",
            "AllAccessDisabled",
            "AccountProblem",
            "InvalidAccessKeyId",
            "InvalidToken",
            "InvalidClientTokenId",
            "SignatureDoesNotMatch",
            "AuthFailure",
            "Forbidden",
            "Unauthorized",
            "RequestTimeTooSkewed",
            "401",
            "403",
        ),
        Kind.DENIED,
    ),
    "NoSuchBucket": Kind.NO_BUCKET,
    **dict.fromkeys(("NoSuchKey", "404", "NotFound"), Kind.NO_OBJECT),
    "NoSuchUpload": Kind.NO_UPLOAD,
    **dict.fromkeys(("PreconditionFailed", "412"), Kind.PRECONDITION),
    **dict.fromkeys(("InvalidRange", "416"), Kind.RANGE),
    **dict.fromkeys(("BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "InvalidDigest"), Kind.CHECKSUM),
    **dict.fromkeys(("NotImplemented", "MethodNotAllowed", "501", "405"), Kind.UNSUPPORTED),
    **dict.fromkeys(
        (
            "SlowDown",
            "RequestTimeout",
            "RequestTimeoutException",
            "Throttling",
            "ThrottlingException",
            "TooManyRequestsException",
            "RequestLimitExceeded",
            "BandwidthLimitExceeded",
            "IncompleteBody",
            "OperationAborted",
            "ConditionalRequestConflict",
            "InternalError",
            "ServiceUnavailable",
        ),
        Kind.RETRY,
    ),
}
_HINTS = {
    "RequestTimeTooSkewed": "Set this host's clock (NTP): the service refuses requests that are minutes off.",
    "AccessDenied": "Grant s3:PutObject, s3:GetObject, s3:DeleteObject, s3:ListBucket, s3:ListBucketMultipartUploads and "
    "s3:AbortMultipartUpload for this bucket and prefix.",
    "InvalidObjectState": "The object was moved to an archive class; request its restore in the provider's console, then try again.",
    "InvalidStorageClass": "Set BACKUP_S3_STORAGE_CLASS to one that this service knows, for example STANDARD.",
    "EntityTooLarge": "Lower the part size to what this service takes.",
    **dict.fromkeys(
        ("MissingContentLength", "NotImplemented", "XAmzContentSHA256Mismatch", "InvalidTrailer", "MalformedTrailerError"),
        "If this service does not take checksum headers, set BACKUP_S3_CHECKSUMS=when_required.",
    ),
    "QuotaExceeded": "Free space there or raise the quota.",
}
_DENIED_HINT = "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the permissions on this bucket and prefix."


def error_code(exc: BaseException) -> str:
    """The service's error code (``SlowDown``), or the class name of another failure."""
    from botocore.exceptions import ClientError

    if isinstance(exc, ClientError):
        return str(exc.response.get("Error", {}).get("Code", "")) or str(_status(exc))
    return type(exc).__name__


def _status(exc: BaseException) -> int:
    response = getattr(exc, "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) or 0)


def kind_of(exc: BaseException) -> Kind:
    """What this failure calls for."""
    from botocore import exceptions as bx
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    if isinstance(exc, bx.ClientError):
        return _kind_of_reply(exc)
    if isinstance(exc, (bx.NoCredentialsError, bx.PartialCredentialsError, bx.CredentialRetrievalError)):
        return Kind.DENIED
    if isinstance(exc, (bx.SSLError, bx.ProfileNotFound, bx.ParamValidationError, bx.NoRegionError, bx.ConfigNotFound, ValueError)):
        return Kind.CONFIG
    network = (bx.HTTPClientError, bx.ConnectionError, bx.IncompleteReadError, bx.ReadTimeoutError, bx.ResponseStreamingError)
    return Kind.RETRY if isinstance(exc, (*network, ResponseParserError, HTTPError, OSError, ShortRead)) else Kind.OTHER


def _kind_of_reply(exc: BaseException) -> Kind:
    code, status = error_code(exc), _status(exc)
    if code in _BY_CODE:
        return _BY_CODE[code]
    if status in {401, 403}:
        return Kind.DENIED
    if status == 501:
        return Kind.UNSUPPORTED
    return Kind.RETRY if status >= 500 or status in {408, 429} else Kind.OTHER


_CLASSES: dict[Kind, type[OpsError]] = {
    Kind.RETRY: OffsiteUnavailable,
    Kind.EXPIRED: AuthenticationFailed,
    Kind.DENIED: AuthenticationFailed,
    Kind.NO_BUCKET: NoSuchBucket,
    Kind.NO_OBJECT: NoSuchObject,
    Kind.NO_UPLOAD: NoSuchUpload,
    Kind.PRECONDITION: PreconditionFailed,
    Kind.RANGE: NoSuchRange,
    Kind.CHECKSUM: ChecksumRejected,
    Kind.UNSUPPORTED: NotSupported,
    Kind.CONFIG: ConfigError,
    Kind.OTHER: OffsiteError,
}


def translate(exc: BaseException, *, operation: str, target: str, attempts: int, secrets: Iterable[str]) -> OpsError:
    """The error of ours for ``exc``: ``operation`` on ``target`` (``s3://bucket/key``) failed after ``attempts``."""
    kind, code = kind_of(exc), error_code(exc)
    reason = redact(_reason(exc), secrets)
    tries = f" after {attempts} attempts" if attempts > 1 else ""
    return _CLASSES[kind](f"{operation} on {target} failed{tries}: {code}: {reason}", hint=_hint(kind, code))


def _reason(exc: BaseException) -> str:
    from botocore.exceptions import ClientError

    if isinstance(exc, ClientError):
        return str(exc.response.get("Error", {}).get("Message", "")) or f"HTTP status {_status(exc)}"
    # Only the first line, and bounded: some of these carry whole requests.
    return (str(exc).splitlines() or [""])[0][:300]


def _hint(kind: Kind, code: str) -> str:
    if code in _HINTS:
        return _HINTS[code]
    return {
        Kind.DENIED: _DENIED_HINT,
        Kind.EXPIRED: "The credentials have expired and the usual AWS chain offers no fresh ones; renew them.",
        Kind.NO_BUCKET: "Create the bucket or correct BACKUP_S3_BUCKET and BACKUP_S3_ENDPOINT_URL.",
        Kind.RETRY: "Try again later; what has been confirmed is skipped then.",
        Kind.CONFIG: "Check BACKUP_S3_ENDPOINT_URL, AWS_REGION, AWS_PROFILE and the certificate authorities.",
    }.get(kind, "")
