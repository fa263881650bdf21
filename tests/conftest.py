"""Fixtures for all tests. A server is started when the first test needs it, and ends with the session."""

from contextlib import closing

import hypothesis
import pytest

from nameko_reliable.testing.databases import UrisOnDemand
from nameko_reliable.testing.events import PublishedEvents
from nameko_reliable.testing.servers import free_port
from tests.infrastructure.configuration import configuration
from tests.infrastructure.databases import Databases
from tests.infrastructure.leaks import Leaks
from tests.infrastructure.processes import Processes
from tests.infrastructure.scripted_smtp import ScriptedSmtp
from tests.infrastructure.sign_in_provider import SignInProvider
from tests.infrastructure.smtp import Smtp
from tests.shop import Shop

# The duration of an example depends on the machine.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


@pytest.fixture(scope="session", autouse=True)
def nothing_secret_is_logged(local_folder, tmp_path_factory):
    """Fails the session if a log of its tests contains a password or a token that they used."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        leaks = Leaks()
        leaks.watch(monkeypatch)
        yield leaks
        leaks.end()
    assert leaks.found(local_folder, tmp_path_factory.getbasetemp()) == set()


@pytest.fixture(scope="session")
def databases(servers):
    """The kit's `databases`, with the tables of the services' migrations."""
    return Databases(servers[0])


@pytest.fixture(scope="session")
def smtp_server(local_folder):
    smtp = Smtp(local_folder)
    yield smtp
    smtp.stop()


@pytest.fixture
def smtp(smtp_server):
    """An SMTP server without mails: `messages(to=…)`, `reject(recipient, "450 Later")`, `stop()`, `start()`."""
    smtp_server.reset()
    return smtp_server


@pytest.fixture
def scripted_smtp():
    """An SMTP server of this test that answers, waits or disconnects at each step, as the test chooses."""
    smtp = ScriptedSmtp()
    yield smtp
    smtp.stop()


@pytest.fixture(scope="session")
def sign_in_provider_server(local_folder):
    with pytest.MonkeyPatch.context() as environment:
        # It has no https, which oauthlib accepts only with this setting.
        environment.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")
        provider = SignInProvider(local_folder)
        yield provider
        provider.end()


@pytest.fixture
def sign_in_provider(sign_in_provider_server):
    """An OpenID Connect provider. A service with `**sign_in_provider.settings` over its config is its client.

    `code, state = sign_in_provider.log_in(url, email="ada@forage.example", email_verified=True)` logs a
    person in. Until the test ends, `change_claims(…)`, `send_unsigned_tokens()`, … forge its answers; `stop()` and
    `answer(TOKEN, sign_in_provider.hang)` make it fail.

    A service that several tests share is set up with `sign_in_provider_server.settings`.
    """
    sign_in_provider_server.reset()
    yield sign_in_provider_server
    sign_in_provider_server.reset()


@pytest.fixture
def config(broker, database, smtp):
    """The loaded config.yaml, with this test's own broker, databases and SMTP server."""
    return configuration(broker, UrisOnDemand(database), smtp, GATEWAY_PORT=str(free_port()))


@pytest.fixture
def published_events(shop):
    """The kit's `published_events`, for the shop that the tests of a folder share."""
    with closing(PublishedEvents(shop.broker)) as published:
        yield published


@pytest.fixture
def own_shop(config, broker):
    """A shop for one test, without running services."""
    shop = Shop(config, broker)
    yield shop
    shop.stop()


@pytest.fixture
def processes(config, tmp_path):
    """`processes.start("services.orders")` is a real `nameko run`, with `kill()`, `stop()` and `output()`."""
    processes = Processes(tmp_path, config)
    yield processes
    processes.stop()
