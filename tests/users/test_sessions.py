import hashlib
import secrets
from base64 import urlsafe_b64decode
from datetime import timedelta

import bcrypt
import jwt
import pytest

from contracts.types import InvalidInput
from contracts.users import InvalidSession, SessionNotFound
from services import users_models
from services.users import Users
from tests.factories import an_account
from tests.shop import refusal_of

from .conftest import log_in


@pytest.fixture
def account(shop):
    account = an_account()
    return {**account, **shop.rpc.users.register(**account)}


def refresh(shop, refresh_token):
    return shop.rpc.users.refresh(refresh_token=refresh_token)["refresh_token"]


def is_ended(shop, refresh_token):
    return isinstance(refusal_of(shop.rpc.users.refresh.call_async(refresh_token=refresh_token)), InvalidSession)


def age_rows(shop, account, seconds):
    """Make all rows of the account's sessions older."""
    for column in ("replaced_at", "expires_at"):
        shop.sql(
            "users",
            f"UPDATE refresh_tokens t SET {column} = t.{column} - make_interval(secs => %s) "
            "FROM sessions s WHERE s.id = t.session_id AND s.user_id = %s",
            seconds,
            account["id"],
        )
    shop.sql(
        "users",
        "UPDATE sessions SET expires_at = expires_at - make_interval(secs => %s) WHERE user_id = %s",
        seconds,
        account["id"],
    )


def test_a_refresh_gives_a_new_access_token_and_a_new_refresh_token(shop, account):
    first = log_in(shop, account)

    second = shop.rpc.users.refresh(refresh_token=first["refresh_token"])

    assert second["refresh_token"] != first["refresh_token"]
    assert (second["token_type"], second["expires_in"]) == ("bearer", 900)
    claims = jwt.decode(second["access_token"], shop.config["JWT_SECRET"], algorithms=["HS256"])
    assert claims["sub"] == str(account["id"])


def test_a_refresh_token_cannot_be_guessed_and_is_stored_as_a_hash(shop, account):
    tokens = [log_in(shop, account)["refresh_token"]]
    tokens += [refresh(shop, tokens[0])]

    for token in tokens:
        assert len(urlsafe_b64decode(token + "=")) == 32
        row = "SELECT t::text FROM refresh_tokens t WHERE token_hash = %s"
        [(text,)] = shop.sql("users", row, hashlib.sha256(token.encode()).digest())
        assert token not in text
    answers = shop.sql("users", "SELECT answer::text FROM answers WHERE answer IS NOT NULL")
    assert not [answer for (answer,) in answers if "token" in answer]


def test_a_session_ends_after_30_days_without_use(shop, account):
    token = log_in(shop, account)["refresh_token"]
    for _ in range(3):
        age_rows(shop, account, 29 * 86400)
        token = refresh(shop, token)

    age_rows(shop, account, 30 * 86400)

    assert is_ended(shop, token)
    assert shop.rpc.users.list_sessions(user_id=account["id"]) == []


def test_a_reused_token_ends_only_its_own_session(shop, account, caplog):
    stolen, other = log_in(shop, account)["refresh_token"], log_in(shop, account)["refresh_token"]
    newest = refresh(shop, refresh(shop, stolen))
    age_rows(shop, account, 11)

    assert is_ended(shop, stolen)

    assert is_ended(shop, newest)
    assert not is_ended(shop, other)
    [event] = [record for record in caplog.records if record.name == "security" and "came again" in record.getMessage()]
    assert event.fields["user_id"] == account["id"]


def test_concurrent_refreshes_of_tabs_all_succeed(shop, account):
    token = log_in(shop, account)["refresh_token"]

    calls = [shop.rpc.users.refresh.call_async(refresh_token=token) for _ in range(8)]

    tokens = {call.result()["refresh_token"] for call in calls}
    assert len(tokens) == 1
    age_rows(shop, account, 60)
    assert not is_ended(shop, tokens.pop())


def test_a_rotation_of_the_secret_keeps_sessions_and_gives_tabs_the_same_token(own_shop, monkeypatch):
    # Replicas take seconds to start.
    monkeypatch.setattr(users_models, "REUSE_GRACE", timedelta(hours=1))
    account, (old, new) = an_account(), (secrets.token_hex() for _ in range(2))

    def refresh_with(token, **settings):
        replica = own_shop.run(Users, **settings)
        following = refresh(own_shop, token)
        replica.stop()
        return following

    # Each step of docs/operations.md, while replicas of the previous step still run.
    replica = own_shop.run(Users, JWT_SECRET=old)
    own_shop.rpc.users.register(**account)
    first = log_in(own_shop, account)["refresh_token"]
    replica.stop()
    accepting, signing = (
        {"JWT_SECRET": old, "JWT_SECRET_PREVIOUS": new},
        {"JWT_SECRET": new, "JWT_SECRET_PREVIOUS": old},
    )
    second = refresh_with(first, **accepting)
    assert refresh_with(first, **signing) == second
    third = refresh_with(second, **signing)
    assert refresh_with(second, **accepting) == third
    assert refresh_with(first, **signing) == third
    fourth = refresh_with(third, JWT_SECRET=new)
    assert refresh_with(third, **signing) == fourth


def test_a_refresh_seconds_later_returns_the_newest_token(shop, account):
    first = log_in(shop, account)["refresh_token"]
    newest = refresh(shop, refresh(shop, first))
    age_rows(shop, account, 5)

    assert refresh(shop, first) == newest


