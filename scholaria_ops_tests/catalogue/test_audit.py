"""The audit log: a chain that shows what was done to it."""

from __future__ import annotations

import json
import multiprocessing
import resource
from pathlib import Path
from typing import Any

import pytest

from scholaria_ops.catalogue.audit import GENESIS, AuditBroken, AuditLog, Head
from scholaria_ops.errors import DiskFull, Refused

SET = "20260301_020000"


def write(log: AuditLog, count: int, verb: str = "verify") -> None:
    for n in range(count):
        log.append(verb, SET, "done", by="kim@ops", how="command line", detail={"n": n})


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    return AuditLog(tmp_path / ".records" / "audit.jsonl")


def lines(log: AuditLog) -> list[bytes]:
    return log.path.read_bytes().splitlines(keepends=True)


def test_an_intact_chain_verifies_and_tells_its_head(log: AuditLog) -> None:
    assert log.head() == Head(0, GENESIS, GENESIS)
    write(log, 5)
    report = log.verify([log.head()])
    assert (report.entries, report.witnesses, report.torn, report.head) == (5, 1, (), log.head())
    assert [e.seq for e in log.entries()] == [1, 2, 3, 4, 5]
    assert log.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("victim", [0, 1, 3])
def test_a_changed_line_is_named(log: AuditLog, victim: int) -> None:
    write(log, 5)
    changed = lines(log)
    changed[victim] = changed[victim].replace(b"kim@ops", b"lee@ops")
    log.path.write_bytes(b"".join(changed))
    with pytest.raises(AuditBroken, match=f"breaks at line {victim + 2}: entry {victim + 2} .*does not follow from line {victim + 1}"):
        log.verify()


def test_a_removed_line_a_repeated_one_and_two_swapped_ones_are_found(log: AuditLog) -> None:
    write(log, 6)
    whole = lines(log)
    for forged in (whole[:2] + whole[3:], whole[:3] + whole[2:], [*whole[:2], whole[3], whole[2], *whole[4:]], whole[1:]):
        log.path.write_bytes(b"".join(forged))
        with pytest.raises(AuditBroken, match="breaks at line"):
            log.verify()


def test_a_forged_number_is_found_although_every_digest_fits(log: AuditLog) -> None:
    write(log, 2)
    forged = json.loads(lines(log)[1]) | {"seq": 7}
    log.path.write_bytes(lines(log)[0] + json.dumps(forged).encode() + b"\n")
    with pytest.raises(AuditBroken, match="follows entry 1: a number is missing or there twice"):
        log.verify()


def rewritten(log: AuditLog, keep: int, *, verb: str = "verify") -> None:
    """What a forger does who knows the format: everything from one entry on anew, with digests that fit."""
    log.path.write_bytes(b"".join(lines(log)[:keep]))
    write(log, 3, verb)


def test_a_rewritten_tail_is_found_by_a_head_that_was_written_down_elsewhere(log: AuditLog) -> None:
    write(log, 5)
    witness = Head(**(log.head().as_detail()), set=SET, seen_in="the record 'shipped' of it in the bucket")
    write(log, 1)
    assert log.verify([witness]).witnesses == 1
    rewritten(log, 3)
    log.verify()
    with pytest.raises(AuditBroken, match=r"rewritten or cut: entry 5 had the digest .* when the record 'shipped' of it in the bucket"):
        log.verify([witness])


def test_a_log_that_was_cut_off_is_found_by_a_head(log: AuditLog) -> None:
    write(log, 5)
    witness = log.head()
    log.path.write_bytes(b"".join(lines(log)[:3]))
    with pytest.raises(AuditBroken, match="is not here: the log ends at entry 3"):
        log.verify([witness])


def test_a_log_rewritten_from_its_first_line_is_found_if_it_tells_of_the_witness_set(log: AuditLog) -> None:
    write(log, 3, "backup")
    witness = Head(**log.head().as_detail(), set=SET, seen_in="a record")
    rewritten(log, 0, verb="backup")
    with pytest.raises(AuditBroken, match="rewritten or cut"):
        log.verify([witness])


