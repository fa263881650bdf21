from http.cookies import SimpleCookie

import pytest
import requests

from contracts.users import MailNotNeeded
from tests.factories import an_account
from tests.shop import refusal_of

from .conftest import Client, problem

COOKIE = "forage_refresh"
COOKIE_ROUTES = [
    ("POST", "/users/login"),
    ("POST", "/auth/refresh"),
    ("POST", "/auth/logout"),
    ("GET", "/users/me/sessions"),
    ("DELETE", "/users/me/sessions/1"),
]


class Browser(Client):
    """A client that keeps cookies and has an account of its own."""

    def __init__(self, shop):
        super().__init__(shop.url)
        self.account = an_account()
        self.user = self.post("/users/register", self.account).json()

    def log_in(self, password=None, **headers):
        credentials = {"email": self.account["email"], "password": password or self.account["password"]}
        answer = self.post("/users/login", credentials, headers=headers)
        self.session.headers["Authorization"] = f"Bearer {answer.json().get('access_token')}"
        return answer

    @property
    def cookie(self):
        return self.session.cookies.get(COOKIE)


@pytest.fixture
def browser(shop):
    return Browser(shop)


def refresh_with(shop, cookie):
    return requests.post(f"{shop.url}/auth/refresh", cookies={COOKIE: cookie}, timeout=15)


def cookie_set_by(answer, name=COOKIE):
    return SimpleCookie(answer.headers["Set-Cookie"])[name]


def test_a_login_sets_an_http_only_and_same_site_cookie(browser):
    cookie = cookie_set_by(browser.log_in())

    assert cookie["httponly"]
    assert (cookie["samesite"], cookie["path"], cookie["max-age"]) == ("Strict", "/", str(30 * 24 * 3600))
    assert not cookie["secure"] and not cookie["domain"]
    assert len(cookie.value) >= 43


def test_the_refresh_token_is_in_no_body(browser):
    login = browser.log_in()
    cookie = browser.cookie
    refresh = browser.post("/auth/refresh")

    assert refresh.json().keys() == login.json().keys() == {"access_token", "token_type", "expires_in"}
    assert cookie not in login.text
    assert browser.cookie not in refresh.text


def test_a_refresh_gives_a_new_access_token_and_rotates_the_cookie(shop, browser):
    browser.log_in()
    before = browser.cookie

    refresh = browser.post("/auth/refresh")

    assert refresh.status_code == 200
    assert browser.cookie != before
    assert cookie_set_by(refresh)["httponly"]
    me = requests.get(f"{shop.url}/users/me", headers={"Authorization": f"Bearer {refresh.json()['access_token']}"})
    assert me.json() == browser.user


@pytest.mark.parametrize("cookie", (None, "", "nonsense", "é", "x" * 3000))
def test_a_refresh_without_a_valid_cookie_is_refused(shop, cookie):
    headers = {} if cookie is None else {"Cookie": f"{COOKIE}={cookie}".encode()}

    answer = requests.post(f"{shop.url}/auth/refresh", headers=headers)

    assert answer.status_code == 401
    assert problem(answer)["type"] == "invalid-session"
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_a_stolen_cookie_that_is_used_later_ends_the_session(shop, browser):
    browser.log_in()
    stolen = browser.cookie
    browser.post("/auth/refresh")
    [session] = browser.get("/users/me/sessions").json()
    assert refresh_with(shop, stolen).status_code == 200, "two tabs may refresh at once"
    aged = "UPDATE refresh_tokens SET replaced_at = replaced_at - interval '11 seconds' WHERE session_id = %s"
    shop.sql("users", aged, session["id"])

    assert refresh_with(shop, stolen).status_code == 401

    assert browser.post("/auth/refresh").status_code == 401


def test_a_logout_ends_the_session_and_clears_the_cookie(shop, browser):
    browser.log_in()
    cookie = browser.cookie

    answer = browser.post("/auth/logout")

    assert (answer.status_code, answer.content) == (204, b"")
    assert cookie_set_by(answer)["max-age"] == "0"
    assert browser.cookie is None
    assert refresh_with(shop, cookie).status_code == 401
    assert browser.post("/auth/logout").status_code == 204


def test_sessions_are_listed_and_ended_one_by_one(shop, browser):
    browser.log_in(**{"User-Agent": "Phone/1.0\u00fc".encode("latin-1")})
    phone = browser.cookie
    browser.log_in(**{"User-Agent": "Laptop/2.0"})

    sessions = browser.get("/users/me/sessions").json()

    seen = [(session["user_agent"], session["current"]) for session in sessions]
    assert seen == [("Laptop/2.0", True), ("Phone/1.0", False)]
    assert {session["client_address"] for session in sessions} == {"127.0.0.1"}
    assert browser.delete(f"/users/me/sessions/{sessions[1]['id']}").status_code == 204
    assert refresh_with(shop, phone).status_code == 401
    assert [session["current"] for session in browser.get("/users/me/sessions").json()] == [True]


def test_another_users_session_cannot_be_ended(shop, browser):
    browser.log_in()
    [session] = browser.get("/users/me/sessions").json()
    other = Browser(shop)
    other.log_in()

    answer = other.delete(f"/users/me/sessions/{session['id']}")

    assert answer.status_code == 404
    assert problem(answer)["type"] == "session-not-found"
    assert browser.post("/auth/refresh").status_code == 200


