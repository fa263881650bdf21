"""Sign-in with an OpenID Connect provider: authorization code with PKCE, and a verified id_token.

    client = OpenIdClient(config)
    authorization = client.begin()  # send the browser to authorization.url, store the rest
    identity = client.finish(code, authorization.nonce, authorization.code_verifier)

The caller compares the `state` that came back with the one that went out.

Settings: GOOGLE_CLIENT_ID, GOOGLE_CLIENT_SECRET, OIDC_ISSUER, GOOGLE_REDIRECT_URI (empty: a path of FRONTEND_URL).
The issuer publishes the rest, as OpenID Connect Discovery 1.0 says.
"""

import logging
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Self
from urllib.parse import quote, urlsplit

import eventlet
import jwt
import requests
import urllib3
from eventlet.semaphore import Semaphore
from oauthlib.oauth2 import OAuth2Error, WebApplicationClient, is_secure_transport
from requests.adapters import HTTPAdapter
from requests_oauthlib import OAuth2Session

from contracts.types import JsonObject
from services.users_sign_in_provider import Authorization, Identity, IdentityRefused, ProviderUnreachable

SCOPE = "openid email profile"
# No HMAC: the published key would be its secret.
ALGORITHMS = ("RS256", "ES256")
CLAIMS = ["iss", "aud", "exp", "iat", "nonce", "sub"]

# At most 4 sign-ins talk to the provider at once. Others wait 0.5 s, then fail: a slow provider must not block all
# workers.
MAX_CONCURRENT_SIGN_INS = 4
SLOT_WAIT_SECONDS = 0.5
# For all requests of one call together.
PROVIDER_TIMEOUT_SECONDS = 3.5
# The largest difference between the provider's clock and ours.
LEEWAY_SECONDS = 30
# The provider's document and keys are read again after METADATA_MAX_AGE_SECONDS, or, for an unknown key, after
# METADATA_MIN_AGE_SECONDS.
METADATA_MAX_AGE_SECONDS = 3600
METADATA_MIN_AGE_SECONDS = 30
MAX_BYTES = 128 * 1024

# At DEBUG these log secrets, codes and tokens.
VERBOSE_LOGGERS = ("requests_oauthlib", "oauthlib", "urllib3")
# RFC 6749, 5.2. Other texts of a provider may quote the code.
TOKEN_ERRORS = (
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
)


