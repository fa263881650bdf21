import time
import unicodedata
from uuid import uuid4

import pytest

from contracts.products import InsufficientStock, ProductChanged, ProductNotFound, StaleVersion
from contracts.types import MAX_INT, InvalidInput, Taken
from nameko_reliable.testing.waiting import wait_for
from services.products import Products
from tests.factories import a_line, a_product
from tests.shop import refusal_of


@pytest.fixture
def products(shop):
    return shop.rpc.products


@pytest.fixture
def category():
    """A category that no other test uses."""
    return f"Category {uuid4()}"


def ledger(shop, product):
    return [
        (reason, delta)
        for reason, delta in shop.sql(
            "products", "SELECT reason, delta FROM stock_movements WHERE product_id = %s ORDER BY id", product["id"]
        )
    ]


def names(page):
    return [product["name"] for product in page["items"]]


# Creating and reading


def test_a_new_product_can_be_read(products):
    fields = a_product(description="Golden.", category="Fresh", image_url="/images/chanterelles.jpg")

    product = products.create_product(**fields)

    assert {name: product[name] for name in fields} == fields
    assert (product["is_active"], product["version"], product["revision"]) == (True, 1, 1)
    assert products.get_product(product_id=product["id"]) == product


def test_a_new_products_stock_is_in_the_ledger(shop, products):
    product = products.create_product(**a_product(stock_quantity=7))

    assert ledger(shop, product) == [("edit", 7)]


def test_a_sku_is_taken_and_a_category_found_in_any_unicode_form(products, category):
    product = products.create_product(**a_product(sku=f"CR\u00c8ME-{uuid4()}", category=f"Cr\u00e8me {category}"))
    decomposed = unicodedata.normalize("NFD", product["sku"])

    with pytest.raises(Taken):
        products.create_product(**a_product(sku=decomposed))
    page = products.list_products(category=unicodedata.normalize("NFD", product["category"]))

    assert [found["id"] for found in page["items"]] == [product["id"]]


def test_a_sku_is_taken_in_any_case(products):
    product = products.create_product(**a_product())

    with pytest.raises(Taken) as refusal:
        products.create_product(**a_product(sku=product["sku"].lower()))

    assert refusal.value.field == "sku"


def test_a_product_out_of_bounds_is_refused(products):
    with pytest.raises(InvalidInput) as refusal:
        products.create_product(**a_product(price="-1", name="", colour="yellow"))

    assert set(refusal.value.errors) == {"price", "name", "colour"}


def test_a_generated_sku_avoids_a_taken_one(products):
    last = products.create_product(**a_product())["id"]
    taken = [f"P-{last + 3}", f"p-{last + 3}-2"]
    for sku in taken:
        products.create_product(**a_product(sku=sku))

    product = products.create_product(**a_product(sku=None))

    assert (product["id"], product["sku"]) == (last + 3, f"P-{last + 3}-3")
    assert products.update_product(product_id=product["id"], sku=None)["sku"] == f"P-{last + 3}-3"


@pytest.mark.parametrize("product_id", (999_999, 2**62))
def test_an_unknown_product_is_not_found(products, product_id):
    for call in (
        products.get_product.call_async(product_id=product_id),
        products.update_product.call_async(product_id=product_id, price="1"),
        products.set_stock.call_async(product_id=product_id, delta=1),
        products.delete_product.call_async(product_id=product_id),
    ):
        refusal = refusal_of(call)
        assert isinstance(refusal, ProductNotFound) and refusal.product_id == product_id


@pytest.mark.parametrize("product_id", (0, -1, "1", None, True, 2**63, 1.5, [1]))
def test_an_invalid_id_is_refused(products, product_id):
    for call in (
        products.get_product.call_async(product_id=product_id),
        products.delete_product.call_async(product_id=product_id),
    ):
        assert isinstance(refusal_of(call), InvalidInput)


# Listing


def test_products_are_listed_newest_first_in_pages(products, category):
    for name in ("Porcini", "Morels", "Chanterelles"):
        products.create_product(**a_product(name=name, category=category))

    first = products.list_products(category=category, limit=2)
    second = products.list_products(category=category, limit=2, offset=2)

    assert (names(first), names(second)) == (["Chanterelles", "Morels"], ["Porcini"])
    assert (first["total"], first["limit"], first["offset"]) == (3, 2, 0)
    assert products.list_products(category=category, offset=2**62)["items"] == []


