"""What commands print: tables for people on standard output, one JSON document with ``--json``, progress on standard error."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from scholaria_ops.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

#: Width of tables when nobody looks at a terminal: nothing is folded then, so that lines can be searched.
_PIPED_WIDTH = 10_000

#: A table of more rows is printed without markup: laying it out would take longer than reading ten thousand sets.
_MANY_ROWS = 300

out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _PIPED_WIDTH)
err = Console(stderr=True, highlight=False, soft_wrap=True)


_emitted: list[str] = []


def json_was_emitted() -> bool:
    """Whether this command has printed its document already: there is never a second one."""
    return bool(_emitted)


def emit_json(command: str, content: Mapping[str, Any]) -> None:
    """Print one document; ``schema`` changes its number when a field is removed or changes its meaning."""
    _emitted.append(command)
    document = {"schema": f"scholaria-ops/{command}/1", **content}
    sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2, default=_plain) + "\n")
    sys.stdout.flush()


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None, right: Sequence[str] = ()) -> None:
    """A table at a terminal; columns separated by spaces when piped, so that ``awk`` works.

    Cells may hold rich's markup: pass data from outside through :func:`plain`.
    """
    if len(rows) > _MANY_ROWS:
        _print_plainly(columns, rows, right)
        return
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    out.print(table)


def _print_plainly(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    """Thousands of rows: the same columns without colours and folding, in a hundredth of the time."""
    bare = [[_bare(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(cell_len(row[n]) for row in bare) for n in range(len(columns))]
    for row in bare:
        padded = []
        for name, cell, width in zip(columns, row, widths, strict=True):
            space = " " * (width - cell_len(cell))
            padded.append(space + cell if name in right else cell + space)
        sys.stdout.write("  ".join(padded).rstrip() + "\n")
    sys.stdout.flush()


def _bare(cell: str) -> str:
    return Text.from_markup(cell).plain if "[" in cell or "\\" in cell else cell


def plain(text: object) -> str:
    """Data as it stands: names and notes may hold brackets, which are no markup of ours."""
    return escape(str(text))


class Bars:
    """Progress bars on standard error. Thread-safe (rich locks for itself)."""

    def __init__(self, progress: RichProgress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def start(self, task: str, *, total: int | None = None, unit: str = "bytes") -> None:
        self._tasks[task] = self._progress.add_task(escape(task), total=total)

    def advance(self, task: str, amount: int) -> None:
        if task in self._tasks:
            self._progress.advance(self._tasks[task], amount)

    def finish(self, task: str, note: str = "") -> None:
        if task not in self._tasks:
            self.say(f"{task}: {note}" if note else task)
            return
        task_id = self._tasks.pop(task)
        done = next(t.completed for t in self._progress.tasks if t.id == task_id)
        self._progress.update(task_id, total=done or 1, completed=done or 1, description=f"{escape(task)} [green]✓[/] {escape(note)}")

    def say(self, text: str) -> None:
        self._progress.console.print(text, markup=False)

    def hide(self) -> None:
        """Leave the terminal alone until :meth:`show`."""
        self._progress.stop()

    def show(self) -> None:
        self._progress.start()


@contextmanager
def paused(progress: Progress) -> Iterator[None]:
    """Take the bars off the terminal, for a question."""
    if not isinstance(progress, Bars):
        yield
        return
    progress.hide()
    try:
        yield
    finally:
        progress.show()


class Lines:
    """One plain line per finished piece of work, on standard error: for logs and pipes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def start(self, task: str, *, total: int | None = None, unit: str = "bytes") -> None:
        return

    def advance(self, task: str, amount: int) -> None:
        return

    def finish(self, task: str, note: str = "") -> None:
        self.say(f"{task}: done" + (f" ({note})" if note else ""))

    def say(self, text: str) -> None:
        with self._lock:
            sys.stderr.write(f"{datetime.now(UTC):%H:%M:%S} {text}\n")
            sys.stderr.flush()


@contextmanager
def showing_progress() -> Iterator[Progress]:
    """Bars at a terminal, plain lines otherwise."""
    if not err.is_terminal:
        yield Lines()
        return
    from rich.progress import BarColumn, DownloadColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), DownloadColumn(), TimeElapsedColumn())
    with RichProgress(*columns, console=err, transient=False) as progress:
        yield Bars(progress)