def test_a_redelivered_refresh_returns_the_same_token(shop, account):
    token = log_in(shop, account)["refresh_token"]

    first, second = shop.call_twice("users", "refresh", refresh_token=token)

    assert first["refresh_token"] == second["refresh_token"]


def test_a_refresh_returns_the_current_role(shop, account):
    shop.rpc.users.set_role(email=account["email"], role="admin")
    token = log_in(shop, account)["refresh_token"]

    access_token = shop.rpc.users.refresh(refresh_token=token)["access_token"]

    assert jwt.decode(access_token, shop.config["JWT_SECRET"], algorithms=["HS256"])["role"] == "admin"


@pytest.mark.parametrize("token", ("", "nonsense", "x" * 10_000, "é\x00", "\ud83c", None, 5, ["x"], {}))
def test_an_invalid_refresh_token_is_refused_and_ends_no_session(shop, token):
    assert is_ended(shop, token)
    assert shop.rpc.users.logout(refresh_token=token) is None


def test_a_logout_ends_only_its_own_session(shop, account):
    here, there = log_in(shop, account)["refresh_token"], log_in(shop, account)["refresh_token"]
    newest = refresh(shop, here)

    # With a replaced token: another tab may have refreshed meanwhile.
    shop.rpc.users.logout(refresh_token=here)

    assert is_ended(shop, newest)
    assert not is_ended(shop, there)


def test_each_device_is_a_session_with_its_origin(shop, account):
    phone = log_in(shop, account, client_address="198.51.100.7", user_agent="Phone/1.0")
    log_in(shop, account, client_address="2001:db8::/64", user_agent="Laptop/2.0")

    sessions = shop.rpc.users.list_sessions(user_id=account["id"], refresh_token=phone["refresh_token"])

    assert [(session["user_agent"], session["client_address"], session["current"]) for session in sessions] == [
        ("Laptop/2.0", "2001:db8::/64", False),
        ("Phone/1.0", "198.51.100.7", True),
    ]
    refresh(shop, phone["refresh_token"])
    assert shop.rpc.users.list_sessions(user_id=account["id"])[0]["user_agent"] == "Phone/1.0"


def test_a_device_can_log_out_another(shop, account):
    lost = log_in(shop, account, user_agent="Phone")["refresh_token"]
    here = log_in(shop, account, user_agent="Laptop")["refresh_token"]
    ids = {session["user_agent"]: session["id"] for session in shop.rpc.users.list_sessions(user_id=account["id"])}

    shop.rpc.users.end_session(user_id=account["id"], session_id=ids["Phone"])

    assert is_ended(shop, lost)
    assert not is_ended(shop, here)
    assert [session["id"] for session in shop.rpc.users.list_sessions(user_id=account["id"])] == [ids["Laptop"]]


def test_beyond_the_limit_the_least_recently_used_session_ends(shop, account):
    first, second = (log_in(shop, account)["refresh_token"] for _ in range(2))
    first = refresh(shop, first)
    many = "INSERT INTO sessions (user_id, expires_at) SELECT %s, now() + interval '1 day' FROM generate_series(1, 48)"
    shop.sql("users", many, account["id"])

    log_in(shop, account)

    assert len(shop.rpc.users.list_sessions(user_id=account["id"])) == 50
    assert is_ended(shop, second)
    assert not is_ended(shop, first)


def test_the_session_of_another_user_is_not_found(shop, account):
    token = log_in(shop, account)["refresh_token"]
    [session] = shop.rpc.users.list_sessions(user_id=account["id"])
    other = shop.rpc.users.register(**an_account())

    with pytest.raises(SessionNotFound) as refusal:
        shop.rpc.users.end_session(user_id=other["id"], session_id=session["id"])

    assert refusal.value.session_id == session["id"]
    assert not is_ended(shop, token)
    assert shop.rpc.users.list_sessions(user_id=other["id"], refresh_token=token) == []


@pytest.mark.parametrize("session_id", (0, -1, None, "1", 2**63))
def test_an_invalid_session_id_is_refused(shop, account, session_id):
    with pytest.raises(InvalidInput):
        shop.rpc.users.end_session(user_id=account["id"], session_id=session_id)


@pytest.mark.parametrize("change", ({"role": "admin"}, {"is_active": False}))
def test_a_new_role_or_a_disabled_account_ends_all_sessions(shop, account, change):
    sessions = [log_in(shop, account)["refresh_token"] for _ in range(2)]

    shop.rpc.users.update_user(user_id=account["id"], **change)

    assert all(is_ended(shop, token) for token in sessions)


def test_a_login_with_a_password_that_was_changed_meanwhile_is_refused(shop, account):
    new_hash = bcrypt.hashpw(b"a new password", bcrypt.gensalt(4)).decode()
    with shop.transaction("users") as cursor:
        cursor.execute("UPDATE users SET password_hash = %s WHERE id = %s", (new_hash, account["id"]))
        login = shop.rpc.users.login.call_async(email=account["email"], password=account["password"])
        shop.wait_until_locked("users")

    assert type(refusal_of(login)).__name__ == "InvalidCredentials"
    assert shop.rpc.users.list_sessions(user_id=account["id"]) == []


def test_expired_rows_are_deleted(shop, account):
    log_in(shop, account)
    age_rows(shop, account, 31 * 86400)

    shop.fire(shop.containers["users"], "clean_up")

    assert shop.sql("users", "SELECT id FROM sessions WHERE user_id = %s", account["id"]) == []
