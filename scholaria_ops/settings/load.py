"""All settings together, and the only place that reads the environment."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values
from pydantic import AliasChoices, PrivateAttr, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from scholaria_ops.connections import PostgresConnection, RedisConnection
from scholaria_ops.errors import ConfigError
from scholaria_ops.settings.fence import FenceSettings
from scholaria_ops.settings.logs import LogSettings
from scholaria_ops.settings.notify import NotifySettings
from scholaria_ops.settings.offsite import OffsiteSettings
from scholaria_ops.settings.restore import RestoreSettings
from scholaria_ops.settings.sets import DumpSettings, PlaceSettings, RetentionSettings, ScheduleSettings
from scholaria_ops.settings.stores import PostgresSettings, QdrantSettings, RedisSettings, ToolSettings
from scholaria_ops.settings.upkeep import UpkeepSettings

#: Names the file to read instead of ``.env`` in the working directory.
ENV_FILE_VARIABLE = "SCHOLARIA_OPS_ENV_FILE"
#: Names beginning with this must be known.
_GUARDED_PREFIX = "BACKUP_"
#: Field → the name that the operators' older scripts used; accepted with a notice.
_OLD_NAMES = {"daily_retention": "DAILY_RETENTION", "weekly_retention": "WEEKLY_RETENTION", "monthly_retention": "MONTHLY_RETENTION"}
_EVERY_MONTH_HAS = 28
#: The groups in the order in which people read them; the docstring of each is its title.
SECTIONS = (
    PostgresSettings,
    RedisSettings,
    QdrantSettings,
    PlaceSettings,
    DumpSettings,
    ToolSettings,
    ScheduleSettings,
    RetentionSettings,
    UpkeepSettings,
    OffsiteSettings,
    FenceSettings,
    RestoreSettings,
    NotifySettings,
    LogSettings,
)


class Settings(
    # pydantic collects the fields of the last base first.
    LogSettings,
    NotifySettings,
    FenceSettings,
    RestoreSettings,
    OffsiteSettings,
    UpkeepSettings,
    RetentionSettings,
    ScheduleSettings,
    ToolSettings,
    DumpSettings,
    PlaceSettings,
    QdrantSettings,
    RedisSettings,
    PostgresSettings,
    BaseSettings,
):
    """Effective settings. Make one with :func:`load_settings`; the field descriptions are the settings table of the docs."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True, case_sensitive=True)

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
    def postgres_restore(self) -> PostgresConnection:
        """The live PostgreSQL, as the role that restores."""
        return self.restoring(self.postgres)

    @property
    def redis_restore(self) -> RedisConnection:
        """The live Redis, as the ACL user that restores."""
        return self.restoring_redis(self.redis)

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every secret value, for redaction."""
        found = [v.get_secret_value() for v in self.__dict__.values() if isinstance(v, SecretStr)]
        found.append(self.redis.password.get_secret_value())
        found += self.notify_secrets
        return tuple(s for s in found if s)


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
