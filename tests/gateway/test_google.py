from functools import partial
from http.cookies import SimpleCookie
from urllib.parse import parse_qs, urlencode, urlsplit

import jwt
import pytest
import requests

from services import users_openid as openid
from tests.factories import an_account

from .conftest import problem

# The Accept header of Chromium and Firefox when a user follows a link.
ACCEPT_HTML = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


@pytest.fixture
def browser(shop):
    """A browser that follows no redirects, so that tests can check them."""

    class Browser(requests.Session):
        def go(self, path, accept="*/*", **query):
            url, headers = f"{shop.url}{path}?{urlencode(query)}", {"Accept": accept}
            return self.get(url, headers=headers, allow_redirects=False, timeout=15)

        def begin(self):
            return self.go("/auth/google").headers["Location"]

    return Browser()


def state_of(url):
    return parse_qs(urlsplit(url).query)["state"][0]


def email_in(answer):
    """The address in the access token of the fragment."""
    token = answer.headers["Location"].partition("#token=")[2]
    return jwt.decode(token, options={"verify_signature": False})["email"]


def cookies_set_by(answer):
    cookies = SimpleCookie()
    for name, value in answer.raw.headers.items():
        if name == "Set-Cookie":
            cookies.load(value)
    return cookies


def test_a_browser_signs_in_at_the_provider(shop, browser, sign_in_provider):
    email = an_account()["email"]
    start = browser.go("/auth/google")
    code, state = sign_in_provider.log_in(start.headers["Location"], email=email)

    back = browser.go("/auth/google/callback", code=code, state=state, scope="openid email", authuser="0")

    assert (start.status_code, back.status_code) == (302, 302)
    place, _, fragment = back.headers["Location"].partition("#")
    assert place == "http://shop.example:8080/auth/callback"
    [(name, token)] = [fragment.split("=")]
    assert name == "token"
    me = requests.get(f"{shop.url}/users/me", headers={"Authorization": f"Bearer {token}"}).json()
    assert me["email"] == email
    assert browser.post(f"{shop.url}/auth/refresh").status_code == 200
    assert back.headers["Cache-Control"] == "no-store"


def test_the_redirect_to_the_provider_has_the_openid_connect_parameters(browser, sign_in_provider):
    url = browser.begin()

    query = {name: value for name, [value] in parse_qs(urlsplit(url).query).items()}
    assert url.startswith(sign_in_provider.issuer)
    assert query["response_type"] == "code"
    assert query["client_id"] == "forage-tests"
    assert query["redirect_uri"] == "http://localhost:8080/api/auth/google/callback"
    assert query["code_challenge_method"] == "S256"
    assert "openid" in query["scope"].split()
    assert all(len(query[name]) >= 43 for name in ("state", "nonce", "code_challenge"))
    again = parse_qs(urlsplit(browser.begin()).query)
    assert not {query[name] for name in ("state", "nonce", "code_challenge")} & {
        again[name][0] for name in ("state", "nonce", "code_challenge")
    }


def test_the_state_is_kept_in_a_lax_cookie(browser):
    answer = browser.go("/auth/google")

    [(name, cookie)] = cookies_set_by(answer).items()
    assert name.startswith("forage_sign_in_")
    assert cookie.value.endswith(state_of(answer.headers["Location"]))
    assert (cookie["samesite"], cookie["path"], cookie["max-age"]) == ("Lax", "/", "600")
    assert cookie["httponly"]


def test_sign_ins_in_two_tabs_both_succeed(browser, sign_in_provider):
    first_url, second_url = browser.begin(), browser.begin()
    people = [an_account()["email"] for _ in range(2)]
    answers = [
        sign_in_provider.log_in(url, email=email) for url, email in zip((first_url, second_url), people, strict=True)
    ]

    returns = [browser.go("/auth/google/callback", code=code, state=state) for code, state in answers]

    assert [email_in(answer) for answer in returns] == people


def test_a_browser_keeps_a_limited_number_of_sign_ins(browser):
    urls = [browser.begin() for _ in range(25)]

    assert len(browser.cookies) <= 11
    assert browser.go("/auth/google/callback", state=state_of(urls[0])).status_code == 400


