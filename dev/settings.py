"""Where one copy of the shop lives, and on which ports: all from the environment, settled before anything starts."""

import os
import re
import secrets
import shlex
from pathlib import Path

from contracts.types import SERVICES
from nameko_reliable.testing.servers import CannotStart, bind, free_port, write_private

ROOT = Path(__file__).resolve().parent.parent
DATABASE_URIS = tuple(f"{service.upper()}_DB_URI" for service in SERVICES)

DEFAULT_PORTS = {
    "FRONTEND_PORT": 8080,
    "GATEWAY_PORT": 3000,
    "RABBITMQ_PORT": 5672,
    "POSTGRES_PORT": 5432,
    "SMTP_PORT": 1025,
    "MAIL_WEB_PORT": 8025,
    "OIDC_PORT": 8090,
}
NO_EVENTLET_WARNING = "ignore:::nameko.cli.commands,ignore:::nameko.containers"
# A setting of the env file: the names of the others that this copy made for itself, in place of being given them.
OWN = "FORAGE_OWN"
# Only when it is set does the broker have its management page and HTTP API.
MANAGEMENT = "RABBITMQ_MANAGEMENT_PORT"


class Settings:
    """One copy's folder, ports and secrets, and which of its infrastructure is given from outside.

    for_tests: nothing needs to outlive a crash of the machine.
    """

    def __init__(self, environment=os.environ, for_tests=False):
        self.for_tests = for_tests
        self.folder = local_folder(environment)
        # A terminal that sourced the env file of this very copy repeats what the copy made for itself, and doesn't give
        # it. All else in the file was given once, and is given again.
        written = read_env_file(self.folder / "env")
        self.sourced = {name for name in written.get(OWN, "").split() if environment.get(name) == written.get(name)}
        self.given = {name: value for name, value in environment.items() if name not in self.sourced}

        self.own_broker = not self.given.get("AMQP_URI")
        self.own_mail_catcher = not self.given.get("SMTP_HOST")
        self.own_sign_in_provider = not self.given.get("GOOGLE_CLIENT_ID")
        self.own_address = not self.given.get("FRONTEND_URL")
        self.own_proxy = not self.given.get("TRUSTED_PROXIES")
        missing = [name for name in DATABASE_URIS if not self.given.get(name)]
        self.own_databases = len(missing) == len(DATABASE_URIS)
        if missing and not self.own_databases:
            raise CannotStart(f"Either all database URIs are set or none; {', '.join(missing)} is not.")

        self.folder.mkdir(parents=True, exist_ok=True)
        # PostgreSQL's account passes through; each secret in here is a file of mode 0600.
        self.folder.chmod(0o711)
        self.ports = {name: port_from(self.given.get(name), name) for name in DEFAULT_PORTS}
        if self.given.get(MANAGEMENT):
            self.ports[MANAGEMENT] = port_from(self.given[MANAGEMENT], MANAGEMENT)

    def refuse_taken_ports(self, with_services=True):
        others = set() if with_services else {"GATEWAY_PORT", "FRONTEND_PORT"}
        if not self.own_broker:
            others |= {"RABBITMQ_PORT", MANAGEMENT}
        if not self.own_databases:
            others |= {"POSTGRES_PORT"}
        if not self.own_mail_catcher:
            others |= {"SMTP_PORT", "MAIL_WEB_PORT"}
        if not self.own_sign_in_provider:
            others |= {"OIDC_PORT"}
        for name in self.ports.keys() - others:
            refuse_if_taken(self.ports[name], name)

    def secret(self, name):
        """A random word, made once and kept in this copy's folder."""
        path = self.folder / "secrets" / name
        if not path.exists():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            write_private(path, secrets.token_hex(24))
        return path.read_text()

    def amqp_uri(self):
        return f"amqp://forage:{self.secret('rabbitmq')}@127.0.0.1:{self.ports['RABBITMQ_PORT']}/"

    def database_uri(self, role, database):
        password = self.secret(f"postgres-{role}")
        return f"postgresql+psycopg2://{role}:{password}@127.0.0.1:{self.ports['POSTGRES_PORT']}/{database}"

    def of_running_system(self):
        """The settings that make a process a part of this copy, by the names config.yaml knows them by."""
        named_in_config = re.findall(r"\$\{([A-Z_]+)", (ROOT / "config.yaml").read_text())
        return {
            "LOG_FORMAT": "text",
            "JWT_SECRET": self.secret("jwt"),
            **{name: self.given[name] for name in named_in_config if self.given.get(name)},
            **{name: str(port) for name, port in self.ports.items()},
            # Five processes, and replicas that join them, can't share one.
            "METRICS_PORT": "0",
            # Eventlet greets its first importer with a deprecation warning; docs/decisions/ has our answer to it.
            "PYTHONWARNINGS": self.given.get("PYTHONWARNINGS") or NO_EVENTLET_WARNING,
            **self.of_own_infrastructure(),
        }

    def of_own_infrastructure(self):
        """The settings that say where the parts are that this copy runs itself."""
        settings = {}
        if self.own_address:
            settings["FRONTEND_URL"] = local_address(self.ports["FRONTEND_PORT"])
        if self.own_proxy:
            # The storefront's server.
            settings["TRUSTED_PROXIES"] = "127.0.0.1"
        if self.own_broker:
            settings["AMQP_URI"] = self.amqp_uri()
        if self.own_databases:
            for service, name in zip(SERVICES, DATABASE_URIS, strict=True):
                settings[name] = self.database_uri(service, f"{service}_db")
        if self.own_mail_catcher:
            settings["SMTP_HOST"] = "127.0.0.1"
        if self.own_sign_in_provider:
            settings |= {
                "GOOGLE_CLIENT_ID": "forage-local",
                "GOOGLE_CLIENT_SECRET": self.secret("sign-in"),
                "OIDC_ISSUER": f"http://localhost:{self.ports['OIDC_PORT']}",
                "OAUTHLIB_INSECURE_TRANSPORT": "1",
            }
        return settings

    def of_storefront(self):
        """The settings of its server, by the names its image knows them by."""
        return {
            **{name: str(self.ports[name]) for name in ("FRONTEND_PORT", "GATEWAY_PORT")},
            "FRONTEND_URL": self.of_running_system()["FRONTEND_URL"],
            # Those before it: none, unless they are given.
            "TRUSTED_PROXIES": self.given.get("TRUSTED_PROXIES") or "",
        }

    def write_env_file(self):
        settings = {**self.of_running_system(), OWN: " ".join(sorted(self.of_own_infrastructure()))}
        lines = [f"export {name}={quoted(value)}\n" for name, value in sorted(settings.items())]
        write_private(self.folder / "env", "".join(lines))

    def environment(self):
        """What our processes are started with."""
        return {
            **{name: value for name, value in os.environ.items() if name not in self.sourced},
            **self.of_running_system(),
            "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
            "FORAGE_COPY": str(self.folder),
        }


def local_folder(environment):
    return Path(environment.get("LOCAL_DIR") or ROOT / ".local").absolute()


def local_address(port):
    return f"http://localhost:{port}"


def port_from(text, name):
    """0 stands for a free one."""
    if not text:
        return DEFAULT_PORTS[name]
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise CannotStart(f"{name} must be a port number from 0 to 65535, and is {text!r}.")
    return int(text) or free_port()


def refuse_if_taken(port, name):
    try:
        bind(port)
    except PermissionError:
        raise CannotStart(f"Port {port} is for root alone: set {name} to one above 1023.") from None
    except OSError:
        raise CannotStart(f"Port {port} is taken: set {name} to a free one and try again.") from None


def read_env_file(path):
    if not path.exists():
        return {}
    words = shlex.split(path.read_text())
    return dict(word.split("=", 1) for word in words if word != "export")


def quoted(value):
    """For a shell, in single quotes."""
    return "'" + value.replace("'", "'\\''") + "'"
