from uuid import uuid4

import pytest

from gateway.cache import TTL_SECONDS
from nameko_reliable.testing.waiting import wait_for

from .conftest import Client, problem

FIELDS = {
    "id",
    "name",
    "description",
    "price",
    "stock_quantity",
    "sku",
    "category",
    "image_url",
    "is_active",
    "created_at",
    "updated_at",
}


@pytest.fixture
def category():
    """A category without products."""
    return f"category {uuid4().hex}"


def replacement(product, **changes):
    kept = {name: product[name] for name in ("name", "description", "price", "sku", "category", "image_url")}
    return kept | changes


def test_a_product_added_by_an_admin_is_public(admin, anonymous):
    product = {"name": "Cep 🍄", "price": "8.5", "stock_quantity": 3, "sku": f"cep-{uuid4().hex}", "category": "Fresh"}

    created = admin.post("/products", product)
    seen = anonymous.get(created.headers["Location"])

    assert created.status_code == 201
    assert created.headers["Cache-Control"] == "no-store"
    assert created.headers["Location"] == f"/products/{created.json()['id']}"
    assert created.json().keys() == FIELDS
    assert seen.json() == created.json()
    assert seen.json()["price"] == "8.50"
    assert seen.json()["sku"] == product["sku"].upper()
    assert "🍄".encode() in seen.content


def test_the_catalogue_is_paged_filtered_and_sorted(anonymous, new_product, category):
    for price, name in (("3.00", "Blewit"), ("1.00", "Cep"), ("2.00", "Deceiver")):
        new_product(price=price, name=name, category=category)

    page = anonymous.get("/products", params={"category": category, "sort_by": "price", "limit": 2, "offset": 1}).json()
    found = anonymous.get("/products", params={"category": category, "name": "LEWI"}).json()
    described = new_product(name="Morels", description="Crème de la crème", category=category)
    creamy = anonymous.get("/products", params={"category": category, "name": "creme mor"}).json()

    assert page.keys() == {"items", "total", "limit", "offset"}
    assert [product["price"] for product in page["items"]] == ["2.00", "3.00"]
    assert (page["total"], page["limit"], page["offset"]) == (3, 2, 1)
    assert page["items"][0].keys() == FIELDS
    assert [product["name"] for product in found["items"]] == ["Blewit"]
    assert creamy["items"] == [described]


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=101",
        "limit=x",
        "limit=1.5",
        "limit=99999999999999999999",
        "limit=",
        "offset=-1",
        "sort_by=stock_quantity",
        "is_active=maybe",
        "is_active=0",
        "name=a%00b",
        "category=a%0ab",
        "colour=red",
        "limit=1&limit=2",
        f"name={'x' * 201}",
    ],
)
def test_a_query_out_of_bounds_is_refused_by_name(anonymous, query):
    answer = anonymous.get(f"/products?{query}")

    assert answer.status_code == 422
    assert list(problem(answer)["errors"]) == [query.split("=")[0]]


def test_categories_are_counted(anonymous, new_product, category):
    new_product(category=category)
    new_product(category=category)
    new_product(category=None)

    categories = anonymous.get("/products/categories").json()

    assert {"category": category, "count": 2} in categories
    assert all(entry["category"] for entry in categories)


def test_an_inactive_product_is_shown_only_to_admins(admin, anonymous, customer, new_product, category):
    product = new_product(category=category)

    deleted = admin.delete(f"/products/{product['id']}")

    assert (deleted.status_code, deleted.content) == (204, b"")
    for client in (anonymous, customer):
        gone = client.get(f"/products/{product['id']}")
        assert gone.status_code == 404
        assert problem(gone)["type"] == "product-not-found"
    assert admin.get(f"/products/{product['id']}").json()["is_active"] is False
    assert anonymous.get("/products", params={"category": category}).json()["items"] == []
    inactive = admin.get("/products", params={"category": category, "is_active": "false"}).json()
    assert [entry["id"] for entry in inactive["items"]] == [product["id"]]


def test_a_deleted_product_can_be_made_active_again(admin, anonymous, new_product):
    product = new_product()
    admin.delete(f"/products/{product['id']}")

    admin.patch(f"/products/{product['id']}", {"is_active": True})

    assert anonymous.get(f"/products/{product['id']}").status_code == 200


