from nameko_reliable.testing.metrics import Watched
from nameko_reliable.testing.waiting import wait_for
from services.products import Products
from tests.factories import a_product


def test_a_metric_counts_products_whose_stock_differs_from_the_ledger(own_shop):
    watched = Watched(own_shop.run(Products))
    product = own_shop.rpc.products.create_product(**a_product(stock_quantity=3))
    wait_for(lambda: watched.value("forage_stock_mismatches") == 0)

    own_shop.sql("products", "UPDATE products SET stock_quantity = 4 WHERE id = %s", product["id"])

    # A new process, because the metric is queried seldom.
    watched = Watched(own_shop.run(Products))
    wait_for(lambda: watched.value("forage_stock_mismatches") == 1)
