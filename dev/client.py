"""`make client`: generates the TypeScript types of the HTTP API from the gateway's OpenAPI document.

The types are committed, so a change of the API shows in the storefront's type check. A test fails when they are out of
date.
"""

import json
import subprocess
import sys

from dev import npm
from gateway.app import create_app
from gateway.auth import AccessTokens
from gateway.cache import Cache
from gateway.limits import Limits
from gateway.live import LiveFeed
from gateway.routes.docs import DocsAssets
from nameko_reliable.testing.servers import CannotStart

TYPES = npm.FRONTEND / "src" / "api" / "schema.d.ts"
PROBLEM = {"$ref": "#/components/schemas/ProblemView"}


def gateway_app():
    """The gateway's Flask app, without a running shop."""
    config = {"FRONTEND_URL": "http://localhost:8080", "ALLOWED_ORIGINS": [], "GOOGLE_CLIENT_ID": None}
    return create_app(config, None, AccessTokens(), Cache(), LiveFeed(), Limits(), DocsAssets())


def document():
    """The OpenAPI document."""
    return json.loads(gateway_app().extensions["api"].document)


def types():
    npm.install(npm.FRONTEND, "the frontend")
    generator = npm.FRONTEND / "node_modules" / ".bin" / "openapi-typescript"
    # Its stderr goes to the terminal.
    done = subprocess.run(
        [generator], input=json.dumps(with_common_refusal()), stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def with_common_refusal():
    """The document with one default answer for all refusals, which are all problems. So the types stay readable."""
    described = document()
    for entry in described["paths"].values():
        for method, operation in entry.items():
            if method == "parameters":
                continue
            answers = operation["responses"]
            operation["responses"] = {
                **{status: without_headers(answer) for status, answer in answers.items() if status < "400"},
                "default": {"description": "a refusal", "content": {"application/problem+json": {"schema": PROBLEM}}},
            }
    return described


def without_headers(answer):
    return {name: value for name, value in answer.items() if name != "headers"}


if __name__ == "__main__":
    try:
        TYPES.write_text(types())
    except CannotStart as reason:
        sys.exit(f"forage: {reason}")
