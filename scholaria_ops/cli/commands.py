"""All commands, by the module that holds them: one file per subject. A command line names one of them, and only its module is loaded."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence

#: Command → module beside this one. Importing a module registers its commands.
MODULES: Mapping[str, str] = {
    "adopt": "adopt",
    "audit": "audit",
    "backup": "backup",
    "list": "catalogue",
    "show": "catalogue",
    "config": "configure",
    "check": "configure",
    "health": "health",
    "metrics": "metrics",
    "notify": "notify",
    "ship": "offsite",
    "fetch": "offsite",
    "prune": "prune",
    "hold": "prune",
    "release": "prune",
    "rehearse": "rehearse",
    "restore": "restore",
    "status": "status",
    "report": "status",
    "verify": "verify",
    "sync": "verify",
}
#: Options before the command that take the next argument as their value.
_WITH_VALUE = frozenset({"--env-file"})


def register(arguments: Sequence[str]) -> None:
    """Register what these arguments of the program need: the command that they name, or all (for help, and for a misspelt one)."""
    module = MODULES.get(_named(arguments))
    for name in dict.fromkeys(MODULES.values()) if module is None else (module,):
        importlib.import_module(f"scholaria_ops.cli.{name}")


def _named(arguments: Sequence[str]) -> str:
    """The first argument that is neither an option nor the value of one; empty if there is none."""
    ahead = iter(arguments)
    for argument in ahead:
        if argument in _WITH_VALUE:
            next(ahead, None)
        elif not argument.startswith("-"):
            return argument
    return ""
