"""deploy/grafana: Grafana can show the dashboards, and they and the alerts query only existing metrics."""

import importlib
import json
import re
import subprocess
from itertools import combinations

import pytest
import yaml
from prometheus_client import REGISTRY

from contracts.types import SERVICES
from dev.settings import ROOT
from nameko_reliable.telemetry.registry import KIT
from tests.deploy.test_alerts import ALERTS

DASHBOARDS = {
    path.stem: json.loads(path.read_text())
    for path in sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
}
# The broker's own metrics, and their labels.
OF_RABBITMQ = {f"rabbitmq_detailed_queue_{name}": {"vhost", "queue"} for name in ("messages", "consumers")}
# Labels that Prometheus adds.
PROMETHEUS_LABELS = {"job", "instance"}
every_dashboard = pytest.mark.parametrize("name", DASHBOARDS)


def panels_of(name):
    return DASHBOARDS[name]["panels"]


def expressions():
    """{PromQL: the alert or the panel that uses it}, with values for Grafana's variables."""
    queries = {rule["expr"]: alert for alert, rule in ALERTS.items()}
    for name, dashboard in DASHBOARDS.items():
        for annotation in dashboard["annotations"]["list"]:
            if "expr" in annotation:
                queries[annotation["expr"]] = f"{name}: {annotation['name']}"
        for panel in panels_of(name):
            for target in panel.get("targets", []):
                expression = target["expr"].replace("$__rate_interval", "5m").replace("$service", "orders")
                queries[expression] = f"{name}: {panel['title']}"
    return queries


def exported():
    """{sample name: the names of its labels}, for all metrics that the processes export."""
    for module in (*(f"services.{service}" for service in SERVICES), "gateway"):
        importlib.import_module(module)
    labels_of = {}
    for collector in (*REGISTRY._collector_to_names, *KIT._collector_to_names):
        prefix = "forage_" if collector in KIT._collector_to_names else ""
        for family in collector.collect() if hasattr(collector, "collect") else ():
            own = set(getattr(collector, "_labelnames", ()))
            endings = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}.get(family.type, [""])
            labels_of |= {
                prefix + family.name + ending: own | ({"le"} if ending == "_bucket" else set()) for ending in endings
            }
    return labels_of


def test_there_are_three_dashboards():
    assert DASHBOARDS.keys() == {"overview", "service", "messaging"}


def test_alerts_and_dashboards_query_only_exported_metrics_and_labels():
    labels_of = exported() | OF_RABBITMQ
    for expression, where in expressions().items():
        for name, matchers in re.findall(r"\b((?:forage|process|python|rabbitmq)_\w+)\b(?:\{([^}]*)\})?", expression):
            assert name in labels_of, f"{where} queries {name}"
            labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
            assert labels <= labels_of[name] | PROMETHEUS_LABELS, f"{where} queries {name} by {labels}"


def test_groups_and_legends_name_only_labels_of_their_metrics():
    labels_of = exported() | OF_RABBITMQ

    def labels(expression):
        return set().union(*(labels_of.get(name, ()) for name in re.findall(r"\w+", expression))) | PROMETHEUS_LABELS

    def grouped_by(expression):
        return [set(re.findall(r"\w+", group)) for group in re.findall(r"\bby \(([^)]*)\)", expression)]

    for expression, where in expressions().items():
        for group in grouped_by(expression):
            assert group <= labels(expression), f"{where} groups by {group}"
    for name in DASHBOARDS:
        for panel in panels_of(name):
            for target in panel.get("targets", []):
                groups = grouped_by(target["expr"])
                left = set().union(*groups) - {"le"} if groups else labels(target["expr"])
                named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
                assert named <= left, f"{name}: {panel['title']} names {named}"


def test_the_dashboards_count_only_the_shops_own_alerts():
    (pattern,) = {
        found
        for expression in expressions()
        for selector in re.findall(r"\bALERTS\{([^}]*)\}", expression)
        for found in re.findall('alertname=~"([^"]*)"', selector) or [".*"]
    }

    assert all(re.fullmatch(pattern, alert) for alert in ALERTS)
    assert not re.fullmatch(pattern, "KubePodNotReady")


def test_the_docs_list_every_metric():
    page = (ROOT / "docs" / "observability.md").read_text()
    table = page.partition("### The shop's metrics")[2].partition("### Add a metric")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `forage_")]
    exported_names = {re.sub("_(bucket|count|sum)$", "", name) for name in exported() if name.startswith("forage_")}
    # Without the metrics of the kit's tests, which may have run before in this process.
    assert {name for row in rows for name in re.findall("`(forage_[a-z_]+)`", row)} == {
        name for name in exported_names if not name.startswith("forage_test_")
    }


def test_every_expression_is_valid_promql(tmp_path):
    rules = [{"record": f"each:{number}", "expr": expression} for number, expression in enumerate(expressions())]
    path = tmp_path / "expressions.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))

    check = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True, timeout=60)

    assert check.returncode == 0, check.stdout + check.stderr


@every_dashboard
def test_grafana_can_provision_each_dashboard(name):
    dashboard = DASHBOARDS[name]

    assert dashboard["uid"] == f"forage-{name}"
    assert "id" not in dashboard
    assert 39 <= dashboard["schemaVersion"] <= 41
    [source] = [variable for variable in dashboard["templating"]["list"] if variable["type"] == "datasource"]
    assert (source["name"], source["query"], source["current"]["value"]) == ("datasource", "prometheus", "prometheus")
    ids = [panel["id"] for panel in panels_of(name)]
    assert len(ids) == len(set(ids))


@every_dashboard
def test_every_panel_has_a_data_source_a_unit_and_its_own_position(name):
    positions = [panel["gridPos"] for panel in panels_of(name)]
    for one, other in combinations(positions, 2):
        assert (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
    assert all(position["x"] + position["w"] <= 24 for position in positions)
    for panel in panels_of(name):
        if panel["type"] != "row":
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"]), panel["title"]
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
