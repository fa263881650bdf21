"""services.users_openid: it accepts the identities of a provider, and refuses forged tokens and broken providers."""

import base64
import gzip
import hashlib
import logging
import time
from contextlib import suppress
from urllib.parse import parse_qs, urlsplit

import eventlet
import pytest
import requests
from werkzeug import Response

from nameko_reliable.testing.waiting import wait_for
from services import users_openid
from services.users_sign_in_provider import (
    Identity,
    IdentityRefused,
    ProviderClient,
    ProviderNotConfigured,
    ProviderUnreachable,
)
from tests.infrastructure.sign_in_provider import DISCOVERY, KEYS, TOKEN

pytestmark = pytest.mark.server

HOUR = 3600
ENDPOINTS = (DISCOVERY, KEYS, TOKEN)


class Office:
    name = "office"

    openid = ProviderClient()


@pytest.fixture
def new_client(sign_in_provider, container_factory):
    """`new_client()`: a client that has not read the provider's metadata yet. Keywords change its settings."""

    def new_client(**settings):
        container = container_factory(Office, {"FRONTEND_URL": "", **sign_in_provider.settings, **settings})
        [client] = container.dependencies
        client.setup()
        return client.get_dependency(None)

    return new_client


@pytest.fixture(autouse=True)
def long_timeout(monkeypatch):
    """On a busy machine a working provider must not time out."""
    monkeypatch.setattr(users_openid, "PROVIDER_TIMEOUT_SECONDS", 30)


@pytest.fixture
def client(new_client):
    return new_client()


@pytest.fixture
def sign_in(client, sign_in_provider):
    """`sign_in(email=…)` does a whole sign-in, and returns the identity."""

    def sign_in(**person):
        authorization = client.begin()
        code, _ = sign_in_provider.log_in(authorization.url, **person)
        return client.finish(code, authorization.nonce, authorization.code_verifier)

    return sign_in


def query_of(url):
    return {name: value for name, [value] in parse_qs(urlsplit(url).query).items()}


# Signing in


def test_a_sign_in_returns_the_identity(sign_in, sign_in_provider):
    identity = sign_in(subject="8675309", email="ada@forage.example", email_verified=True, name="Ada Forager")

    assert identity == Identity(
        issuer=sign_in_provider.issuer,
        subject="8675309",
        email="ada@forage.example",
        email_verified=True,
        name="Ada Forager",
    )


def test_a_browser_is_sent_to_the_provider_with_a_challenge(client, sign_in_provider):
    authorization = client.begin()

    assert authorization.url.startswith(f"{sign_in_provider.issuer}/oauth2/authorize?")
    query = query_of(authorization.url)
    assert query.pop("code_challenge") not in ("", authorization.code_verifier)
    assert query == {
        "response_type": "code",
        "client_id": sign_in_provider.settings["GOOGLE_CLIENT_ID"],
        "redirect_uri": sign_in_provider.settings["GOOGLE_REDIRECT_URI"],
        "scope": "openid email profile",
        "state": authorization.state,
        "nonce": authorization.nonce,
        "code_challenge_method": "S256",
    }


def test_the_provider_returns_the_state_with_the_code(client, sign_in_provider):
    authorization = client.begin()

    code, state = sign_in_provider.log_in(authorization.url)

    assert code
    assert state == authorization.state


def test_the_verifier_sent_with_the_code_hashes_to_the_challenge(client, sign_in_provider):
    authorization = client.begin()
    code, _ = sign_in_provider.log_in(authorization.url)

    client.finish(code, authorization.nonce, authorization.code_verifier)

    [request] = sign_in_provider.token_requests
    digest = hashlib.sha256(request["code_verifier"].encode()).digest()
    challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    assert challenge == query_of(authorization.url)["code_challenge"]
    assert request["code"] == code
    assert request["redirect_uri"] == sign_in_provider.settings["GOOGLE_REDIRECT_URI"]


def test_the_client_authenticates_with_its_secret(sign_in, sign_in_provider):
    sign_in()

    [request] = sign_in_provider.token_requests
    # Form-encoded, as RFC 6749, 2.3.1 says.
    assert request["username"] == "forage-tests"
    assert request["password"] == "the%20client%27s%20secret%2F%2B%25"
    assert "client_secret" not in request


