"""docker-compose.yml: each container has the settings and secrets that its process reads, and no others."""

import json
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from nameko.cli.main import setup_yaml_parser

from contracts.demo_settings import demo_settings
from contracts.settings import ShopSettings
from contracts.types import SERVICES
from dev.settings import DEFAULT_PORTS, NO_EVENTLET_WARNING, ROOT
from dev.sign_in_provider import ACCOUNTS
from gateway.routes import docs
from nameko_reliable.settings import checked

COMPOSE = ROOT / "docker-compose.yml"
PROCESSES = (*SERVICES, "gateway")
DATABASES = {f"{service.upper()}_DB_URI": {service, "migrate"} for service in SERVICES}
# {setting without a usable default: the containers that need it}
SECRETS = {
    **DATABASES,
    "AMQP_URI": {*PROCESSES, "seed"},
    "JWT_SECRET": {"users", "gateway"},
    "JWT_SECRET_PREVIOUS": {"users", "gateway"},
    "GOOGLE_CLIENT_SECRET": {"users"},
    "SMTP_PASSWORD": {"notifications"},
    "RATE_LIMIT_STORAGE_URI": {"gateway"},
}
# Settings that may be empty.
OPTIONAL = {
    *("ALLOWED_ORIGINS", "TRUSTED_PROXIES", "GOOGLE_CLIENT_ID", "GOOGLE_REDIRECT_URI"),
    *("AMQP_SSL", "AMQP_SSL_CA", "SMTP_CA", "SMTP_USER"),
    "OTEL_EXPORTER_OTLP_ENDPOINT",
}
# Read by code or by a library, not by config.yaml.
READ_ELSEWHERE = {"DEMO_PASSWORD", "OAUTHLIB_INSECURE_TRANSPORT"}
# Runs as root without capabilities, since it reads Docker's log files.
ROOT_WITHOUT_CAPABILITIES = {"collector"}


class _Yaml(yaml.SafeLoader):
    """Without the resolver that nameko adds to every loader: Compose fills in values like ${THIS}."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "!env_var"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


@pytest.fixture(scope="module")
def compose():
    return yaml.load(COMPOSE.read_text(), _Yaml)  # noqa: S506 - it is a safe loader


@pytest.fixture(scope="module")
def containers(compose):
    return compose["services"]


@pytest.fixture(scope="module")
def ours(containers):
    """The containers of our Python image."""
    return {name: container for name, container in containers.items() if container.get("build") == "."}


@pytest.fixture
def prepared(tmp_path):
    """A copy of the project's folder in which setup has run."""
    (tmp_path / "deploy" / "compose").mkdir(parents=True)
    shutil.copy(ROOT / "deploy" / "compose" / "setup", tmp_path / "deploy" / "compose")
    for name in (".env.example", "docker-compose.yml"):
        shutil.copy(ROOT / name, tmp_path)
    run_setup(tmp_path)
    return tmp_path


def run_setup(folder):
    subprocess.run([folder / "deploy" / "compose" / "setup"], check=True, cwd="/", capture_output=True)


def settings_of_config():
    """{name: whether it has a non-empty default}"""
    found = re.findall(r"\$\{([A-Z0-9_]+)(:[^}]*)?\}", (ROOT / "config.yaml").read_text())
    return {name: len(default) > 1 for name, default in found}


