"""The schema of config.yaml: valid values, and sentences about invalid ones that quote nothing."""

import re
import secrets

import pytest
import yaml
from nameko.cli.main import setup_yaml_parser

from contracts.settings import ShopSettings
from dev.settings import ROOT
from nameko_reliable.settings import checked
from tests.infrastructure.certificates import Authority

AMQP_URI = "amqp://localhost"
PERCENT = re.compile(r"percent-encode .* / is %2F, @ is %40")
ORDERS = "postgresql+psycopg2://orders"


def loaded(name, value):
    if name.endswith("_DB_URI"):
        service = name.removesuffix("_DB_URI").lower()
        return checked(ShopSettings(), {"AMQP_URI": AMQP_URI, "DB_URIS": {service: value}})["DB_URIS"].get(service)
    return checked(ShopSettings(), {"AMQP_URI": AMQP_URI, name: value})[name]


def refusal(name, value):
    with pytest.raises(SystemExit) as ended:
        loaded(name, value)
    return str(ended.value)


@pytest.mark.parametrize(
    "uri",
    [
        "amqp://broker",
        "amqp://broker//",
        "AMQP://guest:guest@localhost:5672/",
        "pyamqp://guest:guest@localhost:5672//",
        "amqps://shop:pass@broker.example.org:5671/shop",
        "amqp://shop:pa%2Fss%40%23%3F%25@broker_1/%2Fshop",
        "amqp://shop:$^:!*(&=+,;'{}|~`\"<>@[::1]:5672",
        "amqp://:@broker",
        f"amqp://{'b' * 63}.internal.",
    ],
)
def test_a_valid_broker_address_is_accepted_unchanged(uri):
    assert loaded("AMQP_URI", uri) == uri


@pytest.mark.parametrize(
    "uri",
    [
        "amqp://shop:pa/ss@broker",
        "amqp://shop:pa#ss@broker",
        "amqp://shop:pa?ss@broker",
        "amqp://shop:pa@ss@broker",
        # The password begins like a port.
        "amqp://shop:12/ss@broker/",
        "amqp://shop:12?ss@broker/",
        "amqp://shop:12#ss@broker/",
        "amqp://shop:pa%zz@broker",
        "amqp://shop:pa%@broker",
        "amqp://shop:pa ss@broker",
        "amqp://shop:paß@broker",
        "amqp://shop:pa[ss@broker",
        "amqp://shop:pass@broker\n",
        "http://shop:pass@broker",
        "shop:pass@broker",
        "broker",
        "amqp://",
        "amqp:///shop",
        "amqp://shop:pass@",
        "amqp://shop:pass@:5672",
        "amqp://broker:",
        "amqp://broker:0",
        "amqp://broker:65536",
        "amqp://broker:port",
        "amqp://[::1::2]",
        "amqp://[::1",
        "amqp://broker?heartbeat=1",
        "amqp://one;amqp://two",
        "amqp://one,two",
        "amqp://broker..internal",
        f"amqp://{'b' * 64}.internal",
    ],
)
def test_an_invalid_broker_address_is_reported_with_how_to_percent_encode(uri):
    [sentence] = refusal("AMQP_URI", uri).splitlines()

    assert sentence.startswith("AMQP_URI must be the broker's address, like amqp://user:password@localhost:5672// (")
    assert PERCENT.search(sentence)
    assert "ss@" not in sentence
    assert "shop" not in sentence


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql+psycopg2://orders:pass@localhost:5432/orders_db",
        "postgresql+psycopg2://localhost/orders_db",
        "postgresql+psycopg2://orders:p%2F%40@db-1.internal/orders_db?sslmode=verify-full&sslrootcert=/path/ca.crt",
        "postgresql+psycopg2://orders:pass@one:5432,[::1]:5433/orders_db",
        "postgresql+psycopg2://orders:pass@/orders_db?host=one:5432&host=two:5433",
        "postgresql+psycopg2://orders:pass@/orders_db?host=one,two&port=5432,5433",
        "postgresql+psycopg2://orders@/orders_db?host=/run/postgresql",
    ],
)
def test_a_database_has_one_host_or_several(uri):
    assert loaded("ORDERS_DB_URI", uri) == uri


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://orders:pass@localhost/orders_db",
        "postgresql+psycopg://orders:pass@localhost/orders_db",
        "sqlite://",
        "localhost",
        f"{ORDERS}:pa/ss@localhost/orders_db",
        f"{ORDERS}:pa#ss@localhost/orders_db",
        f"{ORDERS}:pa?ss@localhost/orders_db",
        f"{ORDERS}:pa@ss@localhost/orders_db",
        f"{ORDERS}:12/ss@localhost/orders_db",
        f"{ORDERS}:pa%zz@localhost/orders_db",
        f"{ORDERS}:pass@localhost",
        f"{ORDERS}:pass@localhost/",
        f"{ORDERS}:pass@/orders_db",
        f"{ORDERS}:pass@localhost:99999/orders_db",
        f"{ORDERS}:pass@one:5432,two:99999/orders_db",
        f"{ORDERS}:pass@one:5432,two:port/orders_db",
        f"{ORDERS}:pass@/orders_db?host=one:port",
        f"{ORDERS}:pass@[::1::2]/orders_db",
        f"{ORDERS}:pass@ﬀ/orders_db",
        f"{ORDERS}:pass@one,two..internal/orders_db",
        f"{ORDERS}:pass@localhost/orders_db?ssl_mode=require",
    ],
)
def test_an_invalid_database_address_is_reported_with_how_to_percent_encode(uri):
    [sentence] = refusal("ORDERS_DB_URI", uri).splitlines()

    assert sentence.startswith(
        "ORDERS_DB_URI must be like postgresql+psycopg2://user:password@localhost:5432/orders_db"
    )
    assert PERCENT.search(sentence)
    assert "ss@" not in sentence