@pytest.mark.parametrize("tampered", ("", "another state", "é", None))
def test_a_state_that_differs_from_its_cookie_is_refused(browser, sign_in_provider, tampered):
    code, state = sign_in_provider.log_in(browser.begin(), email=an_account()["email"])
    query = {"code": code, "state": tampered} if tampered is not None else {"code": code}

    answer = browser.go("/auth/google/callback", **query)

    assert answer.status_code == 400
    assert problem(answer)["type"] == "sign-in-refused"
    assert browser.go("/auth/google/callback", code=code, state=state).status_code == 302, "the state can still be used"


def test_a_state_without_its_cookie_is_refused(shop, browser, sign_in_provider):
    """Otherwise a link could sign its reader in to another account."""
    code, state = sign_in_provider.log_in(browser.begin(), email=an_account()["email"])

    answer = requests.get(f"{shop.url}/auth/google/callback", params={"code": code, "state": state})

    assert answer.status_code == 400


def test_a_declined_sign_in_is_refused(browser):
    state = state_of(browser.begin())

    answer = browser.go("/auth/google/callback", error="access_denied", state=state)

    assert answer.status_code == 400
    assert problem(answer)["type"] == "sign-in-refused"


def test_a_reloaded_callback_redirects_like_the_first(shop, browser, sign_in_provider):
    email = an_account()["email"]
    code, state = sign_in_provider.log_in(browser.begin(), email=email)
    first = browser.go("/auth/google/callback", code=code, state=state)

    reload = browser.go("/auth/google/callback", accept=ACCEPT_HTML, code=code, state=state)

    assert [email_in(answer) for answer in (first, reload)] == [email, email]
    assert browser.post(f"{shop.url}/auth/refresh").status_code == 200


def test_a_reloaded_callback_without_the_session_cookie_redirects_without_a_token(browser, sign_in_provider):
    """Browsers withhold the Strict cookie when another site redirected to the reloaded page."""
    code, state = sign_in_provider.log_in(browser.begin(), email=an_account()["email"])
    browser.go("/auth/google/callback", code=code, state=state)
    del browser.cookies["forage_refresh"]

    answer = browser.go("/auth/google/callback", accept=ACCEPT_HTML, code=code, state=state)

    assert (answer.status_code, answer.headers["Location"]) == (302, "http://shop.example:8080/auth/callback")


def test_a_reloaded_callback_after_a_logout_is_refused(shop, browser, sign_in_provider):
    code, state = sign_in_provider.log_in(browser.begin(), email=an_account()["email"])
    browser.go("/auth/google/callback", code=code, state=state)
    refresh_token = browser.cookies["forage_refresh"]
    browser.post(f"{shop.url}/auth/logout")
    browser.cookies["forage_refresh"] = refresh_token

    answer = browser.go("/auth/google/callback", code=code, state=state)

    assert answer.status_code == 400
    assert problem(answer)["type"] == "sign-in-refused"


def test_a_code_works_once(browser, sign_in_provider):
    code, state = sign_in_provider.log_in(browser.begin(), email=an_account()["email"])
    browser.go("/auth/google/callback", code=code, state=state)
    fresh_state = state_of(browser.begin())

    assert browser.go("/auth/google/callback", code=code, state=fresh_state).status_code == 400


@pytest.mark.parametrize(
    "forge",
    (
        lambda provider: provider.send_unsigned_tokens(),
        lambda provider: provider.sign_with_the_public_key(),
        lambda provider: provider.sign_with_another_key(),
        lambda provider: provider.change_claims(aud="another client"),
        lambda provider: provider.change_claims(iss="https://evil.example"),
        lambda provider: provider.change_claims(nonce="another"),
        lambda provider: provider.change_claims(exp=1),
    ),
    ids=("alg none", "HS256 with the public key", "another key", "audience", "issuer", "nonce", "expired"),
)
def test_a_forged_id_token_is_refused(browser, sign_in_provider, forge):
    forge(sign_in_provider)
    code, state = sign_in_provider.log_in(browser.begin(), email=an_account()["email"])

    answer = browser.go("/auth/google/callback", code=code, state=state)

    assert answer.status_code == 400
    assert problem(answer)["type"] == "sign-in-refused"
    assert "forage_refresh" not in browser.cookies


