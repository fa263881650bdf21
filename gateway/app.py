"""The Flask app: one function that puts the parts together."""

import json

from flask import Flask, g, request
from flask.json.provider import DefaultJSONProvider
from werkzeug.exceptions import NotFound

from contracts.schemas import MAX_BIGINT
from gateway.api import MAX_BODY_BYTES, Api, IdConverter, refuse_queries
from gateway.auth import Origins, admit
from gateway.cache import CachedReads
from gateway.errors import Unauthenticated
from gateway.live import SOCKET_OPTIONS
from gateway.routes import docs, health, notifications, orders, products, users

CALL_SECONDS = 5.0


def create_app(config, cluster, tokens, cache, live):
    """A Flask app.

    config: FRONTEND_URL and ALLOWED_ORIGINS. cluster: calls to the services, with `within`.
    tokens, cache, live: what stays for all requests, of gateway/auth.py, cache.py and live.py.
    Raises RuntimeError when a view has no access decorator.
    """
    app = Flask(__name__, static_folder=None)
    app.json = _Utf8Json(app)
    app.config.update(
        API_TITLE="Forage",
        API_VERSION="1",
        OPENAPI_VERSION="3.0.3",
        # Of a chunked body Werkzeug reads so much and is silent about the rest: the one byte more tells.
        MAX_CONTENT_LENGTH=MAX_BODY_BYTES + 1,
        SOCK_SERVER_OPTIONS=SOCKET_OPTIONS,
    )
    app.url_map.converters["id"] = IdConverter
    app.extensions["origins"] = Origins(config)
    app.extensions["live"] = live
    app.extensions["tokens"] = tokens

    @app.before_request
    def admit_caller():
        view = app.view_functions.get(request.endpoint)
        if view is None or request.method == "OPTIONS":
            return
        g.caller = admit(view, request.headers.get("Authorization"), request.args, tokens)
        if not all(1 <= value <= MAX_BIGINT for value in request.view_args.values() if isinstance(value, int)):
            raise NotFound
        refuse_queries(view)
        # The services' time doesn't run while a slow client sends.
        request.get_data()
        g.shop = cluster.within(seconds=CALL_SECONDS, request_id=request.environ.get("request_id"))
        g.cache = cache

    @app.after_request
    def store_nothing_else(response):
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    api = Api(app)
    for routes in (users, products, orders, notifications, health, docs):
        api.register_blueprint(routes.blp)
    notifications.sock.init_app(app)
    docs.keep_document(app, api.spec)

    refuse_open_views(app)
    app.wsgi_app = CachedReads(app.wsgi_app, cache, is_admin=lambda authorization: _is_admin(tokens, authorization))
    app.going_away = live.going_away
    return app


def refuse_open_views(app):
    """Raise RuntimeError when a view has no access decorator: no route is open by forgetting."""
    open_views = [endpoint for endpoint, view in app.view_functions.items() if not hasattr(view, "access")]
    if open_views:
        raise RuntimeError(f"These views need an access decorator: {', '.join(open_views)}")


def _is_admin(tokens, authorization):
    try:
        caller = tokens.caller(authorization)
    except Unauthenticated:
        return False
    return caller is not None and caller.is_admin


class _Utf8Json(DefaultJSONProvider):
    ensure_ascii = False
    sort_keys = False
    compact = True

    def dumps(self, obj, **kwargs):
        return json.dumps(obj, ensure_ascii=False, separators=(",", ":"))
