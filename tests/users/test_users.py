import time

import bcrypt
import jwt
import pytest

from contracts.types import InvalidInput, Taken
from contracts.users import InvalidCredentials, UserNotFound
from services.users import Users
from tests.factories import an_account
from tests.shop import refusal_of

from .conftest import log_in

# Registering


def test_a_registered_customer_can_be_read(shop):
    account = an_account()

    user = shop.rpc.users.register(**account)

    assert user == {
        "id": user["id"],
        "email": account["email"],
        "username": account["username"],
        "role": "customer",
        "is_active": True,
        "created_at": user["created_at"],
        "updated_at": user["created_at"],
    }
    assert shop.rpc.users.get_user(user_id=user["id"]) == user


@pytest.mark.parametrize("user_id", (2**62, 999_999))
def test_an_unknown_id_is_not_found(shop, user_id):
    with pytest.raises(UserNotFound) as refusal:
        shop.rpc.users.get_user(user_id=user_id)

    assert refusal.value.user == str(user_id)


@pytest.mark.parametrize("user_id", (0, "1", None, 2**63))
def test_an_invalid_id_is_refused(shop, user_id):
    with pytest.raises(InvalidInput):
        shop.rpc.users.get_user(user_id=user_id)


def test_an_address_is_taken_in_any_case(shop):
    account = an_account()
    shop.rpc.users.register(**account)

    with pytest.raises(Taken) as refusal:
        shop.rpc.users.register(**an_account(email=account["email"].upper()))

    assert refusal.value.field == "email"


@pytest.mark.parametrize("spelled", ("\uff21{}", "a\u200d{}", "A{}\u3164", "\u00aa{}"))
def test_a_name_is_taken_by_one_that_looks_the_same(shop, spelled):
    account, other = an_account(), an_account()
    shop.rpc.users.register(**account | {"username": f"a{account['username']}"})
    shop.rpc.users.register(**other)
    spelled = spelled.format(account["username"])

    for attempt in (
        shop.rpc.users.register.call_async(**an_account(username=spelled)),
        shop.rpc.users.update_profile.call_async(
            user_id=shop.rpc.users.list_users(q=other["email"])["items"][0]["id"], username=spelled
        ),
    ):
        refusal = refusal_of(attempt)
        assert isinstance(refusal, Taken)
        assert refusal.field == "username"


def test_a_name_is_taken_in_any_case(shop):
    shop.rpc.users.register(**an_account(username="Éowyn of Rohan"))

    with pytest.raises(Taken) as refusal:
        shop.rpc.users.register(**an_account(username="éOWYN of rohan"))

    assert refusal.value.field == "username"


def test_one_of_many_concurrent_registrations_gets_the_address(shop):
    email = an_account()["email"]

    calls = [shop.rpc.users.register.call_async(**an_account(email=email)) for _ in range(10)]

    refusals = [refusal_of(call) for call in calls]
    assert refusals.count(None) == 1
    assert sum(isinstance(refusal, Taken) for refusal in refusals) == 9


def test_a_registration_out_of_bounds_is_refused(shop):
    with pytest.raises(InvalidInput) as refusal:
        shop.rpc.users.register(email="ada", username="a\u200b", password="short")

    assert set(refusal.value.errors) == {"email", "username", "password"}


def test_a_registration_is_announced(shop, wait_for_event):
    user = shop.rpc.users.register(**an_account())

    payload = wait_for_event("users", "user.registered", where=lambda payload: payload["user_id"] == user["id"])
    assert payload["email"] == user["email"]
    assert not set(payload) & {"password", "password_hash", "token"}


def test_a_redelivered_registration_makes_one_account_with_the_same_answer(shop):
    account = an_account()

    first, second = shop.call_twice("users", "register", **account)

    assert first == second
    assert first["email"] == account["email"]
    assert shop.sql("users", "SELECT count(*) FROM users WHERE email = %s", account["email"]) == [(1,)]


# Logging in


