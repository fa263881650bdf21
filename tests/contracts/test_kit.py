"""The requirements of kit/pyproject.toml and the packages of the shop."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dev.settings import ROOT

KIT = tomllib.loads((ROOT / "kit" / "pyproject.toml").read_text())
EXTRAS = KIT["project"]["optional-dependencies"]
OF_IMAGES = [*KIT["build-system"]["requires"], *KIT["project"]["dependencies"], *EXTRAS["tracing"]]


def pinned(*locks):
    text = "".join((ROOT / lock).read_text() for lock in locks)
    return {canonicalize_name(name): version for name, version in re.findall(r"^(\S+)==([^\s;]+)", text, re.MULTILINE)}


# The images and .venv install the kit without its dependencies.
@pytest.mark.parametrize(
    "line, locks",
    [
        *((line, ["requirements.txt"]) for line in OF_IMAGES),
        *((line, ["requirements.txt", "requirements-dev.txt"]) for line in EXTRAS["testing"]),
    ],
)
def test_the_lock_file_meets_the_requirements_of_the_kit(line, locks):
    requirement = Requirement(line)

    version = pinned(*locks).get(canonicalize_name(requirement.name))

    assert version is not None
    assert version in requirement.specifier
