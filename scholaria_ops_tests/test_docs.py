"""The documentation says nothing that the program does not know: commands, options, settings, links, and pages written from code."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from scholaria_ops.catalogue.manifest import Manifest
from scholaria_ops.cli import commands
from scholaria_ops.cli.main import EXIT_CODES, app
from scholaria_ops.cli.settings_table import page
from scholaria_ops.errors import OpsError
from scholaria_ops.settings import ENV_FILE_VARIABLE, Settings, variable_names
from scholaria_ops.stores.redis.wire import ACL_RULES

commands.register([])
ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
KOREAN = ROOT / "docs" / "ko"
#: Placeholders of the synopses.
_PLACEHOLDERS = {"SET", "FILE", "TIER", "TEXT", "LEVEL", "SOURCE", "PERIOD", "COMMAND", "[OPTIONS]", "[SET]"}
#: Variables of other programs, and the names that the pages misspell on purpose.
_NOT_OURS = {"BACKUP_S3_BUKET", "DAGSTER_HOME", ENV_FILE_VARIABLE, "REDIS_DIR", "REDIS_CONF", "REDIS_VERSION", "QDRANT_VERSION"}
_VARIABLE = re.compile(r"\b(?:(?:BACKUP|AWS|DB|REDIS|QDRANT)_[A-Z0-9_]+|PG_BIN_DIR|POSTGRES_PASSWORD)(?![A-Z0-9_*])")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^( *)```.*?^\1```", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def _ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


every_page = pytest.mark.parametrize("path", PAGES, ids=_ids)


def command_lines(text: str) -> Iterator[str]:
    """Every ``scholaria-ops …`` of a page: at the start of a line of a code block (after a prompt or variables), or in backticks."""
    for line in text.splitlines():
        if found := re.match(r"^\s*(?:\$ )?(?:[A-Z_0-9]+=\S+ )*(scholaria-ops .+)$", line):
            yield found[1]
    yield from re.findall(r"`(scholaria-ops [^`]+)`", text)


def problems_of(line: str) -> Iterator[str]:
    """What the program would not understand in a command line."""
    words = shlex.split(line.partition("#")[0].partition("|")[0].partition("<command>")[0])[1:]
    group = typer.main.get_command(app)
    known = group.commands  # type: ignore[attr-defined]
    if words and words[0] == "[--env-file":
        return  # the synopsis
    while words and words[0].startswith("-"):
        words = words[2:] if words[0] == "--env-file" else words[1:]
    if not words or words[0] in _PLACEHOLDERS:
        return
    if words[0] not in known:
        yield f"no command {words[0]!r}"
        return
    options = {name for parameter in known[words[0]].params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    arguments = [word for word in words[1:] if word.startswith("--")]
    yield from (f"{words[0]} has no option {word}" for word in arguments if word.partition("=")[0] not in options)


@every_page
def test_every_command_and_option_named_exists(path: Path) -> None:
    found = list(command_lines(path.read_text()))
    assert [(line, problem) for line in found for problem in problems_of(line)] == []


def test_commands_are_found_at_all_and_wrong_ones_are_caught() -> None:
    assert sum(len(list(command_lines(p.read_text()))) for p in PAGES) > 60
    assert list(problems_of("scholaria-ops backup --teir daily")) == ["backup has no option --teir"]
    assert list(problems_of("scholaria-ops undelete latest")) == ["no command 'undelete'"]
    assert list(problems_of("scholaria-ops --env-file x rehearse --from offsite SET")) == []


def test_every_command_and_option_is_documented() -> None:
    text = (ROOT / "docs" / "commands.md").read_text()
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert known.keys() == {c for c in known if f"\n## {c}\n" in text}
    options = {o for command in known.values() for p in command.params for o in p.opts if o.startswith("--")}
    assert {o for o in options if o not in text} == set()
    assert {f"scholaria-ops/{name}/1" for name in (*known, "error")} == set(re.findall(r"scholaria-ops/[a-z]+/1", text))


def test_every_exit_code_is_documented_with_every_error_code() -> None:
    text = (ROOT / "docs" / "commands.md").read_text()
    rows = dict(re.findall(r"^\| (\d+) \| (.+) \|$", text, re.MULTILINE))
    assert {str(code) for _, code in EXIT_CODES} | {"0"} == rows.keys()
    for kind in _all_errors(OpsError):
        if kind.__module__.startswith("scholaria_ops."):
            code = next(number for base, number in EXIT_CODES if issubclass(kind, base))
            assert f"`{kind.code}`" in rows[str(code)], kind


def _all_errors(kind: type[OpsError]) -> Iterator[type[OpsError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _all_errors(below)


@every_page
def test_every_setting_named_exists(path: Path) -> None:
    known = {name for field in Settings.model_fields for name in variable_names(field)} | _NOT_OURS
    assert set(_VARIABLE.findall(path.read_text())) - known == set()


def test_the_settings_page_is_what_the_settings_say() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == page(), "run python -m scholaria_ops.cli.settings_table > docs/settings.md"


def test_the_readme_gives_redis_rights_as_the_program_states_them() -> None:
    assert ACL_RULES in (ROOT / "README.md").read_text()


def test_the_table_of_the_manifest_names_every_field() -> None:
    table = (ROOT / "docs" / "format.md").read_text()
    assert [field for field in Manifest.model_fields if f"`{field}`" not in table] == []
    schema = json.loads((ROOT / "docs" / "manifest.schema.json").read_text())
    assert schema["properties"].keys() == Manifest.model_fields.keys()


@every_page
def test_every_relative_link_and_image_resolves(path: Path) -> None:
    broken = []
    for target in _LINK.findall(_FENCE.sub("", path.read_text())):
        file, _, anchor = target.partition("#")
        if target.startswith(("http://", "https://")):
            continue
        there = (path.parent / file).resolve() if file else path
        if not there.exists() or (anchor and anchor not in anchors(there.read_text())):
            broken.append(target)
    assert broken == []


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as the usual renderers make them."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in _HEADING.findall(_FENCE.sub("", text))}


@every_page
def test_no_page_leans_on_the_place_where_it_was_written(path: Path) -> None:
    # In pieces, so that this file does not hold them either.
    forbidden = ["/" + "work/", "/" + "root/", "/" + "tmp/", "/" + "home/", "py" + "pi.org", "np" + "mjs", "git" + "hub.com"]
    text = path.read_text()
    assert [word for word in forbidden if word in text] == []
    assert re.findall(r"(?i)\bissue #?\d+|\bsession \d+", text) == []


@pytest.mark.parametrize("path", sorted(KOREAN.rglob("*.md")), ids=_ids)
def test_every_korean_page_has_the_same_commands_as_the_english_one(path: Path) -> None:
    def blocks(page_: Path) -> list[list[str]]:
        return [[line.partition("#")[0].rstrip() for line in block[0].splitlines()] for block in _matches(page_)]

    def _matches(page_: Path) -> Iterator[re.Match[str]]:
        yield from _FENCE.finditer(page_.read_text())

    assert blocks(path) == blocks(ROOT / "docs" / path.relative_to(KOREAN))


def test_every_english_page_for_operators_has_a_korean_one() -> None:
    reference = {"benchmarks.md", "commands.md", "format.md", "settings.md"}
    pages = [p for p in (ROOT / "docs").glob("*.md") if p.name not in reference]
    english = {
        p.relative_to(ROOT / "docs")
        for p in [*pages, *(p for folder in ("recovery", "deploy") for p in (ROOT / "docs" / folder).glob("*.md"))]
    }
    assert english == {p.relative_to(KOREAN) for p in KOREAN.rglob("*.md")}


def test_the_commands_are_registered() -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert {name: command.callback.__module__ for name, command in known.items()} == {
        name: f"scholaria_ops.cli.{module}" for name, module in commands.MODULES.items()
    }
