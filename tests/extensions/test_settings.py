"""extensions.settings: a bad setting ends the process, with a sentence that says what to do."""

import json
import secrets
import subprocess

import pytest

from extensions.database import Database
from extensions.mailer import Mailer
from extensions.rpc import rpc
from extensions.settings import (
    Setting,
    amqp_address,
    integer,
    listed,
    positive,
    required,
    secret,
    secret_and_previous,
)
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


@pytest.mark.parametrize(
    "value", [secrets.token_hex(), "".join(map(str, range(10, 40))), "correct horse battery staple forage"]
)
def test_a_long_and_varied_secret_is_taken(value):
    assert secret({"KEY": value}, "KEY", 32, "what opens the door.") == value


def test_a_secret_may_have_one_beside_it_that_is_as_good():
    current, previous = secrets.token_hex(), secrets.token_hex()

    assert secret_and_previous({"KEY": current, "KEY_PREVIOUS": ""}, "KEY", 32, "") == [current]
    assert secret_and_previous({"KEY": current, "KEY_PREVIOUS": previous}, "KEY", 32, "") == [current, previous]
    for config, sentence in (
        ({"KEY": current, "KEY_PREVIOUS": "short"}, "KEY_PREVIOUS is too short"),
        ({"KEY": current, "KEY_PREVIOUS": "password" * 8}, "KEY_PREVIOUS is easy to guess"),
        ({"KEY": current, "KEY_PREVIOUS": current}, "KEY_PREVIOUS is KEY itself: set the other secret"),
        ({"KEY_PREVIOUS": previous}, "KEY is not set"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            secret_and_previous(config, "KEY", 32, "what opens the door.")


@pytest.mark.parametrize(
    "value",
    [
        "s" * 32,
        "abababab" * 4,
        "1234567" * 5,
        "0123456789abcdef" * 3,
        "changeme" * 4,
        "secretsecretsecretsecretsecretse",
        "Change-Me-Please-This-Is-Not-A-Secret",
        "your-jwt-secret-key-here-please-change-1234",
        "super_secret_jwt_signing_key_for_dev_123",
        "your-256-bit-secret-your-256-bit-secret",
        "0123456789abcdef0123456789abcdef",
        "abcdefghijklmnopqrstuvwxyz123456",
        "qwertyuiopasdfghjklzxcvbnm1234567890",
        "this-is-a-long-jwt-secret-of-at-least-32-bytes",
    ],
)
def test_a_secret_that_is_easy_to_guess_is_refused(value):
    with pytest.raises(SystemExit, match=r"KEY is easy to guess: .*openssl rand"):
        secret({"KEY": value}, "KEY", 32, "what opens the door.")


def test_a_secret_that_is_too_short_is_refused():
    with pytest.raises(SystemExit, match="KEY is too short: set 32 bytes or more"):
        secret({"KEY": secrets.token_hex(15)}, "KEY", 32, "what opens the door.")


@pytest.mark.parametrize(("value", "number"), [("2", 2.0), ("0.25", 0.25), (3, 3.0), ("", 1.0), (None, 1.0)])
def test_a_positive_number_may_have_decimals_and_a_default(value, number):
    assert positive({"SCALE": value}, "SCALE", default=1) == number


@pytest.mark.parametrize("value", ["0", "0.0", "-1", "nan", "inf", "1e3", "1,5", ".5", "many", True])
def test_what_is_no_positive_number_is_a_sentence(value):
    with pytest.raises(SystemExit, match=r"SCALE must be a positive number like 1 or 0\.5, not "):
        positive({"SCALE": value}, "SCALE", default=1)


def test_a_list_is_separated_by_commas():
    assert listed({"HOSTS": " a,, b ,c, "}, "HOSTS") == ["a", "b", "c"]
    assert listed({}, "HOSTS") == []


def test_the_brokers_address_is_required():
    with pytest.raises(SystemExit, match="AMQP_URI is not set"):
        amqp_address({})


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