@pytest.mark.parametrize(("method", "path"), COOKIE_ROUTES)
def test_a_foreign_origin_cannot_use_the_cookie(browser, method, path):
    browser.log_in()
    before = browser.cookie

    for origin in ("https://evil.example", "null"):
        answer = browser.request(method, path, headers={"Origin": origin})
        assert answer.status_code == 403
        assert problem(answer)["type"] == "foreign-origin"
        assert "Set-Cookie" not in answer.headers

    assert browser.cookie == before
    assert browser.post("/auth/refresh", headers={"Origin": "http://shop.example:8080"}).status_code == 200


# Passwords and addresses


def test_a_changed_password_ends_the_session_that_changed_it(browser):
    browser.log_in()
    change = {"old_password": browser.account["password"], "password": "lactarius deliciosus"}

    answer = browser.post("/users/me/password", change)

    assert (answer.status_code, answer.content) == (204, b"")
    assert browser.post("/auth/refresh").status_code == 401
    assert browser.log_in(password="lactarius deliciosus").status_code == 200


def test_a_wrong_old_password_is_reported_by_field(browser):
    browser.log_in()

    answer = browser.post("/users/me/password", {"old_password": "wrong", "password": "lactarius deliciosus"})

    assert answer.status_code == 422
    assert problem(answer)["errors"].keys() == {"old_password"}


def test_too_many_failed_logins_get_retry_after(browser):
    for _ in range(6):
        assert browser.log_in(password="wrong").status_code == 401

    answer = browser.log_in()

    assert answer.status_code == 429
    assert problem(answer)["type"] == "too-many-failures"
    assert answer.headers["Retry-After"] == "1"


def test_a_forgotten_password_is_reset_by_a_mailed_token(shop, browser, anonymous):
    known = anonymous.post("/users/password-reset", {"email": browser.account["email"]})
    unknown = anonymous.post("/users/password-reset", {"email": "nobody@forage.example"})
    assert known.status_code == unknown.status_code == 202
    assert known.content == unknown.content
    token = shop.rpc.users.create_mailed_token(
        user_id=browser.user["id"], email=browser.account["email"], purpose="password_reset"
    )["token"]

    weak = anonymous.post("/users/password-reset/confirm", {"token": token, "password": "password1"})
    good = anonymous.post("/users/password-reset/confirm", {"token": token, "password": "lactarius deliciosus"})
    again = anonymous.post("/users/password-reset/confirm", {"token": token, "password": "lactarius deliciosus"})

    assert weak.status_code == 422
    assert good.status_code == 204
    assert again.status_code == 400
    assert problem(again)["type"] == "invalid-token"
    assert browser.log_in(password="lactarius deliciosus").status_code == 200


def test_an_address_is_proven_by_a_mailed_token(shop, browser, anonymous):
    browser.log_in()
    proof = {"user_id": browser.user["id"], "email": browser.account["email"], "purpose": "email_verification"}
    token = shop.rpc.users.create_mailed_token(**proof)["token"]
    assert browser.post("/users/me/verification").status_code == 202

    assert anonymous.post("/users/verify-email", {"token": token}).status_code == 204

    assert anonymous.post("/users/verify-email", {"token": token}).status_code == 400
    assert isinstance(refusal_of(shop.rpc.users.create_mailed_token.call_async(**proof)), MailNotNeeded)


# Accounts


def test_a_name_can_be_changed_to_a_free_one(browser, customer):
    browser.log_in()
    name = f"{browser.account['username']} the Second"

    changed = browser.patch("/users/me", {"username": name})

    assert changed.json()["username"] == name == browser.get("/users/me").json()["username"]
    taken = browser.patch("/users/me", {"username": customer.user["username"]})
    assert taken.status_code == 409
    assert problem(taken)["field"] == "username"
    assert browser.patch("/users/me", {"username": name, "role": "admin"}).status_code == 422


def test_admins_find_accounts_page_by_page(admin, customer):
    page = admin.get(f"/users?q={customer.user['email'].upper()}&role=customer&limit=5").json()
    assert page == {"items": [customer.user], "total": 1, "limit": 5, "offset": 0}

    first, second = (admin.get(f"/users?limit=1&offset={offset}").json()["items"][0] for offset in (0, 1))
    assert first["id"] < second["id"]


def test_an_admin_disables_an_account_and_makes_another_an_admin(admin, shop):
    disabled, promoted = Browser(shop), Browser(shop)
    disabled.log_in()
    promoted.log_in()

    answer = admin.patch(f"/users/{disabled.user['id']}", {"is_active": False})
    assert (answer.status_code, answer.json()["is_active"]) == (200, False)
    assert disabled.post("/auth/refresh").status_code == 401
    assert disabled.log_in().status_code == 401

    answer = admin.patch(f"/users/{promoted.user['id']}", {"role": "admin"})
    assert (answer.status_code, answer.json()["role"]) == (200, "admin")
    assert promoted.get("/users").status_code == 403, "the role is in the access token"
    assert promoted.post("/auth/refresh").status_code == 401, "the session is over"
    promoted.log_in()
    assert promoted.get("/users?limit=1").status_code == 200
    admin.patch(f"/users/{promoted.user['id']}", {"role": "customer"})


def test_a_disabled_admin_cannot_enable_themselves(admin, new_customer):
    former = new_customer("admin")
    admin.patch(f"/users/{former.user['id']}", {"is_active": False})

    answer = former.patch(f"/users/{former.user['id']}", {"is_active": True})

    assert answer.status_code == 403
    assert problem(answer)["type"] == "not-allowed"


def test_an_unknown_account_cannot_be_changed(admin):
    answer = admin.patch("/users/999999999", {"is_active": False})

    assert answer.status_code == 404
    assert problem(answer)["type"] == "user-not-found"
