from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from contracts.products import ProductRequest
from contracts.types import load

ROOT = Path(__file__).parents[2]
CATALOGUE = yaml.safe_load((ROOT / "ops" / "catalogue.yaml").read_text())
PUBLIC = ROOT / "frontend" / "public"
# Elements that draw: no scripts, texts or external content.
DRAWING = {"svg", "g", "defs", "use", "clipPath", "pattern", "path", "rect", "circle", "ellipse"}


@pytest.mark.parametrize("product", CATALOGUE, ids=lambda product: product["sku"])
def test_a_seeded_product_is_valid_and_unchanged_by_normalization(product):
    taken = load(ProductRequest(), product)

    # The schema converts it to upper case: `seed.py` would not find a lower-case SKU, and create it each time.
    assert taken["sku"] == product["sku"]
    assert taken["description"] and taken["category"]


def test_no_two_seeded_products_share_a_sku_or_a_name():
    assert len({product["sku"] for product in CATALOGUE}) == len(CATALOGUE)
    assert len({product["name"] for product in CATALOGUE}) == len(CATALOGUE)


def test_the_seeded_catalogue_has_every_kind_of_product():
    assert len(CATALOGUE) >= 30
    assert len({product["category"] for product in CATALOGUE}) >= 5
    assert any(product["stock_quantity"] == 0 for product in CATALOGUE)
    assert any(0 < product["stock_quantity"] <= 5 for product in CATALOGUE)


@pytest.mark.parametrize("product", CATALOGUE, ids=lambda product: product["sku"])
def test_a_seeded_product_has_a_picture_of_its_own(product):
    assert product["image_url"] == f"/pictures/{product['sku'].lower()}.svg"
    assert (PUBLIC / product["image_url"].lstrip("/")).is_file()


@pytest.mark.parametrize("picture", sorted(PUBLIC.glob("pictures/*.svg")), ids=lambda picture: picture.stem)
def test_a_picture_is_a_small_square_svg_without_external_references(picture):
    root = ElementTree.fromstring(picture.read_bytes())

    elements = list(root.iter())
    attributes = [(name.rpartition("}")[2], value) for element in elements for name, value in element.items()]

    assert (root.get("width"), root.get("height"), root.get("viewBox")) == ("400", "400", "0 0 400 400")
    assert {element.tag.removeprefix("{http://www.w3.org/2000/svg}") for element in elements} <= DRAWING
    assert not any(element.text and element.text.strip() for element in elements)
    assert not any(name.startswith("on") or name == "style" for name, _ in attributes)
    assert all(value.startswith("#") for name, value in attributes if name == "href")
    assert all("url(" not in value or value.startswith("url(#") for _, value in attributes)
    assert picture.stat().st_size < 12_000
