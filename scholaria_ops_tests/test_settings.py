"""Settings: the operators' own names, clear errors, no secrets shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from scholaria_ops.errors import ConfigError
from scholaria_ops.settings import ENV_FILE_VARIABLE, SECTIONS, Settings, load_settings, variable_names


def test_defaults_need_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings({})
    assert settings.postgres.where == "localhost:5432/scholaria"
    assert settings.redis.where == "localhost:6379"
    assert settings.qdrant.url == "http://localhost:6333"
    assert set(settings.provenance.values()) == {"default"}


def test_environment_wins_over_the_file_and_provenance_says_so(tmp_path: Path) -> None:
    env_file = tmp_path / "ops.env"
    env_file.write_text("DB_HOST=from-file\nDB_PORT=6000\nPOSTGRES_PASSWORD=pä$${x}\n", encoding="utf-8")
    settings = load_settings({"DB_HOST": "from-env", ENV_FILE_VARIABLE: str(env_file)})
    assert (settings.db_host, settings.db_port) == ("from-env", 6000)
    assert settings.db_password.get_secret_value() == "pä$${x}", "no interpolation: a password is taken as it stands"
    assert settings.provenance["db_host"] == "environment (DB_HOST)"
    assert settings.provenance["db_password"] == f"{env_file} (POSTGRES_PASSWORD)"


def test_the_variable_wins_even_when_the_file_has_the_preferred_alias(tmp_path: Path) -> None:
    env_file = tmp_path / "ops.env"
    env_file.write_text("DB_PASSWORD=file\n")
    settings = load_settings({"POSTGRES_PASSWORD": "env"}, env_file=env_file)
    assert settings.db_password.get_secret_value() == "env"


def test_unknown_backup_names_are_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"BACKUP_TIMEZON in the environment is no setting; did you mean BACKUP_TIMEZONE\?"):
        load_settings({"BACKUP_TIMEZON": "UTC"})


def test_every_wrong_value_is_named_with_its_origin_but_no_secret() -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings({"DB_PORT": "many", "BACKUP_TIMEZONE": "Asia/Seul", "DB_PASSWORD": "hunter2"})
    text = str(caught.value)
    assert "DB_PORT='many' from environment" in text
    assert "did you mean Asia/Seoul?" in text
    assert "hunter2" not in text


def test_a_named_settings_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_settings({ENV_FILE_VARIABLE: str(tmp_path / "none.env")})


@pytest.mark.parametrize(
    ("url", "where", "tls", "user"),
    [
        ("redis://:p%40ss@cache:7000/3", "cache:7000", False, None),
        ("rediss://ops:p%40ss@cache", "cache:6379", True, "ops"),
        ("unix:///run/redis.sock", "/run/redis.sock", False, None),
    ],
)
def test_redis_url_forms(url: str, where: str, tls: bool, user: str | None) -> None:
    redis = load_settings({"REDIS_URL": url}).redis
    assert (redis.where, redis.tls, redis.username) == (where, tls, user)
    if "%40" in url:
        assert redis.password.get_secret_value() == "p@ss"


@pytest.mark.parametrize("url", ["http://cache", "redis://cache:notaport"])
def test_a_wrong_redis_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigError, match="REDIS_URL"):
        _ = load_settings({"REDIS_URL": url}).redis


def test_secrets_never_appear_in_repr() -> None:
    settings = load_settings({"DB_PASSWORD": "s3cr3t-a", "REDIS_URL": "redis://:s3cr3t-b@h", "QDRANT_API_KEY": "s3cr3t-c"})
    shown = repr(settings) + str(settings) + repr(settings.postgres) + repr(settings.redis) + repr(settings.qdrant)
    assert "s3cr3t" not in shown
    assert {"s3cr3t-a", "s3cr3t-b", "s3cr3t-c"} <= set(settings.secrets)


def test_every_setting_has_a_description_and_a_unique_name() -> None:
    names = [name for field in Settings.model_fields for name in variable_names(field)]
    assert len(names) == len(set(names))
    assert all(info.description for info in Settings.model_fields.values())


def test_retention_has_its_defaults_and_accepts_the_old_names_with_a_notice() -> None:
    settings = load_settings({})
    assert (settings.daily_retention, settings.weekly_retention, settings.monthly_retention) == (7, 30, 365)
    assert not settings.notices
    settings = load_settings({"DAILY_RETENTION": "9", "WEEKLY_RETENTION": "40", "BACKUP_MONTHLY_RETENTION": "400", "RETENTION_DAYS": "12"})
    assert (settings.daily_retention, settings.weekly_retention, settings.monthly_retention, settings.manual_retention) == (9, 40, 400, 12)
    assert settings.notices == (
        "DAILY_RETENTION is an old name; call it BACKUP_DAILY_RETENTION",
        "WEEKLY_RETENTION is an old name; call it BACKUP_WEEKLY_RETENTION",
    )
    with pytest.raises(ConfigError, match="BACKUP_DAILY_RETENTION='0'"):
        load_settings({"BACKUP_DAILY_RETENTION": "0"})


@pytest.mark.parametrize(
    "wrong",
    ["2 * * *", "60 2 * * *", "0 24 * * *", "0 2 0 * *", "0 2 * 13 *", "0 2 * * 8", "@daily", "5-1 * * * *", "*/0 * * * *", "*/75 * * * *"],
)
def test_a_wrong_cron_string_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match="BACKUP_DAILY_CRON"):
        load_settings({"BACKUP_DAILY_CRON": wrong})


def test_cron_strings_are_tidied_and_a_day_that_not_every_month_has_is_noticed() -> None:
    settings = load_settings({"BACKUP_DAILY_CRON": " 30   1-5/2 1,15 * 1-5 ", "BACKUP_MONTHLY_CRON": "0 4 31 * *"})
    assert settings.daily_cron == "30 1-5/2 1,15 * 1-5"
    assert settings.notices == ("BACKUP_MONTHLY_CRON names day 31: months without it get no monthly set",)


def test_no_section_takes_away_the_check_of_another_by_bearing_its_name() -> None:
    names = [name for section in SECTIONS for name in section.__pydantic_decorators__.field_validators]
    assert sorted(names) == sorted(Settings.__pydantic_decorators__.field_validators)
