"""`python -m dev.services`: it names each place where a service is missing, and finds none missing here."""

import re
import shutil

import pytest

from dev import services
from dev.settings import ROOT

PAGE = "frontend/src/components/AdminParkedBulkActions.vue"
EDITED = sorted({path for path, *_ in (*services.IN_YAML, *services.IN_TEXT, *services.COMMANDS)})


@pytest.fixture
def tree(tmp_path):
    """A copy of what the check reads."""
    for folder in ("services", "contracts", "migrations", "gateway/routes", "tests/notifications"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for service in services.SERVICES:
        (tmp_path / "tests" / service).mkdir(exist_ok=True)
        (tmp_path / "tests" / service / "test_it.py").touch()
    for path in (*EDITED, "gateway/app.py", PAGE):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    return tmp_path


def missing(tree):
    return list(services.missing(tree))


def change(path, old, new):
    text = path.read_text()
    assert re.search(old, text), old
    path.write_text(re.sub(old, new, text))


def test_no_service_is_missing_anywhere():
    assert missing(ROOT) == []


def test_every_place_is_named_for_a_service_that_is_nowhere():
    named = list(services.missing_of(ROOT, "mushrooms"))

    assert len(named) >= len((*services.FILES, *services.IN_YAML, *services.IN_TEXT, *services.COMMANDS))
    assert "add contracts/mushrooms.py" in named
    assert "add mushrooms to DB_URIS in config.yaml" in named
    assert "add mushrooms_db_uri to services.migrate.secrets in docker-compose.yml" in named
    assert "add the section [mushrooms] to alembic.ini" in named
    assert any(re.fullmatch("add mushrooms to `users products .*` in deploy/helm/README.md", each) for each in named)


@pytest.mark.parametrize("path", EDITED)
def test_a_service_that_one_file_leaves_out_is_named_with_the_file(tree, path):
    assert missing(tree) == []

    change(tree / path, "(?i)notifications", "mails")

    named = missing(tree)
    assert named
    assert all(sentence.startswith("notifications: add ") and sentence.endswith(path) for sentence in named)


@pytest.mark.parametrize("pattern", services.FILES)
def test_a_file_that_is_not_there_is_named(tree, pattern):
    pattern = pattern.replace("reviews", "notifications")
    for path in tree.glob(pattern):
        path.unlink()

    assert missing(tree) == [f"notifications: add {pattern}"]


@pytest.mark.parametrize(
    ("path", "old", "sentence"),
    [
        (
            services.CHART,
            "(?m)^ +- evt-.*confirm_order$",
            "add the queue evt-orders-order.created--notifications.confirm_",
        ),
        ("gateway/app.py", "(?<=orders), notifications", "add notifications to register_routes in gateway/app.py"),
        (PAGE, "'notifications'", f"add 'notifications' to SERVICES in {PAGE}"),
    ],
)
def test_a_part_that_only_some_services_need_is_named(tree, path, old, sentence):
    change(tree / path, old, "")

    [named] = missing(tree)
    assert named.startswith(f"notifications: {sentence}")


def test_a_new_service_that_is_not_in_the_list_is_named(tree):
    (tree / "services" / "mushrooms.py").write_text("class Mushrooms(Service):\n    pass\n")

    assert missing(tree) == ['mushrooms: add "mushrooms" to SERVICES in contracts/types.py']
