import logging

import jwt
import pytest

from tests.infrastructure.leaks import Leaks

PASSWORD = 'boletus "badius"'


@pytest.fixture
def leaks():
    """Its own instance, since the session's must not find the secrets that these tests log."""
    leaks = Leaks()
    leaks.add(PASSWORD)
    return leaks


@pytest.mark.parametrize("spelling", (PASSWORD, 'boletus \\"badius\\"', "boletus%20%22badius%22"))
def test_a_secret_is_found_in_every_spelling(leaks, tmp_path, spelling):
    (tmp_path / "orders.txt").write_text(spelling)
    assert leaks.found(tmp_path) == set()

    log = tmp_path / "deep" / "orders.log"
    log.parent.mkdir()
    log.write_text(f"a line\nlogged in with {spelling}!\n")

    assert leaks.found(tmp_path) == {(str(log), f"logged in with {spelling}!")}
    log.unlink()


def test_a_token_is_found_by_its_form(leaks, tmp_path):
    token = jwt.encode({"sub": "1", "role": "admin"}, "s" * 32)
    log = tmp_path / "gateway.log"
    log.write_text(f"Authorization: Bearer {token}")

    assert leaks.found(tmp_path) == {(str(log), f"Authorization: Bearer {token}")}
    log.unlink()


def test_only_lines_of_processes_count_in_the_log_of_make_run(leaks, tmp_path):
    log = tmp_path / "run.log"
    log.write_text(f"  accounts   ada, bo, all with {PASSWORD}\n")
    assert leaks.found(tmp_path) == set()

    log.write_text(f"users         | {PASSWORD}\n")

    assert leaks.found(tmp_path) == {(str(log), f"users         | {PASSWORD}")}
    log.unlink()


def test_secrets_are_recognised_by_their_names_at_any_depth():
    leaks = Leaks()

    leaks.note({"email": "ada@forage.example", "items": [{"refresh_token": "0123456789"}], "password": "wrong"})

    assert leaks.secrets == {"0123456789"}


def test_a_string_of_the_source_code_is_not_a_secret(leaks):
    leaks.note({"password": "Bad Request", "token": "Bad Requests"})

    assert leaks.secrets == {PASSWORD, "Bad Requests"}


def test_the_log_of_this_process_is_searched(monkeypatch):
    leaks = Leaks()
    leaks.watch(monkeypatch)
    leaks.add("a secret of this test")

    logging.getLogger("forage").warning("with %s", "a word", extra={"fields": {"token": "a secret of this test"}})

    leaks.end()
    [(source, line)] = leaks.found()
    assert source == "the log of this process"
    assert "a secret of this test" in line
