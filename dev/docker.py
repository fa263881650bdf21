"""An engine for `make test-docker`, and images for it on a machine that can't pull any.

    with engine(folder) as environment:
        provide_images(environment)
        subprocess.run(["docker", "compose", "up"], env=environment)

Where Docker answers already it is used as it is, and pulls what it needs. Elsewhere, as root on Debian, an engine of
our own is run: its data are in `folder`, nothing of it is installed, and an image that can't be pulled is replaced by
a stand-in of Debian's packages (tests/docker/stand_ins), under the name of the one it stands for.
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

# The oldest that does all that docker-compose.yml asks for.
OLDEST_ENGINE, OLDEST_COMPOSE = 25, (2, 26)
RELEASE = "trixie"
ARCHIVE = "http://deb.debian.org/debian"
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
# Unpacked, not installed: they need no library that an older release lacks. runc does, and is the machine's.
ENGINE_PACKAGES = ("docker.io", "docker-cli", "docker-compose", "docker-buildx", "containerd")
MACHINE_PACKAGES = {"debootstrap": "debootstrap", "iptables": "iptables", "runc": "runc"}
SECONDS_TO_COME_UP = 60
STAND_INS = ROOT / "tests" / "docker" / "stand_ins"
BASE = "forage-stand-in-base"
# A stage of the stand-ins' Dockerfile for each image, by the last part of its name.
STAGES = {"nginx-unprivileged": "nginx", "oidc-provider-mock": "sign-in"}
OURS = {"forage": ".", "forage-frontend": "frontend"}


@contextmanager
def engine(folder):
    """Yields the environment in which `docker` and `docker compose` work. Raises CannotStart."""
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
    # Not below the folder: a socket's path may have 107 characters at most.
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
                    raise CannotStart(f"dockerd does not come up; {folder}/dockerd.log says why.")
                time.sleep(0.2)
            yield environment
        finally:
            process.terminate()
            process.wait()


def answers(environment):
    """Whether there are an engine and Compose, both new enough."""
    if not shutil.which("docker", path=environment["PATH"]):
        return False
    server = output(environment, "docker", "version", "--format", "{{.Server.Version}}")
    release = re.match(r"\d+", server or "")
    if release is None or int(release[0]) < OLDEST_ENGINE:
        return False
    compose = output(environment, "docker", "compose", "version", "--short")
    if compose is None:
        return False
    # A build of one's own may have no number.
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
        succeed(environment, "apt-get", "-q", "update")
        succeed(environment, "apt-get", "-q", "download", *ENGINE_PACKAGES, folder=packages)
        for package in packages.glob("*.deb"):
            succeed(environment, "dpkg-deb", "--extract", package, programs)
        shutil.rmtree(packages)
        plugins.parent.mkdir(exist_ok=True)
        plugins.symlink_to(programs / "usr" / "libexec" / "docker" / "cli-plugins")
    return programs


def provide_images(environment, profiles=(), services=()):
    """Pulls or makes what the Dockerfiles name and the containers run, and builds the shop's.

    profiles, services: which containers besides those that have no profile.
    """
    is_ours_alone = environment.get("DOCKER_HOST") != os.environ.get("DOCKER_HOST")
    for image in sorted(images(environment, profiles, services)):
        if output(environment, "docker", "image", "inspect", image) is not None:
            continue
        if output(environment, "docker", "pull", "--quiet", image) is None:
            if not is_ours_alone:
                raise CannotStart(f"The image {image} can't be pulled.")
            build_stand_in(environment, image)
    for name, folder in OURS.items():
        print(f"forage: building the image {name}", flush=True)
        # Of our own network a build knows no DNS server; and the machine's own may not be reachable from another.
        succeed(environment, "docker", "build", "--quiet", "--network", "host", "--tag", f"{name}:local", ROOT / folder)


def images(environment, profiles, services):
    """By the names of the Dockerfiles and of docker-compose.yml, the shop's own left out."""
    compose, asked = ("docker", "compose", *(f"--profile={each}" for each in profiles)), ("config", "--images")
    named = succeed({**environment, "SECRETS": "."}, *compose, *asked).split()
    if services:
        named += succeed({**environment, "SECRETS": "."}, *compose, *asked, *services).split()
    for folder in OURS.values():
        text = (ROOT / folder / "Dockerfile").read_text()
        named += re.findall(r"^FROM (?:--\S+ )?(\S+:\S+)", text, re.MULTILINE)
    return {name for name in named if name.partition(":")[0] not in OURS}


def build_stand_in(environment, image):
    if output(environment, "docker", "image", "inspect", BASE) is None:
        import_base(environment)
    name = image.rpartition("/")[2].partition(":")[0]
    stage = STAGES.get(name, name)
    print(f"forage: making a stand-in for the image {image}", flush=True)
    options = ["--quiet", "--network", "host", "--target", stage, "--tag", image]
    succeed(environment, "docker", "build", *options, STAND_INS)


def import_base(environment):
    print(f"forage: making a base of Debian {RELEASE}", flush=True)
    with tempfile.TemporaryDirectory(prefix="forage-base-") as base:
        succeed(environment, "debootstrap", "--variant=minbase", "--include=ca-certificates", RELEASE, base, ARCHIVE)
        # What this machine trusts besides, a proxy that looks into TLS for one, a build in it must trust, too.
        authorities = Path("/usr/local/share/ca-certificates")
        if authorities.exists():
            shutil.copytree(authorities, Path(base, "usr/local/share/ca-certificates"), dirs_exist_ok=True)
            succeed(environment, "chroot", base, "update-ca-certificates")
        archive = Path(base).with_suffix(".tar")
        try:
            succeed(environment, "tar", "--create", "--file", archive, "--directory", base, ".")
            succeed(environment, "docker", "import", archive, BASE)
        finally:
            archive.unlink(missing_ok=True)


def find(program):
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")


def output(environment, *command):
    """What it prints, or None when it fails."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def succeed(environment, *command, folder=ROOT):
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        words = " ".join(map(str, command))
        raise CannotStart(f"`{words}` failed:\n{(done.stdout + done.stderr).strip()}")
    return done.stdout