def test_an_unverified_address_is_refused(browser, sign_in_provider):
    code, state = sign_in_provider.log_in(browser.begin(), email=an_account()["email"], email_verified=False)

    answer = browser.go("/auth/google/callback", code=code, state=state)

    assert answer.status_code == 409
    assert problem(answer)["type"] == "unproven-address"


@pytest.mark.parametrize("failure", ("stop", "hang"))
def test_an_unreachable_or_slow_provider_gets_502(browser, sign_in_provider, failure):
    code, state = sign_in_provider.log_in(browser.begin(), email=an_account()["email"])
    if failure == "stop":
        sign_in_provider.stop()
    else:
        sign_in_provider.answer("/oauth2/token", sign_in_provider.hang)

    answer = browser.go("/auth/google/callback", code=code, state=state)

    # A call that takes 5 s gets 504.
    assert answer.status_code == 502
    assert problem(answer)["type"] == "sign-in-provider-away"


def test_the_access_token_is_in_the_fragment_alone(browser, sign_in_provider):
    code, state = sign_in_provider.log_in(browser.begin(), email=an_account()["email"])

    answer = browser.go("/auth/google/callback", code=code, state=state)

    location = answer.headers["Location"]
    token = location.partition("#token=")[2]
    assert answer.content == b""
    assert jwt.decode(token, options={"verify_signature": False})["role"] == "customer"
    assert token not in location.partition("#")[0]


def test_the_sign_in_providers_are_listed(shop, browser):
    assert browser.go("/auth/providers").json() == ["google"]


def assert_redirected_to_storefront(answer, why):
    assert answer.status_code == 302
    assert answer.headers["Location"] == f"http://shop.example:8080/auth/callback#error={why}"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.content == b""


def test_a_refused_browser_is_redirected_to_the_storefront_with_the_reason(browser):
    state = state_of(browser.begin())

    answer = browser.go("/auth/google/callback", accept=ACCEPT_HTML, error="access_denied", state=state)

    assert_redirected_to_storefront(answer, "sign-in-refused")


def test_a_browser_with_an_unverified_address_is_redirected_to_the_storefront(browser, sign_in_provider):
    code, state = sign_in_provider.log_in(browser.begin(), email=an_account()["email"], email_verified=False)

    answer = browser.go("/auth/google/callback", accept=ACCEPT_HTML, code=code, state=state)

    assert_redirected_to_storefront(answer, "unproven-address")
    assert "forage_refresh" not in browser.cookies


def test_a_rate_limited_browser_is_redirected_to_the_storefront(run_gateway):
    gateway = run_gateway(RATE_LIMIT_SCALE="0.03")
    ask = partial(requests.get, f"{gateway.url}/auth/google", headers={"Accept": ACCEPT_HTML}, allow_redirects=False)
    ask()

    answer = ask()

    assert_redirected_to_storefront(answer, "rate-limited")


def test_a_browser_is_redirected_to_the_storefront_while_the_provider_is_down(browser, sign_in_provider, monkeypatch):
    monkeypatch.setattr(openid, "METADATA_MAX_AGE_SECONDS", 0)
    sign_in_provider.stop()

    answer = browser.go("/auth/google", accept=ACCEPT_HTML)

    assert_redirected_to_storefront(answer, "sign-in-provider-away")
    assert not browser.cookies


@pytest.mark.parametrize("accept", ("*/*", "application/json", "application/json, text/html;q=0.5", ""))
def test_a_client_that_does_not_prefer_html_gets_the_problem(browser, accept):
    answer = browser.go("/auth/google/callback", accept=accept, state="another")

    assert answer.status_code == 400
    assert problem(answer)["type"] == "sign-in-refused"


def test_other_auth_routes_answer_browsers_with_problems(shop):
    answer = requests.post(f"{shop.url}/auth/refresh", headers={"Accept": ACCEPT_HTML})

    assert answer.status_code == 401
    assert problem(answer)["type"] == "invalid-session"
