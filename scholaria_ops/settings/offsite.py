"""Where copies go outside the house."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, SecretStr

from scholaria_ops.settings.field import named


class OffsiteSettings(BaseModel):
    """Offsite."""

    s3_bucket: str | None = named(
        "BACKUP_S3_BUCKET", default=None, description="Bucket of the offsite copies; without it nothing leaves the house"
    )
    s3_prefix: str = named("BACKUP_S3_PREFIX", default="", description="Key prefix inside the bucket")
    s3_endpoint_url: str | None = named("BACKUP_S3_ENDPOINT_URL", default=None, description="Endpoint of an S3-compatible service")
    s3_storage_class: str = named("BACKUP_S3_STORAGE_CLASS", default="STANDARD_IA", description="Storage class of uploaded objects")
    s3_confirm: Literal["readback", "checksum"] = named(
        "BACKUP_S3_CONFIRM",
        default="readback",
        description="How an upload is confirmed: read back and hashed, or by the endpoint's own checksum",
    )
    s3_checksums: Literal["when_supported", "when_required"] = named(
        "BACKUP_S3_CHECKSUMS", default="when_supported", description="Whether uploads carry checksums; some providers refuse them"
    )
    s3_concurrency: int = named("BACKUP_S3_CONCURRENCY", default=4, ge=1, le=64, description="Parallel transfers")
    aws_access_key_id: SecretStr | None = named("AWS_ACCESS_KEY_ID", default=None, description="As everywhere in AWS; else the usual chain")
    aws_secret_access_key: SecretStr | None = named("AWS_SECRET_ACCESS_KEY", default=None, description="As everywhere in AWS")
    aws_session_token: SecretStr | None = named("AWS_SESSION_TOKEN", default=None, description="As everywhere in AWS")
    aws_region: str | None = named("AWS_REGION", "AWS_DEFAULT_REGION", default=None, description="Region of the bucket")
