"""Settings that are only fit for trying the shop out. In production no process starts with one of them.

A JWT_SECRET that is easy to guess is not among them: it is refused in every environment.
"""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

MIN_BCRYPT_ROUNDS = 10
MAX_RATE_LIMIT_SCALE = 100
# The mail catcher of docker-compose.yml, which delivers no mail.
MAIL_CATCHER = "maildev"
WEAK_PASSWORDS = {
    *("admin", "changeme", "chanterelle", "default", "forage", "guest", "pass", "password", "postgres", "rabbitmq"),
    *("root", "secret", "test"),
}


def demo_settings(values: Mapping[str, Any], environment: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each setting that is only fit for a trial.

    values: of ShopSettings, without the invalid ones. environment: of the process.
    """
    frontend = urlsplit(values.get("FRONTEND_URL", ""))
    if frontend.scheme != "https" or is_local(frontend.hostname):
        yield "FRONTEND_URL must be the shop's own https address, not one of this machine."
    if not all(origin.startswith("https://") for origin in values.get("ALLOWED_ORIGINS", ())):
        yield "ALLOWED_ORIGINS must be https addresses."
    for name, uri in _uris(values):
        if _has_weak_password(uri):
            yield f"{name} must have a user and a password that is not obvious."
    mail_server = values.get("SMTP_HOST", "").lower()
    if is_local(mail_server) or mail_server == MAIL_CATCHER:
        yield "SMTP_HOST must be a mail server."
    if "MAIL_FROM" in values and values["MAIL_FROM"].domain.lower().endswith("forage.example"):
        yield "MAIL_FROM must be an address of the shop's own, not one of forage.example."
    if values.get("BCRYPT_ROUNDS", 0) < MIN_BCRYPT_ROUNDS:
        yield f"BCRYPT_ROUNDS must be {MIN_BCRYPT_ROUNDS} or more."
    if not values.get("OIDC_ISSUER", "").lower().startswith("https://"):
        yield "OIDC_ISSUER must be an https address."
    if environment.get("OAUTHLIB_INSECURE_TRANSPORT"):
        yield "OAUTHLIB_INSECURE_TRANSPORT must not be set."
    if values.get("GOOGLE_CLIENT_ID") == "forage-local":
        yield "GOOGLE_CLIENT_ID must be one that Google gave out, not the local provider's."
    if environment.get("DEMO_PASSWORD"):
        yield "DEMO_PASSWORD must not be set: there are no demo accounts in production."
    if values.get("RATE_LIMIT_SCALE", 0) > MAX_RATE_LIMIT_SCALE:
        yield f"RATE_LIMIT_SCALE must be {MAX_RATE_LIMIT_SCALE} at most: a higher one limits nothing."
    if any(network.prefixlen == 0 for network in values.get("TRUSTED_PROXIES", ())):
        yield "TRUSTED_PROXIES must not contain every address."
    if values.get("LOGGING", {}).get("root", {}).get("level") == "DEBUG":
        yield "LOG_LEVEL must not be DEBUG: the log would show the content of requests and messages."


def _uris(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, URI) of the broker and of each database that is set."""
    if "AMQP_URI" in values:
        yield "AMQP_URI", values["AMQP_URI"]
    for service, uri in values.get("DB_URIS", {}).items():
        yield f"{service.upper()}_DB_URI", uri


def _has_weak_password(uri: str) -> bool:
    user, _, password = uri.partition("://")[2].rpartition("@")[0].partition(":")
    password = unquote(password).lower()
    return password in ("", unquote(user), *WEAK_PASSWORDS) or len(set(password)) < 4


def is_local(host: str | None) -> bool:
    return not host or host == "localhost" or host.endswith(".localhost") or host.startswith("127.") or host == "::1"
