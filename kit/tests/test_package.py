"""The kit's wheel: its contents and requirements, and that nothing in it mentions the kit's first user."""

import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

pytestmark = pytest.mark.server

KIT = Path(__file__).resolve().parent.parent
SOURCES = KIT / "src"
# In the repository of the kit's first user: versions that are known to work.
LOCK = KIT.parent / "requirements.txt"
# The second imports the first.
NEED_OPENTELEMETRY = ["nameko_reliable.testing.collector", "nameko_reliable.testing.plugin"]

IMPORT_ALL_BUT = """
import importlib, pkgutil, sys
import nameko_reliable

for module in pkgutil.walk_packages(nameko_reliable.__path__, "nameko_reliable."):
    if module.name not in sys.argv:
        importlib.import_module(module.name)
print(*(name for name in sys.modules if name.startswith(("nameko_reliable", "opentelemetry"))))
"""

# Words of the shop that the kit comes from: its name, its subjects, its techniques, its packages and pages.
FOREIGN = [
    *("forage", "shop", "storefront", "catalogue", "orders", "reservations?", "products?", "notifications?", "sku"),
    *("jwt", "smtp", "openid", "google", "bcrypt", "password hash(es)?", "hash(es|ing)? (a )?passwords?"),
    *(r"(services|contracts|gateway|migrations)\.\w+", "docs/decisions"),
]


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    # A copy, since setuptools writes into the folder that it builds.
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(KIT, folder / "kit", ignore=shutil.ignore_patterns("tests", "*.egg-info", "__pycache__"))
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "kit"))
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def imported(wheel, tmp_path_factory):
    """`imported(but=[…])`: the kit's and OpenTelemetry's modules that an import of all the kit's modules loads.

    but: modules not to import. The wheel is installed with its extras, in an environment of its own.
    """
    folder = tmp_path_factory.mktemp("installed")
    versions = re.findall(r"^\S+==[^\s;]+", LOCK.read_text(), re.MULTILINE) if LOCK.exists() else []
    (folder / "constraints.txt").write_text("\n".join(versions))
    venv.create(folder / "venv")
    python = str(folder / "venv" / "bin" / "python")
    pip("--python", python, "install", "--constraint", str(folder / "constraints.txt"), f"{wheel}[testing,tracing]")

    def imported(but):
        done = subprocess.run([python, "-I", "-c", IMPORT_ALL_BUT, *but], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return set(done.stdout.split())

    return imported


def modules():
    """The names of the modules in the source tree."""
    for path in SOURCES.rglob("*.py"):
        yield ".".join(path.relative_to(SOURCES).with_suffix("").parts).removesuffix(".__init__")


def test_the_wheel_has_every_module_and_py_typed(wheel):
    names = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}

    sources = {str(path.relative_to(SOURCES)) for path in SOURCES.rglob("*.py")}
    assert names == {*sources, "nameko_reliable/py.typed"}


def test_the_wheel_requires_every_package_that_its_modules_import(imported):
    names = imported(but=[])

    ours = {name for name in names if name.startswith("nameko_reliable")}
    assert ours == set(modules())


def test_without_the_tracing_extra_services_do_not_import_opentelemetry(imported):
    names = imported(but=NEED_OPENTELEMETRY)

    assert names == {*modules()}.difference(NEED_OPENTELEMETRY)


@pytest.mark.parametrize("word", FOREIGN)
def test_the_kit_does_not_mention_its_first_user(word):
    # An underscore separates words too.
    pattern = re.compile(f"(?<![a-z]){word}(?![a-z])", re.IGNORECASE)
    texts = [KIT / name for name in ("README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml")]
    files = [*SOURCES.rglob("*.py"), *KIT.glob("docs/*.md"), *KIT.glob("examples/*.*"), *texts]

    found = [
        f"{path.relative_to(KIT)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if pattern.search(line)
    ]

    assert found == []