def test_compose_accepts_the_file():
    checker = Path(sys.executable).with_name("check-jsonschema")
    done = subprocess.run(
        [checker, "--builtin-schema", "vendor.compose-spec", COMPOSE], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout


def test_every_setting_of_a_container_is_read_by_its_process(ours):
    known = settings_of_config().keys() | READ_ELSEWHERE

    given = {name.removesuffix("_FILE") for container in ours.values() for name in container["environment"]}

    assert given - known == set()


def test_a_secret_reaches_only_the_containers_that_need_it(ours):
    for name, owners in SECRETS.items():
        assert {part for part, container in ours.items() if f"{name}_FILE" in container["environment"]} == owners, name


def test_a_secret_is_passed_only_as_a_file(ours):
    for part, container in ours.items():
        environment = container["environment"]
        by_file = {name.removesuffix("_FILE"): path for name, path in environment.items() if name.endswith("_FILE")}

        assert environment.keys() & SECRETS.keys() == set(), part
        assert by_file.keys() <= SECRETS.keys(), part
        assert set(by_file.values()) == {f"/run/secrets/{secret}" for secret in container["secrets"]}, part


def test_a_setting_without_a_default_is_a_secret_or_optional():
    without = {name for name, has_default in settings_of_config().items() if not has_default}

    assert without - OPTIONAL == SECRETS.keys()


def test_all_processes_have_the_same_settings(ours):
    plain = [
        {name: value for name, value in ours[part]["environment"].items() if not name.endswith("_FILE")}
        for part in PROCESSES
    ]

    assert all(settings == plain[0] for settings in plain)


def test_the_settings_that_the_docs_give_for_production_pass_its_checks(prepared, ours, monkeypatch):
    page = (ROOT / "docs" / "docker.md").read_text()
    documented = dict(
        line.split("=", 1) for line in re.search(r"```\n(ENVIRONMENT=.*?)```", page, re.DOTALL)[1].splitlines()
    )
    given = {}
    for part in PROCESSES:
        for name, value in ours[part]["environment"].items():
            if name.endswith("_FILE"):
                secret = value.removeprefix("/run/secrets/")
                given[name.removesuffix("_FILE")] = (prepared / "secrets" / secret).read_text().strip()
            else:
                given[name] = interpolated(value, documented)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    setup_yaml_parser()

    config = yaml.safe_load((ROOT / "config.yaml").read_text())

    assert config["ENVIRONMENT"] == "production"
    assert str(config["SMTP_PORT"]) == "25"
    assert list(demo_settings(checked(ShopSettings(), config), given)) == []


def interpolated(value, variables):
    """Fill in variables like Compose, from the innermost outwards."""
    innermost = re.compile(r"\$\{([A-Z_]+):-([^${}]*)\}")
    while found := innermost.search(value):
        value = value[: found.start()] + (variables.get(found[1]) or found[2]) + value[found.end() :]
    return value


def test_setup_makes_every_secret_in_a_private_folder(prepared, compose):
    folder = prepared / "secrets"

    used = {re.sub(r"^\$\{SECRETS:[^}]*\}/", "", secret["file"]) for secret in compose["secrets"].values()}
    assert {path.name for path in folder.iterdir()} == used
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o644}
    assert {path.name for path in folder.iterdir() if not path.read_text().strip()} == {
        *("jwt_secret_previous", "smtp_password")
    }


def test_setup_gives_a_server_the_password_that_its_clients_use(prepared):
    def read(name):
        return (prepared / "secrets" / name).read_text().strip()

    assert f"default_pass = {urlsplit(read('amqp_uri')).password}" in read("rabbitmq.conf").splitlines()
    assert f"requirepass {urlsplit(read('rate_limit_storage_uri')).password}" == read("redis.conf")
    passwords = [urlsplit(read(f"{service}_db_uri")).password for service in SERVICES]
    assert len({*passwords, read("postgres_password")}) == len(SERVICES) + 1
    assert len(read("jwt_secret")) >= 64


def test_setup_changes_no_existing_file(prepared):
    (prepared / "secrets" / "google_client_secret").unlink()
    (prepared / "secrets" / "google_client_secret").write_text("from Google\n")
    (prepared / "secrets" / "grafana_password").unlink()
    (prepared / ".env").write_text("COMPOSE_PROFILES=\n")
    before = {path: path.read_text() for path in (prepared / "secrets").iterdir()}

    run_setup(prepared)

    assert {path: path.read_text() for path in before} == before
    assert (prepared / "secrets" / "grafana_password").exists()
    assert (prepared / ".env").read_text() == "COMPOSE_PROFILES=\n"