@pytest.mark.parametrize(
    "sort_by, order",
    {
        "price": ["Porcini", "Morels", "Chanterelles"],
        "-price": ["Chanterelles", "Morels", "Porcini"],
        "name": ["Chanterelles", "Morels", "Porcini"],
        "-name": ["Porcini", "Morels", "Chanterelles"],
        "created_at": ["Porcini", "Chanterelles", "Morels"],
        "-created_at": ["Morels", "Chanterelles", "Porcini"],
    }.items(),
)
def test_a_list_can_be_sorted(products, category, sort_by, order):
    for name, price in (("Porcini", "2"), ("Chanterelles", "10"), ("Morels", "9.50")):
        products.create_product(**a_product(name=name, price=price, category=category))

    assert names(products.list_products(category=category, sort_by=sort_by)) == order


def test_products_of_one_price_have_a_stable_order_across_pages(products, category):
    made = [products.create_product(**a_product(category=category))["id"] for _ in range(6)]

    pages = [products.list_products(category=category, sort_by="price", limit=2, offset=offset) for offset in (0, 2, 4)]

    assert [product["id"] for page in pages for product in page["items"]] == made


@pytest.mark.parametrize(
    "sought, found",
    {
        "100%": ["100% Porcini"],
        "_": ["dried_morels"],
        "/": ["half/half"],
        "\\": ["back\\slash"],
        "PORCINI": ["100% Porcini"],
        "फ": [],
        "🍄": ["🍄 mix"],
        "'; --": [],
        "": ["100% Porcini", "dried_morels", "half/half", "back\\slash", "🍄 mix"],
    }.items(),
)
def test_a_search_is_literal_and_ignores_case(products, category, sought, found):
    for name in ("100% Porcini", "dried_morels", "half/half", "back\\slash", "🍄 mix"):
        products.create_product(**a_product(name=name, category=category))

    page = products.list_products(category=category, name=sought, sort_by="created_at")

    assert names(page) == found
    assert page["total"] == len(found)


def test_names_are_sorted_by_collation_and_not_by_code_point(products, category):
    for name in ("Zebra", "apple", "Äpfel", "Banana", "apple", "Apfel"):
        products.create_product(**a_product(name=name, category=category))

    page = products.list_products(category=category, sort_by="name")
    backwards = products.list_products(category=category, sort_by="-name")

    assert names(page) == ["Apfel", "Äpfel", "apple", "apple", "Banana", "Zebra"]
    assert [product["id"] for product in backwards["items"]] == [product["id"] for product in page["items"]][::-1]
    assert page["items"][2]["id"] < page["items"][3]["id"]


@pytest.mark.parametrize(
    "sought",
    (
        *("creme", "CRÈME", "cre\u0300me", "brule", "ﬁg", "fig creme", "creme  fig", "vanilla tahiti", "tahit", "cr"),
        *("米酒", "酒", "台灣米", "сыр", "ёлка", "елка", "smorrebrod", "strasse", "tv", "한국", "Crème\u200b"),
    ),
)
def test_a_search_finds_the_words_of_a_product_without_accents_and_case(products, category, sought):
    sku = f"TV-{uuid4()}"
    found = products.create_product(
        **a_product(
            name="Crème brûlée, figs",
            sku=sku,
            category=category,
            description="With vanilla\nfrom Tahiti, 台灣米酒, Сыр и Ёлка, smørrebrød, Straße, 한국어.",
        )
    )
    products.create_product(**a_product(name="Mushroom", sku=str(uuid4()), category=category, description="x"))

    page = products.list_products(category=category, name=sought)

    assert [product["id"] for product in page["items"]] == [found["id"]]
    assert page["total"] == 1
    assert products.list_products(name=f"{sku} {category} creme")["total"] == 1


@pytest.mark.parametrize("sought", ("creme vanilla", "brulee%", "cr_me", "emerc", "figs\\"))
def test_a_search_finds_only_products_with_every_word(products, category, sought):
    products.create_product(**a_product(name="Crème brûlée, figs", category=category))

    assert products.list_products(category=category, name=sought)["items"] == []


def test_a_search_finds_the_edited_texts_of_a_product(products, category):
    product = products.create_product(**a_product(name="Morels", category=category, description="Old"))

    products.update_product(product_id=product["id"], description="Black truffle")
    products.set_stock(product_id=product["id"], delta=1)

    assert products.list_products(category=category, name="truffle morels")["total"] == 1
    assert products.list_products(category=category, name="old")["total"] == 0


@pytest.mark.parametrize("query", ({"limit": 0}, {"limit": 101}, {"offset": -1}, {"sort_by": "sku"}, {"colour": "red"}))
def test_a_query_out_of_bounds_is_refused(products, query):
    with pytest.raises(InvalidInput) as refusal:
        products.list_products(**query)

    assert set(refusal.value.errors) == set(query)


