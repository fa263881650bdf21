"""The transitions of an order, without a database."""

from decimal import Decimal
from itertools import pairwise, product
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.orders import ORDER_STATUSES, IllegalTransition
from contracts.types import InvalidInput
from services.orders_events import event_of
from services.orders_models import Order

LEGAL = {
    ("pending", "confirmed"),
    ("confirmed", "shipped"),
    ("shipped", "delivered"),
    ("pending", "cancelled"),
    ("confirmed", "cancelled"),
}


def an_order(*lines, status="pending"):
    lines = lines or ({"product_price": "14.50", "quantity": 2},)
    order = Order.placed(
        uuid4(),
        7,
        "ada@forage.example",
        True,
        [{"product_id": number, "product_name": "Morels", **line} for number, line in enumerate(lines, 1)],
    )
    order.status = status
    return order


def test_a_placed_order_is_pending_with_one_step_of_history():
    order = an_order()

    assert order.status == "pending"
    assert [(step.status, step.by) for step in order.history] == [("pending", "customer")]


def test_an_orders_total_is_the_sum_of_its_lines():
    order = an_order({"product_price": "14.50", "quantity": 3}, {"product_price": "0.01", "quantity": 10_000})

    assert [item.subtotal for item in order.items] == [Decimal("43.50"), Decimal("100.00")]
    assert order.total_amount == Decimal("143.50")


def test_a_total_above_the_maximum_is_refused():
    with pytest.raises(InvalidInput):
        an_order({"product_price": "9999999999.99", "quantity": 1}, {"product_price": "0.01", "quantity": 1})


@pytest.mark.parametrize("old, new", sorted(LEGAL))
def test_a_legal_step_is_taken_and_recorded(old, new):
    order = an_order(status=old)

    order.move_to(new, by="admin")

    assert order.status == new
    assert (order.history[-1].status, order.history[-1].by) == (new, "admin")


@pytest.mark.parametrize("old, new", sorted(set(product(ORDER_STATUSES, repeat=2)) - LEGAL))
def test_any_other_step_is_refused_and_changes_nothing(old, new):
    order = an_order(status=old)

    with pytest.raises(IllegalTransition) as refusal:
        order.move_to(new, by="admin")

    assert (refusal.value.old_status, refusal.value.new_status) == (old, new)
    assert order.status == old
    assert len(order.history) == 1


@given(st.lists(st.sampled_from(ORDER_STATUSES), max_size=12))
def test_any_steps_leave_a_legal_history_whose_length_is_the_sequence(tries):
    order = an_order()

    for status in tries:
        try:
            order.move_to(status, by="admin")
        except IllegalTransition:
            continue

    path = [step.status for step in order.history]
    assert path[0] == "pending" and path[-1] == order.status
    assert set(pairwise(path)) <= LEGAL
    assert event_of(order, len(path)).status == order.status
