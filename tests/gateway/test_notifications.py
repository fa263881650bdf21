import pytest

from nameko_reliable.testing.waiting import wait_for

from .conftest import problem

FIELDS = {
    "id",
    "type",
    "event_type",
    "recipient_email",
    "subject",
    "message",
    "order_id",
    "user_id",
    "status",
    "error_message",
    "attempts",
    "read_at",
    "created_at",
}


@pytest.fixture
def notification(customer, new_product):
    """The notification of a customer's order, once its mail is sent."""
    customer.post("/orders", {"items": [{"product_id": new_product()["id"], "quantity": 1}]})

    def sent():
        found = customer.get("/notifications?status=sent").json()["notifications"]
        return found and found[0]

    return wait_for(sent)


def test_a_customer_reads_their_notifications(customer, notification):
    listed = customer.get("/notifications")
    single = customer.get(f"/notifications/{notification['id']}")

    assert listed.json() == {"notifications": [notification], "total": 1}
    assert listed.headers["Cache-Control"] == "no-store"
    assert single.json() == notification
    assert notification.keys() == FIELDS
    assert (notification["status"], notification["recipient_email"]) == ("sent", customer.user["email"])


def test_notifications_are_marked_read_and_unread(customer, notification):
    path = f"/notifications/{notification['id']}"

    read = customer.patch(path, {"read": True})

    assert read.json()["read_at"] is not None
    assert customer.get("/notifications?unread=true").json()["total"] == 0
    assert customer.get("/notifications?unread=false").json()["total"] == 1
    assert customer.patch(path, {"read": False}).json()["read_at"] is None


def test_notifications_are_filtered_and_paged(customer, notification):
    def total(query):
        return customer.get(f"/notifications?{query}").json()["total"]

    assert total(f"order_id={notification['order_id']}") == 1
    assert total("order_id=987654321") == 0
    assert total(f"recipient={notification['recipient_email'].upper()}") == 1
    assert total("recipient=nobody@forage.example") == 0
    assert total("status=failed") == 0
    assert total(f"after_id={notification['id']}") == 0
    assert total(f"after_id={notification['id'] - 1}") == 1
    assert customer.get("/notifications?page=2&page_size=1").json() == {"notifications": [], "total": 1}


def test_a_notification_is_shown_only_to_its_recipient_and_admins(customer, admin, new_customer, notification):
    path = f"/notifications/{notification['id']}"
    stranger = new_customer()

    assert admin.get(path).json() == notification
    assert notification in admin.get("/notifications?all=true&page_size=100").json()["notifications"]
    assert notification not in admin.get("/notifications").json()["notifications"]
    for answer in (
        stranger.get(path),
        stranger.patch(path, {"read": True}),
        stranger.post(f"/notifications/retry/{notification['id']}"),
        admin.patch(path, {"read": True}),
    ):
        assert problem(answer)["type"] == "notification-not-found"


def test_a_sent_notification_cannot_be_retried(customer, admin, notification):
    for client in (customer, admin):
        refusal = client.post(f"/notifications/retry/{notification['id']}")

        assert refusal.status_code == 409
        assert problem(refusal)["type"] == "not-failed"


def test_a_retry_sends_a_failed_notification(customer, new_product, smtp):
    smtp.reject(customer.user["email"], "550 No such mailbox")
    customer.post("/orders", {"items": [{"product_id": new_product()["id"], "quantity": 1}]})
    (failed,) = wait_for(lambda: customer.get("/notifications?status=failed").json()["notifications"])
    assert "550" in failed["error_message"]
    smtp.reset()

    tried = customer.post(f"/notifications/retry/{failed['id']}")

    assert tried.status_code == 200
    assert (tried.json()["id"], tried.json()["status"]) == (failed["id"], "sent")
    assert len(smtp.messages(to=customer.user["email"])) == 1


@pytest.mark.parametrize(
    "query", ["status=lost", "order_id=0", "unread=1", "after_id=-1", "page=0", "page_size=101", "page=x", "x=1"]
)
def test_a_query_out_of_bounds_is_refused(customer, query):
    answer = customer.get(f"/notifications?{query}")

    assert answer.status_code == 422
    assert list(problem(answer)["errors"]) == [query.split("=")[0]]


@pytest.mark.parametrize("body", [{}, {"read": None}, {"read": "true"}, {"read": True, "id": 1}, []])
def test_a_read_mark_must_be_true_or_false(customer, notification, body):
    answer = customer.patch(f"/notifications/{notification['id']}", body)

    assert answer.status_code == 422
