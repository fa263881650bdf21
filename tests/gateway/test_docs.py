import re

import pytest

from dev.client import gateway_app


@pytest.fixture
def document(anonymous):
    return anonymous.get("/openapi.json").json()


def operations(document):
    for path, entry in document["paths"].items():
        for method, operation in entry.items():
            if method != "parameters":
                yield f"{method.upper()} {path}", operation


def test_the_document_has_every_route(document):
    routes = {
        method + " " + re.sub("<(?:[a-z]+:)?([a-z_]+)>", r"{\1}", rule.rule)
        for rule in gateway_app().url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
        if not rule.rule.startswith("/ws/")
    }

    assert document["openapi"].startswith("3.")
    assert {name for name, _ in operations(document)} == routes
    assert len(routes) > 40


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
