"""Settings of an S3 target as plain values, checked once. Importing this loads no client library."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import SecretStr

from scholaria_ops.errors import ConfigError

MIB = 1 << 20
#: S3 takes at most this many parts per object, and no part but the last below 5 MiB.
MAX_PARTS = 10_000
MIN_PART = 5 * MIB
#: Memory that buffers may take, in bytes, unless a single one is larger.
MEMORY_BUDGET = 48 * MIB

#: Objects in these classes cannot be read without a restore request first, so no upload could be confirmed.
_UNREADABLE_CLASSES = frozenset({"GLACIER", "DEEP_ARCHIVE"})
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")


@dataclass(frozen=True)
class S3Options:
    """Where and how to keep sets in a bucket.

    Without ``access_key`` the usual AWS chain is used (environment, shared files, roles), which may refresh itself.

    Args:
        bucket: must exist; it is never created.
        prefix: put before every key; with or without slashes at its ends.
        endpoint_url: of an S3-compatible service; None for AWS.
        checksums: ``when_supported`` sends a SHA-256 with every object and part, which AWS verifies on arrival; some providers
            refuse such headers: ``when_required``. Reading back does not depend on it.
        addressing: ``path`` for services without virtual hosts; ``auto`` is right for most.
        part_size: bytes per part of larger files; raised for a file that would need more than 10,000 parts.
        concurrency: requests in flight at once, over files and parts together.
        max_attempts: per request, the first included.
        backoff_s, backoff_cap_s: the pause before attempt *n* is random up to ``min(cap, backoff * 2**n)`` seconds.
        part_timeout_s: longest that one part may take however little keeps trickling.
        stale_upload_s: age from which a half-sent upload below our prefix that is in nobody's ledger counts as left behind.
    """

    bucket: str
    prefix: str = ""
    endpoint_url: str | None = None
    region: str | None = None
    storage_class: str = "STANDARD_IA"
    access_key: SecretStr | None = None
    secret_key: SecretStr | None = None
    session_token: SecretStr | None = None
    checksums: Literal["when_supported", "when_required"] = "when_supported"
    addressing: Literal["auto", "path", "virtual"] = "auto"
    ca_file: Path | None = None
    part_size: int = 8 * MIB
    concurrency: int = 8
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 30.0
    part_timeout_s: float = 600.0
    max_attempts: int = 8
    backoff_s: float = 0.5
    backoff_cap_s: float = 20.0
    stale_upload_s: float = 24 * 3600.0

    def __post_init__(self) -> None:
        if not _BUCKET.fullmatch(self.bucket):
            raise ConfigError(f"{self.bucket!r} is not the name of a bucket", hint="Set BACKUP_S3_BUCKET to the bare name, without s3://.")
        object.__setattr__(self, "prefix", _clean_prefix(self.prefix))
        if self.endpoint_url is not None:
            _check_endpoint(self.endpoint_url)
        if self.storage_class in _UNREADABLE_CLASSES:
            raise ConfigError(
                f"storage class {self.storage_class} cannot be read back without a restore request, so no copy could be proven",
                hint="Use STANDARD, STANDARD_IA, ONEZONE_IA, INTELLIGENT_TIERING or GLACIER_IR.",
            )
        if (self.access_key is None) != (self.secret_key is None):
            raise ConfigError(
                "an access key and its secret belong together", hint="Set both or neither (then the usual AWS chain is used)."
            )
        if self.part_size < MIN_PART:
            raise ConfigError(f"a part of {self.part_size:,} bytes is too small", hint=f"S3 wants at least {MIN_PART:,} bytes.")
        if self.concurrency < 1 or self.max_attempts < 1:
            raise ConfigError("concurrency and attempts start at 1")

    @property
    def where(self) -> str:
        """``s3://bucket/prefix``, with the endpoint if it is not AWS."""
        at = f" at {self.endpoint_url}" if self.endpoint_url else ""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/") + at

    def part_size_for(self, size: int) -> int:
        """The part size for a file of ``size`` bytes: as configured, or larger where 10,000 parts would not do."""
        needed = -(-size // MAX_PARTS)
        return max(self.part_size, -(-needed // MIB) * MIB)


def _clean_prefix(prefix: str) -> str:
    parts = [part for part in prefix.strip("/").split("/") if part]
    if any(part in {".", ".."} or part.startswith(".") for part in parts) or any(ord(c) < 32 for c in prefix):
        raise ConfigError(f"{prefix!r} cannot be a key prefix", hint="Use plain folder names, for example backups/scholaria.")
    return "/".join(parts) + "/" if parts else ""


def _check_endpoint(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigError("the S3 endpoint is not an http(s) URL", hint="Set BACKUP_S3_ENDPOINT_URL, for example https://s3.example.org.")
    if parts.username or parts.password:
        raise ConfigError(
            "the S3 endpoint URL carries credentials", hint="Put them into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead."
        )