def test_categories_count_only_active_products(products, category):
    for fields in ({}, {}, {"name": "Taken off"}):
        product = products.create_product(**a_product(category=category, **fields))
    products.delete_product(product_id=product["id"])
    products.create_product(**a_product())

    categories = products.list_categories()

    assert {"category": category, "count": 2} in categories
    assert all(entry["category"] for entry in categories)


# Editing


def test_an_edit_changes_only_the_given_fields(products):
    product = products.create_product(**a_product(description="Golden.", category="Fresh"))

    edited = products.update_product(product_id=product["id"], price="16")

    changed = {name for name in product if product[name] != edited[name]}
    assert changed == {"price", "version", "revision", "updated_at"}
    assert edited["price"] == "16.00"
    assert products.get_product(product_id=product["id"]) == edited


def test_a_replacement_clears_missing_fields_but_keeps_the_stock(products):
    product = products.create_product(**a_product(description="Golden.", category="Fresh", stock_quantity=7))
    fields = {"name": "Golden chanterelles", "price": "3.00", "sku": product["sku"]}

    replaced = products.replace_product(product_id=product["id"], **fields)

    assert {name: replaced[name] for name in fields} == fields
    assert (replaced["description"], replaced["category"], replaced["stock_quantity"]) == (None, None, 7)


def test_an_edit_of_the_stock_is_in_the_ledger(shop, products):
    product = products.create_product(**a_product(stock_quantity=7))

    products.update_product(product_id=product["id"], stock_quantity=3)
    products.update_product(product_id=product["id"], stock_quantity=3, price="1")

    assert ledger(shop, product) == [("edit", 7), ("edit", -4)]


def test_an_edit_to_a_taken_sku_is_refused_and_changes_nothing(products):
    product, other = (products.create_product(**a_product()) for _ in range(2))

    with pytest.raises(Taken):
        products.update_product(product_id=product["id"], sku=other["sku"], price="1")

    assert products.get_product(product_id=product["id"]) == product


def test_an_edit_of_a_stale_version_is_refused(products):
    product = products.create_product(**a_product())
    products.update_product(product_id=product["id"], version=1, price="16")

    with pytest.raises(StaleVersion) as refusal:
        products.update_product(product_id=product["id"], version=1, price="17")

    assert (refusal.value.given, refusal.value.current) == (1, 2)
    assert products.get_product(product_id=product["id"])["price"] == "16.00"


def test_one_of_many_concurrent_edits_of_a_version_is_accepted(products):
    product = products.create_product(**a_product())

    calls = [
        products.update_product.call_async(product_id=product["id"], version=1, price=str(price))
        for price in range(1, 9)
    ]

    refusals = [refusal_of(call) for call in calls]
    assert refusals.count(None) == 1
    assert sum(isinstance(refusal, StaleVersion) for refusal in refusals) == 7
    assert products.get_product(product_id=product["id"])["version"] == 2


@pytest.mark.parametrize("version", ("one", "1", 1.5, [], -1, 2**70))
def test_a_version_that_never_existed_is_refused(products, version):
    product = products.create_product(**a_product())

    refusal = refusal_of(products.update_product.call_async(product_id=product["id"], version=version, price="1"))

    assert isinstance(refusal, (StaleVersion, InvalidInput))


def test_a_sale_keeps_the_version_and_raises_the_revision(products):
    product = products.create_product(**a_product())

    products.reserve_stock(reservation_id=str(uuid4()), lines=[a_line(product)])

    sold = products.get_product(product_id=product["id"])
    assert (sold["version"], sold["revision"]) == (1, 2)


def test_customers_cannot_see_a_deleted_product_until_it_is_restored(products, category):
    product = products.create_product(**a_product(category=category))

    products.delete_product(product_id=product["id"])

    with pytest.raises(ProductNotFound):
        products.get_product(product_id=product["id"])
    assert products.list_products(category=category)["total"] == 0
    assert products.get_product(product_id=product["id"], include_inactive=True)["is_active"] is False
    assert products.list_products(category=category, is_active=False)["total"] == 1
    products.update_product(product_id=product["id"], is_active=True)
    assert products.list_products(category=category)["total"] == 1


# Stock


def test_stock_is_set_or_changed_by_a_delta(shop, products):
    product = products.create_product(**a_product(stock_quantity=7))

    assert products.set_stock(product_id=product["id"], stock_quantity=5)["stock_quantity"] == 5
    assert products.set_stock(product_id=product["id"], delta=4)["stock_quantity"] == 9
    assert products.set_stock(product_id=product["id"], delta=-9)["stock_quantity"] == 0
    assert ledger(shop, product) == [("edit", 7), ("edit", -2), ("edit", 4), ("edit", -9)]


