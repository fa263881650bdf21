"""Which lines of an order can be reserved, without a database."""

from decimal import Decimal
from types import SimpleNamespace

import pytest

from contracts.products import InsufficientStock, PriceChanged, ProductNotFound
from services.products_stock import check_line

PRICE = Decimal("14.50")
OTHER_PRICE = Decimal("14.51")


def a_line(**changes):
    """A row that RESERVE returns."""
    return SimpleNamespace(**{"id": 7, "quantity": 2, "price": PRICE, "is_active": True, "available": 2} | changes)


@pytest.mark.parametrize("expected_price", (PRICE, Decimal("14.5"), None))
def test_a_line_within_the_stock_can_be_reserved(expected_price):
    check_line(a_line(), expected_price)


def test_a_line_beyond_the_stock_is_refused_with_what_is_available():
    with pytest.raises(InsufficientStock) as refusal:
        check_line(a_line(quantity=3), PRICE)

    assert (refusal.value.product_id, refusal.value.requested, refusal.value.available) == (7, 3, 2)


def test_a_line_at_another_price_is_refused_with_both_prices():
    with pytest.raises(PriceChanged) as refusal:
        check_line(a_line(), OTHER_PRICE)

    assert (refusal.value.given, refusal.value.current) == (OTHER_PRICE, PRICE)


@pytest.mark.parametrize("is_active", (False, None), ids=("inactive", "unknown"))
def test_a_product_that_is_not_for_sale_is_refused(is_active):
    with pytest.raises(ProductNotFound):
        check_line(a_line(is_active=is_active, available=None), OTHER_PRICE)


def test_a_changed_price_is_reported_before_a_lack_of_stock():
    with pytest.raises(PriceChanged):
        check_line(a_line(quantity=3), OTHER_PRICE)
