"""Signing bodies whose SHA-256 is known already.

A signed request names the SHA-256 of its body. The client library reads and hashes every body for that, although our parts were
hashed a moment before: once more reading and a third of all hashing, on a machine that is busy dumping. Here the signature takes
the digest that we have. It stays a real one: a service that checks it refuses bytes that have changed since.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from botocore import auth
from botocore.handlers import set_operation_specific_signer

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

#: Operations whose bodies are ours.
_OPERATIONS = ("PutObject", "UploadPart")
#: The library's name for the signature, and ours for the same signature with a known digest.
_USUAL, _KNOWN = "s3v4", "s3v4-known-body"


@runtime_checkable
class KnownBody(Protocol):
    """A body that knows its own SHA-256, in hexadecimal."""

    sha256: str


class _KnownBodyAuth(auth.S3SigV4Auth):
    def payload(self, request: Any) -> Any:
        # Where the library would sign a constant instead (over TLS, if told so), it still does.
        library: Any = self
        usual = library._should_sha256_sign_payload(request) and not library._is_streaming_checksum_payload(request)
        return request.body.sha256 if usual and isinstance(request.body, KnownBody) else super().payload(request)


def sign_known_bodies(client: S3Client) -> None:
    """Have ``client`` sign the bodies of objects and parts by the digest that they know. Other kinds of signatures stay as they are."""
    auth.AUTH_TYPE_MAPS[_KNOWN] = _KnownBodyAuth
    choose: Any = _choose  # the stubs know no answer of a handler
    for operation in _OPERATIONS:
        client.meta.events.register_first(f"choose-signer.s3.{operation}", choose)


def _choose(signing_name: str, signature_version: str, context: dict[str, Any], **_: Any) -> str | None:
    chosen = set_operation_specific_signer(context, signing_name) or signature_version
    return _KNOWN if chosen == _USUAL else None
