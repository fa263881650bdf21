"""Test data: each function fills in all fields that a test does not set."""

from datetime import UTC, datetime
from decimal import Decimal
from itertools import count
from uuid import uuid4

from contracts.orders import OrderCreated, OrderLine, OrderStatusUpdated
from contracts.users import UserPasswordResetRequested, UserRegistered, UserVerificationRequested

_numbers = count(1)


def a_product(**fields):
    """The arguments of `create_product`, with a unique SKU."""
    number = next(_numbers)
    return {
        "name": f"Chanterelles {number}",
        "price": "14.50",
        "stock_quantity": 10,
        "sku": f"MUSHROOM-{number}",
        **fields,
    }


def a_customer():
    """user_id and user_email, as the gateway passes them."""
    number = next(_numbers)
    return {"user_id": number, "user_email": f"customer-{number}@forage.example"}


def an_account(**fields):
    """The arguments of `register`."""
    number = next(_numbers)
    return {
        "email": f"forager-{number}@forage.example",
        "username": f"forager-{number}",
        "password": "boletus edulis",
        **fields,
    }


def a_line(product, quantity=1, **fields):
    return {"product_id": product["id"], "quantity": quantity, **fields}


def place_order(rpc, *lines, customer=None, key=None):
    return rpc.orders.create_order(**(customer or a_customer()), items=list(lines), idempotency_key=key)


def order_created(**fields):
    return OrderCreated(**{**_order_fields(), "sequence": 1, "status": "pending", **fields})


def order_status_updated(created, new_status, sequence=2, **fields):
    """The event of the same order's change to `new_status`."""
    order = {name: getattr(created, name) for name in _order_fields()}
    return OrderStatusUpdated(
        **{
            **order,
            "sequence": sequence,
            "status": new_status,
            "old_status": "pending",
            "new_status": new_status,
            **fields,
        }
    )


def user_registered(**fields):
    return UserRegistered(**{**_user_fields(), **fields})


def user_verification_requested(**fields):
    return UserVerificationRequested(**{**_user_fields(), **fields})


def user_password_reset_requested(**fields):
    return UserPasswordResetRequested(**{**_user_fields(), **fields})


def _user_fields():
    customer = a_customer()
    return {
        "timestamp": datetime(2026, 11, 22, 10, 4, tzinfo=UTC),
        "user_id": customer["user_id"],
        "email": customer["user_email"],
    }


def _order_fields():
    customer = a_customer()
    return {
        "timestamp": datetime(2026, 11, 22, 10, 4, tzinfo=UTC),
        "order_id": next(_numbers),
        **customer,
        "items": (
            OrderLine(
                product_id=1,
                product_name="Chanterelles",
                product_price=Decimal("14.50"),
                quantity=2,
                subtotal=Decimal("29.00"),
            ),
        ),
        "total_amount": Decimal("29.00"),
        "reservation_id": uuid4(),
    }
