"""Sign-in with a real OpenID Connect provider: which account it opens. The checks of tokens are in test_openid.py."""

import jwt
import pytest

from contracts.types import InvalidInput
from contracts.users import (
    AccountDisabled,
    InvalidCredentials,
    InvalidSession,
    NotConfigured,
    SignInProviderAway,
    SignInRefused,
    UnprovenAddress,
    UserRegistered,
)
from nameko_reliable.testing.events import PublishedEvents
from services.users import Users
from tests.factories import an_account
from tests.shop import refusal_of, running_shop

from .conftest import log_in


@pytest.fixture(scope="module")
def client_shop(brokers, databases, smtp_server, sign_in_provider_server):
    with running_shop(brokers, databases, smtp_server, Users, **sign_in_provider_server.settings) as shop:
        yield shop


@pytest.fixture
def sign_in(client_shop, sign_in_provider):
    """`sign_in(email=…)` does a whole sign-in, and returns the answer of users."""

    def sign_in(**person):
        return client_shop.rpc.users.google_sign_in(**begin(**person))

    def begin(**person):
        begun = client_shop.rpc.users.google_sign_in_url()
        code, state = sign_in_provider.log_in(begun["url"], **person)
        assert state == begun["state"]
        return {"code": code, "state": state}

    sign_in.begin = begin
    return sign_in


@pytest.fixture
def email():
    return an_account()["email"]


@pytest.fixture
def account(client_shop):
    account = an_account()
    return {**account, **client_shop.rpc.users.register(**account)}


def claims_of(shop, answer):
    return jwt.decode(answer["access_token"], shop.config["JWT_SECRET"], algorithms=["HS256"])


def user_of(shop, answer):
    return shop.rpc.users.get_user(user_id=int(claims_of(shop, answer)["sub"]))


def prove_address(shop, account):
    request = {"user_id": account["id"], "email": account["email"], "purpose": "email_verification"}
    shop.rpc.users.verify_email(token=shop.rpc.users.create_mailed_token(**request)["token"])


def test_a_new_user_gets_an_account_and_a_session(client_shop, sign_in, email):
    answer = sign_in(email=email.upper(), name="Ada Forager")

    assert claims_of(client_shop, answer)["email_verified"] is True
    user = user_of(client_shop, answer)
    assert (user["email"], user["role"], user["is_active"]) == (email, "customer", True)
    assert user["username"].startswith("Ada Forager")
    assert set(answer) == {"access_token", "token_type", "expires_in", "refresh_token"}
    assert client_shop.rpc.users.refresh(refresh_token=answer["refresh_token"])


def test_a_new_user_is_announced_with_user_registered(client_shop, sign_in, email):
    published = PublishedEvents(client_shop.broker)

    user = user_of(client_shop, sign_in(email=email))

    event = published.wait_for(UserRegistered, where=lambda event: event.user_id == user["id"])
    assert event.email == email


def test_a_returning_user_with_a_new_address_has_the_same_account(client_shop, sign_in, email):
    first = user_of(client_shop, sign_in(email=email, subject=f"subject of {email}"))

    for address in (email, "new-" + email, None):
        again = sign_in(email=address, email_verified=False, subject=f"subject of {email}")
        assert user_of(client_shop, again) == first


def test_another_subject_with_a_known_address_gets_its_account(client_shop, sign_in, email):
    first = user_of(client_shop, sign_in(email=email, subject="one " + email))

    assert user_of(client_shop, sign_in(email=email, subject="two " + email)) == first


@pytest.mark.parametrize("name", ("Éowyn of Rohan", "Al", "x" * 60, "", None, "two\nlines", "\u200b"))
def test_a_new_user_gets_a_valid_username_from_any_provider(client_shop, sign_in, name):
    first, second = (user_of(client_shop, sign_in(email=an_account()["email"], name=name)) for _ in range(2))

    assert first["username"] != second["username"]
    assert all(1 <= len(user["username"]) <= 50 for user in (first, second))


# Owners of addresses


def test_a_new_user_with_an_address_that_cannot_receive_mail_gets_no_account(client_shop, sign_in, account):
    odd = "a.." + account["email"]
    with pytest.raises(UnprovenAddress):
        sign_in(email=odd)
    client_shop.sql("users", "UPDATE users SET email = %s WHERE id = %s", odd, account["id"])

    assert user_of(client_shop, sign_in(email=odd))["id"] == account["id"]


def test_an_address_with_a_letter_that_folds_to_ascii_opens_no_account_of_the_ascii_address(client_shop, sign_in):
    account = an_account()
    account["email"] = "kelvin-" + account["email"]
    client_shop.rpc.users.register(**account)

    with pytest.raises(UnprovenAddress):
        sign_in(email="\N{KELVIN SIGN}" + account["email"][1:], subject="not " + account["email"])

    assert log_in(client_shop, account)


def test_an_account_with_a_proven_address_is_linked_and_keeps_its_password(client_shop, sign_in, account):
    prove_address(client_shop, account)
    session = log_in(client_shop, account)

    linked = user_of(client_shop, sign_in(email=account["email"]))

    assert linked["id"] == account["id"]
    assert log_in(client_shop, account)
    assert client_shop.rpc.users.refresh(refresh_token=session["refresh_token"])


