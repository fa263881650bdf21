"""Clashing names: the migration keeps them, and ops.normalize_names renames them."""

import os
import subprocess
import sys
import unicodedata

import pytest
from alembic.config import main as alembic
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from dev.settings import ROOT

PRODUCTS = "INSERT INTO products (name, category, price, stock_quantity, sku) VALUES (:text, :text, 1, 1, :sku)"
CREME = unicodedata.normalize("NFD", "Crème")


class Names:
    """A service's database, first as a release before 0.1.0 left it, then migrated."""

    def __init__(self, service, uri, monkeypatch):
        self.service, self.uri = service, uri
        self.engine = create_engine(uri, poolclass=NullPool)
        monkeypatch.setenv(f"{service.upper()}_DB_URI", uri)
        monkeypatch.chdir(ROOT)

    def migrate(self, *command):
        alembic(["-c", str(ROOT / "alembic.ini"), "-n", self.service, *command])

    def sql(self, statement, **values):
        with self.engine.begin() as connection:
            result = connection.execute(text(statement), values)
            return [tuple(row) for row in result] if result.returns_rows else None

    def add_users(self, *names):
        for name in names:
            self.sql("INSERT INTO users (email, username) VALUES (gen_random_uuid()::text, :name)", name=name)

    def users(self):
        return self.sql("SELECT username, username_key FROM users ORDER BY id")

    def add_products(self, *skus):
        for sku in skus:
            self.sql(PRODUCTS, text=CREME, sku=sku)

    def products(self):
        return self.sql("SELECT sku, sku_key, version FROM products ORDER BY id")

    def normalize(self, *options):
        environment = {**os.environ, f"{self.service.upper()}_DB_URI": self.uri}
        command = [sys.executable, "-m", "ops.normalize_names", *options]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def names(database, monkeypatch):
    """`names("users", "0004")`: a database of users at revision 0004."""

    def names(service, revision):
        names = Names(service, database("empty"), monkeypatch)
        names.migrate("upgrade", revision)
        return names

    return names


def test_the_migration_gives_the_key_to_the_oldest_of_clashing_names(names):
    users = names("users", "0004")
    users.add_users("Fish", "ﬁsh", "Straße", "admin", "STRASSE", "admin\u200b")

    users.migrate("upgrade", "head")

    assert users.users() == [
        ("Fish", "fish"),
        ("ﬁsh", None),
        ("Straße", "strasse"),
        ("admin", "admin"),
        ("STRASSE", None),
        ("admin\u200b", None),
    ]


def test_an_interrupted_migration_of_names_is_finished_by_the_next(names):
    users = names("users", "0004")
    users.add_users("Ada", "Bo")
    users.migrate("upgrade", "head")
    users.sql("UPDATE alembic_version SET version_num = '0004'")
    users.sql("UPDATE users SET username_key = NULL WHERE username = 'Bo'")

    users.migrate("upgrade", "head")

    assert users.users() == [("Ada", "ada"), ("Bo", "bo")]


def test_names_of_several_batches_are_migrated(names):
    users = names("users", "0004")
    users.sql("INSERT INTO users (email, username) SELECT n::text, 'Ada ' || n FROM generate_series(1, 1200) n")
    users.add_users("ＡＤＡ 1")

    users.migrate("upgrade", "head")

    assert users.sql("SELECT count(*) FROM users WHERE username_key IS NULL") == [(1,)]


def test_the_command_lists_the_clashes_and_renames_all_but_the_oldest(names):
    users = names("users", "0004")
    users.add_users("Fish", "ﬁsh", "FISH\u200b", "ﬁsh-2")
    users.migrate("upgrade", "head")
    before = users.users()

    listed = users.normalize()

    assert "users 2: 'ﬁsh' becomes 'fish-2-2', as 1 has 'Fish'" in listed
    assert "users: 2 to rename" in listed
    assert users.users() == before

    assert "users: 2 renamed" in users.normalize("--apply")
    assert users.users() == [
        ("Fish", "fish"),
        ("fish-2-2", "fish-2-2"),
        ("FISH-3", "fish-3"),
        ("ﬁsh-2", "fish-2"),
    ]
    assert "users: 0 renamed" in users.normalize("--apply")


