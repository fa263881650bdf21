"""The examples of the README and of the pages run exactly as they are printed.

The Python blocks of a page are written to a folder. A block with a title is a file of that name; all others together
are one module. Then `nameko test` runs the tests in them, as a reader would, on this session's servers.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.server

KIT = Path(__file__).resolve().parent.parent
PAGES = sorted(KIT.glob("docs/*.md"))
NAMEKO = Path(sys.executable).with_name("nameko")
BLOCK = re.compile(r"^( *)```python(?: title=\"([^\"\n]+)\")?\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
PYTEST_INI = """
[pytest]
addopts = -p nameko_reliable.testing.plugin -p no:nameko_sqlalchemy --import-mode=importlib --strict-markers -q
pythonpath = testing
filterwarnings = ignore:\\s*Eventlet is deprecated
"""


def python_of(page):
    """{file name: text}."""
    files: dict[str, str] = {}
    for indent, title, text in BLOCK.findall(page.read_text()):
        name = title or f"test_{page.stem}.py"
        files[name] = files.get(name, "") + re.sub(f"^{indent}", "", text, flags=re.MULTILINE)
    return files


@pytest.fixture(scope="module")
def pages(servers, tmp_path_factory):
    """A folder with a subfolder for the examples of each page."""
    postgres, rabbitmq = servers[0].postgres, servers[1].rabbitmq
    folder = tmp_path_factory.mktemp("pages")
    (folder / "pytest.ini").write_text(PYTEST_INI)
    shutil.copy(KIT / "tests" / "pages" / "conftest.py", folder)
    given = {
        "postgres": {name: getattr(postgres, name) for name in ("folder", "port", "password")},
        "rabbitmq": {name: getattr(rabbitmq, name) for name in ("folder", "port", "password", "management_port")},
    }
    (folder / "servers.json").write_text(json.dumps(given, default=str))
    for page in PAGES:
        for name, text in python_of(page).items():
            path = folder / page.stem / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return folder


def test_the_examples_of_all_pages_pass(pages):
    done = subprocess.run([NAMEKO, "test"], cwd=pages, capture_output=True, text=True, timeout=300)

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_service_in_the_readme_is_the_example():
    shown = python_of(KIT / "README.md")

    assert shown == {name: (KIT / name).read_text() for name in shown}


def test_the_tests_that_the_readme_names_exist():
    named = re.findall(r"`(test_\w+)`", (KIT / "README.md").read_text())
    tests = "".join(path.read_text() for path in KIT.glob("tests/test_*.py"))

    assert [name for name in named if f"def {name}(" not in tests] == []
