import re

import pytest

from dev.settings import ROOT

FOLDERS = "contracts|kit|services|gateway|frontend|templates|migrations|dev|ops|benchmarks|tests|docs"
# docs/extending.md names what its reader is about to write.
PAGES = [ROOT / "README.md", *(page for page in (ROOT / "docs").rglob("*.md") if page.name != "extending.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_is_there(page):
    named = re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", page.read_text())

    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_decision_is_in_the_index():
    folder = ROOT / "docs" / "decisions"

    named = re.findall(r"\]\(([\w-]+\.md)\)", (folder / "README.md").read_text())

    assert sorted(named) == sorted(page.name for page in folder.glob("*.md") if page.name != "README.md")
