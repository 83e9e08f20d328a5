"""The benchmark of restores: what it makes of what was seen, and one whole run in small."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from benchmarks.measure import Ended
from benchmarks.probe import Seen, read_log
from benchmarks.restore_results import (
    ALIAS,
    BARE,
    CALM,
    PLAIN,
    SAFE,
    Outside,
    Restored,
    Result,
    Results,
    lockout,
    restore_goals,
    restore_section,
)
from benchmarks.restores import outside, phases, probing, switching
from benchmarks.stage import PROJECT
from scholaria_ops.errors import ToolFailed
from scholaria_ops.operations.restore.journal import Journal
from scholaria_ops.process import run
from scholaria_ops.sandbox.tools import Tools

_AT = datetime(2024, 10, 1, 2, 0, tzinfo=UTC)


def _result(factor: float, *, postgres: float = 0.1, seen: float = 0.05, restore_s: float = 15.0) -> Result:
    told = {"postgres": postgres, "redis": 0.01, "qdrant": 0.02}
    apart = {store: Outside(switch_s=seen, elsewhere_s=0.01, failures=1, operations=1000) for store in told}
    cases = {
        BARE: Restored(seconds=10.0, parts={"pg_restore": 9.0}),
        PLAIN: Restored(seconds=restore_s, parts={"all staged": 8.0}, lockout_s={**told, "qdrant": 0.5}),
        CALM: Restored(seconds=15.0, parts={}, lockout_s=told),
        ALIAS: Restored(seconds=restore_s, parts={}, lockout_s=told, outside=apart),
    }
    return Result(factor=factor, at=_AT, surroundings=("a machine",), cases=cases)


def test_the_longest_gap_is_looked_for_around_the_switch_and_apart_from_it() -> None:
    seen = Seen((0.0, 5.0, 5.1, 10.0, 10.4, 10.5, 13.0))
    assert seen.longest_gap(10.1, 10.2) == pytest.approx(0.4)
    assert seen.longest_gap_outside(10.1, 10.2) == pytest.approx(5.0)
    assert outside(Seen((1.0, 2.0), (1.5,)), 1.0, 1.9) == Outside(switch_s=1.0, elsewhere_s=0.0, failures=1, operations=3)


def test_an_outage_without_an_end_counts_until_the_end() -> None:
    assert Seen((0.0, 1.0), (1.5, 2.0)).longest_gap(1.0, 9.0) == pytest.approx(8.0)
    assert Seen(()).longest_gap_outside(1.0, 9.0) == 0.0


def test_a_log_is_read_up_to_the_line_that_was_cut_off() -> None:
    seen = read_log("1.5 ok\n2.5 error OperationalError: the database is gone\n3.5 error Other\n4.5 ok\n5.")
    assert seen == Seen((1.5, 4.5), (2.5, 3.5), "OperationalError: the database is gone")


def test_the_switch_and_the_phases_are_taken_from_the_journal() -> None:
    journal = Journal(
        id="20241001_020010",
        set_id="20241001_020000",
        stores=("postgres",),
        plan_digest="0",
        begun_at=_AT + timedelta(seconds=10),
        by="somebody",
        phase="done",
        switched_at=_AT + timedelta(seconds=30),
        seconds={"safety": 4.0, "stage": 18.0, "fenced": 0.0, "restore": 20.0, "total": 24.0},
        stage_s={"postgres": {"data": 9.0, "roles": 0.001}},
    )
    begin, end = switching(journal)
    assert begin == pytest.approx(_AT.timestamp() + 27.5)
    assert end == pytest.approx(_AT.timestamp() + 30.5)
    ended = Ended(33.0, _AT, _AT + timedelta(seconds=33), "", None)
    assert phases(journal, ended) == pytest.approx(
        {
            "start, plan, Dagster": 6.0,
            "safety set": 4.0,
            "∥ postgres data": 9.0,
            "all staged": 18.0,
            "switch": 2.0,
            "finish, look, Dagster, end": 3.0,
        }
    )


def test_the_longer_of_both_measurements_is_judged() -> None:
    assert lockout(_result(1, postgres=0.1, seen=0.3), "postgres") == 0.3
    assert lockout(_result(1, postgres=1.4, seen=0.3), "postgres") == 1.4
    goals = {g.text: g.reached for g in restore_goals([_result(1, postgres=1.4, seen=0.3, restore_s=16.5)])}
    assert goals == {
        "factor 1: the first restore of all stores, by plain name, takes at most 1.6 × the bare tools": False,
        "factor 1: a later one, by alias, takes at most 1.6 × the bare tools": True,
        "factor 1: PostgreSQL without service (s)": False,
        "factor 1: Redis without service (s)": True,
        "factor 1: Qdrant by alias without service (s)": False,
    }


def test_growth_with_the_size_is_a_goal_once_two_sizes_are_measured() -> None:
    goals = restore_goals([_result(1), _result(8, postgres=0.5)])
    found = {g.text: g for g in goals if "longer without service" in g.text}
    assert [g.reached for g in found.values()] == [False, True]
    assert next(iter(found.values())).found == pytest.approx(0.4)


def test_what_failed_takes_no_other_result_with_it(tmp_path: Path) -> None:
    kept = Results(tmp_path / "work" / "restores.jsonl")
    assert kept.read() == []
    kept.add(_result(8))
    failed = _result(1)
    del failed.cases[ALIAS]
    failed.failures[ALIAS] = "Qdrant is gone"
    results = kept.add(failed)
    assert [r.factor for r in results] == [1, 8]
    assert Results(tmp_path / "work" / "restores.jsonl").read() == results
    text = restore_section(results, ["the goals"])
    assert f"- **failed** at factor 1, {ALIAS}: Qdrant is gone" in text
    assert f"| 8 | {ALIAS} | PostgreSQL | 0.100 | 0.050 | 0.010 | 1 of 1,000 |" in text
    assert f"| 1 | {ALIAS} | failed |" in text
    assert kept.add(_result(1)) == [_result(1), _result(8)]


def test_results_of_another_version_count_as_none(tmp_path: Path) -> None:
    path = tmp_path / "restores.jsonl"
    path.write_text('{"factor": "many"}\n')
    assert Results(path).read() == []


def test_a_probe_that_cannot_start_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(ToolFailed, match="probe of nothing ended before its work began"),
        probing(Path(sys.executable), tmp_path, {"store": "nothing"}),
    ):
        pytest.fail("there is no such store")
    assert (tmp_path / "nothing.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow(60)
@pytest.mark.timeout(600)  # about a minute on two idle cores
def test_restores_are_measured_from_inside_and_outside_and_nothing_is_left(tmp_path: Path, tools: Tools) -> None:
    report, work = tmp_path / "benchmarks.md", tmp_path / "work"
    arguments = ["--only", "restores", "--restores", "0.02", "--no-vector-index", "--patience", "0"]
    run([sys.executable, "-m", "benchmarks", *arguments, "--dir", str(work), "--report", str(report)], cwd=PROJECT, timeout_s=580)
    assert [path.name for path in work.iterdir()] == ["restores.jsonl"]
    (result,) = Results(work / "restores.jsonl").read()
    assert result.failures == {}
    assert list(result.cases) == [BARE, PLAIN, CALM, ALIAS, SAFE]
    watched = result.cases[ALIAS]
    for store in ("postgres", "redis", "qdrant"):
        assert watched.outside[store].operations > 20
        assert 0 < watched.outside[store].switch_s < 60
    assert watched.outside["postgres"].failures >= 1  # its session was ended by the switch
    assert result.cases[SAFE].parts["safety set"] > 0
    assert "safety set" not in result.cases[PLAIN].parts
    assert f"| 0.02 | {PLAIN} |" in report.read_text()
