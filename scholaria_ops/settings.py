"""Every setting of the product, and the only place that reads the environment.

Names are those that Scholaria's operators already have in their ``.env``. A value comes from the process
environment, else from the ``.env`` file, else from its default; :attr:`Settings.provenance` says which.
Names that begin with ``BACKUP_`` and are not known are an error: a misspelt retention must not be ignored silently.
"""

from __future__ import annotations

import difflib
import os
import re
import urllib.parse
import zoneinfo
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from dotenv import dotenv_values
from pydantic import AliasChoices, Field, PrivateAttr, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from scholaria_ops.connections import PostgresConnection, QdrantConnection, RedisConnection
from scholaria_ops.errors import ConfigError

#: Names the file to read instead of ``.env`` in the working directory.
ENV_FILE_VARIABLE = "SCHOLARIA_OPS_ENV_FILE"
#: Names beginning with this must be known.
_GUARDED_PREFIX = "BACKUP_"
#: Field → the name that the operators' older scripts used; accepted with a notice.
_OLD_NAMES = {"daily_retention": "DAILY_RETENTION", "weekly_retention": "WEEKLY_RETENTION", "monthly_retention": "MONTHLY_RETENTION"}
_EVERY_MONTH_HAS = 28
#: Lowest and highest number in each field of a cron string: minute, hour, day of month, month, day of week.
_CRON_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
_CRON_PART = re.compile(r"(?:\*|(\d{1,2})(?:-(\d{1,2}))?)(?:/([1-9]\d?))?")


def _named(*names: str, default: Any = ..., description: str, **more: Any) -> Any:
    """A field read from the first of ``names`` that is set."""
    return Field(default, validation_alias=AliasChoices(*names), description=description, **more)


