from pathlib import Path

import pytest
import yaml

from contracts.schemas import ProductRequest, load

CATALOGUE = yaml.safe_load((Path(__file__).parents[2] / "scripts" / "catalogue.yaml").read_text())


@pytest.mark.parametrize("product", CATALOGUE, ids=lambda product: product["sku"])
def test_a_seeded_product_is_one_that_the_shop_takes_as_it_stands(product):
    taken = load(ProductRequest(), product)

    # Upper-cased by the schema: `seed.py` would not find a lower-case one again and create it each time.
    assert taken["sku"] == product["sku"]
    assert taken["description"] and taken["category"]


def test_no_two_seeded_products_share_a_sku_or_a_name():
    assert len({product["sku"] for product in CATALOGUE}) == len(CATALOGUE)
    assert len({product["name"] for product in CATALOGUE}) == len(CATALOGUE)


def test_the_seeded_shop_is_worth_browsing():
    assert len(CATALOGUE) >= 30
    assert len({product["category"] for product in CATALOGUE}) >= 5
    assert any(product["stock_quantity"] == 0 for product in CATALOGUE)
    assert any(0 < product["stock_quantity"] <= 5 for product in CATALOGUE)
