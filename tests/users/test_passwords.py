import unicodedata

import bcrypt
import pytest

from contracts.types import InvalidInput
from contracts.users import InvalidCredentials, InvalidSession, TooManyFailures, UserNotFound
from services.users import Users
from tests.factories import an_account

from .conftest import failed_login, log_in


@pytest.mark.parametrize(
    "password, similar",
    (
        ("a" * 72, "a" * 73),
        ("a" * 100 + "b", "a" * 100 + "c"),
        ("🍄" * 18, "🍄" * 19),
        ("🍄" * 100 + "b", "🍄" * 100 + "c"),
        ("caf\u00e9" * 4, "cafe" * 4),
        ("boletus edulis", "boletus edulis\x00"),
    ),
)
def test_similar_passwords_are_different(shop, password, similar):
    account = an_account(password=password)
    shop.rpc.users.register(**account)

    with pytest.raises(InvalidCredentials):
        log_in(shop, account, password=similar)

    assert log_in(shop, account)


@pytest.mark.parametrize("registered, typed", (("NFC", "NFD"), ("NFD", "NFC")))
def test_a_password_is_the_same_on_every_keyboard(shop, registered, typed):
    password = "crème de cèpes №１"
    account = an_account(password=unicodedata.normalize(registered, password))
    shop.rpc.users.register(**account)

    assert log_in(shop, account, password=unicodedata.normalize(typed, password))
    assert log_in(shop, account, password="crème de cèpes No1")


def test_only_the_hash_of_a_password_is_stored(shop):
    account = an_account(password="no one may read this")

    user = shop.rpc.users.register(**account)

    [row] = shop.sql("users", "SELECT u::text FROM users u WHERE id = %s", user["id"])
    answers = shop.sql("users", "SELECT answer::text FROM answers")
    assert "$2b$04$" in row[0]
    assert not any("no one may read" in text or "$2b$" in text for (text,) in answers if text)
    assert "no one may read" not in row[0]


@pytest.mark.parametrize("password", ("password1", "PassWord1", "12345678", "iloveyou", "ｐａｓｓｗｏｒｄ１"))
def test_the_most_common_passwords_are_refused(shop, password):
    with pytest.raises(InvalidInput) as refusal:
        shop.rpc.users.register(**an_account(password=password))

    assert list(refusal.value.errors) == ["password"]


@pytest.mark.parametrize("field", ("email", "username"))
def test_a_password_equal_to_the_name_or_address_is_refused(shop, field):
    account = an_account()

    with pytest.raises(InvalidInput):
        shop.rpc.users.register(**{**account, "password": account[field].upper()})


# Rounds


@pytest.fixture
def account_with_four_rounds(own_shop):
    """An account in a shop that hashes with 5 rounds since then."""
    account = an_account()
    with_four = own_shop.run(Users)
    own_shop.rpc.users.register(**account)
    with_four.stop()
    own_shop.run(Users, BCRYPT_ROUNDS="5")
    return account


def hash_of(shop, account):
    [(password_hash,)] = shop.sql("users", "SELECT password_hash FROM users WHERE email = %s", account["email"])
    return password_hash


def test_a_login_rehashes_the_password_with_the_current_rounds(own_shop, account_with_four_rounds):
    assert hash_of(own_shop, account_with_four_rounds).startswith("$2b$04$")

    log_in(own_shop, account_with_four_rounds)

    assert hash_of(own_shop, account_with_four_rounds).startswith("$2b$05$")
    assert log_in(own_shop, account_with_four_rounds)


def test_concurrent_logins_may_rehash_the_password(own_shop, account_with_four_rounds):
    credentials = {name: account_with_four_rounds[name] for name in ("email", "password")}

    calls = [own_shop.rpc.users.login.call_async(**credentials) for _ in range(5)]

    assert all(call.result()["access_token"] for call in calls)


@pytest.mark.parametrize("who", ("known", "unknown"))
def test_a_hash_with_fewer_rounds_takes_as_long_to_check(own_shop, account_with_four_rounds, monkeypatch, who):
    account = account_with_four_rounds if who == "known" else an_account()
    rounds, check, hash_password = [], bcrypt.checkpw, bcrypt.hashpw
    note = lambda salt: rounds.append(int(salt.split(b"$")[2]))  # noqa: E731
    monkeypatch.setattr(bcrypt, "checkpw", lambda raw, hash: note(hash) or check(raw, hash))
    monkeypatch.setattr(bcrypt, "hashpw", lambda raw, salt: note(salt) or hash_password(raw, salt))

    assert isinstance(failed_login(own_shop, account), InvalidCredentials)

    assert sum(2**number for number in rounds) == 2**5


# Changing


def test_a_changed_password_replaces_the_old_one_and_ends_all_sessions(shop):
    account = an_account()
    user = shop.rpc.users.register(**account)
    sessions = [log_in(shop, account)["refresh_token"] for _ in range(2)]

    shop.rpc.users.change_password(
        user_id=user["id"], old_password=account["password"], password="lactarius deliciosus"
    )

    for refresh_token in sessions:
        with pytest.raises(InvalidSession):
            shop.rpc.users.refresh(refresh_token=refresh_token)
    with pytest.raises(InvalidCredentials):
        log_in(shop, account)
    assert log_in(shop, account, password="lactarius deliciosus")


@pytest.mark.parametrize(
    "changes, field",
    (
        ({"old_password": "wrong"}, "old_password"),
        ({"password": "short"}, "password"),
        ({"password": "password1"}, "password"),
        ({"password": None}, "password"),
    ),
)
def test_a_refused_change_changes_nothing(shop, changes, field):
    account = an_account()
    user = shop.rpc.users.register(**account)
    session = log_in(shop, account)

    with pytest.raises(InvalidInput) as refusal:
        shop.rpc.users.change_password(
            **{"user_id": user["id"], "old_password": account["password"], "password": "a new password", **changes}
        )

    assert list(refusal.value.errors) == [field]
    assert shop.rpc.users.refresh(refresh_token=session["refresh_token"])
    assert log_in(shop, account)


def test_guesses_of_the_old_password_are_throttled(shop):
    account = an_account()
    user = shop.rpc.users.register(**account)
    change = {"user_id": user["id"], "password": "a new password", "client_address": "198.51.100.1"}

    for _ in range(6):
        with pytest.raises(InvalidInput):
            shop.rpc.users.change_password(**change, old_password="wrong")
    # The wait is one second, which a busy machine may need for the next call.
    shop.sql("users", "UPDATE login_failures SET failed_at = failed_at + interval '1 minute'")

    with pytest.raises(TooManyFailures):
        shop.rpc.users.change_password(**change, old_password=account["password"])


def test_the_password_of_an_unknown_user_cannot_be_changed(shop):
    with pytest.raises(UserNotFound):
        shop.rpc.users.change_password(user_id=2**60, old_password="boletus", password="a new password")


def test_a_redelivered_change_is_made_once(shop):
    account = an_account()
    user = shop.rpc.users.register(**account)

    answers = shop.call_twice(
        "users",
        "change_password",
        user_id=user["id"],
        old_password=account["password"],
        password="lactarius deliciosus",
    )

    assert answers == [None, None]
    assert log_in(shop, account, password="lactarius deliciosus")
