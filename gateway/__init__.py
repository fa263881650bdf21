"""The only way in: REST and WebSocket outside, RPC and events inside.

Emits nothing. Handles `product.changed` (its cache, every socket) and `notification.created` (its
user's sockets), as every other gateway does too.
"""

from contracts.notifications import NotificationCreated
from contracts.production import demo_settings
from contracts.products import ProductChanged
from contracts.settings import ShopSettings
from gateway.app import create_app
from gateway.auth import Tokens
from gateway.cache import Cache
from gateway.limits import Limits
from gateway.live import Live
from gateway.routes.docs import Page
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
