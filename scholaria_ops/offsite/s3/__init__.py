"""Offsite copies in an S3 bucket. The only rooms that know the client library are the modules in this package."""

from scholaria_ops.offsite.s3.options import S3Options
from scholaria_ops.offsite.s3.target import S3Target

__all__ = ["S3Options", "S3Target"]
