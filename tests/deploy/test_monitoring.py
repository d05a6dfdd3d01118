"""Rules and dashboards, as Prometheus itself understands them."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import REGISTRY

from app import metrics
from app.engine import EngineStats

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "folio.rules.yaml"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
METRIC = re.compile(r"\b(?:folio_|vllm:)[a-z0-9_]+")
# What PromQL adds to the name under which a series was registered.
SUFFIXES = re.compile(r"(?:_(?:bucket|sum|count|total))+$")


def promtool(*arguments):
    done = subprocess.run(
        ["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def rules():
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts():
    return [rule for rule in rules() if "alert" in rule]


def expressions(dashboard):
    return [
        target["expr"]
        for panel in json.loads(dashboard.read_text())["panels"]
        for target in panel["targets"]
    ]


@pytest.fixture(scope="module")
def series():
    """The names that the appliance shows at /metrics, without their suffixes."""
    stats = EngineStats(**dict.fromkeys(EngineStats.__dataclass_fields__, 1))
    engine = metrics.EngineMetrics("m", lambda: stats)
    families = [*REGISTRY.collect(), *engine.collect()]
    return {SUFFIXES.sub("", family.name) for family in families}


def unknown(expression, series):
    found = set(METRIC.findall(expression))
    return {name for name in found if not {name, SUFFIXES.sub("", name)} & series}


def test_prometheus_takes_the_configuration():
    promtool("check", "config", str(DEPLOY / "prometheus" / "prometheus.yml"))


def test_each_alert_fires_when_it_should_and_not_otherwise():
    tests = DEPLOY / "prometheus" / "folio.rules.test.yaml"
    promtool("test", "rules", str(tests))
    tried = {
        case["alertname"]
        for test in yaml.safe_load(tests.read_text())["tests"]
        for case in test["alert_rule_test"]
        if case.get("exp_alerts")
    }
    assert tried == {alert["alert"] for alert in alerts()}


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_each_alert_has_a_runbook(alert, root):
    path, _, anchor = alert["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (root / path).read_text(), re.MULTILINE)
    assert anchor in {heading.lower().replace(" ", "-") for heading in headings}


def test_rules_ask_for_series_that_exist(series):
    for rule in rules():
        assert not unknown(rule["expr"], series), rule


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_ask_for_series_that_exist_in_promql_that_is_valid(dashboard, series, tmp_path):
    asked = expressions(dashboard)
    assert len(asked) > 15
    for expression in asked:
        assert not unknown(expression, series), expression
    records = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, expression in enumerate(asked)
    ]
    rules = tmp_path / "panels.yaml"
    rules.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": records}]}))
    promtool("check", "rules", str(rules))


def test_panels_have_ids_of_their_own_and_do_not_overlap():
    for dashboard in DASHBOARDS:
        panels = json.loads(dashboard.read_text())["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        cells = [
            (x, y)
            for grid in (panel["gridPos"] for panel in panels)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        ]
        assert len(set(cells)) == len(cells)
        assert max(x for x, _ in cells) < 24
