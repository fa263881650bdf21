"""What is right for trying the shop out and for nothing else: no process of it starts with that in production.

A JWT_SECRET that is easy to guess is not among it: no process that uses one takes that anywhere.
"""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

LEAST_BCRYPT_ROUNDS = 10
MOST_RATE_LIMIT_SCALE = 100
# Of docker-compose.yml: no mail would ever leave it.
MAIL_CATCHER = "maildev"
OBVIOUS_PASSWORDS = {
    *("admin", "changeme", "chanterelle", "default", "forage", "guest", "pass", "password", "postgres", "rabbitmq"),
    *("root", "secret", "test"),
}


def demo_settings(config: Mapping[str, Any], environment: Mapping[str, str]) -> Iterator[str]:
    """Sentences that say which settings are those of a trial. environment: the process's."""

    def setting(name: str, default: str = "") -> str:
        return str(config.get(name) or default)

    def entries(name: str) -> list[str]:
        return [entry.strip() for entry in setting(name).split(",") if entry.strip()]

    frontend = urlsplit(setting("FRONTEND_URL", "http://localhost:8080").lower())
    if frontend.scheme != "https" or _is_local(frontend.hostname):
        yield "FRONTEND_URL must be the shop's own https address, not one of this machine."
    for origin in entries("ALLOWED_ORIGINS"):
        if not origin.lower().startswith("https://"):
            yield f"ALLOWED_ORIGINS must be https addresses, and has {origin}."
    for name, uri in _uris(config):
        if _is_open(uri):
            yield f"{name} must have a user and a password that is not obvious."
    mail_server = setting("SMTP_HOST", "localhost").lower()
    if _is_local(mail_server) or mail_server == MAIL_CATCHER:
        yield "SMTP_HOST must be a mail server."
    if "forage.example" in setting("MAIL_FROM", "forage.example").lower():
        yield "MAIL_FROM must be an address of the shop's own, not one of forage.example."
    rounds = setting("BCRYPT_ROUNDS", "12")
    if rounds.isdecimal() and int(rounds) < LEAST_BCRYPT_ROUNDS:
        yield f"BCRYPT_ROUNDS must be {LEAST_BCRYPT_ROUNDS} or more."
    if not setting("OIDC_ISSUER", "https://accounts.google.com").lower().startswith("https://"):
        yield "OIDC_ISSUER must be an https address."
    if environment.get("OAUTHLIB_INSECURE_TRANSPORT"):
        yield "OAUTHLIB_INSECURE_TRANSPORT must not be set."
    if setting("GOOGLE_CLIENT_ID") == "forage-local":
        yield "GOOGLE_CLIENT_ID must be one that Google gave out, not the local provider's."
    if environment.get("DEMO_PASSWORD"):
        yield "DEMO_PASSWORD must not be set: there are no demo accounts in production."
    if _number(setting("RATE_LIMIT_SCALE", "1")) > MOST_RATE_LIMIT_SCALE:
        yield f"RATE_LIMIT_SCALE must be {MOST_RATE_LIMIT_SCALE} at most, else nothing is limited."
    if any(entry.endswith("/0") for entry in entries("TRUSTED_PROXIES")):
        yield "TRUSTED_PROXIES must not be everybody."
    if config.get("LOGGING", {}).get("root", {}).get("level") == "DEBUG":
        yield "LOG_LEVEL must not be DEBUG: it writes down what passes through."


def _uris(config: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Those that are set. A process without the ones that it needs says so itself."""
    yield "AMQP_URI", config.get("AMQP_URI")
    for service, uri in (config.get("DB_URIS") or {}).items():
        yield f"{service.upper()}_DB_URI", uri


def _is_open(uri: str | None) -> bool:
    if not uri:
        return False
    try:
        parts = urlsplit(uri)
        password = (parts.password or "").lower()
    except ValueError:
        return True
    return password in ("", parts.username, *OBVIOUS_PASSWORDS) or len(set(password)) < 4


def _is_local(host: str | None) -> bool:
    return not host or host == "localhost" or host.endswith(".localhost") or host.startswith("127.") or host == "::1"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0
