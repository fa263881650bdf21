import hashlib

import jwt
import pytest

from contracts.types import InvalidInput
from contracts.users import (
    InvalidCredentials,
    InvalidSession,
    InvalidToken,
    MailNotNeeded,
    UserNotFound,
    UserPasswordResetRequested,
    UserVerificationRequested,
)
from nameko_reliable.testing.waiting import wait_for
from services.users import Users
from tests.factories import an_account
from tests.shop import refusal_of

from .conftest import log_in

RESET, VERIFICATION = "password_reset", "email_verification"
NEW_PASSWORD = "lactarius deliciosus"


@pytest.fixture
def account(shop):
    account = an_account()
    return {**account, **shop.rpc.users.register(**account)}


def new_token(shop, account, purpose):
    answer = shop.rpc.users.create_mailed_token(user_id=account["id"], email=account["email"], purpose=purpose)
    return answer["token"]


def reset(shop, token, password=NEW_PASSWORD):
    return shop.rpc.users.reset_password(token=token, password=password)


def is_verified(shop, account):
    [(verified_at,)] = shop.sql("users", "SELECT email_verified_at FROM users WHERE id = %s", account["id"])
    return verified_at is not None


@pytest.fixture
def requested_mails(published_events):
    """`requested_mails(user_id)`: the published events that request a mail to the account."""
    names = [UserPasswordResetRequested.name, UserVerificationRequested.name]

    def requested_mails(user_id):
        every = [payload for name in names for payload in published_events.all("users", name)]
        return [payload for payload in every if payload["user_id"] == user_id]

    return requested_mails


# Requesting a new password


def test_a_request_for_a_new_password_sends_a_mail(shop, account, requested_mails):
    shop.rpc.users.request_password_reset(email=account["email"].upper())

    [payload] = wait_for(lambda: requested_mails(account["id"]))
    assert set(payload) == {"event_id", "timestamp", "version", "user_id", "email"}
    assert payload["email"] == account["email"]


def test_ten_requests_for_a_new_password_send_one_mail(shop, account, requested_mails):
    for _ in range(10):
        shop.rpc.users.request_password_reset(email=account["email"])

    wait_for(lambda: shop.sql("users", "SELECT count(*) FROM mail_requests WHERE answered_at IS NULL") == [(0,)])
    wait_for(lambda: shop.outbox(Users).pending() == [])
    assert len(requested_mails(account["id"])) == 1


def test_another_mail_can_be_requested_after_a_minute(shop, account, requested_mails):
    shop.rpc.users.request_password_reset(email=account["email"])
    wait_for(lambda: len(requested_mails(account["id"])) == 1)
    shop.sql("users", "UPDATE mail_requests SET answered_at = answered_at - interval '61 seconds'")

    shop.rpc.users.request_password_reset(email=account["email"])

    wait_for(lambda: len(requested_mails(account["id"])) == 2)


def test_frequent_requests_do_not_delay_the_next_mail(shop, account, requested_mails):
    for _ in range(4):
        shop.rpc.users.request_password_reset(email=account["email"])
        wait_for(lambda: shop.sql("users", "SELECT count(*) FROM mail_requests WHERE answered_at IS NULL") == [(0,)])
        shop.sql("users", "UPDATE mail_requests SET answered_at = answered_at - interval '40 seconds'")

    wait_for(lambda: len(requested_mails(account["id"])) == 2)


def test_an_address_gets_at_most_three_mails_of_a_kind_in_half_an_hour(shop, account, requested_mails):
    unanswered = "SELECT count(*) FROM mail_requests WHERE answered_at IS NULL"

    def request_every_minute(times):
        for _ in range(times):
            shop.rpc.users.request_password_reset(email=account["email"])
            wait_for(lambda: shop.sql("users", unanswered) == [(0,)])
            shop.sql("users", "UPDATE mail_requests SET answered_at = answered_at - interval '61 seconds'")

    request_every_minute(6)
    wait_for(lambda: shop.outbox(Users).pending() == [])
    assert len(requested_mails(account["id"])) == 3
    shop.sql("users", "UPDATE mail_requests SET answered_at = answered_at - interval '25 minutes'")
    request_every_minute(1)

    wait_for(lambda: len(requested_mails(account["id"])) == 4)


