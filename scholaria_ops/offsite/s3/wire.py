"""One connection to a bucket: the client, its credentials, and the only retry loop.

The client library's own retries are switched off: they sleep where nobody can wake them, know no deadline, and do not cover
the body of a download. This loop pauses through the guard, so cancellation and deadlines end it at once.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import logging
import random
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from scholaria_ops.errors import AuthenticationFailed, ConfigError, OpsError
from scholaria_ops.offsite.guard import Guard
from scholaria_ops.offsite.s3.errors import Kind, ShortRead, error_code, kind_of, translate
from scholaria_ops.offsite.s3.options import S3Options

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")
log = logging.getLogger("scholaria_ops.offsite")


class Wire:
    """Makes calls on one bucket. Thread-safe. The client is made on first use."""

    def __init__(self, options: S3Options) -> None:
        self.options = options
        self._lock = threading.Lock()
        self._made: S3Client | None = None
        self._generation = 0
        self._secrets: set[str] = {s.get_secret_value() for s in (options.secret_key, options.session_token, options.access_key) if s}

    def call(
        self,
        operation: str,
        ask: Callable[[S3Client], T],
        *,
        guard: Guard,
        key: str = "",
        attempts: int | None = None,
        retry_damage: bool = True,
    ) -> T:
        """Run ``ask`` with a client until it succeeds, fails for good, or the attempts are used up.

        ``ask`` may be run several times, so it must be complete in itself (a download reads its whole body inside it).
        ``retry_damage``: a checksum that the service rejects means damage on the way, so sending again is the remedy.
        """
        allowed = attempts or self.options.max_attempts
        refreshed = False
        attempt = 0
        while True:
            guard.check()
            client, generation = self._client()
            attempt += 1
            try:
                return ask(client)
            except _foreign() as exc:
                guard.check()  # if we are to stop, this error is only the echo of it
                kind = kind_of(exc)
                if kind is Kind.EXPIRED and not refreshed:
                    # Once per call: whoever sees a generation expire first replaces it, everybody else takes the new one.
                    log.warning("%s: the credentials have expired; reading them afresh", operation)
                    self._renew(generation)
                    refreshed = True
                    attempt -= 1
                    continue
                again = kind is Kind.RETRY or (kind is Kind.CHECKSUM and retry_damage)
                if not again or attempt >= allowed:
                    raise self._translated(exc, operation, key, attempt) from exc
                pause = self._pause(attempt)
                log.warning("%s %s: %s; attempt %d of %d in %.1f s", operation, key, error_code(exc), attempt + 1, allowed, pause)
            guard.wait(pause)

    def target(self, key: str = "") -> str:
        """``s3://bucket/key``, safe to print."""
        return f"s3://{self.options.bucket}/{key}"

    def checksum(self, content: bytes) -> dict[str, Any]:
        """The request parameter for a SHA-256 of ``content``, if checksums are wanted.

        We compute it ourselves: what the client library adds on its own goes behind the body over TLS, in a transfer coding
        that not every service understands.
        """
        return {"ChecksumSHA256": encoded(hashlib.sha256(content).digest())} if self.options.checksums == "when_supported" else {}

    def close(self) -> None:
        """Close the connections; the next call makes a new client."""
        with self._lock:
            made, self._made = self._made, None
        if made is not None:
            made.close()

    def _pause(self, attempt: int) -> float:
        """Random up to an exponentially growing bound, so that many threads do not come back together."""
        bound = min(self.options.backoff_cap_s, self.options.backoff_s * 2.0 ** (attempt - 1))
        return random.uniform(bound / 4, bound)  # noqa: S311 - spreads retries, keeps no secret

    def _translated(self, exc: Exception, operation: str, key: str, attempts: int) -> OpsError:
        return translate(exc, operation=operation, target=self.target(key), attempts=attempts, secrets=self._secrets)

    def _client(self) -> tuple[S3Client, int]:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made, self._generation

    def _renew(self, generation: int) -> None:
        with self._lock:
            if generation == self._generation:
                # Requests in flight keep the old client's connections until they end.
                self._made = self._make()
                self._generation += 1

    def _make(self) -> S3Client:
        import boto3
        from botocore.exceptions import BotoCoreError

        options = self.options
        try:
            session = boto3.session.Session(
                aws_access_key_id=_plain(options.access_key),
                aws_secret_access_key=_plain(options.secret_key),
                aws_session_token=_plain(options.session_token),
                region_name=options.region,
            )
            self._learn_secrets(session)
            client = session.client(
                "s3",
                endpoint_url=options.endpoint_url,
                # Only signs requests when a service has no regions; AWS redirects to the bucket's own.
                region_name=session.region_name or "us-east-1",
                verify=str(options.ca_file) if options.ca_file else None,
                config=_config(options),
            )
        except (BotoCoreError, ValueError) as exc:
            raise self._translated(exc, "connect", "", 1) from exc
        client.meta.events.register_last("before-call.s3", _no_expect_header)
        from scholaria_ops.offsite.s3.signing import sign_known_bodies

        sign_known_bodies(client)
        return client

    def _learn_secrets(self, session: Any) -> None:
        credentials = session.get_credentials()
        if credentials is None:
            raise AuthenticationFailed(
                f"no AWS credentials for {self.options.where}",
                hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run where a role provides them.",
            )
        frozen = credentials.get_frozen_credentials()
        self._secrets |= {s for s in (frozen.access_key, frozen.secret_key, frozen.token) if s}


def encoded(digest: bytes) -> str:
    """A digest in the form of the ``x-amz-checksum-*`` headers."""
    return base64.b64encode(digest).decode()


@functools.cache
def _foreign() -> tuple[type[Exception], ...]:
    """What the libraries below raise; anything else is our own error or a bug and passes untouched."""
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    return (BotoCoreError, ClientError, ResponseParserError, HTTPError, OSError, ShortRead)


def _plain(secret: Any) -> str | None:
    return secret.get_secret_value() if secret is not None else None


def _config(options: S3Options) -> Any:
    from botocore.config import Config

    try:
        return Config(
            connect_timeout=options.connect_timeout_s,
            read_timeout=options.read_timeout_s,
            retries={"total_max_attempts": 1, "mode": "standard"},
            max_pool_connections=2 * options.concurrency + 4,
            request_checksum_calculation=options.checksums,
            # We hash everything ourselves; the library would report rot as a failure that is worth trying again.
            response_checksum_validation="when_required",
            s3={"addressing_style": options.addressing},
            user_agent_extra="scholaria-ops",
        )
    except TypeError as exc:  # pragma: no cover - the declared minimum version knows all of these
        raise ConfigError("the installed boto3 is too old", hint="Install boto3 1.36 or later.") from exc


def _no_expect_header(params: dict[str, Any], **_: Any) -> None:
    """Send bodies at once.

    The library asks for permission first (``Expect: 100-continue``) whenever a body is a file, and waits a second for services
    that never answer that; our parts are small enough to be sent twice.
    """
    params["headers"].pop("Expect", None)


@contextlib.contextmanager
def breakable(body: StreamingBody, guard: Guard, *, limit_s: float) -> Iterator[StreamingBody]:
    """Read ``body`` inside the block; cancellation, a deadline or ``limit_s`` seconds break a blocked read off at once."""
    raw: Any = body._raw_stream  # type: ignore[attr-defined]  # the only way to the socket; without it a stalled read still ends at the read timeout

    def shut() -> None:
        with contextlib.suppress(AttributeError, ValueError, RuntimeError, OSError):
            raw.shutdown()

    try:
        with guard.watching(shut, limit_s=limit_s):
            yield body
    finally:
        body.close()
