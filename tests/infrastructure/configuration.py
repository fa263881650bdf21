"""The loaded config.yaml for tests, with values for extensions of a service that has no `Settings`."""

import secrets

from nameko_reliable.testing import configuration as kit


def configuration(broker, database_uris, smtp, **settings):
    return {
        **kit.configuration(broker, database_uris),
        "JWT_SECRET": secrets.token_hex(32),
        "BCRYPT_ROUNDS": 4,
        # Tests send more requests than customers.
        "RATE_LIMIT_SCALE": 1000,
        "MAX_OPEN_ORDERS": 100,
        "MAX_OPEN_UNITS": 1000,
        "MAX_OPEN_ORDERS_UNPROVEN": 20,
        "MAX_OPEN_UNITS_UNPROVEN": 200,
        "PENDING_ORDER_HOURS": 0,
        "FRONTEND_URL": "http://localhost:8080",
        "ALLOWED_ORIGINS": "",
        "GOOGLE_CLIENT_ID": "",
        "GOOGLE_CLIENT_SECRET": "",
        "OIDC_ISSUER": "https://accounts.google.com",
        "GOOGLE_REDIRECT_URI": "",
        "SMTP_HOST": smtp.host,
        "SMTP_PORT": smtp.port,
        "SMTP_TLS": "none",
        "MAIL_FROM": "Forage <shop@forage.example>",
        "SETTLE_AFTER_SECONDS": 600,
        **settings,
    }
