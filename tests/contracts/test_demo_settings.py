"""With ENVIRONMENT=production no process starts with a setting that is only fit for a trial."""

import re
import secrets
import subprocess

import pytest

from contracts.demo_settings import demo_settings
from contracts.settings import ShopSettings
from contracts.types import SERVICES
from dev.settings import ROOT

MODULES = ["gateway", *(f"services.{service}" for service in SERVICES)]


def database(service):
    return f"postgresql+psycopg2://{service}:{secrets.token_hex()}@db.internal/{service}_db"


PRODUCTION_SETTINGS = {
    "AMQP_URI": f"amqp://shop:{secrets.token_hex()}@broker.internal//",
    "DB_URIS": {service: database(service) for service in SERVICES},
    "JWT_SECRET": secrets.token_hex(),
    "BCRYPT_ROUNDS": "12",
    "FRONTEND_URL": "https://shop.test",
    "ALLOWED_ORIGINS": "https://office.test",
    "TRUSTED_PROXIES": "10.0.0.0/8",
    "RATE_LIMIT_SCALE": "2",
    "SMTP_HOST": "mail.internal",
    "MAIL_FROM": "Shop <shop@shop.test>",
    "OIDC_ISSUER": "https://accounts.google.com",
    "GOOGLE_CLIENT_ID": "1234.apps.googleusercontent.com",
    "LOGGING": {"root": {"level": "INFO"}},
}


def violations(config, environment):
    """The names of the refused settings, with which the sentences begin."""
    return [
        re.fullmatch(r"(\w+) .*\.", sentence)[1] for sentence in demo_settings(ShopSettings().load(config), environment)
    ]


def test_a_production_configuration_is_accepted():
    assert violations(PRODUCTION_SETTINGS, {}) == []


def test_a_process_may_have_only_the_addresses_that_it_needs():
    own_alone = {"DB_URIS": {"users": PRODUCTION_SETTINGS["DB_URIS"]["users"], "orders": None}, "JWT_SECRET": ""}

    assert violations({**PRODUCTION_SETTINGS, **own_alone}, {}) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FRONTEND_URL", "http://shop.test"),
        ("FRONTEND_URL", "https://localhost:8080"),
        ("FRONTEND_URL", "https://127.0.0.1"),
        ("FRONTEND_URL", ""),
        ("ALLOWED_ORIGINS", "https://office.test, http://shop.test"),
        ("AMQP_URI", "amqp://guest:guest@broker.internal//"),
        ("AMQP_URI", "amqp://broker.internal//"),
        ("AMQP_URI", "amqp://shop:shop@broker.internal//"),
        ("USERS_DB_URI", "postgresql+psycopg2://users@db.internal/users_db"),
        ("ORDERS_DB_URI", "postgresql+psycopg2://orders:Postgres@db.internal/orders_db"),
        ("BCRYPT_ROUNDS", "4"),
        ("SMTP_HOST", "localhost"),
        ("SMTP_HOST", ""),
        ("SMTP_HOST", "maildev"),
        ("MAIL_FROM", "Forage <shop@forage.example>"),
        ("MAIL_FROM", ""),
        ("OIDC_ISSUER", "http://127.0.0.1:8090"),
        ("GOOGLE_CLIENT_ID", "forage-local"),
        ("RATE_LIMIT_SCALE", "1000"),
        ("TRUSTED_PROXIES", "10.0.0.0/8, 0.0.0.0/0"),
        ("TRUSTED_PROXIES", "::/0"),
        ("LOG_LEVEL", "DEBUG"),
    ],
)
def test_each_demo_default_is_refused(name, value, monkeypatch):
    # Without this variable an issuer without TLS is refused everywhere.
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")
    if name.endswith("_DB_URI"):
        demo_setting = {"DB_URIS": {name.removesuffix("_DB_URI").lower(): value}}
    elif name == "LOG_LEVEL":
        demo_setting = {"LOGGING": {"root": {"level": value}}}
    else:
        demo_setting = {name: value}

    assert violations({**PRODUCTION_SETTINGS, **demo_setting}, {}) == [name]


@pytest.mark.parametrize("name", ["OAUTHLIB_INSECURE_TRANSPORT", "DEMO_PASSWORD"])
def test_forbidden_variables_are_refused(name):
    assert violations(PRODUCTION_SETTINGS, {name: "1"}) == [name]


def test_missing_settings_are_checked_by_their_defaults():
    assert violations({"AMQP_URI": PRODUCTION_SETTINGS["AMQP_URI"]}, {}) == ["FRONTEND_URL", "SMTP_HOST", "MAIL_FROM"]


@pytest.fixture(scope="module")
def refused():
    """{module: the output of `nameko run`}. All are started at the same time."""
    demo = {
        "ENVIRONMENT": "production",
        "AMQP_URI": "amqp://guest:guest@localhost:1//",
        "ORDERS_DB_URI": "postgresql+psycopg2://postgres:postgres@localhost:1/orders",
        "BCRYPT_ROUNDS": "4",
        "DEMO_PASSWORD": "chanterelle",
        "PATH": "/usr/bin:/bin",
        "PYTHONWARNINGS": "ignore",
    }
    command = [ROOT / ".venv/bin/nameko", "run", "--config", "config.yaml"]
    processes = {
        module: subprocess.Popen([*command, module], cwd=ROOT, env=demo, text=True, stdout=-1, stderr=subprocess.STDOUT)
        for module in MODULES
    }
    yield {module: (process.communicate(timeout=60)[0], process.returncode) for module, process in processes.items()}


@pytest.mark.server
@pytest.mark.parametrize("module", MODULES)
def test_every_process_refuses_to_start_with_the_whole_list_and_no_traceback(refused, module):
    said, code = refused[module]

    assert code != 0
    assert "Traceback" not in said
    assert re.findall(r"^- (\w+) ", said, re.MULTILINE) == [
        *("FRONTEND_URL", "AMQP_URI", "ORDERS_DB_URI", "SMTP_HOST", "MAIL_FROM", "BCRYPT_ROUNDS", "DEMO_PASSWORD")
    ]