def test_no_two_sign_ins_share_a_secret(client):
    first, second = client.begin(), client.begin()

    assert not {first.state, first.nonce, first.code_verifier} & {second.state, second.nonce, second.code_verifier}
    assert len({first.state, first.nonce, first.code_verifier}) == 3
    assert min(map(len, (first.state, first.nonce, first.code_verifier))) >= 43


def test_several_users_sign_in_at_the_same_time(sign_in, monkeypatch):
    monkeypatch.setattr(users_openid, "SLOT_WAIT_SECONDS", 30)
    emails = [f"forager{number}@forage.example" for number in range(5)]

    identities = list(eventlet.GreenPool().imap(lambda email: sign_in(email=email), emails))

    assert [identity.email for identity in identities] == emails


def test_scopes_with_other_names_are_accepted(sign_in, sign_in_provider):
    # As Google answers.
    sign_in_provider.change(TOKEN, scope="openid https://www.googleapis.com/auth/userinfo.email")

    assert sign_in(subject="ada").subject == "ada"


def test_a_key_on_an_elliptic_curve_is_accepted(sign_in, sign_in_provider):
    sign_in_provider.sign_with_new_key(algorithm="ES256")

    assert sign_in(subject="ada").subject == "ada"


@pytest.mark.parametrize(
    ("claim", "counts"), [(True, True), ("true", True), (False, False), ("false", False), (1, False), (None, False)]
)
def test_an_address_is_verified_only_if_the_claim_is_true(sign_in, claim, counts):
    identity = sign_in(email="ada@forage.example", email_verified=claim)

    assert identity.email == "ada@forage.example"
    assert identity.email_verified is counts


@pytest.mark.parametrize("claim", [None, 5, "", ["ada@forage.example"], "ada\0@forage.example", "\ud800"], ids=repr)
def test_an_address_that_is_not_printable_text_is_ignored(sign_in, sign_in_provider, claim):
    sign_in_provider.change_claims(email=claim, name=claim)

    identity = sign_in()

    assert (identity.email, identity.email_verified, identity.name) == (None, False, None)


# Refused tokens