@pytest.mark.parametrize(
    "uri",
    ["redis://localhost", "redis://:pass@localhost:6379/0", "rediss://shop:p%2F@redis/1?ssl_ca_certs=/path/ca.crt"],
)
def test_a_valid_redis_address_is_accepted_unchanged(uri):
    assert loaded("RATE_LIMIT_STORAGE_URI", uri) == uri


@pytest.mark.parametrize(
    "uri",
    [
        *("localhost:6379", "http://localhost", "redis://", "redis+cluster://localhost:1", "redis://localhost:port"),
        "redis://:pa/ss@localhost",
        "redis://:pa#ss@localhost",
        "redis://:12/ss@localhost",
        "redis://:pa%zz@localhost",
        *("redis://localhost/first", "redis://localhost?timeout=1", "redis://localhost?socket_timeout=long"),
    ],
)
def test_an_invalid_redis_address_is_reported_with_how_to_percent_encode(uri):
    [sentence] = refusal("RATE_LIMIT_STORAGE_URI", uri).splitlines()

    assert sentence.startswith("RATE_LIMIT_STORAGE_URI must be the address of a Redis, like redis://")
    assert PERCENT.search(sentence)
    assert "ss@" not in sentence


@pytest.mark.parametrize(
    ("text", "name", "address"),
    [
        ("Forage <shop@forage.example>", "Forage", "shop@forage.example"),
        ("shop@forage.example", "", "shop@forage.example"),
        ("<shop@forage.example>", "", "shop@forage.example"),
        ("Dr. Pilz & Söhne <shop@forage.example>", "Dr. Pilz & Söhne", "shop@forage.example"),
        ('"Forage, \\"the\\" shop" <shop@forage.example>', 'Forage, "the" shop', "shop@forage.example"),
        ("Bücher <shop@xn--bcher-kva.example>", "Bücher", "shop@xn--bcher-kva.example"),
    ],
)
def test_a_sender_is_one_address_with_or_without_a_name(text, name, address):
    sender = loaded("MAIL_FROM", text)

    assert (sender.display_name, sender.addr_spec) == (name, address)