def test_a_login_returns_a_token_with_the_user_and_its_lifetime(shop):
    account = an_account()
    user = shop.rpc.users.register(**account)
    before = int(time.time())

    answer = log_in(shop, account)

    claims = jwt.decode(answer["access_token"], shop.config["JWT_SECRET"], algorithms=["HS256"])
    assert (claims["sub"], claims["email"], claims["role"]) == (str(user["id"]), account["email"], "customer")
    assert set(claims) == {"sub", "email", "email_verified", "role", "iat", "exp", "jti"}
    assert claims["exp"] - claims["iat"] == answer["expires_in"] == 900
    assert before <= claims["iat"] <= time.time()
    assert answer["token_type"] == "bearer"


def test_every_token_has_a_unique_id(shop):
    account = an_account()
    shop.rpc.users.register(**account)

    tokens = [log_in(shop, account)["access_token"] for _ in range(2)]

    ids = {jwt.decode(token, shop.config["JWT_SECRET"], algorithms=["HS256"])["jti"] for token in tokens}
    assert len(ids) == 2


def test_an_address_can_log_in_in_any_case(shop):
    account = an_account()
    shop.rpc.users.register(**account)

    assert log_in(shop, account, email=f" {account['email'].upper()} ")


def test_every_failed_login_gets_the_same_answer(shop):
    account, disabled = an_account(), an_account()
    shop.rpc.users.register(**account)
    shop.rpc.users.register(**disabled)
    shop.sql("users", "UPDATE users SET is_active = false WHERE email = %s", disabled["email"])

    failures = [
        refusal_of(shop.rpc.users.login.call_async(email=email, password=password))
        for email, password in (
            (account["email"], "wrong"),
            (account["email"], ""),
            (account["email"], account["password"] + " "),
            (account["email"], account["password"].upper()),
            (account["email"], "a\x00b"),
            (account["email"], "half a pair \ud83c"),
            (disabled["email"], disabled["password"]),
            ("nobody@forage.example", account["password"]),
            ("no address", "x"),
            ("", ""),
            ("a\x00b@forage.example", "x"),
            ("\ud83c@forage.example", "x"),
            ("%@%", "x"),
        )
    ]

    assert {(type(failure), failure.args) for failure in failures} == {(InvalidCredentials, ())}


@pytest.mark.parametrize("password", (None, 5, ["x"], "x" * 1001))
def test_a_login_out_of_bounds_is_refused(shop, password):
    with pytest.raises(InvalidInput):
        shop.rpc.users.login(email="ada@forage.example", password=password)


@pytest.mark.parametrize("who", ("known", "unknown", "disabled"))
def test_every_login_checks_one_hash_of_the_same_strength(shop, monkeypatch, who):
    account = an_account()
    if who != "unknown":
        shop.rpc.users.register(**account)
    if who == "disabled":
        shop.sql("users", "UPDATE users SET is_active = false WHERE email = %s", account["email"])
    checked = []
    check = bcrypt.checkpw
    monkeypatch.setattr(bcrypt, "checkpw", lambda *arguments: checked.append(arguments) or check(*arguments))

    with pytest.raises(InvalidCredentials):
        log_in(shop, account, password="wrong")

    [(given, password_hash)] = checked
    assert given == b"wrong"
    assert password_hash.startswith(b"$2b$04$")


# Operation


def test_health_answers_up(shop):
    assert shop.rpc.users.health() == {"status": "up"}


@pytest.mark.parametrize("secret", ("", "x" * 31))
def test_without_a_valid_secret_the_service_reports_what_to_set(own_shop, secret):
    with pytest.raises(SystemExit, match="JWT_SECRET"):
        own_shop.run(Users, JWT_SECRET=secret)


@pytest.mark.parametrize("rounds", ("3", "17", "twelve"))
def test_bcrypt_rounds_out_of_bounds_are_reported_in_a_sentence(own_shop, rounds):
    with pytest.raises(SystemExit, match="BCRYPT_ROUNDS"):
        own_shop.run(Users, BCRYPT_ROUNDS=rounds)


def test_answers_are_deleted_after_a_day(shop):
    shop.call_twice("users", "register", **an_account())
    shop.sql("users", "UPDATE answers SET answered_at = now() - interval '25 hours'")
    recent = an_account()
    shop.rpc.users.register(**recent)

    shop.fire(shop.containers["users"], "clean_up")

    assert shop.sql("users", "SELECT answer->>'email' FROM answers") == [(recent["email"],)]
