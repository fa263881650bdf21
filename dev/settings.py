"""The folder and the ports of one copy of the shop. All come from the environment and are fixed before it starts."""

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
# A setting of the env file: the names of the settings that this copy made itself, since none were given.
OWN = "FORAGE_OWN"
# If it is set, the broker has its management page and HTTP API.
MANAGEMENT = "RABBITMQ_MANAGEMENT_PORT"


class LocalSettings:
    """One copy's folder, ports and secrets. own_…: whether it runs or makes this part itself, since none was given.

    for_tests: the data need not survive a crash of the machine.
    """

    def __init__(self, environment=os.environ, for_tests=False):
        self.for_tests = for_tests
        self.folder = local_folder(environment)
        # A terminal that sourced the env file of this copy repeats the settings that the copy made itself. They don't
        # count as given. All others in the file were given at the first start, and count as given again.
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
            raise CannotStart(f"Set all database URIs or none: {', '.join(missing)} is not set.")

        self.folder.mkdir(parents=True, exist_ok=True)
        # PostgreSQL's account must be able to enter it. Each secret in it is a file of mode 0600.
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
        """A random secret, made once and kept in this copy's folder."""
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

    def process_settings(self):
        """The settings with which a process joins this copy, by their names in config.yaml."""
        named_in_config = re.findall(r"\$\{([A-Z_]+)", (ROOT / "config.yaml").read_text())
        return {
            "LOG_FORMAT": "text",
            "JWT_SECRET": self.secret("jwt"),
            **{name: self.given[name] for name in named_in_config if self.given.get(name)},
            **{name: str(port) for name, port in self.ports.items()},
            # All processes and replicas have the same settings, and can't share one port.
            "METRICS_PORT": "0",
            # Eventlet warns at its first import that it is deprecated; docs/decisions/ says why we use it.
            "PYTHONWARNINGS": self.given.get("PYTHONWARNINGS") or NO_EVENTLET_WARNING,
            # Without eventlet's resolver a process needs 11 MB less. The kit looks up names in its place.
            "EVENTLET_NO_GREENDNS": self.given.get("EVENTLET_NO_GREENDNS") or "yes",
            **self.infrastructure_settings(),
        }

    def infrastructure_settings(self):
        """The addresses of the servers that this copy runs itself."""
        settings = {}
        if self.own_address:
            settings["FRONTEND_URL"] = local_address(self.ports["FRONTEND_PORT"])
        if self.own_proxy:
            # The storefront's nginx.
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

    def storefront_settings(self):
        """The settings of the storefront's nginx, by the names in its image."""
        return {
            **{name: str(self.ports[name]) for name in ("FRONTEND_PORT", "GATEWAY_PORT")},
            "FRONTEND_URL": self.process_settings()["FRONTEND_URL"],
            # The proxies in front of it: none by default.
            "TRUSTED_PROXIES": self.given.get("TRUSTED_PROXIES") or "",
        }

    def write_env_file(self):
        settings = {**self.process_settings(), OWN: " ".join(sorted(self.infrastructure_settings()))}
        lines = [f"export {name}={quoted(value)}\n" for name, value in sorted(settings.items())]
        write_private(self.folder / "env", "".join(lines))

    def environment(self):
        """The environment variables of our processes."""
        return {
            **{name: value for name, value in os.environ.items() if name not in self.sourced},
            **self.process_settings(),
            "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
            "FORAGE_COPY": str(self.folder),
        }


def local_folder(environment):
    return Path(environment.get("LOCAL_DIR") or ROOT / ".local").absolute()


def local_address(port):
    return f"http://localhost:{port}"


def port_from(text, name):
    """0 means any free port."""
    if not text:
        return DEFAULT_PORTS[name]
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise CannotStart(f"{name} must be a port number from 0 to 65535; it is {text!r}.")
    return int(text) or free_port()


def refuse_if_taken(port, name):
    try:
        bind(port)
    except PermissionError:
        raise CannotStart(f"Only root can open port {port}: set {name} to one above 1023.") from None
    except OSError:
        raise CannotStart(f"Port {port} is in use: set {name} to a free one and try again.") from None


def read_env_file(path):
    if not path.exists():
        return {}
    words = shlex.split(path.read_text())
    return dict(word.split("=", 1) for word in words if word != "export")


def quoted(value):
    """The value for a shell, in single quotes."""
    return "'" + value.replace("'", "'\\''") + "'"