def test_the_command_repairs_keys_that_do_not_match_their_names(names):
    users = names("users", "head")
    users.add_users("Ada", "Bo", "ﬁsh", "Cy")
    users.sql("UPDATE users SET username_key = lower(username) WHERE username IN ('Ada', 'Bo')")
    # A release before 0.1.0 let two accounts swap names, and a new one take a name that had a key.
    users.sql("UPDATE users SET username = 'Somebody' WHERE username = 'Ada'")
    users.sql("UPDATE users SET username = 'Ada' WHERE username = 'Bo'")
    users.sql("UPDATE users SET username = 'Bo' WHERE username = 'Somebody'")
    users.sql("UPDATE users SET username = 'ｃy', username_key = 'cy' WHERE username = 'ﬁsh'")

    users.normalize("--apply")

    assert users.users() == [("Bo", "bo"), ("Ada", "ada"), ("ｃy", "cy"), ("Cy-4", "cy-4")]


def test_the_oldest_keeps_its_name_even_if_a_younger_one_has_the_key(names):
    users = names("users", "head")
    users.add_users("ﬁsh", "Fish")
    users.sql("UPDATE users SET username_key = 'fish' WHERE username = 'Fish'")

    users.normalize("--apply")

    assert users.users() == [("ﬁsh", "fish"), ("Fish-2", "fish-2")]


def test_clashing_skus_are_renamed_as_an_edit_of_the_product(names):
    products = names("products", "0001")
    products.add_products("CREME-\u00c9", "CREME-E\u0301", "ＴＶ", "Tv")
    products.migrate("upgrade", "head")
    migrated = products.products()

    products.normalize("--apply")

    assert migrated == [
        ("CREME-\u00c9", "CREME-\u00c9", 1),
        ("CREME-E\u0301", None, 1),
        ("ＴＶ", "TV", 1),
        ("Tv", None, 1),
    ]
    assert products.products() == [
        ("CREME-\u00c9", "CREME-\u00c9", 1),
        ("CREME-\u00c9-2", "CREME-\u00c9-2", 2),
        ("ＴＶ", "TV", 1),
        ("TV-4", "TV-4", 2),
    ]


def test_a_search_finds_a_product_by_its_new_sku(names):
    products = names("products", "0001")
    products.add_products("ＴＶ", "Tv")
    products.migrate("upgrade", "head")

    products.normalize("--apply")

    found = "search_pieces @> '{tv-,v-2}' AND search_text LIKE '%tv-2%' AND search_version = version"
    assert products.sql(f"SELECT sku FROM products WHERE {found}") == [("TV-2",)]


def test_the_migration_normalizes_names_and_categories(names):
    products = names("products", "0001")
    products.add_products("A1")

    products.migrate("upgrade", "head")

    assert products.sql("SELECT name, category FROM products") == [("Crème", "Crème")]


def test_the_migration_fills_the_search_columns(names):
    products = names("products", "0001")
    products.sql(
        "INSERT INTO products (name, price, stock_quantity, sku) "
        "SELECT :name, 1, 1, n::text FROM generate_series(1, 1200) n",
        name=CREME,
    )

    products.migrate("upgrade", "head")

    found = "search_pieces @> '{cre,rem,eme}' AND search_text LIKE '%creme%' AND search_version = version"
    assert products.sql(f"SELECT count(*) FROM products WHERE {found}") == [(1200,)]


@pytest.mark.server
def test_without_a_database_the_command_reports_what_to_set():
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_DB_URI")}

    done = subprocess.run(
        [sys.executable, "-m", "ops.normalize_names"], cwd=ROOT, env=environment, capture_output=True, text=True
    )

    assert (done.returncode, "USERS_DB_URI is not set" in done.stderr) == (1, True)
