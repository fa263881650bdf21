"""A Docker engine for `make test-docker`, and images for it on a machine that can't pull any.

    with engine(folder) as environment:
        provide_images(environment)
        subprocess.run(["docker", "compose", "up"], env=environment)

A running Docker is used as it is, and pulls the images. Otherwise, as root on Debian, an engine of our own is started.
It is unpacked, not installed, and its data are in `folder`. An image that can't be pulled is replaced by a stand-in: an
image with the same name, built from Debian's packages (tests/docker/stand_ins).
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from dev.programs import install
from dev.settings import ROOT
from nameko_reliable.testing.servers import CannotStart

# The oldest versions that support all of docker-compose.yml.
OLDEST_ENGINE, OLDEST_COMPOSE = 25, (2, 26)
RELEASE = "trixie"
ARCHIVE = "http://deb.debian.org/debian"
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
# Unpacked, not installed: they need no library that an older Debian release lacks. runc does, so it is installed.
ENGINE_PACKAGES = ("docker.io", "docker-cli", "docker-compose", "docker-buildx", "containerd")
MACHINE_PACKAGES = {"debootstrap": "debootstrap", "iptables": "iptables", "runc": "runc"}
SECONDS_TO_COME_UP = 60
STAND_INS = ROOT / "tests" / "docker" / "stand_ins"
BASE = "forage-stand-in-base"
# A stage of the stand-ins' Dockerfile for each image, by the last part of its name.
STAGES = {"nginx-unprivileged": "nginx", "oidc-provider-mock": "sign-in"}
OWN_IMAGES = {"forage": ".", "forage-frontend": "frontend"}


@contextmanager
def engine(folder):
    """Yields the environment variables with which `docker` and `docker compose` work. Raises CannotStart."""
    if answers(os.environ):
        yield dict(os.environ)
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise CannotStart(
            f"Docker {OLDEST_ENGINE} and Compose {'.'.join(map(str, OLDEST_COMPOSE))}, or later, must run here, "
            "or root on a Debian machine."
        )
    missing = [package for program, package in MACHINE_PACKAGES.items() if not find(program)]
    if missing:
        install(missing, folder / "apt.log")
    programs = unpacked_engine(folder)
    # Not below `folder`: the path of a socket has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="forage-docker-", dir="/run") as run:
        environment = {
            **os.environ,
            "PATH": f"{programs}/usr/sbin:{programs}/usr/bin:{os.environ['PATH']}:/usr/sbin:/sbin",
            "DOCKER_HOST": f"unix://{run}/docker.sock",
            "DOCKER_CONFIG": str(folder / "config"),
        }
        with open(folder / "dockerd.log", "w") as log:
            process = subprocess.Popen(
                [
                    *("dockerd", "--host", environment["DOCKER_HOST"], "--data-root", folder / "data"),
                    *("--exec-root", f"{run}/exec", "--pidfile", f"{run}/docker.pid"),
                ],
                env=environment,
                stdout=log,
                stderr=log,
            )
        try:
            deadline = time.monotonic() + SECONDS_TO_COME_UP
            while not answers(environment):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise CannotStart(f"dockerd does not start; {folder}/dockerd.log says why.")
                time.sleep(0.2)
            yield environment
        finally:
            process.terminate()
            process.wait()


def answers(environment):
    """Whether a new enough engine and Compose are running."""
    if not shutil.which("docker", path=environment["PATH"]):
        return False
    server = output(environment, "docker", "version", "--format", "{{.Server.Version}}")
    release = re.match(r"\d+", server or "")
    if release is None or int(release[0]) < OLDEST_ENGINE:
        return False
    compose = output(environment, "docker", "compose", "version", "--short")
    if compose is None:
        return False
    # A self-built Compose may report no version number.
    release = re.match(r"v?(\d+)\.(\d+)", compose)
    return release is None or tuple(map(int, release.groups())) >= OLDEST_COMPOSE


def unpacked_engine(folder):
    programs, plugins = folder / "engine", folder / "config" / "cli-plugins"
    if not plugins.exists():
        print("forage: unpacking Docker", flush=True)
        packages = folder / "packages"
        shutil.rmtree(packages, ignore_errors=True)
        for empty in ("lists/partial", "cache/archives/partial"):
            (packages / empty).mkdir(parents=True)
        (packages / "sources").write_text(f"deb [signed-by={KEYS}] {ARCHIVE} {RELEASE} main\n")
        (packages / "apt.conf").write_text(
            f'Dir::Etc::SourceList "{packages}/sources";\nDir::Etc::SourceParts "-";\n'
            f'Dir::State::Lists "{packages}/lists";\nDir::Cache "{packages}/cache";\nAPT::Sandbox::User "root";\n'
        )
        environment = {**os.environ, "APT_CONFIG": str(packages / "apt.conf")}
        run_checked(environment, "apt-get", "-q", "update")
        run_checked(environment, "apt-get", "-q", "download", *ENGINE_PACKAGES, folder=packages)
        for package in packages.glob("*.deb"):
            run_checked(environment, "dpkg-deb", "--extract", package, programs)
        shutil.rmtree(packages)
        plugins.parent.mkdir(exist_ok=True)
        plugins.symlink_to(programs / "usr" / "libexec" / "docker" / "cli-plugins")
    return programs


def provide_images(environment, profiles=(), services=()):
    """Pulls or makes all images that the Dockerfiles and the containers use, and builds the shop's own.

    profiles, services: the containers to include besides those without a profile.
    """
    is_own_engine = environment.get("DOCKER_HOST") != os.environ.get("DOCKER_HOST")
    for image in sorted(images(environment, profiles, services)):
        if output(environment, "docker", "image", "inspect", image) is not None:
            continue
        if output(environment, "docker", "pull", "--quiet", image) is None:
            if not is_own_engine:
                raise CannotStart(f"The image {image} can't be pulled.")
            build_stand_in(environment, image)
    for name, folder in OWN_IMAGES.items():
        print(f"forage: building the image {name}", flush=True)
        # A build has no DNS server in our own network, and the machine's may be unreachable from another network.
        options = ["--quiet", "--network", "host", "--tag", f"{name}:local"]
        run_checked(environment, "docker", "build", *options, ROOT / folder)


def images(environment, profiles, services):
    """The names of all images in the Dockerfiles and docker-compose.yml, except the shop's own."""
    compose, list_images = ("docker", "compose", *(f"--profile={each}" for each in profiles)), ("config", "--images")
    named = run_checked({**environment, "SECRETS": "."}, *compose, *list_images).split()
    if services:
        named += run_checked({**environment, "SECRETS": "."}, *compose, *list_images, *services).split()
    for folder in OWN_IMAGES.values():
        text = (ROOT / folder / "Dockerfile").read_text()
        named += re.findall(r"^FROM (?:--\S+ )?(\S+:\S+)", text, re.MULTILINE)
    return {name for name in named if name.partition(":")[0] not in OWN_IMAGES}


