"""The OpenAPI document, and a page that shows it. An npm package brings the page's files, so it works offline."""

from pathlib import Path
from typing import Any

from flask import Response, current_app, request
from nameko.extensions import DependencyProvider
from werkzeug.exceptions import NotFound

from gateway.api import Blueprint
from gateway.auth import public

blp = Blueprint("docs", __name__, description="This document", calls_services=False)

FOLDER = Path(__file__).resolve().parent.parent / "docs"
ASSETS = FOLDER / "node_modules" / "swagger-ui-dist"
TYPES = {
    "swagger-ui.css": "text/css; charset=utf-8",
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "favicon-32x32.png": "image/png",
}
NAME = {"in": "path", "name": "name", "required": True, "schema": {"type": "string", "enum": ["start.js", *TYPES]}}
# Relative addresses also work behind a proxy's path prefix.
PAGE = """<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <meta name="viewport" content="width=device-width, initial-scale=1">
    <title>Forage: the HTTP API</title>
    <link rel="icon" href="docs/favicon-32x32.png">
    <link rel="stylesheet" href="docs/swagger-ui.css">
    <script src="docs/swagger-ui-bundle.js" defer></script>
    <script src="docs/start.js" defer></script>
  </head>
  <body>
    <div id="api"></div>
    <noscript>This page needs JavaScript. The document itself: <a href="openapi.json">openapi.json</a></noscript>
  </body>
</html>
"""
START = """SwaggerUIBundle({ url: "openapi.json", dom_id: "#api", deepLinking: true, validatorUrl: null });
"""
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class DocsAssets(DependencyProvider):
    """The page's files, read when they are asked for. files: {name: path}."""

    def setup(self) -> None:
        self.files = {name: ASSETS / name for name in TYPES}
        if not all(path.is_file() for path in self.files.values()):
            raise SystemExit(f"The files of /docs are missing: run `npm ci` in {FOLDER}.")

    def get_dependency(self, worker_ctx: Any) -> "DocsAssets":
        return self


@blp.route("/openapi.json")
@public
@blp.response(200, {"type": "object"})
def openapi() -> Response:
    """This document."""
    return Response(current_app.extensions["api"].document, mimetype="application/json")


@blp.route("/docs")
@public
@blp.response(200, {"type": "string"}, content_type="text/html")
def page() -> Response:
    """A page to read this document and try the API."""
    request.environ["answer_headers"]["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    return Response(PAGE, mimetype="text/html")


@blp.route("/docs/<name>", parameters=[NAME])
@public
@blp.response(200, {"type": "string", "format": "binary"}, content_type="*/*")
@blp.problems(NotFound)
def asset(name: str) -> Response:
    """The page's files."""
    if name == "start.js":
        return Response(START, mimetype="text/javascript")
    if name not in TYPES:
        raise NotFound
    return Response(current_app.extensions["docs_assets"].files[name].read_bytes(), content_type=TYPES[name])