@pytest.mark.parametrize("who", ("known", "unknown", "disabled"))
def test_a_request_does_the_same_work_for_known_and_unknown_addresses(shop, who, account):
    """The account is looked up after the answer. Until then each request stores one row."""
    email = "nobody-asks@forage.example" if who == "unknown" else account["email"]
    if who == "disabled":
        shop.rpc.users.update_user(user_id=account["id"], is_active=False)
    # The lock keeps the request from being answered.
    with shop.transaction("users", "LOCK TABLE outbox, users IN ACCESS EXCLUSIVE MODE"):
        assert shop.rpc.users.request_password_reset(email=email) is None

    wait_for(lambda: shop.sql("users", "SELECT count(*) FROM mail_requests WHERE answered_at IS NULL") == [(0,)])


def test_disabled_accounts_and_unknown_addresses_get_no_mail(shop, account, requested_mails):
    shop.rpc.users.update_user(user_id=account["id"], is_active=False)

    for email in (account["email"], "nobody@forage.example"):
        shop.rpc.users.request_password_reset(email=email)

    wait_for(lambda: shop.sql("users", "SELECT count(*) FROM mail_requests WHERE answered_at IS NULL") == [(0,)])
    wait_for(lambda: shop.outbox(Users).pending() == [])
    assert len(requested_mails(account["id"])) == 0


@pytest.mark.parametrize("email", ("no address", "", None, 5))
def test_a_request_for_an_invalid_address_is_refused(shop, email):
    with pytest.raises(InvalidInput):
        shop.rpc.users.request_password_reset(email=email)


# Setting a new password


def test_a_mailed_token_sets_a_new_password_and_ends_all_sessions(shop, account):
    session = log_in(shop, account)

    reset(shop, new_token(shop, account, RESET))

    with pytest.raises(InvalidCredentials):
        log_in(shop, account)
    with pytest.raises(InvalidSession):
        shop.rpc.users.refresh(refresh_token=session["refresh_token"])
    assert log_in(shop, account, password=NEW_PASSWORD)


def test_a_password_reset_proves_the_address(shop, account):
    reset(shop, new_token(shop, account, RESET))

    assert is_verified(shop, account)


def test_a_token_is_valid_once_and_its_use_ends_the_others(shop, account):
    token, other = new_token(shop, account, RESET), new_token(shop, account, RESET)
    reset(shop, token)

    for spent in (token, other):
        with pytest.raises(InvalidToken):
            reset(shop, spent, password="another one for me")
    assert log_in(shop, account, password=NEW_PASSWORD)


@pytest.mark.parametrize("password", ("short", "password1", "x" * 129, None))
def test_a_refused_password_leaves_the_token_valid(shop, account, password):
    token = new_token(shop, account, RESET)

    with pytest.raises(InvalidInput):
        reset(shop, token, password=password)

    reset(shop, token)
    assert log_in(shop, account, password=NEW_PASSWORD)


def test_concurrent_uses_of_a_token_succeed_once(shop, account):
    token = new_token(shop, account, RESET)

    calls = [shop.rpc.users.reset_password.call_async(token=token, password=f"password of {n}") for n in range(5)]

    results = []
    for call in calls:
        try:
            results.append(call.result())
        except InvalidToken:
            results.append("refused")
    assert sorted(results, key=str) == [None] + ["refused"] * 4


def test_one_of_many_concurrently_used_tokens_is_accepted(shop, account):
    tokens = [new_token(shop, account, RESET) for _ in range(5)]

    calls = [shop.rpc.users.reset_password.call_async(token=token, password=NEW_PASSWORD) for token in tokens]

    refusals = [type(refusal_of(call)).__name__ for call in calls]
    assert sorted(refusals) == ["InvalidToken"] * 4 + ["NoneType"]


def test_a_redelivered_reset_is_made_once(shop, account):
    token = new_token(shop, account, RESET)

    assert shop.call_twice("users", "reset_password", token=token, password=NEW_PASSWORD) == [None, None]


def test_only_the_last_hundred_tokens_are_valid(shop, account):
    tokens = [new_token(shop, account, VERIFICATION) for _ in range(102)]

    for token in tokens[:2]:
        with pytest.raises(InvalidToken):
            shop.rpc.users.verify_email(token=token)
    shop.rpc.users.verify_email(token=tokens[2])