def test_heads_of_another_machines_log_are_counted_and_not_held_against_this_one(log: AuditLog, tmp_path: Path) -> None:
    other = AuditLog(tmp_path / "other.jsonl")
    write(other, 9, "backup")
    write(log, 2)
    report = log.verify([Head(**other.head().as_detail(), set="20250101_000000", seen_in="elsewhere")])
    assert (report.witnesses, report.foreign) == (0, 1)


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_torn_last_line_is_named_kept_and_chained_over(log: AuditLog, cut: int) -> None:
    write(log, 3)
    with log.path.open("ab") as file:
        file.write(lines(log)[0][:cut])
    torn = log.path.read_bytes()
    assert "cut off while they were written" in log.verify().torn[0]
    assert log.head().seq == 3
    write(log, 2)
    assert log.path.read_bytes().startswith(torn), "what stands is never rewritten"
    assert [(e.seq, e.verb, e.outcome) for e in log.entries()][3:] == [
        (4, "audit", "torn"),
        (5, "verify", "done"),
        (6, "verify", "done"),
    ]
    assert "accounts for it" in log.verify().torn[0]
    forged = bytearray(log.path.read_bytes())
    forged[len(torn) - 1] ^= 1
    log.path.write_bytes(forged)
    with pytest.raises(AuditBroken, match="line 5"):
        log.verify()


def test_a_crash_while_a_torn_line_is_accounted_for_is_survived_too(log: AuditLog) -> None:
    write(log, 1)
    with log.path.open("ab") as file:
        file.write(b'{"seq": 2, "at": "2026\n{"seq": 2, "at": "2026-03')
    write(log, 1)
    assert [e.seq for e in log.entries()] == [1, 2, 3]
    assert len(log.verify().torn) == 2


def test_a_log_torn_in_its_very_first_line_goes_on(log: AuditLog) -> None:
    log.path.parent.mkdir()
    log.path.write_bytes(b'{"seq": 1')
    write(log, 1)
    assert [(e.seq, e.outcome) for e in log.entries()] == [(1, "torn"), (2, "done")]
    assert log.verify().entries == 2


def test_garbage_that_no_entry_accounts_for_breaks_the_chain(log: AuditLog) -> None:
    write(log, 2)
    whole = lines(log)
    log.path.write_bytes(whole[0] + b"not ours\n" + whole[1])
    with pytest.raises(AuditBroken, match="line 3"):
        log.verify()


def test_nothing_is_written_after_an_end_that_cannot_be_read(log: AuditLog) -> None:
    log.path.parent.mkdir()
    log.path.write_bytes(b"garbage\n" * 20)
    with pytest.raises(Refused, match="nothing can be written after them"):
        write(log, 1)
    assert log.path.read_bytes() == b"garbage\n" * 20


def _hammer(path: str, count: int) -> None:
    write(AuditLog(Path(path)), count)


def test_processes_that_write_at_once_make_one_chain(log: AuditLog) -> None:
    spawn = multiprocessing.get_context("spawn")
    workers: list[Any] = [spawn.Process(target=_hammer, args=(str(log.path), 25)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [w.exitcode for w in workers] == [0, 0, 0, 0]
    assert log.verify().entries == 100


def test_a_full_disk_is_an_error_and_the_part_that_was_written_is_accounted_for(log: AuditLog) -> None:
    write(log, 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size + 50, hard))
    try:
        with pytest.raises(DiskFull, match=r"no space left while writing audit\.jsonl"):
            write(log, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    write(log, 1)
    assert [e.outcome for e in log.entries()] == ["done", "done", "torn", "done"]
    assert "50 bytes that cannot be read" in log.verify().torn[0]


def test_an_entry_with_odd_characters_comes_back_as_it_was(log: AuditLog) -> None:
    text = '따옴표 " \\ \r\n \x0b \u2028 끝'
    log.append("hold", SET, "done", by="김@ops", how="command line", detail={"why": text})
    log.append("release", SET, "done", by="김@ops", how="command line")
    assert log.entries()[0].detail == {"why": text}
    assert log.verify().entries == 2
