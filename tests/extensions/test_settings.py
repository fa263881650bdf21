"""extensions.settings: a bad setting ends the process, with a sentence that says what to do."""

import json
import subprocess

import pytest

from extensions.database import Database
from extensions.mailer import Mailer
from extensions.rpc import rpc
from extensions.settings import Setting, amqp_uri, integer, required
from scripts.settings import ROOT


class Bakery:
    name = "bakery"

    db = Database()
    mailer = Mailer()
    ovens = Setting("OVENS", lowest=1, highest=10)

    @rpc
    def count(self):
        return self.ovens


@pytest.mark.parametrize("value", ["1", "10", 7])
def test_a_whole_number_within_its_bounds_is_taken(value):
    assert integer({"OVENS": value}, "OVENS", 1, 10) == int(value)


@pytest.mark.parametrize("value", [None, "", "0", "11", "1.5", "many", True, [], -1])
def test_anything_else_is_a_sentence(value):
    with pytest.raises(SystemExit, match="OVENS must be a whole number from 1 to 10, not "):
        integer({"OVENS": value}, "OVENS", 1, 10)


@pytest.mark.parametrize("config", [{}, {"HOST": None}, {"HOST": ""}], ids=str)
def test_what_is_required_must_be_set(config):
    with pytest.raises(SystemExit, match="HOST is not set: the server's name"):
        required(config, "HOST", "the server's name.")


def test_the_brokers_address_is_required():
    with pytest.raises(SystemExit, match="AMQP_URI is not set"):
        amqp_uri({})


def test_a_setting_is_injected(run_service, cluster):
    run_service(Bakery, OVENS="3")

    assert cluster.bakery.count() == 3


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"OVENS": "11"}, "OVENS must be a whole number from 1 to 10, not '11'."),
        ({"DB_URIS": {}}, "DB_URIS names no database for bakery"),
        ({"AMQP_URI": ""}, "AMQP_URI is not set"),
        ({"SMTP_PORT": "x"}, "SMTP_PORT must be a whole number"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_service_with_a_bad_setting_ends_with_the_sentence_alone(tmp_path, setting, sentence):
    config = {
        "AMQP_URI": "amqp://localhost:1//",
        "DB_URIS": {"bakery": "postgresql+psycopg2://localhost:1/bakery"},
        "SMTP_HOST": "localhost",
        "SMTP_PORT": "25",
        "OVENS": "1",
        **setting,
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))

    ended = subprocess.run(
        [ROOT / ".venv/bin/nameko", "run", "--config", tmp_path / "config.yaml", __name__],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert ended.returncode == 1
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr
