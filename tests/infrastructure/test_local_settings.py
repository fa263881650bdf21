"""Which servers `make run` starts itself and which the environment gives, at the first start and later ones."""

import pytest

from dev.settings import DATABASE_URIS, LocalSettings
from nameko_reliable.testing.servers import CannotStart

GIVEN = {
    "broker": {"AMQP_URI": "amqp://shop:word@broker.example:5672/"},
    "databases": {name: f"postgresql+psycopg2://shop:word@db.example/{name.lower()}" for name in DATABASE_URIS},
    # The host of our own mail catcher with another port.
    "mail_catcher": {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": "2525"},
    "sign_in_provider": {"GOOGLE_CLIENT_ID": "mine", "GOOGLE_CLIENT_SECRET": "my secret"},
    "address": {"FRONTEND_URL": "https://shop.example"},
    "proxy": {"TRUSTED_PROXIES": "127.0.0.1,10.0.0.1"},
}


def start(environment):
    """The settings of one `make run`, once its env file is written."""
    settings = LocalSettings(environment)
    settings.write_env_file()
    return settings


def own(settings):
    return {part for part in GIVEN if getattr(settings, f"own_{part}")}


@pytest.fixture
def copy(tmp_path):
    return {"LOCAL_DIR": str(tmp_path / "local")}


def test_a_copy_without_given_servers_keeps_its_own_in_a_sourced_terminal(copy):
    first = start(copy)

    second = start({**copy, **first.process_settings()})
    third = start({**copy, **second.process_settings()})

    assert own(first) == own(second) == own(third) == set(GIVEN)
    assert first.process_settings() == second.process_settings() == third.process_settings()


@pytest.mark.parametrize("part", GIVEN)
def test_given_settings_are_kept_at_every_start_in_the_same_shell(part, copy):
    environment = {**copy, **GIVEN[part]}

    starts = [start(environment) for _ in range(3)]

    for settings in starts:
        assert own(settings) == GIVEN.keys() - {part}
        assert settings.process_settings().items() >= GIVEN[part].items()


@pytest.mark.parametrize("part", GIVEN)
def test_given_settings_are_kept_in_a_terminal_that_sourced_the_env_file(part, copy):
    first = start({**copy, **GIVEN[part]})

    second = start({**copy, **first.process_settings()})
    third = start({**copy, **second.process_settings()})

    assert own(second) == own(third) == GIVEN.keys() - {part}
    assert second.process_settings() == third.process_settings() == first.process_settings()


@pytest.mark.parametrize("part", GIVEN)
def test_a_server_that_is_no_longer_given_is_the_copys_own_again(part, copy):
    start({**copy, **GIVEN[part]})

    second = start(copy)

    assert own(second) == set(GIVEN)


@pytest.mark.parametrize("part, given", {**GIVEN, "mail_catcher": {"SMTP_HOST": "mail.example"}}.items())
def test_a_sourced_terminal_can_give_one_part_and_keeps_the_others(part, given, copy):
    first = start(copy)

    second = start({**copy, **first.process_settings(), **given})

    assert own(second) == GIVEN.keys() - {part}


def test_a_client_given_in_a_sourced_terminal_replaces_the_local_provider_by_google(copy, monkeypatch):
    sourced = start(copy).process_settings()
    monkeypatch.setenv("OIDC_ISSUER", sourced["OIDC_ISSUER"])

    second = start({**copy, **sourced, **GIVEN["sign_in_provider"]})

    for environment in (second.process_settings(), second.environment()):
        assert environment["GOOGLE_CLIENT_ID"] == "mine"
        assert "OIDC_ISSUER" not in environment and "OAUTHLIB_INSECURE_TRANSPORT" not in environment


def test_an_address_from_the_env_file_moves_with_the_port(copy):
    first = start({**copy, "FRONTEND_PORT": "8123"})

    second = start({**copy, **first.process_settings(), "FRONTEND_PORT": "8124"})

    assert second.process_settings()["FRONTEND_URL"] == "http://localhost:8124"


def test_a_single_given_database_is_refused_in_a_sourced_terminal(copy):
    sourced = start(copy).process_settings()

    with pytest.raises(CannotStart, match=f"{', '.join(DATABASE_URIS[1:])} is not set"):
        LocalSettings({**copy, **sourced, DATABASE_URIS[0]: GIVEN["databases"][DATABASE_URIS[0]]})
