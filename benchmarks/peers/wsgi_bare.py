"""eventlet's stock WSGI server with a bare callable: `python wsgi_bare.py PORT`."""

import sys

import eventlet
import eventlet.wsgi

eventlet.monkey_patch()

BODY = (
    b'{"id":1,"name":"Chanterelle grow kit","description":"Spawn, substrate and a sheet of advice.","price":"24.90",'
    b'"stock_quantity":120,"sku":"KIT-CHANTERELLE","category":"Grow kits","image_url":"/products/chanterelle.svg",'
    b'"is_active":true,"created_at":"2026-01-01T00:00:00Z","updated_at":"2026-01-01T00:00:00Z"}\n'
)


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(BODY)))])
    return [BODY]


if __name__ == "__main__":
    eventlet.wsgi.server(eventlet.listen(("127.0.0.1", int(sys.argv[1]))), application)