class OpenIdClient:
    """The client of the provider that the settings name."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        for name in VERBOSE_LOGGERS:
            logging.getLogger(name).setLevel(logging.INFO)
        self._client_id, self._client_secret = config["GOOGLE_CLIENT_ID"], config["GOOGLE_CLIENT_SECRET"]
        self._issuer = config["OIDC_ISSUER"]
        self._redirect_uri = config["GOOGLE_REDIRECT_URI"] or f"{config['FRONTEND_URL']}/api/auth/google/callback"
        self._metadata: _ProviderMetadata | None = None
        self._metadata_lock = Semaphore()
        self._free_slots = Semaphore(MAX_CONCURRENT_SIGN_INS)

    def begin(self) -> Authorization:
        """An authorization with new secrets. Raises ProviderUnreachable."""
        with self._oauth_session() as oauth:
            provider = self._provider(oauth, METADATA_MAX_AGE_SECONDS)
            state, nonce = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
            code_verifier = secrets.token_urlsafe(64)
            oauth.scope = SCOPE
            url, _ = oauth.authorization_url(
                provider.authorization_endpoint,
                state=state,
                nonce=nonce,
                code_challenge=WebApplicationClient(self._client_id).create_code_challenge(code_verifier, "S256"),
                code_challenge_method="S256",
            )
        return Authorization(url, state, nonce, code_verifier)

    def finish(self, code: str, nonce: str, code_verifier: str) -> Identity:
        """Exchange the code for the identity of the user. A code can be used once.

        Raises ProviderUnreachable or IdentityRefused.
        """
        with self._oauth_session() as oauth:
            id_token = self._redeem(oauth, code, code_verifier)
            claims = self._verified_claims(oauth, id_token, nonce)
        email = _text(claims.get("email"))
        verified = claims.get("email_verified")
        return Identity(
            issuer=claims["iss"],
            subject=claims["sub"],
            email=email,
            # Some providers send it as a string. 1 is neither, though it equals True.
            email_verified=email is not None and (verified is True or verified == "true"),
            name=_text(claims.get("name")),
        )

    @contextmanager
    def _oauth_session(self) -> Iterator[OAuth2Session]:
        """A session with the provider. All its requests together may take PROVIDER_TIMEOUT_SECONDS."""
        if not self._free_slots.acquire(timeout=SLOT_WAIT_SECONDS):
            raise ProviderUnreachable(f"{self._issuer} is slow, and other sign-ins already wait for it")
        # Not an OSError: urllib3 would take that for an unreachable address, and try the next one.
        timeout = eventlet.Timeout(PROVIDER_TIMEOUT_SECONDS)
        try:
            with OAuth2Session(self._client_id, redirect_uri=self._redirect_uri) as oauth:
                oauth.mount("https://", _BoundedAdapter())
                oauth.mount("http://", _BoundedAdapter())
                yield oauth
        except eventlet.Timeout as raised:
            if raised is not timeout:
                raise
            raise ProviderUnreachable(f"{self._issuer} did not answer within {PROVIDER_TIMEOUT_SECONDS} s") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise ProviderUnreachable(f"{self._issuer} is unreachable: {type(error).__name__}") from error
        finally:
            timeout.cancel()
            self._free_slots.release()

    def _provider(self, oauth: OAuth2Session, max_age_seconds: float) -> "_ProviderMetadata":
        """The provider's endpoints and keys. They are read again if they are older than max_age_seconds."""
        with self._metadata_lock:
            if self._metadata is None or time.monotonic() - self._metadata.read_at >= max_age_seconds:
                self._metadata = _ProviderMetadata.read(oauth, self._issuer)
            return self._metadata

    def _redeem(self, oauth: OAuth2Session, code: str, code_verifier: str) -> Any:
        """Exchange the code for the id_token, or None if the answer has none."""
        oauth.register_compliance_hook("access_token_response", _check_token_answer)
        endpoint = self._provider(oauth, METADATA_MAX_AGE_SECONDS).token_endpoint
        try:
            tokens = oauth.fetch_token(
                endpoint,
                code=code,
                code_verifier=code_verifier,
                # Both are quoted: RFC 6749, 2.3.1.
                auth=(quote(self._client_id, safe=""), quote(self._client_secret, safe="")),
                timeout=PROVIDER_TIMEOUT_SECONDS,
            )
        except (OAuth2Error, ValueError, TypeError, AttributeError, ArithmeticError) as error:
            # The code is missing or can't be sent, or oauthlib can't parse the answer. Its messages quote them.
            raise IdentityRefused(f"The code can't be exchanged ({type(error).__name__}).") from None
        return tokens.get("id_token")

    def _verified_claims(self, oauth: OAuth2Session, id_token: Any, nonce: str) -> JsonObject:
        """The id_token's claims, verified as OpenID Connect Core 1.0, 3.1.3.7 says."""
        try:
            key_id = jwt.get_unverified_header(id_token).get("kid")
            provider = self._provider(oauth, METADATA_MAX_AGE_SECONDS)
            if key_id not in provider.keys:
                provider = self._provider(oauth, METADATA_MIN_AGE_SECONDS)
            claims: JsonObject = jwt.decode(
                id_token,
                provider.key(key_id),
                algorithms=ALGORITHMS,
                issuer=self._issuer,
                audience=self._client_id,
                leeway=LEEWAY_SECONDS,
                options={"require": CLAIMS},
            )
        except (jwt.PyJWTError, UnicodeError) as error:
            # Some of their messages quote the token.
            raise IdentityRefused(f"The id_token is not valid ({type(error).__name__}).") from None
        several_audiences = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
        if (several_audiences or "azp" in claims) and claims.get("azp") != self._client_id:
            raise IdentityRefused("The id_token was issued to another client.")
        if not secrets.compare_digest(str(claims["nonce"]).encode(errors="replace"), nonce.encode()):
            raise IdentityRefused("The id_token's nonce is another sign-in's.")
        subject = claims["sub"]
        if not (0 < len(subject) <= 255 and subject.isascii() and subject.isprintable()):
            raise IdentityRefused("The id_token's subject is not 1 to 255 printable ASCII characters.")
        return claims


