"""The only way in: REST and WebSocket outside, RPC and events inside.

Emits nothing. Handles `product.changed` (its cache, every socket) and `notification.created` (its
user's sockets), as every other gateway does too.
"""

from contracts.events import NotificationCreated, ProductChanged
from contracts.production import demo_settings
from contracts.settings import ShopSettings
from extensions.events import broadcast_handler
from extensions.metrics import Metrics
from extensions.rpc import ClusterClient
from extensions.settings import Settings
from extensions.telemetry import LogContext
from extensions.tracing import Tracing
from gateway.app import create_app
from gateway.auth import Tokens
from gateway.cache import Cache
from gateway.limits import Limits
from gateway.live import Live
from gateway.routes.docs import Page
from gateway.server import wsgi_server


class Gateway:
    name = "gateway"

    config = Settings(ShopSettings, demo_settings, needs=["JWT_SECRET"])
    log_context = LogContext()
    tracing = Tracing()
    metrics = Metrics()
    cluster = ClusterClient()
    tokens = Tokens()
    cache = Cache()
    live = Live()
    limits = Limits()
    page = Page()

    @wsgi_server
    def app(self):
        return create_app(self.config, self.cluster, self.tokens, self.cache, self.live, self.limits, self.page)

    @broadcast_handler(ProductChanged)
    def follow_product(self, event):
        if self.cache.follow(event.id, event.revision):
            self.live.push_product(event)

    @broadcast_handler(NotificationCreated)
    def push_notification(self, event):
        self.live.push_notification(event)
