"""The two cookies: a session's refresh token, and the state of a sign-in that is under way.

Scripts can't read them, and they go over https alone where the shop has it.
"""

from flask import after_this_request, current_app, request

from gateway.headers import is_on_https

REFRESH, SIGN_IN = "forage_refresh", "forage_sign_in"
# As long as users keeps what they stand for.
SECONDS = {REFRESH: 30 * 24 * 3600, SIGN_IN: 10 * 60}
# Strict would keep a sign-in's state from coming back from the provider.
SAME_SITE = {REFRESH: "Strict", SIGN_IN: "Lax"}


def read(name):
    return request.cookies.get(name)


def keep(name, value):
    """Set the cookie with the answer, whatever that will be."""
    _set(name, value, SECONDS[name])


def drop(name):
    _set(name, "", 0)


def _set(name, value, seconds):
    secure = is_on_https(current_app.config)

    @after_this_request
    def set_cookie(response):
        response.set_cookie(
            name, value, max_age=seconds, path="/", secure=secure, httponly=True, samesite=SAME_SITE[name]
        )
        return response