class Settings(BaseSettings):
    """Effective settings. Make one with :func:`load_settings`; the field descriptions are the settings table of the docs."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True, case_sensitive=True)

    # PostgreSQL
    db_host: str = _named("DB_HOST", default="localhost", description="PostgreSQL host, or the directory of its unix socket")
    db_port: int = _named("DB_PORT", default=5432, ge=1, le=65535, description="PostgreSQL port")
    db_name: str = _named("DB_NAME", default="scholaria", min_length=1, description="Database to back up")
    db_user: str = _named("DB_USER", default="scholaria", min_length=1, description="Role to connect as")
    db_password: SecretStr = _named("DB_PASSWORD", "POSTGRES_PASSWORD", default=SecretStr(""), description="Password of that role")
    db_sslmode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] = _named(
        "DB_SSLMODE", default="prefer", description="TLS towards PostgreSQL, as libpq's sslmode"
    )
    db_sslrootcert: Path | None = _named("DB_SSLROOTCERT", default=None, description="CA certificates to verify PostgreSQL with")
    db_sslcert: Path | None = _named("DB_SSLCERT", default=None, description="Client certificate for PostgreSQL")
    db_sslkey: Path | None = _named("DB_SSLKEY", default=None, description="Key of that client certificate")

    # Redis
    redis_url: SecretStr | None = _named(
        "REDIS_URL", default=None, description="Redis as one URL (redis://, rediss://, unix://); wins over the parts"
    )
    redis_host: str = _named("REDIS_HOST", default="localhost", description="Redis host")
    redis_port: int = _named("REDIS_PORT", default=6379, ge=1, le=65535, description="Redis port")
    redis_username: str | None = _named("REDIS_USERNAME", default=None, description="ACL user; empty for the default user")
    redis_password: SecretStr = _named("REDIS_PASSWORD", default=SecretStr(""), description="Password of that user")
    redis_tls: bool = _named("REDIS_TLS", default=False, description="Speak TLS to Redis")
    redis_ca_file: Path | None = _named("REDIS_CA_FILE", default=None, description="CA certificates to verify Redis with")
    redis_cert_file: Path | None = _named("REDIS_CERT_FILE", default=None, description="Client certificate for Redis")
    redis_key_file: Path | None = _named("REDIS_KEY_FILE", default=None, description="Key of that client certificate")

    # Qdrant
    qdrant_url: str | None = _named("QDRANT_URL", default=None, description="Qdrant's REST endpoint; wins over host and port")
    qdrant_host: str = _named("QDRANT_HOST", default="localhost", description="Qdrant host")
    qdrant_port: int = _named("QDRANT_PORT", default=6333, ge=1, le=65535, description="Qdrant REST port")
    qdrant_api_key: SecretStr = _named("QDRANT_API_KEY", default=SecretStr(""), description="Qdrant API key")
    qdrant_ca_file: Path | None = _named("QDRANT_CA_FILE", default=None, description="CA certificates to verify Qdrant with")
    qdrant_verify_tls: bool = _named("QDRANT_VERIFY_TLS", default=True, description="Verify Qdrant's certificate")
    qdrant_nodes: str = _named(
        "QDRANT_NODES", default="", description="Every peer's REST endpoint, comma separated, when Qdrant runs as a cluster"
    )

    # Where sets live
    backup_dir: Path = _named("BACKUP_DIR", default=Path("/var/backups/scholaria"), description="Directory of the backup sets")
    backup_timezone: str = _named("BACKUP_TIMEZONE", default="UTC", description="Time zone of set ids and schedules (IANA name)")
    scratch_dir: Path | None = _named(
        "BACKUP_SCRATCH_DIR", default=None, description="Directory for scratch servers and rehearsals; default: BACKUP_DIR/.scratch"
    )
    lock_wait_s: float = _named(
        "BACKUP_LOCK_WAIT_S", default=0.0, ge=0, description="Seconds to wait for another run's lock before giving up"
    )

    # Dumping
    pg_compression: str = _named(
        "BACKUP_PG_COMPRESSION",
        default="zstd:1",
        pattern=r"^(none|gzip|lz4|zstd)(:\d{1,2})?$",
        description="pg_dump --compress (method:level)",
    )
    pg_lock_timeout_s: float = _named("BACKUP_PG_LOCK_TIMEOUT_S", default=30.0, gt=0, description="Seconds pg_dump waits for a table lock")
    pg_restore_jobs: int = _named("BACKUP_PG_RESTORE_JOBS", default=2, ge=1, le=64, description="Parallel jobs of pg_restore")
    fingerprint_max_bytes: int | None = _named(
        "BACKUP_FINGERPRINT_MAX_BYTES",
        default=None,
        ge=0,
        description="Tables larger than this (bytes) get a row count but no content fingerprint",
    )
    redis_sync: Literal["auto", "socket", "disk"] = _named(
        "BACKUP_REDIS_SYNC",
        default="auto",
        description="How the RDB is asked for: from the server's disk at once, or over the socket after its delay",
    )
    qdrant_fingerprint_max_points: int | None = _named(
        "BACKUP_QDRANT_FINGERPRINT_MAX_POINTS", default=None, ge=0, description="Collections with more points get no payload fingerprint"
    )

    # Tools
    pg_bin_dir: Path | None = _named("PG_BIN_DIR", default=None, description="Directory of pg_dump, pg_restore, initdb, postgres")
    redis_server: Path | None = _named("REDIS_SERVER", default=None, description="redis-server for scratch loads and rehearsals")
    qdrant_bin: Path | None = _named("QDRANT_BIN", default=None, description="qdrant for scratch loads and rehearsals")

    # Schedules
    daily_cron: str = _named("BACKUP_DAILY_CRON", default="0 2 * * *", description="When the daily set is taken (cron, in BACKUP_TIMEZONE)")
    weekly_cron: str = _named("BACKUP_WEEKLY_CRON", default="0 3 * * 0", description="When the weekly set is taken (cron)")
    monthly_cron: str = _named("BACKUP_MONTHLY_CRON", default="0 4 1 * *", description="When the monthly set is taken (cron)")

    # Retention
    daily_retention: int = _named(
        "BACKUP_DAILY_RETENTION", "DAILY_RETENTION", default=7, ge=1, le=36500, description="Days that daily sets stay"
    )
    weekly_retention: int = _named(
        "BACKUP_WEEKLY_RETENTION", "WEEKLY_RETENTION", default=30, ge=1, le=36500, description="Days that weekly sets stay"
    )
    monthly_retention: int = _named(
        "BACKUP_MONTHLY_RETENTION", "MONTHLY_RETENTION", default=365, ge=1, le=36500, description="Days that monthly sets stay"
    )
    manual_retention: int = _named(
        "BACKUP_MANUAL_RETENTION", "RETENTION_DAYS", default=30, ge=1, le=36500, description="Days that sets taken by hand stay"
    )
    pre_restore_retention: int = _named(
        "BACKUP_PRE_RESTORE_RETENTION", default=30, ge=1, le=36500, description="Days that safety sets taken before a restore stay"
    )
    partial_retention: int = _named(
        "BACKUP_PARTIAL_RETENTION", default=7, ge=1, le=36500, description="Days that partial sets stay once a later whole one is verified"
    )
    daily_minimum: int = _named(
        "BACKUP_DAILY_MINIMUM", default=3, ge=1, description="So many of the newest verified daily sets stay whatever their age"
    )
    weekly_minimum: int = _named("BACKUP_WEEKLY_MINIMUM", default=2, ge=1, description="The same of weekly sets")
    monthly_minimum: int = _named("BACKUP_MONTHLY_MINIMUM", default=2, ge=1, description="The same of monthly sets")
    manual_minimum: int = _named("BACKUP_MANUAL_MINIMUM", default=1, ge=1, description="The same of sets taken by hand")
    retention_apply_from_ui: bool = _named(
        "BACKUP_RETENTION_APPLY_FROM_UI",
        default=False,
        description="Whether a plan may be applied from the Dagster UI, by its digest; the UI knows no users",
    )

    # Offsite
    s3_bucket: str | None = _named(
        "BACKUP_S3_BUCKET", default=None, description="Bucket of the offsite copies; without it nothing leaves the house"
    )
    s3_prefix: str = _named("BACKUP_S3_PREFIX", default="", description="Key prefix inside the bucket")
    s3_endpoint_url: str | None = _named("BACKUP_S3_ENDPOINT_URL", default=None, description="Endpoint of an S3-compatible service")
    s3_storage_class: str = _named("BACKUP_S3_STORAGE_CLASS", default="STANDARD_IA", description="Storage class of uploaded objects")
    s3_confirm: Literal["readback", "checksum"] = _named(
        "BACKUP_S3_CONFIRM",
        default="readback",
        description="How an upload is confirmed: read back and hashed, or by the endpoint's own checksum",
    )
    s3_checksums: Literal["when_supported", "when_required"] = _named(
        "BACKUP_S3_CHECKSUMS", default="when_supported", description="Whether uploads carry checksums; some providers refuse them"
    )
    s3_concurrency: int = _named("BACKUP_S3_CONCURRENCY", default=4, ge=1, le=64, description="Parallel transfers")
    aws_access_key_id: SecretStr | None = _named(
        "AWS_ACCESS_KEY_ID", default=None, description="As everywhere in AWS; else the usual chain"
    )
    aws_secret_access_key: SecretStr | None = _named("AWS_SECRET_ACCESS_KEY", default=None, description="As everywhere in AWS")
    aws_session_token: SecretStr | None = _named("AWS_SESSION_TOKEN", default=None, description="As everywhere in AWS")
    aws_region: str | None = _named("AWS_REGION", "AWS_DEFAULT_REGION", default=None, description="Region of the bucket")

    _provenance: dict[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # load_settings() hands in the merged values itself, so that it knows where each came from.
        return (init_settings,)

    @field_validator("backup_timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            zoneinfo.ZoneInfo(value)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            near = difflib.get_close_matches(value, zoneinfo.available_timezones(), n=1)
            raise ValueError(f"{value!r} is no IANA time zone" + (f"; did you mean {near[0]}?" if near else "")) from None
        return value

    @field_validator("daily_cron", "weekly_cron", "monthly_cron")
    @classmethod
    def _cron(cls, value: str) -> str:
        return check_cron(value)

    @field_validator("backup_dir", "scratch_dir")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        # The command line, the web server and the daemon run in different working directories and must mean the same place.
        if value is not None and not value.is_absolute():
            raise ValueError(f"must be an absolute path, for example {Path.cwd() / value}")
        return value

    @property
    def provenance(self) -> Mapping[str, str]:
        """Field name → where its value came from: ``environment (NAME)``, ``.env path (NAME)`` or ``default``."""
        return self._provenance

    @property
    def notices(self) -> tuple[str, ...]:
        """Things about the settings that are accepted and should be changed or known."""
        told = []
        for field, old in _OLD_NAMES.items():
            if self.provenance.get(field, "").endswith(f"({old})"):
                told.append(f"{old} is an old name; call it {variable_names(field)[0]}")
        day = self.monthly_cron.split()[2]
        if day.isdigit() and int(day) > _EVERY_MONTH_HAS:
            told.append(f"BACKUP_MONTHLY_CRON names day {day}: months without it get no monthly set")
        return tuple(told)

    @property
    def timezone(self) -> zoneinfo.ZoneInfo:
        return zoneinfo.ZoneInfo(self.backup_timezone)

    @property
    def scratch_root(self) -> Path:
        return self.scratch_dir or self.backup_dir / ".scratch"

    @property
    def postgres(self) -> PostgresConnection:
        return PostgresConnection(
            host=self.db_host,
            port=self.db_port,
            dbname=self.db_name,
            user=self.db_user,
            password=self.db_password,
            sslmode=self.db_sslmode,
            sslrootcert=self.db_sslrootcert,
            sslcert=self.db_sslcert,
            sslkey=self.db_sslkey,
        )

    @property
    def redis(self) -> RedisConnection:
        parts = RedisConnection(
            host=self.redis_host,
            port=self.redis_port,
            username=self.redis_username,
            password=self.redis_password,
            tls=self.redis_tls,
            ca_file=self.redis_ca_file,
            cert_file=self.redis_cert_file,
            key_file=self.redis_key_file,
        )
        return _from_redis_url(self.redis_url.get_secret_value(), parts) if self.redis_url else parts

    @property
    def qdrant(self) -> QdrantConnection:
        url = self.qdrant_url or f"http://{self.qdrant_host}:{self.qdrant_port}"
        if urllib.parse.urlsplit(url).scheme not in {"http", "https"}:
            raise ConfigError(f"QDRANT_URL is {url!r}", hint="It must begin with http:// or https://.")
        return QdrantConnection(
            url=url.rstrip("/"),
            api_key=self.qdrant_api_key,
            ca_file=self.qdrant_ca_file,
            verify_tls=self.qdrant_verify_tls,
            nodes=tuple(n.strip().rstrip("/") for n in self.qdrant_nodes.split(",") if n.strip()),
        )

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every secret value, for redaction."""
        found = [v.get_secret_value() for v in self.__dict__.values() if isinstance(v, SecretStr)]
        found.append(self.redis.password.get_secret_value())
        return tuple(s for s in found if s)


