"""Many concurrent logins: they wait for a processor, and block no other calls."""

import os
from collections import Counter

import bcrypt
import eventlet
import pytest
import requests
from eventlet import patcher

from gateway import Gateway, hooks
from nameko_reliable import rpc
from nameko_reliable.testing.waiting import wait_for
from services import users_passwords as passwords
from services.users import Users
from services.users_passwords import HashingLimit
from tests.factories import an_account

from .conftest import problem

LOGINS = 50
HASHING_SLOTS = min(len(os.sched_getaffinity(0)), 5)
MOST_ACCEPTED = HASHING_SLOTS + HashingLimit.most_waiting


@pytest.fixture
def crowded_shop(own_shop, monkeypatch):
    """A shop with many accounts: `url`, and the accounts `first` and `accounts`."""
    # So that accepted logins get their answer on a busy machine too.
    monkeypatch.setattr(hooks, "CALL_SECONDS", 600)
    monkeypatch.setattr(rpc, "CALL_SECONDS", 600)
    own_shop.run(Users)
    own_shop.run(Gateway)
    own_shop.url = f"http://127.0.0.1:{own_shop.config['GATEWAY_PORT']}"
    first = an_account()
    wait_for(lambda: requests.post(f"{own_shop.url}/users/register", json=first, timeout=15).status_code == 201)
    own_shop.accounts = [{**first, "email": f"{number}.{first['email']}"} for number in range(LOGINS)]
    for account in own_shop.accounts:
        copy = "INSERT INTO users (email, username, password_hash) SELECT %s, %s, password_hash FROM users LIMIT 1"
        own_shop.sql("users", copy, account["email"], account["email"][:50])
    own_shop.first = first
    return own_shop


def log_in(crowded_shop, account, session=requests):
    body = {"email": account["email"], "password": account["password"]}
    return session.post(f"{crowded_shop.url}/users/login", json=body, timeout=60)


@pytest.fixture
def slow_hashes(monkeypatch):
    """No password is checked before `slow_hashes.set()`."""
    # The waiting is in threads, not in greenlets.
    may_end, check = patcher.original("threading").Event(), bcrypt.checkpw
    monkeypatch.setattr(bcrypt, "checkpw", lambda *arguments: may_end.wait() and check(*arguments))
    yield may_end
    may_end.set()


def test_fifty_concurrent_logins_block_no_other_call_and_each_succeeds_or_is_refused_at_once(crowded_shop, slow_hashes):
    slow_hashes.set()
    browser = requests.Session()
    headers = {"Authorization": f"Bearer {log_in(crowded_shop, crowded_shop.first, browser).json()['access_token']}"}
    slow_hashes.clear()

    refused, logged_in = [], []
    logins = [eventlet.spawn(log_in, crowded_shop, account) for account in crowded_shop.accounts]
    for login in logins:
        login.link(lambda login: (logged_in if login.wait().status_code == 200 else refused).append(login.wait()))
    wait_for(lambda: len(refused) >= LOGINS - MOST_ACCEPTED, seconds=60)
    me = requests.get(f"{crowded_shop.url}/users/me", headers=headers, timeout=30)
    refresh = browser.post(f"{crowded_shop.url}/auth/refresh", timeout=30)
    slow_hashes.set()
    wait_for(lambda: len(refused) + len(logged_in) == LOGINS, seconds=60)

    assert (me.status_code, refresh.status_code) == (200, 200)
    refusals = Counter((answer.status_code, problem(answer)["type"]) for answer in refused)
    assert (len(logged_in), refusals) == (MOST_ACCEPTED, {(503, "overloaded"): LOGINS - MOST_ACCEPTED})
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)


def test_a_login_that_would_wait_too_long_is_refused_at_once_and_others_succeed(crowded_shop, slow_hashes, monkeypatch):
    # As if a hash took minutes, or the process had been frozen during one.
    monkeypatch.setattr(passwords, "SAFETY_FACTOR", 10**6)

    answers = []
    for account in crowded_shop.accounts[: HASHING_SLOTS + 1]:
        eventlet.spawn(log_in, crowded_shop, account).link(lambda login: answers.append(login.wait()))
    wait_for(lambda: answers)
    slow_hashes.set()
    wait_for(lambda: len(answers) == HASHING_SLOTS + 1, seconds=60)

    assert (answers[0].status_code, problem(answers[0])["type"]) == (503, "overloaded")
    assert int(answers[0].headers["Retry-After"]) >= 1
    assert [answer.status_code for answer in answers[1:]] == [200] * HASHING_SLOTS
