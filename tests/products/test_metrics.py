from services.products import Products
from tests.factories import a_product
from tests.infrastructure.metrics import Watched
from tests.infrastructure.waiting import wait_for


def test_a_stock_that_is_not_the_sum_of_its_ledger_is_told(own_shop):
    watched = Watched(own_shop.run(Products))
    product = own_shop.rpc.products.create_product(**a_product(stock_quantity=3))
    wait_for(lambda: watched.value("forage_stock_mismatches") == 0)

    own_shop.sql("products", "UPDATE products SET stock_quantity = 4 WHERE id = %s", product["id"])

    # One that has not asked yet: it is not asked for often.
    watched = Watched(own_shop.run(Products))
    wait_for(lambda: watched.value("forage_stock_mismatches") == 1)
