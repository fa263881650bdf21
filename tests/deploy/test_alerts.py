"""deploy/prometheus: the alerts fire when they should, and docs/alerts.md explains each."""

import re
import subprocess

import pytest
import yaml

from dev.settings import ROOT

pytestmark = pytest.mark.server

RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
RULE_TESTS = ROOT / "deploy" / "prometheus" / "alerts_test.yml"
ALERTS = {rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}


def promtool(*arguments):
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60)


def test_the_alert_rules_are_valid():
    check = promtool("check", "rules", "--lint-fatal", str(RULES))

    assert check.returncode == 0, check.stdout + check.stderr


def test_each_alert_fires_as_its_rule_tests_expect():
    run = promtool("test", "rules", str(RULE_TESTS))

    assert run.returncode == 0, run.stdout + run.stderr


def test_compose_names_the_scrape_job_as_the_alerts_do():
    configuration = yaml.safe_load((ROOT / "deploy" / "compose" / "prometheus.yml").read_text())

    jobs = {job["job_name"] for job in configuration["scrape_configs"]}
    assert {job for rule in ALERTS.values() for job in re.findall(r'job="(\w+)"', rule["expr"])} == {"forage"} <= jobs


def test_each_alert_is_tested_both_firing_and_quiet():
    tested = {
        (case["alertname"], bool(case["exp_alerts"]))
        for test in yaml.safe_load(RULE_TESTS.read_text())["tests"]
        for case in test["alert_rule_test"]
    }

    assert tested == {(alert, fires) for alert in ALERTS for fires in (True, False)}


def test_each_alert_has_a_severity_and_a_section_in_the_docs():
    headings = re.findall(r"^### (\w+)\n\n\*\*(\w+)\.\*\* ", (ROOT / "docs" / "alerts.md").read_text(), re.MULTILINE)

    assert headings == [(alert, rule["labels"]["severity"]) for alert, rule in ALERTS.items()]
    for alert, rule in ALERTS.items():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description", "runbook"}
        assert rule["annotations"]["runbook"] == f"docs/alerts.md#{alert.lower()}"