@dataclass(frozen=True)
class _ProviderMetadata:
    """keys: the public keys for signatures with ALGORITHMS, by key id."""

    authorization_endpoint: str
    token_endpoint: str
    keys: dict[str | None, jwt.PyJWK]
    read_at: float

    @classmethod
    def read(cls, oauth: OAuth2Session, issuer: str) -> Self:
        document = _document(oauth, f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        if document.get("issuer") != issuer:
            raise ProviderUnreachable(f"the discovery document of {issuer} names another issuer")
        names = ("authorization_endpoint", "token_endpoint", "jwks_uri")
        authorization_endpoint, token_endpoint, jwks_uri = [_endpoint(document, name) for name in names]
        try:
            keys = {
                key.key_id: key
                for key in jwt.PyJWKSet.from_dict(_document(oauth, jwks_uri))
                if key.algorithm_name in ALGORITHMS and key.public_key_use in (None, "sig")
            }
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError) as error:
            raise ProviderUnreachable(
                f"the published keys of {issuer} can't be read: {type(error).__name__}"
            ) from error
        return cls(authorization_endpoint, token_endpoint, keys, time.monotonic())

    def key(self, key_id: str | None) -> jwt.PyJWK:
        if key_id in self.keys:
            return self.keys[key_id]
        if key_id is None and len(self.keys) == 1:
            # Only then a token may leave out the id of its key.
            return next(iter(self.keys.values()))
        raise IdentityRefused("The id_token is signed by a key that the provider doesn't publish.")


class _BoundedAdapter(HTTPAdapter):
    """Follows no redirect, so no other address gets a request, and reads at most MAX_BYTES into memory."""

    def send(self, request: requests.PreparedRequest, *arguments: Any, **options: Any) -> requests.Response:
        host = urlsplit(str(request.url)).netloc
        with super().send(request, *arguments, **options) as response:
            status = response.status_code
            if 300 <= status < 400 or status == 429 or status >= 500:
                raise ProviderUnreachable(f"{host} answered {status}")
            body = response.raw.read(MAX_BYTES + 1, decode_content=True)
        if len(body) > MAX_BYTES:
            raise ProviderUnreachable(f"{host} answered with more than {MAX_BYTES} bytes")
        response.raw = BytesIO(body)
        # The encoding of JSON. Without it requests may try all encodings.
        response.encoding = "utf-8"
        return response


def _document(oauth: OAuth2Session, url: str) -> JsonObject:
    response = oauth.get(url, timeout=PROVIDER_TIMEOUT_SECONDS)
    document = _json_object(response)
    if response.status_code != 200 or document is None:
        raise ProviderUnreachable(f"{url} answered {response.status_code}, not 200 with a JSON object")
    return document


def _endpoint(document: JsonObject, name: str) -> str:
    url = document.get(name)
    if not isinstance(url, str) or not is_secure_transport(url):
        raise ProviderUnreachable(
            f"the discovery document of {document['issuer']} has no {name} that begins with https://"
        )
    return url


def _check_token_answer(response: requests.Response) -> requests.Response:
    answer = _json_object(response)
    if 400 <= response.status_code < 500:
        error = (answer or {}).get("error")
        reason = error if error in TOKEN_ERRORS else response.status_code
        raise IdentityRefused(f"The provider refused the code ({reason}).")
    if answer is None:
        raise ProviderUnreachable("the token endpoint did not answer with a JSON object")
    return response


def _json_object(response: requests.Response) -> JsonObject | None:
    try:
        answer = response.json()
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def _text(value: object) -> str | None:
    """The claim if it is printable text, or None."""
    return value if isinstance(value, str) and value and value.isprintable() else None
