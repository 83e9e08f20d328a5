"""The units say only what systemd, the checkout and the settings know, and all of them are hardened alike."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from scholaria_ops.process import run, which
from scholaria_ops.settings import ENV_FILE_VARIABLE, Settings, variable_names
from scholaria_ops_tests.deploy.support import ROOT, UNITS, VENV, commands_of, environment_of, read_unit

SERVICES = sorted(UNITS.glob("*.service"))
TARGET = UNITS / "scholaria-ops@.target"
_INSTALLED = "/opt/scholaria-ops"
_UNIT_KEYS = {"Description", "Documentation", "Wants", "After", "PartOf"}
_INSTALL_KEYS = {"WantedBy"}
_HARDENING = {
    "NoNewPrivileges": "yes",
    "UMask": "0077",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "ProtectClock": "yes",
    "ProtectHostname": "yes",
    "ProtectKernelLogs": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectControlGroups": "yes",
    "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    "RestrictNamespaces": "yes",
    "RestrictRealtime": "yes",
    "RestrictSUIDSGID": "yes",
    "LockPersonality": "yes",
    "CapabilityBoundingSet": "",
    "SystemCallArchitectures": "native",
    "SystemCallFilter": "@system-service",
    "SystemCallErrorNumber": "EPERM",
}
_SERVICE_KEYS = _HARDENING.keys() | {
    *("User", "Group", "WorkingDirectory", "Environment", "EnvironmentFile", "ExecStartPre", "ExecStart", "RuntimeDirectory"),
    *("RuntimeDirectoryMode", "LogsDirectory", "LogsDirectoryMode", "Restart", "RestartSec", "KillMode", "TimeoutStopSec", "LimitNOFILE"),
    *("TasksMax", "MemoryMax", "ReadWritePaths", "ReadOnlyPaths", "SuccessExitStatus"),
}
#: Would break what the services are for; each for the reason in the units.
_NEVER = {"ProtectProc", "RemoveIPC", "MemoryDenyWriteExecute", "PrivateNetwork", "DynamicUser", "PrivateUsers"}

each_service = pytest.mark.parametrize("path", SERVICES, ids=lambda p: p.name)


def test_there_are_units_for_what_has_to_run() -> None:
    assert {"scholaria-ops-code@.service", "scholaria-ops-daemon@.service", "scholaria-ops-web@.service"} <= {p.name for p in SERVICES}
    wanted = read_unit(TARGET)["Unit"]["Wants"][0].split()
    assert [w for w in wanted if not (UNITS / w.replace("%i", "")).exists()] == []


def test_a_line_that_is_no_assignment_is_caught(tmp_path: Path) -> None:
    bad = tmp_path / "bad.service"
    bad.write_text("[Service]\nExecStart /bin/true\n")
    with pytest.raises(ValueError, match=r"bad\.service:2"):
        read_unit(bad)


@each_service
def test_sections_and_keys_are_known_and_hardening_is_the_same_everywhere(path: Path) -> None:
    unit = read_unit(path)
    assert unit.keys() == {"Unit", "Service", "Install"}
    assert unit["Unit"].keys() - _UNIT_KEYS == set()
    assert unit["Install"].keys() - _INSTALL_KEYS == set()
    assert unit["Service"].keys() - _SERVICE_KEYS == set()
    assert unit["Service"].keys() & _NEVER == set()
    assert {key: unit["Service"][key] for key in _HARDENING} == {key: [value] for key, value in _HARDENING.items()}
    assert unit["Service"]["User"] == ["scholaria-ops"]


@each_service
def test_units_named_by_a_unit_exist(path: Path) -> None:
    unit = read_unit(path)
    named = [
        word for section in (unit["Unit"], unit["Install"]) for key in ("Wants", "After", "PartOf", "WantedBy") for word in section[key]
    ]
    ours = [n for line in named for n in line.split() if n.startswith("scholaria-ops")]
    assert ours
    assert [n for n in ours if not (UNITS / n.replace("%i", "")).exists()] == []


@each_service
def test_programs_exist_and_know_their_options(path: Path) -> None:
    service = read_unit(path)["Service"]
    environment = environment_of(service)
    lines = [*commands_of(service, environment, "ExecStartPre"), *commands_of(service, environment)]
    assert len(commands_of(service, environment)) == 1
    for program, *words in lines:
        assert Path(program).parent == Path(_INSTALLED, ".venv/bin"), program
        here = VENV / Path(program).name
        assert here.exists(), program
        names = [w for w in words if w.startswith("--")]
        verbs = words[: next((n for n, w in enumerate(words) if w.startswith("-")), len(words))]
        told = run([str(here), *verbs, "--help"], env={"COLUMNS": "200", "TERM": "dumb"}, timeout_s=120).stdout.decode()
        assert [n for n in names if not re.search(rf"(?<![\w-]){re.escape(n)}(?![\w-])", told)] == []


@each_service
def test_files_of_the_checkout_that_are_named_exist(path: Path) -> None:
    named = re.findall(rf"{_INSTALLED}/(?!\.venv)([\w./-]+)", path.read_text())
    assert named
    assert [n for n in named if not (ROOT / n).exists()] == []


@each_service
def test_variables_are_known_and_no_secret_is_in_sight(path: Path) -> None:
    service = read_unit(path)["Service"]
    settings = {name for f in Settings.model_fields for name in variable_names(f)}
    others = {"DAGSTER_HOME", "SCHOLARIA_OPS_SOCKET", ENV_FILE_VARIABLE, "PATH", "WEB_PORT", "READONLY_PORT", "METRICS_PORT"}
    # A setting in a unit would win over the settings file for ever.
    assert environment_of(service).keys() & settings == set()
    assert environment_of(service).keys() - others == set()
    assert not re.search(r"(?i)password|secret|api_?key", " ".join(service["ExecStart"]))


def test_the_user_and_the_directories_that_units_need_are_made() -> None:
    assert re.search(r"^u +scholaria-ops ", (UNITS / "scholaria-ops.sysusers").read_text(), re.MULTILINE)
    made = {line.split()[1] for line in (UNITS / "scholaria-ops.tmpfiles").read_text().splitlines() if line[:1] in {"d", "L"}}
    for path in SERVICES:
        service = read_unit(path)["Service"]
        needed = [*service["WorkingDirectory"], *" ".join([*service["ReadWritePaths"], *service["ReadOnlyPaths"]]).split()]
        assert {n.replace("%i", "scholaria") for n in needed} <= made, path.name
    link = re.search(r"^L\+ .* (/\S+)$", (UNITS / "scholaria-ops.tmpfiles").read_text(), re.MULTILINE)
    assert link
    assert (ROOT / Path(link[1]).relative_to(_INSTALLED)).is_file()


def _systemd(name: str) -> str:
    program = which(name)
    if program is None:
        pytest.skip(f"{name} is not on this machine; the lint above has looked at the same files")
    return str(program)


@pytest.mark.parametrize("path", [*SERVICES, TARGET], ids=lambda p: p.name)
def test_systemd_itself_finds_nothing_to_say(path: Path, tmp_path: Path) -> None:
    program = _systemd("systemd-analyze")
    for unit in [*SERVICES, TARGET]:
        text = unit.read_text().replace(f"{_INSTALLED}/.venv/bin", str(VENV)).replace(_INSTALLED, str(ROOT))
        (tmp_path / unit.name).write_text(text)
    finished = run([program, "verify", "--man=no", str(tmp_path / path.name)], env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:"}, check=False)
    ours = [line for line in finished.stderr_tail.splitlines() if "scholaria" in line]
    assert ours == []


def test_systemd_can_read_users_and_directories(tmp_path: Path) -> None:
    users = _systemd("systemd-sysusers")
    said = run([users, "--dry-run", str(UNITS / "scholaria-ops.sysusers")], check=False)
    assert said.returncode == 0, said.stderr_tail
    # For real, below a directory of our own; users that do not exist there are what the lint leaves to the host.
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    for name in ("passwd", "group"):
        (tree / "etc" / name).write_text(
            {"passwd": "root:x:0:0::/:/bin/sh\nscholaria-ops:x:0:0::/:/bin/sh\n", "group": "root:x:0:\nscholaria-ops:x:0:\n"}[name]
        )
    shutil.copy(UNITS / "scholaria-ops.tmpfiles", tmp_path / "scholaria-ops.conf")
    made = run([_systemd("systemd-tmpfiles"), f"--root={tree}", "--create", str(tmp_path / "scholaria-ops.conf")], check=False)
    assert made.returncode == 0, made.stderr_tail
    home = tree / "var/lib/scholaria-ops/scholaria"
    assert home.stat().st_mode & 0o777 == 0o700
    assert (home / "dagster.yaml").is_symlink()