@pytest.mark.parametrize(
    "text",
    [
        "Forage",
        "Forage shop@x",
        "Forage shop@forage.example",
        "shop@localhost",
        "shop@@forage.example",
        "@x.example",
        "Forage, Inc. <shop@forage.example>",
        "a@forage.example, b@forage.example",
        "Forage <a@x.example> <b@x.example>",
        *("Forage <shop@forage.example> shop", "Forage <shop@forage.example", '"Forage <shop@forage.example>', "<>"),
        "Forage\n <shop@forage.example>",
        "Forage\x00 <shop@forage.example>",
        "Forage <shop@forage.example>\r\nBcc: x@y.zz",
        "söhne@forage.example",
        "shop..de@forage.example",
        ".shop@forage.example",
        "Forage \udcff <shop@forage.example>",
    ],
)
def test_a_sender_that_is_not_one_address_is_refused(text):
    assert refusal("MAIL_FROM", text).startswith(
        "MAIL_FROM must be one address in ASCII, like Forage <shop@forage.example>"
    )


@pytest.mark.parametrize("text", ["shop@bücher.example", "Forage <shop@bücher.example>"])
def test_a_sender_with_a_domain_outside_of_ascii_must_use_punycode(text):
    assert refusal("MAIL_FROM", text) == "MAIL_FROM must have its domain in punycode, like shop@xn--bcher-kva.example."


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("FRONTEND_URL", "HTTPS://Shop.Example:443/Forage/", "https://shop.example:443/Forage"),
        ("FRONTEND_URL", "http://[::1]:8080", "http://[::1]:8080"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318/", "http://localhost:4318"),
        # An issuer is compared exactly.
        ("OIDC_ISSUER", "https://Login.example/shop/", "https://Login.example/shop/"),
        ("GOOGLE_REDIRECT_URI", "https://shop.example/api/auth/google/callback", None),
        ("ALLOWED_ORIGINS", "https://Office.example, http://b:8080/,", ["https://office.example", "http://b:8080"]),
    ],
)
def test_a_url_is_accepted_and_a_base_url_loses_its_trailing_slash(name, given, value):
    assert loaded(name, given) == (value or given)


@pytest.mark.parametrize(
    "name", ["FRONTEND_URL", "OIDC_ISSUER", "GOOGLE_REDIRECT_URI", "OTEL_EXPORTER_OTLP_ENDPOINT", "ALLOWED_ORIGINS"]
)
@pytest.mark.parametrize(
    "url",
    [
        "shop.example",
        "//shop.example",
        "ftp://shop.example",
        "http://",
        "https://[",
        "https://[1::2::3]",
        "https://ä.example",
        "https://shop:pass@shop.example",
        "https://shop@shop.example",
        "https://shop.example?pass",
        "https://shop.example#a",
        *("https://shop.example:0", "https://shop.example:port", "https://a b", "https://shop.example\n", "*", "null"),
    ],
)
def test_an_invalid_url_is_refused(name, url):
    sentence = refusal(name, url)

    assert re.fullmatch(f"{name} must be .*, without a user.*[.]", sentence)
    assert "pass" not in sentence


