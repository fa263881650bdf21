"""oidc-provider-mock: an OpenID Connect provider on which one is whoever one clicks on."""

import json
import sys

# By what their buttons say: somebody with an account, somebody without, and somebody whose account this may not be.
PEOPLE = {
    "ada": {"email": "ada@forage.example", "email_verified": True, "name": "Ada"},
    "cleo-is-new": {"email": "cleo@forage.example", "email_verified": True, "name": "Cleo"},
    "bo-unverified": {"email": "bo@forage.example", "email_verified": False, "name": "Bo"},
}


class SignInProvider:
    def __init__(self, settings):
        self.port = settings.ports["OIDC_PORT"]

    def command(self):
        listen = ["--host", "127.0.0.1", "--port", str(self.port)]
        people = [f"--user-claims={json.dumps({'sub': name, **claims})}" for name, claims in PEOPLE.items()]
        return [sys.executable, "-m", "oidc_provider_mock", *listen, *people]
