"""The Flask app: one function that puts the parts together."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from flask import Flask
from flask.json.provider import DefaultJSONProvider

from gateway import hooks
from gateway.api import MAX_BODY_BYTES, Api, IdConverter
from gateway.auth import AccessTokens, AllowedOrigins
from gateway.cache import Cache, CacheMiddleware
from gateway.headers import CorsMiddleware, security_headers
from gateway.limits import Limits, RateLimitMiddleware
from gateway.live import SOCKET_OPTIONS, LiveFeed
from gateway.routes import admin, auth, docs, health, notifications, orders, products, users
from gateway.routes.docs import DocsAssets
from nameko_reliable.rpc import Cluster


def create_app(
    config: Mapping[str, Any],
    cluster: Cluster | None,
    access_tokens: AccessTokens,
    cache: Cache,
    live_feed: LiveFeed,
    limits: Limits,
    docs_assets: DocsAssets,
) -> Flask:
    """The gateway's Flask app.

    config: FRONTEND_URL, ALLOWED_ORIGINS and GOOGLE_CLIENT_ID. cluster: calls to the services; None where only the
    OpenAPI document is needed. All other arguments are dependencies that live as long as the process.
    Raises RuntimeError when a view has no access decorator.
    """
    app = _App(__name__, static_folder=None)
    configure(app, config)
    app.extensions.update(
        cache=cache,
        cluster=cluster,
        health_checks=health.HealthChecks(),
        limits=limits,
        live_feed=live_feed,
        origins=AllowedOrigins(config),
        docs_assets=docs_assets,
        access_tokens=access_tokens,
    )
    for hook in hooks.BEFORE:
        app.before_request(hook)
    app.after_request(hooks.forbid_storing)
    app.teardown_request(hooks.release_slots)
    register_routes(app)
    refuse_open_views(app)
    add_middleware(app)
    # Both are read by the kit's HttpServer.
    app.answer_headers = security_headers(config)  # type: ignore[attr-defined]
    app.going_away = live_feed.close_all  # type: ignore[attr-defined]
    return app


def configure(app: Flask, config: Mapping[str, Any]) -> None:
    app.json = _Utf8Json(app)
    app.config.update(
        API_TITLE="Forage",
        API_VERSION="1",
        OPENAPI_VERSION="3.0.3",
        # Werkzeug cuts a chunked body off here without an error. One byte more shows that it was too long.
        MAX_CONTENT_LENGTH=MAX_BODY_BYTES + 1,
        SOCK_SERVER_OPTIONS=SOCKET_OPTIONS,
        FRONTEND_URL=config["FRONTEND_URL"],
        GOOGLE_CLIENT_ID=config["GOOGLE_CLIENT_ID"],
    )
    app.url_map.converters["id"] = IdConverter
    # Otherwise Flask would redirect `//` to the Host that the client sent.
    app.url_map.merge_slashes = False


def register_routes(app: Flask) -> None:
    api = app.extensions["api"] = Api(app)
    for routes in (auth, users, products, orders, notifications, admin, health, docs):
        api.register_blueprint(routes.blp)
    notifications.sock.init_app(app)


def refuse_open_views(app: Flask) -> None:
    """Raise RuntimeError when a view has no access decorator, so that no route is open by mistake."""
    open_views = [endpoint for endpoint, view in app.view_functions.items() if not hasattr(view, "access")]
    if open_views:
        raise RuntimeError(f"These views need an access decorator: {', '.join(open_views)}")


def add_middleware(app: Flask) -> None:
    """Wrap Flask, from the outside in: CORS, the default rate limit, the cache."""
    parts = app.extensions
    cached = CacheMiddleware(app.wsgi_app, parts["cache"])
    limited = RateLimitMiddleware(cached, parts["limits"], parts["access_tokens"])
    app.wsgi_app = CorsMiddleware(limited, parts["origins"])  # type: ignore[method-assign]


class _App(Flask):
    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function unchanged. Flask would check a dozen times a request that ours are no coroutines."""
        return func


class _Utf8Json(DefaultJSONProvider):
    # `json.dumps` would make an encoder at each call, because of the options.
    _encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))

    def dumps(self, obj: Any, **kwargs: Any) -> str:
        return self._encoder.encode(obj)
