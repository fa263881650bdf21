"""What PostgreSQL reads for a page of a long catalogue."""

import pytest

from contracts.products import PRODUCT_SORT_KEYS, ProductQuery
from contracts.types import load
from services.products_catalogue import read_products
from services.products_search import search_columns
from tests.infrastructure.plans import explaining, filled_database

CATALOGUE = """
    INSERT INTO products
        (name, description, price, stock_quantity, sku, category, search_text, search_pieces, search_version)
    SELECT 'Product ' || n, repeat('Dried. ', 20), n %% 100, 1, 'SKU-' || n, 'Category ' || n %% 20,
        %(search_text)s, %(search_pieces)s, 1
    FROM generate_series(1, 10000) AS n
"""


@pytest.fixture
def connection(database):
    with filled_database(
        database("products"), CATALOGUE, search_columns("Dried porcini, in a paper bag")
    ) as connection:
        yield connection


def plan_of(connection, prepared=True, **query):
    plan, _ = read_products(explaining(connection, prepared), load(ProductQuery(), query))
    return plan


@pytest.mark.parametrize("sort_by", PRODUCT_SORT_KEYS)
def test_of_the_products_before_a_page_only_an_index_is_read(connection, sort_by):
    plan = plan_of(connection, sort_by=sort_by, page=500)

    backward = " Backward" if sort_by.startswith("-") else ""
    index = f"ix_products_active_{sort_by.removeprefix('-')}"
    assert f"Index Only Scan{backward} using {index} on products" in plan, plan
    assert "Index Scan using products_pkey on products" in plan and "Seq Scan" not in plan, plan


@pytest.mark.parametrize("prepared", (True, False))
def test_a_word_that_all_products_have_is_searched_in_its_index(connection, prepared):
    plan = plan_of(connection, prepared, name="dried porcini")

    assert "Bitmap Index Scan on ix_products_search_pieces" in plan and "Seq Scan" not in plan, plan
