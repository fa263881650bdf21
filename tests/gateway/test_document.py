"""The running shop held against its own OpenAPI document, with all of schemathesis' checks.

No 5xx, no answer that the document doesn't have, nothing taken that the document refuses, and
nothing refused that it allows but for what schemathesis.toml says and why.
"""

import subprocess
import sys
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path

import pytest
import requests
import schemathesis
from schemathesis.config import SchemathesisConfig

from .documents import document

CONFIG = Path(__file__).with_name("schemathesis.toml")
FOR_CUSTOMERS = ("user", "owner", "owner or admin")

pytestmark = pytest.mark.usefixtures("failures_are_forgotten")
config = SchemathesisConfig.from_path(CONFIG)
schema = schemathesis.openapi.from_dict(document(), config=config)
# What is malformed is refused whoever sends it, so that the long list of it is for the admin alone.
config_for_customers = SchemathesisConfig.from_path(CONFIG)
config_for_customers.projects.default.phases.coverage.enabled = False
schema_for_customers = schemathesis.openapi.from_dict(document(), config=config_for_customers).include(
    lambda context: context.operation.definition.raw["x-access"] in FOR_CUSTOMERS
)


@pytest.fixture(scope="module")
def session():
    with requests.Session() as session:
        # What one answer sets must not go along with all that follow.
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        yield session


@pytest.fixture(scope="module")
def second_admin(new_customer):
    """An admin of this module's own: what is asked here may disable or rename the caller."""
    return new_customer("admin")


@pytest.fixture(scope="module", autouse=True)
def first_admin_stays_admin(shop, admin):
    """Of all accounts the one that later tests need may have been demoted or disabled."""
    yield
    shop.sql("users", "UPDATE users SET role = 'admin', is_active = true WHERE id = %s", admin.user["id"])


@pytest.fixture(scope="module")
def buyer(new_customer):
    return new_customer()


@pytest.fixture(scope="module")
def send(shop, session):
    """`send(case, client)` sends what schemathesis made up, and checks the answer."""

    def send(case, client):
        case.call_and_validate(
            base_url=shop.url,
            session=session,
            headers={"Authorization": f"Bearer {client.token}"},
            allow_redirects=False,
            timeout=15,
        )

    return send


@schema.parametrize()
def test_answers_to_an_admin_match_the_document(case, send, second_admin):
    send(case, second_admin)


@schema_for_customers.parametrize()
def test_answers_to_a_customer_match_the_document(case, send, buyer):
    send(case, buyer)


def test_sequences_of_calls_match_the_document(shop, second_admin, tmp_path):
    # Only where the document asks for a token: admins also see what was taken off the catalogue.
    config = tmp_path / "schemathesis.toml"
    config.write_text(f'{CONFIG.read_text()}\n[auth.openapi.bearer]\nbearer = "{second_admin.token}"\n')
    schemathesis = Path(sys.executable).with_name("schemathesis")
    options = ["--phases=stateful", "--max-redirects=0", "--continue-on-failure", "--no-color"]

    walks = subprocess.run(
        [schemathesis, f"--config-file={config}", "run", f"{shop.url}/openapi.json", f"--url={shop.url}", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )

    assert walks.returncode == 0, walks.stdout + walks.stderr
