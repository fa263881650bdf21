import pytest

from contracts.users import InvalidCredentials, TooManyFailures
from nameko_reliable.errors import DatabaseUnavailable
from services.users import Users
from tests.factories import an_account
from tests.shop import refusal_of

from .conftest import failed_login, log_in

HERE = "198.51.100.1"


@pytest.fixture(autouse=True)
def no_failures(shop):
    shop.sql("users", "DELETE FROM login_failures")


@pytest.fixture
def account(shop):
    account = an_account()
    shop.rpc.users.register(**account)
    return account


def age_rows(shop, seconds):
    shop.sql("users", "UPDATE login_failures SET failed_at = failed_at - make_interval(secs => %s)", seconds)


def fail(shop, account, times, **changes):
    """Log in with a wrong password, each time after the required wait."""
    for _ in range(times):
        refusal = failed_login(shop, account, client_address=HERE, **changes)
        assert isinstance(refusal, InvalidCredentials), refusal
        age_rows(shop, 60)


def fail_now(shop, account):
    """Log in with a wrong password. Its wait begins again at the end: a busy machine may need seconds for a call."""
    assert isinstance(failed_login(shop, account, client_address=HERE), InvalidCredentials)
    shop.sql(
        "users",
        "UPDATE login_failures SET failed_at = clock_timestamp() WHERE id = (SELECT max(id) FROM login_failures)",
    )


def seconds_to_wait(shop, account, **changes):
    """The seconds that a login with the right password must wait now."""
    try:
        log_in(shop, account, **{"client_address": HERE, **changes})
    except TooManyFailures as refusal:
        return refusal.retry_after_seconds
    return 0


def test_five_failures_cause_no_wait(shop, account):
    for _ in range(5):
        assert isinstance(failed_login(shop, account, client_address=HERE), InvalidCredentials)

    assert seconds_to_wait(shop, account) == 0


@pytest.mark.parametrize("failures, seconds", ((7, 2), (12, 60)))
def test_from_the_sixth_failure_on_the_wait_doubles_up_to_a_minute(shop, account, failures, seconds):
    fail(shop, account, failures - 1)

    fail_now(shop, account)

    assert seconds_to_wait(shop, account) == seconds


def test_logins_refused_during_the_wait_do_not_extend_it(shop, account):
    fail(shop, account, 11)
    fail_now(shop, account)

    waits = [seconds_to_wait(shop, account) for _ in range(3)]

    assert waits == sorted(waits, reverse=True)
    assert waits[0] == 60


def test_a_right_password_after_the_wait_clears_the_failures(shop, account):
    fail(shop, account, 8)

    assert log_in(shop, account, client_address=HERE)

    fail(shop, account, 5)
    assert seconds_to_wait(shop, account) == 0


def test_a_right_password_does_not_count_as_a_failure_if_the_database_is_lost_meanwhile(own_shop, database_proxy):
    proxy = database_proxy("users")
    own_shop.run(Users, DB_URIS={"users": proxy.uri})
    account = an_account()
    own_shop.rpc.users.register(**account)
    with own_shop.transaction("users", "SELECT FROM users FOR UPDATE"):
        login = own_shop.rpc.users.login.call_async(
            email=account["email"], password=account["password"], client_address=HERE
        )
        own_shop.wait_until_locked("users")

        proxy.cut()

        assert isinstance(refusal_of(login), DatabaseUnavailable)
    assert own_shop.sql("users", "SELECT 1 FROM login_failures") == []


def test_a_failure_is_forgotten_after_15_minutes(shop, account):
    fail(shop, account, 8)
    age_rows(shop, 15 * 60)

    assert failed_login(shop, account, client_address=HERE)
    assert seconds_to_wait(shop, account) == 0


def test_the_wait_is_for_one_account_from_one_address(shop, account):
    other = an_account()
    shop.rpc.users.register(**other)
    fail(shop, account, 11)
    fail_now(shop, account)

    assert seconds_to_wait(shop, account) > 0
    assert seconds_to_wait(shop, account, client_address="198.51.100.2") == 0
    assert seconds_to_wait(shop, account, client_address=None) == 0
    assert seconds_to_wait(shop, other) == 0


def test_the_spelling_of_the_address_does_not_change_the_account(shop, account):
    for spelling in (account["email"].upper(), f" {account['email']}", account["email"].title()) * 2:
        fail_now(shop, {"email": spelling})

    assert seconds_to_wait(shop, account) == 1


@pytest.mark.parametrize("email", ("nobody@forage.example", "no address at all", "", "\ud83c\x00"))
def test_an_unknown_account_waits_like_a_known_one(shop, email):
    fail(shop, {"email": email}, 5)
    fail_now(shop, {"email": email})

    refusal = failed_login(shop, {"email": email}, client_address=HERE)

    assert isinstance(refusal, TooManyFailures)
    assert refusal.retry_after_seconds == 1


def note_failures(shop, count):
    """Store failures of `count` different accounts."""
    shop.sql(
        "users",
        "INSERT INTO login_failures (client_address, account_hash) "
        "SELECT %s, convert_to(n::text, 'UTF8') FROM generate_series(1, %s) n",
        HERE,
        count,
    )


@pytest.mark.parametrize("failures, seconds", ((99, 0), (101, 2), (200, 60)))
def test_after_a_hundred_failures_an_address_waits_for_every_account(shop, account, failures, seconds):
    note_failures(shop, failures)

    assert seconds_to_wait(shop, account) == seconds


def test_a_successful_login_does_not_clear_other_failures_of_the_address(shop, account):
    note_failures(shop, 105)
    age_rows(shop, 60)

    assert log_in(shop, account, client_address=HERE)

    failed_login(shop, an_account(), client_address=HERE)
    assert seconds_to_wait(shop, account) == 60


def test_concurrent_guesses_get_no_more_checks_than_consecutive_ones(shop, account):
    # The next login must wait for a minute, which is longer than this test takes.
    fail(shop, account, 11)
    guess = {"email": account["email"], "password": "wrong", "client_address": HERE}

    calls = [shop.rpc.users.login.call_async(**guess) for _ in range(30)]

    refusals = [type(refusal_of(call)) for call in calls]
    assert refusals.count(InvalidCredentials) == 1
    assert refusals.count(TooManyFailures) == 29


def test_a_failure_stores_no_typed_address(shop):
    failed_login(shop, {"email": "my secret password"}, client_address=HERE)

    assert "secret" not in str(shop.sql("users", "SELECT f::text FROM login_failures f"))


def test_expired_failures_are_deleted(shop, account):
    failed_login(shop, account, client_address=HERE)
    age_rows(shop, 16 * 60)
    failed_login(shop, account, client_address=HERE)

    shop.fire(shop.containers["users"], "clean_up")

    assert shop.sql("users", "SELECT count(*) FROM login_failures") == [(1,)]
