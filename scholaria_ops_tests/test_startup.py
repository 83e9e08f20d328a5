"""Starting quickly must leave the garbage collector as it was, and memory must go back to the kernel."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator

import pytest

from scholaria_ops.process import run
from scholaria_ops.startup import importing

_GIVES_BACK = """
import os
from scholaria_ops.startup import frugal_memory
if {frugal}:
    frugal_memory()
def held():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon:")) // 1024
for _ in range(2):  # the C library learns from the first blocks that are freed
    blocks, pins = [], []
    for _ in range(16):
        blocks.append(bytearray(b"x") * (5 << 20))
        pins.append([bytes(2000) for _ in range(40)])  # each holds the heap where it is
    before = held()
    del blocks
print(before - held())
"""


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_the_collector_is_as_it_was_also_after_a_failed_import() -> None:
    with importing():
        assert not gc.isenabled()
        with importing():
            pass
        assert not gc.isenabled(), "the inner block must not end the outer one"
    assert gc.isenabled()
    with pytest.raises(ModuleNotFoundError), importing():
        importlib.import_module("no_such_module")
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0


def test_large_blocks_go_back_to_the_kernel() -> None:
    frugal, usual = (int(run([sys.executable, "-c", _GIVES_BACK.format(frugal=one)]).stdout) for one in (True, False))
    assert frugal >= 60
    assert usual < 60, "the C library gives memory back by itself: the setting is not needed any more"


_ENDS = """
import atexit, sys, threading, time
from scholaria_ops.startup import end
atexit.register(lambda: print("registered", end=" "))
ending = threading.Event()
def late():
    ending.wait()
    time.sleep(0.5)
    print("thread", end=" ")
threading.Thread(target=late).start()
print("main", end=" ")
print("trouble", end="", file=sys.stderr)
ending.set()
end(3)
"""


def test_a_quick_end_waits_for_threads_runs_what_was_registered_and_writes_what_was_printed() -> None:
    ended = run([sys.executable, "-c", _ENDS], check=False)
    assert (ended.returncode, ended.stdout, ended.stderr_tail) == (3, b"main thread registered ", "trouble")
