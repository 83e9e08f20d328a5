"""`scholaria-ops` at a terminal. The only place that maps errors to exit codes."""

from __future__ import annotations

from scholaria_ops.startup import importing

with importing():
    from scholaria_ops.cli.main import main

__all__ = ["main"]