def build_stand_in(environment, image):
    if output(environment, "docker", "image", "inspect", BASE) is None:
        import_base(environment)
    name = image.rpartition("/")[2].partition(":")[0]
    stage = STAGES.get(name, name)
    print(f"forage: making a stand-in for the image {image}", flush=True)
    options = ["--quiet", "--network", "host", "--target", stage, "--tag", image]
    run_checked(environment, "docker", "build", *options, STAND_INS)


def import_base(environment):
    print(f"forage: making a base of Debian {RELEASE}", flush=True)
    with tempfile.TemporaryDirectory(prefix="forage-base-") as base:
        run_checked(
            environment, "debootstrap", "--variant=minbase", "--include=ca-certificates", RELEASE, base, ARCHIVE
        )
        # A build must trust this machine's additional authorities, too, like that of a proxy that inspects TLS.
        authorities = Path("/usr/local/share/ca-certificates")
        if authorities.exists():
            shutil.copytree(authorities, Path(base, "usr/local/share/ca-certificates"), dirs_exist_ok=True)
            run_checked(environment, "chroot", base, "update-ca-certificates")
        archive = Path(base).with_suffix(".tar")
        try:
            run_checked(environment, "tar", "--create", "--file", archive, "--directory", base, ".")
            run_checked(environment, "docker", "import", archive, BASE)
        finally:
            archive.unlink(missing_ok=True)


def find(program):
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")


def output(environment, *command):
    """The standard output of a command, or None if it fails."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def run_checked(environment, *command, folder=ROOT):
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        words = " ".join(map(str, command))
        raise CannotStart(f"`{words}` failed:\n{(done.stdout + done.stderr).strip()}")
    return done.stdout