def check_cron(value: str) -> str:
    """Return a cron string of five fields of numbers, ``*``, ranges, lists and steps; raises ValueError naming the wrong field."""
    fields = value.split()
    if len(fields) != len(_CRON_RANGES):
        raise ValueError(f"{value!r} has {len(fields)} fields; a cron string has five, for example 0 2 * * *")
    for text, (low, high) in zip(fields, _CRON_RANGES, strict=True):
        for part in text.split(","):
            match = _CRON_PART.fullmatch(part)
            numbers = [int(n) for n in match.groups()[:2] if n] if match else []
            step = int(match[3] or 1) if match else 0
            if match is None or numbers != sorted(numbers) or any(not low <= n <= high for n in (*numbers, max(step, low))):
                raise ValueError(f"{part!r} in {value!r} is no number, range or step from {low} to {high}")
    return " ".join(fields)


def _from_redis_url(url: str, parts: RedisConnection) -> RedisConnection:
    split = urllib.parse.urlsplit(url)
    unquote = urllib.parse.unquote
    if split.scheme not in {"redis", "rediss", "unix"}:
        raise ConfigError("REDIS_URL does not begin with redis://, rediss:// or unix://", hint="Example: redis://:password@host:6379/0")
    try:
        port = split.port or parts.port
    except ValueError as exc:
        raise ConfigError(f"REDIS_URL: {exc}", hint="Example: redis://:password@host:6379/0") from None
    return parts.model_copy(
        update={
            "host": split.hostname or parts.host,
            "port": port,
            "username": unquote(split.username) if split.username else parts.username,
            "password": SecretStr(unquote(split.password)) if split.password else parts.password,
            "tls": split.scheme == "rediss" or parts.tls,
            "unix_socket": Path(split.path) if split.scheme == "unix" else None,
        }
    )