@pytest.mark.parametrize("purpose, minutes", ((RESET, 30), (VERIFICATION, 24 * 60)))
def test_a_token_expires(shop, account, purpose, minutes):
    spend = reset if purpose == RESET else lambda shop, token: shop.rpc.users.verify_email(token=token)
    late, in_time = new_token(shop, account, purpose), new_token(shop, account, purpose)
    for token, passed in ((late, minutes * 60), (in_time, minutes * 60 - 20)):
        shop.sql(
            "users",
            "UPDATE mailed_tokens SET expires_at = expires_at - make_interval(secs => %s) WHERE token_hash = %s",
            passed,
            hashlib.sha256(token.encode()).digest(),
        )

    with pytest.raises(InvalidToken):
        spend(shop, late)
    spend(shop, in_time)


@pytest.mark.parametrize("token", ("", "nonsense", "é\x00", "\ud83c"))
def test_an_invalid_token_is_refused(shop, token):
    with pytest.raises(InvalidToken):
        reset(shop, token)
    with pytest.raises(InvalidToken):
        shop.rpc.users.verify_email(token=token)


def test_a_token_is_not_valid_for_another_purpose(shop, account):
    with pytest.raises(InvalidToken):
        reset(shop, new_token(shop, account, VERIFICATION))
    with pytest.raises(InvalidToken):
        shop.rpc.users.verify_email(token=new_token(shop, account, RESET))


def test_a_mailed_token_does_not_open_a_disabled_account(shop, account):
    token = new_token(shop, account, RESET)
    shop.rpc.users.update_user(user_id=account["id"], is_active=False)

    with pytest.raises(InvalidToken):
        reset(shop, token)


# Proving the address


def test_a_mailed_token_proves_the_address_once(shop, account):
    token = new_token(shop, account, VERIFICATION)
    assert not is_verified(shop, account)

    shop.rpc.users.verify_email(token=token)

    assert is_verified(shop, account)
    with pytest.raises(InvalidToken):
        shop.rpc.users.verify_email(token=token)


def test_access_tokens_show_a_proven_address_from_the_next_refresh_on(shop, account):
    first = log_in(shop, account)
    shop.rpc.users.verify_email(token=new_token(shop, account, VERIFICATION))

    refreshed = shop.rpc.users.refresh(refresh_token=first["refresh_token"])

    answers = (first, refreshed, log_in(shop, account))
    claims = [jwt.decode(each["access_token"], shop.config["JWT_SECRET"], algorithms=["HS256"]) for each in answers]
    assert [each["email_verified"] for each in claims] == [False, True, True]


def test_ten_requests_for_a_verification_send_one_mail(shop, account, requested_mails):
    for _ in range(10):
        shop.rpc.users.request_verification(user_id=account["id"])
    shop.rpc.users.request_password_reset(email=account["email"])

    wait_for(lambda: shop.sql("users", "SELECT count(*) FROM mail_requests WHERE answered_at IS NULL") == [(0,)])
    wait_for(lambda: shop.outbox(Users).pending() == [])
    assert len(requested_mails(account["id"])) == 2, "one of each kind"


def test_the_verification_mail_can_be_requested_again(shop, account, requested_mails):
    shop.rpc.users.request_verification(user_id=account["id"])

    [payload] = wait_for(lambda: requested_mails(account["id"]))
    assert payload["email"] == account["email"]
    with pytest.raises(UserNotFound):
        shop.rpc.users.request_verification(user_id=2**60)


# Tokens for mails


def test_a_token_is_stored_as_a_hash(shop, account):
    token = new_token(shop, account, RESET)

    for table in ("mailed_tokens", "outbox", "answers"):
        assert token not in str(shop.sql("users", f"SELECT t::text FROM {table} t"))
    stored = "SELECT purpose FROM mailed_tokens WHERE token_hash = %s"
    assert shop.sql("users", stored, hashlib.sha256(token.encode()).digest()) == [(RESET,)]


def test_a_mail_that_is_no_longer_needed_gets_no_token(shop, account):
    shop.rpc.users.verify_email(token=new_token(shop, account, VERIFICATION))
    disabled = an_account()
    disabled = {**disabled, **shop.rpc.users.register(**disabled)}
    shop.rpc.users.update_user(user_id=disabled["id"], is_active=False)

    for who, purpose in (
        (account, VERIFICATION),
        (disabled, RESET),
        ({"id": 2**60, "email": account["email"]}, RESET),
        ({"id": account["id"], "email": "old@forage.example"}, RESET),
    ):
        with pytest.raises(MailNotNeeded):
            new_token(shop, who, purpose)


@pytest.mark.parametrize("purpose", ("", "login", None, 5, ["password_reset"]))
def test_a_token_for_an_unknown_purpose_is_refused(shop, account, purpose):
    with pytest.raises(InvalidInput):
        new_token(shop, account, purpose)
