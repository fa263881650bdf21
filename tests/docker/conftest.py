"""Runs docker-compose.yml as a separate project with its own networks, ports, volumes and secrets."""

import json
import re
import shutil
import subprocess
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import requests

from contracts.types import SERVICES
from dev.docker import engine, provide_images
from dev.settings import ROOT
from nameko_reliable.testing.servers import free_port
from nameko_reliable.testing.waiting import wait_for

LOCAL = ROOT / ".local" / "docker"
PROFILES = ("demo",)
ALL_PROFILES = (*PROFILES, "observability")
PROCESSES = (*SERVICES, "gateway", "frontend")
SECONDS_TO_COME_UP = 240
ADA = {"email": "ada@forage.example", "password": "chanterelle"}
# They differ from the defaults in docker-compose.yml.
SUBNETS = {"SHOP_SUBNET": "172.28.97.0/24", "STOREFRONT_SUBNET": "172.28.98.0/24"}


class Project:
    """`docker compose` for one project. ports: by their names in .env.example."""

    def __init__(self, environment, folder):
        self.ports = {name: free_port() for name in ("FRONTEND_PORT", "GATEWAY_PORT", "MAIL_WEB_PORT", "OIDC_PORT")}
        shutil.copytree(ROOT / "deploy" / "compose", folder / "deploy" / "compose")
        shutil.copy(ROOT / ".env.example", folder)
        subprocess.run([folder / "deploy" / "compose" / "setup"], check=True, capture_output=True)
        self._settings = folder / ".env"
        # Settings that this shell may have for another shop.
        others = {*re.findall(r"\$\{([A-Z_]+)", (ROOT / "docker-compose.yml").read_text()), "COMPOSE_PROFILES"}
        self._environment = {
            **{name: value for name, value in environment.items() if name not in others},
            **{name: str(port) for name, port in self.ports.items()},
            "SECRETS": str(folder / "secrets"),
            **SUBNETS,
            "OIDC_ISSUER": f"http://sign-in.localhost:{self.ports['OIDC_PORT']}",
        }
        self.storefront = f"http://127.0.0.1:{self.ports['FRONTEND_PORT']}"
        self.gateway = f"http://127.0.0.1:{self.ports['GATEWAY_PORT']}"
        self.mail = f"http://127.0.0.1:{self.ports['MAIL_WEB_PORT']}"

    def compose(self, *words):
        return self.docker("compose", "--project-name", "forage-test", "--env-file", self._settings, *words)

    def docker(self, *words):
        """Run a docker command and return its standard output. Raises AssertionError if it fails."""
        done = subprocess.run(["docker", *words], cwd=ROOT, env=self._environment, capture_output=True, text=True)
        assert done.returncode == 0, f"docker {' '.join(map(str, words))}: {done.stdout}{done.stderr}"
        return done.stdout

    def docker_fails(self, *words):
        """Run a docker command that must fail, and return its output."""
        done = subprocess.run(["docker", *words], cwd=ROOT, env=self._environment, capture_output=True, text=True)
        assert done.returncode != 0
        return done.stdout + done.stderr

    def up(self, *words):
        """Returns once all services are healthy and the seed has ended."""
        self.compose("up", "--detach", "--no-build", *words)
        wait_for(self.is_healthy, SECONDS_TO_COME_UP, pause_seconds=0.5)
        wait_for(lambda: self.latest("seed").status == "exited", SECONDS_TO_COME_UP, pause_seconds=0.5)

    def down(self, *words):
        """Includes containers of all profiles: those that a test started would keep the network in use."""
        profiles = [word for profile in ALL_PROFILES for word in ("--profile", profile)]
        self.compose(*profiles, "down", *words)

    def is_healthy(self):
        """Raises AssertionError with the unhealthy and the missing containers."""
        running = self.containers()
        missing = set(PROCESSES) - {each.name for each in running}
        assert not missing, missing
        unhealthy = {f"{each.name}: {each.health}" for each in running if each.health not in ("healthy", "")}
        assert not unhealthy, unhealthy
        return True

    def containers(self, service=None):
        """The running containers, with their `docker inspect`."""
        ids = self.compose("ps", "--quiet", *([service] if service else [])).split()
        return [Container(inspected) for inspected in json.loads(self.docker("inspect", *ids))] if ids else []

    def latest(self, service):
        """The one container of a service, running or ended."""
        (inspected,) = json.loads(self.docker("inspect", *self.compose("ps", "--all", "--quiet", service).split()))
        return Container(inspected)

    @contextmanager
    def session(self):
        """A session of Ada's, logged in through nginx."""
        with requests.Session() as session:
            answer = session.post(f"{self.storefront}/api/users/login", json=ADA, timeout=10)
            assert answer.status_code == 200, answer.text
            session.token = answer.json()["access_token"]
            session.headers["Authorization"] = f"Bearer {session.token}"
            yield session

    def order(self, session, quantity=1):
        """Order the product with the largest stock."""
        products = session.get(f"{self.storefront}/api/products?limit=100", timeout=10).json()["items"]
        product = max(products, key=lambda product: product["stock_quantity"])
        items = [{"product_id": product["id"], "quantity": quantity}]
        return session.post(f"{self.storefront}/api/orders", json={"items": items}, timeout=10)


class Container(SimpleNamespace):
    def __init__(self, inspected):
        state = inspected["State"]
        super().__init__(
            inspected=inspected,
            id=inspected["Id"],
            name=inspected["Config"]["Labels"]["com.docker.compose.service"],
            pid=state["Pid"],
            status=state["Status"],
            exit_code=state["ExitCode"],
            restarts=inspected["RestartCount"],
            health=state.get("Health", {}).get("Status", ""),
        )


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    LOCAL.mkdir(parents=True, exist_ok=True)
    with engine(LOCAL) as environment:
        provide_images(environment, PROFILES, services=["prometheus"])
        project = Project(environment, tmp_path_factory.mktemp("project"))
        # Volumes that a killed run left have other passwords.
        project.down("--volumes", "--timeout", "5")
        try:
            project.up()
            yield project
        finally:
            try:
                (LOCAL / "containers.log").write_text(project.compose("logs", "--no-color"))
            finally:
                project.down("--volumes", "--timeout", "5")
