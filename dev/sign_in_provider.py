"""oidc-provider-mock: an OpenID Connect provider without passwords. A click on an account signs in as it."""

import json
import sys

# By the labels of their buttons: with an account in the shop, without one, and with an address that is not proven.
ACCOUNTS = {
    "ada": {"email": "ada@forage.example", "email_verified": True, "name": "Ada"},
    "cleo-is-new": {"email": "cleo@forage.example", "email_verified": True, "name": "Cleo"},
    "bo-unverified": {"email": "bo@forage.example", "email_verified": False, "name": "Bo"},
}


class SignInProvider:
    def __init__(self, settings):
        self.port = settings.ports["OIDC_PORT"]

    def command(self):
        listen = ["--host", "127.0.0.1", "--port", str(self.port)]
        accounts = [f"--user-claims={json.dumps({'sub': name, **claims})}" for name, claims in ACCOUNTS.items()]
        return [sys.executable, "-m", "oidc_provider_mock", *listen, *accounts]
