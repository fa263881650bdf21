"""The examples of the README and of the pages run as they stand there.

A page's Python is written to a folder: a block with a title to the file of that name, all others one after the other to
one module. The tests in it, which the pages show, are then run as a reader would run them, on this session's servers.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
    """{the file's name: its text}."""
    files: dict[str, str] = {}
    for indent, title, text in BLOCK.findall(page.read_text()):
        name = title or f"test_{page.stem}.py"
        files[name] = files.get(name, "") + re.sub(f"^{indent}", "", text, flags=re.MULTILINE)
    return files


@pytest.fixture(scope="module")
def pages(servers, tmp_path_factory):
    """The folder of what the pages show, with one of each page's own in it."""
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


def test_the_examples_of_all_pages_do_what_the_pages_say(pages):
    done = subprocess.run([NAMEKO, "test"], cwd=pages, capture_output=True, text=True, timeout=300)

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readmes_service_is_that_of_the_examples():
    shown = python_of(KIT / "README.md")

    assert shown == {name: (KIT / name).read_text() for name in shown}


def test_the_tests_that_the_readme_names_are_there():
    named = re.findall(r"`(test_\w+)`", (KIT / "README.md").read_text())
    tests = "".join(path.read_text() for path in KIT.glob("tests/test_*.py"))

    assert [name for name in named if f"def {name}(" not in tests] == []
