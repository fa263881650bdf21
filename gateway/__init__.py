"""The shop's only public entry: REST and WebSocket for clients, RPC and events inside.

Emits no events. Every gateway handles `product.changed`, for its cache and all sockets, and `notification.created`,
for the sockets of its user.
"""

from flask import Flask

from contracts.demo_settings import demo_settings
from contracts.notifications import NotificationCreated
from contracts.products import ProductChanged
from contracts.settings import ShopSettings
from gateway.app import create_app
from gateway.auth import AccessTokens
from gateway.cache import Cache
from gateway.limits import Limits
from gateway.live import LiveFeed
from gateway.routes.docs import DocsAssets
from gateway.server import wsgi_server
from nameko_reliable.events import broadcast_handler
from nameko_reliable.rpc import ClusterClient
from nameko_reliable.settings import Settings
from nameko_reliable.telemetry.logs import LogContext
from nameko_reliable.telemetry.metrics import Metrics
from nameko_reliable.telemetry.tracing import WorkerSpans


class Gateway:
    name = "gateway"

    config = Settings(ShopSettings, demo_settings, needs=["JWT_SECRET"])
    log_context = LogContext()
    tracing = WorkerSpans()
    metrics = Metrics(prefix="forage")
    cluster = ClusterClient()
    access_tokens = AccessTokens()
    cache = Cache()
    live_feed = LiveFeed()
    limits = Limits()
    docs_assets = DocsAssets()

    @wsgi_server
    def app(self) -> Flask:
        return create_app(
            self.config, self.cluster, self.access_tokens, self.cache, self.live_feed, self.limits, self.docs_assets
        )

    @broadcast_handler(ProductChanged)
    def follow_product(self, event: ProductChanged) -> None:
        if self.cache.apply_change(event.id, event.revision):
            self.live_feed.push_product(event)

    @broadcast_handler(NotificationCreated)
    def push_notification(self, event: NotificationCreated) -> None:
        self.live_feed.push_notification(event)
