"""Every imported package is a declared dependency, and not only a dependency of another package."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import distributions

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dev.settings import ROOT

pytestmark = pytest.mark.server

KIT = tomllib.loads((ROOT / "kit" / "pyproject.toml").read_text())["project"]


def python_files():
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.split()


def is_of_the_kit(path):
    return path.startswith("kit/src/")


def is_in_the_image(path):
    carried = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    return any(path == each or path.startswith(f"{each}/") for each in carried) and not is_of_the_kit(path)


@cache
def owners():
    """{module: its package} of all installed packages. Several packages may share a folder."""
    return {
        re.sub(r"/__init__$", "", str(file).removesuffix(".py")).replace("/", "."): canonicalize_name(each.name)
        for each in distributions()
        for file in each.files or ()
        if file.suffix == ".py"
    }


def imported_modules(path):
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                # A name imported from a package may be a module.
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in owners() else node.module


def packages_of(path):
    modules = {module for module in imported_modules(path) if module.partition(".")[0] not in sys.stdlib_module_names}
    return {owners()[module] for module in modules if module in owners()}


def names(lines):
    return {canonicalize_name(Requirement(line).name) for line in lines}


def declared_packages(*files):
    lines = [line.partition("#")[0].strip() for file in files for line in (ROOT / file).read_text().splitlines()]
    return names(line for line in lines if line and not line.startswith("-"))


@pytest.mark.parametrize(
    "is_meant, known",
    [
        pytest.param(is_in_the_image, declared_packages("requirements.in"), id="images"),
        pytest.param(
            lambda path: not is_of_the_kit(path),
            declared_packages("requirements.in", "requirements-dev.in"),
            id="development",
        ),
        pytest.param(
            is_of_the_kit,
            names([*KIT["dependencies"], *(line for extra in KIT["optional-dependencies"].values() for line in extra)]),
            id="kit",
        ),
    ],
)
def test_every_imported_package_is_a_declared_dependency(is_meant, known):
    files = [path for path in python_files() if is_meant(path)]

    missing = [f"{path}: {package}" for path in files for package in packages_of(path) - known]

    assert files
    assert missing == []