def test_an_origin_has_no_path():
    assert refusal("ALLOWED_ORIGINS", "https://office.example, https://shop.example/a").startswith(
        "ALLOWED_ORIGINS must "
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, "many") for name in ("SMTP_PORT", "METRICS_PORT", "GATEWAY_PORT", "BCRYPT_ROUNDS", "max_workers")),
        *(("GATEWAY_PORT", value) for value in ("-1", "65536", "8080.0", " 8080", "8_080", "٨٠", "tcp://10.0.0.1:80")),
        *(("SMTP_PORT", value) for value in ("0", "65536", True, [])),
        *(("BCRYPT_ROUNDS", value) for value in ("3", "17")),
        *(("SETTLE_AFTER_SECONDS", value) for value in ("-1", "86401", "1.5")),
        *(("PREPARED_STATEMENTS", value) for value in ("2", "off")),
        *((name, value) for name in ("MAX_OPEN_ORDERS", "MAX_OPEN_UNITS_UNPROVEN") for value in ("0", "many", "1.5")),
        *(("PENDING_ORDER_HOURS", value) for value in ("-1", "8761", "0.5")),
        *(("RATE_LIMIT_SCALE", value) for value in ("0", "-1", "nan", "inf", "1e3", "1,5", ".5", "many", True)),
        *(("OTEL_TRACES_SAMPLER_ARG", value) for value in ("1.5", "all")),
        *(("EVENT_QUEUE_TYPE", value) for value in ("Quorum", "stream")),
        ("ENVIRONMENT", "staging"),
        *(("TRUSTED_PROXIES", value) for value in ("proxy.example", "10.0.0.1, 10.0.0.1/8", "*")),
        *(("SMTP_HOST", value) for value in ("mail.example:25", "smtp://mail.example", "a b", "shop:pass@mail")),
        *(("SMTP_HOST", value) for value in ("mail..internal", "m" * 64)),
        ("SMTP_TLS", "yes"),
        ("SMTP_CA", "/no/such/ca.crt"),
        *(("SMTP_PASSWORD", value) for value in ("pass\nword", "pässword")),
        ("METRICS_HOST", "0.0.0.0:9090"),
        ("AMQP_SSL", "/path/ca.crt"),
        ("MAIL_FROM", "Bücher"),
        *(("GOOGLE_CLIENT_SECRET", value) for value in ("pass\nword", "pass\udcff")),
    ],
)
def test_an_invalid_value_is_reported_in_one_sentence_that_does_not_quote_it(name, value):
    [sentence] = refusal(name, value).splitlines()

    assert re.fullmatch(f"{name} must be .*[.]", sentence)
    assert not isinstance(value, str) or len(value) < 6 or value not in sentence
    assert "pass" not in sentence


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("GATEWAY_PORT", "0", 0),
        ("SMTP_PORT", 65535, 65535),
        ("RATE_LIMIT_SCALE", "0.25", 0.25),
        ("RATE_LIMIT_SCALE", 3, 3.0),
        ("SMTP_HOST", "::1", "::1"),
        ("SMTP_HOST", "mail.example.org", "mail.example.org"),
        ("EVENT_QUEUE_TYPE", "quorum", "quorum"),
        ("GOOGLE_CLIENT_SECRET", "a client's secret/+%", "a client's secret/+%"),
    ],
)
def test_a_valid_value_is_converted_to_its_type(name, given, value):
    assert loaded(name, given) == value


def test_trusted_proxies_are_networks():
    assert [str(network) for network in loaded("TRUSTED_PROXIES", "10.0.0.1, 10.0.0.0/8,::1")] == [
        *("10.0.0.1/32", "10.0.0.0/8", "::1/128")
    ]


@pytest.mark.parametrize(
    "value",
    [
        secrets.token_hex(),
        secrets.token_hex(24),
        secrets.token_urlsafe(32),
        "".join(map(str, range(10, 40))),
        "correct horse battery staple forage",
    ],
)
def test_a_long_and_varied_secret_is_accepted(value):
    assert loaded("JWT_SECRET", value) == value


@pytest.mark.parametrize(
    "value",
    [
        secrets.token_hex(15),
        "\udcff" * 40,
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
        secrets.token_hex(6) * 4,
        "abcdefghijklmnopqrstuvwxyz123456",
        "qwertyuiopasdfghjklzxcvbnm1234567890",
        "this-is-a-long-jwt-secret-of-at-least-32-bytes",
    ],
)
@pytest.mark.parametrize("name", ["JWT_SECRET", "JWT_SECRET_PREVIOUS"])
def test_a_secret_that_is_short_or_easy_to_guess_is_refused(name, value):
    assert re.fullmatch(
        rf"{name} must be 32 bytes or more that are hard to guess, .*openssl rand.*", refusal(name, value)
    )


