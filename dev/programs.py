"""Finds or installs the programs that the shop needs. If it can't, one sentence says what to do."""

import os
import re
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

from nameko_reliable.testing.servers import CannotStart, find_postgres, find_rabbitmq, newest

# The versions that Vite supports.
NODE = "Node 20.19, or 22.12 or later, with npm"
# The end of a sentence about missing programs.
OR_DOCKER = ", or use `deploy/compose/setup` and `docker compose up`, which don't need them: see docs/docker.md."
PACKAGES = {
    "PostgreSQL": "postgresql",
    "RabbitMQ": "rabbitmq-server",
    "Redis": "redis-server",
    "nginx": "nginx",
    "Prometheus": "prometheus",
    "libfaketime": "faketime",
    "Chromium": "chromium",  # with a font, which its fontconfig depends on
}
UNITS = {
    "postgresql": ["postgresql"],
    "rabbitmq-server": ["rabbitmq-server", "epmd.socket", "epmd.service"],
    "redis-server": ["redis-server"],
    "nginx": ["nginx"],
    "prometheus": ["prometheus"],
}


def find_nginx():
    # Debian installs it in a folder that is only on root's PATH.
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


def find_faketime():
    """The folder of libfaketime, which gives a process its own wall clock."""
    return newest(("/usr/lib/*/faketime",), "libfaketime.so.1")


def require_programs(settings, serves_pages=False):
    """Installs missing programs as Debian packages if we are root. Raises CannotStart if some are still missing.

    serves_pages: whether nginx serves the built storefront.
    """
    require_node()
    missing = missing_programs(settings, serves_pages)
    if not missing:
        return
    names = " and ".join(missing)
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise CannotStart(f"{names} must be installed first{'.' if settings.for_tests else OR_DOCKER}")
    install([PACKAGES[name] for name in missing], settings.folder / "apt.log")
    if missing_programs(settings, serves_pages):
        raise CannotStart(f"{names} could not be installed; {settings.folder}/apt.log says why.")


def missing_programs(settings, serves_pages):
    missing = []
    if settings.own_databases and not find_postgres():
        missing.append("PostgreSQL")
    if settings.own_broker and not (find_rabbitmq() and shutil.which("epmd")):
        missing.append("RabbitMQ")
    if settings.for_tests and not shutil.which("redis-server"):
        missing.append("Redis")
    if (serves_pages or settings.for_tests) and not find_nginx():
        missing.append("nginx")
    if settings.for_tests and not (shutil.which("prometheus") and shutil.which("promtool")):
        missing.append("Prometheus")
    if settings.for_tests and not find_faketime():
        missing.append("libfaketime")
    if settings.for_tests and not shutil.which("chromium"):
        missing.append("Chromium")
    return missing


def require_node():
    if not shutil.which("node") or not shutil.which("npm"):
        raise CannotStart(f"{NODE} must be installed first{OR_DOCKER}")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout.strip()
    found = re.match(r"v(\d+)\.(\d+)\.", version)
    release = tuple(map(int, found.groups())) if found else ()
    if not ((20, 19) <= release < (21,) or release >= (22, 12)):
        raise CannotStart(f"{NODE} is required, and `node --version` says {version or 'nothing'}.")


def install(packages, log_path):
    """Installs Debian packages. Their services are neither started now nor enabled for the next boot."""
    print(f"forage: installing {' and '.join(packages)} with apt-get", flush=True)
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with open(log_path, "w") as log, services_not_started():
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
            subprocess.run(["apt-get", "-q", *command], env=quiet, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if shutil.which("systemctl"):
            for package in UNITS.keys() & packages:
                subprocess.run(["systemctl", "disable", *UNITS[package]], stdout=log, stderr=log)


@contextmanager
def services_not_started():
    """Keeps packages from starting their services: Debian runs this script first, and 101 means no."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()
