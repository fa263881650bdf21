"""The cookies: a session's refresh token, and the state of each sign-in.

Scripts cannot read them. A shop on https sends them over https only.

Each sign-in has its own cookie, named after its state, so that sign-ins in two tabs do not disturb each other. The
cookie of a finished sign-in is kept until it expires. It distinguishes a reloaded callback from a forged one.
"""

import hashlib
import hmac
from typing import Literal

from flask import Response, after_this_request, current_app, request

from gateway.headers import uses_https

REFRESH, SIGN_IN = "forage_refresh", "forage_sign_in"
# As long as users keeps the session and the sign-in.
REFRESH_SECONDS, SIGN_IN_SECONDS = 30 * 24 * 3600, 10 * 60
# More would not fit into a request's headers beside other cookies.
MAX_SIGN_INS = 10
BEGUN, FINISHED = "begun", "finished"


def read_refresh() -> str | None:
    return request.cookies.get(REFRESH)


def set_refresh(token: str) -> None:
    """Set the cookie with the answer to this request, also when that is an error."""
    _set(REFRESH, token, REFRESH_SECONDS, "Strict")


def clear_refresh() -> None:
    _set(REFRESH, "", 0, "Strict")


def read_sign_in_stage(state: str) -> str | None:
    """The stage of this browser's sign-in with that state: BEGUN, FINISHED, or None when it began elsewhere."""
    stage, _, expected = request.cookies.get(_sign_in_name(state), "").partition(".")
    return stage if state and hmac.compare_digest(expected.encode(), state.encode()) else None


def set_sign_in_stage(state: str, stage: str) -> None:
    others = [name for name in request.cookies if name.startswith(SIGN_IN) and name != _sign_in_name(state)]
    if len(others) >= MAX_SIGN_INS:
        for name in others:
            _set_sign_in(name, "", 0)
    _set_sign_in(_sign_in_name(state), f"{stage}.{state}", SIGN_IN_SECONDS)


def _sign_in_name(state: str) -> str:
    return f"{SIGN_IN}_{hashlib.sha256(state.encode()).hexdigest()[:16]}"


def _set_sign_in(name: str, value: str, seconds: int) -> None:
    # The browser would not send a Strict cookie on its way back from the provider.
    _set(name, value, seconds, "Lax")


def _set(name: str, value: str, seconds: int, same_site: Literal["Lax", "Strict"]) -> None:
    secure = uses_https(current_app.config)

    @after_this_request
    def set_cookie(response: Response) -> Response:
        response.set_cookie(name, value, max_age=seconds, path="/", secure=secure, httponly=True, samesite=same_site)
        return response