def test_a_user_who_registered_the_address_of_another_loses_access(client_shop, sign_in, account):
    intruder = log_in(client_shop, account)

    answer = sign_in(email=account["email"])

    assert user_of(client_shop, answer)["id"] == account["id"]
    assert claims_of(client_shop, answer)["email_verified"] is True
    with pytest.raises(InvalidCredentials):
        log_in(client_shop, account)
    with pytest.raises(InvalidSession):
        client_shop.rpc.users.refresh(refresh_token=intruder["refresh_token"])


@pytest.mark.parametrize("verified", (False, "false", 1, None))
def test_an_unverified_address_opens_no_account(client_shop, sign_in, account, verified):
    for email in (account["email"], an_account()["email"]):
        with pytest.raises(UnprovenAddress):
            sign_in(email=email, email_verified=verified)

    assert log_in(client_shop, account)
    identities = "SELECT count(*) FROM external_identities WHERE user_id = %s"
    assert client_shop.sql("users", identities, account["id"]) == [(0,)]


@pytest.mark.parametrize("email", (None, "no address", "üml@ut.example"))
def test_an_invalid_address_opens_no_account(sign_in, email):
    with pytest.raises(UnprovenAddress):
        sign_in(email=email, subject=f"no address: {email!r}".encode("ascii", "replace").decode())


def test_a_disabled_account_is_not_opened(client_shop, sign_in, account, email):
    known = user_of(client_shop, sign_in(email=email))
    for user in (known, account):
        client_shop.rpc.users.update_user(user_id=user["id"], is_active=False)

        with pytest.raises(AccountDisabled):
            sign_in(email=user["email"])

        assert client_shop.rpc.users.list_sessions(user_id=user["id"]) == []


def test_a_user_without_a_password_can_set_one_by_mail(client_shop, sign_in, email):
    user = user_of(client_shop, sign_in(email=email))
    request = {"user_id": user["id"], "email": email, "purpose": "password_reset"}
    token = client_shop.rpc.users.create_mailed_token(**request)["token"]

    client_shop.rpc.users.reset_password(token=token, password="lactarius deliciosus")

    assert log_in(client_shop, {"email": email, "password": "lactarius deliciosus"})
    assert user_of(client_shop, sign_in(email=email)) == client_shop.rpc.users.get_user(user_id=user["id"])


def test_concurrent_first_sign_ins_make_one_account(client_shop, sign_in, email):
    begun = [sign_in.begin(email=email) for _ in range(5)]

    calls = [client_shop.rpc.users.google_sign_in.call_async(**each) for each in begun]

    users = {user_of(client_shop, call.result())["id"] for call in calls}
    assert len(users) == 1


# Only once, and only for the browser that began


def test_a_sign_in_can_be_finished_once(client_shop, sign_in, email):
    begun = sign_in.begin(email=email)
    client_shop.rpc.users.google_sign_in(**begun)

    with pytest.raises(SignInRefused):
        client_shop.rpc.users.google_sign_in(**begun)


def test_a_used_code_is_refused(client_shop, sign_in, email):
    begun = sign_in.begin(email=email)
    client_shop.rpc.users.google_sign_in(**begun)
    another = client_shop.rpc.users.google_sign_in_url()

    with pytest.raises(SignInRefused):
        client_shop.rpc.users.google_sign_in(code=begun["code"], state=another["state"])


def test_the_code_of_another_sign_in_is_refused(client_shop, sign_in):
    """Its id_token has the nonce of the other sign-in."""
    mine, theirs = (sign_in.begin(email=an_account()["email"]) for _ in range(2))

    with pytest.raises(SignInRefused):
        client_shop.rpc.users.google_sign_in(code=theirs["code"], state=mine["state"])


def test_an_expired_sign_in_is_refused(client_shop, sign_in, email):
    begun = sign_in.begin(email=email)
    client_shop.sql("users", "UPDATE sign_ins SET expires_at = expires_at - interval '10 minutes'")

    with pytest.raises(SignInRefused):
        client_shop.rpc.users.google_sign_in(**begun)

    client_shop.fire(client_shop.containers["users"], "clean_up")
    assert client_shop.sql("users", "SELECT count(*) FROM sign_ins") == [(0,)]


@pytest.mark.parametrize("state", ("", "nonsense", "\ud83c\x00"))
def test_an_unknown_state_is_refused(client_shop, state):
    with pytest.raises(SignInRefused):
        client_shop.rpc.users.google_sign_in(code="code", state=state)


@pytest.mark.parametrize(
    "answer", ({"code": "", "state": "x"}, {"code": None, "state": "x"}, {"code": "x", "state": 5})
)
def test_an_answer_out_of_bounds_is_refused(client_shop, answer):
    with pytest.raises(InvalidInput):
        client_shop.rpc.users.google_sign_in(**answer)


def test_the_state_is_stored_as_a_hash(client_shop, sign_in_provider):
    state = client_shop.rpc.users.google_sign_in_url()["state"]

    assert state not in str(client_shop.sql("users", "SELECT s::text FROM sign_ins s"))


def test_a_forged_id_token_opens_no_account(client_shop, sign_in, sign_in_provider, account):
    sign_in_provider.sign_with_the_public_key()

    with pytest.raises(SignInRefused):
        sign_in(email=account["email"])


def test_an_unreachable_provider_is_reported(client_shop, sign_in, sign_in_provider, email):
    begun = sign_in.begin(email=email)
    sign_in_provider.stop()

    refusal = refusal_of(client_shop.rpc.users.google_sign_in.call_async(**begun))

    assert isinstance(refusal, SignInProviderAway)


def test_sign_in_is_off_without_a_client_id(shop):
    with pytest.raises(NotConfigured):
        shop.rpc.users.google_sign_in_url()