def test_the_example_env_file_names_only_variables_that_are_read():
    named = set(re.findall(r"^(?:# )?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))

    read = set(re.findall(r"\$\{([A-Z_]+)", COMPOSE.read_text())) | {"COMPOSE_PROFILES"}
    assert named - read == set()


def test_only_the_storefront_and_the_gateway_are_published(containers):
    published = {name for name, container in containers.items() if "ports" in container and "profiles" not in container}

    assert published == {"frontend", "gateway"}


def test_ports_of_a_profile_are_published_on_this_machine_only(containers):
    for name, container in containers.items():
        if "profiles" in container:
            assert all(port.startswith("127.0.0.1:") for port in container.get("ports", [])), name


def test_the_ports_are_those_of_make_run(containers):
    ports = [port for name in ("frontend", "gateway", "mail-web", "sign-in") for port in containers[name]["ports"]]

    published = [int(re.search(r":-(\d+)\}:[^:]+(:-\d+\})?$", port)[1]) for port in ports]
    expected = ("FRONTEND_PORT", "GATEWAY_PORT", "MAIL_WEB_PORT", "OIDC_PORT")
    assert published == [DEFAULT_PORTS[name] for name in expected]


def test_every_container_is_read_only_limited_and_without_capabilities(containers):
    for name, container in containers.items():
        assert container["read_only"] is True, name
        assert container["cap_drop"] == ["ALL"], name
        assert "cap_add" not in container, name
        assert container["security_opt"] == ["no-new-privileges:true"], name
        assert container["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}, name
        assert container["restart"] == ("no" if name in ("migrate", "seed") else "unless-stopped"), name
        assert (container.get("user") == "0:0") == (name in ROOT_WITHOUT_CAPABILITIES), name


def test_no_container_name_or_fixed_port_prevents_replicas(containers):
    for service in SERVICES:
        assert containers[service].keys().isdisjoint({"container_name", "hostname", "ports"})


def test_only_containers_that_need_other_networks_are_on_one(compose):
    assert compose["networks"]["shop"]["internal"] is True
    beyond = {
        name: set(container["networks"]) - {"shop"}
        for name, container in compose["services"].items()
        if set(container["networks"]) != {"shop"}
    }
    assert beyond == {
        "frontend": {"storefront"},
        "gateway": {"api"},
        "users": {"outside"},
        "notifications": {"outside"},
        "sign-in": {"consoles"},
        "mail-web": {"consoles"},
        "grafana": {"consoles"},
    }


def test_the_gateway_trusts_nginx_and_nginx_trusts_a_local_proxy(compose):
    shop, storefront = (compose["networks"][name]["ipam"]["config"][0]["subnet"] for name in ("shop", "storefront"))

    for process in ("gateway", "frontend"):
        assert compose["services"][process]["environment"]["TRUSTED_PROXIES"] == f"{shop},{storefront}"


def test_the_sign_in_provider_has_the_accounts_of_make_run(containers):
    claims = [word.removeprefix("--user-claims=") for word in containers["sign-in"]["command"] if "claims" in word]

    given = [json.loads(claim) for claim in claims]
    assert given == [{"sub": name, **account} for name, account in ACCOUNTS.items()]


def test_the_mail_catcher_and_the_sign_in_provider_have_the_versions_of_make_run(containers):
    maildev = json.loads((ROOT / "dev" / "mail" / "package.json").read_text())["dependencies"]["maildev"]
    provider = re.search(r"^oidc-provider-mock==(\S+)", (ROOT / "requirements-dev.txt").read_text(), re.MULTILINE)[1]

    assert containers["maildev"]["image"].endswith(f":{maildev}")
    assert containers["sign-in"]["image"].endswith(f":{provider}")


def test_the_image_contains_the_files_of_the_docs_page():
    copied = re.findall(r"/docs/node_modules/swagger-ui-dist/(\S+)", (ROOT / "Dockerfile").read_text())

    assert set(copied) - {"LICENSE"} == docs.TYPES.keys()


def test_the_image_hides_eventlets_deprecation_warning():
    assert f"PYTHONWARNINGS={NO_EVENTLET_WARNING} " in (ROOT / "Dockerfile").read_text()


def test_the_image_loads_no_resolver_of_eventlet():
    assert "EVENTLET_NO_GREENDNS=yes " in (ROOT / "Dockerfile").read_text()


def test_the_log_pipeline_keeps_the_lines_of_this_project(compose):
    collector = (ROOT / "deploy" / "compose" / "collector.yaml").read_text()

    assert f'["com.docker.compose.project"] != "{compose["name"]}"\n' in collector


def test_loki_labels_a_line_with_the_service_from_the_collector():
    collector = (ROOT / "deploy" / "compose" / "collector.yaml").read_text()
    loki = yaml.safe_load((ROOT / "deploy" / "compose" / "loki.yaml").read_text())

    (labels,) = loki["limits_config"]["otlp_config"]["resource_attributes"]["attributes_config"]
    assert labels == {"action": "index_label", "attributes": re.findall(r"to: resource\.(\w+)", collector)}


def test_prometheus_accepts_its_configuration():
    done = subprocess.run(
        ["promtool", "check", "config", "--syntax-only", ROOT / "deploy" / "compose" / "prometheus.yml"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr


def test_prometheus_scrapes_every_process():
    scraped = yaml.safe_load((ROOT / "deploy" / "compose" / "prometheus.yml").read_text())["scrape_configs"]

    (discovery,) = next(job for job in scraped if job["job_name"] == "forage")["dns_sd_configs"]
    assert set(discovery["names"]) == set(PROCESSES)
    assert f"METRICS_PORT={discovery['port']}\n" in (ROOT / "Dockerfile").read_text()


def test_data_sources_link_only_to_existing_ones():
    sources = (ROOT / "deploy" / "compose" / "grafana" / "datasources" / "forage.yaml").read_text()
    known = re.findall(r"^    uid: (\w+)$", sources, re.MULTILINE)

    assert set(re.findall(r"datasourceUid: (\w+)", sources)) == {"jaeger", "loki"} <= set(known)


@pytest.mark.parametrize("context", [".", "frontend"])
def test_dockerignore_lets_through_every_file_that_the_image_copies(context):
    dockerfile = (ROOT / context / "Dockerfile").read_text().replace("\\\n", " ")
    copies = re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+)$", dockerfile, re.MULTILINE)
    copied = {source for copy in copies for source in copy.split()[:-1]} - {"."}

    let_through = re.findall(r"^!(\S+)$", (ROOT / context / ".dockerignore").read_text(), re.MULTILINE)

    # As itself, as part of a folder, or in part.
    assert [
        each for each in copied if not any(is_within(each, path) or is_within(path, each) for path in let_through)
    ] == []


def is_within(path, folder):
    return f"{path}/".startswith(f"{folder}/")


def test_the_image_contains_the_commands_of_operators():
    pages = [(ROOT / "docs" / page).read_text() for page in ("docker.md", "operations.md", "queues.md")]
    commands = set(re.findall(r"python -m ops\.(\w+)", "".join(pages)))

    kept = (ROOT / ".dockerignore").read_text().splitlines()

    assert commands == {"migrate", "change_queues", "normalize_names", "resend"}
    assert "!ops" in kept
    assert commands <= {path.stem for path in (ROOT / "ops").glob("*.py")}


def test_the_build_context_contains_only_the_sources_of_the_kits_wheel():
    kit = tomllib.loads((ROOT / "kit" / "pyproject.toml").read_text())
    sources = kit["tool"]["setuptools"]["packages"]["find"]["where"]

    kept = re.findall(r"^!kit/(.*)", (ROOT / ".dockerignore").read_text(), re.MULTILINE)

    assert set(kept) == {"pyproject.toml", kit["project"]["readme"], *kit["project"]["license-files"], *sources}