def test_a_delta_below_zero_stock_is_refused(products):
    product = products.create_product(**a_product(stock_quantity=2))

    with pytest.raises(InsufficientStock) as refusal:
        products.set_stock(product_id=product["id"], delta=-3)

    assert (refusal.value.product_id, refusal.value.requested, refusal.value.available) == (product["id"], 3, 2)
    assert products.get_product(product_id=product["id"]) == product


@pytest.mark.parametrize("change", ({}, {"delta": 1, "stock_quantity": 1}, {"delta": MAX_INT}, {"stock_quantity": -1}))
def test_a_change_of_stock_out_of_bounds_is_refused(products, change):
    product = products.create_product(**a_product())

    with pytest.raises(InvalidInput):
        products.set_stock(product_id=product["id"], **change)


def test_concurrent_deltas_all_count(shop, products):
    product = products.create_product(**a_product(stock_quantity=5))

    calls = [products.set_stock.call_async(product_id=product["id"], delta=delta) for delta in (1, -1, 2) * 5]

    assert [refusal_of(call) for call in calls] == [None] * 15
    assert products.get_product(product_id=product["id"])["stock_quantity"] == 15
    assert sum(delta for _, delta in ledger(shop, product)) == 15


def test_the_stock_summary_lists_the_lowest_products_first(own_shop):
    own_shop.run(Products)
    products = own_shop.rpc.products
    for name, stock_quantity in [("Morel", 5), ("Truffle", 0), ("Cep", 5), ("Puffball", 6)]:
        products.create_product(**a_product(name=name, stock_quantity=stock_quantity))
    inactive = products.create_product(**a_product(stock_quantity=0))
    products.delete_product(product_id=inactive["id"])

    stock = products.summarize_stock()

    assert (stock["low_stock_threshold"], stock["low"]) == (5, 3)
    assert [product["name"] for product in stock["products"]] == ["Truffle", "Cep", "Morel"]
    lowest = stock["products"][0]
    assert products.get_product(product_id=lowest["id"]).items() > lowest.items()


def test_the_stock_summary_lists_at_most_ten_products(own_shop):
    own_shop.run(Products)
    for _ in range(11):
        own_shop.rpc.products.create_product(**a_product(stock_quantity=1))

    stock = own_shop.rpc.products.summarize_stock()

    assert (stock["low"], len(stock["products"])) == (11, 10)


# Redelivery


@pytest.mark.parametrize(
    "method, arguments",
    {
        "update_product": {"price": "16", "version": 1},
        "replace_product": {"name": "Renamed", "price": "3", "sku": None, "version": 1},
        "set_stock": {"delta": 3},
        "delete_product": {},
    }.items(),
)
def test_a_redelivered_write_has_one_effect_and_one_answer(shop, products, method, arguments):
    product = products.create_product(**a_product())
    arguments = {**arguments, "product_id": product["id"]}
    if "sku" in arguments:
        arguments["sku"] = product["sku"]

    first, second = shop.call_twice("products", method, **arguments)

    assert first == second
    assert first["revision"] == 2
    assert products.get_product(product_id=product["id"], include_inactive=True) == first


def test_a_redelivered_creation_makes_one_product(shop):
    first, second = shop.call_twice("products", "create_product", **a_product())

    assert first == second
    assert "id" in first


# Hints


@pytest.fixture
def announced(published_events):
    """`announced(product)`: the published changes of the product."""
    return lambda product: published_events.all(ProductChanged, where=lambda event: event.id == product["id"])


def test_changes_are_announced_at_intervals_and_always_the_last_one(products, announced):
    product = products.create_product(**a_product(stock_quantity=0))
    other = products.create_product(**a_product())
    began = time.monotonic()

    for _ in range(30):
        product = products.set_stock(product_id=product["id"], delta=1)
    products.reserve_stock(reservation_id=str(uuid4()), lines=[a_line(product, 4)])
    products.update_product(product_id=other["id"], price="99")

    last = (26, product["revision"] + 1)
    wait_for(lambda: [(event.stock_quantity, event.revision) for event in announced(product)][-1:] == [last])
    assert len(announced(product)) <= 2 + (time.monotonic() - began) / 0.25
    assert [event.revision for event in announced(product)] == sorted(event.revision for event in announced(product))
    wait_for(lambda: [str(event.price) for event in announced(other)][-1:] == ["99.00"])


def test_a_refused_change_is_not_announced(products, announced):
    product = products.create_product(**a_product(stock_quantity=1))
    other = products.create_product(**a_product())

    refusal_of(products.set_stock.call_async(product_id=product["id"], delta=-2))
    refusal_of(products.reserve_stock.call_async(reservation_id=str(uuid4()), lines=[a_line(product, 2)]))
    products.set_stock(product_id=other["id"], delta=1)

    wait_for(lambda: any(event.revision == 2 for event in announced(other)))
    assert {event.revision for event in announced(product)} <= {1}