def variable_names(field: str) -> tuple[str, ...]:
    """The names of the variables that a field is read from, the preferred one first."""
    alias = Settings.model_fields[field].validation_alias
    return tuple(str(c) for c in alias.choices) if isinstance(alias, AliasChoices) else (field,)


def load_settings(environ: Mapping[str, str] | None = None, *, env_file: Path | None = None) -> Settings:
    """Read and check all settings.

    Args:
        environ: the environment, ``os.environ`` by default.
        env_file: the ``.env`` file; default: the one that ``SCHOLARIA_OPS_ENV_FILE`` names (it must exist then), else ``.env``
            in the working directory if there is one.

    Raises:
        ConfigError: naming every variable that is wrong or unknown, where it was set, and what would be right.
    """
    env = dict(os.environ if environ is None else environ)
    path, from_file = _read_env_file(env, env_file)
    file_label = str(path) if path else ".env"
    _refuse_unknown(env, from_file, file_label)
    values: dict[str, str] = {}
    provenance: dict[str, str] = {}
    for field in Settings.model_fields:
        provenance[field] = "default"
        for label, source in (("environment", env), (file_label, from_file)):
            name = next((n for n in variable_names(field) if source.get(n)), None)
            if name:
                values[name] = source[name]
                provenance[field] = f"{label} ({name})"
                break
    try:
        settings = Settings(**values)  # type: ignore[arg-type]  # strings from outside, checked by pydantic here
    except ValidationError as exc:
        raise ConfigError(_explain(exc, values, provenance), hint="Correct it and run `scholaria-ops config` to see the result.") from None
    settings._provenance.update(provenance)
    return settings