def refusal(sign_in, **person):
    with pytest.raises(IdentityRefused) as refused:
        sign_in(**person)
    return str(refused.value)


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"aud": "another-client"}, "InvalidAudienceError"),
        ({"aud": ["another-client", "a-third"]}, "InvalidAudienceError"),
        ({"aud": None}, "MissingRequiredClaimError"),
        ({"aud": ["forage-tests", "another-client"]}, "issued to another client"),
        ({"aud": ["forage-tests", "another-client"], "azp": "another-client"}, "issued to another client"),
        ({"azp": "another-client"}, "issued to another client"),
        ({"iss": "https://accounts.google.com"}, "InvalidIssuerError"),
        ({"iss": None}, "MissingRequiredClaimError"),
        ({"nonce": "another-nonce"}, "nonce"),
        ({"nonce": "ä\ud800"}, "nonce"),
        ({"nonce": 5}, "nonce"),
        ({"nonce": None}, "MissingRequiredClaimError"),
        ({"exp": -HOUR}, "ExpiredSignatureError"),
        ({"exp": None}, "MissingRequiredClaimError"),
        ({"iat": +HOUR}, "ImmatureSignatureError"),
        ({"iat": None}, "MissingRequiredClaimError"),
        ({"nbf": +HOUR}, "ImmatureSignatureError"),
        ({"sub": None}, "MissingRequiredClaimError"),
        ({"sub": ""}, "subject"),
        ({"sub": "s" * 256}, "subject"),
        ({"sub": "ada\0"}, "subject"),
        ({"sub": 5}, "InvalidSubjectError"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_an_invalid_claim_is_refused(sign_in, sign_in_provider, claims, reason):
    from_now = {name: int(time.time()) + value for name, value in claims.items() if value in (HOUR, -HOUR)}
    sign_in_provider.change_claims(**claims | from_now)

    assert reason in refusal(sign_in)


def test_several_audiences_are_accepted_if_the_token_was_issued_to_us(sign_in, sign_in_provider):
    sign_in_provider.change_claims(aud=["forage-tests", "another-client"], azp="forage-tests", sub="s" * 255)

    assert sign_in().subject == "s" * 255


def test_the_nonce_of_another_sign_in_is_refused(client, sign_in_provider):
    mine, anothers = client.begin(), client.begin()
    code, _ = sign_in_provider.log_in(anothers.url)

    with pytest.raises(IdentityRefused, match="nonce"):
        client.finish(code, mine.nonce, mine.code_verifier)


@pytest.mark.parametrize(
    ("forge", "reason"),
    [
        ("send_unsigned_tokens", "InvalidAlgorithmError"),
        ("sign_with_the_public_key", "InvalidAlgorithmError"),
        ("sign_with_another_key", "InvalidSignatureError"),
    ],
)
def test_a_forged_signature_is_refused(sign_in, sign_in_provider, forge, reason):
    getattr(sign_in_provider, forge)()

    assert reason in refusal(sign_in)


def test_a_key_for_another_algorithm_is_ignored(sign_in, sign_in_provider):
    sign_in_provider.sign_with_new_key(algorithm="RS384")

    assert "key that the provider doesn't publish" in refusal(sign_in)


@pytest.mark.parametrize("token", [None, 5, "", "a.b", "a.b.c", "ä.ö.ü", "\ud800", "e30.e30.e30"], ids=repr)
def test_a_malformed_id_token_is_refused(sign_in, sign_in_provider, token):
    sign_in_provider.change(TOKEN, id_token=token)

    assert "id_token" in refusal(sign_in)


@pytest.mark.parametrize(
    "members",
    [
        {"access_token": None},
        {"scope": 5},
        {"expires_in": "soon"},
        {"expires_in": float("inf")},
        {"error": "chanterelle"},
    ],
    ids=str,
)
def test_an_invalid_token_answer_is_refused(sign_in, sign_in_provider, members):
    sign_in_provider.change(TOKEN, **members)

    reason = refusal(sign_in)
    assert "can't be exchanged" in reason
    assert "chanterelle" not in reason


def test_a_code_can_be_used_once(client, sign_in_provider):
    authorization = client.begin()
    code, _ = sign_in_provider.log_in(authorization.url)
    client.finish(code, authorization.nonce, authorization.code_verifier)

    with pytest.raises(IdentityRefused, match="invalid_grant"):
        client.finish(code, authorization.nonce, authorization.code_verifier)


@pytest.mark.parametrize("code", ["", "made-up", "x&grant_type=password", "%zz", "\ud800", "\0", "ä" * 5000])
def test_a_made_up_code_is_refused(client, code):
    authorization = client.begin()

    with pytest.raises(IdentityRefused):
        client.finish(code, authorization.nonce, authorization.code_verifier)


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_free_text_of_the_token_endpoint_is_not_repeated(sign_in, sign_in_provider, status):
    sign_in_provider.answer(TOKEN, Response('{"error": "the code abcdef"}', status))

    assert refusal(sign_in) == f"The provider refused the code ({status})."


# The provider's keys


def test_the_provider_metadata_is_read_once(sign_in, sign_in_provider):
    sign_in()
    sign_in()

    assert (sign_in_provider.requested_paths.count(DISCOVERY), sign_in_provider.requested_paths.count(KEYS)) == (1, 1)


def test_old_provider_metadata_is_read_again(sign_in, sign_in_provider, monkeypatch):
    sign_in()

    monkeypatch.setattr(users_openid, "METADATA_MAX_AGE_SECONDS", 0)

    sign_in()
    assert sign_in_provider.requested_paths.count(KEYS) > 1


def test_a_new_key_is_read(sign_in, sign_in_provider, monkeypatch):
    sign_in()
    monkeypatch.setattr(users_openid, "METADATA_MIN_AGE_SECONDS", 0)

    sign_in_provider.sign_with_new_key()

    assert sign_in(subject="ada").subject == "ada"
    assert sign_in_provider.requested_paths.count(KEYS) == 2


def test_not_every_unknown_key_reads_the_keys_again(sign_in, sign_in_provider):
    sign_in()

    sign_in_provider.sign_with_new_key()

    assert "key that the provider doesn't publish" in refusal(sign_in)
    assert sign_in_provider.requested_paths.count(KEYS) == 1


def test_an_unpublished_key_is_refused(sign_in, sign_in_provider, monkeypatch):
    monkeypatch.setattr(users_openid, "METADATA_MIN_AGE_SECONDS", 0)

    sign_in_provider.sign_with_new_key(published=False)

    assert "key that the provider doesn't publish" in refusal(sign_in)


def test_a_token_need_not_name_its_key_if_there_is_only_one(sign_in, sign_in_provider):
    sign_in_provider.pass_through()

    assert sign_in(subject="ada").subject == "ada"


def test_a_new_only_key_is_read_for_a_token_without_a_key_id(sign_in, sign_in_provider, monkeypatch):
    sign_in_provider.pass_through()
    sign_in()
    monkeypatch.setattr(users_openid, "METADATA_MIN_AGE_SECONDS", 0)

    sign_in_provider.sign_with_new_key(with_key_id=False, only=True)

    assert sign_in(subject="ada").subject == "ada"


def test_a_token_must_name_its_key_if_there_are_several(sign_in, sign_in_provider):
    sign_in_provider.sign_with_new_key(with_key_id=False)

    assert "key that the provider doesn't publish" in refusal(sign_in)


# An unreachable provider


@pytest.fixture
def ask(client, sign_in_provider):
    """`ask(path)` does the steps of a sign-in up to the request for this path."""
    authorization = client.begin()
    code, _ = sign_in_provider.log_in(authorization.url)

    def ask(path, of=client):
        if path == TOKEN:
            return of.finish(code, authorization.nonce, authorization.code_verifier)
        # As if the metadata had not been read yet.
        of._metadata = None
        return of.begin()

    return ask


def answers():
    bomb = gzip.compress(b" " * 10_000_000)
    return {
        "an error": Response("{}", 500),
        "out of service": Response("{}", 503),
        "too many requests": Response("{}", 429),
        "nothing": Response("", 200),
        "a page": Response("<html>", 200, content_type="text/html"),
        "a list": Response("[]", 200),
        "a nest": Response("[" * 100_000, 200),
        "no text": Response(b"\xff\xfe", 200),
        "broken compression": Response("{}", 200, {"Content-Encoding": "gzip"}),
        "a bomb": Response(bomb, 200, {"Content-Encoding": "gzip"}),
    }


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("kind", answers())
def test_a_provider_with_an_unusable_answer_is_unreachable(ask, sign_in_provider, path, kind):
    sign_in_provider.answer(path, answers()[kind])

    with pytest.raises(ProviderUnreachable):
        ask(path)


@pytest.mark.parametrize("path", [DISCOVERY, KEYS])
def test_a_document_with_an_error_status_is_refused(ask, sign_in_provider, path):
    document = requests.get(sign_in_provider.issuer + path, timeout=5).content
    sign_in_provider.answer(path, Response(document, 403))

    with pytest.raises(ProviderUnreachable, match="403"):
        ask(path)


@pytest.mark.parametrize("path", ENDPOINTS)
def test_an_answer_is_read_up_to_a_limit(ask, sign_in_provider, path):
    sign_in_provider.answer(path, sign_in_provider.flood)

    with pytest.raises(ProviderUnreachable, match="more than 131072 bytes"):
        ask(path)


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("status", [301, 302, 307])
def test_a_redirect_is_not_followed(ask, sign_in_provider, path, status):
    sign_in_provider.answer(path, Response("{}", status, {"Location": f"{sign_in_provider.issuer}/elsewhere"}))

    with pytest.raises(ProviderUnreachable, match=str(status)):
        ask(path)

    assert "/elsewhere" not in sign_in_provider.requested_paths


def test_a_hanging_provider_blocks_at_most_four_sign_ins(client, sign_in_provider, monkeypatch):
    monkeypatch.setattr(users_openid, "SLOT_WAIT_SECONDS", 0.01)
    sign_in_provider.answer(DISCOVERY, sign_in_provider.hang)
    first = [eventlet.spawn(client.begin) for _ in range(users_openid.MAX_CONCURRENT_SIGN_INS)]
    wait_for(lambda: DISCOVERY in sign_in_provider.requested_paths)

    with pytest.raises(ProviderUnreachable, match="other sign-ins already wait"):
        client.begin()

    sign_in_provider.reset()
    for greenlet in first:
        with suppress(ProviderUnreachable):
            greenlet.wait()
    assert client.begin()


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("manner", ["hang", "drip"])
def test_a_slow_provider_is_unreachable(ask, sign_in_provider, monkeypatch, path, manner):
    sign_in_provider.answer(path, getattr(sign_in_provider, manner))
    monkeypatch.setattr(users_openid, "PROVIDER_TIMEOUT_SECONDS", 0.3)

    with pytest.raises(ProviderUnreachable, match=r"within 0.3 s"):
        ask(path)


def test_the_requests_of_a_sign_in_share_one_timeout(ask, new_client, sign_in_provider, monkeypatch):
    monkeypatch.setattr(users_openid, "PROVIDER_TIMEOUT_SECONDS", 0.5)

    sign_in_provider.delay_answers(0.2)

    with pytest.raises(ProviderUnreachable, match=r"within 0.5 s"):
        ask(TOKEN, of=new_client())


def test_a_timeout_of_the_caller_is_not_the_providers(ask, sign_in_provider):
    sign_in_provider.answer(TOKEN, sign_in_provider.hang)

    with pytest.raises(eventlet.Timeout), eventlet.Timeout(0.2):
        ask(TOKEN)


@pytest.mark.parametrize("path", [DISCOVERY, TOKEN])
def test_a_stopped_provider_is_unreachable(ask, sign_in_provider, path):
    sign_in_provider.stop()

    with pytest.raises(ProviderUnreachable):
        ask(path)


def test_a_provider_is_used_again_after_an_outage(new_client, sign_in_provider):
    client = new_client()
    sign_in_provider.stop()
    with pytest.raises(ProviderUnreachable):
        client.begin()

    sign_in_provider.start()

    assert client.begin().url.startswith(sign_in_provider.issuer)


@pytest.mark.parametrize(
    "members",
    [
        {"issuer": "https://accounts.google.com"},
        {"issuer": None},
        {"authorization_endpoint": None},
        {"token_endpoint": None},
        {"token_endpoint": 5},
        {"jwks_uri": None},
        {"jwks_uri": "nowhere"},
        {"jwks_uri": "file:///etc/passwd"},
    ],
    ids=str,
)
def test_an_incomplete_discovery_document_is_refused(ask, sign_in_provider, members):
    sign_in_provider.change(DISCOVERY, **members)

    with pytest.raises(ProviderUnreachable):
        ask(DISCOVERY)


@pytest.mark.parametrize("keys", [None, [], 5, [5], [{}], [{"kty": "RSA", "n": 5, "e": "AQAB"}]], ids=str)
def test_unreadable_keys_are_refused(ask, sign_in_provider, keys):
    sign_in_provider.change(KEYS, keys=keys)

    with pytest.raises(ProviderUnreachable):
        ask(KEYS)


# Logs


def test_no_secret_is_logged_at_any_level(new_client, sign_in_provider, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    for name in users_openid.VERBOSE_LOGGERS:
        logging.getLogger(name).setLevel(logging.NOTSET)
    client = new_client()
    secrets = {sign_in_provider.settings["GOOGLE_CLIENT_SECRET"], client._client_secret}

    def sign_in(prepare):
        authorization = client.begin()
        code, _ = sign_in_provider.log_in(authorization.url)
        secrets.update({code, authorization.nonce, authorization.code_verifier})
        prepare()
        try:
            client.finish(code, authorization.nonce, authorization.code_verifier)
        except (IdentityRefused, ProviderUnreachable):
            logging.getLogger("the caller").exception("no sign-in")

    sign_in(lambda: None)
    sign_in(lambda: sign_in_provider.change_claims(aud="another-client"))
    sign_in(lambda: sign_in_provider.change(TOKEN, expires_in="soon"))
    sign_in(lambda: sign_in_provider.answer(TOKEN, sign_in_provider.echo_request))
    sign_in(sign_in_provider.stop)

    assert caplog.text.count("no sign-in") == 4
    for answer in sign_in_provider.token_answers:
        secrets.update({answer["access_token"], answer["id_token"], *answer["id_token"].split(".")})
    assert not [secret for secret in secrets if secret in caplog.text]


def test_a_code_that_cannot_be_sent_is_not_logged(client):
    with pytest.raises(IdentityRefused) as refused:
        client.finish("chanterelle\ud800", "a nonce", "a verifier")

    assert "chanterelle" not in str(refused.value)
    assert refused.value.__cause__ is None and refused.value.__suppress_context__


# Settings


def test_sign_in_is_off_without_a_client_id(new_client):
    client = new_client(GOOGLE_CLIENT_ID="", GOOGLE_CLIENT_SECRET="", OIDC_ISSUER="")

    with pytest.raises(ProviderNotConfigured):
        client.begin()
    with pytest.raises(ProviderNotConfigured):
        client.finish("a code", "a nonce", "a verifier")


def test_the_provider_redirects_to_the_frontend(new_client):
    client = new_client(GOOGLE_REDIRECT_URI=None, FRONTEND_URL="https://shop.example")

    query = query_of(client.begin().url)

    assert query["redirect_uri"] == "https://shop.example/api/auth/google/callback"
