"""The Flask app: one function that puts the parts together."""

import functools
import json
import re
from contextlib import ExitStack

from flask import Flask, g, request
from flask.json.provider import DefaultJSONProvider
from werkzeug.exceptions import NotFound

from contracts.types import MAX_BIGINT
from gateway.addresses import neighbourhood
from gateway.api import MAX_BODY_BYTES, Api, IdConverter, refuse_queries
from gateway.auth import Origins, admit
from gateway.cache import CachedReads
from gateway.headers import CrossOrigin, preflight, security_headers
from gateway.limits import BoundedBody, LimitedRequests
from gateway.live import SOCKET_OPTIONS
from gateway.routes import admin, auth, docs, health, notifications, orders, products, users

CALL_SECONDS = 5.0


def create_app(config, cluster, tokens, cache, live, limits, page):
    """A Flask app.

    config: FRONTEND_URL, ALLOWED_ORIGINS and GOOGLE_CLIENT_ID. cluster: calls to the services, with `within`.
    tokens, cache, live, limits, page: what stays for all requests, of gateway/auth.py, cache.py, live.py,
    limits.py and routes/docs.py.
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
        FRONTEND_URL=config["FRONTEND_URL"],
        GOOGLE_CLIENT_ID=config["GOOGLE_CLIENT_ID"],
    )
    app.url_map.converters["id"] = IdConverter
    # Else it would redirect to whatever Host the client named.
    app.url_map.merge_slashes = False
    app.extensions["origins"] = Origins(config)
    app.extensions["live"] = live
    app.extensions["tokens"] = tokens
    app.extensions["page"] = page
    app.extensions["health_checks"] = health.HealthChecks()

    @app.before_request
    def name_route():
        if request.url_rule is not None:
            request.environ["route"] = template_of(request.url_rule.rule)

    app.before_request(lambda: preflight(request))

    def asked_view():
        """None when there is none at the address, or the question is only for its methods."""
        return None if request.method == "OPTIONS" else app.view_functions.get(request.endpoint)

    @app.before_request
    def admit_caller():
        view = asked_view()
        if view is None:
            return
        if hasattr(view, "with_cookie"):
            app.extensions["origins"].check(request.headers.get("Origin"), request.headers.get("Host"))
        address = neighbourhood(request.environ["client_address"])
        if hasattr(view, "limit"):
            limits.spend(view.limit, address, request.environ["answer_headers"])
        g.caller = request.environ["caller"]
        admit(view, g.caller, request.environ["token_fault"], request.args)
        # As far as a line of text goes.
        user_agent = re.sub("[^\x20-\x7e]", "", request.headers.get("User-Agent", ""))[:300]
        g.client = {"client_address": address, "user_agent": user_agent or None}

    @app.before_request
    def read_request():
        view = asked_view()
        if view is None:
            return
        if not all(1 <= value <= MAX_BIGINT for value in request.view_args.values() if isinstance(value, int)):
            raise NotFound
        refuse_queries(view)
        g.places = ExitStack()
        # Nothing else takes a body: the server throws it away.
        if request.method in ("POST", "PUT", "PATCH"):
            big_body = limits.big_bodies.take(g.client["client_address"])
            body = BoundedBody(request.environ["wsgi.input"], lambda: g.places.enter_context(big_body))
            request.environ["wsgi.input"] = body
            request.get_data()

    @app.before_request
    def begin_work():
        if asked_view() is None:
            return
        # Only now, as neither the services' time nor one of the places is a slow sender's.
        # Sockets have a limit of their own, and who is busy is well.
        if not request.url_rule.websocket and request.blueprint != health.blp.name:
            g.places.enter_context(limits.in_flight.take(g.client["client_address"]))
        g.shop = cluster.within(seconds=CALL_SECONDS, request_id=request.environ.get("request_id"))
        g.cache = cache

    @app.teardown_request
    def leave(error):
        if "places" in g:
            g.places.close()

    @app.after_request
    def store_nothing_else(response):
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    api = Api(app)
    for routes in (auth, users, products, orders, notifications, admin, health, docs):
        api.register_blueprint(routes.blp)
    notifications.sock.init_app(app)
    docs.keep_document(app, api.spec)

    refuse_open_views(app)
    cached = CachedReads(app.wsgi_app, cache)
    app.wsgi_app = CrossOrigin(LimitedRequests(cached, limits, tokens), app.extensions["origins"])
    app.answer_headers = security_headers(config)
    app.going_away = live.going_away
    return app


@functools.cache
def template_of(rule):
    """Flask's rule as the API's document writes it: `/orders/{order_id}`."""
    return re.sub("<(?:[^:>]+:)?([^>]+)>", r"{\1}", rule)


def refuse_open_views(app):
    """Raise RuntimeError when a view has no access decorator: no route is open by forgetting."""
    open_views = [endpoint for endpoint, view in app.view_functions.items() if not hasattr(view, "access")]
    if open_views:
        raise RuntimeError(f"These views need an access decorator: {', '.join(open_views)}")


class _Utf8Json(DefaultJSONProvider):
    ensure_ascii = False
    sort_keys = False
    compact = True

    def dumps(self, obj, **kwargs):
        return json.dumps(obj, ensure_ascii=False, separators=(",", ":"))
