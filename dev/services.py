"""`python -m dev.services` names each place where a service is missing, and what to add there.

    reviews: add the section [reviews] to alembic.ini

SERVICES in contracts/types.py lists the services. Code reads that list; this module checks the files that can't.
"""

import re
import sys
from functools import cache

import yaml

from contracts import every_event, subscribing_services
from contracts.types import SERVICES
from dev.settings import ROOT
from nameko_reliable.amqp.queues import handler_queue

CHART = "deploy/helm/templates/_parts.tpl"
# Written for a service `reviews`, whose name is replaced.
FILES = (
    "contracts/reviews.py",
    "services/reviews.py",
    "services/reviews_models.py",
    "migrations/reviews/*.py",
    "tests/reviews/test_*.py",
)
# (the file, where in it, what must be there)
IN_YAML = (
    ("config.yaml", "DB_URIS", "reviews"),
    ("docker-compose.yml", "services", "reviews"),
    ("docker-compose.yml", "services.reviews.environment", "REVIEWS_DB_URI_FILE"),
    ("docker-compose.yml", "services.reviews.secrets", "reviews_db_uri"),
    ("docker-compose.yml", "services.migrate.environment", "REVIEWS_DB_URI_FILE"),
    ("docker-compose.yml", "services.migrate.secrets", "reviews_db_uri"),
    ("docker-compose.yml", "services.postgres.secrets", "reviews_db_uri"),
    ("docker-compose.yml", "secrets", "reviews_db_uri"),
    ("deploy/compose/prometheus.yml", "scrape_configs.0.dns_sd_configs.0.names", "reviews"),
    ("deploy/helm/values.yaml", "secrets", "REVIEWS_DB_URI"),
    ("deploy/helm/values.yaml", "processes", "reviews"),
)
# (the file, the pattern of a line in it, what to add)
IN_TEXT = (
    ("alembic.ini", r"^\[reviews\]$", "the section [reviews]"),
    (CHART, r"^reviews:$", "the part reviews"),
    (
        "deploy/prometheus/alerts.yml",
        r'absent\(forage_service_info{service="reviews"}\)',
        "reviews in ForageServiceGone",
    ),
    ("deploy/prometheus/alerts_test.yml", r'forage_service_info{service="reviews"}', "reviews in ForageServiceGone"),
    ("docs/architecture.md", r"`services/reviews\.py`", "a row of services/reviews.py"),
)
# (the page, the pattern of a command in it that names all services)
COMMANDS = (
    ("deploy/helm/README.md", r"for service in (.*\bproducts\b.*); do"),
    ("docs/operations.md", r"for service in (.*\bproducts\b.*); do"),
    ("docs/operations.md", r"docker compose stop (.*\bproducts\b.*)`"),
    ("docs/operations.md", r"kubectl scale deployment (.*\bproducts\b.*) --replicas 0"),
)


def missing(root=ROOT, services=SERVICES):
    """Sentences about what the tree lacks."""
    for module in sorted((root / "services").glob("*.py")):
        if module.stem not in services and re.search(r"^class \w+\(Service\):$", module.read_text(), re.MULTILINE):
            yield f'{module.stem}: add "{module.stem}" to SERVICES in contracts/types.py'
    for service in services:
        for sentence in missing_of(root, service):
            yield f"{service}: {sentence}"


def missing_of(root, service):
    def named(text):
        return text.replace("reviews", service).replace("REVIEWS", service.upper())

    for pattern in map(named, FILES):
        if not any(root.glob(pattern)):
            yield f"add {pattern}"
    for path, place, item in IN_YAML:
        if named(item) not in part_of(root / path, named(place)):
            yield f"add {named(item)} to {named(place)} in {path}"
    for path, pattern, item in IN_TEXT:
        if not re.search(named(pattern), (root / path).read_text(), re.MULTILINE):
            yield f"add {named(item)} to {path}"
    for path, pattern in COMMANDS:
        for words in dict.fromkeys(re.findall(pattern, (root / path).read_text())):
            if not re.search(rf"\b{service}\b", words):
                yield f"add {service} to `{words}` in {path}"
    if any(root.glob(f"gateway/routes/{service}.py")):
        blueprints = re.search(r"for routes in \(([^)]+)\)", (root / "gateway/app.py").read_text())[1]
        if service not in re.findall(r"\w+", blueprints):
            yield f"add {service} to register_routes in gateway/app.py"
    yield from missing_queues(root, service)


def missing_queues(root, service):
    queues = re.findall(r"^    - (\S+)$", (root / CHART).read_text(), re.MULTILINE)
    handled = [(event, method) for event in every_event() for name, method in event.subscribers if name == service]
    for event, method in handled:
        queue = handler_queue(event, service, method, {}).name
        if queue not in queues:
            yield f"add the queue {queue} to {CHART}"
    if service in subscribing_services():
        page = "frontend/src/components/AdminParkedBulkActions.vue"
        if f"'{service}'" not in re.search(r"const SERVICES.*= \[([^]]+)\]", (root / page).read_text())[1]:
            yield f"add '{service}' to SERVICES in {page}"


def part_of(path, place):
    """The names of a mapping or the items of a list at a place in a YAML file. Empty if the place does not exist."""
    part = parsed(path.read_text())
    for name in place.split("."):
        part = part[int(name)] if isinstance(part, list) else part.get(name, {})
    return part


@cache
def parsed(text):
    # BaseLoader, since the files have tags of Nameko and Compose.
    return yaml.load(text, yaml.BaseLoader)  # noqa: S506


if __name__ == "__main__":
    sys.exit("\n".join(missing()) or None)