def test_put_replaces_all_fields_except_the_stock(admin, new_product):
    product = new_product(description="Golden", stock_quantity=7)

    replaced = admin.put(f"/products/{product['id']}", replacement(product, name="Girolle", description=None))

    assert replaced.status_code == 200
    assert (replaced.json()["name"], replaced.json()["description"]) == ("Girolle", None)
    assert replaced.json()["stock_quantity"] == 7


def test_patch_changes_only_the_given_fields(admin, new_product):
    product = new_product(description="Golden")

    changed = admin.patch(f"/products/{product['id']}", {"price": "31.00"})

    assert changed.json() == product | {"price": "31.00", "updated_at": changed.json()["updated_at"]}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "x" * 201),
        ("name", None),
        ("description", "x" * 10_001),
        ("price", 29.99),
        ("price", "-1"),
        ("price", "1.999"),
        ("price", "NaN"),
        ("price", "1e400"),
        ("price", "99999999999.00"),
        ("stock_quantity", -1),
        ("stock_quantity", 1.5),
        ("stock_quantity", "3"),
        ("stock_quantity", True),
        ("stock_quantity", 2**31),
        ("sku", ""),
        ("sku", "x" * 65),
        ("category", "x" * 101),
        ("category", ["Fresh"]),
        ("image_url", "javascript:alert(1)"),
        ("image_url", "http://shop.example/a.png"),
        ("image_url", "//evil.example/a.png"),
        ("image_url", "x" * 501),
        ("name", "a\x00b"),
        ("name", {"en": "Cep"}),
        ("version", 3),
        ("id", 3),
    ],
)
def test_a_product_out_of_bounds_is_refused_by_field(admin, field, value):
    product = {"name": "Cep", "price": "8.50", "stock_quantity": 3, "sku": f"CEP-{uuid4().hex[:8]}"}

    answer = admin.post("/products", product | {field: value})

    assert answer.status_code == 422
    assert list(problem(answer)["errors"]) == [field]


@pytest.mark.parametrize("fields", ({"name": "TV"}, {"name": "米酒"}, {"price": "0"}, {"description": "x" * 10_000}))
def test_values_of_real_catalogues_are_accepted(admin, fields):
    product = {"name": "Cep", "price": "8.50", "stock_quantity": 3} | fields

    created = admin.post("/products", product)

    assert created.status_code == 201
    assert created.json() | {"price": product["price"]} == created.json() | product | {"price": product["price"]}
    assert created.json()["sku"] == f"P-{created.json()['id']}"


def test_an_edit_without_a_sku_keeps_it_and_a_null_sku_is_replaced_by_a_generated_one(admin, new_product):
    product = new_product()
    path, whole = f"/products/{product['id']}", {"name": "Cep", "price": "8.50"}

    kept = [admin.put(path, whole), admin.patch(path, {"name": "Porcini"})]
    made = [admin.put(path, whole | {"sku": None}), admin.patch(path, {"sku": None})]

    assert [answer.json()["sku"] for answer in kept] == [product["sku"]] * 2
    assert [answer.json()["sku"] for answer in made] == [f"P-{product['id']}"] * 2


def test_a_product_with_price_zero_can_be_ordered(admin, customer, new_product):
    gift = new_product(price="0.00")
    line = {"product_id": gift["id"], "quantity": 2, "unit_price": "0.00"}

    order = customer.post("/orders", {"items": [line]})

    assert order.status_code == 201
    assert (order.json()["total_amount"], order.json()["items"][0]["subtotal"]) == ("0.00", "0.00")
    steps = [admin.patch(f"/orders/{order.json()['id']}/status", {"status": "confirmed"}).json()["status"]]
    assert steps == ["confirmed"]


@pytest.mark.parametrize("is_active", (True, False))
def test_the_refusal_of_a_taken_sku_names_the_other_product(admin, new_product, is_active):
    holder, other = new_product(), new_product()
    if not is_active:
        admin.delete(f"/products/{holder['id']}")
    body = {"name": "Cep", "price": "1.00", "stock_quantity": 1, "sku": holder["sku"]}

    refusals = [
        admin.post("/products", body),
        admin.put(f"/products/{other['id']}", body),
        admin.patch(f"/products/{other['id']}", {"sku": holder["sku"]}),
    ]

    for refusal in refusals:
        assert refusal.status_code == 409
        assert (problem(refusal)["type"], problem(refusal)["field"]) == ("taken", "sku")
        assert problem(refusal)["product"] == {"id": holder["id"], "name": holder["name"], "is_active": is_active}
    assert admin.get(f"/products/{other['id']}").json() == other