def test_the_two_secrets_of_a_rotation_must_differ():
    secret = secrets.token_hex()

    with pytest.raises(SystemExit, match=r"^JWT_SECRET_PREVIOUS is the same as JWT_SECRET: set the other secret"):
        checked(ShopSettings(), {"AMQP_URI": AMQP_URI, "JWT_SECRET": secret, "JWT_SECRET_PREVIOUS": secret})


@pytest.mark.parametrize(
    ("relay", "sentence"),
    [
        ({"SMTP_PASSWORD": "secret"}, "SMTP_USER is not set, and SMTP_PASSWORD is: set both, or none for a server"),
        (
            {"SMTP_HOST": "mail.example.org", "SMTP_USER": "forage", "SMTP_PASSWORD": "secret"},
            "SMTP_TLS is none, and SMTP_PASSWORD would cross the network unencrypted",
        ),
    ],
)
def test_contradicting_settings_of_the_mail_server_are_refused(relay, sentence):
    with pytest.raises(SystemExit) as refusal:
        checked(ShopSettings(), {"AMQP_URI": AMQP_URI, **relay})

    assert str(refusal.value).startswith(sentence)
    assert "secret" not in str(refusal.value)


def test_a_mail_authority_without_tls_is_refused(tmp_path):
    certificate = Authority(tmp_path / "authority").certificate

    with pytest.raises(SystemExit, match=r"^SMTP_CA is set, and SMTP_TLS is none: set that to starttls or implicit"):
        checked(ShopSettings(), {"AMQP_URI": AMQP_URI, "SMTP_CA": str(certificate)})


def test_a_mail_login_is_accepted_with_tls_or_on_this_machine():
    login = {"AMQP_URI": AMQP_URI, "SMTP_USER": "forage", "SMTP_PASSWORD": "secret"}

    checked(ShopSettings(), {**login, "SMTP_HOST": "127.0.0.1"})
    checked(ShopSettings(), {**login, "SMTP_HOST": "mail.example.org", "SMTP_TLS": "starttls"})


def test_an_issuer_without_tls_is_refused_if_sign_in_is_on(monkeypatch):
    provider = {"AMQP_URI": AMQP_URI, "OIDC_ISSUER": "http://localhost:8090", "GOOGLE_CLIENT_ID": "forage"}
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")
    checked(ShopSettings(), provider)
    monkeypatch.delenv("OAUTHLIB_INSECURE_TRANSPORT")

    with pytest.raises(SystemExit, match=r"^OIDC_ISSUER must begin with https://[.]$"):
        checked(ShopSettings(), provider)


def test_an_empty_setting_has_its_default(config_yaml):
    empty = {name: "" for name in config_yaml if isinstance(config_yaml[name], str)}

    assert checked(ShopSettings(), {**empty, "AMQP_URI": AMQP_URI}) == checked(ShopSettings(), {"AMQP_URI": AMQP_URI})


def test_config_yaml_has_the_settings_of_the_schema_and_their_defaults(config_yaml):
    settings = checked(ShopSettings(), {**config_yaml, "AMQP_URI": AMQP_URI})

    assert config_yaml.keys() == ShopSettings().fields.keys()
    assert {**settings, "LOGGING": {}} == checked(ShopSettings(), {"AMQP_URI": AMQP_URI})


@pytest.fixture
def config_yaml(monkeypatch):
    """The configuration as Nameko reads it without any variable."""
    monkeypatch.setattr("os.environ", {})
    setup_yaml_parser()
    return yaml.safe_load((ROOT / "config.yaml").read_text())
