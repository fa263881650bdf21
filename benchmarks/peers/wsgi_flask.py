"""Flask on eventlet's stock WSGI server: `python wsgi_flask.py PORT`."""

import sys

import eventlet
import eventlet.wsgi

eventlet.monkey_patch()

from flask import Flask  # noqa: E402

PRODUCT = {
    "id": 1,
    "name": "Chanterelle grow kit",
    "description": "Spawn, substrate and a sheet of advice.",
    "price": "24.90",
    "stock_quantity": 120,
    "sku": "KIT-CHANTERELLE",
    "category": "Grow kits",
    "image_url": "/products/chanterelle.svg",
    "is_active": True,
    "created_at": "2026-01-01T00:00:00Z",
    "updated_at": "2026-01-01T00:00:00Z",
}
app = Flask(__name__)


@app.get("/products/<int:product_id>")
def get_product(product_id):
    return PRODUCT


if __name__ == "__main__":
    eventlet.wsgi.server(eventlet.listen(("127.0.0.1", int(sys.argv[1]))), app)