def test_a_taken_sku_is_refused_in_any_case(admin, new_product):
    product = new_product()

    refusal = admin.post(
        "/products", {"name": "Cep", "price": "1.00", "stock_quantity": 1, "sku": product["sku"].lower()}
    )

    assert refusal.status_code == 409
    assert (problem(refusal)["type"], problem(refusal)["field"]) == ("taken", "sku")


def test_the_stock_is_set_or_changed_by_a_delta_and_never_below_zero(admin, new_product):
    product = new_product(stock_quantity=5)
    stock = f"/products/{product['id']}/stock"

    assert admin.patch(stock, {"stock_quantity": 8}).json()["stock_quantity"] == 8
    assert admin.patch(stock, {"delta": -3}).json()["stock_quantity"] == 5
    refusal = admin.patch(stock, {"delta": -6})

    assert refusal.status_code == 409
    assert problem(refusal)["type"] == "insufficient-stock"
    assert problem(refusal)["available"] == 5


@pytest.mark.parametrize(
    "body", [{}, {"stock_quantity": 1, "delta": 1}, {"delta": "1"}, {"stock_quantity": -1}, [], None, 3]
)
def test_a_change_of_stock_is_one_number(admin, new_product, body):
    answer = admin.request("PATCH", f"/products/{new_product()['id']}/stock", json=body)

    assert answer.status_code in (400, 415, 422)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_an_unknown_product_cannot_be_edited(admin, method):
    product = {"name": "Cep", "price": "8.50", "sku": "CEP-404"}

    answer = admin.request(method, "/products/987654321", json=None if method == "DELETE" else product)

    assert answer.status_code == 404
    assert problem(answer)["product_id"] == 987654321


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
@pytest.mark.parametrize("header", ["{}", "W/{}", '"999-0", {}', "*"])
def test_an_edit_with_a_current_if_match_succeeds(admin, new_product, method, header):
    product = new_product()
    etag = admin.get(f"/products/{product['id']}").headers["ETag"]

    answer = admin.request(
        method, f"/products/{product['id']}", json=replacement(product), headers={"If-Match": header.format(etag)}
    )

    assert answer.status_code == 200
    assert answer.headers["ETag"] == admin.get(f"/products/{product['id']}").headers["ETag"] != etag


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
@pytest.mark.parametrize("header", ["{}", "W/{}", '"998-0", {}', '"none-of-ours"', '"99999999999999999999-0"', '""'])
def test_a_stale_if_match_is_refused(admin, new_product, method, header):
    product = new_product()
    etag = admin.get(f"/products/{product['id']}").headers["ETag"]
    admin.patch(f"/products/{product['id']}", {"name": "Girolle"})

    refusal = admin.request(
        method, f"/products/{product['id']}", json=replacement(product), headers={"If-Match": header.format(etag)}
    )

    assert refusal.status_code == 412
    assert problem(refusal)["type"] == "stale-version"
    assert admin.get(f"/products/{product['id']}").json()["name"] == "Girolle"


def test_a_sale_does_not_make_an_edit_stale(admin, customer, new_product):
    product = new_product()
    etag = admin.get(f"/products/{product['id']}").headers["ETag"]
    customer.post("/orders", {"items": [{"product_id": product["id"], "quantity": 1}]})

    answer = admin.patch(f"/products/{product['id']}", {"name": "Girolle"}, headers={"If-Match": etag})

    assert answer.status_code == 200
    assert admin.get(f"/products/{product['id']}").headers["ETag"] != etag


@pytest.mark.parametrize("header", ["", "3", '"3', '"3" "4"', "**", "W/3"])
def test_a_broken_if_match_is_malformed(admin, new_product, header):
    answer = admin.patch(f"/products/{new_product()['id']}", {"name": "Girolle"}, headers={"If-Match": header})

    assert answer.status_code == 400


