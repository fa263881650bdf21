"""What kit/pyproject.toml asks for, and what the shop runs with."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dev.settings import ROOT

KIT = tomllib.loads((ROOT / "kit" / "pyproject.toml").read_text())
REQUIREMENTS = [
    *KIT["build-system"]["requires"],
    *KIT["project"]["dependencies"],
    *(requirement for extra in KIT["project"]["optional-dependencies"].values() for requirement in extra),
]


@pytest.fixture(scope="module")
def pinned():
    lock = (ROOT / "requirements.txt").read_text()
    return {canonicalize_name(name): version for name, version in re.findall(r"^(\S+)==([^\s;]+)", lock, re.MULTILINE)}


# The images and .venv install the kit without its dependencies.
@pytest.mark.parametrize("line", REQUIREMENTS)
def test_the_lock_has_what_the_kit_asks_for(pinned, line):
    requirement = Requirement(line)

    version = pinned.get(canonicalize_name(requirement.name))

    assert version is not None
    assert version in requirement.specifier
