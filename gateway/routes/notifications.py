from flask import current_app, g, request
from flask_sock import Sock
from simple_websocket import Server

from contracts.notifications import NotFailed, NotificationNotFound, NotificationPageView, NotificationView, ReadMark
from contracts.types import JsonObject
from contracts.users import MailNotNeeded
from gateway.addresses import client_network
from gateway.api import Blueprint
from gateway.auth import admin_when, owner, owner_or_admin, public, user
from gateway.live import ClientSocket
from gateway.paging import PAGE_HEADERS, page_headers
from gateway.schemas import NotificationQuery

blp = Blueprint("notifications", __name__, description="Notifications to customers")
sock = Sock()


@blp.route("/notifications")
@user
@admin_when("all", "true")
@blp.arguments(NotificationQuery, location="query")
@blp.response(200, NotificationPageView, headers=PAGE_HEADERS)
def list_notifications(query: JsonObject) -> tuple[JsonObject, int, dict[str, str]]:
    """The caller's notifications, newest first; with all=true those of all users. after_id: only higher ids."""
    user_id = None if query.pop("all") else g.caller.user_id
    page = g.shop.notifications.list_notifications(user_id=user_id, **query)
    return page, 200, page_headers(query, page["total"])


@blp.route("/notifications/<id:notification_id>")
@owner_or_admin
@blp.response(200, NotificationView)
@blp.problems(NotificationNotFound)
def get_notification(notification_id: int) -> JsonObject:
    """One notification, for its recipient and for admins."""
    return g.shop.notifications.get_notification(notification_id=notification_id, user_id=g.caller.user_id_filter)


@blp.route("/notifications/<id:notification_id>", methods=["PATCH"])
@owner
@blp.body(ReadMark())
@blp.response(200, NotificationView)
@blp.problems(NotificationNotFound)
def mark_read(mark: JsonObject, notification_id: int) -> JsonObject:
    """Mark one of the caller's notifications as read, or as unread."""
    return g.shop.notifications.mark_read(notification_id=notification_id, user_id=g.caller.user_id, read=mark["read"])


@blp.route("/notifications/retry/<id:notification_id>", methods=["POST"])
@owner_or_admin
@blp.response(200, NotificationView)
@blp.problems(NotificationNotFound, NotFailed, MailNotNeeded)
def retry_notification(notification_id: int) -> JsonObject:
    """Send a failed or uncertain notification again. After 3 s it is answered as `pending`."""
    return g.shop.notifications.retry_notification(notification_id=notification_id, user_id=g.caller.user_id_filter)


@sock.route("/ws/notifications")
@public
def feed(ws: Server) -> None:
    live_feed, access_tokens = current_app.extensions["live_feed"], current_app.extensions["access_tokens"]
    live_feed.serve(ws, access_tokens, request.headers.get("Authorization"), _address())


def _address() -> str:
    return client_network(request.environ["client_address"])


@sock.bp.before_request
def prepare_upgrade() -> None:
    """Refuse foreign origins while an HTTP answer is still possible, and wrap the socket for its two senders."""
    current_app.extensions["origins"].check(request.headers.get("Origin"), request.headers.get("Host"))
    current_app.extensions["live_feed"].refuse_when_full(_address())
    # Compression costs 300 kB for each socket, and a small message can unpack to a huge one.
    request.environ.pop("HTTP_SEC_WEBSOCKET_EXTENSIONS", None)
    request.environ["eventlet.input"] = ClientSocket(
        request.environ["eventlet.input"].get_socket(), request.environ["answer_headers"]
    )