@pytest.mark.parametrize("path", ["/products", "/products/categories", "/products/{id}"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_matching_if_none_match_gets_304(anonymous, customer, admin, new_product, path, method):
    path = path.format(**new_product())
    fresh = anonymous.get(path)

    assert fresh.headers["Cache-Control"] == "no-cache"
    for client in (anonymous, customer, admin):
        for header in (fresh.headers["ETag"], f'"old", W/{fresh.headers["ETag"]}', "*"):
            answer = client.request(method, path, headers={"If-None-Match": header})
            assert (answer.status_code, answer.content) == (304, b""), header
            assert answer.headers["ETag"] == fresh.headers["ETag"]
            assert answer.headers["Cache-Control"] == "no-cache"
        assert client.request(method, path, headers={"If-None-Match": '"old"'}).status_code == 200


def test_head_has_the_headers_of_get(anonymous, new_product):
    path = f"/products/{new_product()['id']}"
    for _ in ("filled", "cached"):
        head = anonymous.request("HEAD", path)
        get = anonymous.get(path)

        assert head.content == b""
        for name in ("Content-Length", "Content-Type", "ETag", "Cache-Control"):
            assert head.headers[name] == get.headers[name]


def test_reads_after_an_edit_at_the_same_gateway_are_never_stale(admin, anonymous, new_product, category):
    product = new_product(category=category)
    for number in range(30):
        name = f"Edit {number}"
        admin.patch(f"/products/{product['id']}", {"name": name})

        assert anonymous.get(f"/products/{product['id']}").json()["name"] == name
        assert anonymous.get("/products", params={"category": category}).json()["items"][0]["name"] == name


def test_an_order_reduces_the_shown_stock_at_once(anonymous, customer, new_product):
    product = new_product(stock_quantity=10)
    path = f"/products/{product['id']}"
    for left in (9, 8, 7):
        anonymous.get(path)
        customer.post("/orders", {"items": [{"product_id": product["id"], "quantity": 1}]})

        assert anonymous.get(path).json()["stock_quantity"] == left


def test_a_change_made_elsewhere_reaches_the_cache_by_its_event(shop, anonymous, new_product):
    product = new_product(stock_quantity=10)
    path = f"/products/{product['id']}"
    anonymous.get(path)

    shop.rpc.products.set_stock(product_id=product["id"], stock_quantity=3)

    wait_for(lambda: anonymous.get(path).json()["stock_quantity"] == 3, seconds=TTL_SECONDS - 1)


def test_a_cached_answer_has_the_content_and_headers_of_the_first(shop, anonymous, new_product):
    path = f"/products/{new_product()['id']}"
    filled = anonymous.get(path)

    cached = anonymous.get(path)

    assert cached.content == filled.content
    assert cached.headers.keys() == filled.headers.keys()
    assert cached.headers["X-Request-ID"] != filled.headers["X-Request-ID"]


def test_an_admins_reads_bypass_the_cache(shop, admin, new_product):
    product = new_product()
    Client(shop.url).get(f"/products/{product['id']}")

    assert admin.get(f"/products/{product['id']}", headers={"If-None-Match": '"old"'}).status_code == 200


@pytest.mark.parametrize(
    "path", ["/products/0", f"/products/{2**63}", f"/products/{'9' * 400}", "/products/01", "/products/-1"]
)
def test_an_impossible_id_is_not_found(anonymous, path):
    assert problem(anonymous.get(path))["status"] == 404


@pytest.mark.parametrize("query", ["limit=2", "limit=2&offset=1"])
def test_a_query_encoded_in_the_path_is_not_answered_from_the_cache(anonymous, new_product, query):
    new_product()
    assert anonymous.get(f"/products?{query}").status_code == 200

    answer = anonymous.get(f"/products%3F{query}")

    assert (answer.status_code, answer.json()["type"]) == (404, "not-found")


def test_a_percent_encoded_path_shows_an_edit_at_once(anonymous, admin, new_product):
    product = new_product()
    paths = [f"/products/{product['id']}", "/products/" + "".join(f"%{ord(digit):x}" for digit in str(product["id"]))]
    assert [anonymous.get(path).json()["price"] for path in paths] == ["29.99", "29.99"]

    admin.patch(paths[0], {"price": "31.00"})

    assert [anonymous.get(path).json()["price"] for path in paths] == ["31.00", "31.00"]
