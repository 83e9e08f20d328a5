"""How a setting is declared."""

from __future__ import annotations

from typing import Any

from pydantic import AliasChoices, Field


def named(*names: str, default: Any = ..., description: str, **more: Any) -> Any:
    """A field read from the first of ``names`` that is set."""
    return Field(default, validation_alias=AliasChoices(*names), description=description, **more)
