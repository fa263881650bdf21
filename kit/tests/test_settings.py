"""nameko_reliable.settings: bad settings end the process with one sentence each."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from marshmallow import INCLUDE, Schema, ValidationError, fields, validate

from nameko_reliable.rpc import rpc
from nameko_reliable.settings import Settings, checked

NAMEKO = Path(sys.executable).with_name("nameko")


class BakerySettings(Schema):
    class Meta:
        unknown = INCLUDE

    ENVIRONMENT = fields.String()
    OVENS = fields.Integer(load_default=1, validate=validate.Range(1, 10, error="must be a number from 1 to 10."))
    FLOUR = fields.String(error_messages={"required": "is not set: it must be a kind of flour."})
    MILLS = fields.Dict(error_messages={"required": "is not set: it must be a mill.", "invalid": "must be a section."})

    def load(self, data, **kwargs):
        if data.get("MILLS") == {"rye": "broken"}:
            raise ValidationError({"MILLS": {"rye": ["must turn."]}})
        return super().load(data, **kwargs)


def forbidden(values, environment):
    """What production forbids."""
    if values.get("OVENS", 1) < 2:
        yield "OVENS must be two."
    if "MICE" in environment:
        yield "MICE must not be set."


class Bakery:
    name = "bakery"

    settings = Settings(BakerySettings, forbidden, needs=["FLOUR", "MILLS.rye"])

    @rpc
    def count(self):
        return self.settings["OVENS"]


def faults_of(config, *args):
    with pytest.raises(SystemExit) as ended:
        checked(BakerySettings(), config, *args)
    return str(ended.value).splitlines()


def test_a_service_gets_the_loaded_values(run_service, cluster):
    run_service(Bakery, OVENS="3", FLOUR="rye", MILLS={"rye": "wind"})

    assert cluster.bakery.count() == 3


def test_all_faults_are_reported_together():
    assert faults_of({"OVENS": "11"}, ["FLOUR", "MILLS.rye"]) == [
        "FLOUR is not set: it must be a kind of flour.",
        "RYE_MILL is not set: it must be a mill.",
        "OVENS must be a number from 1 to 10.",
    ]


def test_a_section_that_is_not_a_mapping_is_a_fault():
    assert faults_of({"MILLS": "wind", "FLOUR": "rye"}, ["MILLS.rye"]) == ["MILLS must be a section."]


def test_a_fault_in_a_section_names_the_environment_variable():
    assert faults_of({"MILLS": {"rye": "broken"}}) == ["RYE_MILL must turn."]


@pytest.mark.parametrize("config", [{}, {"FLOUR": "rye", "MILLS": {"rye": "wind"}}, {"MILLS": None}])
def test_the_first_of_a_pair_is_needed_when_the_second_is_set(config):
    pair = [("FLOUR", "OVENS")]

    checked(BakerySettings(), {**config, "MILLS": {}}, pair)

    assert faults_of({"OVENS": "3", "FLOUR": ""}, pair) == ["FLOUR is not set: it must be a kind of flour."]


def test_in_production_forbidden_settings_are_reported_too(monkeypatch):
    monkeypatch.setenv("MICE", "3")

    assert faults_of({"ENVIRONMENT": "production"}, ["FLOUR"], forbidden) == [
        "FLOUR is not set: it must be a kind of flour.",
        "ENVIRONMENT is production, but:",
        "- OVENS must be two.",
        "- MICE must not be set.",
    ]


def test_a_faulty_setting_is_not_also_reported_as_forbidden():
    config = {"ENVIRONMENT": "production", "OVENS": "0"}

    assert faults_of(config, [], forbidden) == ["OVENS must be a number from 1 to 10."]


def test_production_takes_settings_that_are_not_forbidden():
    assert checked(BakerySettings(), {"ENVIRONMENT": "production", "OVENS": "2"}, [], forbidden)["OVENS"] == 2


def test_outside_production_nothing_is_forbidden(monkeypatch):
    monkeypatch.setenv("MICE", "3")

    assert checked(BakerySettings(), {"ENVIRONMENT": "development"}, [], forbidden)["OVENS"] == 1


@pytest.mark.server
def test_a_service_with_bad_settings_prints_only_the_sentences(tmp_path):
    (tmp_path / "config.yaml").write_text(json.dumps({"AMQP_URI": "amqp://localhost:1//", "OVENS": "11"}))

    ended = subprocess.run(
        [NAMEKO, "run", "--config", tmp_path / "config.yaml", "test_settings"],
        cwd=Path(__file__).parent,
        env={"PATH": "/usr/bin:/bin", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        "FLOUR is not set: it must be a kind of flour.",
        "RYE_MILL is not set: it must be a mill.",
        "OVENS must be a number from 1 to 10.",
    ]
