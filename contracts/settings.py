"""Every setting of config.yaml, with its type and its default. Each process checks all of them when it starts."""

import os
from collections.abc import Mapping
from typing import Any

from marshmallow import INCLUDE, Schema, ValidationError, pre_load, validates_schema

from contracts.demo_settings import is_local
from contracts.setting_types import (
    AmqpUri,
    AsciiText,
    Certificate,
    Choice,
    DatabaseUris,
    Host,
    MailAddress,
    Networks,
    Number,
    Origins,
    Port,
    RedisUri,
    Secret,
    Section,
    Setting,
    Url,
)


class ShopSettings(Schema):
    """Loads the configuration that Nameko reads from config.yaml. A missing or empty setting has its default."""

    class Meta:
        # Nameko has settings of its own.
        unknown = INCLUDE

    ENVIRONMENT = Choice("development", "production")

    AMQP_URI = AmqpUri(required=True)
    AMQP_SSL_CA = Certificate()
    AMQP_SSL = Section()
    EVENT_QUEUE_TYPE = Choice("classic", "quorum")
    rpc_exchange = Setting("nameko-rpc")
    max_workers = Number(1, 1000, 10)

    DB_URIS = DatabaseUris()
    PREPARED_STATEMENTS = Number(0, 1, 1)

    JWT_SECRET = Secret()
    JWT_SECRET_PREVIOUS = Secret()
    BCRYPT_ROUNDS = Number(4, 16, 12)

    GATEWAY_PORT = Port(3000, lowest=0)
    FRONTEND_URL = Url("http://localhost:8080", base=True)
    ALLOWED_ORIGINS = Origins()
    TRUSTED_PROXIES = Networks()
    RATE_LIMIT_STORAGE_URI = RedisUri()
    RATE_LIMIT_SCALE = Number(0.001, 1_000_000, 1.0, whole=False)

    MAX_OPEN_ORDERS = Number(1, 1_000_000, 100)
    MAX_OPEN_UNITS = Number(1, 1_000_000, 1000)
    MAX_OPEN_ORDERS_UNPROVEN = Number(1, 1_000_000, 20)
    MAX_OPEN_UNITS_UNPROVEN = Number(1, 1_000_000, 200)
    PENDING_ORDER_HOURS = Number(0, 8760, 0)

    GOOGLE_CLIENT_ID = Setting()
    GOOGLE_CLIENT_SECRET = Setting()
    OIDC_ISSUER = Url("https://accounts.google.com")
    GOOGLE_REDIRECT_URI = Url()

    SMTP_HOST = Host("localhost")
    SMTP_PORT = Port(1025)
    SMTP_TLS = Choice("none", "starttls", "implicit")
    SMTP_CA = Certificate()
    SMTP_USER = AsciiText()
    SMTP_PASSWORD = AsciiText()
    MAIL_FROM = MailAddress("Forage <shop@forage.example>")

    METRICS_HOST = Host("127.0.0.1")
    METRICS_PORT = Port(0, lowest=0)

    SETTLE_AFTER_SECONDS = Number(0, 86400, 600)

    OTEL_EXPORTER_OTLP_ENDPOINT = Url(base=True)
    OTEL_TRACES_SAMPLER_ARG = Number(0, 1, 0.1, whole=False)

    # Nameko configures logging before our code runs. The kit's formatter checks the content.
    LOGGING = Section(dict)

    @pre_load
    def drop_empty_values(self, config: Mapping[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {name: value for name, value in config.items() if value not in ("", None)}

    @validates_schema(skip_on_field_errors=False)
    def check_combinations(self, values: dict[str, Any], **kwargs: Any) -> None:
        errors: dict[str, list[str]] = {}
        if values.get("AMQP_SSL_CA") and not values.get("AMQP_URI", "amqps:").lower().startswith("amqps:"):
            errors["AMQP_SSL_CA"] = ["is set, and AMQP_URI is no amqps:// address: nothing would be encrypted."]
        if values.get("JWT_SECRET_PREVIOUS") and values["JWT_SECRET_PREVIOUS"] == values.get("JWT_SECRET"):
            errors["JWT_SECRET_PREVIOUS"] = ["is the same as JWT_SECRET: set the other secret of a rotation, or none."]
        errors |= _mail_relay_errors(values)
        # oauthlib itself reads this variable.
        may_be_http = os.environ.get("OAUTHLIB_INSECURE_TRANSPORT") or not values.get("GOOGLE_CLIENT_ID")
        if not may_be_http and not values.get("OIDC_ISSUER", "https:").lower().startswith("https:"):
            errors["OIDC_ISSUER"] = ["must begin with https://."]
        if errors:
            raise ValidationError(errors)


def _mail_relay_errors(values: Mapping[str, Any]) -> dict[str, list[str]]:
    errors = {}
    is_plain = values.get("SMTP_TLS") == "none"
    if values.get("SMTP_CA") and is_plain:
        errors["SMTP_CA"] = ["is set, and SMTP_TLS is none: set that to starttls or implicit."]
    if values.get("SMTP_PASSWORD") and "SMTP_USER" in values and not values["SMTP_USER"]:
        errors["SMTP_USER"] = ["is not set, and SMTP_PASSWORD is: set both, or none for a server without a login."]
    if values.get("SMTP_USER") and is_plain and "SMTP_HOST" in values and not is_local(values["SMTP_HOST"]):
        errors["SMTP_TLS"] = [
            "is none, and SMTP_PASSWORD would cross the network unencrypted: set it to starttls or implicit, "
            "or take a mail server on this machine."
        ]
    return errors
