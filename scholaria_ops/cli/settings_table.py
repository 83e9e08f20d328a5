"""The settings page of the documentation: ``python -m scholaria_ops.cli.settings_table > docs/settings.md``.

It is written from the fields themselves, and a test compares the file with it, so that the page cannot fall behind.
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from annotated_types import Ge, Gt, Le
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from scholaria_ops.settings import ENV_FILE_VARIABLE, SECTIONS, variable_names

_HEAD = f"""\
# Settings

<!-- Written by `python -m scholaria_ops.cli.settings_table > docs/settings.md`; edit the descriptions in scholaria_ops/settings/. -->

A value is looked for in the environment of the process, then in the settings file, then the default counts. The settings file is
`.env` in the working directory, or the one that `--env-file` or the variable `{ENV_FILE_VARIABLE}` names. An empty value counts as
not set. The file is read anew when a run starts, so an edit is in force from the next run on.

A variable that begins with `BACKUP_` and is not in this table is an error, with the nearest name suggested.
`scholaria-ops config` shows every setting in force, where it came from, and secrets masked.

One variable is not ours but Dagster's: `DAGSTER_HOME`, the directory of `dagster.yaml`. Without it the command line takes the nearest
`dagster.yaml` at or above the working directory, else the one of its own checkout.
"""


def page() -> str:
    """The whole page, in Markdown."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield _HEAD.rstrip("\n")
    for section in SECTIONS:
        title = (section.__doc__ or "").partition("\n")[0].rstrip(".")
        yield from ("", f"## {title}", "", "| variable | default | meaning |", "|---|---|---|")
        for field, info in section.model_fields.items():
            names = " or ".join(f"`{name}`" for name in variable_names(field))
            meaning = "; ".join(part for part in (info.description or "", _accepts(info)) if part)
            yield f"| {names} | {_default(info.default)} | {meaning} |"


def _default(value: Any) -> str:
    if value is None or value == "" or (isinstance(value, SecretStr) and not value.get_secret_value()):
        return "–"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _accepts(info: FieldInfo) -> str:
    """What the type allows, where it is not plain from the meaning."""
    kinds = (info.annotation, *typing.get_args(info.annotation))
    for kind in kinds:
        if typing.get_origin(kind) is Literal:
            return "one of " + ", ".join(f"`{choice}`" for choice in typing.get_args(kind))
    notes = ["a secret" for _ in range(SecretStr in kinds)] + ["a path" for _ in range(Path in kinds)]
    for bound in info.metadata:
        if isinstance(bound, Ge):
            notes.append(f"at least {bound.ge}")
        elif isinstance(bound, Gt):
            notes.append(f"more than {bound.gt}")
        elif isinstance(bound, Le):
            notes.append(f"at most {bound.le}")
    return ", ".join(notes)


if __name__ == "__main__":
    sys.stdout.write(page())