def _read_env_file(env: Mapping[str, str], env_file: Path | None) -> tuple[Path | None, dict[str, str]]:
    named = env_file or (Path(env[ENV_FILE_VARIABLE]) if env.get(ENV_FILE_VARIABLE) else None)
    path = named or Path(".env")
    if not path.is_file():
        if named:
            raise ConfigError(f"the settings file {named} does not exist", hint=f"Check --env-file or {ENV_FILE_VARIABLE}.")
        return None, {}
    try:
        return path, {k: v for k, v in dotenv_values(path, interpolate=False).items() if v}
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(
            f"cannot read the settings file {path}: {exc}", hint="It must be readable UTF-8 text of NAME=value lines."
        ) from exc


def _refuse_unknown(env: Mapping[str, str], from_file: Mapping[str, str], file_label: str) -> None:
    known = {name for field in Settings.model_fields for name in variable_names(field)}
    complaints = []
    for label, source in (("the environment", env), (file_label, from_file)):
        for name in sorted(source):
            if name.startswith(_GUARDED_PREFIX) and name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                complaints.append(f"{name} in {label} is no setting" + (f"; did you mean {near[0]}?" if near else ""))
    if complaints:
        raise ConfigError("\n".join(complaints), hint="Correct or remove it; `scholaria-ops config` lists every name.")


def _explain(exc: ValidationError, values: Mapping[str, str], provenance: Mapping[str, str]) -> str:
    lines = []
    for error in exc.errors(include_url=False, include_input=False):
        name = str(error["loc"][0]) if error["loc"] else "?"
        field = next((f for f in Settings.model_fields if name in variable_names(f)), None)
        secret = field is not None and "SecretStr" in str(Settings.model_fields[field].annotation)
        shown = "***" if secret else repr(values.get(name, ""))
        lines.append(
            f"{name}={shown} from {provenance.get(field or '', '?').partition(' (')[0]}: {error['msg'].removeprefix('Value error, ')}"
        )
    return "\n".join(lines)
