"""The Compose files and the image say only what Compose, the checkout and the settings know, and every service is held as tightly."""

from __future__ import annotations

import importlib.resources
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from scholaria_ops.process import run, which
from scholaria_ops.settings import ENV_FILE_VARIABLE, Settings, variable_names
from scholaria_ops_tests.deploy.support import DEPLOY, ROOT, VENV, rows

COMPOSE = DEPLOY / "compose"
DOCKERFILE = COMPOSE / "Dockerfile"
_PLACEHOLDER = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")
_OF_THE_IMAGE = {"DAGSTER_HOME", "SCHOLARIA_OPS_SOCKET", ENV_FILE_VARIABLE, "PATH", "LANG", "PYTHONDONTWRITEBYTECODE"}


class _Loader(yaml.SafeLoader):
    """Compose's YAML: with its two tags for override files."""


def _sequence(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> list[Any]:
    return loader.construct_sequence(node, deep=True)


_Loader.add_constructor("!override", _sequence)
_Loader.add_constructor("!reset", lambda _loader, _node: {})


def load(name: str, values: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A Compose file with its placeholders filled in, from ``values`` or their defaults. Raises KeyError for one that must be set."""
    values = values or {}

    def fill(match: re.Match[str]) -> str:
        name_, kind, default = match.groups()
        if values.get(name_):
            return values[name_]
        if kind != "-":
            raise KeyError(name_)
        return str(default)

    text = "\n".join("" if line.lstrip().startswith("#") else line for line in (COMPOSE / name).read_text().splitlines())
    loaded = yaml.load(_PLACEHOLDER.sub(fill, text), _Loader)  # noqa: S506 — a SafeLoader with two tags more
    assert isinstance(loaded, dict)
    return loaded


def example() -> dict[str, str]:
    return {**rows((COMPOSE / "env.example").read_text()), "DAGSTER_PG_PASSWORD": "secret-of-the-test"}


def compose() -> dict[str, Any]:
    return load("compose.yaml", example())


OURS = sorted(name for name, service in compose()["services"].items() if service["image"].startswith("scholaria-ops:"))
each_of_ours = pytest.mark.parametrize("name", OURS)


@pytest.mark.parametrize("name", ["compose.yaml", "inside.yaml"])
def test_the_files_follow_the_compose_specification(name: str) -> None:
    schema = json.loads(importlib.resources.files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(load(name, example()))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate({"services": {"a": {"image": "b", "comand": "c"}}})


def test_compose_itself_can_resolve_them(tmp_path: Path) -> None:
    docker = which("docker")
    if docker is None or run([str(docker), "compose", "version"], check=False).returncode != 0:
        pytest.skip("Docker Compose is not on this machine; the schema and the checks here have looked at the same files")
    env_file = tmp_path / "env"
    env_file.write_text("".join(f"{k}={v}\n" for k, v in example().items()))
    for files in (["compose.yaml"], ["compose.yaml", "inside.yaml"]):
        words = [word for file in files for word in ("-f", str(COMPOSE / file))]
        run([str(docker), "compose", "--env-file", str(env_file), *words, "config", "--quiet"])


def test_every_placeholder_is_in_the_example_and_only_those() -> None:
    named = {m[1] for m in _PLACEHOLDER.finditer((COMPOSE / "compose.yaml").read_text())}
    optional = {"SCHOLARIA_OPS_TAG", "SCHOLARIA_OPS_SETTINGS"}
    assert rows((COMPOSE / "env.example").read_text()).keys() == named - optional
    # A name that a setting has would be mistaken for it.
    assert named & _setting_names() == set()


@pytest.mark.parametrize("missing", ["DAGSTER_PG_PASSWORD", "SCHOLARIA_NETWORK", "SCHOLARIA_BACKUPS"])
def test_what_has_no_sensible_default_must_be_set(missing: str) -> None:
    with pytest.raises(KeyError, match=missing):
        load("compose.yaml", {**example(), missing: ""})


@each_of_ours
def test_every_service_of_ours_is_held_tightly(name: str) -> None:
    service = compose()["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert "privileged" not in service
    assert "user" not in service, "the image's own user"
    limits = service["deploy"]["resources"]["limits"]
    assert {"cpus", "memory", "pids"} == limits.keys()
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    if name != "ops-migrate":
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"][0] == "CMD"


def test_ports_are_published_on_the_loopback_interface_only() -> None:
    published = [port for service in compose()["services"].values() for port in service.get("ports", [])]
    assert len(published) == 3
    assert [p for p in published if not p.startswith("127.0.0.1:")] == []


def test_only_the_code_location_reaches_the_stores_and_writes_sets() -> None:
    services = compose()["services"]
    assert [n for n, s in services.items() if "application" in s["networks"]] == ["ops-code"]
    mounts = {n: [v for v in s.get("volumes", []) if ":/var/backups/" in v] for n, s in services.items()}
    assert {n for n, found in mounts.items() if found} == {"ops-code", "ops-metrics"}
    assert mounts["ops-metrics"][0].endswith(":ro")
    assert compose()["networks"]["application"] == {"external": True, "name": "scholaria_default"}
    inside = load("inside.yaml")
    assert inside["services"] == {"ops-code": {"networks": ["ops", "default"]}}


def test_names_that_refer_to_something_do() -> None:
    whole = compose()
    for name, service in whole["services"].items():
        assert service.get("depends_on", {}).keys() <= whole["services"].keys()
        assert set(service["networks"]) <= whole["networks"].keys(), name
        volumes = [v.partition(":")[0] for v in service.get("volumes", [])]
        assert {v for v in volumes if not v.startswith(("/", "."))} <= whole["volumes"].keys(), name
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in whole["services"][other]


@each_of_ours
def test_commands_exist_and_know_their_options(name: str) -> None:
    service = compose()["services"][name]
    for program, *words in [service["command"], *([service["healthcheck"]["test"][1:]] if "healthcheck" in service else [])]:
        here = VENV / program
        assert here.exists(), program
        if program == "python":
            compile(words[1], name, "exec")
            continue
        verbs = words[: next((n for n, w in enumerate(words) if w.startswith("-")), len(words))]
        told = run([str(here), *verbs, "--help"], env={"COLUMNS": "200", "TERM": "dumb"}, timeout_s=120).stdout.decode()
        assert [w for w in words if w.startswith("--") and not re.search(rf"(?<![\w-]){re.escape(w)}(?![\w-])", told)] == []


def test_variables_of_the_containers_are_those_that_dagster_yaml_asks_for_and_no_settings() -> None:
    wanted = set(re.findall(r"env: (\w+)", (COMPOSE / "dagster.yaml").read_text()))
    for name in OURS:
        assert compose()["services"][name]["environment"].keys() == wanted
    assert wanted & _setting_names() == set()
    image = {m for line in instructions("ENV") for m in re.findall(r"(\w+)=", line)}
    # A setting in the image or the environment would win over the settings file for ever.
    assert image == _OF_THE_IMAGE


def test_no_secret_is_in_a_command_line() -> None:
    for service in compose()["services"].values():
        words = json.dumps([service.get("command"), service.get("healthcheck"), service.get("build")])
        assert "secret-of-the-test" not in words


def test_the_image_is_linted() -> None:
    hadolint = VENV / "hadolint"
    said = run([str(hadolint), "--no-color", str(DOCKERFILE)], check=False)
    assert (said.returncode, said.stdout.decode()) == (0, "")


def test_everything_that_the_image_copies_from_the_checkout_exists_and_is_let_in() -> None:
    let_in = {line[1:] for line in (COMPOSE / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {source for line in instructions("COPY") for source in _sources(line)}
    assert "scholaria_ops" in copied
    assert copied == let_in
    assert [c for c in copied if not (ROOT / c).exists()] == []
    stages = set(re.findall(r"^FROM .* AS (\w+)$", DOCKERFILE.read_text(), re.MULTILINE))
    assert {m for line in instructions("COPY") for m in re.findall(r"--from=(\w+)", line)} <= stages


def test_the_image_is_built_from_plain_names_and_runs_as_nobody_in_particular() -> None:
    images = [line.split()[1] for line in DOCKERFILE.read_text().splitlines() if line.startswith("FROM ")]
    # A dot before the first slash would be the host of a registry.
    assert [i for i in images if "." in i.partition("/")[0] and "/" in i] == []
    assert list(instructions("USER")) == ["${APP_UID}"]
    arguments = {line.partition("=")[0] for line in instructions("ARG")}
    assert compose()["services"]["ops-code"]["build"]["args"].keys() <= arguments
    defaults = dict(line.split("=") for line in instructions("ARG") if "=" in line)
    for name in ("PG_VERSION", "REDIS_VERSION", "QDRANT_VERSION"):
        assert rows((COMPOSE / "env.example").read_text())[name] == defaults[name]


def test_postgresqls_programs_are_collected_with_their_libraries(tmp_path: Path) -> None:
    installed = sorted(Path("/usr/lib/postgresql").glob("[0-9]*/bin/initdb"))
    if not installed or which("ldd") is None:
        pytest.skip("no distribution's PostgreSQL is on this machine to try the image's collecting script on")
    prefix = installed[-1].parents[1]
    run(["sh", str(COMPOSE / "collect-postgres.sh"), str(prefix), str(tmp_path)], timeout_s=120)
    collected = tmp_path / str(prefix).lstrip("/")
    environment = {"LD_LIBRARY_PATH": str(collected / "lib")}
    for program in ("postgres", "initdb", "pg_dump", "pg_restore", "psql"):
        linked = run(["ldd", str(collected / "bin" / program)], env=environment).stdout.decode()
        assert "not found" not in linked
        assert str(collected / "lib" / "libpq.so") in linked or program == "postgres"
        assert run([str(collected / "bin" / program), "--version"], env=environment).stdout
    assert not list((collected / "lib").glob("libc.so*"))
    assert (tmp_path / "usr/share/postgresql" / prefix.name / "postgres.bki").exists()


def instructions(keyword: str) -> Iterator[str]:
    """What follows a keyword in the Dockerfile, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^#.*\n", "", DOCKERFILE.read_text()))
    for line in text.splitlines():
        if line.startswith(f"{keyword} "):
            yield line.removeprefix(f"{keyword} ")


def _sources(line: str) -> list[str]:
    words = shlex.split(line)
    return [] if words[0].startswith("--from=") else words[:-1]


def _setting_names() -> set[str]:
    return {name for field in Settings.model_fields for name in variable_names(field)}
