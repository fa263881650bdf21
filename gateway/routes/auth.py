"""Logging in and out. The refresh token travels only in its cookie, the access token never in a query string.

A browser on its way to or from Google displays the answer. So a refusal redirects it to the storefront, which shows
the reason.
"""

from flask import Response, current_app, g, jsonify, request
from marshmallow import EXCLUDE

from contracts.types import JsonObject
from contracts.users import (
    AccountDisabled,
    Credentials,
    InvalidCredentials,
    InvalidSession,
    NotConfigured,
    SignInProviderAway,
    SignInRefused,
    TooManyFailures,
    UnprovenAddress,
)
from gateway import cookies
from gateway.api import JSON, Blueprint
from gateway.auth import public, with_cookie
from gateway.errors import PROBLEM_JSON, problem_of, problem_response
from gateway.limits import limited
from gateway.schemas import SignInQuery, TokenView
from nameko_reliable.errors import ServiceBusy

HTML, BROWSER_ENDPOINTS = "text/html", ("auth.google", "auth.google_callback")

blp = Blueprint("auth", __name__, description="Logging in and out")


@blp.route("/users/login", methods=["POST"])
@public
@with_cookie
@limited("login")
@blp.body(Credentials())
@blp.response(200, TokenView, headers=["Set-Cookie"])
@blp.problems(ServiceBusy, InvalidCredentials, TooManyFailures)
def login(credentials: JsonObject) -> JsonObject:
    """Get an access token, and the cookie that refreshes it, for an address and a password."""
    return _set_session_cookie(g.shop.users.login(**credentials, **g.client))


@blp.route("/auth/refresh", methods=["POST"])
@public
@with_cookie
@limited("refresh")
@blp.request_cookie(cookies.REFRESH, required=True)
@blp.response(200, TokenView, headers=["Set-Cookie"])
@blp.problems(InvalidSession)
def refresh() -> JsonObject:
    """Get a new access token for the cookie, which is replaced. Later use of the old cookie ends the session."""
    refresh_token = cookies.read_refresh()
    if not refresh_token:
        raise InvalidSession
    return _set_session_cookie(g.shop.users.refresh(refresh_token=refresh_token))


@blp.route("/auth/logout", methods=["POST"])
@public
@with_cookie
@blp.request_cookie(cookies.REFRESH, required=False)
@blp.response(204, headers=["Set-Cookie"])
def logout() -> None:
    """End the cookie's session. Its access token stays valid until it expires, 15 minutes at most."""
    refresh_token = cookies.read_refresh()
    if refresh_token:
        g.shop.users.logout(refresh_token=refresh_token)
    cookies.clear_refresh()


@blp.route("/auth/providers")
@public
@blp.response(200, {"type": "array", "items": {"type": "string", "enum": ["google"]}})
def providers() -> Response:
    """The external sign-in providers."""
    return jsonify(["google"] if current_app.config["GOOGLE_CLIENT_ID"] else [])


@blp.route("/auth/google")
@public
@limited("login")
@blp.response(302, headers=["Location", "Set-Cookie"])
@blp.problems(NotConfigured, SignInProviderAway)
def google() -> Response:
    """Redirect to the sign-in at Google.

    After an error a client that prefers `text/html` is redirected to the storefront's `/auth/callback#error=<type>`.
    Only the default rate limit always answers with a problem.
    """
    sign_in = g.shop.users.google_sign_in_url()
    cookies.set_sign_in_stage(sign_in["state"], cookies.BEGUN)
    return _redirect(sign_in["url"])


@blp.route("/auth/google/callback")
@public
@limited("login")
@blp.arguments(SignInQuery, location="query", unknown=EXCLUDE)
@blp.request_cookie(cookies.SIGN_IN, required=True)
@blp.response(302, headers=["Location", "Set-Cookie"])
@blp.problems(SignInRefused, SignInProviderAway, NotConfigured, UnprovenAddress, AccountDisabled)
def google_callback(query: JsonObject) -> Response:
    """Finish the sign-in: redirect to the storefront, with the access token in the fragment.

    A reload redirects there again, with a new token if the browser sends the session's cookie.
    After an error a client that prefers `text/html` is redirected to the storefront's `/auth/callback#error=<type>`.
    Only the default rate limit always answers with a problem.
    """
    code, state = query["code"], query["state"]
    stage = cookies.read_sign_in_stage(state)
    if stage is None:
        raise SignInRefused("This sign-in did not start in this browser: start again.")
    if stage == cookies.FINISHED:
        return _repeat_redirect()
    if not code:
        raise SignInRefused("The provider did not sign you in: start again.")
    tokens = _set_session_cookie(g.shop.users.google_sign_in(code=code, state=state, **g.client))
    cookies.set_sign_in_stage(state, cookies.FINISHED)
    return _redirect_to_storefront(f"token={tokens['access_token']}")


def _repeat_redirect() -> Response:
    refresh_token = cookies.read_refresh()
    if not refresh_token:
        # Browsers withhold a Strict cookie on a redirect from another site. The storefront's own requests have it.
        return _redirect_to_storefront()
    try:
        tokens = _set_session_cookie(g.shop.users.refresh(refresh_token=refresh_token))
    except InvalidSession:
        raise SignInRefused("This sign-in's session has ended: start again.") from None
    return _redirect_to_storefront(f"token={tokens['access_token']}")


@blp.errorhandler(Exception)
def handle_error(error: Exception) -> Response:
    """A problem; for a browser a redirect to the storefront with the problem's type."""
    problem = problem_response(error)
    # Without a preference (no Accept, */*) this is the first, a problem.
    preferred = request.accept_mimetypes.best_match((PROBLEM_JSON, JSON, HTML))
    if request.endpoint in BROWSER_ENDPOINTS and preferred == HTML:
        return _redirect_to_storefront(f"error={problem_of(type(error)).type}")
    return problem


def _redirect_to_storefront(fragment: str = "") -> Response:
    return _redirect(f"{current_app.config['FRONTEND_URL']}/auth/callback{fragment and '#'}{fragment}")


def _redirect(url: str) -> Response:
    """Flask's redirect would also write the address, which may hold a token, into a page."""
    return Response(status=302, headers={"Location": url})


def _set_session_cookie(tokens: JsonObject) -> JsonObject:
    """Move the refresh token into its cookie. Returns the rest, for the body."""
    cookies.set_refresh(tokens.pop("refresh_token"))
    return tokens
