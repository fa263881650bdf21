import re

import pytest

# Every route of the API.
OPERATIONS = {
    "POST /users/register",
    "POST /users/login",
    "POST /auth/refresh",
    "POST /auth/logout",
    "GET /auth/providers",
    "GET /auth/google",
    "GET /auth/google/callback",
    "GET /users/me",
    "PATCH /users/me",
    "POST /users/me/password",
    "POST /users/me/verification",
    "GET /users/me/sessions",
    "DELETE /users/me/sessions/{session_id}",
    "POST /users/password-reset",
    "POST /users/password-reset/confirm",
    "POST /users/verify-email",
    "GET /users",
    "PATCH /users/{user_id}",
    "GET /products",
    "GET /products/categories",
    "GET /products/{product_id}",
    "POST /products",
    "PUT /products/{product_id}",
    "PATCH /products/{product_id}",
    "PATCH /products/{product_id}/stock",
    "DELETE /products/{product_id}",
    "POST /orders",
    "GET /orders",
    "GET /orders/{order_id}",
    "PATCH /orders/{order_id}/status",
    "GET /notifications",
    "GET /notifications/{notification_id}",
    "PATCH /notifications/{notification_id}",
    "POST /notifications/retry/{notification_id}",
    "GET /admin/summary",
    "GET /admin/parked",
    "POST /admin/parked/{service}/{message_id}/replay",
    "DELETE /admin/parked/{service}/{message_id}",
    "POST /admin/parked/replay",
    "POST /admin/parked/discard",
    "GET /health",
    "GET /livez",
    "GET /readyz",
    "GET /openapi.json",
    "GET /docs",
    "GET /docs/{name}",
}


@pytest.fixture
def document(anonymous):
    return anonymous.get("/openapi.json").json()


def operations(document):
    for path, entry in document["paths"].items():
        for method, operation in entry.items():
            if method != "parameters":
                yield f"{method.upper()} {path}", operation


def test_the_document_has_every_route(document):
    assert document["openapi"].startswith("3.")
    assert {name for name, _ in operations(document)} == OPERATIONS


def test_every_operation_names_its_access_and_its_problems(document):
    for name, operation in operations(document):
        assert operation["summary"], name
        assert "security" in operation, name
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                assert response["content"].keys() == {"application/problem+json"}, (name, status)
        if {"bearer": []} in operation["security"]:
            assert "401" in operation["responses"], name


def test_the_document_states_the_bounds_of_fields_and_parameters(document):
    product = document["components"]["schemas"]["ProductRequest"]["properties"]
    limit = next(p for p in document["paths"]["/products"]["get"]["parameters"] if p["name"] == "limit")

    assert (product["name"]["minLength"], product["name"]["maxLength"]) == (1, 200)
    assert product["price"]["type"] == "string"
    assert (limit["schema"]["minimum"], limit["schema"]["maximum"], limit["schema"]["default"]) == (1, 100, 20)


def test_every_reference_resolves(document):
    def references(value):
        if isinstance(value, dict):
            yield from [value["$ref"]] if "$ref" in value else []
            value = list(value.values())
        if isinstance(value, list):
            for item in value:
                yield from references(item)

    for reference in references(document):
        target = document
        for step in reference.removeprefix("#/").split("/"):
            target = target[step]


def test_the_docs_page_loads_only_files_of_the_gateway(anonymous):
    page = anonymous.get("/docs")
    assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)

    assert page.headers["Content-Type"].startswith("text/html")
    assert "'unsafe-inline'" not in page.headers["Content-Security-Policy"].partition("script-src")[2].split(";")[0]
    assert "<script>" not in page.text
    assert len(assets) >= 4
    for asset in assets:
        assert "//" not in asset
        answer = anonymous.get(f"/{asset}")
        assert answer.status_code == 200, asset
        assert answer.content


@pytest.mark.parametrize(
    "path", ["/docs/nothing.js", "/docs/..%2fpackage.json", "/docs/swagger-ui.js.map", "/docs/%2e%2e/x", "/docs/"]
)
def test_the_docs_page_serves_only_its_own_files(anonymous, path):
    assert anonymous.get(path).status_code == 404
