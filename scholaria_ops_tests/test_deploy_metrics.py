"""Alert rules and dashboard: every expression parses, and asks for nothing that the metrics do not tell."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from scholaria_ops.catalogue.sets import Catalogue
from scholaria_ops.operations.metrics import registry_of
from scholaria_ops.operations.services import make_services
from scholaria_ops.operations.standing import look, standing_of
from scholaria_ops.settings import load_settings
from scholaria_ops_tests.catalogue.factory import NOW, make_set
from scholaria_ops_tests.operations.test_standing import rehearsed

DEPLOY = Path(__file__).parents[1] / "deploy"
RULES = DEPLOY / "prometheus" / "scholaria-ops.rules.yml"
DASHBOARD = DEPLOY / "grafana" / "scholaria-ops.json"
#: Labels that Prometheus itself adds, and variables of the dashboard.
_SCRAPED = {"instance", "job"}
_VARIABLES = {"$__rate_interval": "5m", "$instance": ".*"}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Mapping[str, str]]]:
    """Metric → label sets, of a site that has everything: all tiers and ranks, both sources, failures, drift."""
    from prometheus_client import generate_latest

    root = tmp_path_factory.mktemp("backups")
    services = make_services(load_settings({"BACKUP_DIR": str(root)}))
    catalogue: Catalogue = services.catalogue
    for n, tier in enumerate(("daily", "weekly", "monthly")):
        made = make_set(catalogue, NOW + timedelta(hours=n), tier=tier, verified=True, drift=1)  # type: ignore[arg-type]
        catalogue.records.append(made.id, "shipped", where=f"s3://b/{made.id}")
        rehearsed(catalogue, made.id, "proven", NOW + timedelta(days=1))
    catalogue.records.append(
        made.id, "rehearsed", verdict="proven", source="offsite", rto_s=1.0, rpo_s=1.0, stores={"redis": {"rto_s": 1.0}}
    )
    registry, _ = registry_of(lambda: standing_of(look(services), NOW + timedelta(days=2)))
    found: dict[str, list[Mapping[str, str]]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return list(json.loads(DASHBOARD.read_text())["panels"])


def expressions() -> list[tuple[str, str]]:
    shown = [(f"panel {p['title']}", t["expr"]) for p in panels() for t in p["targets"]]
    return [(f"alert {r['alert']}", r["expr"]) for r in rules()] + shown


def selectors(expression: Any) -> Iterator[Any]:
    """Every selector below a parsed expression."""
    kind = type(expression).__name__
    if kind == "VectorSelector":
        yield expression
    elif kind == "MatrixSelector":
        yield expression.vector_selector
    elif kind == "Call":
        for argument in expression.args:
            yield from selectors(argument)
    elif kind == "BinaryExpr":
        yield from selectors(expression.lhs)
        yield from selectors(expression.rhs)
    elif kind in {"AggregateExpr", "ParenExpr", "UnaryExpr", "SubqueryExpr"}:
        yield from selectors(expression.expr)
    else:
        assert kind in {"NumberLiteral", "StringLiteral"}, kind


def unknown(text: str, told: Mapping[str, list[Mapping[str, str]]]) -> list[str]:
    """What an expression asks for that no metric tells."""
    for variable, value in _VARIABLES.items():
        text = text.replace(variable, value)
    wrong = []
    for selector in selectors(promql_parser.parse(text)):
        if selector.name not in told:
            wrong.append(f"no metric {selector.name}")
            continue
        for matcher in selector.matchers.matchers:
            values = {labels[matcher.name] for labels in told[selector.name] if matcher.name in labels}
            if matcher.name in _SCRAPED:
                continue
            asked = re.split(r"\|", matcher.value)
            wrong += [f"{selector.name} has no {matcher.name}={value!r}" for value in asked if value not in values]
    return wrong


@pytest.mark.parametrize(("where", "expression"), expressions(), ids=[w for w, _ in expressions()])
def test_every_expression_asks_for_what_is_told(where: str, expression: str, told: dict[str, list[Mapping[str, str]]]) -> None:
    assert unknown(expression, told) == []


def test_a_wrong_expression_is_caught(told: dict[str, list[Mapping[str, str]]]) -> None:
    assert unknown("time() - scholaria_newest > 1", told) == ["no metric scholaria_newest"]
    assert unknown('max(scholaria_newest_set_age_seconds{rank="verifed"})', told) == [
        "scholaria_newest_set_age_seconds has no rank='verifed'"
    ]
    with pytest.raises(ValueError):
        unknown("max by (tier scholaria_up", told)


def test_every_alert_says_what_how_bad_and_what_to_do() -> None:
    document = yaml.safe_load(RULES.read_text())
    assert set(document) == {"groups"}
    names = [r["alert"] for r in rules()]
    assert len(names) == len(set(names)) > 12
    for rule in rules():
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}, rule["alert"]
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"].keys() == {"summary", "description"}
        assert re.fullmatch(r"\d+[mh]", rule.get("for", "1m"))


def test_alerts_that_name_a_label_keep_it(told: dict[str, list[Mapping[str, str]]]) -> None:
    for rule in rules():
        for label in re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])):
            expression = promql_parser.parse(rule["expr"])
            kept = {name for s in selectors(expression) for labels in told[s.name] for name in labels}
            assert label in kept, (rule["alert"], label)


def test_the_dashboard_has_a_source_to_choose_and_panels_that_do_not_overlap() -> None:
    document = json.loads(DASHBOARD.read_text())
    assert [v["type"] for v in document["templating"]["list"]] == ["datasource", "query"]
    assert all(t["datasource"]["uid"] == "${datasource}" for p in panels() for t in p["targets"])
    cells = [
        (x, y) for p in panels() for g in [p["gridPos"]] for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({p["id"] for p in panels()}) == len(panels())


def test_every_metric_is_on_the_page_and_every_metric_of_the_page_is_told(told: dict[str, list[Mapping[str, str]]]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "monitoring.md").read_text()
    named = set(re.findall(r"`(scholaria_\w+)", page))
    assert named == {re.sub(r"_info$", "_info", name) for name in told}
