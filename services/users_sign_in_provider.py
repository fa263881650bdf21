"""The provider that users may sign in with, if one is configured: the dependency, its results and its errors.

    openid = ProviderClient()

    authorization = self.openid.begin()  # send the browser to authorization.url, store the rest
    identity = self.openid.finish(code, authorization.nonce, authorization.code_verifier)

Setting: GOOGLE_CLIENT_ID. Without it there is no provider. The client, services/users_openid.py, has further settings.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nameko.containers import WorkerContext
from nameko.extensions import DependencyProvider

if TYPE_CHECKING:
    from services.users_openid import OpenIdClient


class ProviderNotConfigured(Exception):
    """GOOGLE_CLIENT_ID is empty, so sign-in with a provider is off."""


class ProviderUnreachable(Exception):
    """The provider is unreachable, slow or broken. This is not about the user."""


class IdentityRefused(Exception):
    """The provider refused the code, or its id_token is not valid. The reason quotes no part of either."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Authorization:
    """The address to send the browser to, and the secrets that check its callback."""

    url: str
    state: str
    nonce: str = field(repr=False)
    code_verifier: str = field(repr=False)


@dataclass(frozen=True)
class Identity:
    """The user who signed in. issuer and subject identify the user, the rest may change.

    subject: 1 to 255 printable ASCII characters.
    email_verified: whether the provider has verified that the address is the user's.
    """

    issuer: str
    subject: str
    email: str | None
    email_verified: bool
    name: str | None


class NoProvider:
    def begin(self) -> Authorization:
        raise ProviderNotConfigured("GOOGLE_CLIENT_ID is not set.")

    def finish(self, code: str, nonce: str, code_verifier: str) -> Identity:
        raise ProviderNotConfigured("GOOGLE_CLIENT_ID is not set.")


class ProviderClient(DependencyProvider):
    """Injects the client of the provider, or NoProvider."""

    def setup(self) -> None:
        self._client = _client_of(self.container.config)

    def get_dependency(self, worker_ctx: WorkerContext) -> "OpenIdClient | NoProvider":
        return self._client


def _client_of(config: Mapping[str, Any]) -> "OpenIdClient | NoProvider":
    if not config.get("GOOGLE_CLIENT_ID"):
        return NoProvider()
    # Imported here, since only this client needs the libraries for HTTP and OAuth.
    from services.users_openid import OpenIdClient

    return OpenIdClient(config)
